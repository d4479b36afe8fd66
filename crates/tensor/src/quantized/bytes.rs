//! Bytes of a frozen weight as they lie in a file: owned, copied to large pages, or mapped into memory, where only what is
//! read takes memory and the system may take it back.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;

use memmap2::Mmap;

use crate::shelf::Shelved;

/// A whole file, mapped for reading. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MappedFile {
    map: Arc<Mmap>,
}

impl MappedFile {
    /// Maps `file`.
    ///
    /// # Errors
    /// If the system cannot map it.
    #[allow(unsafe_code)]
    pub fn open(file: &File) -> io::Result<Self> {
        // SAFETY: the map is only ever read as bytes, and every value of a byte is valid. Were another program to write
        // to the file meanwhile, the weights would change, and were it to cut it, the system would end this program:
        // the same contract that every program has which maps its model files.
        let map = unsafe { Mmap::map(file)? };
        Ok(Self { map: Arc::new(map) })
    }

    /// A part of the file; `None` if it reaches beyond the end.
    pub fn slice(&self, range: Range<usize>) -> Option<Bytes> {
        self.map.get(range.clone())?;
        Some(Bytes(Place::Mapped(self.clone(), range)))
    }
}

/// Bytes that never change.
pub struct Bytes(Place);

enum Place {
    Owned(Vec<u8>),
    Mapped(MappedFile, Range<usize>),
    Shelved(Shelved<u8>),
}

impl Bytes {
    /// The same on large pages, for what is read again and again: a file's pages are small, and a pass over all weights
    /// would wait for where they are.
    pub(crate) fn on_large_pages(&self) -> Self {
        let mut shelved = Shelved::weight(self.len());
        shelved.copy_from_slice(self);
        Self(Place::Shelved(shelved))
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Place::Owned(bytes))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Place::Owned(bytes) => bytes,
            Place::Mapped(file, range) => &file.map[range.clone()],
            Place::Shelved(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}
