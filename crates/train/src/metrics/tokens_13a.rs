//! The tokens of mteval-v13a.pl, the script of WMT and of the E2E challenge (sacrebleu's `13a`).

use std::sync::LazyLock;

use regex::Regex;

/// The tokens of a line, case kept.
pub(super) fn tokenize(line: &str) -> Vec<String> {
    static RULES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
        let rule = |pattern, replacement| (Regex::new(pattern).expect("the pattern is constant"), replacement);
        [
            rule(r"([{-~\[-` -&(-+:-@/])", " ${1} "),
            // Period and comma stand alone unless a digit comes before, or after.
            rule(r"([^0-9])([.,])", "${1} ${2} "),
            rule(r"([.,])([^0-9])", " ${1} ${2}"),
            // A dash stands alone after a digit.
            rule(r"([0-9])(-)", "${1} ${2} "),
        ]
    });
    let line = line.trim_end_matches(is_space);
    let mut line = line.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    for (escaped, character) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        line = line.replace(escaped, character);
    }
    line = format!(" {line} ");
    for (pattern, replacement) in RULES.iter() {
        line = pattern.replace_all(&line, *replacement).into_owned();
    }
    words(&line).map(str::to_owned).collect()
}

/// The words of a text, split as Python's `str.split` does.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// White space as Python's `str.split` knows it: Unicode's, and four separators of ASCII.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}
