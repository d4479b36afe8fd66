#!/usr/bin/env python3
"""Writes targets.json: what Hugging Face PEFT makes of many LoRA configurations on tiny models.

Usage:  pip install torch transformers peft && python make_targets.py > targets.json

For each model its weight sites; for each case the configuration and either the kind of error that PEFT raises, or the
adapted modules with their rank and alpha, the tensors of the saved adapter with their shapes, and the saved targets.
"""
import json
import sys
import warnings

import peft
import torch
import transformers

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()

SIZES = dict(vocab_size=16, hidden_size=8, intermediate_size=12, num_attention_heads=2, num_key_value_heads=1,
             max_position_embeddings=32)


def models():
    return {
        "llama": transformers.LlamaForCausalLM(
            transformers.LlamaConfig(num_hidden_layers=2, tie_word_embeddings=False, **SIZES)),
        "qwen2": transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(num_hidden_layers=3, tie_word_embeddings=False, **SIZES)),
        "deep": transformers.LlamaForCausalLM(
            transformers.LlamaConfig(num_hidden_layers=12, tie_word_embeddings=False, **SIZES)),
    }


LAYER = "model.layers.{}.{}"
Q = [LAYER.format(i, "self_attn.q_proj") for i in range(12)]
V = [LAYER.format(i, "self_attn.v_proj") for i in range(12)]
PATTERNS = dict(r=4, lora_alpha=10, target_modules=["q_proj", "k_proj", "up_proj"])

# What a configuration asks for, on each of the models named.
CASES = [
    (["llama", "qwen2", "deep"], {}),
    (["llama", "qwen2", "deep"], dict(target_modules="all-linear", r=2)),
    (["llama"], dict(target_modules="ALL-linear")),
    (["llama", "qwen2"], dict(target_modules=["q_proj"])),
    (["llama"], dict(target_modules=["o_proj", "down_proj"], r=3, lora_alpha=7)),
    (["llama"], dict(target_modules=["self_attn.q_proj", "1.mlp.up_proj"])),
    (["llama"], dict(target_modules=["model.layers.0.self_attn.q_proj"])),
    (["llama"], dict(target_modules=["lm_head", "q_proj"])),
    (["llama"], dict(target_modules=r".*\.(q|v)_proj")),
    (["llama"], dict(target_modules=r"model\.layers\.1\.mlp\.(up|down)_proj")),
    (["llama"], dict(target_modules=r".*layers\.(?!0\.)\d+\.self_attn\.[qk]_proj")),
    (["llama"], dict(target_modules=r"(?i).*Q_PROJ")),
    (["llama"], dict(target_modules=r"q_proj")),
    (["llama"], dict(target_modules=r".*self_attn.*")),
    (["llama"], dict(target_modules=["mlp"])),
    (["llama"], dict(target_modules=["embed_tokens_2"])),
    (["llama"], dict(target_modules=["input_layernorm"])),
    (["llama"], dict(target_modules=[])),
    (["llama"], dict(target_modules=["q_proj"], exclude_modules=["layers.0.self_attn.q_proj"])),
    (["llama"], dict(target_modules=["q_proj", "v_proj"], exclude_modules=["v_proj"])),
    (["llama"], dict(target_modules="all-linear", exclude_modules=r".*layers\.1\..*")),
    (["llama"], dict(target_modules="all-linear", exclude_modules=["o_proj"])),
    (["llama"], dict(target_modules=["q_proj"], exclude_modules=["q_proj"])),
    (["llama"], dict(target_modules=["q_proj"], exclude_modules=["proj"])),
    (["qwen2"], dict(target_modules=["q_proj", "v_proj"], layers_to_transform=1)),
    (["qwen2"], dict(target_modules=["q_proj", "v_proj"], layers_to_transform=[0, 2])),
    (["qwen2"], dict(target_modules=["q_proj", "v_proj"], layers_to_transform=[])),
    (["qwen2"], dict(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="layers")),
    (["qwen2"], dict(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern=["h", "layers"])),
    (["qwen2"], dict(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern=["h"])),
    (["qwen2"], dict(target_modules=["q_proj"], layers_to_transform=[7])),
    (["qwen2"], dict(target_modules=["model.layers.0.self_attn.q_proj", "v_proj"], layers_to_transform=[2])),
    (["qwen2"], dict(target_modules=["lm_head", "q_proj"], layers_to_transform=[2])),
    (["qwen2"], dict(target_modules=r".*q_proj", layers_to_transform=[2])),
    (["qwen2"], dict(target_modules="all-linear", layers_to_transform=[2])),
    (["qwen2"], dict(target_modules=["q_proj"], layers_pattern="layers")),
    (["deep"], dict(target_modules=Q + V[:8])),
    (["deep"], dict(target_modules=Q + V)),
    (["deep"], dict(target_modules=Q + V, layers_to_transform=[3])),
    (["deep"], dict(target_modules=Q[:10] + V[:9])),
    (["deep"], dict(target_modules="all-linear", exclude_modules=["mlp.up_proj"], layers_to_transform=None)),
    (["deep"], dict(target_modules=["q_proj"], layers_to_transform=[1, 11])),
    (["llama"], dict(PATTERNS, rank_pattern={"k_proj": 2})),
    (["llama"], dict(PATTERNS, rank_pattern={"^model.layers.0.self_attn.k_proj": 2, "k_proj": 3})),
    (["llama"], dict(PATTERNS, rank_pattern={"model.layers.1.*": 1}, alpha_pattern={"up_proj": 2, "q_proj": 3.5})),
    (["llama"], dict(PATTERNS, rank_pattern={"(q|k)_proj": 5}, alpha_pattern={"layers.0.self_attn.(q|k)_proj": 9})),
    (["llama"], dict(PATTERNS, rank_pattern={"proj": 5, "_proj": 6, "layers.1.self_attn": 7})),
    (["llama"], dict(PATTERNS, rank_pattern={"^layers.0.self_attn.q_proj": 5})),
    (["llama"], dict(PATTERNS, use_rslora=True, rank_pattern={"up_proj": 9})),
    (["llama"], dict(r=0)),
    (["llama"], dict(modules_to_save=["lm_head"])),
    (["llama"], dict(modules_to_save=["embed_tokens", "model.norm"])),
    (["llama"], dict(modules_to_save=["norm"])),
    (["llama"], dict(modules_to_save=["mlp"])),
    (["llama"], dict(target_modules="all-linear", modules_to_save=["mlp"])),
    (["llama"], dict(target_modules="all-linear", modules_to_save=["layers.0.self_attn"])),
    (["qwen2"], dict(modules_to_save=["k_proj", "0.input_layernorm"])),
    (["qwen2"], dict(modules_to_save=["q_proj"])),
    (["llama"], dict(modules_to_save=["q_proj", "v_proj"])),
    (["llama"], dict(modules_to_save=["layers"])),
    (["llama"], dict(modules_to_save=["proj"])),
    (["qwen2"], dict(bias="all")),
    (["qwen2"], dict(bias="lora_only")),
    (["qwen2"], dict(bias="lora_only", target_modules=["q_proj", "o_proj"])),
    (["qwen2"], dict(bias="all", modules_to_save=["k_proj"])),
]


