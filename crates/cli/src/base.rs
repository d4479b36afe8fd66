//! The base model that a command works with, and perhaps an adapter for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use tunesmith_methods::{BuiltAdapter, ModelDescription, load_adapter, load_config};
use tunesmith_models::{HeadOptions, LoadOptions, Model, Pretrained, Task, load};
use tunesmith_tensor::{Adapter, Precision, Workspace};
use tunesmith_train::{Subject, describe};

use crate::args::ModelArgs;
use crate::failure::Misuse;
use crate::names::resolve;
use crate::task_file::TaskFile;
use crate::terminal;

/// A loaded base model and what it was called.
pub(crate) struct Base {
    /// The name or path that the user gave.
    pub(crate) name: String,
    /// Model and tokenizer.
    pub(crate) pretrained: Pretrained,
}

/// The base that runs of a process share for as long as they ask for the same one. Only one is kept, so that what a run
/// takes of the machine's memory is its own.
#[derive(Default)]
pub(crate) struct SharedBase(Option<(LoadOptions, Arc<Base>)>);

impl SharedBase {
    /// Loads the model that `name` means, unless it was the last one and was loaded with the same options.
    pub(crate) fn load(&mut self, name: &str, options: LoadOptions) -> anyhow::Result<Arc<Base>> {
        if let Some((_, base)) = self.0.as_ref().filter(|(of, base)| base.name == name && *of == options) {
            return Ok(Arc::clone(base));
        }
        self.0 = None;
        let base = Arc::new(Base::load(name, &options)?);
        self.0 = Some((options, Arc::clone(&base)));
        Ok(base)
    }
}

impl Base {
    /// Number of the model's values.
    pub(crate) fn values(&self) -> usize {
        self.model().tensors().iter().map(|(_, _, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Loads the model that `name` means.
    pub(crate) fn load(name: &str, options: &LoadOptions) -> anyhow::Result<Self> {
        let pretrained = load(&resolve(name)?, options)?;
        Ok(Self { name: name.to_owned(), pretrained })
    }

    /// Loads what a command line asks for: a model, an adapter, or both.
    ///
    /// # Errors
    /// [`Misuse`] if neither is given; everything that can be wrong with their files.
    pub(crate) fn from_args(args: &ModelArgs, precision: Precision) -> anyhow::Result<(Self, Option<BuiltAdapter>)> {
        if args.adapter.len() > 1 {
            let text = "this works with one adapter; what several say together is told by evaluate and predict";
            return Err(Misuse(text.to_owned()).into());
        }
        let head = match TaskFile::of_all(&args.adapter)? {
            Some(file) => file.head()?,
            None => HeadOptions::default(),
        };
        let (base, mut adapters) = Self::with_head(args, head, precision)?;
        Ok((base, adapters.pop()))
    }

    /// The same with a head of one's own choice, and any number of adapters.
    pub(crate) fn with_head(
        args: &ModelArgs,
        head: HeadOptions,
        precision: Precision,
    ) -> anyhow::Result<(Self, Vec<BuiltAdapter>)> {
        let options = LoadOptions {
            tokenizer: args.tokenizer.clone(),
            chat_template: args.chat_template.clone(),
            head,
            precision,
            quantization: args.quantization.keys().options(),
            rope_factor: rope_factor_of(&args.adapter)?,
        };
        let base = match (&args.model, args.adapter.first()) {
            (Some(name), _) => Self::load(name, &options)?,
            (None, Some(adapter)) => {
                let name = base_of(adapter)?;
                Self::load(&name, &options).with_context(|| {
                    format!(
                        "the base model of {} is '{name}'; --model names it if it lies elsewhere",
                        adapter.display()
                    )
                })?
            }
            (None, None) => return Err(Misuse("give a model with --model, or an adapter with --adapter".into()).into()),
        };
        let adapters = args.adapter.iter().map(|folder| base.load_adapter(folder)).collect::<anyhow::Result<_>>()?;
        Ok((base, adapters))
    }

    /// Reads an adapter for this model, and warns of what it warns of.
    pub(crate) fn load_adapter(&self, folder: &Path) -> anyhow::Result<BuiltAdapter> {
        let built = self.describe(|description| load_adapter(folder, description))?;
        built.warnings.iter().for_each(terminal::warn);
        Ok(built)
    }

    /// Makes sure that the model is for one of these tasks.
    pub(crate) fn require(&self, tasks: &[Task]) -> anyhow::Result<()> {
        let found = self.model().info().head.task;
        if tasks.contains(&found) {
            return Ok(());
        }
        let wanted: Vec<&str> = tasks.iter().map(|task| task.name()).collect();
        let (name, found) = (&self.name, found.name());
        Err(Misuse(format!("{name} is a model for {found}; this needs one for {}", wanted.join(" or "))).into())
    }

    /// Buffers and kernels for the precision that the model was loaded in.
    pub(crate) fn workspace(&self) -> Workspace {
        Workspace::with_precision(self.pretrained.precision)
    }

    /// What is evaluated of it.
    pub(crate) fn subject<'a>(&'a self, adapters: &'a [Option<&'a Adapter>], workspace: &'a Workspace) -> Subject<'a> {
        Subject { model: self.model(), tokenizer: &self.pretrained.tokenizer, adapters, workspace }
    }

    /// The model.
    pub(crate) fn model(&self) -> &dyn Model {
        self.pretrained.model.as_ref()
    }

    /// Calls `work` with what methods may know of the model.
    pub(crate) fn describe<T>(&self, work: impl FnOnce(&ModelDescription<'_>) -> T) -> T {
        describe(self.model(), Some(&self.name), Some(&self.pretrained.tokenizer), work)
    }
}

/// The name of the model that an adapter was made for.
fn base_of(adapter: &Path) -> anyhow::Result<String> {
    let (config, _) = load_config(adapter)?;
    match &config.common().base_model_name_or_path {
        Some(name) => Ok(name.clone()),
        None => bail!(Misuse(format!(
            "{} does not say which base model it was made for: give it with --model",
            adapter.join("adapter_config.json").display()
        ))),
    }
}

/// What the adapters' positions are divided by, if they are.
fn rope_factor_of(adapters: &[PathBuf]) -> anyhow::Result<Option<f64>> {
    let factor = |adapter: &PathBuf| Ok(load_config(adapter)?.0.rope_scaling().map(|scaling| scaling.factor));
    let factors = adapters.iter().map(factor).collect::<anyhow::Result<Vec<_>>>()?;
    match factors.iter().position(|factor| *factor != factors[0]) {
        Some(other) => Err(Misuse(format!(
            "{} and {} were trained with different rope_scaling, and one base cannot serve both",
            adapters[0].display(),
            adapters[other].display()
        ))
        .into()),
        None => Ok(factors.first().copied().flatten()),
    }
}

/// The tuners of adapters whose predictions are put to the vote; without any, the base alone.
pub(crate) fn voters(adapters: &[BuiltAdapter]) -> Vec<Option<&Adapter>> {
    if adapters.is_empty() { vec![None] } else { adapters.iter().map(|built| Some(&built.adapter)).collect() }
}

/// The virtual tokens of the adapter that has the most.
pub(crate) fn virtual_tokens(adapters: &[BuiltAdapter]) -> usize {
    adapters.iter().map(|built| built.adapter.virtual_tokens()).max().unwrap_or(0)
}

/// The tuners of an adapter, if there is one.
pub(crate) fn tuners(adapter: &Option<BuiltAdapter>) -> Option<&Adapter> {
    adapter.as_ref().map(|built| &built.adapter)
}
