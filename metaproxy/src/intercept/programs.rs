//! Loads and attaches the programs that redirect connections and identify callers.

use std::fmt;
use std::fs::File;

use aya::include_bytes_aligned;
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, SkStorage};
use metaproxy_common::address::{Endpoint, Port};
use metaproxy_common::layout::{
    Arrival, Config, Counter, Destination, FailureKey, NUM_PODS_CGROUPS, PodFamily,
};
use metaproxy_common::names;
use metaproxy_common::siphash::Key;
use metaproxy_common::verdict::Family;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::link::Hook;
use super::listener::ListenerMarks;
use super::object::{BpfObject, CgroupLinks, ProgramsError};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/metaproxy.o"));

/// The programs for pods, in the order in which they are attached. Those that identify callers come before those that
/// redirect, so that no connection is redirected without its caller.
const POD_PROGRAMS: [(&str, Hook); 5] = [
    (names::SOCK_OPS, Hook::SockOps),
    (names::GETPEERNAME4, Hook::Getpeername4),
    (names::GETPEERNAME6, Hook::Getpeername6),
    (names::CONNECT4, Hook::Connect4),
    (names::CONNECT6, Hook::Connect6),
];

/// The number of [`POD_PROGRAMS`] that identify callers.
const NUM_IDENTIFYING: usize = 3;

/// The program that verifies callers, at the agent's own cgroup.
const LISTENER_PROGRAMS: [(&str, Hook); 1] = [(names::LISTENER_OPS, Hook::SockOps)];

/// The loaded programs.
#[derive(Debug)]
pub struct Programs {
    object: BpfObject,
    /// The programs for pods that are attached. An agent that only observes does not need those that identify
    /// callers.
    wanted: &'static [(&'static str, Hook)],
}

/// The maps that userspace reads and writes.
pub struct Maps {
    /// The configuration of the programs.
    pub config: LiveConfig,
    /// The callers of accepted connections.
    pub arrivals: SkStorage<MapData, Arrival>,
    /// The marks of listeners.
    pub marks: ListenerMarks,
    /// The number of failed handshakes, by the caller's cgroup.
    pub failures: HashMap<MapData, FailureKey, u64>,
    /// The pods that are intercepted in the node's network namespace.
    pub host_pods: HashMap<MapData, u64, u8>,
    /// The address families of pods that differ from the other pods in their family.
    pub pod_families: HashMap<MapData, u64, PodFamily>,
    /// The ids of the pods' cgroup and of the QoS classes'.
    pub pods: PodsCgroupIds,
    /// The number of connections that were only observed, by cgroup id.
    pub observed: HashMap<MapData, u64, u64>,
    /// The counters of the programs.
    pub counters: Counters,
}

/// The configuration of loaded programs.
pub struct LiveConfig {
    map: Array<MapData, Config>,
    config: Config,
}

impl LiveConfig {
    fn new(mut map: Array<MapData, Config>, config: &Config) -> Result<Self, MapError> {
        map.set(0, config, 0)?;
        Ok(Self { map, config: *config })
    }

    /// Redirects pods' connections to these listeners from now on.
    ///
    /// The kernel copies the value word by word, in order, while programs read it (`bpf_long_memcpy`,
    /// include/linux/bpf.h). An agent's addresses never change and come before their ports, so a program may see the
    /// new port of one listener before that of the other, but never an address with the port of another.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn redirect_to(&mut self, destination: Destination) -> Result<(), ProgramsError> {
        self.set(destination)
    }

    /// Refuses pods' connections from now on. Only the ports are removed, for the reason in [`Self::redirect_to`].
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn refuse(&mut self) -> Result<(), ProgramsError> {
        let Destination { v4, v6 } = self.config.destination;
        let closed = |listener: Endpoint| Endpoint::new(listener.address, Port::new(0));
        self.set(Destination {
            v4: closed(v4),
            v6: closed(v6),
        })
    }

    /// Sets the family of all pods that have no entry in `mp_pod_family`.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_pod_family(&mut self, family: Family) -> Result<(), ProgramsError> {
        let pod_family = PodFamily::of(family);
        if self.config.pod_family == pod_family {
            return Ok(());
        }
        self.config.pod_family = pod_family;
        self.write()
    }

    fn set(&mut self, destination: Destination) -> Result<(), ProgramsError> {
        if self.config.destination == destination {
            return Ok(());
        }
        self.config.destination = destination;
        self.write()
    }

    fn write(&mut self) -> Result<(), ProgramsError> {
        self.map
            .set(0, self.config, 0)
            .map_err(|error| ProgramsError::Unfit(error.to_string()))
    }
}

/// The map with the ids of the pods' cgroup and of the QoS classes'.
pub struct PodsCgroupIds(Array<MapData, u64>);

