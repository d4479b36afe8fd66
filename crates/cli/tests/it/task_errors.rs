//! What can be wrong with the data, the labels and the head of a task: each named, with the file and the line.

use std::fs;
use std::path::Path;

use crate::scene::Scene;

const RUN: &str = "\
model_name_or_path: base
output_dir: out
train_file: train.jsonl
validation_file: valid.jsonl
max_steps: 2
eval_steps: 2
peft:
  peft_type: LORA
  r: 2
  target_modules: all-linear
";

/// A scene with the model of a folder of the fixtures, the tiny tokenizer and one file as both sets.
fn scene(model: &str, keys: &str, data: &str) -> Scene {
    let scene = Scene::new();
    let base = scene.path("base");
    fs::create_dir(&base).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(model);
    for (folder, names) in [
        (fixture, ["config.json", "model.safetensors"]),
        (scene.path("model"), ["tokenizer.json", "tokenizer_config.json"]),
    ] {
        for name in names {
            fs::copy(folder.join(name), base.join(name)).unwrap();
        }
    }
    // The tiny BERT has a head for three classes.
    let replaced = if model == "bert/model" { "ignore_mismatched_sizes: true\n" } else { "" };
    scene.write("run.yaml", &format!("{RUN}{replaced}{keys}"));
    scene.write("train.jsonl", data);
    scene.write("valid.jsonl", data);
    scene
}

#[track_caller]
fn fails(scene: &Scene, more: &[&str], code: i32, parts: &[&str]) {
    scene.run(&[&["train", "run.yaml"], more].concat()).fails(code, parts);
    assert!(!scene.path("out").exists(), "nothing is written before the data is known to be good");
}

#[test]
fn a_wrong_number_of_labels_is_named() {
    let one = scene("bert/model", "task_type: SEQ_CLS\n", "{\"text\": \"ab\", \"label\": \"a\"}\n");
    fails(&one, &[], 1, &["train.jsonl: every record has the label 'a'", "label_names"]);
    one.run(&["train", "run.yaml", "label_names=[a, b]"]).succeeds();

    let numbers = "{\"text\": \"ab\", \"label\": [1, 2.5]}\n{\"text\": \"ab\", \"label\": [1]}\n{\"text\": \"b\", \"label\": 3}\n";
    let keys = "task_type: SEQ_CLS\nproblem_type: regression\nlabel_names: [first, second]\n";
    let numbers = scene("bert/model", keys, numbers);
    fails(
        &numbers,
        &[],
        1,
        &[
            "train.jsonl has 2 records",
            "train.jsonl:2: `label` has 1 numbers, the model has 2 outputs",
            "train.jsonl:3: `label` has 1 numbers, the model has 2 outputs",
        ],
    );
    numbers.write(
        "train.jsonl",
        "{\"text\": \"ab\", \"label\": [1, \"2.5\"]}\n{\"text\": \"ba\", \"label\": [0.5, -1]}\n",
    );
    fails(&numbers, &[], 1, &["valid.jsonl:2: `label` has 1 numbers"]);
    numbers.run(&["train", "run.yaml", "validation_file=train.jsonl"]).succeeds();

    let tags =
        "{\"tokens\": [\"a\", \"b\"], \"tags\": [\"A\", \"B\"]}\n{\"tokens\": [\"a\"], \"tags\": [\"A\", \"B\"]}\n";
    let tags = scene("bert/model", "task_type: TOKEN_CLS\n", tags);
    fails(&tags, &[], 1, &["train.jsonl:2: has 2 tags in `tags` for 1 words"]);
}

#[test]
fn labels_that_the_model_does_not_have_are_named() {
    let data = "{\"text\": \"ab\", \"label\": 0}\n{\"text\": \"b\", \"label\": 1}\n";
    let classes = scene("bert/model", "task_type: SEQ_CLS\n", data);
    classes.write("valid.jsonl", "{\"text\": \"ab\", \"label\": 1}\n{\"text\": \"b\", \"label\": 2}\n");
    fails(&classes, &[], 1, &["valid.jsonl:2: the label '2' is not one of the model's: 0, 1"]);
    fails(
        &classes,
        &["label_names=['0', other]"],
        1,
        &["valid.jsonl:2: the label '2' is not one of the model's: 0, other"],
    );
    fails(&classes, &["label_column=kind"], 1, &["train.jsonl:1: has no `kind` (it has `text`, `label`)"]);
    classes.write("valid.jsonl", "{\"text\": \"ab\", \"label\": {\"a\": 1}}\n");
    fails(&classes, &[], 1, &["valid.jsonl:1: `label` is an object, must be a label: a name or a whole number"]);
    classes.write("valid.jsonl", "{\"text\": 3, \"label\": 1}\n{\"text\": \"\", \"label\": 1}\n");
    fails(&classes, &[], 1, &["valid.jsonl:1: `text` is a number, must be a string", "valid.jsonl:2: is empty"]);

    let tags =
        scene("bert/model", "task_type: TOKEN_CLS\n", "{\"tokens\": [\"a\", \"b\"], \"tags\": [\"A\", \"B\"]}\n");
    tags.write("valid.jsonl", "{\"tokens\": [\"a\"], \"tags\": [\"C\"]}\n{\"tokens\": [1], \"tags\": [\"A\"]}\n{\"tokens\": [], \"tags\": []}\n");
    fails(
        &tags,
        &[],
        1,
        &[
            "valid.jsonl:1: the label 'C' is not one of the model's: A, B",
            "valid.jsonl:2: `tokens` holds a number, must hold strings",
            "valid.jsonl:3: `tokens` is empty",
        ],
    );
}

