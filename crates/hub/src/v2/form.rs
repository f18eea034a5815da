//! What a v2 request asks: its path, and its parameters from the query and the form, read as etcd reads them.
//!
//! Invariant: whatever bytes a client sends become an [`Ask`] or a refusal; nothing is guessed.

use super::error::{Code, Refusal};
use axum::http::Method;
use std::collections::HashMap;

/// One request for keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ask {
    /// Clean and absolute; the root is `/`.
    pub(crate) path: String,
    pub(crate) value: String,
    pub(crate) dir: bool,
    pub(crate) recursive: bool,
    pub(crate) sorted: bool,
    pub(crate) wait: bool,
    pub(crate) stream: bool,
    pub(crate) wait_index: u64,
    /// Empty is none.
    pub(crate) prev_value: String,
    /// 0 is none.
    pub(crate) prev_index: u64,
    pub(crate) prev_exist: Option<bool>,
    pub(crate) refresh: bool,
    /// Seconds.
    pub(crate) ttl: Option<u64>,
    pub(crate) no_value_on_success: bool,
}

/// Reads a request. `path` is what follows `/v2/keys`, still escaped; `form` is the body if it is a form.
pub(crate) fn parse(
    method: &Method,
    path: &str,
    query: Option<&str>,
    form: Option<&[u8]>,
) -> Result<Ask, Refusal> {
    let path = clean(&String::from_utf8_lossy(&unescape(path.as_bytes(), false)?));
    let mut fields = HashMap::new();
    // What the form says goes before what the query says, and of several the first counts.
    for pairs in [form.unwrap_or_default(), query.unwrap_or_default().as_bytes()] {
        read_pairs(pairs, &mut fields)?;
    }
    let fields = Fields(fields);
    let prev_index = fields.number("prevIndex", Code::IndexNotANumber)?;
    let wait_index = fields.number("waitIndex", Code::IndexNotANumber)?;
    let recursive = fields.flag("recursive")?;
    let sorted = fields.flag("sorted")?;
    let wait = fields.flag("wait")?;
    let dir = fields.flag("dir")?;
    fields.flag("quorum")?; // every read here is of the one node that decides
    let stream = fields.flag("stream")?;
    if wait && *method != Method::GET {
        return Err(Refusal::request(Code::InvalidField, "\"wait\" can only be used with GET requests"));
    }
    let prev_value = fields.text("prevValue");
    if prev_value.as_deref() == Some("") {
        return Err(Refusal::request(Code::PrevValueRequired, "\"prevValue\" cannot be empty"));
    }
    let no_value_on_success = fields.flag("noValueOnSuccess")?;
    let ttl = match fields.text("ttl") {
        Some(text) if !text.is_empty() => Some(fields.number("ttl", Code::TtlNotANumber)?),
        _ => None, // no value: no end
    };
    let prev_exist = fields.unquoted_flag("prevExist")?;
    let refresh = fields.unquoted_flag("refresh")?.unwrap_or_default();
    let value = fields.text("value").unwrap_or_default();
    if refresh {
        if !value.is_empty() {
            return Err(Refusal::request(Code::RefreshValue, "A value was provided on a refresh"));
        }
        if ttl.is_none() {
            return Err(Refusal::request(Code::RefreshTtlRequired, "No TTL value set"));
        }
    }
    Ok(Ask {
        path,
        value,
        dir,
        recursive,
        sorted,
        wait,
        stream,
        wait_index,
        prev_value: prev_value.unwrap_or_default(),
        prev_index,
        prev_exist,
        refresh,
        ttl,
        no_value_on_success,
    })
}

struct Fields(HashMap<String, String>);

impl Fields {
    fn text(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }

    fn number(&self, name: &str, code: Code) -> Result<u64, Refusal> {
        let Some(text) = self.0.get(name) else { return Ok(0) };
        let wrong = || Refusal::request(code, format!("invalid value for \"{name}\""));
        // Unlike Rust, Go takes no sign here.
        if text.starts_with('+') { Err(wrong()) } else { text.parse().map_err(|_| wrong()) }
    }

