#!/usr/bin/env python3
"""Where reference_e2e.py begins: its adapter before the first update, and its examples in the order in which it takes them.

Usage:  pip install torch transformers peft
        python reference_e2e_start.py MODEL_DIR DATA_DIR OUT          (DATA_DIR holds e2e/train.txt)
        cd OUT
        tunesmith train .../bench/e2e.yaml model_name_or_path=MODEL_DIR train_file=train.txt output_dir=run \\
            peft=null adapter_name_or_path=start train_sampling_strategy=sequential
        tunesmith evaluate -a run --config .../bench/e2e.yaml --data DATA_DIR/e2e/test.txt --bleu --max-new-tokens 80

Ours from the same place shows what is ours in a difference, and what is the seed's.
"""
import random, sys
import torch
from transformers import AutoModelForCausalLM
from peft import LoraConfig, get_peft_model

model_dir, data_dir, out = sys.argv[1:4]
torch.manual_seed(0)
random.seed(0)
model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
model.save_pretrained(f"{out}/start")
rows = open(f"{data_dir}/e2e/train.txt").readlines()
random.shuffle(rows)
open(f"{out}/train.txt", "w").writelines(rows)
