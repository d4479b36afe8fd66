//! The README's table of results, between two markers.

use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::results::Results;

const BEGIN: &str = "<!-- benchmarks: written by `cargo xtask readme` -->\n";
const END: &str = "<!-- benchmarks end -->";

/// Puts the table of the latest results into README.md.
pub(crate) fn write(repository: &Path) -> anyhow::Result<()> {
    let path = repository.join("README.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = with_table(&text, &latest_table(repository)?)?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The table of the latest results, or that there are none.
fn latest_table(repository: &Path) -> anyhow::Result<String> {
    let none = || "Not measured against peers yet: `cargo xtask bench-peers` does.\n".to_owned();
    Ok(Results::latest(repository)?.map_or_else(none, |results| results.table()))
}

/// `text` with `table` between the markers.
fn with_table(text: &str, table: &str) -> anyhow::Result<String> {
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.context("README.md has no markers for the benchmarks' table")?;
    Ok(format!("{before}{BEGIN}{table}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_takes_the_place_of_the_one_before() {
        let text = format!("Title\n{BEGIN}old\n{END}\nrest\n");
        assert_eq!(with_table(&text, "new\n").unwrap(), format!("Title\n{BEGIN}new\n{END}\nrest\n"));
        assert!(with_table("Title", "new\n").is_err());
    }

    #[test]
    fn the_readme_shows_the_latest_results() {
        let repository = crate::repository();
        let text = fs::read_to_string(repository.join("README.md")).unwrap();
        let table = latest_table(&repository).unwrap();
        assert_eq!(with_table(&text, &table).unwrap(), text, "run `cargo xtask readme`");
    }
}
