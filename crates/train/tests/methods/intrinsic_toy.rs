//! The toy problem of Li et al. 2018, section 2: 1000 values in ten groups, of which the k-th must sum to k. Its solutions
//! are a space of 990 dimensions, so that its intrinsic dimension is 10.

use std::cell::Cell;

use serde_json::json;
use tunesmith_methods::{MethodConfig, ModelDescription, TaskType, build};
use tunesmith_tensor::{Base, FrozenWeight, Gradients, Matrix, Role, Seed, Site, SiteId, SiteKind, Tape, Workspace};
use tunesmith_train::{Candidate, DimensionSearch, NextTrial, Optimizer, ParameterGroup, Sgd, Trial};

const GROUPS: usize = 10;
const EACH: usize = 100;
const STEPS: usize = 6000;

/// A performance of 1 at a solution: `exp(−loss)`.
fn performance(candidate: Candidate) -> f64 {
    let weight = FrozenWeight::float32(Matrix::zeros(GROUPS, EACH));
    let base = Base { weight: &weight, bias: None };
    let site = Site {
        path: "values".to_owned(),
        kind: SiteKind::Linear,
        role: Role::FeedForwardUp,
        block: Some(0),
        rows: GROUPS,
        cols: EACH,
        has_bias: false,
        stored_transposed: false,
    };
    let method = match candidate.dimension {
        Some(dimension) => {
            json!({"peft_type": "INTRINSIC", "intrinsic_dimension": dimension, "projection": "dense"})
        }
        None => json!({"peft_type": "FULL"}),
    };
    let method = MethodConfig::from_run_file(&method).unwrap();
    let description = ModelDescription {
        rope_factor: 1.0,
        model_type: "toy",
        name_or_path: None,
        task_type: TaskType::FeatureExtraction,
        heads: 1,
        key_value_heads: 1,
        tokenize: None,
        keys_and_values: None,
        sites: &[site],
        base: &|_| Some(base),
    };
    let mut adapter = build(&method, &description, Seed(7)).unwrap().adapter;
    let targets: Vec<f32> = (1..=GROUPS).map(|group| group as f32).collect();
    let workspace = Workspace::new();
    let rule = Sgd { momentum: 0.99, dampening: 0.0, nesterov: false };
    let mut optimizer = Optimizer::new(rule, 0.0, &adapter.parameters(), |_| ParameterGroup::default());
    let loss = Cell::new(0.0);
    for _ in 0..STEPS {
        let mut tape = Tape::differentiating(&workspace);
        let tuned = adapter.weight(SiteId(0)).unwrap().tuned(&mut tape, base).weight;
        let ones = tape.constant(Matrix::from_vec(1, EACH, vec![1.0; EACH]));
        let sums = tape.matmul_nt(&ones, &tuned);
        let error = tape.squared_error(&sums, &targets);
        loss.set(f64::from(error.value().data()[0]));
        let mut gradients = Gradients::new(&workspace);
        tape.backward_scalar(error, 1.0, &mut gradients);
        optimizer.step(&mut adapter.parameters_mut(), &gradients, 1.0, candidate.learning_rate).unwrap();
    }
    (-loss.get()).exp()
}

#[test]
fn the_toy_problem_has_dimension_ten() {
    let search = DimensionSearch {
        first: 1,
        last: 64,
        factor: 2.0,
        resolution: 1.0,
        learning_rates: vec![0.3, 0.03],
        baseline_learning_rates: vec![1e-3],
        ..DimensionSearch::default()
    };
    let mut trials = Vec::new();
    let found = loop {
        match search.next(&trials) {
            NextTrial::Finished(found) => break found,
            NextTrial::Train(candidate) => trials.push(Trial { candidate, metric: Some(performance(candidate)) }),
        }
    };
    assert!(found.baseline.metric.unwrap() > 0.999, "{:?}", found.baseline);
    assert_eq!(found.found.unwrap().candidate.dimension, Some(10), "{found:?}");
    // Nine dimensions are not nearly enough: at best one of ten directions is missed.
    let nine = found.curve.iter().find(|point| point.dimension == 9).unwrap();
    assert!(nine.metric.unwrap() < 0.5, "{nine:?}");
}
