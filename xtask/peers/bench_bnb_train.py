#!/usr/bin/env python3
"""Speed and memory of the peer's QLoRA: a random model of Llama-7B's shape in bitsandbytes' NF4 with HF PEFT, CPU.

Usage:  pip install torch transformers peft bitsandbytes
        python bench_bnb_train.py [--layers 4] [--seq 512] [--rank 16] [--steps 3]

NF4 with double quantisation, bf16 arithmetic, LoRA on all linears, gradient checkpointing, AdamW, one text with every
position labelled. Blocks are alike, so fewer of them say what 32 take. Prints one line of JSON like bench_peft_train.py.
"""
import argparse, json
import bitsandbytes as bnb
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from peft import LoraConfig, get_peft_model
from training_steps import timed_steps

ap = argparse.ArgumentParser()
ap.add_argument("--layers", type=int, default=4)
ap.add_argument("--seq", type=int, default=512)
ap.add_argument("--rank", type=int, default=16)
ap.add_argument("--steps", type=int, default=3)
a = ap.parse_args()
torch.manual_seed(0)
torch.set_default_dtype(torch.bfloat16)
config = LlamaConfig(hidden_size=4096, intermediate_size=11008, vocab_size=32000, num_hidden_layers=a.layers,
                     num_attention_heads=32, tie_word_embeddings=False)
model = LlamaForCausalLM(config)


def quantize(module):
    for name, child in module.named_children():
        if isinstance(child, torch.nn.Linear):
            linear = bnb.nn.Linear4bit(child.in_features, child.out_features, bias=False, compute_dtype=torch.bfloat16,
                                       compress_statistics=True, quant_type="nf4")
            linear.weight = bnb.nn.Params4bit(child.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4")
            setattr(module, name, linear.to("cpu"))
        else:
            quantize(child)


quantize(model.model)
model.is_loaded_in_4bit = True
model = get_peft_model(model, LoraConfig(r=a.rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
model.train()
model.gradient_checkpointing_enable()
model.enable_input_require_grads()
opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
ids = torch.randint(3, config.vocab_size - 100, (1, a.seq))
print(json.dumps({"peer": "bitsandbytes", "layers": a.layers, "seq": a.seq, "rank": a.rank,
                  **timed_steps(model, opt, ids, a.steps)}))
