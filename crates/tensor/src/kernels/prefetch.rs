//! Fetching what is needed soon.

/// A cache line, in bytes.
const LINE: usize = 64;

/// Fetches `values` into the caches.
#[inline(always)]
pub(crate) fn prefetch<T>(values: &[T]) {
    prefetch_beyond(values, 0);
}

/// Fetches what lies `bytes` after `values`, as much as they are. It need not exist.
#[inline(always)]
pub(crate) fn prefetch_beyond<T>(values: &[T], bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..size_of_val(values)).step_by(LINE) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let address = values.as_ptr().wrapping_byte_add(bytes + line);
        #[allow(unsafe_code)]
        // SAFETY: prefetching reads nothing and accepts any address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(address.cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, bytes, LINE);
}
