//! The same cases in bf16: logits, loss and gradients against the reference's float32 numbers.
//!
//! Tolerance. Rounding to bf16 (8 bits) is off by at most `u = 2⁻⁹` of a value, and by `u/√3` in the root mean square. A
//! product rounds both factors, so its terms are off by `√2·u/√3`, independently of each other, and its values by as much
//! of their size where terms do not cancel. A value that comes out of `n` products one after the other is off by `√n` times
//! that: with the weights, activations and attention's products some 6 a block, twice as many on the way back. The
//! fixtures have two to four blocks: `n ≤ 50` and a root-mean-square error of `√50·√2·u/√3 = 0.011`. Terms that cancel
//! enlarge it, by their size over that of their sum; six times are allowed for it. T5 does not divide its scores by `√d`: a
//! softmax makes of a score's error, a share of the score, that share times the score of its weights, so gradients that come
//! through its attention are allowed three times more. Errors are Euclidean norms, relative to the reference's.

use tunesmith_models::load_model_in;
use tunesmith_tensor::{Gradients, Precision, Workspace};
use tunesmith_train::{describe, mean_loss};

use crate::fixture::{self, Examples, tensors};
use crate::task::{batch, logits_in, real_rows};
use crate::{case, skips, start};

/// Of logits, and of all gradients of a case together.
const TOLERANCE: f64 = 0.07;
/// Of gradients through scores that are not scaled.
const UNSCALED_TOLERANCE: f64 = 3.0 * TOLERANCE;
/// Of the loss, a mean over rows of which each is off by some hundredths of a logit.
const LOSS_TOLERANCE: f64 = 0.01;

/// `‖found − reference‖² ` and `‖reference‖²`.
fn squares(found: &[f32], reference: &[f32]) -> [f64; 2] {
    assert_eq!(found.len(), reference.len(), "compared tensors have one size");
    let pairs = found.iter().zip(reference).map(|(found, reference)| (f64::from(*found), f64::from(*reference)));
    pairs.fold([0.0; 2], |[errors, sizes], (found, reference)| {
        [errors + (found - reference).powi(2), sizes + reference.powi(2)]
    })
}

fn relative([errors, sizes]: [f64; 2]) -> f64 {
    (errors / sizes.max(f64::MIN_POSITIVE)).sqrt()
}

#[test]
fn bf16_is_the_reference_but_for_rounding() {
    let (mut cases, mut failed) = (0, Vec::new());
    let workspace = Workspace::with_precision(Precision::Bf16);
    for architecture in fixture::folders(&fixture::root()) {
        let arch = fixture::name(&architecture);
        let has_own_numbers = arch == "real" || arch == "nf4" || architecture.join("model-4bit").exists();
        if has_own_numbers || !fixture::is_cases(&architecture) || skips::reason(&arch, None).is_some() {
            continue;
        }
        let loaded = load_model_in(&architecture.join("model"), Precision::Bf16);
        let model = loaded.unwrap_or_else(|error| panic!("{error}")).model;
        let is_unscaled = model.info().model_type == "t5";
        let of_gradients = if is_unscaled { UNSCALED_TOLERANCE } else { TOLERANCE };
        let inputs = Examples::of(&tensors(&architecture.join("io.safetensors")));
        for folder in fixture::folders(&architecture) {
            let name = format!("{arch}/{}", fixture::name(&folder));
            let method = fixture::name(&folder);
            if method.starts_with("model") || skips::reason(&arch, Some(&method)).is_some() {
                continue;
            }
            let expect = tensors(&folder.join("expect.safetensors"));
            let from_file = case::load_case(&folder, &*model);
            let built = describe(&*model, None, None, |model| start::trainable(from_file, model, &expect));
            let Some(built) = built else { panic!("{name}: no seed of the reference gives what its file holds") };
            let adapter = &built.adapter;
            let found = logits_in(&workspace, &*model, Some(adapter), &inputs);
            let logits = relative(squares(&found, &real_rows(&*model, &expect["logits"], &inputs)));
            let mut gradients = Gradients::new(&workspace);
            let loss = mean_loss(&[batch(&*model, &inputs)], &*model, adapter, &workspace, None, &mut gradients);
            let loss = (loss / f64::from(expect["loss"].values[0]) - 1.0).abs();
            let reference = case::named(adapter, &expect, "grad.");
            let mut sums = [0.0; 2];
            for parameter in adapter.parameters() {
                let Some(reference) = reference.get(parameter.name()) else { continue };
                let found = gradients.get(parameter.id()).expect("every trainable tensor has a gradient");
                let [errors, sizes] = squares(found.data(), &reference.values);
                sums = [sums[0] + errors, sums[1] + sizes];
            }
            let gradient = relative(sums);
            println!("{name} logits={logits:.1e} loss={loss:.1e} grad={gradient:.1e}");
            cases += 1;
            // Not `>`: a NaN must fail.
            if !(logits <= TOLERANCE && gradient <= of_gradients && loss <= LOSS_TOLERANCE) {
                failed.push(name);
            }
        }
    }
    assert!(cases > 0, "the folder holds no case that runs");
    assert!(failed.is_empty(), "off by more than rounding: {failed:?}");
}
