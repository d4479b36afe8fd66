//! Files as rows of named fields, whatever their kind.

use std::fs;
use std::path::Path;

use csv::{ByteRecord, ReaderBuilder};
use serde_json::{Map, Value};

use super::options::DataOptions;
use super::problems::Problems;
use crate::TrainError;

/// One record of a file, not yet interpreted.
pub(crate) struct Row {
    /// The line at which it begins, from 1.
    pub(crate) line: usize,
    pub(crate) fields: Map<String, Value>,
}

/// Reads the rows of a file; those that cannot be read are added to `problems`.
pub(crate) fn read_rows(path: &Path, options: &DataOptions, problems: &mut Problems) -> Result<Vec<Row>, TrainError> {
    let bytes = fs::read(path).map_err(TrainError::io("read", path))?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    match ending.as_str() {
        "jsonl" | "ndjson" | "json" => Ok(json_rows(bytes, problems)),
        "csv" => table_rows(bytes, b',', options, problems),
        "tsv" => table_rows(bytes, b'\t', options, problems),
        "txt" => line_rows(bytes, options, problems),
        _ => Err(TrainError::UnknownDataFile { path: path.to_path_buf() }),
    }
}

fn json_rows(bytes: &[u8], problems: &mut Problems) -> Vec<Row> {
    let mut rows = Vec::new();
    for (line, text) in lines(bytes, problems) {
        match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => rows.push(Row { line, fields }),
            Ok(other) => problems.add(line, format!("is {}, must be a JSON object", kind_of_value(&other))),
            Err(_) if line == 1 && text.trim() == "[" => {
                problems.add(line, "begins a JSON array: write one object a line instead");
                return rows;
            }
            Err(error) => {
                let reason = error.to_string();
                let reason = reason.split(" at line ").next().unwrap_or_default();
                problems.add(line, format!("is not valid JSON: {reason} at column {}", error.column()));
            }
        }
    }
    rows
}

/// A `.csv`, whose fields may be quoted, or a `.tsv`, whose fields are taken as they stand.
fn table_rows(
    bytes: &[u8],
    default_delimiter: u8,
    options: &DataOptions,
    problems: &mut Problems,
) -> Result<Vec<Row>, TrainError> {
    let delimiter = match options.delimiter.as_ref().map(String::as_bytes) {
        None => default_delimiter,
        Some([byte]) => *byte,
        Some(_) => {
            let problem =
                "delimiter must be a single ASCII character in a .csv or .tsv file; a .txt file can have more";
            return Err(TrainError::InvalidDataOptions { problems: vec![problem.to_owned()] });
        }
    };
    let mut reader = ReaderBuilder::new()
        .delimiter(delimiter)
        .quoting(default_delimiter == b',')
        .has_headers(false)
        .flexible(true)
        .from_reader(bytes);
    let mut columns = options.columns.clone();
    let mut rows = Vec::new();
    let mut record = ByteRecord::new();
    // Reading from memory into a flexible byte record leaves no error to occur.
    while let Ok(true) = reader.read_byte_record(&mut record) {
        let line = record.position().map_or(1, |position| position.line() as usize);
        let Some(fields) = utf8_fields(&record, line, problems) else {
            if columns.is_none() { return Ok(rows) } else { continue }
        };
        match &columns {
            None => {
                let names: Vec<String> = fields.into_iter().map(|name| name.trim().to_owned()).collect();
                if let Some(name) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
                    problems.add(line, format!("names the column `{}` twice", name.1));
                    return Ok(rows);
                }
                columns = Some(names);
            }
            Some(columns) => rows.extend(named(line, columns, fields, problems)),
        }
    }
    Ok(rows)
}

/// A `.txt`: a record a line, its columns named by the options.
fn line_rows(bytes: &[u8], options: &DataOptions, problems: &mut Problems) -> Result<Vec<Row>, TrainError> {
    let Some(columns) = &options.columns else {
        let problem = "columns must name the columns of a .txt file: [text], or [prompt, completion] with a delimiter";
        return Err(TrainError::InvalidDataOptions { problems: vec![problem.to_owned()] });
    };
    let mut rows = Vec::new();
    for (line, text) in lines(bytes, problems) {
        let fields = match &options.delimiter {
            Some(delimiter) => text.split(delimiter.as_str()).collect(),
            None => vec![text],
        };
        rows.extend(named(line, columns, fields, problems));
    }
    Ok(rows)
}

fn named(line: usize, columns: &[String], fields: Vec<&str>, problems: &mut Problems) -> Option<Row> {
    if fields.len() != columns.len() {
        let (found, names) = (fields.len(), columns.join(", "));
        problems.add(line, format!("its number of columns is {found}, must be {} ({names})", columns.len()));
        return None;
    }
    let fields = columns.iter().zip(fields).map(|(name, value)| (name.clone(), Value::from(value))).collect();
    Some(Row { line, fields })
}

/// The lines that are not blank, with their numbers.
fn lines<'a>(bytes: &'a [u8], problems: &mut Problems) -> Vec<(usize, &'a str)> {
    let mut lines = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        match std::str::from_utf8(line) {
            Ok(text) if text.trim().is_empty() => {}
            Ok(text) => lines.push((index + 1, text.strip_suffix('\r').unwrap_or(text))),
            Err(error) => problems.add(index + 1, not_utf8(error.valid_up_to())),
        }
    }
    lines
}

fn utf8_fields<'a>(record: &'a ByteRecord, line: usize, problems: &mut Problems) -> Option<Vec<&'a str>> {
    let fields: Result<Vec<&str>, _> = record.iter().map(std::str::from_utf8).collect();
    match fields {
        Ok(fields) => Some(fields),
        Err(error) => {
            problems.add(line, not_utf8(error.valid_up_to()));
            None
        }
    }
}

fn not_utf8(valid: usize) -> String {
    format!("is not UTF-8 text (after {valid} valid bytes): save the file as UTF-8")
}

/// "a number", "a list", …
pub(crate) fn kind_of_value(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
