//! The guard's maps. Their names are those of `metaproxy_common::names`.

use aya_ebpf::btf_maps::{Array, PerCpuArray, SkStorage};
use aya_ebpf::macros::btf_map;
use metaproxy_common::layout::{GuardConfig, GuardCounter, NUM_GUARD_COUNTERS};

#[btf_map(name = "mp_guard")]
pub static GUARD: Array<GuardConfig, 1> = Array::new();

/// Only the guard can write here, so only its own socket carries a mark.
#[btf_map(name = "mp_guard_mark")]
pub static MARK: SkStorage<u64> = SkStorage::new();

#[btf_map(name = "mp_guard_count")]
static COUNTER_VALUES: PerCpuArray<u64, NUM_GUARD_COUNTERS> = PerCpuArray::new();

#[inline(always)]
pub fn count(counter: GuardCounter) {
    if let Some(value) = COUNTER_VALUES.get_ptr_mut(counter as u32) {
        // SAFETY: a pointer into this CPU's slot, non-null; one lost count is all that is at stake.
        unsafe { *value += 1 };
    }
}
