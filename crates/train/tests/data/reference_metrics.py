#!/usr/bin/env python3
"""Writes the reference values that the metrics' tests compare with, made with the scorers that people use.

Usage:  pip install sacrebleu rouge_score nltk scikit-learn scipy pycocoevalcap torchmetrics seqeval
        git clone https://github.com/tuetschek/e2e-metrics; git clone https://github.com/salesforce/WikiSQL
        python reference_metrics.py E2E_METRICS WIKISQL       (needs perl with XML::Twig and Sort::Naturally, and java)

metrics/texts.json     every metric of texts, over the lines of bleu.json and more
metrics/porter.json    nltk.stem.PorterStemmer
metrics/ptb.json       tokens of pycocoevalcap's PTBTokenizer
metrics/classes.json   scikit-learn: accuracy_score, f1_score, matthews_corrcoef
metrics/scores.json    scipy.stats: pearsonr, spearmanr; scikit-learn: mean_squared_error
metrics/tags.json      seqeval
paired_tests.json      scipy.stats: ttest_rel, wilcoxon
"""
import json
import math
import pathlib
import random
import re
import string
import subprocess
import sys
import tempfile
import warnings

import nltk
import numpy
import pycocoevalcap
import rouge_score
import sacrebleu
import scipy
import scipy.stats
import seqeval.metrics
import sklearn
import sklearn.metrics
import torchmetrics
from nltk.stem.porter import PorterStemmer
from nltk.translate.meteor_score import meteor_score
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from torchmetrics.functional.text import squad

FOLDER = pathlib.Path(__file__).parent / "metrics"
E2E_METRICS, WIKISQL = map(pathlib.Path, sys.argv[1:])


def write(name, cases, **versions):
    versions = {package: getattr(module, "__version__", "") for package, module in versions.items()}
    cases = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases)
    text = '{\n "versions": ' + json.dumps(versions) + ',\n "cases": [\n' + cases + "\n ]\n}\n"
    (FOLDER / name).write_text(text, encoding="utf-8")


def number(value):
    value = float(value)
    return value if math.isfinite(value) else None


class NoWordNet:
    """Leaves meteor_score its exact and its stem stage."""

    def synsets(self, word):
        return []


def columns(lines):
    most = max(len(references) for _, references in lines)
    return [[references[i] if i < len(references) else None for _, references in lines] for i in range(most)]


def nist(lines):
    """The NIST score that mteval-v13a-sig.pl of the E2E challenge prints, with four decimals; None where the texts hold
    what SGML takes for markup or breaks lines at."""
    if any(mark in text for hypothesis, references in lines for text in [hypothesis, *references]
           for mark in "&<>\n\x1c\x85"):
        return None
    escape = lambda text: text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

    def document(kind, number, texts):
        segments = "".join(f'<seg id="{i}">{escape(text or "")}</seg>\n' for i, text in enumerate(texts, 1))
        return f'<doc docid="d" genre="g" origlang="any" sysid="{kind}_{number}">\n<p>\n{segments}</p>\n</doc>\n'

    hypotheses = [hypothesis for hypothesis, _ in lines]
    sets = {"ref": columns(lines), "tst": [hypotheses], "src": [[""] * len(lines)]}
    with tempfile.TemporaryDirectory() as folder:
        for kind, documents in sets.items():
            body = "".join(document(kind, number, texts) for number, texts in enumerate(documents))
            text = f'<{kind}set setid="s" srclang="any" trglang="en">\n{body}</{kind}set>\n'
            pathlib.Path(folder, kind).write_text(text, encoding="utf-8")
        script = E2E_METRICS / "mteval" / "mteval-v13a-sig.pl"
        command = ["perl", script, "-r", "ref", "-s", "src", "-t", "tst", "-f", "log"]
        out = subprocess.run(command, cwd=folder, capture_output=True, check=False).stdout.decode()
    found = re.search(r"NIST score = *([0-9.]+)", out)
    return float(found.group(1)) if found else None


