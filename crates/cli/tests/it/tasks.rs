//! Classes, numbers, tags and answers, from data to predictions, with a tiny BERT.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::scene::Scene;

const RUN: &str = "\
model_name_or_path: bert
output_dir: out
train_file: train.jsonl
validation_file: valid.jsonl
learning_rate: 1e-2
max_steps: 150
per_device_train_batch_size: 8
ignore_mismatched_sizes: true
eval_steps: 150
peft:
  peft_type: LORA
  r: 8
  lora_alpha: 16
  target_modules: [query, value, intermediate.dense]
";

/// A scene with a tiny BERT and a run for `task`, whose keys stand in `more`.
pub(crate) fn scene(more: &str, train: &str, valid: &str) -> Scene {
    scene_of("bert", &format!("{RUN}{more}"), train, valid)
}

/// A scene with the tiny model of an architecture, under its name.
fn scene_of(architecture: &str, run: &str, train: &str, valid: &str) -> Scene {
    let scene = Scene::new();
    let model = scene.path(architecture);
    fs::create_dir(&model).unwrap();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (folder, names) in [
        (repository.join("fixtures").join(architecture).join("model"), ["config.json", "model.safetensors"]),
        (scene.path("model"), ["tokenizer.json", "tokenizer_config.json"]),
    ] {
        for name in names {
            fs::copy(folder.join(name), model.join(name)).unwrap();
        }
    }
    scene.write("run.yaml", run);
    scene.write("train.jsonl", train);
    scene.write("valid.jsonl", valid);
    scene
}

