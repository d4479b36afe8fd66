#!/usr/bin/env python3
"""Writes beam_search.json: what transformers' generate finds with the fixtures' tiny models, prompt by prompt.

Usage:  pip install torch transformers
        python make_beam_search.py ../../../../fixtures > beam_search.json

Several ids end a text, so that random models end some. `ids` are the new tokens without the one that ended them.
"""
import json, pathlib, random, sys, warnings
import torch
import transformers as tf

warnings.filterwarnings("ignore")
tf.logging.set_verbosity_error()
fixtures = pathlib.Path(sys.argv[1])
SETTINGS = [
    dict(num_beams=3),
    dict(num_beams=4, num_return_sequences=4, early_stopping=True),
    dict(num_beams=4, num_return_sequences=3, length_penalty=2.0),
    dict(num_beams=3, num_return_sequences=3, length_penalty=-1.0, early_stopping="never"),
    dict(num_beams=5, num_return_sequences=2, length_penalty=0.6, early_stopping="never"),
    dict(num_beams=2, num_return_sequences=2, length_penalty=0.0),
    dict(num_beams=4, num_return_sequences=2, no_repeat_ngram_size=2),
    dict(num_beams=3, num_return_sequences=3, repetition_penalty=1.3, no_repeat_ngram_size=3, early_stopping=True),
    dict(num_beams=1, no_repeat_ngram_size=2),
    dict(num_beams=1, repetition_penalty=1.5),
    dict(num_beams=3, num_return_sequences=2, forced_eos_token_id=7),
]
MODELS = {
    "gpt2": tf.GPT2LMHeadModel, "llama": tf.LlamaForCausalLM, "mistral": tf.MistralForCausalLM,
    "qwen3": tf.Qwen3ForCausalLM, "gemma3": tf.Gemma3ForCausalLM, "t5": tf.T5ForConditionalGeneration,
    "flan-t5": tf.T5ForConditionalGeneration, "bart": tf.BartForConditionalGeneration,
}
cases = []
for name, cls in MODELS.items():
    model = cls.from_pretrained(fixtures / name / "model").float().eval()
    encodes = model.config.is_encoder_decoder
    draw = random.Random(name)
    prompts = [[draw.randrange(3, 96) for _ in range(length)] for length in (9, 3, 14, 1 if not encodes else 2)]
    for settings in SETTINGS + ([dict(num_beams=3, forced_bos_token_id=11)] if encodes else []):
        for ends in ([2, 7, 11, 23, 42, 60, 77, 90], [2]):
            config = tf.GenerationConfig(
                max_new_tokens=10, do_sample=False, eos_token_id=ends, pad_token_id=model.config.pad_token_id,
                decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None), **settings)
            found = []
            for prompt in prompts:
                with torch.no_grad():
                    out = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                                         generation_config=config, return_dict_in_generate=True, output_scores=True)
                begin = 1 if encodes else len(prompt)
                texts = []
                for row, sequence in enumerate(out.sequences.tolist()):
                    new = sequence[begin:]
                    end = next((place for place, token in enumerate(new) if token in ends), len(new))
                    text = {"ids": new[:end], "ended": end < len(new)}
                    if config.num_beams > 1:
                        text["score"] = out.sequences_scores[row].item()
                    texts.append(text)
                found.append(texts)
            cases.append({"model": name, "settings": settings, "eos_token_ids": ends, "max_new_tokens": 10, "prompts": prompts,
                          "found": found})
print(json.dumps(cases, separators=(",", ":")))