def cider(lines):
    """None where every reference is empty, where Java and Python disagree about what ends a line, and where a text is
    made of marks that English does not use, whose tokens tokens_ptb.rs does not imitate."""
    if not any(text.strip() for _, references in lines for text in references) or any(mark in hypothesis for hypothesis, _ in lines for mark in "\x85|"):
        return None
    captions = {i: [{"caption": text} for text in references] for i, (_, references) in enumerate(lines)}
    answers = {i: [{"caption": hypothesis}] for i, (hypothesis, _) in enumerate(lines)}
    tokenizer = PTBTokenizer()
    return Cider().compute_score(tokenizer.tokenize(captions), tokenizer.tokenize(answers))[0]


def evened(text):
    return " ".join(text.lower().split())


def text_values(lines):
    hypotheses, references = [h for h, _ in lines], [r for _, r in lines]
    values = {"bleu": sacrebleu.corpus_bleu(hypotheses, columns(lines)).score}
    values["chrf"] = sacrebleu.corpus_chrf(hypotheses, columns(lines)).score
    values["chrf++"] = sacrebleu.corpus_chrf(hypotheses, columns(lines), word_order=2).score
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    for suffix, stem in [("", False), ("_stemmed", True)]:
        scorer = RougeScorer(kinds, use_stemmer=stem)
        scores = [scorer.score_multi(r, h) for h, r in lines]
        for kind in kinds:
            values[kind + suffix] = sum(score[kind].fmeasure for score in scores) / len(scores)
    tokens = lambda text: Tokenizer13a()(text.rstrip()).split()
    meteor = [meteor_score([tokens(r) for r in rs], tokens(h), wordnet=NoWordNet()) for h, rs in lines]
    values["meteor"] = sum(meteor) / len(meteor)
    values["nist"] = nist(lines)
    values["cider"] = cider(lines)
    values["exact_match"] = sum(evened(h) in map(evened, rs) for h, rs in lines) / len(lines)
    answers = squad([{"prediction_text": h, "id": str(i)} for i, h in enumerate(hypotheses)],
                    [{"answers": {"answer_start": [0] * len(rs), "text": rs}, "id": str(i)}
                     for i, rs in enumerate(references)])
    values["squad_em"], values["squad_f1"] = float(answers["exact_match"]), float(answers["f1"])
    return values


def texts():
    bleu = json.loads((FOLDER.parent / "bleu.json").read_text(encoding="utf-8"))
    cases = [(case["name"], [(line["hypothesis"], line["references"]) for line in case["lines"]])
             for case in bleu["cases"]]
    sentences = [
        ("The cats were running.\nThey quickly jumped over fences.",
         ["A cat ran.\nIt jumped over the fence quickly.", "Cats run and jump.\n\nFences are jumped over."]),
        ("one two three\nfour five\none two", ["four five six\none two three four", "two one\nfive four"]),
        ("the the cat\nthe cat sat", ["the cat\nthe cat sat the\ncat"]),
        ("\n\n", ["a b"]),
    ]
    stems = [
        ("Generalizations of connected relations were happily studied, skies dying",
         ["The generalization connects relational studies happily in the sky; he dies"]),
        ("national nationality nations", ["nation nationals nationally"]),
        ("hopping hoped flying flies tied ties", ["hop hope fly flied tying tie"]),
    ]
    answers = [
        ("The Denver Broncos", ["Denver Broncos", "the broncos!"]),
        ("in 1,990 a.d.", ["1990 AD"]),
        ("", [""]), ("an a the", ["the", "something"]), ("théâtre the-atre", ["the atre théâtre", "a théâtre"]),
        ("YES ", ["yes"]), ("a  b\tc", ["A b c"]),
    ]
    chunks = [
        ("on the mat the cat sat", ["the cat sat on the mat"]),
        ("a a b b a", ["b a a b a", "a"]),
        ("the party obeys the commands of the party", ["The Party commands are always obeyed by the party"]),
        ("(hi) 'there', friend!", ["hi (there) my friend !", "'hi' there friend"]),
    ]
    restaurants = [
        ("There's a family-friendly pub, the Wrestlers; it isn't cheap (£20-25).",
         ["The Wrestlers is a family friendly pub. It's not cheap: £20-25!", "Isn't The Wrestlers a pub?"]),
        ("Giraffe is a restaurant near Rainbow Vegetarian Café in the city centre.",
         ["In the city centre, near the Rainbow Vegetarian Café, there's a restaurant called Giraffe.",
          "Giraffe -- a restaurant -- is near Rainbow Vegetarian Café..."]),
        ("It has a customer rating of 5 out of 5.", ["Rated 5 out of 5 by customers.", "5-star customer rating"]),
    ]
    cases += [("sentences", sentences), ("stems", stems), ("answers", answers), ("chunks", chunks),
              ("restaurants", restaurants), ("everything", sentences + stems + answers + chunks + restaurants)]
    cases += [(f"{name} {i}", [line]) for name, lines in
              [("sentences", sentences), ("stems", stems), ("answers", answers), ("chunks", chunks)]
              for i, line in enumerate(lines)]
    written = [{"name": name, "lines": [{"hypothesis": h, "references": rs} for h, rs in lines],
                "values": text_values(lines)} for name, lines in cases]
    write("texts.json", written, sacrebleu=sacrebleu, rouge_score=rouge_score, nltk=nltk, pycocoevalcap=pycocoevalcap,
          torchmetrics=torchmetrics)


