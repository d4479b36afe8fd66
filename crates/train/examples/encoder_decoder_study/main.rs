//! The tiny encoder-decoder study: a T5 and a BART of two blocks learn to reverse strings, and then, frozen, a shifted
//! alphabet with each method. Prints a table in Markdown.
//!
//! ```sh
//! cargo run --release -p tunesmith-train --example encoder_decoder_study
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it finds")]

mod study;

use std::path::Path;
use std::time::Instant;

use study::{METHODS, Study};

const STUDY: Study = Study { letters: 12, longest: 6, batch: 64, pretraining: 3000, adaptation: 1000, tested: 500 };

fn main() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    println!(
        "| model | method | trained values | exact match before | after | last loss | seconds |\n|---|---|---|---|---|---|---|"
    );
    for (name, folder) in [("T5", "flan-t5"), ("BART", "bart")] {
        let start = Instant::now();
        let pretrained = STUDY.pretrain(&fixtures.join(folder).join("model"));
        let seconds = start.elapsed().as_secs();
        println!("| {name} | pretraining: reversing | | | {:.1} % | | {seconds} |", 100.0 * pretrained.exact_match);
        for (method, config, learning_rate) in METHODS {
            let start = Instant::now();
            let adapted = STUDY.adapt(&pretrained, config, *learning_rate);
            let [before, after] = adapted.exact_match.map(|share| 100.0 * share);
            let (values, [_, last], seconds) = (adapted.values, adapted.loss, start.elapsed().as_secs());
            println!("| {name} | {method} | {values} | {before:.1} % | {after:.1} % | {last:.3} | {seconds} |");
        }
    }
}
