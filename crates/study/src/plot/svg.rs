//! Drawing into SVG, in the colours of a page that may be light or dark, or in those of paper.

use std::fmt::Write as _;

/// Where a plot is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Theme {
    /// Within a page whose style sheet names the colours.
    Page,
    /// In a file of its own, dark on white.
    Paper,
}

/// What something is drawn in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    /// Text and axes.
    Text,
    /// What stands back: ticks, less important text.
    Soft,
    /// Lines of the grid.
    Grid,
    /// The background.
    Back,
    /// The line or group of that number.
    Series(usize),
}

/// Colours of series that people with any kind of colour vision tell apart (Okabe and Ito 2008), dark enough for white.
const SERIES: [&str; 8] = ["#0072b2", "#c4510a", "#00805e", "#a8457f", "#8a6d00", "#3a86c8", "#5b5b5b", "#7a4fb5"];

impl Ink {
    fn css(self, theme: Theme) -> String {
        match (self, theme) {
            (Self::Text, Theme::Page) => "var(--text)".to_owned(),
            (Self::Soft, Theme::Page) => "var(--soft)".to_owned(),
            (Self::Grid, Theme::Page) => "var(--grid)".to_owned(),
            (Self::Back, Theme::Page) => "var(--back)".to_owned(),
            (Self::Series(number), Theme::Page) => format!("var(--series-{})", number % SERIES.len()),
            (Self::Text, Theme::Paper) => "#1b1b1b".to_owned(),
            (Self::Soft, Theme::Paper) => "#5a5a5a".to_owned(),
            (Self::Grid, Theme::Paper) => "#dcdcdc".to_owned(),
            (Self::Back, Theme::Paper) => "#ffffff".to_owned(),
            (Self::Series(number), Theme::Paper) => SERIES[number % SERIES.len()].to_owned(),
        }
    }
}

/// Where a text is fastened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// The size of text.
pub(super) const FONT: f64 = 13.0;

/// A picture under way. Lengths are in its own units, from the upper left corner.
pub(super) struct Canvas {
    theme: Theme,
    width: f64,
    height: f64,
    body: String,
}

impl Canvas {
    pub(super) fn new(theme: Theme, width: f64, height: f64) -> Self {
        Self { theme, width, height, body: String::new() }
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), ink: Ink, width: f64) {
        let css = ink.css(self.theme);
        self.push(&format!(
            "<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" style=\"stroke:{css};stroke-width:{width}\"/>",
            short(from.0),
            short(from.1),
            short(to.0),
            short(to.1)
        ));
    }

    pub(super) fn path(&mut self, points: &[(f64, f64)], ink: Ink, width: f64) {
        let css = ink.css(self.theme);
        self.push(&format!(
            "<polyline points=\"{}\" style=\"fill:none;stroke:{css};stroke-width:{width};stroke-linejoin:round\"/>",
            listed(points)
        ));
    }

    pub(super) fn area(&mut self, points: &[(f64, f64)], ink: Ink, opacity: f64) {
        let css = ink.css(self.theme);
        self.push(&format!("<polygon points=\"{}\" style=\"fill:{css};fill-opacity:{opacity}\"/>", listed(points)));
    }

    /// A rectangle that says `title` when it is pointed at.
    pub(super) fn rectangle(&mut self, at: (f64, f64), size: (f64, f64), ink: Ink, opacity: f64, title: &str) {
        let css = ink.css(self.theme);
        let shape = format!(
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" style=\"fill:{css};fill-opacity:{}\">",
            short(at.0),
            short(at.1),
            short(size.0),
            short(size.1),
            short(opacity)
        );
        self.push(&format!("{shape}{}</rect>", titled(title)));
    }

    /// The sign of a series, which says `title` when it is pointed at.
    pub(super) fn mark(&mut self, at: (f64, f64), series: usize, title: &str) {
        let (x, y) = at;
        let css = Ink::Series(series).css(self.theme);
        let back = Ink::Back.css(self.theme);
        let style = format!("style=\"fill:{css};stroke:{back};stroke-width:1\"");
        let corners = |points: &[(f64, f64)]| {
            let moved: Vec<(f64, f64)> = points.iter().map(|(dx, dy)| (x + dx, y + dy)).collect();
            format!("<polygon points=\"{}\" {style}>{}</polygon>", listed(&moved), titled(title))
        };
        let shape = match series % 5 {
            0 => {
                format!("<circle cx=\"{}\" cy=\"{}\" r=\"4.5\" {style}>{}</circle>", short(x), short(y), titled(title))
            }
            1 => corners(&[(-4.2, -4.2), (4.2, -4.2), (4.2, 4.2), (-4.2, 4.2)]),
            2 => corners(&[(0.0, -5.2), (5.2, 4.2), (-5.2, 4.2)]),
            3 => corners(&[(0.0, -5.8), (5.8, 0.0), (0.0, 5.8), (-5.8, 0.0)]),
            _ => corners(&[(0.0, 5.2), (5.2, -4.2), (-5.2, -4.2)]),
        };
        self.push(&shape);
    }

    pub(super) fn text(&mut self, at: (f64, f64), anchor: Anchor, ink: Ink, text: &str) {
        self.text_turned(at, anchor, ink, text, 0.0);
    }

    pub(super) fn text_turned(&mut self, at: (f64, f64), anchor: Anchor, ink: Ink, text: &str, degrees: f64) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let (x, y, css) = (short(at.0), short(at.1), ink.css(self.theme));
        let turn = if degrees == 0.0 { String::new() } else { format!(" transform=\"rotate({degrees} {x} {y})\"") };
        self.push(&format!(
            "<text x=\"{x}\" y=\"{y}\"{turn} style=\"fill:{css};text-anchor:{anchor}\">{}</text>",
            escaped(text)
        ));
    }

    fn push(&mut self, element: &str) {
        self.body.push_str(element);
        self.body.push('\n');
    }

    /// The picture; `description` is what is read out in its place.
    pub(super) fn finish(self, description: &str) -> String {
        let (width, height) = (short(self.width), short(self.height));
        let size = match self.theme {
            Theme::Page => String::new(),
            Theme::Paper => format!(" width=\"{width}\" height=\"{height}\""),
        };
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\"{size} role=\"img\" \
             aria-label=\"{}\" font-family=\"'DejaVu Sans',system-ui,sans-serif\" font-size=\"{FONT}\">\n",
            escaped(description)
        );
        if self.theme == Theme::Paper {
            let back = Ink::Back.css(self.theme);
            let _ = writeln!(svg, "<rect width=\"{width}\" height=\"{height}\" style=\"fill:{back}\"/>");
        }
        svg + &self.body + "</svg>"
    }
}

/// The width of a text, roughly.
pub(super) fn width_of(text: &str) -> f64 {
    text.chars().map(|letter| if "il.,:;'|()[] ".contains(letter) { 0.36 } else { 0.62 }).sum::<f64>() * FONT
}

/// A length with two decimals at most.
fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

fn listed(points: &[(f64, f64)]) -> String {
    points.iter().map(|(x, y)| format!("{},{}", short(*x), short(*y))).collect::<Vec<_>>().join(" ")
}

fn titled(title: &str) -> String {
    if title.is_empty() { String::new() } else { format!("<title>{}</title>", escaped(title)) }
}

/// A text as XML and HTML have it.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}
