#!/usr/bin/env python3
"""Writes the reference values that the unit tests of this crate compare with.

Usage:  pip install torch transformers sacrebleu bitsandbytes
        python reference_values.py

schedules.json    factors of transformers' learning-rate schedules at every step
optimizer.json    torch.optim.AdamW with two parameter groups, gradients clipped by torch.nn.utils.clip_grad_norm_
optimizers.json   transformers.Adafactor, torch.optim.SGD and bitsandbytes.optim.AdamW8bit
dynamic_map.json  bitsandbytes.functional.create_dynamic_map
bleu.json         sacrebleu.corpus_bleu with its default settings
"""
import json
import pathlib
import random

import bitsandbytes
import sacrebleu
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent


def write(name, cases, **versions):
    versions = {package: module.__version__ for package, module in versions.items()}
    text = json.dumps({"versions": versions, "cases": cases}, indent=1, ensure_ascii=False)
    (FOLDER / name).write_text(text + "\n", encoding="utf-8")


def schedules():
    cases = []
    for kind, warmup, total, options in [
        ("constant", 0, 5, {}),
        ("constant_with_warmup", 4, 9, {}),
        ("linear", 0, 7, {}),
        ("linear", 3, 20, {}),
        ("linear", 5, 5, {}),
        ("linear", 9, 6, {}),
        ("cosine", 0, 7, {}),
        ("cosine", 3, 20, {}),
        ("cosine", 1, 2, {}),
        ("cosine", 2, 12, {"num_cycles": 1.5}),
        ("cosine_with_restarts", 2, 12, {}),
        ("cosine_with_restarts", 3, 20, {"num_cycles": 3}),
        ("cosine_with_restarts", 0, 7, {"num_cycles": 2}),
        ("cosine_with_min_lr", 2, 12, {"min_lr_rate": 0.1}),
        ("cosine_with_min_lr", 0, 7, {"min_lr": 0.25, "num_cycles": 1.0}),
        ("polynomial", 2, 12, {}),
        ("polynomial", 3, 20, {"power": 2.0, "lr_end": 0.01}),
        ("polynomial", 0, 6, {"power": 0.5, "lr_end": 0.0}),
        ("inverse_sqrt", 4, 20, {}),
        ("inverse_sqrt", 0, 12, {}),
        ("inverse_sqrt", 3, 12, {"timescale": 7}),
        ("warmup_stable_decay", 2, 12, {"num_decay_steps": 4}),
        ("warmup_stable_decay", 3, 20, {"num_decay_steps": 6, "decay_type": "linear", "min_lr_ratio": 0.1}),
        ("warmup_stable_decay", 0, 9, {"num_decay_steps": 9, "decay_type": "1-sqrt", "num_stable_steps": 0}),
    ]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = transformers.get_scheduler(
            kind, optimizer, num_warmup_steps=warmup, num_training_steps=total, scheduler_specific_kwargs=dict(options))
        factors = []
        for _ in range(total):
            factors.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        factors.append(scheduler.get_last_lr()[0])
        cases.append({"kind": kind, "warmup_steps": warmup, "total_steps": total, "options": options, "factors": factors})
    write("schedules.json", cases, torch=torch, transformers=transformers)


def optimizer():
    """Tensor `a` decays; `b` learns four times as fast and does not decay. A step's rate is 0.03 / step."""
    torch.manual_seed(0)
    a, b = torch.nn.Parameter(torch.randn(2, 3)), torch.nn.Parameter(torch.randn(4, 1))
    cases = []
    for beta1, beta2, epsilon, decay, max_norm in [(0.9, 0.999, 1e-8, 0.01, 1.0), (0.8, 0.95, 1e-3, 0.1, 3.0)]:
        adamw = torch.optim.AdamW(
            [{"params": [a]}, {"params": [b], "weight_decay": 0.0}],
            betas=(beta1, beta2), eps=epsilon, weight_decay=decay,
        )
        case = {"beta1": beta1, "beta2": beta2, "epsilon": epsilon, "weight_decay": decay, "max_norm": max_norm,
                "start": {"a": a.flatten().tolist(), "b": b.flatten().tolist()}, "steps": []}
        for step in range(1, 9):
            rate = 0.03 / step
            adamw.param_groups[0]["lr"], adamw.param_groups[1]["lr"] = rate, 4 * rate
            scale = 10 ** random.uniform(-2, 1)
            a.grad, b.grad = scale * torch.randn(2, 3), scale * torch.randn(4, 1)
            gradients = {"a": a.grad.flatten().tolist(), "b": b.grad.flatten().tolist()}
            norm = torch.nn.utils.clip_grad_norm_([a, b], max_norm).item()
            adamw.step()
            case["steps"].append({"learning_rate": rate, "gradients": gradients, "norm": norm,
                                  "values": {"a": a.flatten().tolist(), "b": b.flatten().tolist()}})
        cases.append(case)
    write("optimizer.json", cases, torch=torch)


