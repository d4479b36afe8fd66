//! Blocks of products by AMX's tile unit (`tdpbf16ps`), in inline assembly because its intrinsics are not stable.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::operand::Lines;
use super::product::{Block, Strips};
use super::tile::{LANES, Tile};
use crate::instructions::Instructions;
use crate::kernels::LINE;

/// Whether the processor and the operating system offer AMX with bf16. Asks the system for it the first time.
pub(super) fn is_supported() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| {
        Instructions::Amx.are_allowed() && has_instructions() && super::avx512::is_supported() && is_permitted()
    })
}

#[allow(unsafe_code)]
fn has_instructions() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const TILE_STATE: u64 = 0b11 << 17;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    // SAFETY: OSXSAVE says that `xgetbv` exists.
    let state = unsafe { enabled_state() };
    features & AMX_BF16 != 0 && features & AMX_TILE != 0 && state & TILE_STATE == TILE_STATE
}

#[target_feature(enable = "xsave")]
#[allow(unsafe_code)]
unsafe fn enabled_state() -> u64 {
    // SAFETY: the caller checked that the instruction exists.
    unsafe { _xgetbv(0) }
}

/// Linux keeps the tiles' state only for processes that ask for it.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: this call takes two numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

#[repr(C, align(64))]
struct TileConfiguration([u8; 64]);

impl TileConfiguration {
    /// Tiles 0 and so on, each of some rows of some bytes.
    const fn of<const TILES: usize>(shapes: [(usize, usize); TILES]) -> Self {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        let mut tile = 0;
        while tile < TILES {
            assert!(shapes[tile].0 <= LANES && shapes[tile].1 <= LINE, "tiles have at most 16 rows of 64 bytes");
            bytes[16 + 2 * tile] = shapes[tile].1 as u8;
            bytes[48 + tile] = shapes[tile].0 as u8;
            tile += 1;
        }
        Self(bytes)
    }
}

static CONFIGURATION: TileConfiguration = TileConfiguration::of([(LANES, LINE); 8]);

/// The calling thread's tile unit, configured while this or another of the thread lives.
pub(crate) struct TileUnit(PhantomData<*const ()>);

thread_local! {
    /// How many of the thread live.
    static CONFIGURED: Cell<usize> = const { Cell::new(0) };
    /// Whether a [`ShapedTiles`] of the thread lives.
    static SHAPED: Cell<bool> = const { Cell::new(false) };
}

impl TileUnit {
    #[allow(unsafe_code)]
    pub(crate) fn configure() -> Self {
        assert!(is_supported(), "the processor has no AMX");
        assert!(!SHAPED.get(), "the thread's tiles have other shapes");
        if CONFIGURED.replace(CONFIGURED.get() + 1) == 0 {
            // SAFETY: AMX is there and permitted; the configuration is valid.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly)) };
        }
        Self(PhantomData)
    }
}

impl Drop for TileUnit {
    fn drop(&mut self) {
        if CONFIGURED.replace(CONFIGURED.get() - 1) == 1 {
            release();
        }
    }
}

/// The calling thread's tile unit with tiles of other shapes, while this lives: nothing else of the thread uses it meanwhile.
pub(crate) struct ShapedTiles(PhantomData<*const ()>);

impl ShapedTiles {
    /// Tiles 0 to 7, each of some rows (at most 16) of some bytes (at most 64); of neither, where a tile is not used.
    #[allow(unsafe_code)]
    pub(crate) fn configure(shapes: [(usize, usize); 8]) -> Self {
        assert!(is_supported(), "the processor has no AMX");
        assert!(CONFIGURED.get() == 0 && !SHAPED.replace(true), "no other work of the thread uses the tiles meanwhile");
        let configuration = TileConfiguration::of(shapes);
        // SAFETY: AMX is there and permitted; the configuration is valid.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly)) };
        Self(PhantomData)
    }
}

impl Drop for ShapedTiles {
    fn drop(&mut self) {
        SHAPED.set(false);
        release();
    }
}

