//! The cases that are not run, each with its reason.

/// Why the cases of an architecture, or one method of it, are not run; `None` if they are.
pub(crate) fn reason(arch: &str, method: Option<&str>) -> Option<&'static str> {
    match (arch, method) {
        ("llama" | "mistral" | "qwen2" | "bert" | "roberta", None) => None,
        ("llama" | "mistral" | "qwen2" | "bert" | "roberta", Some(method)) => match method {
            "lora-dora" => Some("DoRA is not built yet"),
            "prompt-tuning" | "p-tuning" => Some("methods at the input site are not built yet"),
            "prefix-tuning" | "prefix-tuning-mlp" => Some("prefix tuning is not built yet"),
            "ia3" | "vera" => Some("IA3 and VeRA are not built yet"),
            "houlsby" | "pfeiffer" | "parallel" => Some("bottleneck adapters are not built yet"),
            _ => None,
        },
        ("gpt2" | "t5" | "flan-t5" | "bart", _) => Some("the architecture is not built yet"),
        ("qlora", _) => Some("4-bit bases are not built yet"),
        _ => None,
    }
}