def spread(rows, cols, step, salt):
    """Numbers of many sizes that other languages compute alike: a linear congruence, times powers of two."""
    places = range(rows * cols)
    numbers = [(((i * 2654435761 + step * 40503 + salt * 97) % 2**32) / 2**32 - 0.5) / 2 ** (i % 12) for i in places]
    return torch.tensor(numbers, dtype=torch.float32).view(rows, cols)


def optimizers():
    """Tensors `a` and `b` as in `optimizer`, of two sizes; every 61st value after each of six updates."""
    # On CPUs bitsandbytes rounds to a table that is coarse near zero; given float64 it finds the nearest value.
    cpu = bitsandbytes.backends.cpu.ops

    def nearest(values, code, absmax, out, blocksize):
        codes, scales = torch.ops.bitsandbytes.quantize_blockwise(values.double(), code, blocksize)
        out.copy_(codes)
        absmax.copy_(scales)

    cpu._quant_blockwise_fp32_direct = nearest
    plain = {"scale_parameter": False, "relative_step": False}
    cases = []
    for name, make, args, decay in [
        ("adafactor", transformers.Adafactor, {}, 0.0),
        ("adafactor", transformers.Adafactor, {}, 0.1),
        ("adafactor", transformers.Adafactor, {"beta1": 0.8, "clip_threshold": 0.5, "decay_rate": -0.6}, 0.1),
        ("adafactor", transformers.Adafactor, {"scale_parameter": True, "eps1": 1e-6, "eps2": 0.5}, 0.1),
        ("sgd", torch.optim.SGD, {}, 0.0),
        ("sgd", torch.optim.SGD, {"momentum": 0.9}, 0.1),
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "dampening": 0.3}, 0.0),
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "nesterov": True}, 0.1),
        ("adamw_8bit", bitsandbytes.optim.AdamW8bit, {}, 0.0),
        ("adamw_8bit", bitsandbytes.optim.AdamW8bit, {"min_8bit_size": 16}, 0.1),
    ]:
        given = dict(args)
        if name == "adafactor":
            given = {**plain, **args, "eps": (given.pop("eps1", 1e-30), given.pop("eps2", 1e-3))}
            given.pop("eps1", None), given.pop("eps2", None)
        for shapes in [{"a": [70, 64], "b": [4, 5]}, {"a": [1, 7], "b": [9, 1]}]:
            a, b = (torch.nn.Parameter(spread(*shapes[key], 0, salt)) for salt, key in enumerate("ab"))
            optimizer = make([{"params": [a]}, {"params": [b], "weight_decay": 0.0}], lr=1.0, weight_decay=decay, **given)
            steps = []
            for step in range(1, 7):
                rate = 0.03 / step
                optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = rate, 4 * rate
                a.grad, b.grad = (spread(*shapes[key], step, salt) for salt, key in enumerate("ab"))
                optimizer.step()
                values = {"a": a.flatten()[::61].tolist(), "b": b.flatten()[::61].tolist()}
                steps.append({"learning_rate": rate, "values": values})
            cases.append({"optim": name, "args": args, "weight_decay": decay, "shapes": shapes, "steps": steps})
    write("optimizers.json", cases, torch=torch, transformers=transformers, bitsandbytes=bitsandbytes)
    maps = {name: bitsandbytes.functional.create_dynamic_map(signed=name == "signed").tolist()
            for name in ["signed", "unsigned"]}
    (FOLDER / "dynamic_map.json").write_text(json.dumps(maps) + "\n", encoding="utf-8")


