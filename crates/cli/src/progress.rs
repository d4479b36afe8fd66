//! Progress of a run on standard error: a bar where a person watches, else plain lines.

use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};

use crate::terminal;

/// Seconds between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// What is known after a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Reading {
    /// Updates made.
    pub(crate) step: u64,
    /// Loss a labelled token.
    pub(crate) loss: f64,
    /// Tokens trained on in a second, since the run began.
    pub(crate) tokens_per_second: f64,
    /// The process's largest resident size, in bytes.
    pub(crate) peak_memory: Option<u64>,
}

/// A run's progress.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    /// Updates that were made before this process began.
    done_before: u64,
    started: Instant,
    last_line: Option<Instant>,
}

impl Progress {
    /// Progress of a run of `total` updates, `done` of which were made earlier.
    pub(crate) fn new(total: u64, done: u64) -> Self {
        let bar = terminal::is_watched().then(|| {
            let template = "{bar:32.cyan/dim} {pos}/{len} · {msg}";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(total).with_style(style.progress_chars("━╸─")).with_position(done);
            bar.set_message("starting");
            bar
        });
        Self { bar, total, done_before: done, started: Instant::now(), last_line: None }
    }

    /// Shows a step.
    pub(crate) fn step(&mut self, reading: Reading) {
        let text = self.describe(reading, self.started.elapsed());
        if let Some(bar) = &self.bar {
            bar.set_position(reading.step);
            bar.set_message(text);
            return;
        }
        let due = self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) || reading.step == self.total;
        if due {
            self.last_line = Some(Instant::now());
            terminal::note(format_args!("step {}/{} · {text}", reading.step, self.total));
        }
    }

    /// Shows a line that stays, above the bar if there is one.
    pub(crate) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| terminal::note(text)),
            None => terminal::note(text),
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn describe(&self, reading: Reading, elapsed: Duration) -> String {
        let mut text = format!("loss {:.3} · {:.0} tokens/s", reading.loss, reading.tokens_per_second);
        if let Some(left) = self.time_left(reading.step, elapsed) {
            text += &format!(" · {} left", HumanDuration(left));
        }
        if let Some(bytes) = reading.peak_memory {
            text += &format!(" · peak {}", HumanBytes(bytes));
        }
        text
    }

    /// From the pace of this process's steps.
    fn time_left(&self, step: u64, elapsed: Duration) -> Option<Duration> {
        let made = step.checked_sub(self.done_before).filter(|made| *made > 0)?;
        let left = self.total.saturating_sub(step);
        (left > 0).then(|| Duration::from_secs_f64(elapsed.as_secs_f64() * left as f64 / made as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_names_loss_speed_time_left_and_memory() {
        let progress = Progress { bar: None, total: 110, done_before: 10, started: Instant::now(), last_line: None };
        let reading = |step| Reading { step, loss: 1.2345, tokens_per_second: 312.4, peak_memory: Some(3 << 30) };
        let text = progress.describe(reading(60), Duration::from_secs(100));
        assert_eq!(text, "loss 1.234 · 312 tokens/s · 2 minutes left · peak 3.00 GiB");
        let text = progress.describe(reading(110), Duration::from_secs(200));
        assert_eq!(text, "loss 1.234 · 312 tokens/s · peak 3.00 GiB");
    }
}
