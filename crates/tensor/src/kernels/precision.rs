//! The arithmetic of matrix products.

use super::bf16::Unit;

/// The arithmetic of matrix products, chosen when a model is loaded. In either, sums are float32, and so are the residual
/// stream, norms, softmax, and the values, gradients and optimiser states of trainable tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Operands are float32: agrees with PyTorch's float32.
    #[default]
    Float32,
    /// Operands are rounded to bf16 and their products summed in float32: the way to speed on processors with a bf16
    /// unit. Frozen weights take half the memory.
    Bf16,
}

impl Precision {
    /// All of them, with the names that configurations use.
    pub const NAMED: [(&'static str, Self); 2] = [("float32", Self::Float32), ("bf16", Self::Bf16)];

    /// bf16 where the processor has a unit for it (AMX, AVX-512-BF16), otherwise float32, which is faster there.
    pub fn detect() -> Self {
        if Unit::detect() == Unit::Float32 { Self::Float32 } else { Self::Bf16 }
    }

    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bf16 => "bf16",
        }
    }
}