def bleu():
    e2e = [
        ("Blue Spice is a coffee shop in the city centre .",
         ["A coffee shop in the city centre area called Blue Spice .", "Blue Spice is a coffee shop in city centre ."]),
        ("The Eagle is a low - priced coffee shop near Burger King with a 3 out of 5 rating .",
         ["The Eagle is a cheap coffee shop near Burger King , rated 3 out of 5 .",
          "There is a low - priced coffee shop near Burger King called The Eagle .",
          "The Eagle , near Burger King , is a coffee shop with a customer rating of 3 out of 5 ."]),
        ("Alimentum is not family - friendly and lies in the city centre .",
         ["There is a place in the city centre , Alimentum , that is not family - friendly ."]),
        ("The Vaults pub near Café Adriatic has a 5 star rating . Prices start at £ 30 .",
         ["The Vaults pub near Café Adriatic has a 5 star rating . Prices start at £ 30 .",
          "Close to Café Adriatic is The Vaults pub with prices from £30 ."]),
    ]
    punctuation = [
        ("It's 3.14 (or 3,141.59), isn't it?", ["It's 3.14, or 3,141.59; isn't it?"]),
        ("He said: \"no-one's e-mail is a@b.co!\"", ["He said \"no-one's email is a@b.co\"."]),
        ("In 1990-2000, $5.00/kg -- cheap...", ["From 1990-2000: $5.00 a kg - cheap…", "1990–2000, $5/kg -- cheap ..."]),
        ("&quot;R&amp;D&quot; &lt;b&gt; & x&y", ["\"R&D\" <b> & x & y"]),
        ("[a]{b}~c`d^e_f|g\\h", ["[ a ] { b } ~ c ` d ^ e _ f | g \\ h"]),
        (".5 and 5. and ,5 and 5, and 1.000,5.", [".5 and 5 . and , 5 and 5 , and 1.000,5 ."]),
        ("a,,b..c 1..2 3,.4 -5 5- 6-7 a-b", ["a , , b . . c 1 . . 2 3 , . 4 -5 5 - 6 - 7 a - b"]),
        ("skip <skipped>this-\nline\nnow", ["skip this line now", "skip thisline now"]),
    ]
    unicode = [
        ("Größe: 1,80 m — naïve façade…", ["Grösse: 1,80 m – naive façade …", "Größe 1,80 m — naïve façade …"]),
        ("東京は日本の首都です。", ["東京 は 日本 の 首都 です 。", "東京は日本の首都です。"]),
        ("مرحبا، كيف حالك؟ بخير.", ["مرحبا ، كيف حالك؟ بخير ."]),
        ("🙂 smile.🙂 again,🙂", ["🙂 smile . 🙂 again , 🙂"]),
        ("no\u00a0break\u2003em\u3000wide\u200bzero\x1cfile\x85next", ["no break em wide zero file next"]),
        ("e\u0301clair versus éclair", ["éclair versus éclair"]),
        ("١٢٣-٤ and 12-3٤", ["١٢٣ - ٤ and 12 - 3 ٤"]),
        ("tab\tand  spaces  \n", ["tab and spaces"]),
    ]
    cases = [
        ("e2e", e2e),
        ("punctuation", punctuation),
        ("unicode", unicode),
        ("all", e2e + punctuation + unicode),
        ("identical", [(references[0], references) for _, references in e2e]),
        ("long enough for no brevity penalty", [(text + " and more and more", references) for text, references in e2e]),
        ("nothing matches", [("apples pears", ["cats dogs mice"]), ("x", ["y z"])]),
        ("an empty hypothesis among others", e2e + [("", ["Something was expected here ."])]),
        ("only empty hypotheses", [("", ["a b c d e"]), ("  ", ["f g"])]),
        ("an empty reference", [("a b c d e", ["", "a b c d e f"]), ("a b c d", [""])]),
        ("short: one word", [("yes", ["yes"])]),
        ("short: two words", [("oh yes", ["oh yes please"])]),
        ("short: three words among one-word lines", [("the red fox", ["the red fox"]), ("no", ["yes"]), ("a", ["a"])]),
        ("smoothing of three orders", [("the cat sat on a mat", ["a dog lay under the rug today"])]),
        ("smoothing of the fourth order", [("the big cat sat", ["the big cat slept", "a big cat sat"])]),
        ("clipped counts", [("the the the the the the the", ["the cat is on the mat", "there is a cat on the mat"])]),
        ("ties of the closest length go to the shorter", [("a b c d e", ["a b c d", "a b c d e f"])]),
        ("case matters", [("The Cat sat On the mat", ["the cat sat on the mat"])]),
    ]
    generator = random.Random(1)
    words = "the a cat dog , . sat on mat 3.5 - near King £20 is was with price range of high".split()
    for number in range(6):
        lines = []
        for _ in range(generator.randint(1, 40)):
            reference = [generator.choice(words) for _ in range(generator.randint(1, 25))]
            edited = lambda: " ".join(word if generator.random() < 0.8 else generator.choice(words) for word in reference)
            lines.append((edited(), [edited() for _ in range(generator.randint(1, 5))]))
        cases.append((f"random {number}", lines))

    written = []
    for name, lines in cases:
        most = max(len(references) for _, references in lines)
        columns = [[references[i] if i < len(references) else None for _, references in lines] for i in range(most)]
        score = sacrebleu.corpus_bleu([hypothesis for hypothesis, _ in lines], columns)
        written.append({
            "name": name,
            "lines": [{"hypothesis": hypothesis, "references": references} for hypothesis, references in lines],
            "score": score.score, "precisions": score.precisions, "brevity_penalty": score.bp,
            "hypothesis_length": score.sys_len, "reference_length": score.ref_len,
        })
    write("bleu.json", written, sacrebleu=sacrebleu)


if __name__ == "__main__":
    random.seed(0)
    schedules()
    optimizer()
    optimizers()
    bleu()
