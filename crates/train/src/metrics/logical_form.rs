//! Logical form accuracy (Zhong, Xiong & Socher 2017), as WikiSQL's `Query.__eq__` decides it: a query is right if it
//! selects the same column with the same aggregate under the same set of conditions; case does not count.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::Regex;

use super::exact_match::evened;
use super::references::check_references;
use crate::TrainError;

/// The share of `queries` that mean the same as one of their references, 0 to 1. A text that is no query of WikiSQL's
/// kind, `SELECT [AGG] column FROM table [WHERE column op value [AND ...]]`, is right only if a reference is the same
/// text, but for case and white space.
///
/// # Errors
/// [`TrainError::References`].
pub fn logical_form_accuracy(queries: &[String], references: &[Vec<String>]) -> Result<f64, TrainError> {
    check_references(queries, references)?;
    let pairs = queries.iter().zip(references);
    let equal = pairs.filter(|(query, references)| references.iter().any(|known| means_the_same(query, known)));
    Ok(equal.count() as f64 / queries.len() as f64)
}

fn means_the_same(query: &str, reference: &str) -> bool {
    match (Query::parse(query), Query::parse(reference)) {
        (Some(query), Some(reference)) => query == reference,
        _ => evened(query) == evened(reference),
    }
}

/// A query of one table.
#[derive(Debug, PartialEq, Eq)]
struct Query {
    aggregate: String,
    column: String,
    /// Column, operator and value of each.
    conditions: BTreeSet<[String; 3]>,
}

impl Query {
    fn parse(text: &str) -> Option<Self> {
        static WHOLE: LazyLock<Regex> = LazyLock::new(|| {
            let aggregate = r"(?:(max|min|count|sum|avg)\b\s*\(?\s*)?";
            let pattern = format!(r"^select {aggregate}(\S.*?)\s?\)? from (?:the )?table\S*(?: where (.+?))?\s?;?$");
            Regex::new(&pattern).expect("the pattern is constant")
        });
        let text = evened(text);
        let parts = WHOLE.captures(&text)?;
        let part = |place| parts.get(place).map_or("", |part| part.as_str());
        Some(Self { aggregate: part(1).to_owned(), column: part(2).to_owned(), conditions: conditions(part(3))? })
    }
}

fn conditions(text: &str) -> Option<BTreeSet<[String; 3]>> {
    static CONDITION: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^(\S.*?) ?([=<>]) ?(.*)$").expect("the pattern is constant"));
    let mut found: Vec<[String; 3]> = Vec::new();
    for part in text.split(" and ").filter(|part| !part.is_empty()) {
        match (CONDITION.captures(part), found.last_mut()) {
            (Some(parts), _) => found.push([1, 2, 3].map(|place| parts[place].to_owned())),
            // An `and` within a value.
            (None, Some([_, _, value])) => *value += &format!(" and {part}"),
            (None, None) => return None,
        }
    }
    let unquoted = |value: &str| value.trim_matches(['\'', '"']).trim().to_owned();
    Some(found.into_iter().map(|[column, operator, value]| [column, operator, unquoted(&value)]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Table {
        cases: Vec<Case>,
    }

    #[derive(serde::Deserialize)]
    struct Case {
        hypothesis: String,
        references: Vec<String>,
        equal: bool,
    }

    #[test]
    fn queries_are_equal_where_those_of_wikisql_are() {
        let table: Table = serde_json::from_str(include_str!("../../tests/data/metrics/logical_forms.json")).unwrap();
        assert_eq!(table.cases.len(), 169);
        assert!(table.cases.iter().filter(|case| case.equal).count() > 13);
        for Case { hypothesis, references, equal } in table.cases {
            let found =
                logical_form_accuracy(std::slice::from_ref(&hypothesis), std::slice::from_ref(&references)).unwrap();
            assert_eq!(found == 1.0, equal, "{hypothesis} and {references:?}");
        }
    }

    #[test]
    fn quotes_brackets_and_an_and_within_a_value_are_understood() {
        let same = |a, b| assert!(means_the_same(a, b), "{:?} {:?}", Query::parse(a), Query::parse(b));
        same(
            "SELECT COUNT(Player) FROM table WHERE A = 'x' AND B > 3;",
            "select count player from table where b>3 and a = x",
        );
        same(
            "SELECT a FROM table WHERE b = salt and pepper AND c < 2",
            "SELECT a FROM table WHERE c < 2 AND b = Salt and Pepper",
        );
        assert!(!means_the_same("SELECT a FROM table WHERE b = salt", "SELECT a FROM table WHERE b = salt and pepper"));
        assert!(!means_the_same("no query", "SELECT a FROM table") && means_the_same("no  Query", "No query"));
    }
}
