//! The report as Markdown, with plots as files beside it.

use super::Report;
use super::table::Table;
use crate::plot::Plot;

/// The text.
pub(super) fn markdown(report: &Report) -> String {
    let mut text = format!("# {}\n\n", report.title);
    if !report.question.is_empty() {
        text += &format!("{}\n\n", report.question);
    }
    text += &format!("{}\n\n", report.made_by);
    text += &section("## Scores", std::slice::from_ref(&report.main), &report.plots);
    for table in &report.more {
        text += &section(&format!("### {}", table.title), std::slice::from_ref(table), &[]);
    }
    if !report.published.is_empty() {
        text += "## What papers report\n\nQuoted from the papers, on their models, data and budgets; nothing of it was measured here.\n\n";
        for table in &report.published {
            text += &section(&format!("### {}", table.title), std::slice::from_ref(table), &[]);
        }
    }
    text += &section("## Cost", std::slice::from_ref(&report.cost), &[]);
    text += &section("## Learning curves", &[], &report.curves);
    text += &section("## Subspaces", &[], &report.heat_maps);
    if !report.samples.is_empty() {
        text += "## Outputs side by side\n\n";
        for sample in &report.samples {
            let task = if sample.task.is_empty() { String::new() } else { format!("{}: ", sample.task) };
            text += &format!("**{task}input** {}\n\n- right: {}\n", line(&sample.input), line(&sample.expected));
            text.extend(sample.outputs.iter().map(|(row, output)| format!("- {row}: {}\n", line(output))));
            text += "\n";
        }
    }
    for table in &report.details {
        text += &section(&format!("## {}", table.title), std::slice::from_ref(table), &[]);
    }
    text += &section("## Learning rates", report.rates.as_slice(), &[]);
    text += &section("## Failed and missing runs", report.failures.as_slice(), &[]);
    text + &format!("## How to repeat it\n\n{}\n\n```yaml\n{}```\n", report.how_to_repeat, report.configuration)
}

fn section(head: &str, tables: &[Table], plots: &[Plot]) -> String {
    if tables.is_empty() && plots.is_empty() {
        return String::new();
    }
    let mut text = format!("{head}\n\n");
    for table in tables {
        if !table.note.is_empty() {
            text += &format!("{}\n\n", table.note);
        }
        text += &(table.markdown() + "\n");
    }
    for plot in plots {
        text += &format!("![{}]({}.svg)\n\n", plot.caption, plot.name);
    }
    text
}

fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
