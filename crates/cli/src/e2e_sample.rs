//! The sample of the E2E NLG data (Novikova et al. 2017, CC BY-SA 4.0) that the program carries.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Training pairs, `meaning representation||text` a line.
const TRAIN: &str = include_str!("../../../data/e2e-sample/train.txt");
/// Held-out pairs: every text of meaning representations that are not in the training set.
const TEST: &str = include_str!("../../../data/e2e-sample/test.txt");
const ATTRIBUTION: &str = include_str!("../../../data/e2e-sample/LICENSE");
/// A run on the sample.
pub(crate) const RUN: &str = include_str!("../../../data/e2e-sample/train.yaml");

/// The sample's files in a folder.
pub(crate) struct SampleFiles {
    /// The training set.
    pub(crate) train: PathBuf,
    /// The held-out set.
    pub(crate) test: PathBuf,
}

impl SampleFiles {
    /// Where the files lie in `folder`.
    pub(crate) fn within(folder: &Path) -> Self {
        Self { train: folder.join("train.txt"), test: folder.join("test.txt") }
    }

    /// Writes the files, with their licence.
    pub(crate) fn write(folder: &Path) -> anyhow::Result<Self> {
        let files = Self::within(folder);
        let write =
            |path: &Path, text: &str| fs::write(path, text).with_context(|| format!("cannot write {}", path.display()));
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        write(&files.train, TRAIN)?;
        write(&files.test, TEST)?;
        write(&folder.join("LICENSE"), ATTRIBUTION)?;
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn nothing_held_out_is_trained_on() {
        let inputs = |text: &'static str| -> HashSet<&str> {
            text.lines().map(|line| line.split_once("||").expect("every line is a pair").0).collect()
        };
        let (train, test) = (inputs(TRAIN), inputs(TEST));
        assert_eq!((TRAIN.lines().count(), test.len()), (960, 80));
        assert!(train.is_disjoint(&test));
    }
}
