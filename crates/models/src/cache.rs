//! Keys and values of the tokens that a model has already seen, one entry a sequence, in pages that sequences may share.

use std::sync::{Arc, Mutex, PoisonError};

use tunesmith_tensor::{KeyValuePages, KeyValuePairs, KeyValueRows, Matrix, PageRows, Precision, Segments};

use crate::model::{ModelInfo, ModelKind};

/// Tokens of a full page.
pub const PAGE_TOKENS: usize = 64;

/// The caches of a batch's sequences, in the batch's order.
#[derive(Debug, Default)]
pub struct Cache {
    sequences: Vec<SequenceCache>,
}

/// The cache of one sequence. A clone shares the pages that are there; what is added later belongs to each alone.
#[derive(Clone, Debug)]
pub struct SequenceCache {
    pages: Vec<Arc<Page>>,
    /// Keys and values of each block's attention to the encoder's outputs; without an entry where there is no encoder.
    cross: Arc<Vec<Rows>>,
    buffers: PageBuffers,
}

/// Keys and values of some consecutive tokens of a sequence in all blocks, or of its virtual tokens.
#[derive(Debug)]
pub struct Page {
    /// Rows that each block has.
    filled: Vec<usize>,
    capacity: usize,
    /// Whether nothing is added any more, full or not.
    is_closed: bool,
    cols: usize,
    data: Data,
    buffers: PageBuffers,
}

/// For each block the keys, then the values, `[capacity, cols]` each.
#[derive(Debug)]
enum Data {
    Float32(Vec<f32>),
    /// In pairs.
    Bf16(Vec<u32>),
}

impl Data {
    /// Takes the values of another, which is as long and lies alike, into the memory that is there.
    fn copy_from(&mut self, other: &Self) {
        match (self, other) {
            (Self::Float32(own), Self::Float32(other)) => own.copy_from_slice(other),
            (Self::Bf16(own), Self::Bf16(other)) => own.copy_from_slice(other),
            _ => unreachable!("pages of the same buffers lie alike"),
        }
    }
}

impl Default for Data {
    fn default() -> Self {
        Self::Float32(Vec::new())
    }
}

/// Buffers of pages that are no longer used, for those to come. Clones share them.
#[derive(Clone, Debug)]
pub struct PageBuffers {
    free: Arc<Mutex<Vec<Data>>>,
    blocks: usize,
    cols: usize,
    precision: Precision,
}

#[derive(Clone, Debug, Default)]
struct Rows {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl PageBuffers {
    /// Buffers for a model. In bf16 keys and values are rounded to it, as products round them that many queries take part in;
    /// where heads are too narrow for that they stay in float32.
    pub fn new(model: &ModelInfo, precision: Precision) -> Self {
        let precision = if KeyValuePairs::suit(model.head_dim) { precision } else { Precision::Float32 };
        Self { free: Arc::default(), blocks: model.blocks, cols: model.kv_heads * model.head_dim, precision }
    }

    /// Bytes of a full page.
    pub fn page_bytes(&self) -> usize {
        let bytes = match self.precision {
            Precision::Float32 => 4,
            Precision::Bf16 => 2,
        };
        self.floats(PAGE_TOKENS) * bytes
    }

    fn floats(&self, capacity: usize) -> usize {
        2 * self.blocks * side(capacity, self.cols)
    }

    fn page(&self, capacity: usize) -> Page {
        let floats = self.floats(capacity);
        let pooled =
            if capacity == PAGE_TOKENS { self.free.lock().unwrap_or_else(PoisonError::into_inner).pop() } else { None };
        let data = pooled.unwrap_or_else(|| match self.precision {
            Precision::Float32 => Data::Float32(vec![0.0; floats]),
            Precision::Bf16 => Data::Bf16(vec![0; floats / 2]),
        });
        Page { filled: vec![0; self.blocks], capacity, is_closed: false, cols: self.cols, data, buffers: self.clone() }
    }
}

/// Values of so many rows; rows lie in pairs.
fn side(capacity: usize, cols: usize) -> usize {
    capacity.next_multiple_of(2) * cols
}

impl Drop for Page {
    fn drop(&mut self) {
        if self.capacity == PAGE_TOKENS {
            let data = std::mem::take(&mut self.data);
            self.buffers.free.lock().unwrap_or_else(PoisonError::into_inner).push(data);
        }
    }
}

impl Clone for Page {
    fn clone(&self) -> Self {
        let mut page = self.buffers.page(self.capacity);
        page.data.copy_from(&self.data);
        page.filled.clone_from(&self.filled);
        page.is_closed = self.is_closed;
        page
    }
}

impl Page {
    /// Tokens that it holds.
    pub fn tokens(&self) -> usize {
        self.filled.first().copied().unwrap_or(0)
    }

