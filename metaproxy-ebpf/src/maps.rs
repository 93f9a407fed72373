//! The maps. Their names are those of `metaproxy_common::names`.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, SkStorage};
use aya_ebpf::macros::btf_map;
use metaproxy_common::layout::{
    COUNTERS, Config, Counter, Destination, Flow, FlowKey, MAX_DESTINATIONS, MAX_FLOWS, MAX_HOST_PODS,
    MAX_OBSERVED, Stamp,
};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "mp_config")]
pub static CONFIG: Array<Config, 1> = Array::new();

/// By netns cookie.
#[btf_map(name = "mp_dests")]
pub static DESTINATIONS: HashMap<u64, Destination, MAX_DESTINATIONS, NO_PREALLOC> = HashMap::new();

/// By cgroup id; the value says nothing.
#[btf_map(name = "mp_host_pods")]
pub static HOST_PODS: HashMap<u64, u8, MAX_HOST_PODS, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "mp_stamps")]
pub static STAMPS: SkStorage<Stamp> = SkStorage::new();

/// A plain hash on purpose: an LRU would let a flood of one pod's connections push out another's identity.
#[btf_map(name = "mp_flows")]
pub static FLOWS: HashMap<FlowKey, Flow, MAX_FLOWS, NO_PREALLOC> = HashMap::new();

/// By cgroup id: connections that were only observed.
#[btf_map(name = "mp_observed")]
pub static OBSERVED: HashMap<u64, u64, MAX_OBSERVED, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "mp_counters")]
static COUNTER_VALUES: PerCpuArray<u64, COUNTERS> = PerCpuArray::new();

#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTER_VALUES.get_ptr_mut(counter as u32) {
        // SAFETY: a pointer into this CPU's slot, non-null. A program that is interrupted between the load and the
        // store by another on the same CPU may lose one count, which is all that is at stake.
        unsafe { *value += 1 };
    }
}