    fn flag(&self, name: &str) -> Result<bool, Refusal> {
        let wrong = || Refusal::request(Code::InvalidField, format!("invalid value for \"{name}\""));
        self.0.get(name).map_or(Ok(false), |text| boolean(text).ok_or_else(wrong))
    }

    /// The same for the fields that may be missing; etcd complains of them without quotes.
    fn unquoted_flag(&self, name: &str) -> Result<Option<bool>, Refusal> {
        let wrong = || Refusal::request(Code::InvalidField, format!("invalid value for {name}"));
        self.0.get(name).map(|text| boolean(text).ok_or_else(wrong)).transpose()
    }
}

/// Go's `strconv.ParseBool`.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn read_pairs(pairs: &[u8], fields: &mut HashMap<String, String>) -> Result<(), Refusal> {
    for pair in pairs.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
        let mut halves = pair.splitn(2, |byte| *byte == b'=');
        let mut half = || unescape(halves.next().unwrap_or_default(), true);
        let (name, value) = (half()?, half()?);
        fields
            .entry(String::from_utf8_lossy(&name).into_owned())
            .or_insert_with(|| String::from_utf8_lossy(&value).into_owned());
    }
    Ok(())
}

/// Resolves `%41`, and `+` in forms.
fn unescape(text: &[u8], form: bool) -> Result<Vec<u8>, Refusal> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        match first {
            b'%' => {
                let digit = |at: usize| tail.get(at).and_then(|byte| char::from(*byte).to_digit(16));
                let (Some(high), Some(low)) = (digit(0), digit(1)) else {
                    let wrong = String::from_utf8_lossy(&rest[..rest.len().min(3)]).into_owned();
                    let cause = format!("invalid URL escape {wrong:?}");
                    return Err(Refusal::request(Code::InvalidForm, cause));
                };
                out.push(u8::try_from(high * 16 + low).unwrap_or_default());
                rest = &tail[2..];
            }
            b'+' if form => {
                out.push(b' ');
                rest = tail;
            }
            byte => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
    Ok(out)
}

/// Go's `path.Clean` of an absolute path.
pub(crate) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn get(query: &str) -> Result<Ask, Refusal> {
        parse(&Method::GET, "/a", Some(query), None)
    }

    #[test]
    fn paths_are_cleaned() {
        for (given, expected) in
            [("", "/"), ("/", "/"), ("/a//b/", "/a/b"), ("/a/../../b/./c", "/b/c"), ("/a%2Fb%20c", "/a/b c")]
        {
            assert_eq!(parse(&Method::GET, given, None, None).unwrap().path, expected);
        }
    }

    #[test]
    fn the_form_goes_before_the_query() {
        let ask = parse(&Method::PUT, "/a", Some("value=1&ttl=5"), Some(b"value=a+b%26")).unwrap();
        assert_eq!((ask.value.as_str(), ask.ttl), ("a b&", Some(5)));
        assert_eq!(parse(&Method::PUT, "/a", Some("ttl="), None).unwrap().ttl, None);
    }

    #[test]
    fn refusals_have_etcds_numbers() {
        for (query, code) in [
            ("ttl=x", Code::TtlNotANumber),
            ("ttl=-1", Code::TtlNotANumber),
            ("waitIndex=", Code::IndexNotANumber),
            ("recursive=maybe", Code::InvalidField),
            ("prevValue=", Code::PrevValueRequired),
            ("refresh=true", Code::RefreshTtlRequired),
            ("refresh=true&value=x&ttl=1", Code::RefreshValue),
            ("a=%zz", Code::InvalidForm),
        ] {
            assert_eq!(get(query).unwrap_err().code, code, "{query}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(path: String, query: Option<String>, form: Option<Vec<u8>>) {
            if let Ok(ask) = parse(&Method::PUT, &path, query.as_deref(), form.as_deref()) {
                assert!(ask.path.starts_with('/') && !ask.path.contains("//"), "{}", ask.path);
            }
        }

        #[test]
        fn nothing_that_looks_right_panics(query in "((ttl|dir|prev(Exist|Index|Value)|wait|refresh)=[a-z0-9%+-]{0,4}&){0,6}") {
            let _ = get(&query);
        }
    }
}
