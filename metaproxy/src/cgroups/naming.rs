//! Names of pods' cgroups as the kubelet chooses them, and the pod of a cgroup's path.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::pods::PodUid;

/// The naming of cgroups by a cgroup driver of the kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Naming {
    /// `kubepods/burstable/pod<uid>`
    Cgroupfs,
    /// `<stem>.slice/<stem>-burstable.slice/<stem>-burstable-pod<uid with underscores>.slice`
    Systemd {
        /// The name of the pods' slice without its suffix: `kubepods`, or `kubelet-kubepods`.
        stem: String,
    },
}

/// Reports whether a cgroup has a name that a kubelet gives to the cgroup of all pods: `kubepods`, `kubepods.slice`,
/// or a slice named after a parent.
pub(super) fn is_of_all_pods(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    name == "kubepods" || name == "kubepods.slice" || name.ends_with("-kubepods.slice")
}

/// Returns the cgroup of all pods for a cgroup below it: that of a QoS class, a pod or a container. The cgroup of all
/// pods is recognized by its name. Returns `None` if the given cgroup has such a name itself, even if it is below
/// another one, because a kubelet may run in a pod.
pub(super) fn all_pods(path: &Path) -> Option<&Path> {
    if is_of_all_pods(path) {
        return None;
    }
    path.ancestors().skip(1).find(|above| is_of_all_pods(above))
}

const QOS_CLASSES: [&str; 2] = ["burstable", "besteffort"];

impl Naming {
    /// Determines the naming from the path of the pods' cgroup.
    pub fn of(pods_cgroup: &Path) -> Self {
        match pods_cgroup
            .file_name()
            .and_then(OsStr::to_str)
            .and_then(|name| name.strip_suffix(".slice"))
        {
            Some(stem) => Self::Systemd {
                stem: stem.to_owned(),
            },
            None => Self::Cgroupfs,
        }
    }

    /// Returns the pod of a cgroup, given its path below the pods' cgroup.
    ///
    /// Only the component directly below the pods' cgroup or below a QoS class's cgroup counts, because a container
    /// may create cgroups of its own and name them after another pod.
    pub fn pod_of(&self, below: &Path) -> Option<PodUid> {
        let mut components = below.components().map(|component| component.as_os_str().to_str());
        let first = components.next()??;
        match QOS_CLASSES
            .iter()
            .find(|class| first == self.class_directory(class))
        {
            Some(class) => self.uid_in(components.next()??, Some(class)),
            None => self.uid_in(first, None),
        }
    }

    /// Returns the names of the QoS classes' cgroups below the pods' cgroup.
    pub(super) fn class_directories(&self) -> [String; 2] {
        QOS_CLASSES.map(|class| self.class_directory(class))
    }

    fn class_directory(&self, class: &str) -> String {
        match self {
            Self::Cgroupfs => class.to_owned(),
            Self::Systemd { stem } => format!("{stem}-{class}.slice"),
        }
    }

    fn uid_in(&self, name: &str, class: Option<&str>) -> Option<PodUid> {
        match self {
            Self::Cgroupfs => name.strip_prefix("pod")?.parse().ok(),
            Self::Systemd { stem } => {
                let slice = name.strip_suffix(".slice")?.strip_prefix(stem.as_str())?;
                let slice = match class {
                    Some(class) => slice.strip_prefix('-')?.strip_prefix(class)?,
                    None => slice,
                };
                let uid = slice.strip_prefix("-pod")?;
                // systemd reads a dash as a level of slices, so the kubelet writes underscores.
                if uid.contains('-') {
                    None
                } else {
                    uid.replace('_', "-").parse().ok()
                }
            }
        }
    }

    /// Returns the possible paths of a pod's cgroup below the pods' cgroup, one for each QoS class.
    pub(super) fn directories_of(&self, uid: &PodUid) -> Vec<PathBuf> {
        let classes = std::iter::once(None).chain(QOS_CLASSES.into_iter().map(Some));
        classes
            .map(|class| match (self, class) {
                (Self::Cgroupfs, None) => format!("pod{uid}").into(),
                (Self::Cgroupfs, Some(class)) => format!("{class}/pod{uid}").into(),
                (Self::Systemd { stem }, class) => {
                    let escaped = uid.as_str().replace('-', "_");
                    match class {
                        None => format!("{stem}-pod{escaped}.slice").into(),
                        Some(class) => {
                            format!("{stem}-{class}.slice/{stem}-{class}-pod{escaped}.slice").into()
                        }
                    }
                }
            })
            .collect()
    }
}
