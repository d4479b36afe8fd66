//! Models of the Hugging Face hub, kept where other Hugging Face programs keep them.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use hf_hub::api::sync::ApiBuilder;

/// Files beside the weights that this program can use.
const SMALL_FILES: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
];

/// Fetches a model of the hub, file by file where a file is not there yet, and returns its folder.
///
/// # Errors
/// No network, no such model, a model without safetensors.
pub(crate) fn pull(name: &str, say: &dyn Fn(&str)) -> anyhow::Result<PathBuf> {
    let api = ApiBuilder::from_env().with_progress(crate::terminal::is_watched()).build();
    let model = api.context("cannot use the Hugging Face hub")?.model(name.to_owned());
    let info = model.info().map_err(|error| {
        anyhow!(
            "cannot pull {name} from the Hugging Face hub: {error}\n\
             There is no network, no such model, or no right to read it (`hf auth login` gives that).\n\
             By hand: download its config.json, tokenizer.json, tokenizer_config.json and *.safetensors elsewhere into \
             a folder, copy the folder here, and give its path in place of the name"
        )
    })?;
    let files: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
    let wanted = wanted(name, &files)?;
    let mut folder = None;
    for file in &wanted {
        say(&format!("fetching {name}/{file}"));
        let path = model.get(file).with_context(|| format!("cannot fetch {file} of {name}; pull again to go on"))?;
        folder = path.parent().map(Path::to_path_buf);
    }
    folder.with_context(|| format!("{name} has no files"))
}

/// The files to fetch of those that a model has.
fn wanted(name: &str, files: &[String]) -> anyhow::Result<Vec<String>> {
    let weights = |begin: &str| -> Vec<String> {
        let is_weight =
            |file: &&String| !file.contains('/') && file.starts_with(begin) && file.ends_with(".safetensors");
        files.iter().filter(is_weight).cloned().collect()
    };
    // Some models carry the same weights twice: as `model…` and, in another layout, as `consolidated…`.
    let weights = Some(weights("model")).filter(|found| !found.is_empty()).unwrap_or_else(|| weights(""));
    if !files.iter().any(|file| file == "config.json") {
        bail!("{name} has no config.json, so it is not a model in the format of transformers");
    }
    if weights.is_empty() {
        let has = |ending: &str| files.iter().any(|file| file.ends_with(ending));
        let instead = if has(".gguf") {
            "it has .gguf files: download one and give its path"
        } else if has(".bin") || has(".pt") || has(".pth") {
            "its weights are Python pickles, which can run any code when they are read. Convert it once with \
             transformers: from_pretrained(…).save_pretrained(folder)"
        } else {
            "choose another model"
        };
        bail!("{name} has no safetensors: {instead}");
    }
    let small = SMALL_FILES.iter().map(|file| (*file).to_owned()).filter(|file| files.contains(file));
    Ok(small.chain(weights).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(files: &[&str]) -> Result<Vec<String>, String> {
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        wanted("org/name", &files).map_err(|error| error.to_string())
    }

    #[test]
    fn weights_come_once_and_with_what_belongs_to_them() {
        let files = [
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "onnx/model.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
        ];
        let expected = [
            "config.json",
            "tokenizer.json",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        assert_eq!(choose(&files).unwrap(), expected);
        assert_eq!(choose(&["config.json", "weights.safetensors"]).unwrap().len(), 2);
    }

    #[test]
    fn a_model_without_safetensors_says_what_else_it_has() {
        assert!(choose(&["config.json", "pytorch_model.bin"]).unwrap_err().contains("Python pickles"));
        assert!(choose(&["config.json", "q4.gguf"]).unwrap_err().contains("download one"));
        assert!(choose(&["q4.gguf"]).unwrap_err().contains("no config.json"));
    }
}
