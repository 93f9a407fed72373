//! What the allocator (glibc's, where it is that) keeps of memory that is free.

/// Lets all threads share one heap; called before there is a second one. What little they allocate while they answer does
/// not stand in their way, and heaps of their own would each keep what the start took: 2.5 MiB with 250 pods.
pub fn share_one() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the parameter is one of mallopt(3)'s, and no other thread allocates yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives the kernel back what is free: a list of a node's pods is ten times what is kept of it. Others that allocate wait
/// meanwhile, a millisecond or so.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) has no preconditions, and is safe beside other threads.
    unsafe {
        libc::malloc_trim(0);
    }
}
