//! Log-likelihoods of answers after prompts.

use tunesmith_models::{Inputs, Model};
use tunesmith_tensor::{Forward, Segments, Tape, Workspace};

/// Tokens of a batch, at most, unless one prompt alone has more.
const BATCH_TOKENS: usize = 4096;

/// What answers are worth after prompts.
pub(super) struct Likelihoods {
    /// `[prompt][answer]`: the sum over the answer's tokens of the logarithm of their probability.
    pub(super) values: Vec<Vec<f64>>,
    /// Tokens that the model read.
    pub(super) tokens: usize,
}

/// A sequence that the model reads: which prompt, and which answer if each is read for itself.
struct Reading {
    prompt: usize,
    answer: Option<usize>,
    ids: Vec<u32>,
}

/// The log-likelihood of each answer after each prompt. Answers of one token are all read off one pass over the prompt;
/// others are read for themselves.
pub(super) fn likelihoods(
    model: &dyn Model,
    workspace: &Workspace,
    prompts: &[Vec<u32>],
    answers: &[Vec<u32>],
) -> Likelihoods {
    let at_once = answers.iter().all(|answer| answer.len() == 1);
    let mut readings = Vec::new();
    for (prompt, ids) in prompts.iter().enumerate() {
        if at_once {
            readings.push(Reading { prompt, answer: None, ids: ids.clone() });
            continue;
        }
        for (answer, words) in answers.iter().enumerate() {
            let ids = [&ids[..], &words[..words.len() - 1]].concat();
            readings.push(Reading { prompt, answer: Some(answer), ids });
        }
    }
    let tokens = readings.iter().map(|reading| reading.ids.len()).sum();
    readings.sort_by_key(|reading| reading.ids.len());
    let mut values = vec![vec![0.0; answers.len()]; prompts.len()];
    let mut rest = &readings[..];
    while !rest.is_empty() {
        let longest = |count: usize| rest[..count].iter().map(|reading| reading.ids.len()).sum::<usize>();
        let mut count = 1;
        while count < rest.len() && longest(count + 1) <= BATCH_TOKENS {
            count += 1;
        }
        let (batch, left) = rest.split_at(count);
        read(model, workspace, batch, answers, &mut values);
        rest = left;
    }
    Likelihoods { values, tokens }
}

fn read(model: &dyn Model, workspace: &Workspace, batch: &[Reading], answers: &[Vec<u32>], values: &mut [Vec<f64>]) {
    let ids: Vec<u32> = batch.iter().flat_map(|reading| reading.ids.iter().copied()).collect();
    let segments = Segments::from_lengths(batch.iter().map(|reading| reading.ids.len()));
    // Row `i` of the output is about token `i + 1`.
    let predicting = |reading: &Reading| reading.answer.map_or(1, |answer| answers[answer].len());
    let rows: Vec<usize> =
        segments.ranges().zip(batch).flat_map(|(range, reading)| range.end - predicting(reading)..range.end).collect();
    let counts = Segments::from_lengths(batch.iter().map(predicting));
    workspace.run(|| {
        let mut tape = Tape::evaluating(workspace);
        let mut forward = Forward::new(&mut tape, segments.clone(), None);
        let hidden = model.hidden_states(&mut forward, &Inputs::tokens(&ids), None);
        let hidden = forward.tape().gather_rows(&hidden, rows);
        let logits = model.logits(&mut forward, &hidden, &counts);
        let logits = logits.value();
        for (range, reading) in counts.ranges().zip(batch) {
            let own = &mut values[reading.prompt];
            match reading.answer {
                None => {
                    let row = logits.row(range.start);
                    let sum = log_sum(row);
                    own.iter_mut()
                        .zip(answers)
                        .for_each(|(value, words)| *value = f64::from(row[words[0] as usize]) - sum);
                }
                Some(answer) => {
                    let each = range.zip(&answers[answer]).map(|(row, token)| {
                        let row = logits.row(row);
                        f64::from(row[*token as usize]) - log_sum(row)
                    });
                    own[answer] = each.sum();
                }
            }
        }
    });
}

fn log_sum(row: &[f32]) -> f64 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|value| f64::from(value - largest).exp()).sum();
    f64::from(largest) + sum.ln()
}
