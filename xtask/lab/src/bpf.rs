//! The eBPF objects that processes of a lab have loaded.
//!
//! Other labs, and other instances of metaproxy, may load and unload objects of the same names on the same machine, so
//! objects are attributed to the processes that hold them. The kernel keeps an object as long as a process has a
//! descriptor of it, or a link or a program uses it, or it is pinned or attached without a link (bpf(2)). The
//! descriptors of a process are described in `/proc/PID/fdinfo`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::maps::{MapError, loaded_maps};
use aya::programs::links::LinkError;
use aya::programs::{ProgramError, loaded_links, loaded_programs};
use metaproxy_common::names;

use super::Lab;

/// How long the kernel may take to unload the objects of a process, which it does after the process has ended.
const UNLOAD_TIMEOUT: Duration = Duration::from_secs(5);

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// An object by its id, which the kernel does not give to another object soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Object {
    Program(u32),
    Link(u32),
    Map(u32),
}

/// Descriptions of objects, such as `program 12 mp_connect4`.
type Objects = BTreeMap<Object, String>;

/// The objects with metaproxy's names that are loaded on this machine.
struct Loaded {
    objects: Objects,
    /// The programs of links, and the maps of programs.
    uses: BTreeMap<Object, Vec<Object>>,
}

impl Loaded {
    fn now() -> Result<Self> {
        let mut loaded = Self {
            objects: Objects::new(),
            uses: BTreeMap::new(),
        };
        for program in loaded_programs() {
            let Some(program) = present(program, gone_program)? else {
                continue;
            };
            let name = program.name_as_str().unwrap_or_default();
            if !name.starts_with(names::PREFIX) {
                continue;
            }
            let Some(maps) = present(program.map_ids(), gone_program)? else {
                continue;
            };
            let object = Object::Program(program.id());
            let maps = maps.unwrap_or_default();
            loaded
                .objects
                .insert(object, format!("program {} {name}", program.id()));
            loaded
                .uses
                .insert(object, maps.into_iter().map(Object::Map).collect());
        }
        for link in loaded_links() {
            let Some(link) = present(link, gone_link)? else {
                continue;
            };
            let program = Object::Program(link.program_id());
            let Some(of) = loaded.objects.get(&program) else {
                continue;
            };
            let object = Object::Link(link.id());
            let description = format!("link {} of {of}", link.id());
            loaded.objects.insert(object, description);
            loaded.uses.insert(object, vec![program]);
        }
        for map in loaded_maps() {
            let Some(map) = present(map, gone_map)? else {
                continue;
            };
            let name = map.name_as_str().unwrap_or_default();
            if name.starts_with(names::PREFIX) {
                let description = format!("map {} {name}", map.id());
                loaded.objects.insert(Object::Map(map.id()), description);
            }
        }
        Ok(loaded)
    }

    /// Returns the objects that these processes have descriptors of, and what those use.
    fn held_by(&self, processes: impl IntoIterator<Item = u32>) -> BTreeSet<Object> {
        self.used_by(processes.into_iter().flat_map(descriptors).collect())
    }

    /// Returns these objects and what they use.
    fn used_by(&self, mut next: Vec<Object>) -> BTreeSet<Object> {
        let mut held = BTreeSet::new();
        while let Some(object) = next.pop() {
            if self.objects.contains_key(&object) && held.insert(object) {
                next.extend(self.uses.get(&object).into_iter().flatten());
            }
        }
        held
    }

    fn described(mut self, objects: &BTreeSet<Object>) -> Objects {
        self.objects.retain(|object, _| objects.contains(object));
        self.objects
    }
}

/// Returns the result, or `None` if the object was unloaded after its id was listed.
fn present<T, E>(result: Result<T, E>, is_gone: impl Fn(&E) -> bool) -> Result<Option<T>>
where
    E: std::error::Error + Send + Sync + 'static,
{
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error).context("cannot list the eBPF objects of this machine"),
    }
}

fn gone_program(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(error) if error.io_error.kind() == io::ErrorKind::NotFound)
}

/// Returns whether the link is gone, or is not there yet: `bpf_link_by_id` (kernel/bpf/syscall.c) returns `EAGAIN` for a
/// link that another process is about to make.
fn gone_link(error: &LinkError) -> bool {
    let LinkError::SyscallError(error) = error else {
        return false;
    };
    matches!(
        error.io_error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::WouldBlock
    )
}

fn gone_map(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(error) if error.io_error.kind() == io::ErrorKind::NotFound)
}

/// Returns the objects that a process has descriptors of; none if it has ended.
fn descriptors(process: u32) -> Vec<Object> {
    let entries = fs::read_dir(format!("/proc/{process}/fd"));
    let entries = entries.into_iter().flatten().flatten();
    let is_bpf = |path: &std::path::Path| {
        // anon_inode:bpf-prog, anon_inode:bpf-map, anon_inode:bpf_link
        fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("anon_inode:bpf"))
    };
    let infos = entries.filter(|entry| is_bpf(&entry.path())).map(|entry| {
        let number = entry.file_name().to_string_lossy().into_owned();
        fs::read_to_string(format!("/proc/{process}/fdinfo/{number}")).unwrap_or_default()
    });
    infos.flat_map(|info| objects_of(&info)).collect()
}

/// Reads the objects in a descriptor's information (`bpf_prog_show_fdinfo` and its neighbours, kernel/bpf/syscall.c).
fn objects_of(info: &str) -> Vec<Object> {
    let objects = info.lines().filter_map(|line| {
        let (key, value) = line.split_once(':')?;
        let id = value.trim().parse().ok()?;
        match key {
            "prog_id" => Some(Object::Program(id)),
            "link_id" => Some(Object::Link(id)),
            "map_id" => Some(Object::Map(id)),
            _ => None,
        }
    });
    objects.collect()
}

