//! Sharing tasks of different sizes out.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

/// Runs `task(0)` to `task(tasks - 1)` on the pool's threads, each of which takes the next one whenever it has finished
/// one: where the largest come first, threads end together.
pub(crate) fn in_turn(tasks: usize, task: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let run = |_| {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= tasks {
                return;
            }
            task(number);
        }
    };
    let threads = rayon::current_num_threads().min(tasks);
    if threads > 1 { (0..threads).into_par_iter().with_max_len(1).for_each(run) } else { run(0) }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn every_task_runs_once_on_any_number_of_threads() {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for tasks in [0, 1, 2, 7, 100] {
                let ran = Mutex::new(Vec::new());
                pool.install(|| in_turn(tasks, |number| ran.lock().unwrap().push(number)));
                let mut ran = ran.into_inner().unwrap();
                ran.sort_unstable();
                assert_eq!(ran, (0..tasks).collect::<Vec<_>>(), "{threads} threads");
            }
        }
    }
}
