//! What a method is to the rest of the crate, and the one list of methods.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use safetensors::SafeTensors;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tunesmith_tensor::{Adapter, Gradients, Role, Seed, SiteId, Stored, Workspace};

use crate::common::{CommonConfig, Purpose, ROPE_SCALING, Uninterpreted, as_map, keys_of, read_fields};
use crate::error::ConfigProblem;
use crate::{
    AdaLoraConfig, BitFitConfig, DyLoraConfig, FullConfig, HoulsbyConfig, Ia3Config, IntrinsicConfig, LnTuningConfig,
    LongLoraConfig, LoraConfig, MethodConfig, MethodError, ModelDescription, PTuningConfig, ParallelConfig,
    PfeifferConfig, PreEmbedConfig, PreLayerConfig, PrefixTuningConfig, PromptTuningConfig, SaidConfig,
    TrainableTokensConfig, VeraConfig,
};

/// The list of methods: a new one is a row here and a file with what implements [`Method`].
pub(crate) const METHODS: &[Row] = &[
    Row::of::<LoraConfig>(),
    Row::of::<AdaLoraConfig>(),
    Row::of::<DyLoraConfig>(),
    Row::of::<VeraConfig>(),
    Row::of::<Ia3Config>(),
    Row::of::<LnTuningConfig>(),
    Row::of::<BitFitConfig>(),
    Row::of::<TrainableTokensConfig>(),
    Row::of::<FullConfig>(),
    Row::of::<IntrinsicConfig>(),
    Row::of::<SaidConfig>(),
    Row::of::<PromptTuningConfig>(),
    Row::of::<PTuningConfig>(),
    Row::of::<PrefixTuningConfig>(),
    Row::of::<HoulsbyConfig>(),
    Row::of::<PfeifferConfig>(),
    Row::of::<ParallelConfig>(),
    Row::of::<PreEmbedConfig>(),
    Row::of::<PreLayerConfig>(),
    Row::of::<LongLoraConfig>(),
];

/// A method, as its configuration: with PEFT's keys where PEFT has the method.
pub(crate) trait Method:
    Clone + Debug + Default + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// PEFT's name of the method, or ours where PEFT has none.
    const PEFT_TYPE: &'static str;

    /// PEFT's keys that are read and written back but have no effect.
    fn uninterpreted() -> &'static [Uninterpreted] {
        &[]
    }

    /// Keys that PEFT has not; files leave them out where they are not set.
    fn own_keys() -> &'static [&'static str] {
        &[]
    }

    /// What every method's configuration has.
    fn common(&self) -> &CommonConfig;

    /// What every method's configuration has.
    fn common_mut(&mut self) -> &mut CommonConfig;

    /// Everything that is wrong with the fields, apart from any model.
    fn problems(&self, purpose: Purpose) -> Vec<ConfigProblem>;

    /// Makes the tuners that the configuration asks for.
    ///
    /// # Errors
    /// Whatever the model at hand cannot do, with what it can.
    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError>;

    /// The method that files name in place of this one, where using the adapter is the same.
    fn written_as(&self) -> Option<MethodConfig> {
        None
    }

    /// The text of `adapter_config.json` where the files are not PEFT's but AdapterHub's.
    fn foreign_file(&self) -> Option<Map<String, Value>> {
        None
    }

    /// Whether the file's tensor `name` has the shape `found` only because of another rank than `expected`.
    fn differs_in_rank_only(&self, _name: &str, _found: &[usize], _expected: &[usize]) -> bool {
        false
    }

    /// Whether there are releases of PEFT that forgot to save the tensor `name`, so that the base's is meant.
    fn may_be_forgotten(&self, _name: &str) -> bool {
        false
    }
}

/// What a method is built for.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a, 'm> {
    pub(crate) model: &'a ModelDescription<'m>,
    /// Where random starts come from.
    pub(crate) seed: Seed,
    pub(crate) purpose: Purpose,
    /// The tensors of the adapter file, where one is loaded. All trainable tensors are filled from it afterwards; a method
    /// looks here only for what is not trainable.
    pub(crate) file: Option<&'a SafeTensors<'a>>,
    /// Weight sites that another method of the same adapter tunes.
    pub(crate) taken: &'a [SiteId],
}

impl Place<'_, '_> {
    /// The modules that hold a classifier's head, which methods train in full where nothing else is said: those that no
    /// other method of the adapter trains. `None` where the model has no head.
    pub(crate) fn heads(&self) -> Option<Vec<String>> {
        let sites = self.model.sites.iter().enumerate();
        let mut heads = sites.filter(|(_, site)| site.role == Role::Head).peekable();
        heads.peek()?;
        let free = heads.filter(|(index, _)| !self.taken.contains(&SiteId(*index)));
        let mut names: Vec<String> =
            free.filter_map(|(_, site)| site.path.split('.').next()).map(str::to_owned).collect();
        names.dedup();
        Some(names)
    }
}

/// What a method makes.
pub(crate) struct Built<M> {
    /// The configuration with everything resolved that depends on the model, such as the default targets.
    pub(crate) config: M,
    pub(crate) adapter: Adapter,
    /// What the user should know.
    pub(crate) warnings: Vec<String>,
    /// What is to be done around updates, where there is something.
    pub(crate) routine: Option<Box<dyn Routine>>,
}

