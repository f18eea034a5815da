//! Between grpc-gateway's JSON and protobuf, by the tables of [`schema`](super::schema).
//!
//! The JSON is jsonpb's: bytes in base64, 64-bit numbers as strings (numbers are accepted), enumerations by name
//! (numbers are accepted), names as in the `.proto` (camelCase is accepted), zeros left out. Complaints are Go's, as
//! far as they can be known here. Invariant: nothing that a client sends panics; what is unknown is skipped.

use super::schema::{Field, Kind, Message};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};
use serde_json::Value;

/// Messages inside messages; protobuf's usual limit.
const MAX_DEPTH: usize = 100;

/// Encodes an object as the message.
pub(crate) fn to_protobuf(message: &Message, value: &Value) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    encode_message(message, value, &mut out, 0)?;
    Ok(out)
}

fn encode_message(message: &Message, value: &Value, out: &mut Vec<u8>, depth: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err("exceeded max depth".to_owned());
    }
    let object = match value {
        Value::Object(object) => object,
        Value::Null => return Ok(()),
        other => return Err(wrong(other, "map[string]json.RawMessage")),
    };
    for field in message.fields {
        let Some(value) = object.get(field.name).or_else(|| object.get(&camel_case(field.name))) else {
            continue;
        };
        match value {
            Value::Null => {}
            Value::Array(values) if field.repeated => {
                for value in values {
                    encode_field(field, value, out, depth)?;
                }
            }
            other if field.repeated => return Err(wrong(other, "[]json.RawMessage")),
            value => encode_field(field, value, out, depth)?,
        }
    }
    Ok(())
}

fn encode_field(field: &Field, value: &Value, out: &mut Vec<u8>, depth: usize) -> Result<(), String> {
    let varint = match field.kind {
        Kind::Bool => match value {
            Value::Bool(value) => u64::from(*value),
            other => return Err(wrong(other, "bool")),
        },
        Kind::Int64 => integer(value, "int64")?.cast_unsigned(),
        Kind::Uint64 | Kind::Uint32 => unsigned(value)?,
        Kind::Enum(name, names) => match value {
            Value::String(text) => match names.iter().position(|known| known == text) {
                Some(number) => u64::try_from(number).unwrap_or_default(),
                None => return Err(format!("unknown value {text:?} for enum {name}")),
            },
            other => integer(other, "int32")?.cast_unsigned(),
        },
        Kind::Bytes => return bytes(value).map(|bytes| delimited(field.tag, &bytes, out)),
        Kind::Text => match value {
            Value::String(text) => {
                delimited(field.tag, text.as_bytes(), out);
                return Ok(());
            }
            other => return Err(wrong(other, "string")),
        },
        Kind::Message(inner) => {
            let mut encoded = Vec::new();
            encode_message(inner, value, &mut encoded, depth + 1)?;
            delimited(field.tag, &encoded, out);
            return Ok(());
        }
    };
    encode_key(field.tag, WireType::Varint, out);
    encode_varint(varint, out);
    Ok(())
}

fn delimited(tag: u32, content: &[u8], out: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(content.len() as u64, out);
    out.put_slice(content);
}

fn integer(value: &Value, kind: &str) -> Result<i64, String> {
    match value {
        Value::Number(number) => match number.as_i64() {
            Some(number) => Ok(number),
            None => Err(format!("json: cannot unmarshal number {number} into Go value of type {kind}")),
        },
        Value::String(text) => text.parse().map_err(|_| not_a_number(text, kind)),
        other => Err(wrong(other, kind)),
    }
}

fn unsigned(value: &Value) -> Result<u64, String> {
    match value {
        Value::Number(number) => match number.as_u64() {
            Some(number) => Ok(number),
            None => Err(format!("json: cannot unmarshal number {number} into Go value of type uint64")),
        },
        Value::String(text) => text.parse().map_err(|_| not_a_number(text, "uint64")),
        other => Err(wrong(other, "uint64")),
    }
}

