//! Regular expressions as Python's `re` reads them, which is what PEFT's configuration keys hold.

use fancy_regex::Regex;

use crate::MethodError;

/// A compiled expression that knows where it comes from.
#[derive(Debug)]
pub(crate) struct Pattern {
    key: &'static str,
    source: String,
    regex: Regex,
}

impl Pattern {
    /// `re.fullmatch(source, …)`; `key` is the configuration's key, for errors.
    pub(crate) fn full(key: &'static str, source: &str) -> Result<Self, MethodError> {
        Self::new(key, source, &format!(r"\A(?:{source})\z"))
    }

    /// `re.match(expression, …)`, where `expression` was made from `source`.
    pub(crate) fn start(key: &'static str, source: &str, expression: &str) -> Result<Self, MethodError> {
        Self::new(key, source, &format!(r"\A(?:{expression})"))
    }

    fn new(key: &'static str, source: &str, expression: &str) -> Result<Self, MethodError> {
        let regex = Regex::new(expression).map_err(|reason| error(key, source, &reason))?;
        Ok(Self { key, source: source.to_owned(), regex })
    }

    /// Whether it matches.
    pub(crate) fn matches(&self, text: &str) -> Result<bool, MethodError> {
        self.regex.is_match(text).map_err(|reason| error(self.key, &self.source, &reason))
    }

    /// What the group `name` matched, if the expression does.
    pub(crate) fn capture<'t>(&self, text: &'t str, name: &str) -> Result<Option<&'t str>, MethodError> {
        let captures = self.regex.captures(text).map_err(|reason| error(self.key, &self.source, &reason))?;
        Ok(captures.and_then(|captures| captures.name(name)).map(|group| group.as_str()))
    }
}

fn error(key: &'static str, source: &str, reason: &fancy_regex::Error) -> MethodError {
    MethodError::Pattern { key, pattern: source.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_matches_need_the_whole_text_even_through_alternatives() {
        let pattern = Pattern::full("target_modules", r"a|ab").unwrap();
        assert!(pattern.matches("ab").unwrap());
        assert!(!pattern.matches("abc").unwrap());
        assert!(!pattern.matches("xa").unwrap());
    }

    #[test]
    fn lookaround_works_as_in_python() {
        let pattern = Pattern::full("target_modules", r".*layers\.(?!0\.).*q_proj").unwrap();
        assert!(pattern.matches("layers.1.q_proj").unwrap());
        assert!(!pattern.matches("layers.0.q_proj").unwrap());
    }

    #[test]
    fn a_broken_expression_names_its_key() {
        let error = Pattern::full("exclude_modules", "a(").unwrap_err().to_string();
        assert!(error.contains("'a(' in exclude_modules"), "{error}");
    }
}
