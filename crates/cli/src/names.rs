//! Model names: where a pulled model lies, and what a name in a command or configuration means.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use etcetera::BaseStrategy;
use hf_hub::{Cache, Repo};
use tunesmith_train::nearest;

use crate::failure::Misuse;
use crate::pull::PACKAGED;

const CACHE_VARIABLE: &str = "TUNESMITH_CACHE";

/// The folder where pulled models are kept: `TUNESMITH_CACHE`, else `tunesmith` in the user's cache folder.
pub(crate) fn cache_folder() -> anyhow::Result<PathBuf> {
    if let Some(folder) = env::var_os(CACHE_VARIABLE).filter(|folder| !folder.is_empty()) {
        return Ok(PathBuf::from(folder));
    }
    let base = etcetera::choose_base_strategy()
        .with_context(|| format!("there is no home folder to keep models in: set {CACHE_VARIABLE} to a folder"))?;
    Ok(base.cache_dir().join("tunesmith"))
}

/// Whether a name can be that of a model on the Hugging Face hub: `ORG/NAME`.
pub(crate) fn is_hub_name(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter))
    };
    name.split_once('/').is_some_and(|(organisation, model)| part(organisation) && part(model))
}

/// The folder of a hub model that was pulled (by this or another Hugging Face program).
pub(crate) fn hub_folder(name: &str) -> Option<PathBuf> {
    let config = Cache::from_env().repo(Repo::model(name.to_owned())).get("config.json")?;
    config.parent().map(Path::to_path_buf)
}

/// The model folder or file that `name` means: a path, or a name that was pulled.
///
/// # Errors
/// [`Misuse`] saying what to do: pull it, or which name was probably meant.
pub(crate) fn resolve(name: &str) -> anyhow::Result<PathBuf> {
    let path = Path::new(name);
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    if let Some(model) = PACKAGED.iter().find(|model| model.name == name) {
        let path = model.path(&cache_folder()?);
        let pull = format!("{name} has not been pulled yet: run `tunesmith pull {name}`");
        return if path.exists() { Ok(path) } else { Err(Misuse(pull).into()) };
    }
    let hub = is_hub_name(name);
    if let Some(folder) = Some(name).filter(|_| hub).and_then(hub_folder) {
        return Ok(folder);
    }
    let known = known_names();
    let mut message = format!("there is no model '{name}': it is no file or folder");
    message += if hub { ", and no model of the hub that was pulled" } else { ", and no name that can be pulled" };
    if let Some(near) = nearest(name, known.iter().map(String::as_str)) {
        message += &format!("; did you mean '{near}'?");
    } else if hub {
        message += &format!("; `tunesmith pull {name}` fetches it from the hub");
    } else {
        message += &format!("; known names are {}, and ORG/NAME on the Hugging Face hub", known.join(", "));
    }
    Err(Misuse(message).into())
}

/// Names that `resolve` knows: the packaged models and the hub's that were pulled.
fn known_names() -> Vec<String> {
    let packaged = PACKAGED.iter().map(|model| model.name.to_owned());
    let folders = fs::read_dir(Cache::from_env().path()).into_iter().flatten().flatten();
    let pulled = folders.filter_map(|folder| {
        let name = folder.file_name().to_str()?.strip_prefix("models--")?.replacen("--", "/", 1);
        Some(name)
    });
    let mut pulled: Vec<String> = pulled.collect();
    pulled.sort();
    packaged.chain(pulled).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_names_have_one_slash_and_plain_parts() {
        assert!(is_hub_name("Qwen/Qwen2.5-0.5B-Instruct"));
        for name in ["smollm2", "a/b/c", "/a", "a/", "../a", "./a", "a b/c"] {
            assert!(!is_hub_name(name), "{name}");
        }
    }

    #[test]
    fn a_path_that_exists_is_meant_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        assert_eq!(resolve(path).unwrap(), folder.path());
    }

    #[test]
    fn a_name_that_is_nothing_gets_the_nearest_one() {
        let message = resolve("smollm2-135m-instuct").unwrap_err().to_string();
        assert!(message.ends_with("did you mean 'smollm2-135m-instruct'?"), "{message}");
        let message = resolve("some-organisation/of-no-such-model").unwrap_err().to_string();
        assert!(
            message.ends_with("`tunesmith pull some-organisation/of-no-such-model` fetches it from the hub"),
            "{message}"
        );
    }
}