/// What a method does around the updates of a training run. Holds clones of the trainable tensors that it is about.
///
/// Whatever it does is a function of the seed it was built with, the step, the tensors and its [`state`](Routine::state),
/// so that a resumed run goes on bit for bit.
pub trait Routine: Send + Sync {
    /// The run begins, or goes on; it has `max_steps` updates in all.
    ///
    /// # Errors
    /// A configuration that does not fit so many updates.
    fn begin(&mut self, _max_steps: u64) -> Result<(), MethodError> {
        Ok(())
    }

    /// Before the forward passes of update number `step`, counted from 0.
    fn before_step(&mut self, _step: u64) {}

    /// Terms of the loss beside the model's: adds their gradients and returns their sum.
    fn regularise(&self, _workspace: &Workspace, _gradients: &mut Gradients) -> f64 {
        0.0
    }

    /// After update number `step`, made with `gradients` times `gradient_scale`.
    fn after_step(&mut self, _gradients: &Gradients, _gradient_scale: f32, _step: u64) {}

    /// Keys of `adapter_config.json` that training has set.
    fn file_keys(&self) -> Map<String, Value> {
        Map::new()
    }

    /// What a checkpoint must hold beside the trainable tensors.
    fn state(&self) -> Vec<Stored> {
        Vec::new()
    }

    /// Takes over what [`Routine::state`] gave; the names and shapes are the same.
    fn restore(&mut self, _state: Vec<Stored>) {}
}

/// A [`Method`] behind a pointer.
pub(crate) trait AnyMethod: Debug + Send + Sync {
    fn peft_type(&self) -> &'static str;
    fn as_any(&self) -> &dyn Any;
    fn common(&self) -> &CommonConfig;
    fn with_common(&self, change: &dyn Fn(&mut CommonConfig)) -> Arc<dyn AnyMethod>;
    fn problems(&self, purpose: Purpose) -> Vec<ConfigProblem>;
    fn to_map(&self) -> Map<String, Value>;
    fn build(&self, place: &Place<'_, '_>) -> Result<crate::BuiltAdapter, MethodError>;
    fn written_as(&self) -> Option<MethodConfig>;
    fn foreign_file(&self) -> Option<Map<String, Value>>;
    fn differs_in_rank_only(&self, name: &str, found: &[usize], expected: &[usize]) -> bool;
    fn may_be_forgotten(&self, name: &str) -> bool;
}

impl<M: Method> AnyMethod for M {
    fn peft_type(&self) -> &'static str {
        M::PEFT_TYPE
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn common(&self) -> &CommonConfig {
        Method::common(self)
    }

    fn with_common(&self, change: &dyn Fn(&mut CommonConfig)) -> Arc<dyn AnyMethod> {
        let mut method = self.clone();
        change(method.common_mut());
        Arc::new(method)
    }

    fn problems(&self, purpose: Purpose) -> Vec<ConfigProblem> {
        Method::problems(self, purpose)
    }

    fn to_map(&self) -> Map<String, Value> {
        let mut values = as_map(self);
        let is_own = |key: &String| key == ROPE_SCALING || M::own_keys().contains(&key.as_str());
        values.retain(|key, value| !value.is_null() || !is_own(key));
        values
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<crate::BuiltAdapter, MethodError> {
        let Built { config, adapter, warnings, routine } = Method::build(self, place)?;
        let config = crate::MethodConfig::new(config);
        Ok(crate::BuiltAdapter { config, adapter, warnings, routines: vec![routine] })
    }

    fn written_as(&self) -> Option<MethodConfig> {
        Method::written_as(self)
    }

    fn foreign_file(&self) -> Option<Map<String, Value>> {
        Method::foreign_file(self)
    }

    fn differs_in_rank_only(&self, name: &str, found: &[usize], expected: &[usize]) -> bool {
        Method::differs_in_rank_only(self, name, found, expected)
    }

    fn may_be_forgotten(&self, name: &str) -> bool {
        Method::may_be_forgotten(self, name)
    }
}

/// How configurations of a method are read.
pub(crate) struct Row {
    pub(crate) peft_type: &'static str,
    pub(crate) keys: fn() -> Vec<String>,
    pub(crate) read: Read,
}

/// Reads known keys into a configuration, and adds what is wrong with them to the problems.
type Read = fn(&Map<String, Value>, Purpose, &mut Vec<ConfigProblem>) -> Option<Arc<dyn AnyMethod>>;

impl Row {
    const fn of<M: Method>() -> Self {
        Self { peft_type: M::PEFT_TYPE, keys: || keys_of(&M::default()), read: read::<M> }
    }
}

fn read<M: Method>(
    values: &Map<String, Value>,
    purpose: Purpose,
    problems: &mut Vec<ConfigProblem>,
) -> Option<Arc<dyn AnyMethod>> {
    let method: M = read_fields(values, M::uninterpreted(), purpose, problems)?;
    problems.extend(Method::problems(&method, purpose));
    if method.common().rope_scaling.is_some_and(|scaling| !(scaling.factor.is_finite() && scaling.factor > 1.0)) {
        let reason = "factor must be more than 1: the context that is wanted, divided by the base's".to_owned();
        problems.push(ConfigProblem::Value { key: ROPE_SCALING.to_owned(), reason });
    }
    Some(Arc::new(method))
}
