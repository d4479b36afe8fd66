//! Comparison with the reference: the largest difference, relative to the reference's largest value.

/// float32 agrees with PyTorch to this.
pub(crate) const TOLERANCE: f32 = 1e-4;

/// The largest absolute difference, divided by the largest absolute value of the reference.
pub(crate) fn relative_error(found: &[f32], reference: &[f32]) -> f32 {
    assert_eq!(found.len(), reference.len(), "compared tensors have one size");
    let largest = reference.iter().fold(f32::MIN_POSITIVE, |largest, value| largest.max(value.abs()));
    let differences = found.iter().zip(reference).map(|(found, reference)| (found - reference).abs());
    // `f32::max` would drop a NaN; a NaN must fail.
    differences.fold(0.0, |worst: f32, difference| if difference <= worst { worst } else { difference }) / largest
}

/// The largest errors of a case, by kind, and what exceeded the tolerance.
#[derive(Default)]
pub(crate) struct Errors {
    kinds: Vec<(&'static str, f32)>,
    problems: Vec<String>,
}

impl Errors {
    /// Compares one tensor.
    pub(crate) fn compare(&mut self, kind: &'static str, name: &str, found: &[f32], reference: &[f32]) {
        self.compare_within(TOLERANCE, kind, name, found, reference);
    }

    /// Compares one tensor with a tolerance of its own.
    pub(crate) fn compare_within(
        &mut self,
        tolerance: f32,
        kind: &'static str,
        name: &str,
        found: &[f32],
        reference: &[f32],
    ) {
        if found.len() != reference.len() {
            self.problem(format!("{kind} {name}: {} values, the reference has {}", found.len(), reference.len()));
            return;
        }
        let error = relative_error(found, reference);
        match self.kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, worst)) if error <= *worst => {}
            Some((_, worst)) => *worst = error,
            None => self.kinds.push((kind, error)),
        }
        if error.is_nan() || error > tolerance {
            self.problem(format!("{kind} {name}: relative error {error:.1e} exceeds {tolerance:.0e}"));
        }
    }

    /// Notes something that is wrong beside the numbers.
    pub(crate) fn problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    /// Notes `problem` unless `holds`.
    pub(crate) fn require(&mut self, holds: bool, problem: &str) {
        if !holds {
            self.problem(problem.to_owned());
        }
    }

    /// The case's line.
    pub(crate) fn outcome(self) -> super::Outcome {
        let kinds: Vec<String> = self.kinds.iter().map(|(kind, error)| format!("{kind}={error:.1e}")).collect();
        self.passed_as(kinds.join(" "))
    }

    /// The case's line, `line` where nothing is wrong.
    pub(crate) fn passed_as(self, line: String) -> super::Outcome {
        if self.problems.is_empty() {
            return super::Outcome::Passed(line);
        }
        let shown: Vec<String> = self.problems.iter().take(12).map(|problem| format!("\n    {problem}")).collect();
        super::Outcome::Failed(format!("{line}{}", shown.concat()))
    }
}
