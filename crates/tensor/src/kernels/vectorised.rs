//! Loops compiled for the widest vectors of the processor that runs them.

/// Runs `work` in the version that was compiled for this processor's vector instructions (AVX-512, AVX2 with FMA, NEON,
/// or the baseline). `work` and what it calls must be inlined to profit: small closures, `#[inline(always)]` functions.
#[inline(always)]
pub fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}
