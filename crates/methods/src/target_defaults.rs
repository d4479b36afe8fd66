//! Default targets by `model_type`, as PEFT has them.

use crate::common::Modules;

/// LoRA's default `target_modules` for a model type. Also those of most other methods that tune linear layers.
pub(crate) fn lora(model_type: &str) -> Option<Modules> {
    if model_type == "gemma4" {
        return Some(Modules::Pattern(r".*language_model\..*\.(q_proj|v_proj)".to_owned()));
    }
    row(LORA, model_type)
}

/// VeRA's: LoRA's but for `phi`.
pub(crate) fn vera(model_type: &str) -> Option<Modules> {
    if model_type == "phi" { lora("llama") } else { lora(model_type) }
}

/// AdaLoRA's: LoRA's, but for some. Where PEFT has none, LoRA's.
pub(crate) fn adalora(model_type: &str) -> Option<Modules> {
    row(ADALORA, model_type).or_else(|| lora(model_type))
}

/// IA3's.
pub(crate) fn ia3(model_type: &str) -> Option<Modules> {
    row(IA3, model_type)
}

/// Those of IA3's targets whose inputs are scaled.
pub(crate) fn ia3_feedforward(model_type: &str) -> Modules {
    row(IA3_FEEDFORWARD, model_type).unwrap_or_else(|| Modules::Names(Vec::new()))
}

/// The norms that LN tuning trains.
pub(crate) fn ln_tuning(model_type: &str) -> Option<Modules> {
    row(LN_TUNING, model_type)
}

type Table = &'static [(&'static [&'static str], &'static [&'static str])];

fn row(table: Table, model_type: &str) -> Option<Modules> {
    let (_, names) = table.iter().find(|(types, _)| types.contains(&model_type))?;
    Some(Modules::Names(names.iter().map(|name| (*name).to_owned()).collect()))
}

const LORA: Table = &[
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
    // Not in PEFT.
    (&["distilbert"], &["q_lin", "v_lin"]),
    (&["rwkv"], &["key", "value", "receptance", "output"]),
    (&["rwkv7"], &["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"]),
];

const ADALORA: Table = &[
    (&["t5"], &["q", "k", "v", "o", "wi", "wo"]),
    (&["mt5"], &["q", "k", "v", "o", "wi_0", "wi_1", "wo"]),
    (&["bart", "opt"], &["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]),
    (&["roberta"], &["query", "key", "value", "dense"]),
    (&["deberta-v2"], &["query_proj", "key_proj", "value_proj", "dense"]),
];

const IA3: Table = &[
    (&["t5"], &["k", "v", "wo"]),
    (&["mt5"], &["k", "v", "wi_1"]),
    (&["gpt2", "gpt_bigcode"], &["c_attn", "mlp.c_proj"]),
    (&["bloom"], &["query_key_value", "mlp.dense_4h_to_h"]),
    (&["bert", "roberta"], &["key", "value", "output.dense"]),
    (&["opt"], &["q_proj", "k_proj", "fc2"]),
    (&["gptj"], &["q_proj", "v_proj", "fc_out"]),
    (&["gpt_neox", "RefinedWebModel", "RefinedWeb", "falcon"], &["query_key_value", "dense_4h_to_h"]),
    (&["gpt_neo"], &["q_proj", "v_proj", "c_proj"]),
    (&["bart", "phi"], &["q_proj", "v_proj", "fc2"]),
    (&["llama", "mistral"], &["k_proj", "v_proj", "down_proj"]),
    (&["llama4", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"], &["q_proj", "v_proj", "down_proj"]),
    (&["mixtral"], &["k_proj", "v_proj", "w2"]),
    (&["deberta-v2"], &["key_proj", "value_proj", "output.dense"]),
    (&["deberta"], &["in_proj", "output.dense"]),
    // Not in PEFT.
    (&["distilbert"], &["k_lin", "v_lin", "ffn.lin2"]),
];

const IA3_FEEDFORWARD: Table = &[
    (&["t5"], &["wo"]),
    (&["gpt2", "gpt_bigcode"], &["mlp.c_proj"]),
    (&["bloom"], &["mlp.dense_4h_to_h"]),
    (&["bert", "roberta", "deberta-v2", "deberta"], &["output.dense"]),
    (&["opt", "bart", "phi"], &["fc2"]),
    (&["gptj"], &["fc_out"]),
    (&["gpt_neox", "RefinedWebModel", "RefinedWeb", "falcon"], &["dense_4h_to_h"]),
    (&["gpt_neo"], &["c_proj"]),
    (&["llama", "llama4", "mistral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"], &["down_proj"]),
    (&["mixtral"], &["w2"]),
    (&["distilbert"], &["ffn.lin2"]),
];

const LN_TUNING: Table = &[
    (&["llama", "mistral", "gemma"], &["input_layernorm", "post_attention_layernorm", "norm"]),
    (&["bloom", "falcon"], &["input_layernorm", "post_attention_layernorm", "ln_f"]),
    (&["t5", "mt5"], &["layer_norm", "final_layer_norm"]),
    (&["bart"], &["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"]),
    (&["gpt2"], &["ln_1", "ln_2", "ln_f"]),
    (&["gptj"], &["ln_1", "ln_f"]),
    (&["phi"], &["input_layernorm", "final_layernorm"]),
    (
        &["gemma2", "gemma3_text"],
        &[
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
            "norm",
        ],
    ),
    (&["qwen2", "qwen3"], &["post_attention_layernorm"]),
    // Not in PEFT.
    (&["bert", "roberta"], &["LayerNorm"]),
    (&["distilbert"], &["LayerNorm", "sa_layer_norm", "output_layer_norm"]),
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
        for table in [LORA, ADALORA, IA3, IA3_FEEDFORWARD, LN_TUNING] {
            let mut types: Vec<&str> = table.iter().flat_map(|(types, _)| *types).copied().collect();
            let count = types.len();
            types.sort_unstable();
            types.dedup();
            assert_eq!(types.len(), count);
        }
    }

    #[test]
    fn every_architecture_has_defaults_of_every_method() {
        let types = [
            "gpt2",
            "llama",
            "mistral",
            "qwen2",
            "qwen3",
            "gemma3_text",
            "bert",
            "roberta",
            "distilbert",
            "t5",
            "bart",
        ];
        for model_type in types {
            for defaults in [lora, vera, adalora, ia3, ln_tuning] {
                assert!(defaults(model_type).is_some(), "{model_type}");
            }
            assert_ne!(ia3_feedforward(model_type), Modules::Names(Vec::new()), "{model_type}");
        }
    }
}
