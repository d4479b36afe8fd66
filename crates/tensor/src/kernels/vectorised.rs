//! Loops compiled for the widest vectors of the processor that runs them.

use pulp::WithSimd;

use crate::instructions::Instructions;

/// Runs `work` in the version that was compiled for this processor's vector instructions (AVX-512, AVX2 with FMA, NEON,
/// or the baseline). `work` and what it calls must be inlined to profit: small closures, `#[inline(always)]` functions.
#[inline(always)]
pub fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    dispatch(work)
}

/// Runs `work` in the version for the widest vectors that may be used.
#[inline(always)]
pub(crate) fn dispatch<Op: WithSimd>(work: Op) -> Op::Output {
    #[cfg(target_arch = "x86_64")]
    if !Instructions::Avx512.are_allowed()
        && let Some(avx2) = pulp::x86::V3::try_new()
    {
        return pulp::Simd::vectorize(avx2, work);
    }
    pulp::Arch::new().dispatch(work)
}