#[test]
fn answers_that_are_not_in_their_text_are_named() {
    let question = |context: &str, answers: &str| {
        format!("{{\"question\": \"a\", \"context\": \"{context}\", \"answers\": {answers}}}\n")
    };
    let lines = [
        question("ab ba", "{\"text\": [\"ba\"], \"answer_start\": [3]}"),
        question("ab ba", "{\"text\": [\"ba\"], \"answer_start\": [4]}"),
        question("ab ba", "{\"text\": [\"ba\"], \"answer_start\": [2]}"),
        question("ab ba", "{\"text\": [\"ba\", \"ab\"], \"answer_start\": [3]}"),
        question("ab ba", "{\"text\": [], \"answer_start\": []}"),
        question("ab ba", "{\"text\": [1], \"answer_start\": [3]}"),
        question("ab ba", "{\"text\": [\"ba\"], \"answer_start\": [-3]}"),
        "{\"question\": \"a\", \"context\": \"ab\"}\n".to_owned(),
        format!(
            "{{\"question\": \"{}\", \"context\": \"ab\", \"answers\": {{\"text\": [\"ab\"], \"answer_start\": [0]}}}}\n",
            "a".repeat(40)
        ),
    ];
    let scene = scene("bert/model", "task_type: QUESTION_ANS\nmax_length: 20\ndoc_stride: 4\n", &lines.concat());
    fails(
        &scene,
        &[],
        1,
        &[
            "train.jsonl has 8 records",
            "train.jsonl:2: its answer 'ba' at character 4 lies outside its context of 5 characters",
            "train.jsonl:3: its answer 'ba' does not stand at character 2, but ' b' does",
            "train.jsonl:4: `answers` has 2 texts and 1 places where they start",
            "train.jsonl:5: has no answer: set version_2_with_negative: true",
            "train.jsonl:6: `answers.text` must hold strings",
            "train.jsonl:7: `answers.answer_start` must hold whole numbers",
            "train.jsonl:8: has no `answers`",
            "train.jsonl:9: its question is too long for windows of 20 tokens of which 4 are repeated",
        ],
    );
}

#[test]
fn texts_longer_than_the_positions_are_named_whatever_the_task() {
    let long = "a".repeat(90);
    let tags = scene(
        "bert/model",
        "task_type: TOKEN_CLS\n",
        &format!("{{\"tokens\": [\"a\", \"{long}\"], \"tags\": [\"A\", \"B\"]}}\n"),
    );
    fails(&tags, &[], 1, &["train.jsonl:1: has 91 tokens, more than 64", "truncate: true"]);
    let pair = format!(
        "{{\"text\": \"{}\", \"other\": \"{}\", \"label\": 0}}\n{{\"text\": \"a\", \"other\": \"b\", \"label\": 1}}\n",
        "a".repeat(40),
        "b".repeat(40)
    );
    let pair = scene("bert/model", "task_type: SEQ_CLS\ntext_pair_column: other\n", &pair);
    fails(&pair, &[], 1, &["train.jsonl:1: has 80 tokens, more than 64"]);
    let texts = format!(
        "{{\"prompt\": \"a\", \"completion\": \"b\"}}\n{{\"prompt\": \"{long}\", \"completion\": \"b\"}}\n{{\"prompt\": \"a\", \"completion\": \"{long}\"}}\n"
    );
    let texts = scene("bart/model", "task_type: SEQ_2_SEQ_LM\n", &texts);
    fails(
        &texts,
        &[],
        1,
        &["train.jsonl:2: has 90 tokens, more than 64", "train.jsonl:3: has 90 tokens, more than 64"],
    );
    texts.write("train.jsonl", &format!("{{\"prompt\": \"{0}\", \"completion\": \"{0}\"}}\n", "a".repeat(60)));
    texts.write("valid.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n");
    // Virtual tokens take positions of the encoder; what the decoder reads takes none of those.
    let method = "peft={peft_type: PROMPT_TUNING, num_virtual_tokens: ";
    fails(
        &texts,
        &[&format!("{method}5}}")],
        2,
        &["the longest example has 60 tokens and the method adds 5, but the model takes 64"],
    );
    texts.run(&["train", "run.yaml", &format!("{method}4}}")]).succeeds();
}

#[test]
fn a_tokenizer_of_another_vocabulary_is_named() {
    let scene = scene(
        "heads/bert-tokens",
        "task_type: TOKEN_CLS\n",
        "{\"tokens\": [\"!\", \"a\"], \"tags\": [\"A\", \"B\"]}\n",
    );
    fails(
        &scene,
        &["ignore_mismatched_sizes=true"],
        1,
        &["train.jsonl:1:", "tokenizer.json", "the model has 40 token embeddings"],
    );
}

#[test]
fn a_head_of_another_size_is_an_error_unless_it_may_be_replaced() {
    let data = "{\"tokens\": [\"!\", \"#\"], \"tags\": [\"A\", \"B\"]}\n";
    let scene = scene("heads/bert-tokens", "task_type: TOKEN_CLS\n", data);
    fails(
        &scene,
        &[],
        1,
        &[
            "model.safetensors: classifier.weight has the shape [5, 16], but the labels ask for [2, 16]",
            "ignore_mismatched_sizes",
        ],
    );
    scene.run(&["train", "run.yaml", "ignore_mismatched_sizes=true"]).succeeds();
    scene.run(&["evaluate", "-a", "out", "--data", "valid.jsonl"]).succeeds();
    let answers =
        "{\"question\": \"!\", \"context\": \"#\", \"answers\": {\"text\": [\"#\"], \"answer_start\": [0]}}\n";
    scene.write("train.jsonl", answers);
    let other = scene.run(&["train", "run.yaml", "task_type=SEQ_2_SEQ_LM", "output_dir=other"]);
    other.fails(1, &["models of type \"bert\" have no head for SEQ_2_SEQ_LM; they have heads for SEQ_CLS"]);
}
