//! Tunesmith's training core: row-major matrices of tokens, a closed list of differentiable operations over them, the
//! kernels beneath, seeded randomness, and the seam where methods meet models.
//!
//! Everything is a matrix `[tokens, features]`; [`Segments`] say where sequences begin and end; there is no padding.

mod adapter;
mod arena;
mod awake;
mod checkpoint;
mod forward;
mod frozen;
mod frozen_tuner;
mod instructions;
mod kernels;
mod machine;
mod matrix;
mod ops;
mod parameter;
mod profile;
mod projection;
mod quantized;
mod random;
mod segments;
mod shelf;
mod site;
mod site_map;
mod tape;
mod thin_update;
mod torch_generator;
mod tuner;
mod workspace;

pub use adapter::Adapter;
pub use forward::{FeedForwardSites, Forward, PostNorm, SelfAttentionSites};
pub use frozen::FrozenWeight;
pub use frozen_tuner::FrozenTuner;
pub use instructions::{Instructions, UnknownInstructions};
pub use kernels::{Kernels, Precision, vectorised};
pub use machine::{MachinePeaks, tile_unit_peak};
pub use matrix::Matrix;
pub use ops::activation::Activation;
pub use ops::attention::{
    Attention, DistanceBias, GroupSize, KeyValuePages, KeyValuePairs, KeyValueRows, PageRows, Prefix, ShiftedEnds,
    ShiftedGroups,
};
pub use ops::cross_entropy::{CrossEntropy, IGNORED_TARGET};
pub use ops::fastfood::Fastfood;
pub use ops::rotary::Rotary;
pub use ops::sparse_product::Sparse;
pub use parameter::{Gradients, Parameter, ParameterId, ValueMut};
pub use profile::{Direction, Lap, Profile};
pub use projection::Projection;
pub use quantized::{
    Absmax, BLOCK_SIZE, Bytes, FourBitError, FourBitOptions, FourBitType, FourBitWeight, GgmlError, GgmlFormat,
    GgmlWeight, MappedFile, NESTED_BLOCK_SIZE, NestedAbsmax, dynamic_map,
};
pub use random::{Seed, Stream};
pub use segments::Segments;
pub use site::{Role, Site, SiteId, SiteKind};
pub use tape::{Tape, Var};
pub use torch_generator::TorchGenerator;
pub use tuner::{
    Affine, AttentionTuner, Base, HiddenTuner, InputTuner, LowRankUpdate, Replacement, Stored, SubLayer, SubLayerNorm,
    Term, Trainable, Tuned, WeightTuner,
};
pub use workspace::{Workspace, zeros};
