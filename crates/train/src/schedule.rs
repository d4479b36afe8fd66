//! Learning-rate schedules, equal to `transformers.get_*_schedule_with_warmup`.

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
    /// Rises over the warm-up steps, then falls to zero along half a cosine.
    Cosine,
}

/// The factor on the learning rate at every step of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRateSchedule {
    /// Its shape.
    pub kind: SchedulerType,
    /// Steps during which the rate rises from zero.
    pub warmup_steps: u64,
    /// Steps of the whole run, warm-up included.
    pub total_steps: u64,
}

impl LearningRateSchedule {
    /// The factor, in `[0, 1]`, for the update that follows `step` finished updates: the first update uses `factor(0)`.
    pub fn factor(&self, step: u64) -> f64 {
        let warming = self.kind != SchedulerType::Constant && step < self.warmup_steps;
        if warming {
            return step as f64 / self.warmup_steps.max(1) as f64;
        }
        let falling_steps = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        match self.kind {
            SchedulerType::Constant | SchedulerType::ConstantWithWarmup => 1.0,
            SchedulerType::Linear => self.total_steps.saturating_sub(step) as f64 / falling_steps,
            SchedulerType::Cosine => {
                let progress = (step - self.warmup_steps) as f64 / falling_steps;
                // A step past the end stays at zero, where transformers' curve would rise again.
                0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos())
            }
        }
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
        factors: Vec<f64>,
    }

    #[test]
    fn every_factor_equals_that_of_transformers() {
        let table: Table = serde_json::from_str(include_str!("../tests/data/schedules.json")).unwrap();
        assert_eq!(table.cases.len(), 9);
        for Case { kind, warmup_steps, total_steps, factors } in table.cases {
            let schedule = LearningRateSchedule { kind, warmup_steps, total_steps };
            for (step, expected) in factors.iter().enumerate() {
                let factor = schedule.factor(step as u64);
                assert!((factor - expected).abs() < 1e-12, "{schedule:?} at {step}: {factor}, expected {expected}");
            }
        }
    }

    #[test]
    fn the_rate_stays_at_zero_after_the_end() {
        for kind in [SchedulerType::Linear, SchedulerType::Cosine] {
            let schedule = LearningRateSchedule { kind, warmup_steps: 2, total_steps: 10 };
            assert!((10..25).all(|step| schedule.factor(step) == 0.0));
        }
    }
}
