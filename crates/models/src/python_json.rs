//! JSON written as Python's `json.dumps` does, for chat templates that were made for it.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

/// `json.dumps(value, ensure_ascii=False, indent=…, separators=(…, …))`.
pub(crate) fn dumps(value: &Value, indent: Option<usize>, separators: Option<(String, String)>) -> String {
    let (item, key) =
        separators.unwrap_or_else(|| (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()));
    let mut out = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut out, Python { indent, item, key, depth: 0, empty: true });
    value.serialize(&mut serializer).expect("a JSON value can be written to memory");
    String::from_utf8(out).expect("JSON is UTF-8")
}

struct Python {
    indent: Option<usize>,
    item: String,
    key: String,
    depth: usize,
    /// Whether nothing has been written in the innermost container.
    empty: bool,
}

impl Python {
    fn open<W: Write + ?Sized>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        writer.write_all(bracket)
    }

    fn close<W: Write + ?Sized>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.empty {
            self.line(writer)?;
        }
        self.empty = false;
        writer.write_all(bracket)
    }

    fn begin<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.line(writer)
    }

    fn line<W: Write + ?Sized>(&self, writer: &mut W) -> io::Result<()> {
        match self.indent {
            None => Ok(()),
            Some(indent) => write!(writer, "\n{:1$}", "", indent * self.depth),
        }
    }
}

impl Formatter for Python {
    fn begin_array<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin(writer, first)
    }

    fn end_array_value<W: Write + ?Sized>(&mut self, _writer: &mut W) -> io::Result<()> {
        self.empty = false;
        Ok(())
    }

    fn begin_object<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin(writer, first)
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: Write + ?Sized>(&mut self, _writer: &mut W) -> io::Result<()> {
        self.empty = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn writes_what_python_writes() {
        let value = json!({"b": [1, 2.5, {"é": "<&\"\n>"}], "a": {}, "c": [], "d": null, "e": true});
        // python -c 'import json; print(json.dumps(…, ensure_ascii=False))', and with indent=2.
        assert_eq!(
            dumps(&value, None, None),
            r#"{"b": [1, 2.5, {"é": "<&\"\n>"}], "a": {}, "c": [], "d": null, "e": true}"#
        );
        assert_eq!(
            dumps(&value, Some(2), None),
            "{\n  \"b\": [\n    1,\n    2.5,\n    {\n      \"é\": \"<&\\\"\\n>\"\n    }\n  ],\n  \"a\": {},\n  \
             \"c\": [],\n  \"d\": null,\n  \"e\": true\n}"
        );
        let compact = Some((",".to_owned(), ":".to_owned()));
        assert_eq!(dumps(&json!({"a": [1, 2]}), None, compact), r#"{"a":[1,2]}"#);
    }
}
