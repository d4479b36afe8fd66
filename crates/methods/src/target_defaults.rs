//! Default targets by `model_type`, as PEFT has them.

use crate::common::Modules;

/// LoRA's default `target_modules` for a model type. Also those of most other methods that tune linear layers.
pub(crate) fn lora(model_type: &str) -> Option<Modules> {
    if model_type == "gemma4" {
        return Some(Modules::Pattern(r".*language_model\..*\.(q_proj|v_proj)".to_owned()));
    }
    let (_, names) = LORA.iter().find(|(types, _)| types.contains(&model_type))?;
    Some(Modules::Names(names.iter().map(|name| (*name).to_owned()).collect()))
}

const LORA: &[(&[&str], &[&str])] = &[
    (
        &[
            "bart",
            "gemma",
            "gemma2",
            "gemma3_text",
            "gpt_neo",
            "gptj",
            "llama",
            "llama4",
            "mistral",
            "mixtral",
            "opt",
            "qwen2",
            "qwen3",
            "stablelm",
        ],
        &["q_proj", "v_proj"],
    ),
    (&["phi"], &["q_proj", "v_proj", "fc1", "fc2"]),
    (&["nemotron_h"], &["q_proj", "k_proj", "v_proj", "o_proj"]),
    (&["bert", "electra", "layoutlm", "roberta", "xlm-roberta"], &["query", "value"]),
    (&["deberta"], &["in_proj"]),
    (&["deberta-v2"], &["query_proj", "value_proj"]),
    (&["mt5", "t5"], &["q", "v"]),
    (&["blip-2"], &["q", "v", "q_proj", "v_proj"]),
    (&["gpt2", "gpt_bigcode"], &["c_attn"]),
    (&["btlm"], &["c_proj", "c_attn"]),
    (&["codegen"], &["qkv_proj"]),
    (&["mpt"], &["Wqkv"]),
    (&["RefinedWeb", "RefinedWebModel", "bloom", "chatglm", "falcon", "gpt_neox"], &["query_key_value"]),
    (&["rwkv"], &["key", "value", "receptance", "output"]),
    (&["rwkv7"], &["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_any_of_their_types() {
        let names = |names: &[&str]| Some(Modules::Names(names.iter().map(|name| (*name).to_owned()).collect()));
        assert_eq!(lora("qwen2"), names(&["q_proj", "v_proj"]));
        assert_eq!(lora("t5"), names(&["q", "v"]));
        assert_eq!(lora("unheard-of"), None);
    }

    #[test]
    fn no_type_has_two_rows() {
        let mut types: Vec<&str> = LORA.iter().flat_map(|(types, _)| *types).copied().collect();
        let count = types.len();
        types.sort_unstable();
        types.dedup();
        assert_eq!(types.len(), count);
    }
}
