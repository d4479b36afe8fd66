#!/usr/bin/env python3
"""The peer's quality on a task of GLUE, with the settings of a Tunesmith run: HF PEFT where it has the method, and the plain
model of transformers for full fine-tuning, BitFit and Houlsby adapters, which it has not.

Usage:  bench_peft_glue.py RUN.json

RUN.json holds a run's keys: model_name_or_path, train_file, validation_file, the columns, the hyperparameters, seed, peft.
"""
import csv
import inspect
import json
import math
import sys
import time

import peft
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

run = json.load(open(sys.argv[1]))
regression = run.get("problem_type") == "regression"
first, second, target = run["text_column"], run.get("text_pair_column"), run.get("label_column", "label")


def read(path):
    with open(path, encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(row[first], row[second] if second else None, row[target]) for row in rows]


class Houlsby(nn.Module):
    """A bottleneck adapter between a sub-layer's output and the residual addition (Houlsby et al. 2019, figure 2)."""

    def __init__(self, hidden, size):
        super().__init__()
        self.down, self.up = nn.Linear(hidden, size), nn.Linear(size, hidden)
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=0.01, a=-0.02, b=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x):
        return x + self.up(nn.functional.silu(self.down(x)))


def rename_cache(encoder):
    """Gives an encoder back the argument that PEFT hands it a prefix by, where transformers calls it `cache`."""
    forward = encoder.forward
    if "past_key_values" not in inspect.signature(forward).parameters:

        def renamed(self, *args, past_key_values=None, **options):
            return forward(self, *args, cache=past_key_values, **options)

        encoder.forward = renamed


def prepare(model, config):
    """Makes what the method trains trainable, and nothing else."""
    config = dict(config)
    kind = config.pop("peft_type")
    if kind == "FULL":
        return model
    if kind == "BITFIT":
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.endswith(".bias") or name.startswith("classifier")
        return model
    if kind == "HOULSBY":
        hidden = model.config.hidden_size
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith("classifier") or ".LayerNorm." in name
        for layer in model.bert.encoder.layer:
            for output in (layer.attention.output, layer.output):
                output.dropout = nn.Sequential(output.dropout, Houlsby(hidden, hidden // config["reduction_factor"]))
        return model
    if kind == "PREFIX_TUNING":
        rename_cache(type(model.bert))
    return peft.get_peft_model(model, peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind](task_type="SEQ_CLS", **config))


def ranks(values):
    """Ranks from 1, equal values sharing their mean rank."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


def correlation(x, y):
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    return ((x * y).sum() / (x.norm() * y.norm())).item()


def scores(outputs, labels):
    if regression:
        outputs = outputs.squeeze(-1)
        return {"pearson": correlation(outputs, labels), "spearmanr": correlation(ranks(outputs), ranks(labels))}
    predicted = outputs.argmax(-1)
    hits = ((predicted == 1) & (labels == 1)).sum().item()
    named = (predicted == 1).sum().item() + (labels == 1).sum().item()
    return {"accuracy": (predicted == labels).double().mean().item(), "f1": 2 * hits / max(named, 1)}


torch.manual_seed(run["seed"])
tokenizer = AutoTokenizer.from_pretrained(run["model_name_or_path"])
train, dev = read(run["train_file"]), read(run["validation_file"])
names = sorted({row[2] for row in train})
options = {"num_labels": 1, "problem_type": "regression"} if regression else {"num_labels": len(names)}
model = prepare(AutoModelForSequenceClassification.from_pretrained(run["model_name_or_path"], **options), run["peft"])
label = (lambda name: float(name)) if regression else names.index
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
batch, epochs = run["per_device_train_batch_size"], run["num_train_epochs"]
steps = math.ceil(len(train) / batch) * epochs
optimizer = torch.optim.AdamW(trained, lr=run["learning_rate"], weight_decay=run["weight_decay"])
schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(run["warmup_ratio"] * steps), steps)
assert run["max_grad_norm"] == 0 and run["lr_scheduler_type"] == "linear" and run["truncate"]


def encode(rows):
    texts = [row[0] for row in rows], [row[1] for row in rows] if second else None
    return tokenizer(*texts, padding=True, truncation=True, max_length=run["max_length"], return_tensors="pt")


order = torch.Generator().manual_seed(run["seed"])
# The same numbers as the other side's default on this machine: bf16 operands, the rest in float32.
bf16 = torch.autocast("cpu", dtype=torch.bfloat16, enabled=run["precision"] == "bf16")
model.train()
start = time.time()
losses = []
for _ in range(epochs):
    places = torch.randperm(len(train), generator=order).tolist()
    for begin in range(0, len(places), batch):
        rows = [train[place] for place in places[begin : begin + batch]]
        with bf16:
            loss = model(**encode(rows), labels=torch.tensor([label(row[2]) for row in rows])).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
seconds = time.time() - start
model.eval()
outputs = []
with torch.no_grad(), bf16:
    for begin in range(0, len(dev), run["per_device_eval_batch_size"]):
        outputs.append(model(**encode(dev[begin : begin + run["per_device_eval_batch_size"]])).logits.float())
labels = torch.tensor([label(row[2]) for row in dev])
result = {"train_runtime": seconds, "train_loss": sum(losses) / len(losses)}
result["trainable_parameters"] = sum(parameter.numel() for parameter in trained)
print(json.dumps(result | {f"eval_{name}": value for name, value in scores(torch.cat(outputs), labels).items()}))
