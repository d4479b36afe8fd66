//! Tokens of English as `pycocoevalcap` makes them: those of Stanford's PTBTokenizer in lower case, without most
//! punctuation.
//!
//! The original is a lexer of some thousand lines; these rules give its tokens of running text: clitics apart, hyphenated
//! words, numbers and abbreviations whole. Addresses, SGML beyond single tags and other scripts may differ.

use std::sync::LazyLock;

use regex::Regex;

/// The tokens of a text.
pub(super) fn tokenize(text: &str) -> Vec<String> {
    static LEXER: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(
            r"(?xi)
            </?[a-z][^<>\s]*>
            | \.{2,} | [?!]{2,} | --+
            | (?:[a-z]\.){2,}
            | \b(?:mr|mrs|ms|dr|prof|st|co|inc|ltd|corp|jr|sr|vs|etc)\.
            | '(?:s|m|d|re|ve|ll)\b | '\d0s\b | 'n'
            # Words and numbers, with what joins them.
            | [\#@]? (?: \p{N}+ (?:[.,:]\p{N}+)+ | [\p{L}\p{M}\p{N}_]+ )
              (?: ['/&-] (?: \p{N}+ (?:[.,:]\p{N}+)+ | [\p{L}\p{M}\p{N}_]+ ) )*
            | \S",
        )
        .expect("the pattern is constant")
    });
    let text = text.replace('’', "'");
    let mut tokens = Vec::new();
    for token in LEXER.find_iter(&text) {
        split_clitics(&token.as_str().to_lowercase(), &mut tokens);
    }
    tokens
}

const DROPPED: [&str; 14] = ["'", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", "\"", "“", "”"];

/// Pushes a token, its clitics apart; drops punctuation, and writes brackets and currency as the Treebank does.
fn split_clitics(token: &str, tokens: &mut Vec<String>) {
    let renamed = match token {
        "£" => "#",
        "€" => "$",
        "(" => "-lrb-",
        ")" => "-rrb-",
        "[" => "-lsb-",
        "]" => "-rsb-",
        "{" => "-lcb-",
        "}" => "-rcb-",
        "cannot" => return tokens.extend(["can", "not"].map(str::to_owned)),
        "gonna" => return tokens.extend(["gon", "na"].map(str::to_owned)),
        "gotta" => return tokens.extend(["got", "ta"].map(str::to_owned)),
        "wanna" => return tokens.extend(["wan", "na"].map(str::to_owned)),
        other => other,
    };
    let is_symbol = renamed.chars().all(|letter| !letter.is_alphanumeric() && !letter.is_ascii());
    let repeated = renamed.len() > 1 && renamed.chars().all(|mark| mark == '.' || mark == '-');
    if DROPPED.contains(&renamed) || is_symbol || repeated {
        return;
    }
    for clitic in ["n't", "'s", "'m", "'d", "'re", "'ve", "'ll"] {
        if let Some(word) = renamed.strip_suffix(clitic).filter(|word| !word.is_empty()) {
            split_clitics(word, tokens);
            tokens.push(clitic.to_owned());
            return;
        }
    }
    tokens.push(renamed.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Table {
        cases: Vec<(String, Vec<String>)>,
    }

    #[test]
    fn tokens_equal_those_of_the_original() {
        let table: Table = serde_json::from_str(include_str!("../../tests/data/metrics/ptb.json")).unwrap();
        assert!(table.cases.len() >= 20);
        for (text, expected) in table.cases {
            assert_eq!(tokenize(&text), expected, "{text}");
        }
    }
}
