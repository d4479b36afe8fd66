//! How a float32 product is cut into tasks.

use std::ops::Range;

use rayon::prelude::*;

use super::{Parallelism, ViewMut};

/// Where a result goes; tasks write to parts that don't overlap.
pub(super) struct Output {
    pub(super) c: *mut f32,
    pub(super) stride: usize,
}

#[allow(unsafe_code)]
// SAFETY: tasks write to disjoint parts of memory that is borrowed for as long as they run.
unsafe impl Sync for Output {}

impl Output {
    pub(super) fn new(c: &mut ViewMut<'_>) -> Self {
        Self { c: c.data.as_mut_ptr(), stride: c.row_stride }
    }
}

/// What a kernel wants of its tasks.
pub(super) struct Sharing {
    /// Rows and columns of a block: tasks are whole blocks, but for the last ones.
    pub(super) block: (usize, usize),
    /// Rows of a task at the most, whole blocks.
    pub(super) most_rows: usize,
    /// Multiplications from which spreading over threads pays.
    pub(super) worth_threads: usize,
}

impl Sharing {
    /// Runs `task` over parts, some rows by some columns, of a result of `rows` by `cols` values, each of which takes `depth`
    /// multiplications. No value may depend on the cut, so the number of threads decides.
    pub(super) fn run(
        &self,
        (rows, cols): (usize, usize),
        depth: usize,
        parallelism: Parallelism,
        task: impl Fn(Range<usize>, Range<usize>) + Sync,
    ) {
        let spread = parallelism == Parallelism::Pool && rows * cols * depth >= self.worth_threads;
        let threads = if spread { rayon::current_num_threads() } else { 1 };
        let (row_task, col_task) = self.task_size(rows, cols, threads);
        let (row_tasks, col_tasks) = (rows.div_ceil(row_task), cols.div_ceil(col_task));
        let part = |part: usize| {
            let (row, col) = (part / col_tasks * row_task, part % col_tasks * col_task);
            task(row..rows.min(row + row_task), col..cols.min(col + col_task));
        };
        if threads > 1 && row_tasks * col_tasks > 1 {
            (0..row_tasks * col_tasks).into_par_iter().for_each(part);
        } else {
            (0..row_tasks * col_tasks).for_each(part);
        }
    }

    /// Rows and columns of a task. Every task packs its rows and its columns: of the ways to cut the result into a part for
    /// each thread, that which packs least.
    fn task_size(&self, rows: usize, cols: usize, threads: usize) -> (usize, usize) {
        let share = |size: usize, parts: usize, unit: usize| size.div_ceil(parts).next_multiple_of(unit);
        let fewest = rows.div_ceil(self.most_rows);
        let cuts = (1..=threads).map(|row_parts| (row_parts.max(fewest), threads.div_ceil(row_parts)));
        let (row_parts, col_parts) =
            cuts.min_by_key(|(row_parts, col_parts)| row_parts * cols + col_parts * rows).unwrap_or((1, 1));
        (share(rows, row_parts, self.block.0), share(cols, col_parts, self.block.1))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn tasks_cover_the_result_once_in_whole_blocks_of_rows_that_fit() {
        let sharing = Sharing { block: (12, 32), most_rows: 48, worth_threads: 1 };
        for threads in [1, 2, 3, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for (rows, cols) in [(1, 1), (12, 32), (50, 33), (200, 7), (7, 300)] {
                let written = Mutex::new(vec![0; rows * cols]);
                pool.install(|| {
                    sharing.run((rows, cols), 10, Parallelism::Pool, |own_rows, own_cols| {
                        assert!(own_rows.start % 12 == 0 && own_cols.start % 32 == 0 && own_rows.len() <= 48);
                        let mut written = written.lock().unwrap();
                        own_rows.for_each(|row| own_cols.clone().for_each(|col| written[row * cols + col] += 1));
                    });
                });
                assert!(written.into_inner().unwrap().iter().all(|count| *count == 1), "{rows} × {cols}");
            }
        }
    }
}
