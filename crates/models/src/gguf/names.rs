//! What llama.cpp calls the models that are read and their tensors, in Hugging Face's words.

/// A kind of model (`general.architecture`) and how llama.cpp's converter treats it.
#[derive(Debug)]
pub(super) struct Family {
    /// llama.cpp's name, which is also what its metadata keys begin with.
    pub(super) name: &'static str,
    /// Hugging Face's `model_type`.
    pub(super) model_type: &'static str,
    /// transformers' class.
    pub(super) class: &'static str,
    /// Whether the rows of queries and keys are in another order, in which neighbouring rows are rotated together.
    pub(super) is_interleaved: bool,
    /// Whether norms hold one more than Hugging Face's.
    pub(super) has_whole_norms: bool,
}

pub(super) const FAMILIES: [Family; 4] = [
    Family {
        name: "llama",
        model_type: "llama",
        class: "LlamaForCausalLM",
        is_interleaved: true,
        has_whole_norms: false,
    },
    Family {
        name: "qwen2",
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        is_interleaved: false,
        has_whole_norms: false,
    },
    Family {
        name: "qwen3",
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        is_interleaved: false,
        has_whole_norms: false,
    },
    Family {
        name: "gemma3",
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        is_interleaved: false,
        has_whole_norms: true,
    },
];

impl Family {
    /// Whether it is Gemma 3, which has norms around each sub-layer and two kinds of blocks.
    pub(super) fn is_gemma(&self) -> bool {
        self.name == "gemma3"
    }

    /// The Hugging Face name of a tensor; `None` for one that these models do not have.
    pub(super) fn hugging_face_name(&self, gguf_name: &str) -> Option<String> {
        match gguf_name {
            "token_embd.weight" => return Some("model.embed_tokens.weight".to_owned()),
            "output_norm.weight" => return Some("model.norm.weight".to_owned()),
            "output.weight" => return Some("lm_head.weight".to_owned()),
            _ => {}
        }
        let (block, rest) = gguf_name.strip_prefix("blk.")?.split_once('.')?;
        if !block.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let (module, kind) = rest.rsplit_once('.').unwrap_or((rest, ""));
        let module = match module {
            "attn_norm" => "input_layernorm",
            "attn_q" => "self_attn.q_proj",
            "attn_q_norm" => "self_attn.q_norm",
            "attn_k" => "self_attn.k_proj",
            "attn_k_norm" => "self_attn.k_norm",
            "attn_v" => "self_attn.v_proj",
            "attn_output" => "self_attn.o_proj",
            // Frequencies that old files stored and nothing reads.
            "attn_rot_embd" => return Some(format!("model.layers.{block}.self_attn.rotary_emb.inv_freq")),
            "post_attention_norm" => "post_attention_layernorm",
            "ffn_norm" if self.is_gemma() => "pre_feedforward_layernorm",
            "ffn_norm" => "post_attention_layernorm",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            "post_ffw_norm" => "post_feedforward_layernorm",
            _ => return None,
        };
        Some(format!("model.layers.{block}.{module}.{kind}"))
    }
}
