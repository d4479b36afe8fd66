//! Keeping the pool's threads awake while a pass runs.
//!
//! Each of the other threads gets a job that does nothing but help with whatever work there is until the pass ends. Such a
//! job must not begin on top of a task of its own pass, which could then never end: jobs that have not begun before the
//! pass does are void, and only one pass at a time keeps threads awake.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Whether some pass keeps threads awake.
static TAKEN: AtomicBool = AtomicBool::new(false);

const BEGINNING: u8 = 0;
const RUNNING: u8 = 1;
const ENDED: u8 = 2;

/// How long a pass waits for the other threads to wake up.
const PATIENCE: Duration = Duration::from_micros(300);

/// Ends the helping, however the pass ends.
struct Ending<'a>(&'a AtomicU8);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
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
    let (phase, begun) = (AtomicU8::new(BEGINNING), AtomicUsize::new(0));
    rayon::scope(|scope| {
        let _ending = Ending(&phase);
        for _ in 0..others {
            scope.spawn(|_| help(&phase, &begun));
        }
        let started = Instant::now();
        while begun.load(Ordering::Acquire) < others && started.elapsed() < PATIENCE {
            std::hint::spin_loop();
        }
        phase.store(RUNNING, Ordering::Release);
        work()
    })
}

/// Works on what there is until the pass ends.
fn help(phase: &AtomicU8, begun: &AtomicUsize) {
    if phase.load(Ordering::Acquire) != BEGINNING {
        return;
    }
    begun.fetch_add(1, Ordering::AcqRel);
    let mut idle = 0u32;
    while phase.load(Ordering::Acquire) != ENDED {
        if rayon::yield_now() == Some(rayon::Yield::Executed) {
            idle = 0;
            continue;
        }
        idle += 1;
        // Other programs may want the processor.
        if idle.is_multiple_of(256) { std::thread::yield_now() } else { std::hint::spin_loop() }
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
}
