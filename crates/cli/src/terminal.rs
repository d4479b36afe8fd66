//! What is said beside the results: notes and warnings on standard error.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

/// Writes a line to standard error. That it may be closed is no reason to stop.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Writes a warning to standard error.
pub(crate) fn warn(text: impl Display) {
    note(format_args!("warning: {text}"));
}

/// Whether a person watches standard error.
pub(crate) fn is_watched() -> bool {
    io::stderr().is_terminal()
}
