//! The program `tunesmith`.

fn main() {}
