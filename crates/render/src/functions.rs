//! What templates may call, by the names that confd gives it. Templates of confd's are in another language, but what
//! they call is here and means the same.
//!
//! Left out: confd's encrypted values (`cget` and its like) and `lookupSRV`.

use crate::KeyTree;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use minijinja::{
    Environment, Error, ErrorKind, State,
    value::{Object, Rest, Serde, Value, ValueKind},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, ToSocketAddrs},
    time::SystemTime,
};

/// Where templates have the keys; not for their authors.
pub(crate) const KEYS: &str = "__keys";

#[derive(Debug)]
struct Keys(KeyTree);

impl Object for Keys {}

/// The keys as a value.
pub(crate) fn keys(keys: &KeyTree) -> Value {
    Value::from_object(Keys(keys.clone()))
}

fn tree(state: &State<'_, '_>) -> KeyTree {
    let keys = state.lookup(KEYS).and_then(|value| value.downcast_object::<Keys>());
    keys.map(|keys| keys.0.clone()).unwrap_or_default()
}

fn fail(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

fn pair(key: &str, value: &str) -> Value {
    Value::from_pairs([("Key", Value::from(key)), ("Value", Value::from(value))])
}

/// A key as templates name it.
fn clean(key: &str) -> String {
    format!("/{}", key.trim_matches('/'))
}

/// Go's `path.Match`: `*` and `?` stop at slashes, `[a-z]` and `[^a-z]` are one character.
fn matches(pattern: &[char], text: &[char]) -> bool {
    let Some((first, rest)) = pattern.split_first() else { return text.is_empty() };
    match (first, text.split_first()) {
        ('*', _) => {
            let most = text.iter().take_while(|c| **c != '/').count();
            (0..=most).any(|taken| matches(rest, &text[taken..]))
        }
        ('?', Some((c, text))) => *c != '/' && matches(rest, text),
        ('[', Some((c, text))) => {
            let Some(end) = rest.iter().position(|c| *c == ']') else { return false };
            let (mut set, not) = match &rest[..end] {
                ['^', set @ ..] => (set, true),
                set => (set, false),
            };
            let mut found = false;
            while let [low, more @ ..] = set {
                let (high, more) = match more {
                    ['-', high, more @ ..] => (high, more),
                    _ => (low, more),
                };
                found |= (low..=high).contains(&c);
                set = more;
            }
            found != not && *c != '/' && matches(&rest[end + 1..], text)
        }
        ('\\', Some((c, text))) => rest.split_first().is_some_and(|(l, rest)| l == c && matches(rest, text)),
        (literal, Some((c, text))) => literal == c && matches(rest, text),
        (_, None) => false,
    }
}

fn found(state: &State<'_, '_>, pattern: &str) -> Vec<(String, String)> {
    let pattern: Vec<char> = clean(pattern).chars().collect();
    let fits = |key: &str| matches(&pattern, &key.chars().collect::<Vec<_>>());
    tree(state).iter().filter(|(key, _)| fits(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Names directly below a directory: all of them, or those that are directories themselves.
fn children(state: &State<'_, '_>, directory: &str, directories: bool) -> Vec<String> {
    let directory = clean(directory);
    let prefix = if directory == "/" { directory.clone() } else { format!("{directory}/") };
    let tree = tree(state);
    let mut names: BTreeSet<String> = BTreeSet::new();
    for key in tree.keys() {
        match key
            .strip_prefix(&prefix)
            .map(|rest| rest.split_once('/').map_or((rest, false), |(name, _)| (name, true)))
        {
            Some((name, below)) if below || !directories => {
                names.insert(name.to_owned());
            }
            // confd names a key that is asked for itself.
            None if *key == directory && !directories => {
                names.insert(base(key));
            }
            _ => {}
        }
    }
    names.into_iter().collect()
}

fn base(path: &str) -> String {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rsplit('/').next() {
        Some("") if path.is_empty() => ".".to_owned(),
        Some("") | None => "/".to_owned(),
        Some(name) => name.to_owned(),
    }
}

fn dir(path: &str) -> String {
    match path.rsplit_once('/') {
        None => ".".to_owned(),
        Some(("", _)) => "/".to_owned(),
        Some((directory, _)) => directory.to_owned(),
    }
}

fn json(text: &str) -> Result<Value, Error> {
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| fail(format!("no JSON: {error}")))?;
    Ok(Value::from(Serde(&value)))
}

fn number(value: &Value) -> Result<i64, Error> {
    i64::try_from(value.clone()).map_err(|_| fail(format!("`{value}` is no whole number")))
}

fn arithmetic(a: &Value, b: &Value, work: impl FnOnce(i64, i64) -> Option<i64>) -> Result<i64, Error> {
    let (a, b) = (number(a)?, number(b)?);
    work(a, b).ok_or_else(|| fail(format!("there is no result for {a} and {b}")))
}

fn addresses(host: &str, wanted: impl Fn(&IpAddr) -> bool) -> Vec<String> {
    // As in confd, a name that nobody knows has no addresses.
    let found = (host, 0).to_socket_addrs().map(Iterator::collect::<Vec<_>>).unwrap_or_default();
    let found: BTreeSet<IpAddr> =
        found.into_iter().map(|address| address.ip()).filter(|ip| wanted(ip)).collect();
    found.into_iter().map(|ip| ip.to_string()).collect()
}

fn items(value: &Value) -> Result<Vec<Value>, Error> {
    Ok(value.try_iter()?.collect())
}

/// Makes them known to templates.
pub(crate) fn add(environment: &mut Environment<'static>) {
    of_keys(environment);
    of_texts(environment);
    of_numbers(environment);
    of_the_machine(environment);
}

fn of_keys(environment: &mut Environment<'static>) {
    environment.add_function("getv", |state: &State<'_, '_>, key: &str, default: Option<Value>| {
        match (tree(state).get(&clean(key)), default) {
            (Some(value), _) => Ok(Value::from(value.as_str())),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(fail(format!("the key {key} does not exist"))),
        }
    });
    environment.add_function("get", |state: &State<'_, '_>, key: &str| match tree(state).get(&clean(key)) {
        Some(value) => Ok(pair(&clean(key), value)),
        None => Err(fail(format!("the key {key} does not exist"))),
    });
    environment
        .add_function("exists", |state: &State<'_, '_>, key: &str| tree(state).contains_key(&clean(key)));
    environment.add_function("gets", |state: &State<'_, '_>, pattern: &str| {
        found(state, pattern).iter().map(|(key, value)| pair(key, value)).collect::<Vec<_>>()
    });
    environment.add_function("getvs", |state: &State<'_, '_>, pattern: &str| {
        let mut values: Vec<String> = found(state, pattern).into_iter().map(|(_, value)| value).collect();
        values.sort();
        values
    });
    environment
        .add_function("ls", |state: &State<'_, '_>, directory: &str| children(state, directory, false));
    environment
        .add_function("lsdir", |state: &State<'_, '_>, directory: &str| children(state, directory, true));
}

fn of_texts(environment: &mut Environment<'static>) {
    environment.add_function("base", |path: &str| base(path));
    environment.add_function("dir", |path: &str| dir(path));
    environment.add_function("split", |text: &str, separator: &str| {
        text.split(separator).map(str::to_owned).collect::<Vec<_>>()
    });
    environment.add_function("join", |values: &Value, separator: &str| -> Result<String, Error> {
        let texts: Vec<String> = items(values)?.iter().map(ToString::to_string).collect();
        Ok(texts.join(separator))
    });
    environment.add_function("json", |text: &str| json(text));
    environment.add_function("jsonArray", |text: &str| match json(text) {
        Ok(value) if value.kind() == ValueKind::Seq => Ok(value),
        Ok(value) => Err(fail(format!("no array: {value}"))),
        Err(error) => Err(error),
    });
    environment.add_function("map", |pairs: Rest<Value>| -> Result<Value, Error> {
        let (pairs, rest) = pairs.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(fail("map needs a value for each name".to_owned()));
        }
        let pairs: BTreeMap<String, Value> = pairs.iter().map(|[k, v]| (k.to_string(), v.clone())).collect();
        Ok(Value::from_pairs(pairs))
    });
    environment.add_function("toUpper", |text: &str| text.to_uppercase());
    environment.add_function("toLower", |text: &str| text.to_lowercase());
    environment.add_function("contains", |text: &str, part: &str| text.contains(part));
    environment.add_function("replace", |text: &str, old: &str, new: &str, count: Option<i64>| {
        match usize::try_from(count.unwrap_or(-1)) {
            Ok(count) => text.replacen(old, new, count),
            Err(_) => text.replace(old, new),
        }
    });
    environment.add_function("trimSuffix", |text: &str, suffix: &str| {
        text.strip_suffix(suffix).unwrap_or(text).to_owned()
    });
    environment.add_function("parseBool", |text: &str| match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(fail(format!("`{text}` is neither true nor false"))),
    });
    environment.add_function("base64Encode", |text: &str| BASE64_STANDARD.encode(text));
    environment.add_function("base64Decode", |text: &str| {
        let bytes = BASE64_STANDARD.decode(text).map_err(|error| fail(format!("no base64: {error}")))?;
        String::from_utf8(bytes).map_err(|_| fail("what base64Decode gives is no text".to_owned()))
    });
    environment.add_function("reverse", |values: &Value| -> Result<Vec<Value>, Error> {
        let mut values = items(values)?;
        values.reverse();
        Ok(values)
    });
    environment.add_function("sortByLength", |values: &Value| -> Result<Vec<Value>, Error> {
        let mut values = items(values)?;
        values.sort_by_key(|value| value.to_string().len());
        Ok(values)
    });
    environment.add_function("sortKVByLength", |values: &Value| -> Result<Vec<Value>, Error> {
        let mut keyed = Vec::new();
        for value in items(values)? {
            keyed.push((value.get_attr("Key")?.to_string().len(), value));
        }
        keyed.sort_by_key(|(length, _)| *length);
        Ok(keyed.into_iter().map(|(_, value)| value).collect())
    });
}

fn of_numbers(environment: &mut Environment<'static>) {
    environment.add_function("add", |a: &Value, b: &Value| arithmetic(a, b, i64::checked_add));
    environment.add_function("sub", |a: &Value, b: &Value| arithmetic(a, b, i64::checked_sub));
    environment.add_function("mul", |a: &Value, b: &Value| arithmetic(a, b, i64::checked_mul));
    environment.add_function("div", |a: &Value, b: &Value| arithmetic(a, b, i64::checked_div));
    environment.add_function("mod", |a: &Value, b: &Value| arithmetic(a, b, i64::checked_rem));
    environment.add_function("atoi", |text: &str| {
        text.trim().parse::<i64>().map_err(|_| fail(format!("`{text}` is no whole number")))
    });
    environment.add_function("seq", |first: i64, last: i64| -> Result<Vec<i64>, Error> {
        if last.saturating_sub(first) > 100_000 {
            return Err(fail(format!("seq from {first} to {last} is too long")));
        }
        Ok((first..=last).collect())
    });
}

fn of_the_machine(environment: &mut Environment<'static>) {
    environment.add_function("getenv", |name: &str, default: Option<String>| {
        std::env::var(name).ok().filter(|value| !value.is_empty()).or(default).unwrap_or_default()
    });
    environment.add_function("datetime", || humantime::format_rfc3339_seconds(SystemTime::now()).to_string());
    environment.add_function("fileExists", |path: &str| std::path::Path::new(path).exists());
    environment.add_function("lookupIP", |host: &str| addresses(host, |_| true));
    environment.add_function("lookupIPV4", |host: &str| addresses(host, IpAddr::is_ipv4));
    environment.add_function("lookupIPV6", |host: &str| addresses(host, IpAddr::is_ipv6));
}
