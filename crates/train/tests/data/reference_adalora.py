"""Writes adalora/: a run of AdaLoRA as PEFT makes it, step by step, for tests/methods/adalora.rs.

The model is fixtures/llama/model, the optimiser plain SGD, the batch fixed. From the repository's root, with torch,
transformers, peft and safetensors installed:  python crates/train/tests/data/reference_adalora.py
"""

import json
from pathlib import Path

import torch
from peft import AdaLoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

FOLDER = Path(__file__).parent / "adalora"
MODEL = Path(__file__).parents[4] / "fixtures/llama/model"
STEPS, LEARNING_RATE = 14, 0.1
IDS = [[5, 17, 3, 40, 22, 8, 61, 13, 30], [9, 2, 33, 71, 4, 26]]
UNLABELLED = 2

torch.manual_seed(3)
base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager").eval()
config = AdaLoraConfig(
    init_r=5, target_r=2, tinit=2, tfinal=3, deltaT=2, total_step=STEPS, orth_reg_weight=0.3, lora_alpha=12,
    beta1=0.8, beta2=0.7, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM",
)
model = get_peft_model(base, config)
trainable = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
short = {name: name.replace(".default", "") for name in trainable}
with torch.no_grad():
    for name, tensor in trainable.items():
        if "lora_E" in name:
            tensor.copy_(0.3 * torch.randn_like(tensor))
        else:
            tensor.copy_(0.2 * torch.randn_like(tensor))


def now():
    return {short[name]: tensor.detach().clone().contiguous() for name, tensor in trainable.items()}


def loss():
    """The mean over all labelled tokens, and PEFT's regularisation, which `forward` adds where it computes the loss."""
    total, count, regularisation = 0.0, 0, 0.0
    for ids in IDS:
        ids = torch.tensor([ids])
        labels = ids.clone()
        labels[0, :UNLABELLED] = -100
        plain = base(input_ids=ids).logits
        mean = torch.nn.functional.cross_entropy(plain[0, :-1], labels[0, 1:], ignore_index=-100)
        with_regularisation = model(input_ids=ids, labels=labels).loss
        regularisation = with_regularisation - mean
        labelled = int((labels[0, 1:] != -100).sum())
        total, count = total + mean * labelled, count + labelled
    return total / count, regularisation


FOLDER.mkdir(exist_ok=True)
save_file(now(), FOLDER / "start.safetensors")
steps = []
for step in range(STEPS):
    cross_entropy, regularisation = loss()
    for tensor in trainable.values():
        tensor.grad = None
    (cross_entropy + regularisation).backward()
    with torch.no_grad():
        for tensor in trainable.values():
            tensor -= LEARNING_RATE * tensor.grad
    model.base_model.update_and_allocate(step + 1)
    state = now()
    steps.append({
        "cross_entropy": cross_entropy.item(),
        "regularisation": regularisation.item(),
        "E": {name: tensor.flatten().tolist() for name, tensor in state.items() if "lora_E" in name},
    })
save_file(now(), FOLDER / "end.safetensors")
model.peft_config["default"].inference_mode = True
model.peft_config["default"].base_model_name_or_path = "llama"
model.save_pretrained(FOLDER / "saved")
(FOLDER / "saved/README.md").unlink(missing_ok=True)
with torch.no_grad():
    logits = base(input_ids=torch.tensor([IDS[0]])).logits[0]
written = {
    "ids": IDS, "unlabelled": UNLABELLED, "learning_rate": LEARNING_RATE, "steps": steps,
    "logits": logits.flatten().tolist(),
    "config": {key: getattr(config, key) for key in (
        "init_r", "target_r", "tinit", "tfinal", "deltaT", "total_step", "orth_reg_weight", "lora_alpha", "beta1", "beta2")},
    "target_modules": ["q_proj", "v_proj", "down_proj"],
}
(FOLDER / "run.json").write_text(json.dumps(written, indent=1) + "\n")
