//! The stemmer of Porter 1980 ("An algorithm for suffix stripping") with NLTK's changes, equal to `nltk.PorterStemmer()`:
//! what `rouge_score` and NLTK's METEOR stem with. Other implementations of Porter's give other stems.

/// Words that have their stem by decree.
const IRREGULAR: [(&str, &str); 16] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// A suffix and what takes its place.
type Rule = (&'static str, &'static str);

const STEP_2: [Rule; 21] = [
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("fulli", "ful"),
];

const STEP_3: [Rule; 7] =
    [("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", "")];

const STEP_4: [&str; 19] = [
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate", "iti",
    "ous", "ive", "ize",
];

/// The stem of a word in lower case.
pub(super) fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(irregular, _)| *irregular == word) {
        return (*stem).to_owned();
    }
    if word.chars().count() <= 2 {
        return word.to_owned();
    }
    let word = step_1c(step_1b(step_1a(word.to_owned())));
    step_5(step_4(first_rule(step_2(word), &STEP_3)))
}

fn step_1a(word: String) -> String {
    if word.ends_with("ies") && word.chars().count() == 4 {
        return without(&word, "s").to_owned();
    }
    for (suffix, replacement) in [("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")] {
        if word.ends_with(suffix) {
            return without(&word, suffix).to_owned() + replacement;
        }
    }
    word
}

fn step_1b(word: String) -> String {
    if word.ends_with("ied") {
        let suffix = if word.chars().count() == 4 { "d" } else { "ed" };
        return without(&word, suffix).to_owned();
    }
    if word.ends_with("eed") {
        let suffix = if measure(without(&word, "eed")) > 0 { "d" } else { "" };
        return without(&word, suffix).to_owned();
    }
    let stems = ["ed", "ing"].into_iter().filter(|suffix| word.ends_with(suffix)).map(|suffix| without(&word, suffix));
    let Some(stem) = stems.into_iter().find(|stem| consonants(stem).contains(&false)) else { return word };
    if ["at", "bl", "iz"].iter().any(|end| stem.ends_with(end)) {
        return format!("{stem}e");
    }
    if ends_in_double_consonant(stem) {
        let kept = ["l", "s", "z"].iter().any(|end| stem.ends_with(end));
        return if kept { stem.to_owned() } else { without_last(stem).to_owned() };
    }
    if measure(stem) == 1 && ends_cvc(stem) { format!("{stem}e") } else { stem.to_owned() }
}

/// NLTK's rule: `y` after a consonant that is not the first letter becomes `i`.
fn step_1c(word: String) -> String {
    match word.strip_suffix('y') {
        Some(stem) if stem.chars().count() > 1 && consonants(stem).last() == Some(&true) => format!("{stem}i"),
        _ => word,
    }
}

fn step_2(word: String) -> String {
    if word.ends_with("alli") && measure(without(&word, "alli")) > 0 {
        return step_2(without(&word, "li").to_owned());
    }
    if !STEP_2.iter().any(|(suffix, _)| word.ends_with(suffix)) && word.ends_with("logi") {
        // The measure is that of the stem with its `l`, as NLTK takes it.
        return if measure(without(&word, "ogi")) > 0 { without(&word, "i").to_owned() } else { word };
    }
    first_rule(word, &STEP_2)
}

fn step_4(word: String) -> String {
    let Some(suffix) = STEP_4.iter().find(|suffix| word.ends_with(**suffix)) else { return word };
    let stem = without(&word, suffix);
    let holds = measure(stem) > 1 && (*suffix != "ion" || stem.ends_with(['s', 't']));
    if holds { stem.to_owned() } else { word }
}

fn step_5(word: String) -> String {
    let mut word = word;
    if let Some(stem) = word.strip_suffix('e') {
        let measure = measure(stem);
        if measure > 1 || (measure == 1 && !ends_cvc(stem)) {
            word = stem.to_owned();
        }
    }
    if word.ends_with("ll") && measure(without_last(&word)) > 1 {
        word.pop();
    }
    word
}

/// Applies the first rule whose suffix the word has, if the stem before it has a positive measure.
fn first_rule(word: String, rules: &[Rule]) -> String {
    let Some((suffix, replacement)) = rules.iter().find(|(suffix, _)| word.ends_with(suffix)) else { return word };
    let stem = without(&word, suffix);
    if measure(stem) > 0 { format!("{stem}{replacement}") } else { word }
}

fn without<'a>(word: &'a str, suffix: &str) -> &'a str {
    word.strip_suffix(suffix).unwrap_or(word)
}

fn without_last(word: &str) -> &str {
    let mut characters = word.chars();
    characters.next_back();
    characters.as_str()
}

/// For each letter whether it is a consonant; `y` is one unless a consonant stands before it.
fn consonants(word: &str) -> Vec<bool> {
    let mut flags: Vec<bool> = Vec::with_capacity(word.len());
    for letter in word.chars() {
        flags.push(match letter {
            'a' | 'e' | 'i' | 'o' | 'u' => false,
            'y' => !flags.last().copied().unwrap_or(false),
            _ => true,
        });
    }
    flags
}

/// Porter's `m`: how often a consonant follows a vowel.
fn measure(stem: &str) -> usize {
    consonants(stem).windows(2).filter(|pair| **pair == [false, true]).count()
}

/// Porter's `*d`.
fn ends_in_double_consonant(word: &str) -> bool {
    let mut backwards = word.chars().rev();
    let last = backwards.next();
    last.is_some() && last == backwards.next() && consonants(word).last() == Some(&true)
}

/// Porter's `*o`, and NLTK's addition: a vowel and a consonant alone.
fn ends_cvc(word: &str) -> bool {
    match consonants(word)[..] {
        [.., true, false, true] => !word.ends_with(['w', 'x', 'y']),
        [false, true] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Table {
        cases: Vec<(String, String)>,
    }

    #[test]
    fn every_stem_equals_that_of_nltk() {
        let table: Table = serde_json::from_str(include_str!("../../tests/data/metrics/porter.json")).unwrap();
        assert!(table.cases.len() > 3000);
        let wrong: Vec<_> = table.cases.iter().filter(|(word, expected)| stem(word) != *expected).collect();
        let shown: Vec<_> = wrong.iter().take(20).map(|(word, expected)| (word, stem(word), expected)).collect();
        assert!(wrong.is_empty(), "{} differ (word, found, expected): {shown:?}", wrong.len());
    }
}
