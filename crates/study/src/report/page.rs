//! The report as one page that needs nothing else.

use super::Report;
use super::table::Table;
use crate::plot::{Plot, Theme, escaped};

const STYLE: &str = include_str!("page.css");

/// The page.
pub(super) fn html(report: &Report) -> String {
    let title = escaped(&report.title);
    let mut body = format!("<h1>{title}</h1>\n");
    if !report.question.is_empty() {
        body += &format!("<p>{}</p>\n", escaped(&report.question));
    }
    body += &format!("<p class=\"meta\">{}</p>\n", escaped(&report.made_by));
    let sections = [
        ("scores", "Scores", scores(report)),
        ("published", "What papers report", published(report)),
        ("cost", "Cost", table(&report.cost, false)),
        ("curves", "Learning curves", figures(&report.curves)),
        ("subspaces", "Subspaces", figures(&report.heat_maps)),
        ("samples", "Outputs side by side", samples(report)),
        ("metrics", "All metrics", tables(&report.details, true)),
        ("rates", "Learning rates", tables(report.rates.as_slice(), false)),
        ("failures", "Failed and missing runs", tables(report.failures.as_slice(), false)),
        ("repeat", "How to repeat it", repeat(report)),
    ];
    let kept: Vec<_> = sections.into_iter().filter(|(_, _, content)| !content.is_empty()).collect();
    let links = kept.iter().map(|(id, name, _)| format!("<a href=\"#{id}\">{name}</a>"));
    body += &format!("<nav>{}</nav>\n", links.collect::<Vec<_>>().join(" "));
    for (id, name, content) in kept {
        body += &format!("<section id=\"{id}\">\n<h2>{name}</h2>\n{content}</section>\n");
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

fn scores(report: &Report) -> String {
    let mut html = table(&report.main, false);
    html += &figures(&report.plots);
    html + &tables(&report.more, true)
}

fn published(report: &Report) -> String {
    if report.published.is_empty() {
        return String::new();
    }
    let lead = "<p class=\"note\">Quoted from the papers, on their models, data and budgets; nothing of it was measured here.</p>\n";
    let tables: String =
        report.published.iter().map(|of| format!("<blockquote>\n{}</blockquote>\n", table(of, true))).collect();
    lead.to_owned() + &tables
}

fn tables(tables: &[Table], titled: bool) -> String {
    tables.iter().map(|of| table(of, titled)).collect()
}

fn table(table: &Table, titled: bool) -> String {
    let title = if titled { format!("<h3>{}</h3>\n", escaped(&table.title)) } else { String::new() };
    let note =
        if table.note.is_empty() { String::new() } else { format!("<p class=\"note\">{}</p>\n", escaped(&table.note)) };
    title + &note + &table.html()
}

fn figures(plots: &[Plot]) -> String {
    if plots.is_empty() {
        return String::new();
    }
    let figure = |plot: &Plot| {
        format!("<figure>\n{}\n<figcaption>{}</figcaption>\n</figure>\n", plot.svg(Theme::Page), escaped(&plot.caption))
    };
    format!("<div class=\"figures\">\n{}</div>\n", plots.iter().map(figure).collect::<String>())
}

fn samples(report: &Report) -> String {
    let mut html = String::new();
    for sample in &report.samples {
        let task = if sample.task.is_empty() { String::new() } else { format!("{}: ", escaped(&sample.task)) };
        html += &format!("<div class=\"sample\">\n<dl><dt>{task}input</dt><dd>{}</dd>\n", escaped(&sample.input));
        html += &format!("<dt>right</dt><dd>{}</dd>\n", escaped(&sample.expected));
        for (row, output) in &sample.outputs {
            html += &format!("<dt>{}</dt><dd>{}</dd>\n", escaped(row), escaped(output));
        }
        html += "</dl>\n</div>\n";
    }
    html
}

fn repeat(report: &Report) -> String {
    format!(
        "<p>{}</p>\n<details><summary>The study's configuration</summary>\n<pre>{}</pre></details>\n",
        escaped(&report.how_to_repeat),
        escaped(&report.configuration)
    )
}