#[allow(unsafe_code)]
fn release() {
    // SAFETY: AMX is there; nobody expects the tiles to keep anything.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// A tile's floats on their way: 16 rows of 16.
#[repr(C, align(64))]
pub(crate) struct Square(pub(crate) [f32; LANES * LANES]);

impl Square {
    pub(crate) const ZERO: Self = Self([0.0; LANES * LANES]);
}

const TILE: usize = size_of::<Tile>();

/// The sums of two strips of rows by two of columns; between the steps, lines from `$line` on are fetched, which moves on.
macro_rules! two_by_two {
    ($a:ident, $b:ident, $depth:ident, $line:ident, $first:literal, $second:literal, $third:literal, $fourth:literal, $on:literal) => {
        asm!(
            "2:",
            "tileloadd tmm4, [{a0} + {s}*1]",
            "tileloadd tmm6, [{b0} + {s}*1]",
            $first,
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b1} + {s}*1]",
            $second,
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a1} + {s}*1]",
            $third,
            "tdpbf16ps tmm2, tmm5, tmm6",
            $fourth,
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a0}, {t}",
            "add {a1}, {t}",
            "add {b0}, {t}",
            "add {b1}, {t}",
            $on,
            "dec {n}",
            "jnz 2b",
            a0 = inout(reg) $a[0] => _,
            a1 = inout(reg) $a[ROWS - 1] => _,
            b0 = inout(reg) $b[0] => _,
            b1 = inout(reg) $b[COLS - 1] => _,
            n = inout(reg) $depth => _,
            p = inout(reg) $line,
            s = in(reg) 64usize,
            t = const TILE,
        )
    };
}

