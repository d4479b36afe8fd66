//! Learning-rate schedules, equal to `transformers.get_scheduler`'s.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// The shape of a schedule, by its Hugging Face name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerType {
    /// The same rate from the first step to the last, without warm-up.
    Constant,
    /// Rises to the full rate over the warm-up steps, then stays.
    ConstantWithWarmup,
    /// Rises over the warm-up steps, then falls in a straight line to zero.
    #[default]
    Linear,
    /// Rises over the warm-up steps, then falls to zero along half a cosine, or as many waves as `num_cycles` says.
    Cosine,
    /// Rises over the warm-up steps, then falls to zero along half a cosine `num_cycles` times, at full rate between.
    CosineWithRestarts,
    /// Like `cosine`, but down to `min_lr` or to the part `min_lr_rate` of the full rate.
    CosineWithMinLr,
    /// Rises over the warm-up steps, then falls to `lr_end` as a polynomial of degree `power`.
    Polynomial,
    /// Rises over the warm-up steps, then falls as one over the square root of the steps.
    InverseSqrt,
    /// Rises over the warm-up steps, stays, and falls over the last `num_decay_steps`.
    WarmupStableDecay,
}

/// Options of a schedule, under `transformers`' names; which of them a schedule takes, [`SchedulerOptions::misfits`] says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerOptions {
    /// Waves. Default half a one for `cosine`, `cosine_with_min_lr` and `warmup_stable_decay`, 1 for
    /// `cosine_with_restarts`, which takes whole numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_cycles: Option<f64>,
    /// The lowest rate of `cosine_with_min_lr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr: Option<f64>,
    /// The same as a part of the full rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr_rate: Option<f64>,
    /// The last rate of `polynomial`. Default 1e-7.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr_end: Option<f64>,
    /// The degree of `polynomial`. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power: Option<f64>,
    /// Steps after which `inverse_sqrt` is at full rate. Default: the warm-up steps, or 10 000 without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timescale: Option<u64>,
    /// Steps over which `warmup_stable_decay` falls at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_decay_steps: Option<u64>,
    /// Steps that `warmup_stable_decay` stays at full rate. Default: all between warm-up and decay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_stable_steps: Option<u64>,
    /// How `warmup_stable_decay` rises. Default linear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_type: Option<Ramp>,
    /// How it falls. Default cosine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_type: Option<Ramp>,
    /// Where it ends, as a part of the full rate, and where its warm-up begins. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr_ratio: Option<f64>,
}

/// The shape of a rise or fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ramp {
    /// A straight line.
    Linear,
    /// A cosine.
    Cosine,
    /// One minus a square root.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

impl SchedulerOptions {
    /// One sentence for each option that `kind` lacks or does not take, or that cannot be, at a peak of `learning_rate`.
    pub fn misfits(&self, kind: SchedulerType, learning_rate: f64) -> Vec<String> {
        use SchedulerType::{Cosine, CosineWithMinLr, CosineWithRestarts, InverseSqrt, Polynomial, WarmupStableDecay};
        let mut problems = Vec::new();
        let mut takes = |given: bool, option: &str, kinds: &[SchedulerType]| {
            if given && !kinds.contains(&kind) {
                problems.push(format!("{option} is not for this lr_scheduler_type"));
            }
        };
        let waves = [Cosine, CosineWithMinLr, CosineWithRestarts, WarmupStableDecay];
        takes(self.num_cycles.is_some(), "num_cycles", &waves);
        takes(self.min_lr.is_some(), "min_lr", &[CosineWithMinLr]);
        takes(self.min_lr_rate.is_some(), "min_lr_rate", &[CosineWithMinLr]);
        takes(self.lr_end.is_some(), "lr_end", &[Polynomial]);
        takes(self.power.is_some(), "power", &[Polynomial]);
        takes(self.timescale.is_some(), "timescale", &[InverseSqrt]);
        takes(self.num_decay_steps.is_some(), "num_decay_steps", &[WarmupStableDecay]);
        takes(self.num_stable_steps.is_some(), "num_stable_steps", &[WarmupStableDecay]);
        takes(self.warmup_type.is_some(), "warmup_type", &[WarmupStableDecay]);
        takes(self.decay_type.is_some(), "decay_type", &[WarmupStableDecay]);
        takes(self.min_lr_ratio.is_some(), "min_lr_ratio", &[WarmupStableDecay]);

        let mut check = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        let lowest = usize::from(self.min_lr.is_some()) + usize::from(self.min_lr_rate.is_some());
        check(
            kind != CosineWithMinLr || lowest == 1,
            "cosine_with_min_lr needs min_lr or min_lr_rate, one of them".into(),
        );
        check(
            kind != WarmupStableDecay || self.num_decay_steps.is_some(),
            "warmup_stable_decay needs num_decay_steps".into(),
        );
        let end = self.lr_end.unwrap_or(DEFAULT_LR_END);
        check(kind != Polynomial || end < learning_rate, format!("lr_end is {end}, must be less than learning_rate"));
        let whole = self.num_cycles.is_none_or(|cycles| cycles.fract() == 0.0);
        check(kind != CosineWithRestarts || whole, "num_cycles must be a whole number for cosine_with_restarts".into());
        check(self.timescale != Some(0), "timescale is 0, must be at least 1".into());
        for (name, value) in [
            ("num_cycles", self.num_cycles),
            ("min_lr", self.min_lr),
            ("min_lr_rate", self.min_lr_rate),
            ("lr_end", self.lr_end),
            ("power", self.power),
            ("min_lr_ratio", self.min_lr_ratio),
        ] {
            let wrong = value.filter(|value| !value.is_finite() || *value < 0.0);
            check(wrong.is_none(), format!("{name} is {}, must be a number from 0", wrong.unwrap_or_default()));
        }
        problems
    }
}