def kind(module):
    return {"Linear": "linear", "Embedding": "embedding"}.get(type(module).__name__, "norm")


def sites(model):
    out = []
    for path, module in model.named_modules():
        if getattr(module, "weight", None) is None:
            continue
        shape = list(module.weight.shape)
        out.append({"path": path, "kind": kind(module), "shape": shape,
                    "bias": getattr(module, "bias", None) is not None})
    return out


def case(name, config):
    torch.manual_seed(0)
    model = models()[name]
    out = {"model": name, "config": config}
    try:
        tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config))
        saved = peft.get_peft_model_state_dict(tuned, save_embedding_layers=False)
    except Exception as error:
        return {**out, "error": f"{type(error).__name__}: {str(error)[:80]}"}
    modules = {}
    for path, module in tuned.base_model.model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            modules[path] = [module.r["default"], module.lora_alpha["default"], module.scaling["default"]]
    targets = tuned.peft_config["default"].target_modules
    return {**out, "modules": modules, "tensors": {key: list(value.shape) for key, value in sorted(saved.items())},
            "target_modules": targets if isinstance(targets, str) else sorted(targets)}


def main():
    out = {"peft": peft.__version__, "models": {}, "cases": []}
    for name, model in models().items():
        out["models"][name] = {"model_type": model.config.model_type, "sites": sites(model)}
    for names, config in CASES:
        out["cases"] += [case(name, config) for name in names]
    lines = ["{", f'"peft": {json.dumps(out["peft"])},', '"models": {']
    lines += [",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in out["models"].items()), "},", '"cases": [']
    lines += [",\n".join(json.dumps(c) for c in out["cases"]), "]", "}"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