def porter():
    """Words of every ending that the stemmer knows, on stems of every measure, and whatever else it treats apart."""
    starts = ["", "t", "b", "tr", "y", "by", "sy", "oy", "say", "tree", "troubl", "oat", "at", "hop", "hopp", "fall", "fil",
              "fizz", "conflat", "siz", "relat", "condition", "ration", "val", "digit", "conform", "radic", "differ",
              "vietnam", "oper", "decis", "form", "electr", "revi", "gyroscop", "homo", "adopt", "angular", "commun",
              "contro", "roll", "ceas", "rat", "prob", "yyy", "xyz", "geo", "hope", "agre", "plaster", "skii", "naïv", "é"]
    ends = ["", "s", "ss", "sses", "ies", "ied", "eed", "ed", "ing", "y", "ational", "tional", "enci", "ency", "anci", "izer",
            "bli", "ably", "alli", "ally", "entli", "ently", "eli", "ely", "ousli", "ously", "ization", "ation", "ator",
            "alism", "iveness", "fulness", "ousness", "aliti", "ality", "iviti", "ivity", "biliti", "bility", "fulli",
            "fully", "logi", "logy", "icate", "ative", "alize", "iciti", "icity", "ical", "ful", "ness", "al", "ance",
            "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "sion", "tion", "ou", "ism", "ate",
            "iti", "ous", "ive", "ize", "e", "ll", "le", "atings", "lessness", "izations", "yed", "zzing", "llying"]
    irregular = ["sky", "skies", "dying", "lying", "tying", "news", "innings", "inning", "outings", "outing", "cannings",
                 "canning", "howe", "proceed", "exceed", "succeed", "generate", "university", "ponies", "caresses", "a1s",
                 "2nds", "ing", "ed", "eed", "y", "ies", "ied", "s", "sss"]
    stemmer = PorterStemmer()
    words = sorted({start + end for start in starts for end in ends if start + end} | set(irregular))
    write("porter.json", [[word, stemmer.stem(word)] for word in words], nltk=nltk)


def ptb():
    sentences = [
        "The Vaults pub near Café Adriatic has a 5 star rating. Prices start at £30.",
        "It's family-friendly, isn't it? They're cheap; we'll see (maybe). I'd say 3.5 out of 5!",
        "Don't you think that he couldn't've, or cannot, gonna?", "\"Quoted\" and 'single' -- dashes - and... dots",
        "less than £20", "£20-25 and more than £30 a head; $5, 50% & co.", "Mr. Smith of the U.K. paid 1,000.50 at 10:30",
        "", "a/b c\\d e_f #tag @home x=y [brackets] {braces} <angle>", "Name : Blue Spice , near Crowne Plaza Hotel .",
        "the Wrestlers' food, James's pub, rock 'n' roll", "naïve façade 東京 😀", "low-priced high-end 5-star 1-3 A-B--C",
        "children's kids' 1990s '90s", "The city centre's colour", "What?! No!! Oh...  Yes....", "e.g. this, i.e. that etc.",
        "25th of May, 1/2 and 3 1/4", "I'm you've he'll she'd we're it's that's let's", "can't won't shan't ain't",
    ]
    tokens = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(sentences)})
    write("ptb.json", [[text, tokens[i][0].split()] for i, text in enumerate(sentences)], pycocoevalcap=pycocoevalcap)


