//! Keeping the pool's threads awake while a pass runs, and sharing its work out among them.
//!
//! Each of the other threads gets a job that does nothing but help with whatever work there is until the pass ends. Such a
//! job must not begin on top of a task of its own pass, which could then never end: jobs that have not begun before the
//! pass does are void, and only one pass at a time keeps threads awake.
//!
//! The thread that runs the pass is its *leader*. What it shares out ([`share`]) the helpers find by looking at one number,
//! which takes a fraction of what the pool's queues take: a pass over one token is hundreds of pieces of work of some
//! microseconds.

use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Whether some pass keeps threads awake.
static TAKEN: AtomicBool = AtomicBool::new(false);

const BEGINNING: u8 = 0;
const RUNNING: u8 = 1;
const ENDED: u8 = 2;

/// How long a pass waits for the other threads to wake up.
const PATIENCE: Duration = Duration::from_micros(300);

thread_local! {
    /// The board of the pass that this thread leads; null where it leads none, or is at work that it shared out.
    static LEADS: Cell<*const Board> = const { Cell::new(std::ptr::null()) };
}

/// Work that is shared out, to be called on any number of threads.
type Work<'a> = dyn Fn() + Sync + 'a;

/// Where a leader puts up work for its helpers.
struct Board {
    /// Twice the number of helpers that are at the work, plus [`OPEN`] while more may join.
    state: Line<AtomicUsize>,
    /// How many works have been put up.
    number: AtomicUsize,
    /// The latest. Written by the leader while nobody is at work.
    work: UnsafeCell<Option<*const Work<'static>>>,
}

/// A cache line of its own.
#[repr(align(128))]
struct Line<T>(T);

const OPEN: usize = 1;
const HELPER: usize = 2;

#[allow(unsafe_code)]
// SAFETY: `work` is written while the board is closed and nobody is at work, and read by helpers that joined while it was
// open.
unsafe impl Sync for Board {}

impl Board {
    fn new() -> Self {
        Self { state: Line(AtomicUsize::new(0)), number: AtomicUsize::new(0), work: UnsafeCell::new(None) }
    }

    /// Runs `work` here, and on each helper that comes before it is done here. Returns when all are done.
    #[allow(unsafe_code)]
    fn share(&self, work: &Work<'_>) {
        struct Closing<'a>(&'a Board);
        impl Drop for Closing<'_> {
            fn drop(&mut self) {
                self.0.state.0.fetch_and(!OPEN, Ordering::AcqRel);
                while self.0.state.0.load(Ordering::Acquire) != 0 {
                    std::hint::spin_loop();
                }
                LEADS.set(self.0);
            }
        }
        let work: *const Work<'_> = work;
        // SAFETY: the board is closed and nobody is at work, so nobody else looks at the cell. Only the lifetime changes:
        // helpers use the work only until `Closing` is gone, which no panic can skip.
        unsafe { *self.work.get() = Some(std::mem::transmute::<*const Work<'_>, *const Work<'static>>(work)) };
        self.number.store(self.number.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        LEADS.set(std::ptr::null());
        let closing = Closing(self);
        // A helper that comes too late for the last work may be counted for a moment.
        self.state.0.fetch_or(OPEN, Ordering::AcqRel);
        // SAFETY: it is the caller's reference.
        unsafe { (*work)() };
        drop(closing);
    }

    /// Joins the work that is up, unless it is number `last` that was up before. Gives the latest number.
    #[allow(unsafe_code)]
    fn join(&self, last: usize) -> usize {
        struct Leaving<'a>(&'a Board);
        impl Drop for Leaving<'_> {
            fn drop(&mut self) {
                self.0.state.0.fetch_sub(HELPER, Ordering::AcqRel);
            }
        }
        if self.state.0.load(Ordering::Acquire) & OPEN == 0 || self.number.load(Ordering::Relaxed) == last {
            return last;
        }
        let is_open = self.state.0.fetch_add(HELPER, Ordering::AcqRel) & OPEN != 0;
        let _leaving = Leaving(self);
        if !is_open {
            return last;
        }
        let number = self.number.load(Ordering::Relaxed);
        // SAFETY: the board was open when this helper joined, so the leader waits for it to leave before the work ends or
        // another one is put up.
        if number != last
            && let Some(work) = unsafe { *self.work.get() }
        {
            unsafe { (*work)() };
        }
        number
    }
}

/// Runs `work` on this thread and on helpers of the pass that it leads, all of which are done when this returns; `work` has
/// to find out on its own what is left to do. Gives false, having done nothing, where this thread leads no pass.
pub(crate) fn share(work: &(dyn Fn() + Sync)) -> bool {
    let board = LEADS.get();
    if board.is_null() {
        return false;
    }
    #[allow(unsafe_code)]
    // SAFETY: `run` keeps the board while it is in the cell of the thread.
    unsafe {
        (*board).share(work);
    }
    true
}

/// Ends the helping, however the pass ends.
struct Ending<'a>(&'a AtomicU8);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        LEADS.set(std::ptr::null());
        self.0.store(ENDED, Ordering::Release);
        TAKEN.store(false, Ordering::Release);
    }
}

