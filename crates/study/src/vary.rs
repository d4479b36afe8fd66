//! Values of configuration keys: all combinations of lists, or random draws from lists and ranges.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tunesmith_tensor::Seed;

/// What a key runs over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Values {
    /// These values.
    List(Vec<Value>),
    /// A range of numbers.
    Range(Range),
}

/// A range of numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The smallest number.
    pub from: f64,
    /// The largest.
    pub to: f64,
    /// How many values a grid takes of it, both ends included. Random draws need none.
    #[serde(default)]
    pub steps: Option<usize>,
    /// How they are spaced, or drawn.
    #[serde(default)]
    pub scale: Scale,
    /// Whether they are whole numbers.
    #[serde(default)]
    pub whole: bool,
}

/// How numbers of a range are spaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// Evenly.
    #[default]
    Linear,
    /// Each as many times the one before.
    Log,
}

/// One value for each key.
pub type Combination = Vec<(String, Value)>;

impl Range {
    /// The number at `part` of the way, from 0 to 1.
    fn at(&self, part: f64) -> Value {
        let number = match self.scale {
            Scale::Linear => self.from + part * (self.to - self.from),
            Scale::Log => (self.from.ln() + part * (self.to.ln() - self.from.ln())).exp(),
        };
        // Six digits that count: what a user would write, not what rounding left.
        let number: f64 = format!("{number:.5e}").parse().unwrap_or(number);
        if self.whole { json!(number.round() as i64) } else { json!(number) }
    }

    fn problem(&self) -> Option<&'static str> {
        match self {
            Self { from, to, .. } if !(from.is_finite() && to.is_finite() && from <= to) => {
                Some("from must be at most to")
            }
            Self { from, scale: Scale::Log, .. } if *from <= 0.0 => Some("a log scale needs from above 0"),
            Self { steps: Some(steps), from, to, .. } if *steps < 2 && from < to => Some("steps must be at least 2"),
            _ => None,
        }
    }
}

impl Values {
    fn problem(&self) -> Option<&'static str> {
        match self {
            Self::List(values) if values.is_empty() => Some("the list is empty"),
            Self::List(_) => None,
            Self::Range(range) => range.problem(),
        }
    }

    /// All its values.
    fn all(&self) -> Vec<Value> {
        match self {
            Self::List(values) => values.clone(),
            Self::Range(range) => {
                let last = range.steps.unwrap_or(2).max(2) - 1;
                (0..=last).map(|step| range.at(step as f64 / last as f64)).collect()
            }
        }
    }
}

/// All problems of what keys run over.
pub(crate) fn problems(vary: &IndexMap<String, Values>, draws: Option<usize>) -> Vec<String> {
    let mut found: Vec<String> = vary
        .iter()
        .filter_map(|(key, values)| {
            let missing = matches!(values, Values::Range(range) if range.steps.is_none() && draws.is_none());
            let problem = values.problem().or(missing.then_some("a range needs steps, or the sweep draws"))?;
            Some(format!("vary.{key}: {problem}"))
        })
        .collect();
    if draws == Some(0) {
        found.push("draws is 0, must be at least 1".to_owned());
    }
    found
}

/// All combinations, the first key's values changing slowest.
pub fn grid(vary: &IndexMap<String, Values>) -> Vec<Combination> {
    let mut combinations: Vec<Combination> = vec![Vec::new()];
    for (key, values) in vary {
        let values = values.all();
        let longer = combinations.iter().flat_map(|combination| {
            values.iter().map(|value| {
                let mut combination = combination.clone();
                combination.push((key.clone(), value.clone()));
                combination
            })
        });
        combinations = longer.collect();
    }
    combinations
}

/// `draws` combinations at random, each key on its own; draw `i` is the same however many there are.
pub fn random(vary: &IndexMap<String, Values>, draws: usize, seed: Seed) -> Vec<Combination> {
    let draw = |number: usize| {
        let value = |(key, values): (&String, &Values)| {
            let mut stream = seed.stream(key, number as u64);
            let value = match values {
                Values::List(values) => values[stream.below(values.len().max(1) as u64) as usize].clone(),
                Values::Range(range) => range.at(f64::from(stream.uniform())),
            };
            (key.clone(), value)
        };
        vary.iter().map(value).collect()
    };
    (0..draws).map(draw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vary(value: Value) -> IndexMap<String, Values> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_grid_has_every_combination_in_order() {
        let vary =
            vary(json!({"peft.r": [1, 8], "learning_rate": {"from": 1e-4, "to": 1e-2, "steps": 3, "scale": "log"}}));
        let found: Vec<Vec<Value>> =
            grid(&vary).into_iter().map(|all| all.into_iter().map(|(_, value)| value).collect()).collect();
        let expected = [[1.0, 1e-4], [1.0, 1e-3], [1.0, 1e-2], [8.0, 1e-4], [8.0, 1e-3], [8.0, 1e-2]];
        assert_eq!(found.len(), 6);
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!([found[0].as_f64().unwrap(), found[1].as_f64().unwrap()], expected);
        }
        let whole = Range { from: 1.0, to: 9.0, steps: Some(3), scale: Scale::Linear, whole: true };
        assert_eq!(Values::Range(whole).all(), [json!(1), json!(5), json!(9)]);
    }

    #[test]
    fn random_draws_keep_to_their_ranges_and_do_not_depend_on_their_number() {
        let vary = vary(json!({"a": {"from": 1e-5, "to": 1e-1, "scale": "log"}, "b": ["x", "y"]}));
        let draws = random(&vary, 400, Seed(3));
        assert_eq!(draws[..10], random(&vary, 10, Seed(3)));
        assert_ne!(draws[..10], random(&vary, 10, Seed(4)));
        let numbers: Vec<f64> = draws.iter().map(|draw| draw[0].1.as_f64().unwrap()).collect();
        assert!(numbers.iter().all(|number| (1e-5..=1e-1).contains(number)));
        // Half of what is drawn evenly over the logarithm lies below the geometric mean.
        let below = numbers.iter().filter(|number| **number < 1e-3).count();
        assert!((160..240).contains(&below), "{below}");
        assert!(draws.iter().any(|draw| draw[1].1 == "x") && draws.iter().any(|draw| draw[1].1 == "y"));
    }

    #[test]
    fn every_problem_is_found() {
        let vary = vary(json!({
            "a": [], "b": {"from": 2, "to": 1}, "c": {"from": 0, "to": 1, "scale": "log", "steps": 3}, "d": {"from": 0, "to": 1}
        }));
        let found = problems(&vary, None);
        assert_eq!(
            found,
            [
                "vary.a: the list is empty",
                "vary.b: from must be at most to",
                "vary.c: a log scale needs from above 0",
                "vary.d: a range needs steps, or the sweep draws"
            ]
        );
        assert_eq!(problems(&IndexMap::new(), Some(0)).len(), 1);
    }
}
