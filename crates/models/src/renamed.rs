//! A checkpoint under the names that a model uses: prefixes of other heads, names of older releases.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use tunesmith_tensor::{FrozenWeight, Matrix};

use crate::error::ModelError;
use crate::weights::{StoredTensor, WeightSource};

/// A source whose tensors have other names.
pub(crate) struct Renamed<'a> {
    source: &'a mut dyn WeightSource,
    stored: BTreeMap<String, StoredTensor>,
    /// The name in the files of every tensor that has another one here.
    names: BTreeMap<String, String>,
}

impl<'a> Renamed<'a> {
    /// Names every tensor by `rename`, which gives `None` for tensors that are not needed. Where two tensors get one
    /// name, the one that had it from the beginning is it.
    pub(crate) fn new(source: &'a mut dyn WeightSource, rename: impl Fn(&str) -> Option<String>) -> Self {
        let (mut stored, mut names) = (BTreeMap::new(), BTreeMap::new());
        for (old, tensor) in source.stored() {
            let Some(new) = rename(old) else { continue };
            if new == *old {
                names.remove(&new);
                stored.insert(new, tensor.clone());
            } else if let Entry::Vacant(free) = stored.entry(new) {
                names.insert(free.key().clone(), old.clone());
                free.insert(tensor.clone());
            }
        }
        Self { source, stored, names }
    }
}

impl WeightSource for Renamed<'_> {
    fn path(&self) -> &Path {
        self.source.path()
    }

    fn stored(&self) -> &BTreeMap<String, StoredTensor> {
        &self.stored
    }

    fn supported_formats(&self) -> &'static str {
        self.source.supported_formats()
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>, ModelError> {
        self.source.read(self.names.get(name).map_or(name, String::as_str))
    }

    fn encoded(&mut self, name: &str) -> Result<Option<FrozenWeight>, ModelError> {
        self.source.encoded(self.names.get(name).map_or(name, String::as_str))
    }

    fn keep(&self, name: &str, matrix: Matrix) -> Result<FrozenWeight, ModelError> {
        self.source.keep(self.names.get(name).map_or(name, String::as_str), matrix)
    }
}