/// Runs `work` on a thread of the pool, with the others awake.
pub(crate) fn run<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let others = rayon::current_num_threads().saturating_sub(1);
    if others == 0 || TAKEN.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
        return rayon::scope(|_| work());
    }
    let (phase, begun, board) = (AtomicU8::new(BEGINNING), AtomicUsize::new(0), Board::new());
    rayon::scope(|scope| {
        let _ending = Ending(&phase);
        for _ in 0..others {
            scope.spawn(|_| help(&phase, &begun, &board));
        }
        let started = Instant::now();
        while begun.load(Ordering::Acquire) < others && started.elapsed() < PATIENCE {
            std::hint::spin_loop();
        }
        phase.store(RUNNING, Ordering::Release);
        LEADS.set(&raw const board);
        work()
    })
}

/// Works on what there is until the pass ends.
fn help(phase: &AtomicU8, begun: &AtomicUsize, board: &Board) {
    /// Looks at the board between two at the pool's queues.
    const LOOKS: u32 = 16;
    if phase.load(Ordering::Acquire) != BEGINNING {
        return;
    }
    begun.fetch_add(1, Ordering::AcqRel);
    let (mut idle, mut last) = (0u32, 0);
    while phase.load(Ordering::Acquire) != ENDED {
        let number = board.join(last);
        if number != last {
            (last, idle) = (number, 0);
            continue;
        }
        idle += 1;
        if idle.is_multiple_of(LOOKS) && rayon::yield_now() == Some(rayon::Yield::Executed) {
            idle = 0;
            continue;
        }
        // Other programs may want the processor.
        if idle.is_multiple_of(256 * LOOKS) { std::thread::yield_now() } else { std::hint::spin_loop() }
    }
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    #[test]
    fn passes_side_by_side_and_within_each_other_end() {
        let sum = || (0..1000u64).into_par_iter().map(|value| value * value).sum::<u64>();
        let threads: Vec<_> = (0..6)
            .map(|_| {
                std::thread::spawn(move || {
                    (0..200).map(|_| run(|| (0..4u64).into_par_iter().map(|_| run(sum)).sum::<u64>())).sum::<u64>()
                })
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), 200 * 4 * 332_833_500);
        }
    }

    #[test]
    fn a_pass_that_panics_leaves_the_pool_usable() {
        assert!(std::panic::catch_unwind(|| run(|| panic!("a pass"))).is_err());
        assert_eq!(run(|| 1 + 1), 2);
        assert!(!TAKEN.load(Ordering::Relaxed) || run(|| 3) == 3);
    }

    /// Adds the numbers below `count`, shared out.
    fn sum_below(count: usize) -> usize {
        let (next, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return;
                }
                sum.fetch_add(number, Ordering::Relaxed);
            }
        };
        if !share(&work) {
            work();
        }
        sum.into_inner()
    }

    #[test]
    fn what_is_shared_out_is_done_when_the_leader_goes_on() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        for count in [0, 1, 5, 1000] {
            let sums = pool.install(|| run(|| (0..300).map(|_| sum_below(count)).collect::<Vec<_>>()));
            assert!(sums.iter().all(|sum| *sum == count * count.saturating_sub(1) / 2), "{count}");
        }
        assert!(!share(&|| panic!("nobody leads a pass here")));
    }

    /// Leads a pass that shares `work` out, as soon as no other test's pass keeps threads awake.
    fn lead(pool: &rayon::ThreadPool, work: &(dyn Fn() + Sync)) {
        while !pool.install(|| run(|| share(work))) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn work_that_is_shared_out_may_share_its_own_and_use_the_pool() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let total = AtomicUsize::new(0);
        let once = AtomicUsize::new(0);
        lead(&pool, &|| {
            if once.fetch_add(1, Ordering::Relaxed) == 0 {
                let pooled = (0..100usize).into_par_iter().map(|_| sum_below(10)).sum::<usize>();
                total.fetch_add(pooled + sum_below(100), Ordering::Relaxed);
            }
        });
        assert_eq!(total.into_inner(), 4500 + 4950);
    }

    #[test]
    fn shared_work_that_panics_anywhere_ends_the_pass() {
        const ATTEMPTS: usize = 200;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for only_later in [false, true] {
            // Helpers may come too late for one work, but not for all.
            let panics = |_| {
                let calls = AtomicUsize::new(0);
                let fails = || {
                    let is_first = calls.fetch_add(1, Ordering::Relaxed) == 0;
                    let started = Instant::now();
                    while is_first && only_later && calls.load(Ordering::Relaxed) == 1 {
                        if started.elapsed() > Duration::from_millis(20) {
                            return;
                        }
                    }
                    assert!(only_later && is_first, "shared work");
                };
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| lead(&pool, &fails))).is_err()
            };
            assert!((0..ATTEMPTS).any(panics), "only later ones: {only_later}");
            assert_eq!(pool.install(|| run(|| sum_below(10))), 45);
        }
    }
}
