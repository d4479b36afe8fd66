use tunesmith_train::*;
fn main() {
    let options: DataOptions = serde_json::from_value(serde_json::json!({"train_file": "/work/shared/data/e2e/train.txt", "columns": ["prompt","completion"], "delimiter": "||", "trim_whitespace": true, "prompt_suffix": "\n"})).unwrap();
    let tokenizer = tunesmith_models::TextTokenizer::open(std::path::Path::new("/work/peer/models/smol-hf")).unwrap();
    let t = std::time::Instant::now();
    let records = read_records(&options.train_file, &options).unwrap();
    let data = tokenize(&records, &options, &tokenizer, 2048).unwrap();
    println!("{} examples {} tokens {} labelled {:?}; first {:?}", data.examples.len(), data.tokens(), data.labelled(), t.elapsed(), data.examples[0]);
    let test = read_records(std::path::Path::new("/work/shared/data/e2e/test.txt"), &options).unwrap();
    let cases = generation_cases(&test, &tokenizer).unwrap();
    println!("{} cases, {} references", cases.len(), cases.iter().map(|c| c.references.len()).sum::<usize>());
    let plan = BatchPlan::new(data.lengths(), BatchLimit::Sequences(8), SamplingStrategy::Random, tunesmith_tensor::Seed(0)).unwrap();
    println!("updates {}", plan.updates(1.0, 1));
    let chat = "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"hello\"},{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}";
    std::fs::write("/tmp/chat.jsonl", chat).unwrap();
    let records = read_records(std::path::Path::new("/tmp/chat.jsonl"), &options);
    println!("{records:?}");
    let o = DataOptions::default();
    let data = tokenize(&read_records(std::path::Path::new("/tmp/chat.jsonl"), &o).unwrap(), &o, &tokenizer, 2048).unwrap();
    let e = &data.examples[0];
    for (id, label) in e.ids.iter().zip(&e.labels) { print!("{}{:?} ", if *label == tunesmith_tensor::IGNORED_TARGET {""} else {"*"}, tokenizer.decode(&[*id], false)); }
    println!();
}
