//! SQuAD's own JSON: articles of paragraphs of questions, in one object.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::TrainError;
use crate::data::rows::Row;

/// The questions of a file as rows with `id`, `question`, `context` and `answers`; `None` if it is another kind of file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<Row>>, TrainError> {
    if path.extension().is_none_or(|ending| !ending.eq_ignore_ascii_case("json")) {
        return Ok(None);
    }
    let text = fs::read_to_string(path).map_err(TrainError::io("read", path))?;
    let Ok(Value::Object(file)) = serde_json::from_str::<Value>(&text) else { return Ok(None) };
    let Some(articles) = file.get("data").and_then(Value::as_array) else { return Ok(None) };
    let mut rows = Vec::new();
    let mut seen = 0;
    let mut line = 1;
    let list = |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    for paragraph in articles.iter().flat_map(|article| list(article, "paragraphs")) {
        for question in list(&paragraph, "qas") {
            let id = question.get("id").cloned().unwrap_or(Value::Null);
            // Where the question's id stands, from where the last one stood.
            if let Some(found) = id.as_str().and_then(|id| text[seen..].find(&format!("\"{id}\""))) {
                line += text[seen..seen + found].matches('\n').count();
                seen += found;
            }
            let is_impossible = question.get("is_impossible").and_then(Value::as_bool).unwrap_or(false);
            let answers = if is_impossible { Vec::new() } else { list(&question, "answers") };
            let column = |key: &str| answers.iter().map(|answer| answer[key].clone()).collect::<Vec<_>>();
            let row = json!({
                "id": id,
                "question": question.get("question"),
                "context": paragraph.get("context"),
                "answers": {"text": column("text"), "answer_start": column("answer_start")},
            });
            rows.extend(row.as_object().map(|fields| Row { line, fields: fields.clone() }));
        }
    }
    Ok(Some(rows))
}