/// jsonpb takes the quotes off and tries again, so Go complains of what is inside.
fn not_a_number(text: &str, kind: &str) -> String {
    match text.chars().next() {
        None => "unexpected end of JSON input".to_owned(),
        Some(first) if first.is_ascii_digit() || first == '-' => {
            format!("json: cannot unmarshal number {text} into Go value of type {kind}")
        }
        Some(first) => format!("invalid character {} looking for beginning of value", quoted(first)),
    }
}

fn bytes(value: &Value) -> Result<Vec<u8>, String> {
    let Value::String(text) = value else { return Err(wrong(value, "[]uint8")) };
    // Go's decoder passes over line ends.
    let text: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    STANDARD.decode(&text).map_err(|error| {
        let at = match error {
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => text.len() / 4 * 4,
        };
        format!("illegal base64 data at input byte {at}")
    })
}

fn wrong(value: &Value, kind: &str) -> String {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    format!("json: cannot unmarshal {found} into Go value of type {kind}")
}

/// A character as Go quotes it in its complaints.
pub(crate) fn quoted(c: char) -> String {
    match c {
        '\'' => r"'\''".to_owned(),
        '"' => "'\"'".to_owned(),
        c => format!("'{}'", c.escape_debug()),
    }
}

fn camel_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        if c == '_' {
            upper = true;
        } else if std::mem::take(&mut upper) {
            out.push(c.to_ascii_uppercase());
        } else {
            out.push(c);
        }
    }
    out
}

/// One value of a field as it is on the wire.
#[derive(Clone)]
enum Raw {
    Number(u64),
    Bytes(Bytes),
}

/// Writes a message as JSON.
pub(crate) fn to_json(message: &Message, encoded: Bytes) -> Result<String, String> {
    let mut out = String::with_capacity(encoded.len() * 2);
    write_message(message, encoded, &mut out, 0)?;
    Ok(out)
}

fn write_message(message: &Message, encoded: Bytes, out: &mut String, depth: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err("exceeded max depth".to_owned());
    }
    let values = read_fields(encoded)?;
    let mut separator = '{';
    for field in message.fields {
        let of_field = || values.iter().filter(|(tag, _)| *tag == field.tag).map(|(_, raw)| raw);
        if field.repeated {
            let mut inner = '[';
            for raw in of_field() {
                if inner == '[' {
                    name(field.name, &mut separator, out);
                }
                out.push(inner);
                write_value(field, raw, out, depth)?;
                inner = ',';
            }
            if inner == ',' {
                out.push(']');
            }
        } else if let Some(raw) = of_field().last() {
            let zero = match raw {
                Raw::Number(number) => *number == 0,
                Raw::Bytes(bytes) => bytes.is_empty() && !matches!(field.kind, Kind::Message(_)),
            };
            if !zero || field.choice {
                name(field.name, &mut separator, out);
                write_value(field, raw, out, depth)?;
            }
        }
    }
    if separator == '{' {
        out.push('{');
    }
    out.push('}');
    Ok(())
}

fn name(name: &str, separator: &mut char, out: &mut String) {
    out.push(*separator);
    *separator = ',';
    out.push('"');
    out.push_str(name);
    out.push_str("\":");
}

fn read_fields(mut encoded: Bytes) -> Result<Vec<(u32, Raw)>, String> {
    let malformed = |error: prost::DecodeError| error.to_string();
    let mut values = Vec::new();
    while encoded.has_remaining() {
        let (tag, wire) = decode_key(&mut encoded).map_err(malformed)?;
        let raw = match wire {
            WireType::Varint => Raw::Number(decode_varint(&mut encoded).map_err(malformed)?),
            WireType::LengthDelimited => {
                let length = decode_varint(&mut encoded).map_err(malformed)?;
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                if length > encoded.remaining() {
                    return Err("a message ends early".to_owned());
                }
                Raw::Bytes(encoded.split_to(length))
            }
            _ => return Err("a message has a field of an unknown kind".to_owned()),
        };
        values.push((tag, raw));
    }
    Ok(values)
}

