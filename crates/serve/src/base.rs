//! The frozen model that everything is served over.

use std::time::{SystemTime, UNIX_EPOCH};

use tunesmith_describe::describe;
use tunesmith_methods::ModelDescription;
use tunesmith_models::{Model, ModelKind, Pretrained, Task};
use tunesmith_tensor::{Kernels, Workspace};

/// A loaded model, what it is called, and the buffers and kernels it runs on.
pub struct BaseModel {
    /// What requests call it.
    pub name: String,
    /// The model and its tokenizer.
    pub pretrained: Pretrained,
    /// Buffers and kernels. Rows of products are independent of their number.
    pub workspace: Workspace,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
}

impl BaseModel {
    /// A model under a name.
    pub fn new(name: impl Into<String>, pretrained: Pretrained) -> Self {
        let kernels = Kernels::detect().with_precision(pretrained.precision).with_independent_rows();
        let workspace = Workspace::with_kernels(kernels);
        Self { name: name.into(), pretrained, workspace, created: now() }
    }

    /// The model.
    pub fn model(&self) -> &dyn Model {
        self.pretrained.model.as_ref()
    }

    /// Whether it writes texts.
    pub fn generates(&self) -> bool {
        self.task().is_of_texts()
    }

    /// Whether an encoder reads the prompt.
    pub fn encodes(&self) -> bool {
        matches!(self.model().info().kind, ModelKind::EncoderDecoder { .. })
    }

    /// What it ends in.
    pub fn task(&self) -> Task {
        self.model().info().head.task
    }

    /// Calls `work` with what methods may know of the model.
    pub fn describe<T>(&self, work: impl FnOnce(&ModelDescription<'_>) -> T) -> T {
        describe(self.model(), Some(&self.name), Some(&self.pretrained.tokenizer), work)
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