const DEFAULT_LR_END: f64 = 1e-7;
const DEFAULT_TIMESCALE: u64 = 10_000;

/// The factor on the learning rate at every step of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRateSchedule {
    /// Its shape.
    pub kind: SchedulerType,
    /// Options of the shape.
    pub options: SchedulerOptions,
    /// The full rate, which options may be relative to.
    pub learning_rate: f64,
    /// Steps during which the rate rises from zero.
    pub warmup_steps: u64,
    /// Steps of the whole run, warm-up included.
    pub total_steps: u64,
}

impl LearningRateSchedule {
    /// The factor for the update that follows `step` finished updates: the first update uses `factor(0)`.
    pub fn factor(&self, step: u64) -> f64 {
        let options = &self.options;
        if self.kind != SchedulerType::Constant && step < self.warmup_steps {
            let progress = step as f64 / self.warmup_steps.max(1) as f64;
            return match self.kind {
                SchedulerType::WarmupStableDecay => {
                    above(self.lowest(), 1.0 - fall(options.warmup_type.unwrap_or(Ramp::Linear), 0.5, progress))
                }
                _ => progress,
            };
        }
        let falling_steps = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let after_warmup = step.saturating_sub(self.warmup_steps);
        // A step past the end stays where the end is, where some of transformers' curves would rise again.
        let progress = (after_warmup as f64 / falling_steps).min(1.0);
        match self.kind {
            SchedulerType::Constant | SchedulerType::ConstantWithWarmup => 1.0,
            SchedulerType::Linear => self.total_steps.saturating_sub(step) as f64 / falling_steps,
            SchedulerType::Cosine | SchedulerType::CosineWithMinLr => {
                above(self.lowest(), wave(options.num_cycles.unwrap_or(0.5), progress))
            }
            SchedulerType::CosineWithRestarts if progress >= 1.0 => 0.0,
            SchedulerType::CosineWithRestarts => wave(0.5, (options.num_cycles.unwrap_or(1.0) * progress).fract()),
            SchedulerType::Polynomial => {
                let end = options.lr_end.unwrap_or(DEFAULT_LR_END) / self.learning_rate;
                above(end, (1.0 - progress).powf(options.power.unwrap_or(1.0)))
            }
            SchedulerType::InverseSqrt => {
                let default = if self.warmup_steps == 0 { DEFAULT_TIMESCALE } else { self.warmup_steps };
                let timescale = options.timescale.unwrap_or(default) as f64;
                (timescale / (after_warmup as f64 + timescale)).sqrt()
            }
            SchedulerType::WarmupStableDecay => {
                let decay = options.num_decay_steps.unwrap_or(0);
                let between = self.total_steps.saturating_sub(self.warmup_steps + decay);
                let falling = after_warmup.checked_sub(options.num_stable_steps.unwrap_or(between));
                let ramp = options.decay_type.unwrap_or(Ramp::Cosine);
                match falling {
                    None => 1.0,
                    Some(steps) if steps >= decay => self.lowest(),
                    Some(steps) => {
                        let progress = steps as f64 / decay as f64;
                        above(self.lowest(), fall(ramp, options.num_cycles.unwrap_or(0.5), progress))
                    }
                }
            }
        }
    }