fn write_value(field: &Field, raw: &Raw, out: &mut String, depth: usize) -> Result<(), String> {
    match (field.kind, raw) {
        (Kind::Bool, Raw::Number(number)) => out.push_str(if *number == 0 { "false" } else { "true" }),
        (Kind::Int64, Raw::Number(number)) => out.push_str(&format!("\"{}\"", number.cast_signed())),
        (Kind::Uint64, Raw::Number(number)) => out.push_str(&format!("\"{number}\"")),
        (Kind::Uint32, Raw::Number(number)) => out.push_str(&format!("{number}")),
        (Kind::Enum(_, names), Raw::Number(number)) => {
            match usize::try_from(*number).ok().and_then(|number| names.get(number)) {
                Some(name) => out.push_str(&format!("\"{name}\"")),
                None => out.push_str(&format!("{}", number.cast_signed())),
            }
        }
        (Kind::Bytes, Raw::Bytes(bytes)) => {
            out.push('"');
            STANDARD.encode_string(bytes, out);
            out.push('"');
        }
        (Kind::Text, Raw::Bytes(bytes)) => quote(&String::from_utf8_lossy(bytes), out),
        (Kind::Message(inner), Raw::Bytes(bytes)) => write_message(inner, bytes.clone(), out, depth + 1)?,
        _ => return Err(format!("field {} has another kind", field.name)),
    }
    Ok(())
}

/// A JSON string as Go writes it: safe inside HTML.
pub(crate) fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::super::schema;
    use super::*;

    #[test]
    fn json_goes_through_protobuf_and_back() {
        let json = r#"{"compare":[{"target":"MOD","key":"YQ==","mod_revision":"0"}],"success":[{"request_put":{"key":"YQ==","value":"Yg=="}},{"request_txn":{}}]}"#;
        let value: Value = serde_json::from_str(json).unwrap();
        let encoded = to_protobuf(&schema::TXN_REQUEST, &value).unwrap();
        assert_eq!(to_json(&schema::TXN_REQUEST, encoded.into()).unwrap(), json);
    }

    #[test]
    fn both_spellings_numbers_and_names() {
        let value =
            serde_json::json!({"rangeEnd": "AA==", "sortOrder": 2, "limit": 3, "revision": "-1", "x": []});
        let encoded = to_protobuf(&schema::RANGE_REQUEST, &value).unwrap();
        assert_eq!(
            to_json(&schema::RANGE_REQUEST, encoded.into()).unwrap(),
            r#"{"range_end":"AA==","limit":"3","revision":"-1","sort_order":"DESCEND"}"#
        );
    }

    #[test]
    fn text_is_quoted_as_go_does() {
        let mut out = String::new();
        quote("a\"<\u{1}>\u{2028}é", &mut out);
        assert_eq!(out, r#""a\"\u003c\u0001\u003e\u2028é""#);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = to_json(&schema::TXN_RESPONSE, bytes.into());
        }

        #[test]
        fn what_is_encoded_reads_back(key: Vec<u8>, lease: i64, flag: bool) {
            let value = serde_json::json!({
                "key": STANDARD.encode(&key), "lease": lease.to_string(), "prev_kv": flag
            });
            let encoded = to_protobuf(&schema::PUT_REQUEST, &value).unwrap();
            let json = to_json(&schema::PUT_REQUEST, encoded.into()).unwrap();
            let back: Value = serde_json::from_str(&json).unwrap();
            proptest::prop_assert_eq!(back.get("lease").is_some(), lease != 0);
            proptest::prop_assert_eq!(back.get("key").is_some(), !key.is_empty());
        }
    }
}
