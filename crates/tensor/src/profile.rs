//! Where a pass spends its time: seconds and calls by operation, forward and backward apart.
//!
//! The tape takes a lap at the end of each operation, so the time between two operations counts for the later one and
//! the laps add up to the whole pass. Without a profile nothing is timed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The times of a workspace's tapes, summed. Cheap to clone; clones share the sums.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    laps: Arc<Mutex<BTreeMap<(&'static str, Direction), Lap>>>,
}

/// Which way a pass went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From inputs to outputs.
    Forward,
    /// From the loss to the gradients.
    Backward,
}

/// What one operation took, in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lap {
    /// Wall-clock time.
    pub time: Duration,
    /// How often it ran.
    pub calls: u64,
}

impl Profile {
    /// All sums since the last [`Profile::reset`], by operation and direction.
    pub fn laps(&self) -> Vec<(&'static str, Direction, Lap)> {
        let laps = self.laps.lock().unwrap_or_else(PoisonError::into_inner);
        laps.iter().map(|((name, direction), lap)| (*name, *direction, *lap)).collect()
    }

    /// Forgets all sums.
    pub fn reset(&self) {
        self.laps.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn add(&self, name: &'static str, direction: Direction, time: Duration) {
        let mut laps = self.laps.lock().unwrap_or_else(PoisonError::into_inner);
        let lap = laps.entry((name, direction)).or_default();
        lap.time += time;
        lap.calls += 1;
    }
}

/// A tape's clock.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    profile: Profile,
    last: Instant,
}

impl Stopwatch {
    pub(crate) fn start(profile: &Profile) -> Self {
        Self { profile: profile.clone(), last: Instant::now() }
    }

    /// Forgets the time since the last lap, which another stopwatch has counted.
    pub(crate) fn skip(&mut self) {
        self.last = Instant::now();
    }

    /// Counts the time since the last lap for `name`.
    pub(crate) fn lap(&mut self, name: &'static str, direction: Direction) {
        let now = Instant::now();
        self.profile.add(name, direction, now - self.last);
        self.last = now;
    }
}

/// The short name of an operation's type: `RmsNorm`, not the path to it.
pub(crate) fn operation_name<B>() -> &'static str {
    let path = std::any::type_name::<B>();
    let name = path.rsplit("::").next().unwrap_or(path);
    name.strip_suffix("Backward").unwrap_or(name)
}