impl Block for TileUnit {
    #[allow(unsafe_code)]
    unsafe fn block<const ROWS: usize, const COLS: usize>(
        &self,
        strips: &[Strips<ROWS, COLS>],
        c: *mut f32,
        stride: usize,
        accumulate: bool,
        ahead: Lines,
    ) {
        let steps: usize = strips.iter().map(|strips| strips.depth).sum();
        let many = ahead.count > 2 * steps;
        // Fetched among the steps, they wait for no room among the loads that the cache has in flight.
        let among_steps = if many { 4 * steps } else { 2 * steps };
        ahead.fetch(if (ROWS, COLS) == (2, 2) { among_steps } else { 0 });
        let mut line = if ahead.count == 0 { strips[0].a[0] } else { ahead.first };
        let stride = stride * size_of::<f32>();
        let below = c.wrapping_byte_add(LANES * stride);
        let beside = c.wrapping_add(LANES);
        let last = below.wrapping_add(LANES);
        // SAFETY: the caller vouches for the pointers; `self` says that the tiles are configured.
        unsafe {
            match (ROWS, COLS, accumulate) {
                (2, 2, false) => asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"),
                (2, 2, true) => asm!(
                    "tileloadd tmm0, [{c0} + {s}*1]", "tileloadd tmm1, [{c1} + {s}*1]",
                    "tileloadd tmm2, [{c2} + {s}*1]", "tileloadd tmm3, [{c3} + {s}*1]",
                    c0 = in(reg) c, c1 = in(reg) beside, c2 = in(reg) below, c3 = in(reg) last, s = in(reg) stride,
                ),
                (1, 2, false) => asm!("tilezero tmm0", "tilezero tmm1"),
                (1, 2, true) => asm!(
                    "tileloadd tmm0, [{c0} + {s}*1]", "tileloadd tmm1, [{c1} + {s}*1]",
                    c0 = in(reg) c, c1 = in(reg) beside, s = in(reg) stride,
                ),
                (2, 1, false) => asm!("tilezero tmm0", "tilezero tmm2"),
                (2, 1, true) => asm!(
                    "tileloadd tmm0, [{c0} + {s}*1]", "tileloadd tmm2, [{c2} + {s}*1]",
                    c0 = in(reg) c, c2 = in(reg) below, s = in(reg) stride,
                ),
                (_, _, false) => asm!("tilezero tmm0"),
                (_, _, true) => asm!("tileloadd tmm0, [{c0} + {s}*1]", c0 = in(reg) c, s = in(reg) stride),
            }
            for Strips { a, b, depth } in strips.iter().copied().filter(|strips| strips.depth > 0) {
                match (ROWS, COLS) {
                    (2, 2) if many => two_by_two!(
                        a,
                        b,
                        depth,
                        line,
                        "prefetcht1 [{p}]",
                        "prefetcht1 [{p} + 64]",
                        "prefetcht1 [{p} + 128]",
                        "prefetcht1 [{p} + 192]",
                        "add {p}, 256"
                    ),
                    (2, 2) => two_by_two!(
                        a,
                        b,
                        depth,
                        line,
                        "prefetcht1 [{p}]",
                        "",
                        "prefetcht1 [{p} + 64]",
                        "",
                        "add {p}, 128"
                    ),
                    (1, 2) => asm!(
                        "2:",
                        "tileloadd tmm4, [{a0} + {s}*1]",
                        "tileloadd tmm6, [{b0} + {s}*1]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm7, [{b1} + {s}*1]",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "add {a0}, {t}",
                        "add {b0}, {t}",
                        "add {b1}, {t}",
                        "dec {n}",
                        "jnz 2b",
                        a0 = inout(reg) a[0] => _,
                        b0 = inout(reg) b[0] => _,
                        b1 = inout(reg) b[COLS - 1] => _,
                        n = inout(reg) depth => _,
                        s = in(reg) 64usize,
                        t = const TILE,
                    ),
                    (2, 1) => asm!(
                        "2:",
                        "tileloadd tmm6, [{b0} + {s}*1]",
                        "tileloadd tmm4, [{a0} + {s}*1]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm5, [{a1} + {s}*1]",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "add {a0}, {t}",
                        "add {a1}, {t}",
                        "add {b0}, {t}",
                        "dec {n}",
                        "jnz 2b",
                        a0 = inout(reg) a[0] => _,
                        a1 = inout(reg) a[ROWS - 1] => _,
                        b0 = inout(reg) b[0] => _,
                        n = inout(reg) depth => _,
                        s = in(reg) 64usize,
                        t = const TILE,
                    ),
                    _ => asm!(
                        "2:",
                        "tileloadd tmm4, [{a0} + {s}*1]",
                        "tileloadd tmm6, [{b0} + {s}*1]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "add {a0}, {t}",
                        "add {b0}, {t}",
                        "dec {n}",
                        "jnz 2b",
                        a0 = inout(reg) a[0] => _,
                        b0 = inout(reg) b[0] => _,
                        n = inout(reg) depth => _,
                        s = in(reg) 64usize,
                        t = const TILE,
                    ),
                }
            }
            match (ROWS, COLS) {
                (2, 2) => asm!(
                    "tilestored [{c0} + {s}*1], tmm0", "tilestored [{c1} + {s}*1], tmm1",
                    "tilestored [{c2} + {s}*1], tmm2", "tilestored [{c3} + {s}*1], tmm3",
                    c0 = in(reg) c, c1 = in(reg) beside, c2 = in(reg) below, c3 = in(reg) last, s = in(reg) stride,
                ),
                (1, 2) => asm!(
                    "tilestored [{c0} + {s}*1], tmm0", "tilestored [{c1} + {s}*1], tmm1",
                    c0 = in(reg) c, c1 = in(reg) beside, s = in(reg) stride,
                ),
                (2, 1) => asm!(
                    "tilestored [{c0} + {s}*1], tmm0", "tilestored [{c2} + {s}*1], tmm2",
                    c0 = in(reg) c, c2 = in(reg) below, s = in(reg) stride,
                ),
                _ => asm!("tilestored [{c0} + {s}*1], tmm0", c0 = in(reg) c, s = in(reg) stride),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_tiles_of_one_kind_at_a_time() {
        if !is_supported() {
            return eprintln!("skipped: this processor has no AMX");
        }
        let refuses = |configure: fn()| std::panic::catch_unwind(configure).is_err();
        let shaped = ShapedTiles::configure([(4, 32); 8]);
        assert!(refuses(|| drop(TileUnit::configure())) && refuses(|| drop(ShapedTiles::configure([(1, 64); 8]))));
        drop(shaped);
        let unit = TileUnit::configure();
        assert!(refuses(|| drop(ShapedTiles::configure([(1, 64); 8]))));
        drop((TileUnit::configure(), unit));
        drop(ShapedTiles::configure([(16, 64); 8]));
    }
}