    /// Whether nothing is added any more, although there may be room.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Where a block's keys begin; its values follow a [`Page::side`] later.
    fn start(&self, block: usize) -> usize {
        2 * block * self.side()
    }

    /// Values that there is room for on a block's side of keys, and on that of its values.
    fn side(&self) -> usize {
        side(self.capacity, self.cols)
    }

    fn rows(&self, block: usize) -> PageRows<'_> {
        let (start, floats) = (self.start(block), self.filled[block] * self.cols);
        let values = start + self.side();
        match &self.data {
            Data::Float32(data) => PageRows::Float32(KeyValueRows {
                keys: &data[start..start + floats],
                values: &data[values..values + floats],
            }),
            Data::Bf16(data) => PageRows::Bf16(KeyValuePairs {
                width: self.cols,
                keys: &data[start / 2..(start + floats) / 2],
                values: &data[values / 2..][..self.filled[block].div_ceil(2) * self.cols],
            }),
        }
    }

    /// Adds rows to one block; there is room for them.
    fn push(&mut self, block: usize, keys: &[f32], values: &[f32]) {
        let (filled, cols) = (self.filled[block], self.cols);
        let (start, values_start) = (self.start(block), self.start(block) + self.side());
        let own = start + filled * cols..start + filled * cols + keys.len();
        match &mut self.data {
            Data::Float32(data) => {
                data[own].copy_from_slice(keys);
                data[values_start + filled * cols..][..values.len()].copy_from_slice(values);
            }
            Data::Bf16(data) => {
                KeyValuePairs::store_keys(keys, &mut data[own.start / 2..own.end / 2]);
                KeyValuePairs::store_values(values, cols, filled, &mut data[values_start / 2..]);
            }
        }
        self.filled[block] += keys.len() / self.cols;
    }

    fn room(&self, block: usize) -> usize {
        if self.is_closed { 0 } else { self.capacity - self.filled[block] }
    }
}

impl SequenceCache {
    /// An empty cache of a model, with pages from `buffers`.
    pub fn new(model: &ModelInfo, buffers: &PageBuffers) -> Self {
        let cross = if matches!(model.kind, ModelKind::EncoderDecoder { .. }) { model.blocks } else { 0 };
        Self { pages: Vec::new(), cross: Arc::new(vec![Rows::default(); cross]), buffers: buffers.clone() }
    }

    /// Begins with pages that other sequences filled.
    ///
    /// # Panics
    /// If something is there already.
    pub fn begin_with(&mut self, pages: Vec<Arc<Page>>) {
        assert!(self.pages.is_empty(), "shared pages are a sequence's first");
        self.pages = pages;
    }

    /// The pages, in order. All but the last are full or hold virtual tokens.
    pub fn pages(&self) -> &[Arc<Page>] {
        &self.pages
    }

    /// Ends the last page: what comes begins another one.
    pub fn end_page(&mut self) {
        if let Some(page) = self.pages.last_mut().map(Arc::make_mut) {
            page.is_closed = true;
        }
    }

    /// Tokens (virtual ones included) that it holds; the decoder's, where there are two stacks.
    pub fn length(&self) -> usize {
        self.pages.iter().map(|page| page.tokens()).sum()
    }

    /// Adds rows of one block.
    fn push(&mut self, block: usize, keys: &[f32], values: &[f32]) {
        let cols = self.buffers.cols;
        let (mut keys, mut values) = (keys, values);
        // The first page with room in this block: all blocks of a pass fill the same pages.
        let mut place = self.pages.iter().rposition(|page| page.room(block) == 0).map_or(0, |place| place + 1);
        while !keys.is_empty() {
            if place == self.pages.len() {
                self.pages.push(Arc::new(self.buffers.page(PAGE_TOKENS)));
            }
            let page = Arc::make_mut(&mut self.pages[place]);
            let floats = (page.room(block) * cols).min(keys.len());
            page.push(block, &keys[..floats], &values[..floats]);
            (keys, values) = (&keys[floats..], &values[floats..]);
            place += 1;
        }
    }
}

