//! Loading the eBPF object and attaching its programs. Every attachment is a link owned by a file descriptor of this
//! process: it ends with the process, however that ends.

use std::fs::File;

use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, ProgramError, SockOps};
use aya::{Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};
use metaproxy_common::layout::{Config, Counter, Flow, FlowKey};
use metaproxy_common::names;
use thiserror::Error;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/metaproxy.o"));

/// Why the programs do not run.
#[derive(Debug, Error)]
pub enum ProgramsError {
    /// Built without the object.
    #[error(
        "this binary was built without its eBPF object: run `cargo xtask build-ebpf`, then build it again (`cargo \
         xtask setup` installs what that needs)"
    )]
    NoObject,
    /// The kernel did not take the object.
    #[error(
        "the kernel refused the eBPF object: {0}. Needed are CAP_BPF and CAP_NET_ADMIN (below Linux 5.11 also CAP_SYS_RESOURCE), or a privileged container"
    )]
    Load(#[from] EbpfError),
    /// A program did not pass, or was not there.
    #[error("cannot load the eBPF program {name}: {source}")]
    Program {
        /// Which.
        name: &'static str,
        /// Why not.
        source: ProgramError,
    },
    /// A program or map is not in the object, or has another type.
    #[error("the eBPF object does not fit this binary ({0}): run `cargo xtask build-ebpf` and build again")]
    Unfit(String),
    /// Somebody else's program stands in the way.
    #[error(
        "cannot attach {name} to the pods' cgroup: another program that allows no second one is attached there or \
         above (EPERM). `bpftool cgroup tree` shows which; it was attached without BPF_F_ALLOW_MULTI"
    )]
    Occupied {
        /// Which of ours.
        name: &'static str,
    },
    /// The kernel did not attach.
    #[error("cannot attach {name} to the pods' cgroup: {source}")]
    Attach {
        /// Which.
        name: &'static str,
        /// Why not.
        source: ProgramError,
    },
}

/// The five programs, loaded.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
}

/// The maps that userspace reads and writes.
pub struct Maps {
    /// Callers of connections on their way.
    pub flows: HashMap<MapData, FlowKey, Flow>,
    /// Listed hostNetwork pods.
    pub host_pods: HashMap<MapData, u64, u8>,
    /// What the programs count.
    pub counters: Counters,
}

/// What the programs count.
pub struct Counters(PerCpuArray<MapData, u64>);

impl Counters {
    /// One of them, summed over the CPUs; 0 where it can't be read.
    pub fn total(&self, counter: Counter) -> u64 {
        self.0
            .get(&(counter as u32), 0)
            .map_or(0, |values| values.iter().sum())
    }
}

impl Programs {
    /// Loads the object with its configuration; nothing is attached yet.
    pub fn load(config: &Config) -> Result<(Self, Maps), ProgramsError> {
        if OBJECT.is_empty() {
            return Err(ProgramsError::NoObject);
        }
        let mut ebpf = EbpfLoader::new().load(OBJECT)?;
        let mut configs: Array<_, Config> = map(&mut ebpf, names::CONFIG)?;
        configs
            .set(0, config, 0)
            .map_err(|error| ProgramsError::Unfit(error.to_string()))?;
        let maps = Maps {
            flows: map(&mut ebpf, names::FLOWS)?,
            host_pods: map(&mut ebpf, names::HOST_PODS)?,
            counters: Counters(map(&mut ebpf, names::COUNTERS)?),
        };
        let mut programs = Self { ebpf };
        programs.load_all()?;
        Ok((programs, maps))
    }

    fn load_all(&mut self) -> Result<(), ProgramsError> {
        let failed = |name| move |source| ProgramsError::Program { name, source };
        for name in [
            names::CONNECT4,
            names::CONNECT6,
            names::GETPEERNAME4,
            names::GETPEERNAME6,
        ] {
            self.program::<CgroupSockAddr>(name)?
                .load()
                .map_err(failed(name))?;
        }
        self.program::<SockOps>(names::SOCK_OPS)?
            .load()
            .map_err(failed(names::SOCK_OPS))
    }

    fn program<'a, P>(&'a mut self, name: &'static str) -> Result<&'a mut P, ProgramsError>
    where
        &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
    {
        let program = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| ProgramsError::Unfit(format!("no program {name}")))?;
        program
            .try_into()
            .map_err(|source| ProgramsError::Program { name, source })
    }

    /// Attaches to a cgroup: first what files identities and shows addresses, then what redirects, so that no
    /// connection is redirected whose caller would not be known.
    pub fn attach(&mut self, cgroup: &File) -> Result<Links, ProgramsError> {
        let identity = vec![
            self.attach_sock_ops(cgroup)?,
            self.attach_sock_addr(names::GETPEERNAME4, cgroup)?,
            self.attach_sock_addr(names::GETPEERNAME6, cgroup)?,
        ];
        let redirect = vec![
            self.attach_sock_addr(names::CONNECT4, cgroup)?,
            self.attach_sock_addr(names::CONNECT6, cgroup)?,
        ];
        Ok(Links {
            redirect,
            _identity: identity,
        })
    }

    // `Single` is no flag at all, the only mode that links take; a link allows others beside it all the same
    // (kernel/bpf/cgroup.c: links imply BPF_F_ALLOW_MULTI; aya #1078).

    fn attach_sock_addr(&mut self, name: &'static str, cgroup: &File) -> Result<FdLink, ProgramsError> {
        let program = self.program::<CgroupSockAddr>(name)?;
        let id = program
            .attach(cgroup, CgroupAttachMode::Single)
            .map_err(attach_error(name))?;
        let link = program.take_link(id).map_err(attach_error(name))?;
        link.try_into()
            .map_err(|error| ProgramsError::Unfit(format!("{name} is no link: {error}")))
    }

    fn attach_sock_ops(&mut self, cgroup: &File) -> Result<FdLink, ProgramsError> {
        let name = names::SOCK_OPS;
        let program = self.program::<SockOps>(name)?;
        let id = program
            .attach(cgroup, CgroupAttachMode::Single)
            .map_err(attach_error(name))?;
        let link = program.take_link(id).map_err(attach_error(name))?;
        link.try_into()
            .map_err(|error| ProgramsError::Unfit(format!("{name} is no link: {error}")))
    }

    /// Prints what the programs log, as it comes. Must be called within a tokio runtime.
    #[cfg(feature = "ebpf-log")]
    pub fn print_logs(&mut self) {
        match aya_log::EbpfLogger::init(&mut self.ebpf) {
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

fn attach_error(name: &'static str) -> impl Fn(ProgramError) -> ProgramsError {
    move |source| {
        let errno = match &source {
            ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
            _ => None,
        };
        match errno {
            Some(libc::EPERM) => ProgramsError::Occupied { name },
            _ => ProgramsError::Attach { name, source },
        }
    }
}

fn map<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, ProgramsError>
where
    M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    let map = ebpf
        .take_map(name)
        .ok_or_else(|| ProgramsError::Unfit(format!("no map {name}")))?;
    map.try_into()
        .map_err(|error| ProgramsError::Unfit(format!("{name}: {error}")))
}

/// Attached programs; dropping detaches, in the order of the fields: what redirects before what files identities.
#[derive(Debug)]
pub struct Links {
    redirect: Vec<FdLink>,
    _identity: Vec<FdLink>,
}

impl Links {
    /// Detaches what redirects. Identities of connections that were redirected before are still filed.
    pub fn stop_redirecting(&mut self) {
        self.redirect.clear();
    }
}
