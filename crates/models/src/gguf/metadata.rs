//! The metadata of a GGUF file, read by type.

use std::path::Path;

use candle_core::quantized::gguf_file::Value as Metadata;

use super::damaged;
use crate::error::ModelError;

/// Typed reading of metadata. A missing key is `None`; a value of another type is an error.
pub(crate) struct Fields<'a> {
    pub(super) path: &'a Path,
    pub(super) metadata: &'a std::collections::HashMap<String, Metadata>,
}

impl<'a> Fields<'a> {
    fn wrong(&self, key: &str, expected: &str) -> ModelError {
        damaged(self.path, format!("its metadata value {key} is not {expected}"))
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Metadata::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    pub(crate) fn unsigned(&self, key: &str) -> Result<Option<u64>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(value) => integer(value).and_then(|value| u64::try_from(value).ok()).map(Some).ok_or_else(|| {
                self.wrong(key, "one positive whole number (values that differ by block are not supported)")
            }),
        }
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Metadata::F32(number)) => Ok(Some(f64::from(*number))),
            Some(Metadata::F64(number)) => Ok(Some(*number)),
            Some(value) => integer(value).map(|number| Some(number as f64)).ok_or_else(|| self.wrong(key, "a number")),
        }
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Metadata::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// Whether a value is a list.
    pub(super) fn is_list(&self, key: &str) -> bool {
        matches!(self.metadata.get(key), Some(Metadata::Array(_)))
    }

    pub(super) fn flags(&self, key: &str) -> Result<Option<Vec<bool>>, ModelError> {
        self.array(key, "a list of true and false", |value| match value {
            Metadata::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, ModelError> {
        self.array(key, "a list of texts", |value| match value {
            Metadata::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub(crate) fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, ModelError> {
        self.array(key, "a list of whole numbers", integer)
    }

    fn array<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Metadata) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ModelError> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let Metadata::Array(values) = value else { return Err(self.wrong(key, expected)) };
        values.iter().map(read).collect::<Option<_>>().map(Some).ok_or_else(|| self.wrong(key, expected))
    }

    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }
}

fn integer(value: &Metadata) -> Option<i64> {
    match value {
        Metadata::U8(value) => Some((*value).into()),
        Metadata::I8(value) => Some((*value).into()),
        Metadata::U16(value) => Some((*value).into()),
        Metadata::I16(value) => Some((*value).into()),
        Metadata::U32(value) => Some((*value).into()),
        Metadata::I32(value) => Some((*value).into()),
        Metadata::U64(value) => i64::try_from(*value).ok(),
        Metadata::I64(value) => Some(*value),
        _ => None,
    }
}
