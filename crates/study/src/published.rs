//! Published tables that studies quote beside their own numbers, never among them.

use std::sync::LazyLock;

use serde::Deserialize;

/// A table as a paper prints it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedTable {
    /// Its name in studies.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// Where it stands.
    pub source: String,
    /// What its numbers are, and what is to be known of them.
    pub note: String,
    /// The heads of its columns, that of the rows' names first.
    pub columns: Vec<String>,
    /// Its rows.
    pub rows: Vec<Vec<String>>,
}

static TABLES: LazyLock<Vec<PublishedTable>> = LazyLock::new(|| {
    serde_saphyr::from_str(include_str!("../published.yaml")).expect("the published tables are read by a test")
});

/// The table of that name.
pub fn find(name: &str) -> Option<&'static PublishedTable> {
    TABLES.iter().find(|table| table.name == name)
}

/// The names of all tables.
pub fn names() -> Vec<&'static str> {
    TABLES.iter().map(|table| table.name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_a_table_with_a_source() {
        assert!(TABLES.len() > 5);
        for table in TABLES.iter() {
            assert!(table.source.contains("20"), "{}", table.name);
            assert!(table.rows.iter().all(|row| row.len() == table.columns.len()), "{}", table.name);
        }
    }
}