/// Returns all objects that are loaded now.
pub(super) fn loaded() -> Result<BTreeSet<Object>> {
    Ok(Loaded::now()?.objects.into_keys().collect())
}

/// Lists the programs, links and maps that processes of this lab hold, such as `map 7 mp_sockets`.
///
/// # Errors
/// If the kernel's objects cannot be listed.
pub fn held_in(lab: &Lab) -> Result<Vec<String>> {
    held_by(&lab.processes())
}

/// Lists the programs, links and maps that these processes hold.
///
/// # Errors
/// If the kernel's objects cannot be listed.
pub fn held_by(processes: &[u32]) -> Result<Vec<String>> {
    let loaded = Loaded::now()?;
    let held = loaded.held_by(processes.iter().copied());
    Ok(loaded.described(&held).into_values().collect())
}

/// Lists the given objects that are still loaded. Objects are given as [`held_by`] describes them.
///
/// # Errors
/// If the kernel's objects cannot be listed.
pub fn still_loaded(objects: &[String]) -> Result<Vec<String>> {
    let now = Loaded::now()?.objects;
    Ok(now.into_values().filter(|one| objects.contains(one)).collect())
}

/// Lists the lab's objects that are still loaded after the kernel had time to unload them, except those that the
/// processes `beside` hold.
///
/// A process may have been killed at any moment, before anything could note what it had loaded. So these are all
/// objects that were loaded since the lab was made and that no process outside of the lab holds.
///
/// # Errors
/// If the kernel's objects cannot be listed.
pub fn left_over(lab: &Lab, beside: &[u32]) -> Result<Vec<String>> {
    let deadline = Instant::now() + UNLOAD_TIMEOUT;
    let mut left = unowned(lab, beside)?;
    // The objects of a process of another lab that has just ended are unloaded soon, so only objects that stay count.
    while !left.is_empty() && Instant::now() < deadline {
        std::thread::sleep(POLL_INTERVAL);
        let now = unowned(lab, beside)?;
        left.retain(|object, _| now.contains_key(object));
    }
    Ok(left.into_values().collect())
}

fn unowned(lab: &Lab, beside: &[u32]) -> Result<Objects> {
    // Processes are listed after the objects, so that they include every process that holds a listed object.
    let loaded = Loaded::now()?;
    let own = lab.processes();
    let others = all_processes().filter(|pid| beside.contains(pid) || !own.contains(pid));
    let held = loaded.held_by(others);
    let mut objects = loaded.objects;
    objects.retain(|object, _| !held.contains(object) && !lab.loaded_before.contains(object));
    Ok(objects)
}

fn all_processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Counts the links of this lab's processes that are attached to nothing, because their cgroup or interface is gone or
/// another process has detached them.
pub fn detached_links(lab: &Lab) -> usize {
    let infos = lab.processes().into_iter().flat_map(|pid| {
        let entries = fs::read_dir(format!("/proc/{pid}/fdinfo"));
        let entries = entries.into_iter().flatten().flatten();
        entries.map(|entry| fs::read_to_string(entry.path()).unwrap_or_default())
    });
    infos.filter(|info| is_detached(info)).count()
}

fn is_detached(info: &str) -> bool {
    let target = info.lines().find_map(|line| {
        line.strip_prefix("cgroup_id:")
            .or_else(|| line.strip_prefix("ifindex:"))
    });
    target.is_some_and(|target| target.trim() == "0")
}

/// Returns the ids of the links of this lab's processes whose program has this name.
///
/// # Errors
/// If the kernel's objects cannot be listed.
pub(super) fn links_of(lab: &Lab, name: &str) -> Result<Vec<u32>> {
    let loaded = Loaded::now()?;
    let held = loaded.held_by(lab.processes());
    let is_of = |object: &Object| {
        let description = loaded.objects.get(object);
        description.is_some_and(|text| text.ends_with(&format!(" {name}")))
    };
    let links = held.into_iter().filter(is_of).filter_map(|object| match object {
        Object::Link(id) => Some(id),
        Object::Program(_) | Object::Map(_) => None,
    });
    Ok(links.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptors_information_names_its_objects() {
        let link = "pos:\t0\nflags:\t02000000\nmnt_id:\t15\nlink_type:\tcgroup\nlink_id:\t31\nprog_tag:\tabc\n\
                    prog_id:\t12\ncgroup_id:\t0\nattach_type:\t10\n";
        assert_eq!(objects_of(link), [Object::Link(31), Object::Program(12)]);
        assert!(is_detached(link));
        assert!(!is_detached(&link.replace("cgroup_id:\t0", "cgroup_id:\t77")));
        assert_eq!(
            objects_of("pos:\t0\nmap_type:\t1\nmap_id:\t5\n"),
            [Object::Map(5)]
        );
        assert_eq!(objects_of("pos:\t0\n"), []);
    }

    #[test]
    fn a_link_holds_its_program_and_that_its_maps() {
        let objects = [
            Object::Link(1),
            Object::Program(2),
            Object::Map(3),
            Object::Map(4),
        ];
        let loaded = Loaded {
            objects: objects.map(|object| (object, String::new())).into(),
            uses: [
                (objects[0], vec![objects[1]]),
                // Map 9 has no name of metaproxy.
                (objects[1], vec![objects[2], Object::Map(9)]),
            ]
            .into(),
        };
        assert_eq!(
            loaded.used_by(vec![objects[0]]),
            BTreeSet::from([objects[0], objects[1], objects[2]])
        );
        assert_eq!(loaded.used_by(vec![objects[3]]), BTreeSet::from([objects[3]]));
    }
}