    /// The lowest factor.
    fn lowest(&self) -> f64 {
        let options = &self.options;
        let of_rate = options.min_lr.map(|rate| rate / self.learning_rate);
        options.min_lr_rate.or(of_rate).or(options.min_lr_ratio).unwrap_or(0.0)
    }
}

/// A factor in `[0, 1]` over the range from `lowest` to 1.
fn above(lowest: f64, factor: f64) -> f64 {
    (factor * (1.0 - lowest) + lowest).max(0.0)
}

fn wave(cycles: f64, progress: f64) -> f64 {
    (0.5 * (1.0 + (PI * cycles * 2.0 * progress).cos())).max(0.0)
}

/// A fall from 1 at progress 0 to 0 at progress 1.
fn fall(ramp: Ramp, cycles: f64, progress: f64) -> f64 {
    match ramp {
        Ramp::Linear => 1.0 - progress,
        Ramp::Cosine => wave(cycles, progress),
        Ramp::OneMinusSqrt => 1.0 - progress.sqrt(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Table {
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        kind: SchedulerType,
        warmup_steps: u64,
        total_steps: u64,
        options: SchedulerOptions,
        factors: Vec<f64>,
    }

    #[test]
    fn every_factor_equals_that_of_transformers() {
        let table: Table = serde_json::from_str(include_str!("../tests/data/schedules.json")).unwrap();
        assert_eq!(table.cases.len(), 24);
        for Case { kind, warmup_steps, total_steps, options, factors } in table.cases {
            assert_eq!(options.misfits(kind, 1.0), [""; 0]);
            let schedule = LearningRateSchedule { kind, options, learning_rate: 1.0, warmup_steps, total_steps };
            for (step, expected) in factors.iter().enumerate() {
                let factor = schedule.factor(step as u64);
                assert!((factor - expected).abs() < 1e-12, "{schedule:?} at {step}: {factor}, expected {expected}");
            }
        }
    }

    #[test]
    fn the_rate_stays_at_zero_after_the_end() {
        for kind in [SchedulerType::Linear, SchedulerType::Cosine, SchedulerType::CosineWithRestarts] {
            let options = SchedulerOptions::default();
            let schedule =
                LearningRateSchedule { kind, options, learning_rate: 1e-3, warmup_steps: 2, total_steps: 10 };
            assert!((10..25).all(|step| schedule.factor(step) == 0.0));
        }
    }

    #[test]
    fn rates_among_the_options_are_relative_to_the_full_rate() {
        let schedule = |kind, options| LearningRateSchedule {
            kind,
            options,
            learning_rate: 1e-3,
            warmup_steps: 0,
            total_steps: 10,
        };
        let lowest = SchedulerOptions { min_lr: Some(1e-4), ..SchedulerOptions::default() };
        assert!((schedule(SchedulerType::CosineWithMinLr, lowest).factor(10) - 0.1).abs() < 1e-12);
        let end = SchedulerOptions { lr_end: Some(2e-4), ..SchedulerOptions::default() };
        assert!((schedule(SchedulerType::Polynomial, end).factor(10) - 0.2).abs() < 1e-12);
        assert!((schedule(SchedulerType::Polynomial, end).factor(5) - 0.6).abs() < 1e-12);
    }

    #[test]
    fn options_that_do_not_fit_are_named() {
        let options = SchedulerOptions { power: Some(-1.0), num_cycles: Some(1.5), ..SchedulerOptions::default() };
        assert_eq!(
            options.misfits(SchedulerType::CosineWithRestarts, 1e-3),
            [
                "power is not for this lr_scheduler_type",
                "num_cycles must be a whole number for cosine_with_restarts",
                "power is -1, must be a number from 0",
            ]
        );
        let none = SchedulerOptions::default();
        assert_eq!(none.misfits(SchedulerType::WarmupStableDecay, 1e-3), ["warmup_stable_decay needs num_decay_steps"]);
        assert_eq!(none.misfits(SchedulerType::CosineWithMinLr, 1e-3).len(), 1);
        assert_eq!(none.misfits(SchedulerType::Polynomial, 1e-8).len(), 1);
        assert!(none.misfits(SchedulerType::Linear, 1e-8).is_empty());
    }
}
