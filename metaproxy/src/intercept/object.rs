//! Loads an eBPF object with its maps and programs into the kernel, and attaches the programs.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};

use aya::maps::{Map, MapData, MapError};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};
use metaproxy_common::names;
use thiserror::Error;

use super::link::{Hook, Link};

/// The reasons why programs do not run.
#[derive(Debug, Error)]
pub enum ProgramsError {
    /// The binary was built without the object.
    #[error(
        "this binary was built without its eBPF objects: run `cargo xtask build-ebpf`, then build it again (`cargo \
         xtask setup` installs what that needs)"
    )]
    NoObject,
    /// The kernel refused the object.
    #[error(
        "the kernel refused the eBPF object: {0}. Needed are CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (below Linux 5.11 \
         also CAP_SYS_RESOURCE), or a privileged container"
    )]
    Load(#[from] EbpfError),
    /// The kernel refused a program.
    #[error("cannot load the eBPF program {name}: {source}")]
    Program {
        /// The program's name.
        name: &'static str,
        /// The kernel's error, with the verifier's log.
        source: ProgramError,
    },
    /// A program or map is not in the object, or has another type.
    #[error("the eBPF object does not fit this binary ({0}): run `cargo xtask build-ebpf` and build again")]
    Unfit(String),
    /// The system has no random numbers.
    #[error("cannot make a key for the callers' tags: the system's random number generator failed")]
    NoRandomness,
    /// Another program allows no second one.
    #[error(
        "cannot attach {name} to {what}: another program that allows no second one is attached there or \
         above (EPERM). `bpftool cgroup tree` shows which; it was attached without BPF_F_ALLOW_MULTI"
    )]
    Occupied {
        /// The program's name.
        name: &'static str,
        /// The cgroup.
        what: &'static str,
    },
    /// The kernel did not attach a program.
    #[error("cannot attach {name} to {what}: {source}")]
    Attach {
        /// The program's name.
        name: &'static str,
        /// The cgroup or interface.
        what: String,
        /// The kernel's error.
        source: std::io::Error,
    },
}

/// An eBPF object whose maps are in the kernel. Each program is in the kernel after [`Self::load`].
#[derive(Debug)]
pub struct BpfObject {
    ebpf: Ebpf,
}

impl BpfObject {
    /// Parses the object and creates its maps.
    ///
    /// # Errors
    /// If the object is empty, or the kernel refuses.
    pub fn new(bytes: &[u8]) -> Result<Self, ProgramsError> {
        if bytes.is_empty() {
            return Err(ProgramsError::NoObject);
        }
        Ok(Self {
            ebpf: EbpfLoader::new().load(bytes)?,
        })
    }

    /// Takes a map out of the object, for use in userspace.
    ///
    /// # Errors
    /// If there is no map of that name and type.
    pub fn map<M>(&mut self, name: &'static str) -> Result<M, ProgramsError>
    where
        M: TryFrom<Map, Error = MapError>,
    {
        let map = self
            .ebpf
            .take_map(name)
            .ok_or_else(|| ProgramsError::Unfit(format!("no map {name}")))?;
        map.try_into()
            .map_err(|error| ProgramsError::Unfit(format!("{name}: {error}")))
    }

    /// Makes a second handle of a map, for use in another part of userspace.
    ///
    /// # Errors
    /// If there is no map of that name and type, or the process has too many descriptors.
    pub fn clone_map<M>(&self, name: &'static str) -> Result<M, ProgramsError>
    where
        M: TryFrom<Map, Error = MapError>,
    {
        let unfit = |error: &dyn fmt::Display| ProgramsError::Unfit(format!("{name}: {error}"));
        let map = self
            .ebpf
            .map(name)
            .ok_or_else(|| ProgramsError::Unfit(format!("no map {name}")))?;
        let Map::SkStorage(data) = map else {
            return Err(ProgramsError::Unfit(format!("{name} is of another type")));
        };
        let fd = data
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| unfit(&error))?;
        let data = MapData::from_fd(fd).map_err(|error| unfit(&error))?;
        Map::SkStorage(data).try_into().map_err(|error| unfit(&error))
    }

    /// Loads a program.
    ///
    /// # Errors
    /// If there is no program of that name, or the verifier refuses it.
    pub fn load(&mut self, name: &'static str) -> Result<(), ProgramsError> {
        let program = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| ProgramsError::Unfit(format!("no program {name}")))?;
        let loaded = match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSkb(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            Program::SockOps(program) => program.load(),
            _ => return Err(ProgramsError::Unfit(format!("{name} is of another type"))),
        };
        loaded.map_err(|source| ProgramsError::Program { name, source })
    }