def logical_forms():
    """WikiSQL's own comparison of queries, over texts made of them."""
    sys.path.insert(0, str(WIKISQL))
    from lib.query import Query

    columns = ["Player", "No. of wins", "Country", "from"]

    def text(query):
        aggregate = Query.agg_ops[query.agg_index]
        out = f"SELECT {aggregate} {columns[query.sel_index]} FROM table".replace("  ", " ")
        parts = [f"{columns[c]} {Query.cond_ops[o]} {v}" for c, o, v in query.conditions]
        return out + (" WHERE " + " AND ".join(parts) if parts else "")

    queries = [
        Query(0, 0), Query(0, 3), Query(1, 1), Query(1, 2), Query(1, 0, [(2, 0, "Spain")]), Query(1, 0, [(2, 0, "spain")]),
        Query(1, 0, [(2, 0, "Spain"), (0, 0, "Jo Doe")]), Query(1, 0, [(0, 0, "Jo Doe"), (2, 0, "Spain")]),
        Query(1, 0, [(2, 0, "Spain"), (2, 0, "Spain")]), Query(1, 0, [(1, 1, "3")]), Query(1, 0, [(1, 2, "3")]),
        Query(3, 5, [(1, 1, "3.0")]), Query(0, 0, [(2, 0, "where the wild"), (1, 1, "7")]),
    ]
    cases = [{"hypothesis": text(a), "references": [text(b)], "equal": a == b} for a in queries for b in queries]
    write("logical_forms.json", cases)


def classes():
    generator = random.Random(2)
    cases = [
        ("binary", 2, [0, 1, 1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 1, 0, 1]),
        ("constant prediction", 2, [1, 1, 1, 1], [0, 1, 1, 0]),
        ("the other constant prediction", 2, [0, 0, 0, 0], [0, 1, 1, 0]),
        ("one class, all right", 2, [1, 1, 1], [1, 1, 1]),
        ("one class, the negative one", 2, [0, 0], [0, 0]),
        ("all wrong", 2, [0, 1, 0], [1, 0, 1]),
        ("three classes", 3, [0, 1, 2, 2, 1, 0, 2], [0, 2, 2, 1, 1, 0, 0]),
        ("a class never predicted", 3, [0, 1, 1, 0], [0, 1, 2, 2]),
        ("a class that never occurs", 4, [0, 1, 3, 0], [0, 1, 0, 0]),
        ("a single example", 2, [1], [0]),
    ]
    for number_of_classes in [2, 3, 7]:
        labels = [generator.randrange(number_of_classes) for _ in range(200)]
        guess = lambda label: label if generator.random() < 0.6 else generator.randrange(number_of_classes)
        cases.append((f"random {number_of_classes}", number_of_classes, [guess(label) for label in labels], labels))
    written = []
    for name, count, predictions, labels in cases:
        f1 = lambda average: sklearn.metrics.f1_score(labels, predictions, average=average, zero_division=0.0)
        values = {
            "accuracy": sklearn.metrics.accuracy_score(labels, predictions),
            "f1": f1("binary") if count == 2 else None,
            "f1_macro": f1("macro"), "f1_micro": f1("micro"), "f1_weighted": f1("weighted"),
            "matthews_correlation": sklearn.metrics.matthews_corrcoef(labels, predictions),
        }
        values = {key: value if value is None else float(value) for key, value in values.items()}
        written.append({"name": name, "classes": count, "predictions": predictions, "labels": labels, "values": values})
    write("classes.json", written, sklearn=sklearn)


