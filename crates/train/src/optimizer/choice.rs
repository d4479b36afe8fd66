//! The optimiser that a run names, with its options.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Adafactor, AdamW, AdamW8bit, Sgd, UpdateRule};

/// An optimiser by its name in a run; `transformers`' names are understood, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    /// AdamW.
    #[default]
    #[serde(alias = "adamw_torch", alias = "adamw_torch_fused", alias = "adamw_hf")]
    Adamw,
    /// Adafactor, with a learning rate that is not relative, as `transformers`' trainer sets it.
    Adafactor,
    /// Stochastic gradient descent.
    Sgd,
    /// AdamW with its state in 8 bits.
    #[serde(rename = "adamw_8bit", alias = "adamw_bnb_8bit")]
    Adamw8bit,
}

impl OptimizerName {
    /// The rule with the constants of `adamw` where it has such, and those of `args`: `name=value` with commas between,
    /// as in `transformers`.
    ///
    /// # Errors
    /// One sentence for everything that is wrong with `args`.
    pub fn rule(self, adamw: AdamW, args: &str) -> Result<Box<dyn UpdateRule>, Vec<String>> {
        let mut args = Args::parse(self, args);
        let rule: Box<dyn UpdateRule> = match self {
            Self::Adamw => adamw.into(),
            Self::Adafactor => {
                let default = Adafactor::default();
                let rule = Adafactor {
                    eps1: args.take("eps1", default.eps1, "a number above 0", |eps| *eps > 0.0 && eps.is_finite()),
                    eps2: args.take("eps2", default.eps2, "a number from 0", |eps| *eps >= 0.0 && eps.is_finite()),
                    clip_threshold: args.take(
                        "clip_threshold",
                        default.clip_threshold,
                        "a number above 0",
                        |threshold| *threshold > 0.0,
                    ),
                    decay_rate: args.take("decay_rate", default.decay_rate, "a number from -1 to 0", |rate| {
                        (-1.0..=0.0).contains(rate)
                    }),
                    beta1: args
                        .take("beta1", Optional(None), "at least 0 and less than 1", |beta: &Optional| {
                            beta.0.is_none_or(|beta| (0.0..1.0).contains(&beta))
                        })
                        .0,
                    scale_parameter: args.take("scale_parameter", default.scale_parameter, "true or false", |_| true),
                };
                rule.into()
            }
            Self::Sgd => {
                let fraction = |value: &f64| (0.0..=1.0).contains(value);
                let rule = Sgd {
                    momentum: args.take("momentum", 0.0, "a number from 0 to 1", fraction),
                    dampening: args.take("dampening", 0.0, "a number from 0 to 1", fraction),
                    nesterov: args.take("nesterov", false, "true or false", |_| true),
                };
                if rule.nesterov && (rule.momentum == 0.0 || rule.dampening != 0.0) {
                    args.problems.push("optim_args: nesterov needs momentum, and no dampening".to_owned());
                }
                rule.into()
            }
            Self::Adamw8bit => {
                let size = AdamW8bit::default().min_8bit_size;
                let rule =
                    AdamW8bit { adamw, min_8bit_size: args.take("min_8bit_size", size, "a whole number", |_| true) };
                rule.into()
            }
        };
        args.finish(rule)
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Adamw => &[],
            Self::Adafactor => &["eps1", "eps2", "clip_threshold", "decay_rate", "beta1", "scale_parameter"],
            Self::Sgd => &["momentum", "dampening", "nesterov"],
            Self::Adamw8bit => &["min_8bit_size"],
        }
    }
}

/// A number that may be left out.
struct Optional(Option<f64>);

impl FromStr for Optional {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(|value| Self(Some(value))).map_err(|_| ()) }
    }
}

/// Options as they were written, and what is wrong with them.
struct Args<'a> {
    given: Vec<(&'a str, &'a str)>,
    problems: Vec<String>,
}

impl<'a> Args<'a> {
    fn parse(optimizer: OptimizerName, text: &'a str) -> Self {
        let mut args = Self { given: Vec::new(), problems: Vec::new() };
        let known = optimizer.options();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match part.split_once('=').map(|(name, value)| (name.trim(), value.trim())) {
                Some((name, value)) if known.contains(&name) => args.given.push((name, value)),
                Some((name, _)) => args.problems.push(match known {
                    [] => format!("optim_args: {name} is no option of this optimiser, which has none"),
                    known => {
                        format!("optim_args: {name} is no option of this optimiser, which has {}", known.join(", "))
                    }
                }),
                None => args.problems.push(format!("optim_args: {part} is not name=value")),
            }
        }
        args
    }

    fn take<T: FromStr>(&mut self, name: &str, default: T, expected: &str, holds: impl Fn(&T) -> bool) -> T {
        let Some((_, text)) = self.given.iter().rfind(|(given, _)| *given == name) else { return default };
        let lower = text.to_lowercase();
        match lower.parse::<T>().ok().filter(holds) {
            Some(value) => value,
            None => {
                self.problems.push(format!("optim_args: {name} is {text}, must be {expected}"));
                default
            }
        }
    }

    fn finish(self, rule: Box<dyn UpdateRule>) -> Result<Box<dyn UpdateRule>, Vec<String>> {
        if self.problems.is_empty() { Ok(rule) } else { Err(self.problems) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_transformers_are_understood() {
        let read = |name: &str| serde_json::from_value::<OptimizerName>(name.into());
        for (name, expected) in [
            ("adamw_torch", OptimizerName::Adamw),
            ("adamw", OptimizerName::Adamw),
            ("adamw_bnb_8bit", OptimizerName::Adamw8bit),
            ("adamw_8bit", OptimizerName::Adamw8bit),
            ("adafactor", OptimizerName::Adafactor),
            ("sgd", OptimizerName::Sgd),
        ] {
            assert_eq!(read(name).unwrap(), expected);
        }
        assert!(read("adam").is_err());
    }

    #[test]
    fn every_problem_of_the_options_is_named() {
        let problems = |name: OptimizerName, args| name.rule(AdamW::default(), args).unwrap_err();
        assert_eq!(
            problems(OptimizerName::Sgd, "momentum=2, beta=1,nesterov=True,dampening"),
            [
                "optim_args: beta is no option of this optimiser, which has momentum, dampening, nesterov",
                "optim_args: dampening is not name=value",
                "optim_args: momentum is 2, must be a number from 0 to 1",
                "optim_args: nesterov needs momentum, and no dampening",
            ]
        );
        assert_eq!(
            problems(OptimizerName::Adamw, "momentum=0.9"),
            ["optim_args: momentum is no option of this optimiser, which has none"]
        );
        assert_eq!(problems(OptimizerName::Adafactor, "eps1=0,beta1=1").len(), 2);
        assert!(OptimizerName::Adafactor.rule(AdamW::default(), "beta1=None, scale_parameter=True").is_ok());
    }
}
