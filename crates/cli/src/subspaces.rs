//! The subspaces of a study's adapters, compared once its runs are done.

use std::path::Path;

use tunesmith_study::{Plan, RowRuns, Similarity, SimilarityRequest, StudyFile};
use tunesmith_tensor::Matrix;

use crate::workbench::Bench;

/// A row that no run has: a random matrix.
const RANDOM: &str = "random";
/// What follows a module's path in the name of LoRA's `A`.
const A: &str = ".lora_A.weight";

/// `φ` of everything that the study asks for, as far as the runs have adapters, on its first data set.
pub(crate) fn compare(
    study: &Path,
    plan: &Plan,
    file: &StudyFile,
    bench: &mut Bench,
) -> anyhow::Result<Vec<Similarity>> {
    let mut found = Vec::new();
    for request in &file.similarities {
        let (left, right) =
            (matrices(study, plan, &request.left, bench)?, matrices(study, plan, &request.right, bench)?);
        found.extend(of_request(request, &left, &right));
    }
    Ok(found)
}

type Matrices = Vec<(String, Matrix)>;

/// `A` of every module of a run's adapter; none of a random one, or of a run that failed.
fn matrices(study: &Path, plan: &Plan, (row, seed): &(String, u64), bench: &mut Bench) -> anyhow::Result<Matrices> {
    let Some((task, row)) = plan.tasks.first().zip(plan.rows.iter().find(|of| of.name == *row)) else {
        return Ok(Vec::new());
    };
    let runs = RowRuns::read(study, plan, task, row)?;
    let Some(result) = runs.results.iter().find(|result| result.spec.seed == *seed && result.measured().is_some())
    else {
        return Ok(Vec::new());
    };
    let base = bench.training(&result.spec)?.base;
    let built = base.load_adapter(&Bench::adapter(study, &result.spec.id))?;
    let matrix = |parameter: &&tunesmith_tensor::Parameter| {
        let module = parameter.name().strip_suffix(A)?;
        Some((module.to_owned(), (*parameter.value()).clone()))
    };
    Ok(built.adapter.parameters().iter().filter_map(matrix).collect())
}

fn of_request(request: &SimilarityRequest, left: &Matrices, right: &Matrices) -> Vec<Similarity> {
    let named =
        |(row, seed): &(String, u64)| if row == RANDOM { RANDOM.to_owned() } else { format!("{row}, seed {seed}") };
    let shown = |module: &str| module.trim_start_matches("base_model.model.").to_owned();
    let (known, other) = if left.is_empty() { (right, left) } else { (left, right) };
    let is_asked = |module: &str| request.modules.iter().any(|end| module.ends_with(end.as_str()));
    let mut found = Vec::new();
    for (module, matrix) in known.iter().filter(|(module, _)| is_asked(module)) {
        let twin = other.iter().find(|(of, _)| of == module).map(|(_, matrix)| matrix.clone());
        let random = request.left.0 == RANDOM || request.right.0 == RANDOM;
        let seed = if request.left.0 == RANDOM { request.left.1 } else { request.right.1 };
        let twin = match twin {
            None if random => Similarity::random(matrix.rows(), matrix.cols(), seed),
            None => continue,
            Some(twin) => twin,
        };
        let (a, b) = if left.is_empty() { (&twin, matrix) } else { (matrix, &twin) };
        let sides = ((named(&request.left)), (named(&request.right)));
        found.push(Similarity::of(&shown(module), (&sides.0, a), (&sides.1, b), request.directions));
    }
    found
}
