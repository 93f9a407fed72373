//! The maps, with the names of `metaproxy_common::names`.

use core::ptr;

use aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_SK_STORAGE;
use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_F_WRONLY, BPF_NOEXIST};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, SkStorage};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::SockOpsContext;
use metaproxy_common::address::Endpoint;
use metaproxy_common::layout::{
    Arrival, Config, Counter, Destination, FailureKey, HandshakeFailure, MAX_DESTINATIONS, MAX_FAILURES,
    MAX_HOST_PODS, MAX_LISTENERS, MAX_OBSERVED, MAX_POD_FAMILIES, MAX_RATES, NUM_COUNTERS, NUM_PODS_CGROUPS,
    PodFamily, Stamp,
};
use metaproxy_common::siphash::Key;

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "mp_config")]
pub static CONFIG: Array<Config, 1> = Array::new();

/// The destinations of network namespaces, by netns cookie.
#[btf_map(name = "mp_dests")]
pub static DESTINATIONS: HashMap<u64, Destination, MAX_DESTINATIONS, NO_PREALLOC> = HashMap::new();

/// The pods that are listed for the node's network namespace, by cgroup id. The value has no meaning.
#[btf_map(name = "mp_host_pods")]
pub static HOST_PODS: HashMap<u64, u8, MAX_HOST_PODS, NO_PREALLOC> = HashMap::new();

/// The families of pods that have no address of the configured family, by cgroup id.
#[btf_map(name = "mp_pod_family")]
pub static POD_FAMILIES: HashMap<u64, PodFamily, MAX_POD_FAMILIES, NO_PREALLOC> = HashMap::new();

/// The ids of the pods' cgroup and of the QoS classes' below it. An id is 0 if the cgroup does not exist.
#[btf_map(name = "mp_pods")]
pub static PODS: Array<u64, NUM_PODS_CGROUPS> = Array::new();

#[btf_map(name = "mp_stamps")]
pub static STAMPS: SkStorage<Stamp> = SkStorage::new();

/// The key of the tags. The agent's own descriptor may write it and not read it, so that a leaked descriptor does not
/// help to forge tags. The flag applies to that descriptor only: root on the node can open the map by its id and read
/// it (`bpftool map dump`).
#[btf_map(name = "mp_key")]
pub static KEY: Array<Key, 1, { BPF_F_WRONLY as usize }> = Array::new();

/// The arrivals of listeners. The kernel copies a listener's to each connection that is accepted from it.
#[btf_map(name = "mp_arrivals")]
pub static ARRIVALS: ClonedSkStorage<Arrival> = ClonedSkStorage::new();

/// The rates of pods, by cgroup id. The key is a pod's cgroup and not a network namespace, because pods can make
/// namespaces: a pod must not get several entries, or displace those of others.
#[btf_map(name = "mp_rates")]
pub static RATES: LruHashMap<u64, u64, MAX_RATES> = LruHashMap::new();

/// The addresses of this agent's listeners. A request for a connection has no socket, so its address decides whether it
/// is one to this agent: listeners of another agent may be in the same cgroup.
#[btf_map(name = "mp_listeners")]
pub static LISTENERS: HashMap<Endpoint, u8, MAX_LISTENERS, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "mp_failures")]
static FAILURES: HashMap<FailureKey, u64, MAX_FAILURES, NO_PREALLOC> = HashMap::new();

/// The number of connections that were only observed, by cgroup id.
#[btf_map(name = "mp_observed")]
pub static OBSERVED: HashMap<u64, u64, MAX_OBSERVED, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "mp_counters")]
static COUNTER_VALUES: PerCpuArray<u64, NUM_COUNTERS> = PerCpuArray::new();

#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTER_VALUES.get_ptr_mut(counter as u32) {
        // SAFETY: a pointer into this CPU's slot, non-null. If another program on the same CPU interrupts this one
        // between the load and the store, one count is lost, and nothing else.
        unsafe { *value += 1 };
    }
}

/// Counts a failure, in total and for the caller's cgroup. Two at the same time may count as one.
#[inline(always)]
pub fn count_failure(cgroup_id: u64, kind: HandshakeFailure) {
    count(Counter::Failures);
    let key = FailureKey {
        cgroup_id,
        kind: kind as u32,
        pad: 0,
    };
    if let Some(failures) = FAILURES.get_ptr_mut(key) {
        // SAFETY: non-null, and map values outlive the program run.
        unsafe { *failures += 1 };
    } else {
        // If the map is full, the failure is only in the total, without its pod.
        let _ = FAILURES.insert(key, 1_u64, u64::from(BPF_NOEXIST));
    }
}

/// A socket storage map whose elements the kernel copies from a listener to the connections accepted from it
/// (`BPF_F_CLONE`). aya's `SkStorage` has fixed flags, so this type repeats the fields that its macro makes.
#[repr(C)]
pub struct ClonedSkStorage<T> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the pointers only carry types to the loader and are never dereferenced.
unsafe impl<T> Sync for ClonedSkStorage<T> {}

impl<T> ClonedSkStorage<T> {
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }
}

/// Returns the element of the context's socket in a socket storage map, if it has one.
///
/// # Safety
/// `map` must be a socket storage map with elements of type `T`.
#[inline(always)]
unsafe fn of_socket<'a, M, T>(map: &M, ctx: &'a SockOpsContext) -> Option<&'a mut T> {
    // SAFETY: the kernel hands a valid context to the program.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: the context's own socket, checked above; the element lives as long as the socket, and the socket as long
    // as the context.
    unsafe {
        bpf_sk_storage_get(
            ptr::from_ref(map).cast_mut().cast(),
            sk.cast(),
            ptr::null_mut(),
            0,
        )
        .cast::<T>()
        .as_mut()
    }
}

/// Returns the stamp of the context's socket, if it has one.
#[inline(always)]
pub fn stamp(ctx: &SockOpsContext) -> Option<&mut Stamp> {
    // SAFETY: it is a map of stamps.
    unsafe { of_socket(&STAMPS, ctx) }
}

/// Returns the arrival of the context's socket, if it has one.
#[inline(always)]
pub fn arrival(ctx: &SockOpsContext) -> Option<&mut Arrival> {
    // SAFETY: it is a map of arrivals.
    unsafe { of_socket(&ARRIVALS, ctx) }
}
