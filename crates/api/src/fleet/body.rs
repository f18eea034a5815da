//! What fleet's API is sent. Names of fields are read in any case, as Go reads them, and unknown ones are passed
//! over. Invariant: a body of whatever shape gives its meaning or a 400 that names the field.

use super::MetadataChange;
use crate::types::ApiError;
use model::DesiredState;
use serde_json::{Map, Value};

/// The body of `PUT /units/X`.
#[derive(Debug, PartialEq)]
pub(super) struct Unit {
    pub(super) name: Option<String>,
    pub(super) desired: Option<DesiredState>,
    pub(super) options: Vec<UnitOption>,
}

#[derive(Debug, PartialEq)]
pub(super) struct UnitOption {
    pub(super) section: String,
    pub(super) name: String,
    pub(super) value: String,
}

pub(super) fn unit(body: &[u8]) -> Result<Unit, ApiError> {
    let value = decode(body)?;
    let fields = object(&value, "the body")?;
    let desired = match text(fields, "desiredState")?.as_deref() {
        None | Some("") => None,
        Some("inactive") => Some(DesiredState::Inactive),
        Some("loaded") => Some(DesiredState::Loaded),
        Some("launched") => Some(DesiredState::Launched),
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "invalid desiredState {other:?}: expect inactive, loaded or launched"
            )));
        }
    };
    let mut options = Vec::new();
    for option in list(field(fields, "options"), "options")? {
        let fields = object(option, "an element of options")?;
        let part = |name: &str| Ok::<_, ApiError>(text(fields, name)?.unwrap_or_default());
        let (section, name, value) = (part("section")?, part("name")?, part("value")?);
        if section.is_empty() || name.is_empty() {
            let missing = if section.is_empty() { "section" } else { "name" };
            return Err(ApiError::bad_request(format!("options: an element has no {missing}")));
        }
        options.push(UnitOption { section, name, value });
    }
    Ok(Unit { name: text(fields, "name")?, desired, options })
}

/// The body of `PATCH /machines`.
pub(super) fn patch(body: &[u8]) -> Result<Vec<MetadataChange>, ApiError> {
    let value = decode(body)?;
    list(Some(&value), "the body")?.iter().map(change).collect()
}

fn change(operation: &Value) -> Result<MetadataChange, ApiError> {
    let fields = object(operation, "an operation")?;
    let op = text(fields, "op")?.unwrap_or_default();
    if !matches!(op.as_str(), "add" | "remove" | "replace") {
        return Err(ApiError::bad_request("invalid op: expect add, remove, or replace"));
    }
    let path = text(fields, "path")?.unwrap_or_default();
    let invalid = || ApiError::bad_request("machine metadata path invalid");
    let (machine, key) =
        path.strip_prefix('/').and_then(|path| path.split_once("/metadata/")).ok_or_else(invalid)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if key.is_empty() || !key.chars().all(allowed) {
        return Err(invalid());
    }
    let value = match op.as_str() {
        "remove" => None,
        _ => Some(given(fields)?),
    };
    Ok(MetadataChange { machine: machine.parse().map_err(|_| invalid())?, key: key.to_owned(), value })
}

/// `{"value": "v"}`, as fleet's code has it, or `"v"`, as its documents have it.
fn given(fields: &Map<String, Value>) -> Result<String, ApiError> {
    let value = match field(fields, "value") {
        Some(Value::Object(inner)) => text(inner, "value")?,
        _ => text(fields, "value")?,
    };
    value
        .filter(|value| !value.is_empty())
        .ok_or_else(|| ApiError::bad_request("invalid value: add and replace require a value"))
}

fn decode(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("unable to decode body: {error}")))
}

fn object<'a>(value: &'a Value, what: &str) -> Result<&'a Map<String, Value>, ApiError> {
    value
        .as_object()
        .ok_or_else(|| ApiError::bad_request(format!("unable to decode body: {what} must be an object")))
}

/// A list; `null` and nothing are empty ones.
fn list<'a>(value: Option<&'a Value>, what: &str) -> Result<&'a [Value], ApiError> {
    match value {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(_) => Err(ApiError::bad_request(format!("unable to decode body: {what} must be a list"))),
    }
}

/// A text, if it is there and not `null`.
fn text(fields: &Map<String, Value>, name: &str) -> Result<Option<String>, ApiError> {
    match field(fields, name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(ApiError::bad_request(format!("unable to decode body: {name} must be a string"))),
    }
}

