//! Runs the fuzzer. One binary has all targets, and `METAPROXY_FUZZ_TARGET` selects one.
#![no_main]

use std::sync::LazyLock;

use metaproxy_fuzz::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    #[expect(clippy::disallowed_methods, reason = "libFuzzer has the command line")]
    let name = std::env::var("METAPROXY_FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(target, _)| *target == name);
    match found {
        Some((_, target)) => *target,
        None => panic!("METAPROXY_FUZZ_TARGET={name:?} is none of the targets"),
    }
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| (*TARGET)(data));
