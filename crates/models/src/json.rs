//! JSON files as objects, with errors that name the file.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::ModelError;

/// The object in a JSON file.
pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>, ModelError> {
    let text = fs::read_to_string(path).map_err(|source| ModelError::Read { path: path.to_path_buf(), source })?;
    let wrong = |reason: String| ModelError::Json { path: path.to_path_buf(), reason };
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(wrong("its top level is something else".to_owned())),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// The object in a JSON file, or `None` where there is no such file.
pub(crate) fn read_object_if_any(path: &Path) -> Result<Option<Map<String, Value>>, ModelError> {
    if path.is_file() { read_object(path).map(Some) } else { Ok(None) }
}

/// A JSON file's bytes, indented as Hugging Face writes them.
pub(crate) fn to_bytes(object: &Map<String, Value>) -> Vec<u8> {
    let mut text = serde_json::to_string_pretty(object).expect("a JSON object can be written");
    text.push('\n');
    text.into_bytes()
}
