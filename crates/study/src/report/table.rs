//! Tables as text, Markdown and HTML.

use crate::plot::escaped;

/// A table.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Table {
    /// What it shows.
    pub(super) title: String,
    /// What is to be known of it.
    pub(super) note: String,
    pub(super) head: Vec<String>,
    pub(super) rows: Vec<Vec<Cell>>,
}

/// A cell of a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Cell {
    pub(super) text: String,
    /// Whether it is the best of its column.
    pub(super) best: bool,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, best: false }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl Table {
    /// As Markdown.
    pub(super) fn markdown(&self) -> String {
        let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = line(self.head.iter().map(|head| cell(head)).collect());
        let rule = |place: usize| if place == 0 { "---" } else { "---:" };
        text += &format!("|{}|\n", (0..self.head.len()).map(rule).collect::<Vec<_>>().join("|"));
        for row in &self.rows {
            let bold = |of: &Cell| if of.best { format!("**{}**", cell(&of.text)) } else { cell(&of.text) };
            text += &line(row.iter().map(bold).collect());
        }
        text
    }

    /// As HTML, which scrolls by itself where it is too wide.
    pub(super) fn html(&self) -> String {
        let mut html = "<div class=\"scroll\"><table>\n<thead><tr>".to_owned();
        html.extend(self.head.iter().map(|head| format!("<th scope=\"col\">{}</th>", escaped(head))));
        html += "</tr></thead>\n<tbody>\n";
        for row in &self.rows {
            html += "<tr>";
            for (place, cell) in row.iter().enumerate() {
                let text = escaped(&cell.text);
                html += &match (place, cell.best) {
                    (0, _) => format!("<th scope=\"row\">{text}</th>"),
                    (_, true) => format!("<td><strong>{text}</strong></td>"),
                    (_, false) => format!("<td>{text}</td>"),
                };
            }
            html += "</tr>\n";
        }
        html + "</tbody></table></div>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_mark_the_best_and_escape_what_is_theirs() {
        let rows = vec![vec!["a|b".into(), Cell { text: "1 < 2".into(), best: true }]];
        let table = Table { head: vec!["x".into(), "y".into()], rows, ..Table::default() };
        assert_eq!(table.markdown(), "| x | y |\n|---|---:|\n| a\\|b | **1 < 2** |\n");
        assert!(table.html().contains("<th scope=\"row\">a|b</th><td><strong>1 &lt; 2</strong></td>"));
    }
}
