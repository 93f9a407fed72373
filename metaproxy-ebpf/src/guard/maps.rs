//! The guard's maps, with the names of `metaproxy_common::names`.

use aya_ebpf::btf_maps::{Array, PerCpuArray, SkStorage};
use aya_ebpf::macros::btf_map;
use metaproxy_common::layout::{GuardConfig, GuardCounter, NUM_GUARD_COUNTERS};

#[btf_map(name = "mp_guard")]
pub static GUARD: Array<GuardConfig, 1> = Array::new();

/// The mark of the guard's socket. Only the guard has this map, so no other socket can carry its mark.
#[btf_map(name = "mp_guard_mark")]
pub static MARK: SkStorage<u64> = SkStorage::new();

#[btf_map(name = "mp_guard_count")]
static COUNTER_VALUES: PerCpuArray<u64, NUM_GUARD_COUNTERS> = PerCpuArray::new();

#[inline(always)]
pub fn count(counter: GuardCounter) {
    if let Some(value) = COUNTER_VALUES.get_ptr_mut(counter as u32) {
        // SAFETY: a pointer into this CPU's slot, non-null. A race loses one count, and nothing else.
        unsafe { *value += 1 };
    }
}
