//! Fetching what is needed soon.

use std::ops::Range;

/// A cache line, in bytes.
pub(crate) const LINE: usize = 64;

/// Fetches `values` into the caches.
#[inline(always)]
pub(crate) fn prefetch<T>(values: &[T]) {
    prefetch_beyond(values, 0);
}

/// Fetches what lies `bytes` after `values`, as much as they are. It need not exist.
#[inline(always)]
pub(crate) fn prefetch_beyond<T>(values: &[T], bytes: usize) {
    for line in (0..size_of_val(values)).step_by(LINE) {
        fetch::<true, T>(values.as_ptr().wrapping_byte_add(bytes + line));
    }
}

/// Fetches some bytes of `values` into the second-level cache: for later, or because they are many.
#[inline(always)]
pub(crate) fn prefetch_for_later<T>(values: &[T], bytes: Range<usize>) {
    for line in bytes.step_by(LINE) {
        fetch::<false, T>(values.as_ptr().wrapping_byte_add(line));
    }
}

/// Fetches `count` lines from `first` on into the second-level cache. They need not exist.
#[inline(always)]
pub(crate) fn fetch_lines<T>(first: *const T, count: usize) {
    for line in 0..count {
        fetch::<false, T>(first.wrapping_byte_add(line * LINE));
    }
}

#[inline(always)]
fn fetch<const SOON: bool, T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        #[allow(unsafe_code)]
        // SAFETY: prefetching reads nothing and accepts any address.
        unsafe {
            if SOON {
                _mm_prefetch::<_MM_HINT_T0>(address.cast());
            } else {
                _mm_prefetch::<_MM_HINT_T1>(address.cast());
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