fn field<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let exact = fields.get(name);
    exact.or_else(|| fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_unit_is_read_in_any_case() {
        let body = br#"{"Name":"a.service","DesiredState":"launched","x":1,
            "Options":[{"Section":"Service","name":"ExecStart","VALUE":"/bin/true"}]}"#;
        let option = UnitOption {
            section: "Service".to_owned(),
            name: "ExecStart".to_owned(),
            value: "/bin/true".to_owned(),
        };
        let expected = Unit {
            name: Some("a.service".to_owned()),
            desired: Some(DesiredState::Launched),
            options: vec![option],
        };
        assert_eq!(unit(body), Ok(expected));
        let empty = Unit { name: None, desired: None, options: Vec::new() };
        assert_eq!(unit(br#"{"desiredState":"","options":null}"#), Ok(empty));
    }

    #[test]
    fn a_patch_is_read_in_both_spellings() {
        let body = format!(
            r#"[{{"op":"add","path":"/{ID}/metadata/a.b-c_1","value":{{"Value":"x"}}}},
                {{"op":"replace","path":"/{ID}/metadata/k","value":"y"}},{{"op":"remove","path":"/{ID}/metadata/k"}}]"#
        );
        let changes = patch(body.as_bytes()).expect("well formed");
        let told: Vec<_> =
            changes.iter().map(|change| (change.key.as_str(), change.value.as_deref())).collect();
        assert_eq!(told, [("a.b-c_1", Some("x")), ("k", Some("y")), ("k", None)]);
    }

    #[test]
    fn mistakes_name_the_field() {
        for (body, words) in [
            ("", "unable to decode body: EOF"),
            ("{", "unable to decode body: EOF"),
            ("{} x", "unable to decode body: trailing characters"),
            ("[]", "the body must be an object"),
            (r#"{"name":1}"#, "name must be a string"),
            (r#"{"desiredState":["launched"]}"#, "desiredState must be a string"),
            (r#"{"desiredState":"bogus"}"#, "invalid desiredState \"bogus\""),
            (r#"{"options":{}}"#, "options must be a list"),
            (r#"{"options":[1]}"#, "an element of options must be an object"),
            (r#"{"options":[{"name":"a"}]}"#, "options: an element has no section"),
            (r#"{"options":[{"section":"a","value":"b"}]}"#, "options: an element has no name"),
            (r#"{"options":[{"section":"a","name":"b","value":1}]}"#, "value must be a string"),
        ] {
            let error = unit(body.as_bytes()).expect_err(body);
            assert!(error.code == 400 && error.message.contains(words), "{body}: {error}");
        }
        let (op, path, value) = (
            "invalid op: expect add, remove, or replace",
            "machine metadata path invalid",
            "invalid value: add and replace require a value",
        );
        let add = |rest: &str| format!(r#"[{{"op":"add","path":"/{ID}/metadata/k"{rest}}}]"#);
        for (body, words) in [
            ("{}".to_owned(), "the body must be a list"),
            ("[1]".to_owned(), "an operation must be an object"),
            (format!(r#"[{{"op":"noop","path":"/{ID}/metadata/k","value":"v"}}]"#), op),
            (r#"[{}]"#.to_owned(), op),
            (format!(r#"[{{"op":"add","path":"/{ID}/foo/k","value":"v"}}]"#), path),
            (format!(r#"[{{"op":"add","path":"/{ID}/metadata/","value":"v"}}]"#), path),
            (format!(r#"[{{"op":"add","path":"/{ID}/metadata/a/b","value":"v"}}]"#), path),
            (r#"[{"op":"remove","path":"/nobody/metadata/k"}]"#.to_owned(), path),
            (add(""), value),
            (add(r#","value":"""#), value),
            (add(r#","value":{"value":""}"#), value),
            (add(r#","value":{}"#), value),
            (add(r#","value":5"#), "value must be a string"),
        ] {
            let error = patch(body.as_bytes()).expect_err(&body);
            assert!(error.code == 400 && error.message.contains(words), "{body}: {error}");
        }
    }

    /// JSON with the fields that matter, in the wrong places too.
    fn wild() -> impl Strategy<Value = Value> {
        let key = prop_oneof![
            Just("name"),
            Just("desiredState"),
            Just("options"),
            Just("section"),
            Just("value"),
            Just("Value"),
            Just("op"),
            Just("path"),
            Just("x"),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "(add|remove|launched|/[0-9a-f]{32}/metadata/[a-z]{0,2}|.{0,8})".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((key.clone(), inner), 0..6).prop_map(|pairs| {
                    Value::Object(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..200)) {
            for error in [unit(&body).err(), patch(&body).err()].into_iter().flatten() {
                prop_assert_eq!(error.code, 400);
            }
        }

        #[test]
        fn any_json_is_read_or_refused(body in wild()) {
            let body = serde_json::to_vec(&body).expect("JSON renders");
            for error in [unit(&body).err(), patch(&body).err()].into_iter().flatten() {
                prop_assert!(error.code == 400 && !error.message.is_empty());
            }
        }
    }
}
