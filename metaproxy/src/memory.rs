//! What a process keeps that it no longer needs.

use std::fs;

/// Lets all threads share one heap. What little they allocate while they answer does not stand in their way, and heaps of
/// their own would each keep what the start took: 2.5 MiB with 250 pods.
///
/// # Safety
/// There is no second thread yet: mallopt(3) is not safe beside one that allocates ("MT-Unsafe init").
pub unsafe fn use_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the parameter is one of mallopt(3)'s, and the caller promises that no other thread allocates.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives the kernel back what the start took: memory that is free (a list of a node's pods is ten times what is kept of
/// it), and the mapping of code that ran once. Others that allocate wait meanwhile, a millisecond or so. What somebody has
/// written into the code (a debugger's breakpoints, a uprobe) goes with the mapping, and is to be set again.
pub fn release_unused() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) has no preconditions, and is safe beside other threads.
    unsafe {
        libc::malloc_trim(0);
    }
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let program = fs::read_link("/proc/self/exe").unwrap_or_default();
    for (start, length) in code(&maps, &program.to_string_lossy()) {
        // SAFETY: a private mapping of a file that nobody writes to, and no relocation either, as the code is position
        // independent: what is asked for again is mapped again, from the page cache, with the same bytes.
        unsafe {
            libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED);
        }
    }
}

/// Start and length of each mapping of the program's code (proc_pid_maps(5)).
fn code(maps: &str, program: &str) -> Vec<(usize, usize)> {
    let mapping = |line: &str| {
        let mut fields = line.split_whitespace();
        let (range, permissions) = (fields.next()?, fields.next()?);
        // Of relocated data nothing may be dropped: it is in no file.
        let is_code = permissions == "r-xp" && fields.nth(3)? == program;
        let (start, end) = range.split_once('-').filter(|_| is_code)?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        let (start, end) = (number(start)?, number(end)?);
        Some((start, end.checked_sub(start)?))
    };
    maps.lines().filter_map(mapping).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_programs_own_code_is_let_go() {
        let maps = "\
55d0a000-55d0b000 r--p 00000000 08:01 77 /metaproxy
55d0b000-55d0f000 r-xp 00001000 08:01 77 /metaproxy
55d0f000-55d10000 r--p 00005000 08:01 77 /metaproxy
55d10000-55d11000 rw-p 00006000 08:01 77 /metaproxy
7f000000-7f001000 r-xp 00000000 08:01 78 /lib/libc.so.6
7ffff000-80000000 r-xp 00000000 00:00 0 [vdso]
";
        assert_eq!(code(maps, "/metaproxy"), [(0x55d0_b000, 0x4000)]);
    }

    /// Where this program's code lies.
    fn own_code() -> Vec<(usize, usize)> {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        code(&maps, &fs::read_link("/proc/self/exe").unwrap().to_string_lossy())
    }

    /// How much of it is mapped (proc_pid_smaps(5)), in KiB.
    fn resident_code() -> usize {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let starts: Vec<String> = own_code()
            .iter()
            .map(|(start, _)| format!("{start:x}-"))
            .collect();
        let mut is_code = false;
        let mut sum = 0;
        for line in smaps.lines() {
            if line.split(' ').next().is_some_and(|word| word.contains('-')) {
                is_code = starts.iter().any(|start| line.starts_with(start));
            }
            if let Some(size) = line.strip_prefix("Rss:").filter(|_| is_code) {
                sum += size.trim().trim_end_matches(" kB").parse::<usize>().unwrap();
            }
        }
        sum
    }

    #[test]
    fn code_that_is_let_go_runs_as_before_and_is_not_resident() {
        let own = code as *const () as usize;
        let found = own_code();
        assert!(
            found
                .iter()
                .any(|(start, length)| (*start..start + length).contains(&own)),
            "{own:x} is not in {found:x?}"
        );
        // All of it, a byte of each page.
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
        // What the other tests run comes back at once.
        assert!(after < before / 2, "{after} of {before} KiB");
        assert_eq!(own_code(), found);
    }
}