    fn loaded(&self, name: &'static str) -> Result<BorrowedFd<'_>, ProgramsError> {
        let program = self
            .ebpf
            .program(name)
            .ok_or_else(|| ProgramsError::Unfit(format!("no program {name}")))?;
        let fd = program
            .fd()
            .map_err(|source| ProgramsError::Program { name, source })?;
        Ok(fd.as_fd())
    }

    fn attach(&self, name: &'static str, hook: Hook, cgroup: &File) -> Result<Link, ProgramsError> {
        let what = if name == names::LISTENER_OPS {
            "the agent's own cgroup"
        } else {
            "the pods' cgroup"
        };
        Link::to_cgroup(self.loaded(name)?, hook, cgroup.as_fd()).map_err(|source| {
            match source.raw_os_error() {
                Some(libc::EPERM) => ProgramsError::Occupied { name, what },
                _ => ProgramsError::Attach {
                    name,
                    what: what.to_owned(),
                    source,
                },
            }
        })
    }

    /// Attaches loaded programs to a cgroup, one after the other.
    ///
    /// # Errors
    /// [`ProgramsError::Occupied`], or [`ProgramsError::Attach`]. No program stays attached then.
    pub fn attach_all(
        &self,
        programs: &[(&'static str, Hook)],
        cgroup: &File,
    ) -> Result<CgroupLinks, ProgramsError> {
        let attach = |&(name, hook): &(&'static str, Hook)| {
            let link = self.attach(name, hook, cgroup)?;
            Ok((name, hook, link))
        };
        programs
            .iter()
            .map(attach)
            .collect::<Result<_, _>>()
            .map(CgroupLinks)
    }

    /// Attaches programs again that another process has detached, and returns their names.
    ///
    /// # Errors
    /// The first error of [`Self::attach_all`]. The programs without an error are attached.
    pub fn reattach(
        &self,
        links: &mut CgroupLinks,
        cgroup: &File,
    ) -> Result<Vec<&'static str>, ProgramsError> {
        let mut reattached = Vec::new();
        let mut result = Ok(());
        for (name, hook, link) in &mut links.0 {
            if link.is_attached() {
                continue;
            }
            match self.attach(name, *hook, cgroup) {
                Ok(again) => {
                    *link = again;
                    reattached.push(*name);
                }
                Err(error) => result = result.and(Err(error)),
            }
        }
        result.map(|()| reattached)
    }

    /// Attaches a loaded program to the egress of an interface.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn attach_to_egress_of(&self, name: &'static str, interface: u32) -> Result<Link, ProgramsError> {
        Link::to_egress_of(self.loaded(name)?, interface).map_err(|source| ProgramsError::Attach {
            name,
            what: format!("the egress of interface {interface}"),
            source,
        })
    }

    /// Returns aya's object, for aya-log.
    #[cfg(feature = "ebpf-log")]
    pub fn aya(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

/// Programs that are attached to one cgroup.
#[derive(Debug)]
pub struct CgroupLinks(Vec<(&'static str, Hook, Link)>);

impl CgroupLinks {
    /// Detaches programs at hooks for which `keep` is false.
    pub fn retain(&mut self, keep: impl Fn(Hook) -> bool) {
        self.0.retain(|(_, hook, _)| keep(*hook));
    }
}
