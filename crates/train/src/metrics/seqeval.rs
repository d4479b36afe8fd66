//! Entities found in tagged tokens (CoNLL 2000), equal to the package `seqeval` in its default mode: tags are `O` or a
//! prefix (`B`, `I`, `E`, `S`), a dash and a type; an entity is right if type, beginning and end are.

use std::collections::BTreeSet;

use super::accuracy;

/// What seqeval reports of all types together, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entities {
    /// Right ones among those predicted; 0 where none is.
    pub precision: f64,
    /// Right ones among those labelled; 0 where none is.
    pub recall: f64,
    /// The harmonic mean of the two.
    pub f1: f64,
    /// Tokens with the right tag, `O` included.
    pub accuracy: f64,
}

/// Compares predicted with labelled tags, sentence by sentence.
pub fn seqeval(predictions: &[Vec<String>], labels: &[Vec<String>]) -> Entities {
    let (found, known) = (entities(predictions), entities(labels));
    let right = found.intersection(&known).count() as f64;
    let share = |of: usize| if of == 0 { 0.0 } else { right / of as f64 };
    let (precision, recall) = (share(found.len()), share(known.len()));
    let f1 = if right == 0.0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) };
    let flat = |tags: &[Vec<String>]| tags.iter().flatten().cloned().collect::<Vec<_>>();
    Entities { precision, recall, f1, accuracy: accuracy(&flat(predictions), &flat(labels)) }
}

/// Sentence, type, first and last token of every entity.
fn entities(sentences: &[Vec<String>]) -> BTreeSet<(usize, &str, usize, usize)> {
    let mut found = BTreeSet::new();
    for (sentence, tags) in sentences.iter().enumerate() {
        let (mut before, mut begin) = (("O", "_"), 0);
        for (place, tag) in tags.iter().map(String::as_str).chain(["O"]).enumerate() {
            let now = parts(tag);
            if ends(before, now) {
                found.insert((sentence, before.1, begin, place - 1));
            }
            if begins(before, now) {
                begin = place;
            }
            before = now;
        }
    }
    found
}

/// The prefix and the type of a tag.
fn parts(tag: &str) -> (&str, &str) {
    let prefix = tag.chars().next().map_or(0, char::len_utf8);
    let (prefix, rest) = tag.split_at(prefix);
    let kind = rest.split_once('-').map_or(rest, |(_, kind)| kind);
    (prefix, if kind.is_empty() { "_" } else { kind })
}

fn ends(before: (&str, &str), now: (&str, &str)) -> bool {
    match (before.0, now.0) {
        ("E" | "S", _) | ("B" | "I", "B" | "S" | "O") => true,
        ("O" | ".", _) => false,
        _ => before.1 != now.1,
    }
}

fn begins(before: (&str, &str), now: (&str, &str)) -> bool {
    match (before.0, now.0) {
        (_, "B" | "S") | ("E" | "S" | "O", "E" | "I") => true,
        (_, "O" | ".") => false,
        _ => before.1 != now.1,
    }
}
