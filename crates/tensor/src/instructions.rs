//! Which of the processor's vector instructions kernels use: all that it has, or fewer where the user says so, to compare them
//! or to stay clear of one that misbehaves.

use std::sync::OnceLock;

/// Sets of x86-64's instructions that kernels are written for, each with all before it. Other processors have vectors of
/// their own, which are always used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Instructions {
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512.
    Avx512,
    /// AVX-512's dot products of bf16 numbers.
    Avx512Bf16,
    /// AMX's tiles of bf16 numbers.
    Amx,
}

/// The environment variable names no set of instructions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable} is '{found}'; it may be one of {names}, or not be set, which is all that the processor has")]
pub struct UnknownInstructions {
    /// The environment variable.
    pub variable: &'static str,
    /// Its value.
    pub found: String,
    /// What it may be.
    pub names: String,
}

impl Instructions {
    /// All of them, with the names that the environment variable has for them.
    pub const NAMED: [(&'static str, Self); 4] =
        [("avx2", Self::Avx2), ("avx512", Self::Avx512), ("avx512-bf16", Self::Avx512Bf16), ("amx", Self::Amx)];

    /// The environment variable that says up to which set they are used.
    pub const VARIABLE: &'static str = "TUNESMITH_INSTRUCTIONS";

    /// The most that the environment variable allows; all where it isn't set. Kernels read it once, when the first is chosen.
    ///
    /// # Errors
    /// If it names no set.
    pub fn from_environment() -> Result<Self, UnknownInstructions> {
        std::env::var_os(Self::VARIABLE).map_or(Ok(Self::Amx), |value| Self::named(&value.to_string_lossy()))
    }

    fn named(found: &str) -> Result<Self, UnknownInstructions> {
        let known = Self::NAMED.into_iter().find(|(name, _)| *name == found);
        known.map(|(_, instructions)| instructions).ok_or_else(|| UnknownInstructions {
            variable: Self::VARIABLE,
            found: found.to_owned(),
            names: Self::NAMED.map(|(name, _)| name).join(", "),
        })
    }

    /// Whether they may be used where the processor has them.
    #[inline]
    pub(crate) fn are_allowed(self) -> bool {
        static MOST: OnceLock<Instructions> = OnceLock::new();
        self <= *MOST.get_or_init(|| Self::from_environment().unwrap_or(Self::Amx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_others_are_told() {
        for (name, instructions) in Instructions::NAMED {
            assert_eq!(Instructions::named(name), Ok(instructions));
        }
        let told = Instructions::named("AVX3").unwrap_err().to_string();
        assert!(
            told.contains("TUNESMITH_INSTRUCTIONS is 'AVX3'; it may be one of avx2, avx512, avx512-bf16, amx"),
            "{told}"
        );
    }

    #[test]
    fn each_set_has_those_before_it() {
        assert!(Instructions::NAMED.is_sorted_by_key(|(_, instructions)| *instructions));
    }
}
