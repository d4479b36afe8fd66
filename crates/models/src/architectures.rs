//! The list of architectures: which there are, and how each comes to be from its files.

mod bart;
mod bert;
mod distilbert;
pub(crate) mod gpt2;
pub mod llama;
mod roberta;
mod t5;

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::ModelError;
use crate::model::Model;
use crate::task::{HeadOptions, Task};
use crate::weights::WeightSource;

/// All architectures. A new one is a line here, and its module's above.
const ARCHITECTURES: &[Architecture] = &[
    gpt2::ARCHITECTURE,
    llama::ARCHITECTURE,
    bert::ARCHITECTURE,
    roberta::ARCHITECTURE,
    distilbert::ARCHITECTURE,
    t5::ARCHITECTURE,
    bart::ARCHITECTURE,
];

/// One way of building a network, which covers some of Hugging Face's model types.
pub(crate) struct Architecture {
    /// The `model_type`s it covers.
    pub(crate) model_types: &'static [&'static str],
    /// The tasks it has heads for.
    pub(crate) tasks: &'static [Task],
    /// Reads `config.json`, whose path is for messages. The task in the options is one of `tasks`.
    pub(crate) configure: Configure,
}

/// Reads a configuration.
type Configure = fn(Map<String, Value>, &Path, &HeadOptions) -> Result<Box<dyn Configured>, ModelError>;

/// A configuration that is known to be good.
pub(crate) trait Configured {
    /// Reads the weights it asks for.
    fn read(self: Box<Self>, source: &mut dyn WeightSource) -> Result<Arc<dyn Model>, ModelError>;
}

/// Reads the configuration of a model of any architecture.
///
/// # Errors
/// [`ModelError::UnknownModelType`] with all that are known, [`ModelError::NoSuchHead`], [`ModelError::Config`].
pub(crate) fn configure(
    json: Map<String, Value>,
    path: &Path,
    options: &HeadOptions,
) -> Result<Box<dyn Configured>, ModelError> {
    let found = json.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let Some(architecture) = ARCHITECTURES.iter().find(|arch| arch.model_types.contains(&found.as_str())) else {
        let known = ARCHITECTURES.iter().flat_map(|arch| arch.model_types).map(|name| (*name).to_owned()).collect();
        return Err(ModelError::UnknownModelType { path: path.to_path_buf(), found, known });
    };
    match options.task {
        Some(task) if !architecture.tasks.contains(&task) => Err(ModelError::NoSuchHead {
            path: path.to_path_buf(),
            model_type: found,
            task,
            known: architecture.tasks.to_vec(),
        }),
        _ => (architecture.configure)(json, path, options),
    }
}