/// The value behind a name in what `evaluate` printed.
fn measured(out: &str, name: &str) -> f64 {
    let line = out.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {out}"));
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn prompts_vote_in_one_batch() {
    let file = |count, shift| -> String {
        let line = |(text, is_a)| format!("{{\"text\": \"{text}\", \"label\": \"{is_a}\"}}\n");
        letters(count, shift).into_iter().map(line).collect()
    };
    let scene = scene("task_type: SEQ_CLS\n", &file(40, 0), &file(12, 3));
    let prompts = [("first", "1", "6"), ("second", "2", "9"), ("third", "3", "4")];
    for (folder, seed, steps) in prompts {
        let (output, seed, steps) =
            (format!("output_dir={folder}"), format!("seed={seed}"), format!("max_steps={steps}"));
        let method = "peft={peft_type: PROMPT_TUNING, num_virtual_tokens: 3}";
        let more = ["precision=float32", "eval_steps=null", &output, &seed, &steps, method];
        scene.run(&[&["train", "run.yaml"], &more[..]].concat()).succeeds();
    }
    // Heads are each prompt's own; the seed of the base's new ones does not matter.
    let predict = |folders: &[&str]| {
        let adapters: Vec<&str> = folders.iter().flat_map(|folder| ["-a", folder]).collect();
        let more = ["--data", "valid.jsonl", "--precision", "float32"];
        lines(scene.run(&[&["predict"], &adapters[..], &more].concat()).succeeds())
    };
    let alone: Vec<Vec<Value>> = prompts.iter().map(|(folder, ..)| predict(&[folder])).collect();
    let near =
        |found: &Value, expected: f64| assert!((found.as_f64().unwrap() - expected).abs() < 1e-5, "{found} {expected}");
    for (place, found) in predict(&["first", "second", "third"]).iter().enumerate() {
        let votes: Vec<&str> = alone.iter().map(|lines| lines[place]["label"].as_str().unwrap()).collect();
        let yes = votes.iter().filter(|vote| **vote == "true").count();
        assert_eq!(found["label"], if yes >= 2 { "true" } else { "false" }, "{votes:?}");
        let mean = alone.iter().map(|lines| lines[place]["probabilities"]["true"].as_f64().unwrap()).sum::<f64>() / 3.0;
        near(&found["probabilities"]["true"], mean);
    }
    // A tie goes to what both together think likelier, and a prompt that votes with itself is alone.
    for (place, found) in predict(&["first", "third"]).iter().enumerate() {
        let likely = |lines: &Vec<Value>| lines[place]["probabilities"]["true"].as_f64().unwrap();
        let mean = (likely(&alone[0]) + likely(&alone[2])) / 2.0;
        assert_eq!(found["label"], if mean > 0.5 { "true" } else { "false" });
    }
    for (found, expected) in predict(&["second", "second"]).iter().zip(&alone[1]) {
        assert_eq!(found["label"], expected["label"]);
        near(&found["probabilities"]["true"], expected["probabilities"]["true"].as_f64().unwrap());
    }

    let evaluate = |folders: &[&str]| {
        let adapters: Vec<&str> = folders.iter().flat_map(|folder| ["-a", folder]).collect();
        let more = ["--data", "valid.jsonl", "--precision", "float32", "--json", "measured.json"];
        scene.run(&[&["evaluate"], &adapters[..], &more].concat()).succeeds();
        serde_json::from_str::<Value>(&scene.read("measured.json")).unwrap()
    };
    let losses: Vec<f64> = prompts.iter().map(|(folder, ..)| evaluate(&[folder])["loss"].as_f64().unwrap()).collect();
    let together = evaluate(&["first", "second", "third"]);
    near(&together["loss"], losses.iter().sum::<f64>() / 3.0);
    let right = predict(&["first", "second", "third"])
        .iter()
        .zip(lines(&file(12, 3)))
        .filter(|(found, row)| found["label"] == row["label"])
        .count();
    near(&together["accuracy"], right as f64 / 12.0);
    assert_eq!(together["adapter"], serde_json::json!(["first", "second", "third"]));

    scene.run(&["merge", "-a", "first", "-a", "second", "-o", "no"]).fails(2, &["this works with one adapter"]);
    let other = scene.read("second/task.json").replace("\"true\"", "\"yes\"");
    scene.write("second/task.json", &other);
    let clash = scene.run(&["predict", "-a", "first", "-a", "second", "--data", "valid.jsonl"]);
    clash.fails(2, &["first and second cannot vote", "labels"]);
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Texts of which those with more of `a` than of `b` are of one class.
pub(crate) fn letters(count: usize, shift: usize) -> Vec<(String, bool)> {
    let text = |number: usize| {
        let is_a = number.is_multiple_of(2);
        let (many, few) = if is_a { ("a", "b") } else { ("b", "a") };
        let place = (number * 7 + shift) % 5;
        let text: String = (0..6).map(|at| if at == place { few } else { many }).collect();
        (text, is_a)
    };
    (0..count).map(text).collect()
}

#[test]
fn classes_of_pairs_are_learned_named_and_predicted() {
    let file = |count, shift| -> String {
        let line = |(text, is_a): (String, bool)| {
            let label = if is_a { "much a" } else { "much b" };
            format!("{{\"first\": \"{text}\", \"second\": \"xy\", \"kind\": \"{label}\"}}\n")
        };
        letters(count, shift).into_iter().map(line).collect()
    };
    let keys = "task_type: SEQ_CLS\ntext_column: first\ntext_pair_column: second\nlabel_column: kind\n";
    let scene = scene(keys, &file(40, 0), &file(10, 3));
    let trained = scene.run(&["train", "run.yaml"]);
    assert!(trained.succeeds().contains("tunesmith predict -a out --data FILE"), "{}", trained.out);
    let names = serde_json::from_str::<Value>(&scene.read("out/task.json")).unwrap();
    assert_eq!(names["task"]["label_names"], serde_json::json!(["much a", "much b"]));
    let evaluated = scene.run(&["evaluate", "-a", "out", "--data", "valid.jsonl"]);
    assert_eq!(measured(evaluated.succeeds(), "accuracy"), 1.0);

    scene.write(
        "new.jsonl",
        "{\"first\": \"aaaaaa\", \"second\": \"xy\"}\n{\"first\": \"bbbbbb\", \"second\": \"xy\"}\n",
    );
    let predicted = lines(scene.run(&["predict", "-a", "out", "--data", "new.jsonl"]).succeeds());
    assert_eq!((&predicted[0]["label"], &predicted[1]["label"]), (&"much a".into(), &"much b".into()));
    assert!(predicted[0]["probabilities"]["much a"].as_f64().unwrap() > 0.5);

    scene.write(
        "valid.jsonl",
        "{\"first\": \"a\", \"second\": \"b\", \"kind\": \"much c\"}\n{\"first\": \"a\", \"second\": \"b\"}\n",
    );
    scene.run(&["evaluate", "-a", "out", "--data", "valid.jsonl"]).fails(
        1,
        &[
            "valid.jsonl:1: the label 'much c' is not one of the model's: much a, much b",
            "valid.jsonl:2: has no `kind`",
        ],
    );
}

#[test]
fn several_labels_at_once_and_numbers_are_learned() {
    let flags = |count, shift| -> String {
        let line = |(text, is_a): (String, bool)| {
            let labels = if is_a { "[\"a\"]" } else { "[\"b\", \"other\"]" };
            format!("{{\"text\": \"{text}\", \"label\": {labels}}}\n")
        };
        letters(count, shift).into_iter().map(line).collect()
    };
    let several = scene("task_type: SEQ_CLS\nproblem_type: multi_label_classification\n", &flags(40, 0), &flags(10, 3));
    several.run(&["train", "run.yaml"]).succeeds();
    assert_eq!(measured(several.run(&["evaluate", "-a", "out", "--data", "valid.jsonl"]).succeeds(), "f1"), 1.0);
    let predicted = lines(several.run(&["predict", "-a", "out", "--data", "valid.jsonl"]).succeeds());
    assert_eq!(predicted[1]["labels"], serde_json::json!(["b", "other"]));

    let numbers = |count, shift| -> String {
        let line = |(text, is_a): (String, bool)| {
            format!("{{\"text\": \"{text}\", \"label\": {}}}\n", if is_a { 2.5 } else { -1.0 })
        };
        letters(count, shift).into_iter().map(line).collect()
    };
    let regression = scene("task_type: SEQ_CLS\nproblem_type: regression\n", &numbers(40, 0), &numbers(10, 3));
    regression.run(&["train", "run.yaml"]).succeeds();
    let evaluated = regression.run(&["evaluate", "-a", "out", "--data", "valid.jsonl"]);
    assert!(measured(evaluated.succeeds(), "pearson") > 0.95, "{}", evaluated.out);
    let predicted = lines(regression.run(&["predict", "-a", "out", "--data", "valid.jsonl"]).succeeds());
    assert!((predicted[0]["score"].as_f64().unwrap() - 2.5).abs() < 0.7, "{predicted:?}");
    regression.write("valid.jsonl", "{\"text\": \"a\", \"label\": \"high\"}\n");
    let failed = regression.run(&["evaluate", "-a", "out", "--data", "valid.jsonl"]);
    failed.fails(1, &["valid.jsonl:1: `label` is \"high\", must be a number"]);
}

#[test]
fn tags_of_words_are_learned_by_their_first_pieces() {
    let file = |count, shift| -> String {
        let line = |(text, is_a): (String, bool)| {
            let (name, tag) = if is_a { ("aa", "B-A") } else { ("bb", "B-B") };
            format!("{{\"tokens\": [\"{name}\", \"xyz\", \"{text}\"], \"tags\": [\"{tag}\", \"O\", \"O\"]}}\n")
        };
        letters(count, shift).into_iter().map(line).collect()
    };
    let scene = scene("task_type: TOKEN_CLS\n", &file(40, 0), &file(10, 3));
    scene.run(&["train", "run.yaml"]).succeeds();
    let evaluated = scene.run(&["evaluate", "-a", "out", "--data", "valid.jsonl"]);
    assert_eq!(measured(evaluated.succeeds(), "overall_f1"), 1.0, "{}", evaluated.out);
    let predicted = lines(scene.run(&["predict", "-a", "out", "--data", "valid.jsonl"]).succeeds());
    assert_eq!(predicted[1]["tags"], serde_json::json!(["B-B", "O", "O"]));
    scene.write("valid.jsonl", "{\"tokens\": [\"a\", \"b\"], \"tags\": [\"O\"]}\n");
    let failed = scene.run(&["evaluate", "-a", "out", "--data", "valid.jsonl"]);
    failed.fails(1, &["valid.jsonl:1: has 1 tags in `tags` for 2 words"]);
}

#[test]
fn answers_are_found_in_texts_longer_than_a_window() {
    // The answer is the number.
    let text = |number: usize| {
        let digits = "777".to_owned();
        let (before, after) = ("x ".repeat(1 + number % 9), "y ".repeat(9 - number % 9));
        (format!("{before}{digits} {after}"), before.len(), digits)
    };
    let file = |range: std::ops::Range<usize>| {
        let question = |number: usize| {
            let (context, start, digits) = text(number);
            format!(
                "{{\"id\": \"q{number}\", \"question\": \"which\", \"context\": \"{context}\",\n \"answers\": \
                 [{{\"text\": \"{digits}\", \"answer_start\": {start}}}]}}"
            )
        };
        let questions: Vec<String> = range.map(question).collect();
        let paragraphs: Vec<String> = questions
            .iter()
            .map(|question| {
                let fields: Value = serde_json::from_str(question).unwrap();
                format!("{{\"context\": {}, \"qas\": [{question}]}}", fields["context"])
            })
            .collect();
        format!("{{\"version\": \"1\", \"data\": [{{\"paragraphs\": [\n{}\n]}}]}}\n", paragraphs.join(",\n"))
    };
    let scene = scene("task_type: QUESTION_ANS\nmax_length: 20\ndoc_stride: 6\n", "", "");
    scene.write("train.json", &file(0..40));
    scene.write("valid.json", &file(40..50));
    let files = ["train_file=train.json", "validation_file=valid.json", "max_steps=200"];
    scene.run(&[&["train", "run.yaml"], &files[..]].concat()).succeeds();
    let evaluated = scene.run(&["evaluate", "-a", "out", "--data", "valid.json"]);
    assert!(measured(evaluated.succeeds(), "squad_em") >= 90.0, "{}", evaluated.out);
    let predicted = lines(scene.run(&["predict", "-a", "out", "--data", "valid.json"]).succeeds());
    assert_eq!(predicted[0]["id"], "q40");

    scene.write("valid.json", &file(40..42).replacen("\"answer_start\": 10", "\"answer_start\": 1000", 1));
    let failed = scene.run(&["evaluate", "-a", "out", "--data", "valid.json"]);
    failed.fails(1, &["valid.json:", "lies outside its context"]);
}

#[test]
fn features_need_no_training() {
    let scene = scene("", "", "");
    scene.write("texts.jsonl", "{\"text\": \"abc\"}\n{\"text\": \"abc\"}\n{\"text\": \"xyz\"}\n");
    let found = scene.run(&["predict", "-m", "bert", "--data", "texts.jsonl", "task_type=FEATURE_EXTRACTION"]);
    let found = lines(found.succeeds());
    assert_eq!(found[0]["features"].as_array().unwrap().len(), 32);
    assert!(found[0] == found[1] && found[0] != found[2]);
    scene.run(&["train", "run.yaml", "task_type=FEATURE_EXTRACTION"]).fails(2, &["nothing to be trained on"]);
    scene.run(&["train", "run.yaml", "task_type=SEQ_CLASS"]).fails(2, &["task_type 'SEQ_CLASS' is not known"]);
}

#[test]
fn texts_that_are_too_long_are_errors_unless_they_may_be_cut() {
    let long =
        format!("{{\"text\": \"{}\", \"label\": \"a\"}}\n{{\"text\": \"b\", \"label\": \"b\"}}\n", "a".repeat(90));
    let scene = scene("task_type: SEQ_CLS\n", &long, &long);
    scene.run(&["train", "run.yaml"]).fails(1, &["train.jsonl:1: has 90 tokens, more than 64", "truncate"]);
    let ended = scene.run(&["train", "run.yaml", "truncate=true", "max_steps=2", "eval_steps=2"]);
    ended.succeeds();
    assert!(ended.err.contains("1 of 2 examples were too long and are cut"), "{}", ended.err);
}

#[test]
fn texts_are_turned_into_others_by_an_encoder_decoder() {
    let file = |count, shift| -> String {
        let line = |(text, is_a): (String, bool)| {
            let target = if is_a { "aaa" } else { "bbb" };
            format!("{{\"prompt\": \"{text}\", \"completion\": \"{target}\"}}\n")
        };
        letters(count, shift).into_iter().map(line).collect()
    };
    let run = RUN
        .replace("model_name_or_path: bert", "model_name_or_path: t5")
        .replace("  target_modules: [query, value, intermediate.dense]\n", "  target_modules: all-linear\n");
    let scene = scene_of("t5", &format!("{run}task_type: SEQ_2_SEQ_LM\n"), &file(40, 0), &file(10, 3));
    scene.run(&["train", "run.yaml"]).succeeds();
    let before = scene.run(&["evaluate", "-m", "t5", "--data", "valid.jsonl", "task_type=SEQ_2_SEQ_LM"]);
    let after =
        scene.run(&["evaluate", "-a", "out", "--data", "valid.jsonl", "--metric", "bleu", "--max-new-tokens", "6"]);
    assert!(measured(after.succeeds(), "loss") < 0.2 * measured(before.succeeds(), "loss"), "{}", after.out);
    assert!(after.out.contains("\nbleu"), "{}", after.out);
    let written = scene.run(&["generate", "-a", "out", "--max-new-tokens", "3", "--json", "aabaaa", "bbbbab"]);
    let written = lines(written.succeeds());
    assert!(written[0]["text"].as_str().unwrap().starts_with('a'), "{written:?}");
    assert!(written[1]["text"].as_str().unwrap().starts_with('b'), "{written:?}");
    scene.run(&["predict", "-a", "out", "--data", "valid.jsonl"]).fails(2, &["`tunesmith generate` writes texts"]);
}

#[test]
fn virtual_tokens_take_positions_when_evaluating_and_predicting() {
    let file: String = letters(20, 0)
        .into_iter()
        .map(|(text, is_a)| format!("{{\"text\": \"{text}\", \"label\": \"{}\"}}\n", if is_a { "a" } else { "b" }))
        .collect();
    let scene = scene("task_type: SEQ_CLS\n", &file, &file);
    let method = "peft={peft_type: PROMPT_TUNING, num_virtual_tokens: 10}";
    scene.run(&["train", "run.yaml", method, "max_steps=2", "eval_steps=2"]).succeeds();
    scene.write("long.jsonl", &format!("{{\"text\": \"{}\", \"label\": \"a\"}}\n", "a".repeat(60)));
    for command in ["evaluate", "predict"] {
        let failed = scene.run(&[command, "-a", "out", "--data", "long.jsonl"]);
        failed.fails(1, &["long.jsonl:1: has 60 tokens, more than 54"]);
    }
}

/// Files as GLUE has them, with rows made up: a tab between columns, quotes that mean nothing, a byte-order mark.
#[test]
fn files_of_glue_are_read_as_they_are() {
    let sst2 = "sentence\tlabel\na \"dull film . \t0\na fine one \t1\n";
    let mrpc =
        "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tHe said \"no .\tHe denied .\n0\t3\t4\tA\tB\n";
    let rte = "index\tsentence1\tsentence2\tlabel\n0\tIt rains.\tIt is wet.\tentailment\n1\tA.\tB.\tnot_entailment\n";
    let stsb =
        "index\tgenre\tsentence1\tsentence2\tscore\n0\tmade-up\tA cat.\tA dog.\t1.250\n1\tmade-up\tA.\tA.\t5.000\n";
    for (file, keys, labels) in [
        (sst2, "text_column: sentence\n", &["0", "1"][..]),
        (mrpc, "text_column: \"#1 String\"\ntext_pair_column: \"#2 String\"\nlabel_column: Quality\n", &["0", "1"]),
        (rte, "text_column: sentence1\ntext_pair_column: sentence2\n", &["entailment", "not_entailment"]),
        (
            stsb,
            "text_column: sentence1\ntext_pair_column: sentence2\nlabel_column: score\nproblem_type: regression\n",
            &["LABEL_0"],
        ),
    ] {
        let scene = scene(&format!("task_type: SEQ_CLS\n{keys}"), "", "");
        scene.write("train.tsv", file);
        let files = ["train_file=train.tsv", "validation_file=train.tsv", "max_steps=2", "eval_steps=2"];
        scene.run(&[&["train", "run.yaml"], &files[..]].concat()).succeeds();
        let task = serde_json::from_str::<Value>(&scene.read("out/task.json")).unwrap();
        assert_eq!(task["task"]["label_names"], serde_json::json!(labels), "{file}");
        assert_eq!(measured(scene.run(&["evaluate", "-a", "out", "--data", "train.tsv"]).succeeds(), "examples"), 2.0);
    }
}
