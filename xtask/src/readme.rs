//! The README's tables of results, each between two markers.

use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::glue_results::GlueResults;
use crate::method_results::MethodResults;
use crate::results::Results;

const WRITTEN_BY: &str = "written by `cargo xtask readme`";

/// Puts the tables of the latest results into README.md.
pub(crate) fn write(repository: &Path) -> anyhow::Result<()> {
    let path = repository.join("README.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    fs::write(&path, with_tables(&text, repository)?).with_context(|| format!("cannot write {}", path.display()))
}

/// `text` with the tables of the latest results.
fn with_tables(text: &str, repository: &Path) -> anyhow::Result<String> {
    let peers = Results::latest(repository)?.map_or_else(
        || "Not measured against peers yet: `cargo xtask bench-peers` does.\n".to_owned(),
        |results| results.table(),
    );
    let methods = MethodResults::latest(repository)?
        .map_or_else(|| "Not measured yet: `cargo xtask bench-methods` does.\n".to_owned(), |results| results.table());
    let glue = match GlueResults::latest(repository)? {
        Some(results) => results.table(&crate::glue::methods(repository)?),
        None => "Not measured yet: `cargo xtask bench-glue` does.\n".to_owned(),
    };
    let mut text = text.to_owned();
    for (name, table) in [("benchmarks", peers), ("methods", methods), ("glue", glue)] {
        text = with_table(&text, name, &table)?;
    }
    Ok(text)
}

/// `text` with `table` between the markers of that name.
fn with_table(text: &str, name: &str, table: &str) -> anyhow::Result<String> {
    let (begin, end) = (format!("<!-- {name}: {WRITTEN_BY} -->\n"), format!("<!-- {name} end -->"));
    let parts = text.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    let (before, after) = parts.with_context(|| format!("README.md has no markers for the table of {name}"))?;
    Ok(format!("{before}{begin}{table}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_takes_the_place_of_the_one_before() {
        let text = |table| format!("Title\n<!-- methods: {WRITTEN_BY} -->\n{table}\n<!-- methods end -->\nrest\n");
        assert_eq!(with_table(&text("old"), "methods", "new\n").unwrap(), text("new"));
        assert!(with_table(&text("old"), "benchmarks", "new\n").is_err());
    }

    #[test]
    fn the_readme_shows_the_latest_results() {
        let repository = crate::repository();
        let text = fs::read_to_string(repository.join("README.md")).unwrap();
        assert_eq!(with_tables(&text, &repository).unwrap(), text, "run `cargo xtask readme`");
    }
}
