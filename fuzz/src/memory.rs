//! How much a decoder allocates.

use std::alloc::System;

use peakmem_alloc::{INSTRUMENTED_SYSTEM, PeakMemAlloc, PeakMemAllocTrait};

#[global_allocator]
static MEMORY: &PeakMemAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Decodes, and holds the decoder to `per_byte` bytes of memory at once for each byte of `input`, and `besides`. Threads
/// that allocate meanwhile are counted too.
///
/// # Panics
/// It takes more.
pub fn bounded<T>(input: &[u8], per_byte: usize, besides: usize, decode: impl FnOnce() -> T) -> T {
    MEMORY.reset_peak_memory();
    let value = decode();
    let peak = MEMORY.get_peak_memory();
    let allowed = per_byte * input.len() + besides;
    assert!(
        peak <= allowed,
        "{peak} bytes were allocated for {} that were given: more than {allowed}",
        input.len()
    );
    value
}
