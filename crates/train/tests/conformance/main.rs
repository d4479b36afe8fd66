//! Conformance: every architecture × every method against the numbers of the reference implementations.
//!
//! Reads the fixtures folder that `TUNESMITH_FIXTURES` names (default: the committed one). Prints a line a case and a
//! closing count; fails if a case fails, or if the folder holds a case that is neither run nor listed in
//! [`skips::reason`]. Tolerance: 1e-4 of the reference tensor's largest value.

mod bf16;
mod case;
mod compare;
mod fixture;
mod nf4;
mod qlora;
mod real;
mod real_minilm;
mod skips;
mod start;
mod task;
mod torch_random;
mod virtual_tokens;

use std::path::PathBuf;

/// What became of one case.
pub(crate) enum Outcome {
    Passed(String),
    Failed(String),
    Skipped(String),
}

#[test]
fn conformance() {
    let root = fixture::root();
    let mut counts = [0usize; 3];
    let mut report = |name: &str, outcome: Outcome| {
        let (place, word, text) = match outcome {
            Outcome::Passed(text) => (0, "ok", text),
            Outcome::Failed(text) => (1, "FAILED", text),
            Outcome::Skipped(text) => (2, "skipped:", text),
        };
        counts[place] += 1;
        println!("{name} {word} {text}");
    };
    for architecture in fixture::folders(&root) {
        let arch = fixture::name(&architecture);
        if !fixture::is_cases(&architecture) {
            continue;
        }
        if arch == "real" {
            report("real/smollm2", real::smollm2(&architecture));
            report("real/minilm", real_minilm::minilm(&architecture));
            continue;
        }
        if arch == "nf4" {
            report("nf4/all", nf4::codec(&architecture));
            continue;
        }
        if let Some(reason) = skips::reason(&arch, None) {
            for case in fixture::cases(&architecture) {
                report(&format!("{arch}/{case}"), Outcome::Skipped(reason.to_owned()));
            }
            continue;
        }
        for (way, base) in case::bases(&architecture) {
            let four_bit = architecture.join("model-4bit").exists();
            let of_base = if four_bit { qlora::base(&architecture, &base) } else { case::base(&architecture, &base) };
            report(&format!("{arch}/base{way}"), of_base);
            for method in fixture::folders(&architecture) {
                let name = fixture::name(&method);
                if name.starts_with("model") {
                    continue;
                }
                if four_bit {
                    for (part, outcome) in qlora::method(&architecture, &base, &method) {
                        report(&format!("{arch}/{name}{way}{part}"), outcome);
                    }
                    continue;
                }
                let outcome = match skips::reason(&arch, Some(&name)) {
                    Some(reason) => Outcome::Skipped(reason.to_owned()),
                    None => case::method(&architecture, &base, &method),
                };
                report(&format!("{arch}/{name}{way}"), outcome);
            }
        }
    }
    let [passed, failed, skipped] = counts;
    println!("cases: {passed} passed, {failed} failed, {skipped} skipped");
    assert!(passed > 0, "{} holds no case that runs", root.display());
    assert_eq!(failed, 0, "some cases differ from the reference");
}

/// Where base models lie: the folder that `TUNESMITH_CACHE` names, or the platform's cache folder.
pub(crate) fn base_model(file: &str) -> Option<PathBuf> {
    let named = std::env::var_os("TUNESMITH_CACHE").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/tunesmith"));
    named.into_iter().chain(home).map(|folder| folder.join("models").join(file)).find(|path| path.exists())
}
