//! Bytes of a frozen weight as they lie in a file: owned, or mapped into memory, where only what is read takes memory
//! and the system may take it back.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;

use memmap2::Mmap;

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
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}
