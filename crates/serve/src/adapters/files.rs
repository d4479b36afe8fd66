//! Reading adapter files that others put there: only regular files within the configured folder, only safetensors, and
//! nothing larger than agreed. What is hashed is what is used: files are read once.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tunesmith_methods::{AdapterFiles, MethodError, adapter_paths};

/// How large adapters may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterLimits {
    /// Bytes of the files of one adapter.
    pub file_bytes: u64,
    /// Bytes of all adapters in memory together; pinned ones and those in use may exceed it.
    pub resident_bytes: usize,
    /// How many names there may be.
    pub names: usize,
}

impl Default for AdapterLimits {
    fn default() -> Self {
        Self { file_bytes: 1 << 30, resident_bytes: 4 << 30, names: 100_000 }
    }
}

/// Why an adapter cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// No such name.
    #[error("there is no adapter '{name}'")]
    Unknown {
        /// The name that was asked for.
        name: String,
    },
    /// A name that no adapter may have.
    #[error("'{name}' cannot be the name of an adapter: {reason}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The name is taken.
    #[error("the adapter '{name}' is loaded already: set load_inplace to replace it")]
    Loaded {
        /// The name.
        name: String,
    },
    /// A path outside of the folder, or a link out of it.
    #[error("'{path}' is not within the folder of adapters")]
    Outside {
        /// The path as it was given.
        path: String,
    },
    /// There is no folder of adapters.
    #[error("this server has no folder of adapters: start it with one")]
    NoFolder,
    /// Nothing there.
    #[error("there are no adapter files in '{path}'")]
    Missing {
        /// The path as it was given.
        path: String,
    },
    /// Too large.
    #[error("the files of '{path}' are larger than {limit} bytes")]
    TooLarge {
        /// The path.
        path: String,
        /// The limit.
        limit: u64,
    },
    /// A number in its configuration that its weights cannot bear out, for which memory would be taken.
    #[error("the configuration of '{path}' says {key}: {value}, for which its weights are too few")]
    Implausible {
        /// The path.
        path: String,
        /// The key.
        key: String,
        /// What it says.
        value: u64,
    },
    /// Values that are not finite.
    #[error("the adapter '{path}' holds values that are not finite, such as those of {tensor}")]
    NotFinite {
        /// The path.
        path: String,
        /// The first such tensor.
        tensor: String,
    },
    /// Another generation than the one that was asked for.
    #[error("the adapter '{name}' is of generation {found}, not {expected}")]
    Generation {
        /// The name.
        name: String,
        /// The one that is there.
        found: String,
        /// The one that was asked for.
        expected: String,
    },
    /// Too many names.
    #[error("there are {limit} adapters already, which is the limit")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// It does not fit the model, or is damaged.
    #[error(transparent)]
    Method(#[from] MethodError),
    /// It cannot be read.
    #[error("cannot read '{path}': {source}")]
    Read {
        /// The path.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// The folder that adapters may lie in, as a canonical path.
#[derive(Clone, Debug)]
pub(crate) struct Root(PathBuf);

/// An adapter's bytes.
pub(crate) struct ReadAdapter {
    pub(crate) files: AdapterFiles,
    pub(crate) bytes: u64,
}

impl ReadAdapter {
    /// SHA-256 of all configurations and weights, in hexadecimal digits.
    pub(crate) fn generation(&self) -> String {
        let mut hash = Sha256::new();
        for bytes in self.files.parts.iter().flat_map(|(config, weights)| [config, weights]) {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Root {
    pub(crate) fn new(folder: &Path) -> io::Result<Self> {
        Ok(Self(folder.canonicalize()?))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The canonical path of an adapter's folder, given below the root or as a whole path.
    pub(crate) fn resolve(&self, path: &str) -> Result<PathBuf, AdapterError> {
        let outside = || AdapterError::Outside { path: path.to_owned() };
        let given = Path::new(path);
        if path.contains('\0') || given.components().any(|part| matches!(part, Component::ParentDir)) {
            return Err(outside());
        }
        let whole = if given.is_absolute() { given.to_owned() } else { self.0.join(given) };
        // A path that lies elsewhere is refused before anyone learns whether it exists.
        if !whole.starts_with(&self.0) {
            return Err(outside());
        }
        let canonical = whole.canonicalize().map_err(|_| AdapterError::Missing { path: path.to_owned() })?;
        if !canonical.starts_with(&self.0) || canonical == self.0 {
            return Err(outside());
        }
        Ok(canonical)
    }

    /// Reads the adapter in a folder that [`Root::resolve`] gave; `shown` is what messages call it.
    pub(crate) fn read(&self, folder: &Path, shown: &str, limits: &AdapterLimits) -> Result<ReadAdapter, AdapterError> {
        let mut left = limits.file_bytes;
        let mut parts = Vec::new();
        for (config, weights) in adapter_paths(folder)? {
            let mut read = |path: &Path| {
                let bytes = self.read_file(path, shown, left, limits)?;
                left -= bytes.len() as u64;
                Ok::<_, AdapterError>(bytes)
            };
            parts.push((read(&config)?, read(&weights)?));
        }
        let files = AdapterFiles { folder: PathBuf::from(shown), parts };
        Ok(ReadAdapter { files, bytes: limits.file_bytes - left })
    }

    fn read_file(&self, path: &Path, shown: &str, left: u64, limits: &AdapterLimits) -> Result<Vec<u8>, AdapterError> {
        let canonical = path.canonicalize().map_err(|_| AdapterError::Missing { path: shown.to_owned() })?;
        if !canonical.starts_with(&self.0) {
            return Err(AdapterError::Outside { path: shown.to_owned() });
        }
        let failed = |source| AdapterError::Read { path: shown.to_owned(), source };
        let file = File::open(&canonical).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(AdapterError::Missing { path: shown.to_owned() });
        }
        // One byte more than there should be, so that the end is seen without more room.
        let mut bytes = Vec::with_capacity(metadata.len().min(left) as usize + 1);
        file.take(left + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > left {
            return Err(AdapterError::TooLarge { path: shown.to_owned(), limit: limits.file_bytes });
        }
        Ok(bytes)
    }
}

/// Makes sure that no number of a configuration asks for far more memory than its weights take: every rank has a row of a
/// model `width` wide.
pub(crate) fn check_sizes(shown: &str, config: &[u8], weights: usize, width: usize) -> Result<(), AdapterError> {
    // What does not parse is reported by those who need it.
    let Ok(config) = serde_json::from_slice::<Value>(config) else { return Ok(()) };
    let values = weights / 2;
    let ranks = (values / width.max(1)).max(1);
    let found = largest(&config, "", &|key| match key {
        "r" | "init_r" | "target_r" | "rank_pattern" | "num_virtual_tokens" | "num_transformer_submodules" => ranks,
        "intrinsic_dimension" => values,
        "encoder_hidden_size" | "bottleneck_size" => 1 << 16,
        "encoder_num_layers" => 64,
        _ => usize::MAX,
    });
    match found {
        Some((key, value)) => Err(AdapterError::Implausible { path: shown.to_owned(), key, value }),
        None => Ok(()),
    }
}

/// The first number that is larger than `limit` says of its key, with the key.
fn largest(value: &Value, key: &str, limit: &dyn Fn(&str) -> usize) -> Option<(String, u64)> {
    match value {
        Value::Number(number) => {
            let number = number.as_u64().or_else(|| number.as_f64().map(|number| number as u64))?;
            (number > limit(key) as u64).then(|| (key.to_owned(), number))
        }
        Value::Array(values) => values.iter().find_map(|value| largest(value, key, limit)),
        // A pattern's keys are names of modules.
        Value::Object(fields) => fields
            .iter()
            .find_map(|(name, value)| largest(value, if key.ends_with("_pattern") { key } else { name }, limit)),
        _ => None,
    }
}

/// Makes sure that a name is one that a folder, a URL and a metric can have.
pub(crate) fn check_name(name: &str) -> Result<(), AdapterError> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.len() > 200 {
        "it has more than 200 characters"
    } else if name.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        "it has an empty part, or one of dots alone"
    } else if !name.chars().all(|letter| letter.is_alphanumeric() || "-_./:@+".contains(letter)) {
        "it may hold letters, digits and -_./:@+ alone"
    } else {
        return Ok(());
    };
    Err(AdapterError::Name { name: name.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn paths_outside_of_the_folder_are_refused() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("adapters");
        fs::create_dir_all(folder.join("a")).unwrap();
        fs::create_dir_all(outer.path().join("secret")).unwrap();
        std::os::unix::fs::symlink(outer.path().join("secret"), folder.join("out")).unwrap();
        std::os::unix::fs::symlink(folder.join("a"), folder.join("in")).unwrap();
        let root = Root::new(&folder).unwrap();
        let secret = outer.path().join("secret").display().to_string();
        for path in ["../secret", "a/../../secret", "/etc", "out", "a/../../adapters/a", "", ".", "a\0b", &secret] {
            let error = root.resolve(path).unwrap_err();
            assert!(matches!(error, AdapterError::Outside { .. }), "{path}: {error}");
        }
        assert!(matches!(root.resolve("b"), Err(AdapterError::Missing { .. })));
        let inside = root.path().join("a");
        assert_eq!(root.resolve("a").unwrap(), inside);
        assert_eq!(root.resolve("in").unwrap(), inside);
        assert_eq!(root.resolve(&inside.display().to_string()).unwrap(), inside);
    }

    #[test]
    fn files_that_are_links_out_or_too_large_are_refused() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("adapters");
        fs::create_dir_all(folder.join("a")).unwrap();
        fs::write(outer.path().join("secret"), "{}").unwrap();
        fs::write(folder.join("a/adapter_model.safetensors"), [0; 100]).unwrap();
        std::os::unix::fs::symlink(outer.path().join("secret"), folder.join("a/adapter_config.json")).unwrap();
        let root = Root::new(&folder).unwrap();
        let limits = AdapterLimits { file_bytes: 50, ..AdapterLimits::default() };
        let read = |limits: &AdapterLimits| root.read(&root.resolve("a").unwrap(), "a", limits).err().unwrap();
        assert!(matches!(read(&limits), AdapterError::Outside { .. }));
        fs::remove_file(folder.join("a/adapter_config.json")).unwrap();
        assert!(matches!(read(&limits), AdapterError::Missing { .. }));
        fs::write(folder.join("a/adapter_config.json"), "{}").unwrap();
        assert!(matches!(read(&limits), AdapterError::TooLarge { .. }));
        let whole = AdapterLimits { file_bytes: 102, ..limits };
        let generation = |root: &Root| root.read(&root.resolve("a").unwrap(), "a", &whole).unwrap().generation();
        let first = generation(&root);
        assert_eq!(first.len(), 64);
        fs::write(folder.join("a/adapter_config.json"), "[]").unwrap();
        assert_ne!(generation(&root), first);
    }

    #[test]
    fn numbers_that_the_weights_cannot_bear_out_are_refused() {
        let check = |config: &str| check_sizes("a", config.as_bytes(), 20_000, 100);
        for good in ["{\"r\": 8}", "{\"total_step\": 1000000000}", "{", "{\"rank_pattern\": {\"q_proj\": 9}}"] {
            check(good).unwrap();
        }
        for bad in ["{\"r\": 101}", "{\"r\": 1e30}", "{\"rank_pattern\": {\"q_proj\": 1000}}", "[{\"init_r\": 1000}]"] {
            assert!(matches!(check(bad), Err(AdapterError::Implausible { .. })), "{bad}");
        }
    }

    #[test]
    fn names_are_checked() {
        for name in ["sst2", "team/sst2", "a.b-c_d:1@x+y", "größe"] {
            check_name(name).unwrap();
        }
        for name in ["", "..", "a/../b", "/a", "a/", "a b", "a\nb", "a\"b", &"x".repeat(201)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
