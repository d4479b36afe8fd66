//! The rows of a task's file.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::data::problems::Problems;
use crate::data::rows::{Row, kind_of_value, read_rows};
use crate::tasks::squad_file;
use crate::{DataOptions, TrainError};

/// The rows of a file with the lines at which they begin, not yet interpreted.
pub struct TaskRows {
    /// The file.
    pub path: PathBuf,
    pub(crate) rows: Vec<Row>,
}

impl TaskRows {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The named values of each row.
    pub fn fields(&self) -> impl Iterator<Item = &Map<String, Value>> {
        self.rows.iter().map(|row| &row.fields)
    }

    /// Takes the first `count` out.
    #[must_use]
    pub fn take_first(&mut self, count: usize) -> Self {
        let rest = self.rows.split_off(count.min(self.rows.len()));
        Self { path: self.path.clone(), rows: std::mem::replace(&mut self.rows, rest) }
    }

    /// Keeps the first `count`.
    pub fn truncate(&mut self, count: usize) {
        self.rows.truncate(count);
    }
}

/// Reads a file of rows with named columns, or SQuAD's own JSON.
///
/// # Errors
/// [`TrainError::Data`] with all records that cannot be read; [`TrainError::EmptyData`],
/// [`TrainError::UnknownDataFile`], [`TrainError::InvalidDataOptions`], [`TrainError::Io`].
pub fn read_task_rows(path: &Path, data: &DataOptions) -> Result<TaskRows, TrainError> {
    let rows = match squad_file::read(path)? {
        Some(rows) => rows,
        None => {
            let mut problems = Problems::default();
            let rows = read_rows(path, data, &mut problems)?;
            problems.into_result(path)?;
            rows
        }
    };
    if rows.is_empty() {
        return Err(TrainError::EmptyData { path: path.to_path_buf() });
    }
    Ok(TaskRows { path: path.to_path_buf(), rows })
}

impl Row {
    /// The value in a column.
    pub(crate) fn value(&self, column: &str) -> Result<&Value, String> {
        self.fields.get(column).filter(|value| !value.is_null()).ok_or_else(|| {
            let names: Vec<String> = self.fields.keys().map(|name| format!("`{name}`")).collect();
            format!("has no `{column}` (it has {})", names.join(", "))
        })
    }

    /// The text in a column.
    pub(crate) fn text(&self, column: &str) -> Result<&str, String> {
        let value = self.value(column)?;
        value.as_str().ok_or_else(|| format!("`{column}` is {}, must be a string", kind_of_value(value)))
    }

    /// The list in a column.
    pub(crate) fn list(&self, column: &str) -> Result<&[Value], String> {
        let value = self.value(column)?;
        let list = value.as_array().map(Vec::as_slice);
        list.ok_or_else(|| format!("`{column}` is {}, must be a list", kind_of_value(value)))
    }
}
