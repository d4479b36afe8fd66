//! F1 of classes, as scikit-learn's `f1_score` with `zero_division=0`.

use std::collections::BTreeSet;

/// How the F1 of several classes becomes one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Average {
    /// The F1 of class 1 alone.
    Binary,
    /// The mean over the classes that occur among predictions or labels.
    Macro,
    /// That of all decisions together, which is the accuracy where every example has one class.
    Micro,
    /// The mean over the classes, each weighed by how many labels it has.
    Weighted,
}

/// The F1 of `predictions`, 0 to 1. A class that is neither predicted nor a label counts as 0 where it is asked for.
pub fn f1(predictions: &[usize], labels: &[usize], average: Average) -> f64 {
    let pairs = || predictions.iter().zip(labels);
    // Right predictions, all predictions, and all labels of a class.
    let counts = |class: usize| {
        let right = pairs().filter(|(prediction, label)| **prediction == class && **label == class).count();
        let of_class = |values: &[usize]| values.iter().filter(|value| **value == class).count();
        (right, of_class(predictions), of_class(labels))
    };
    let score = |(right, predicted, labelled): (usize, usize, usize)| match predicted + labelled {
        0 => 0.0,
        all => 2.0 * right as f64 / all as f64,
    };
    let classes: BTreeSet<usize> = predictions.iter().chain(labels).copied().collect();
    let of_classes = || classes.iter().map(|class| counts(*class));
    match average {
        Average::Binary => score(counts(1)),
        Average::Macro => of_classes().map(score).sum::<f64>() / classes.len() as f64,
        Average::Micro => {
            let right = pairs().filter(|(prediction, label)| prediction == label).count();
            score((right, predictions.len(), labels.len()))
        }
        Average::Weighted => of_classes().map(|class| score(class) * class.2 as f64).sum::<f64>() / labels.len() as f64,
    }
}
