//! Releases memory that the process no longer needs.

use std::path::Path;

use procfs::process::{MMPermissions, MMapPath, MemoryMaps, Process};

/// Makes all threads share one malloc arena. The threads allocate little while they serve pods, so they rarely wait
/// for its lock. Separate arenas would each keep memory that was only needed at the start: 2.5 MiB with 250 pods.
///
/// # Safety
/// There must be no other thread, because mallopt(3) is not safe while another thread allocates ("MT-Unsafe init").
pub unsafe fn use_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the parameter is a parameter of mallopt(3), and the caller guarantees that no other thread allocates.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns memory to the kernel that was needed only at the start. This is free memory of the heap (a list of a
/// node's pods is ten times as large as the objects that are kept), and code that ran once. During the call, threads
/// that allocate wait about a millisecond. Changes of the code (breakpoints of a debugger, uprobes) are lost and must
/// be set again.
pub fn release_unused() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) has no preconditions, and is thread-safe.
    unsafe {
        libc::malloc_trim(0);
    }
    for (start, length) in own_code() {
        // SAFETY: a private mapping of a file to which this process does not write, not even by relocations, because
        // the code is position independent. A page that is used again is mapped again from the page cache, with the
        // same bytes.
        unsafe {
            libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED);
        }
    }
}

/// Returns the mappings of this program's code. Returns no mapping if /proc cannot be read.
fn own_code() -> Vec<(usize, usize)> {
    let process = Process::myself();
    let read = process.and_then(|process| Ok((process.maps()?, process.exe()?)));
    read.map_or_else(|_| Vec::new(), |(maps, program)| code(&maps, &program))
}

/// Returns the start and the length of each mapping of the program's code.
fn code(maps: &MemoryMaps, program: &Path) -> Vec<(usize, usize)> {
    // Relocated data must be kept, because it cannot be read from the file again.
    let code = MMPermissions::READ | MMPermissions::EXECUTE | MMPermissions::PRIVATE;
    let is_own = |path: &MMapPath| matches!(path, MMapPath::Path(path) if path == program);
    maps.iter()
        .filter(|map| map.perms == code && is_own(&map.pathname))
        .filter_map(|map| {
            let (start, end) = map.address;
            Some((
                usize::try_from(start).ok()?,
                usize::try_from(end.checked_sub(start)?).ok()?,
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use procfs::FromBufRead as _;

    #[test]
    fn only_the_programs_own_code_is_released() {
        let maps = "\
55d0a000-55d0b000 r--p 00000000 08:01 77 /metaproxy
55d0b000-55d0f000 r-xp 00001000 08:01 77 /metaproxy
55d0f000-55d10000 r--p 00005000 08:01 77 /metaproxy
55d10000-55d11000 rw-p 00006000 08:01 77 /metaproxy
7f000000-7f001000 r-xp 00000000 08:01 78 /lib/libc.so.6
7ffff000-80000000 r-xp 00000000 00:00 0 [vdso]
";
        let maps = MemoryMaps::from_buf_read(maps.as_bytes()).unwrap();
        assert_eq!(code(&maps, Path::new("/metaproxy")), [(0x55d0_b000, 0x4000)]);
    }

    /// Returns how much of the program's code is resident, in KiB.
    fn resident_code() -> u64 {
        let process = Process::myself().unwrap();
        let own = own_code();
        let maps = process.smaps().unwrap();
        let is_code = |start: u64| own.iter().any(|(own, _)| *own as u64 == start);
        let code = maps.iter().filter(|map| is_code(map.address.0));
        code.map(|map| map.extension.map["Rss"] / 1024).sum()
    }

    #[test]
    fn released_code_is_not_resident_and_runs_as_before() {
        let own = code as *const () as usize;
        let found = own_code();
        assert!(
            found
                .iter()
                .any(|(start, length)| (*start..start + length).contains(&own)),
            "{own:x} is not in {found:x?}"
        );
        // Reading one byte of each page maps all of the code.
        let touched: u64 = found
            .iter()
            .flat_map(|(start, length)| (*start..start + length).step_by(4096))
            // SAFETY: an address of code that is mapped, and readable.
            .map(|address| u64::from(unsafe { std::ptr::read_volatile(address as *const u8) }))
            .sum();
        let before = resident_code();
        release_unused();
        let after = resident_code();
        assert!(touched > 0 && before > 1024, "{before} KiB");
        // Half suffices as the bound, because code that other tests run is mapped again at once.
        assert!(after < before / 2, "{after} of {before} KiB");
        assert_eq!(own_code(), found);
    }
}
