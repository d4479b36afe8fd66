//! Values at dotted keys of a configuration.

use serde_json::{Map, Value};

/// Puts `value` at `key` (dotted for nested keys, a number for an element of a list); mappings on the way are made.
///
/// # Errors
/// The first part of the key, where what it names is no mapping.
pub fn assign(values: &mut Map<String, Value>, key: &str, value: Value) -> Result<(), String> {
    let mut path = key.split('.');
    let first = path.next().unwrap_or(key);
    let mut place = values.entry(first).or_insert(Value::Null);
    for part in path {
        if place.is_null() {
            *place = Value::Object(Map::new());
        }
        place = match place {
            Value::Object(values) => values.entry(part).or_insert(Value::Null),
            Value::Array(values) if part.parse().is_ok_and(|place: usize| place < values.len()) => {
                &mut values[part.parse::<usize>().unwrap_or(0)]
            }
            _ => return Err(first.to_owned()),
        };
    }
    *place = value;
    Ok(())
}

/// What stands at a dotted key.
pub fn look_up<'a>(values: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let mut path = key.split('.');
    let mut place = values.get(path.next()?)?;
    for part in path {
        place = match place {
            Value::Object(values) => values.get(part)?,
            Value::Array(values) => values.get(part.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some(place)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn dotted_keys_reach_into_mappings_and_lists() {
        let Value::Object(mut values) = json!({"a": {"b": 1}, "list": [{"r": 1}], "plain": 2}) else { panic!() };
        for (key, value) in [("a.b", json!(5)), ("a.c.d", json!("x")), ("list.0.r", json!(7)), ("new", json!(true))] {
            assign(&mut values, key, value.clone()).unwrap();
            assert_eq!(look_up(&values, key), Some(&value));
        }
        assert_eq!(assign(&mut values, "plain.x", json!(1)), Err("plain".to_owned()));
        assert_eq!((look_up(&values, "a.z"), look_up(&values, "list.3")), (None, None));
    }
}