def scores():
    generator = numpy.random.default_rng(3)
    noisy = lambda values, spread: (values + spread * generator.standard_normal(len(values))).tolist()
    labels = generator.uniform(0, 5, 60)
    cases = [
        ("ties", [1.0, 2.0, 2.0, 3.0, 3.0, 3.0], [1.0, 1.0, 2.0, 5.0, 4.0, 4.0]),
        ("perfect", [1.0, 2.0, 3.0], [2.0, 4.0, 6.0]), ("reversed", [3.0, 2.0, 1.0], [2.0, 4.0, 6.0]),
        ("monotone, not linear", [1.0, 2.0, 3.0, 4.0], [1.0, 8.0, 27.0, 64.0]),
        ("constant predictions", [2.0, 2.0, 2.0], [1.0, 2.0, 3.0]), ("constant labels", [1.0, 2.0, 3.0], [5.0, 5.0, 5.0]),
        ("two", [1.0, 2.0], [4.0, 3.0]), ("far from zero", [1e9 + 1, 1e9 + 2, 1e9 + 4], [1.0, 2.0, 3.0]),
        ("tiny", [1e-200, 2e-200, 4e-200], [1.0, 2.0, 3.0]), ("huge", [1e200, 2e200, 4e200], [1.0, 2.0, 3.0]),
        ("noise", noisy(labels, 1.0), labels.tolist()),
        ("rounded", numpy.round(noisy(labels, 0.5)).tolist(), numpy.round(labels).tolist()),
    ]
    written = []
    for name, predictions, labels in cases:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = {
                "pearson": number(scipy.stats.pearsonr(predictions, labels)[0]),
                "spearmanr": number(scipy.stats.spearmanr(predictions, labels)[0]),
                "mse": number(sklearn.metrics.mean_squared_error(labels, predictions)),
            }
        written.append({"name": name, "predictions": predictions, "labels": labels, "values": values})
    write("scores.json", written, scipy=scipy, sklearn=sklearn)


def tags():
    cases = [
        ("as in seqeval's readme", [["O", "O", "B-MISC", "I-MISC", "B-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]],
         [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]),
        ("all right", [["B-LOC", "I-LOC", "O"]], [["B-LOC", "I-LOC", "O"]]),
        ("nothing predicted", [["O", "O", "O"]], [["B-LOC", "I-LOC", "O"]]),
        ("nothing to find", [["O", "B-PER"]], [["O", "O"]]),
        ("nothing at all", [["O", "O"]], [["O", "O"]]),
        ("inside without a beginning", [["I-PER", "I-PER", "I-LOC", "O", "I-LOC"]], [["B-PER", "I-PER", "B-LOC", "O", "B-LOC"]]),
        ("neighbours of one type", [["B-PER", "I-PER", "I-PER"]], [["B-PER", "B-PER", "I-PER"]]),
        ("the type changes inside", [["B-PER", "I-LOC", "I-LOC"]], [["B-PER", "I-PER", "B-LOC"]]),
        ("an entity does not cross sentences", [["O", "B-PER"], ["I-PER", "O"]], [["O", "B-PER"], ["B-PER", "O"]]),
        ("an empty sentence", [[], ["B-PER"]], [[], ["B-PER"]]),
    ]
    generator = random.Random(4)
    names = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
    labels = [[generator.choice(names) for _ in range(generator.randint(1, 20))] for _ in range(30)]
    guess = lambda tag: tag if generator.random() < 0.8 else generator.choice(names)
    cases.append(("random", [[guess(tag) for tag in line] for line in labels], labels))
    written = []
    for name, predictions, labels in cases:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scorers = {"precision": seqeval.metrics.precision_score, "recall": seqeval.metrics.recall_score,
                       "f1": seqeval.metrics.f1_score, "accuracy": seqeval.metrics.accuracy_score}
            values = {f"overall_{key}": number(scorer(labels, predictions)) for key, scorer in scorers.items()}
        written.append({"name": name, "predictions": predictions, "labels": labels, "values": values})
    write("tags.json", written, seqeval=seqeval)


def paired_tests():
    generator = random.Random(5)
    cases = []
    for count, spread, digits in [(5, 0.5, 9), (10, 0.2, 9), (30, 1.0, 9), (60, 0.3, 9), (12, 0.5, 0), (20, 2.0, 1), (2, 1.0, 9)]:
        left = [round(generator.gauss(3, 1), digits) for _ in range(count)]
        right = [round(value + generator.gauss(0.3, spread), digits) for value in left]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            t, wilcoxon = scipy.stats.ttest_rel(left, right), scipy.stats.wilcoxon(left, right)
        cases.append({"left": left, "right": right, "t": [t.statistic, t.pvalue],
                      "wilcoxon": [float(wilcoxon.statistic), float(wilcoxon.pvalue)]})
    write("../paired_tests.json", cases, scipy=scipy)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    texts()
    porter()
    ptb()
    logical_forms()
    classes()
    scores()
    tags()
    paired_tests()
