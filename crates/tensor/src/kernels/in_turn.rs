//! Sharing tasks out.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::awake;

/// Runs `work` on up to `most` of the pool's threads, all of which are done when this returns. It has to find out on its own
/// what is left to do.
fn on_threads(most: usize, work: &(dyn Fn() + Sync)) {
    let threads = rayon::current_num_threads().min(most);
    if threads <= 1 {
        work();
    } else if !awake::share(work) {
        (0..threads).into_par_iter().with_max_len(1).for_each(|_| work());
    }
}

/// Runs `task(0)` to `task(tasks - 1)` on the pool's threads, each of which takes the next one whenever it has finished
/// one: where the largest come first, threads end together.
pub(crate) fn in_turn(tasks: usize, task: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    on_threads(tasks, &|| {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= tasks {
                return;
            }
            task(number);
        }
    });
}

/// Calls `work(index, chunk)` for the chunks of `len` values, of which the last may be shorter, on the pool's threads.
pub(crate) fn chunks_in_turn<T: Send>(data: &mut [T], len: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    struct Start<T>(*mut T);
    #[allow(unsafe_code)]
    // SAFETY: each chunk goes to one thread, and values may go to other threads.
    unsafe impl<T: Send> Sync for Start<T> {}
    assert!(len > 0, "chunks have values");
    let (start, total) = (Start(data.as_mut_ptr()), data.len());
    in_turn(total.div_ceil(len), |index| {
        let start = &start;
        let first = index * len;
        #[allow(unsafe_code)]
        // SAFETY: the chunk lies in `data`, which is borrowed as long as tasks run, and every index is taken once.
        let chunk = unsafe { std::slice::from_raw_parts_mut(start.0.add(first), len.min(total - first)) };
        work(index, chunk);
    });
}

/// Pieces of a row of equal tasks that several threads take, large ones first and small ones in the end.
pub(crate) struct Pieces {
    next: AtomicUsize,
    end: usize,
    threads: usize,
    least: usize,
}

impl Pieces {
    /// The next piece; `None` where nothing is left.
    pub(crate) fn take(&self) -> Option<Range<usize>> {
        let mut start = self.next.load(Ordering::Relaxed);
        loop {
            let left = self.end - start;
            if left == 0 {
                return None;
            }
            let piece = (left / (2 * self.threads)).max(self.least).min(left);
            match self.next.compare_exchange_weak(start, start + piece, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(start..start + piece),
                Err(moved) => start = moved,
            }
        }
    }
}

/// Calls `work` on each of the pool's threads, or on this one alone, with the pieces of `tasks` equal tasks, to take until
/// there are none. A piece has `least` tasks, but for the last.
pub(crate) fn in_pieces(tasks: usize, least: usize, is_shared: bool, work: impl Fn(&Pieces) + Sync) {
    let threads = if is_shared { rayon::current_num_threads() } else { 1 };
    let pieces = Pieces { next: AtomicUsize::new(0), end: tasks, threads, least };
    on_threads(threads.min(tasks.div_ceil(least.max(1))), &|| work(&pieces));
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Within a pass and without one, on several numbers of threads.
    fn everywhere(check: impl Fn(&str) + Sync) {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| check(&format!("{threads} threads")));
            pool.install(|| awake::run(|| check(&format!("{threads} threads in a pass"))));
        }
    }

    #[test]
    fn every_task_runs_once_on_any_number_of_threads() {
        everywhere(|case| {
            for tasks in [0, 1, 2, 7, 100] {
                let ran = Mutex::new(Vec::new());
                in_turn(tasks, |number| ran.lock().unwrap().push(number));
                let mut ran = ran.into_inner().unwrap();
                ran.sort_unstable();
                assert_eq!(ran, (0..tasks).collect::<Vec<_>>(), "{case}");
            }
        });
    }

    #[test]
    fn every_chunk_is_given_out_once() {
        everywhere(|case| {
            for (count, len) in [(0, 3), (1, 3), (9, 3), (100, 7)] {
                let mut data = vec![0; count];
                chunks_in_turn(&mut data, len, |index, chunk| chunk.iter_mut().for_each(|value| *value += index + 1));
                let expected: Vec<usize> = (0..count).map(|place| place / len + 1).collect();
                assert_eq!(data, expected, "{case}");
            }
        });
    }

    #[test]
    fn pieces_are_all_tasks_once() {
        everywhere(|case| {
            for (tasks, least) in [(0, 1), (1, 2), (7, 2), (100, 3)] {
                let ran = Mutex::new(Vec::new());
                in_pieces(tasks, least, true, |pieces| {
                    while let Some(piece) = pieces.take() {
                        assert!(piece.len() >= least || piece.end == tasks, "{case}");
                        ran.lock().unwrap().extend(piece);
                    }
                });
                let mut ran = ran.into_inner().unwrap();
                ran.sort_unstable();
                assert_eq!(ran, (0..tasks).collect::<Vec<_>>(), "{case}");
            }
        });
    }
}