impl Cache {
    /// Empty caches for `sequences` sequences of a model; `precision` as in [`PageBuffers::new`].
    pub fn new(sequences: usize, model: &ModelInfo, precision: Precision) -> Self {
        let buffers = PageBuffers::new(model, precision);
        Self { sequences: std::iter::repeat_with(|| SequenceCache::new(model, &buffers)).take(sequences).collect() }
    }

    /// The caches of a batch's sequences, in order.
    pub fn of(sequences: Vec<SequenceCache>) -> Self {
        Self { sequences }
    }

    /// The caches of the sequences, in order.
    pub fn into_sequences(self) -> Vec<SequenceCache> {
        self.sequences
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there are no sequences.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Tokens (virtual ones included) that a sequence has in its cache; the decoder's, where there are two stacks.
    pub fn length(&self, sequence: usize) -> usize {
        self.sequences[sequence].length()
    }

    /// The lengths of all sequences.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        (0..self.len()).map(|sequence| self.length(sequence)).collect()
    }

    /// The keys and the values of a sequence in one block, each `[tokens, kv_heads · head_dim]`.
    pub fn keys_and_values(&self, sequence: usize, block: usize) -> (Matrix, Matrix) {
        let cache = &self.sequences[sequence];
        let cols = cache.buffers.cols;
        let matrix = |keys: bool| {
            let rows = cache.pages.iter().map(|page| page.rows(block));
            let values: Vec<f32> = rows.flat_map(|rows| rows.to_floats(keys)).collect();
            Matrix::from_vec(values.len() / cols, cols, values)
        };
        (matrix(true), matrix(false))
    }

    /// Adds the sequences of another cache after this one's.
    pub fn append(&mut self, other: Self) {
        self.sequences.extend(other.sequences);
    }

    /// Keeps the sequences that `keep` marks, in order.
    pub fn retain(&mut self, keep: &[bool]) {
        let mut keep = keep.iter();
        self.sequences.retain(|_| *keep.next().expect("one mark a sequence"));
    }

    /// Makes the sequences those that `chosen` names, in that order; one may be named several times.
    pub(crate) fn select(&mut self, chosen: &[usize]) {
        self.sequences = chosen.iter().map(|sequence| self.sequences[*sequence].clone()).collect();
    }

    /// Adds the batch's keys and values, both `[tokens, kv_heads · head_dim]`, to one block's rows.
    pub(crate) fn push(&mut self, block: usize, segments: &Segments, keys: &Matrix, values: &Matrix) {
        let cols = keys.cols();
        for (cache, range) in self.sequences.iter_mut().zip(segments.ranges()) {
            let floats = range.start * cols..range.end * cols;
            cache.push(block, &keys.data()[floats.clone()], &values.data()[floats]);
        }
    }

    /// All rows of one block, sequence by sequence.
    pub(crate) fn rows(&self, block: usize) -> Vec<KeyValuePages<'_>> {
        let pages = self.sequences.iter().map(|cache| cache.pages.iter().map(|page| page.rows(block)).collect());
        pages.map(|pages| KeyValuePages { pages }).collect()
    }

    /// Adds keys and values of the encoder's outputs, both `[tokens, kv_heads · head_dim]`, to one block's rows.
    pub(crate) fn push_cross(&mut self, block: usize, segments: &Segments, keys: &Matrix, values: &Matrix) {
        let cols = keys.cols();
        for (cache, range) in self.sequences.iter_mut().zip(segments.ranges()) {
            let floats = range.start * cols..range.end * cols;
            let rows = &mut Arc::make_mut(&mut cache.cross)[block];
            rows.keys.extend_from_slice(&keys.data()[floats.clone()]);
            rows.values.extend_from_slice(&values.data()[floats]);
        }
    }

    /// All rows of the encoder's outputs of one block, sequence by sequence.
    pub(crate) fn cross_rows(&self, block: usize) -> Vec<KeyValuePages<'_>> {
        let rows = self.sequences.iter().map(|cache| &cache.cross[block]);
        rows.map(|rows| KeyValueRows { keys: &rows.keys, values: &rows.values }.into()).collect()
    }
}