impl fmt::Debug for PodsCgroupIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodsCgroupIds").finish_non_exhaustive()
    }
}

impl PodsCgroupIds {
    /// Replaces the ids.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set(&mut self, ids: [u64; NUM_PODS_CGROUPS]) -> Result<(), ProgramsError> {
        for (index, id) in (0..).zip(ids) {
            self.0
                .set(index, id, 0)
                .map_err(|error| ProgramsError::Unfit(error.to_string()))?;
        }
        Ok(())
    }
}

/// The counters of the programs.
pub struct Counters(PerCpuArray<MapData, u64>);

impl Counters {
    /// Returns a counter, summed over the CPUs; 0 if it cannot be read.
    pub fn total(&self, counter: Counter) -> u64 {
        sum(&self.0, counter as u32)
    }
}

/// Returns an element of a per-CPU array of counters, summed over the CPUs; 0 if it cannot be read.
pub(super) fn sum(counters: &PerCpuArray<MapData, u64>, index: u32) -> u64 {
    counters.get(&index, 0).map_or(0, |values| values.iter().sum())
}

impl Programs {
    /// Loads the object with its configuration, and attaches nothing.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn load(config: &Config) -> Result<(Self, Maps), ProgramsError> {
        let mut object = BpfObject::new(OBJECT)?;
        let unfit = |error: MapError| ProgramsError::Unfit(error.to_string());
        let mut keys: Array<_, Key> = object.map(names::KEY)?;
        keys.set(0, new_key()?, 0).map_err(unfit)?;
        let maps = Maps {
            config: LiveConfig::new(object.map(names::CONFIG)?, config).map_err(unfit)?,
            marks: ListenerMarks::new(object.clone_map(names::ARRIVALS)?, object.map(names::LISTENERS)?),
            arrivals: object.map(names::ARRIVALS)?,
            failures: object.map(names::FAILURES)?,
            host_pods: object.map(names::HOST_PODS)?,
            pod_families: object.map(names::POD_FAMILIES)?,
            pods: PodsCgroupIds(object.map(names::PODS)?),
            observed: object.map(names::OBSERVED)?,
            counters: Counters(object.map(names::COUNTERS)?),
        };
        let wanted = if config.observe == 0 {
            &POD_PROGRAMS[..]
        } else {
            &POD_PROGRAMS[NUM_IDENTIFYING..]
        };
        let listener: &[_] = if config.observe == 0 {
            &LISTENER_PROGRAMS
        } else {
            &[]
        };
        for (name, _) in wanted.iter().chain(listener) {
            object.load(name)?;
        }
        Ok((Self { object, wanted }, maps))
    }

    /// Attaches the programs for pods to a cgroup.
    ///
    /// # Errors
    /// If the kernel refuses. Nothing is attached then.
    pub fn attach(&self, cgroup: &File) -> Result<Links, ProgramsError> {
        self.object.attach_all(self.wanted, cgroup).map(Links)
    }

    /// Attaches the program that verifies callers to the cgroup of the listeners, which is that of this process.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn attach_listener(&self, cgroup: &File) -> Result<Links, ProgramsError> {
        self.object.attach_all(&LISTENER_PROGRAMS, cgroup).map(Links)
    }

    /// Attaches programs again that another process has detached, and returns their names.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn reattach(&self, links: &mut Links, cgroup: &File) -> Result<Vec<&'static str>, ProgramsError> {
        self.object.reattach(&mut links.0, cgroup)
    }

    /// Prints the log lines of the programs. It must be called within a tokio runtime.
    #[cfg(feature = "ebpf-log")]
    pub fn print_logs(&mut self) {
        match aya_log::EbpfLogger::init(self.object.aya()) {
            Ok(mut logger) => {
                tokio::spawn(async move {
                    let mut look = tokio::time::interval(std::time::Duration::from_millis(100));
                    loop {
                        look.tick().await;
                        logger.flush();
                    }
                });
            }
            Err(error) => tracing::warn!("the eBPF programs' log cannot be read: {error}"),
        }
    }
}

/// Makes a random key for this agent's tags, so that neither another process nor a later run has the same key.
fn new_key() -> Result<Key, ProgramsError> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| ProgramsError::NoRandomness)?;
    Ok(Key::from_bytes(bytes))
}

/// Attached programs. Dropping this value detaches the programs that redirect before those that identify.
#[derive(Debug)]
pub struct Links(CgroupLinks);

impl Links {
    /// Detaches the programs that redirect. Connections that were redirected before still carry their callers.
    pub fn stop_redirecting(&mut self) {
        self.0
            .retain(|hook| !matches!(hook, Hook::Connect4 | Hook::Connect6));
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.stop_redirecting();
    }
}
