//! Our own API's description says what the server does: every route is in it, and what is answered is as described.

use crate::{
    memory::{IDS, serve},
    raw::ask,
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, path::Path};

/// `GET /v1/units` and so on, as the crate's sources route them.
fn routed(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("the sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            routed(&path, found);
            continue;
        }
        if path.extension().is_none_or(|kind| kind != "rs") {
            continue;
        }
        let text: String = fs::read_to_string(&path).expect("text").split_whitespace().collect();
        // Fleet's API is described by itself.
        let ours = |route: &&str| {
            ["v1/", "sd/", "metrics\"", "readyz\""].iter().any(|begin| route.starts_with(begin))
        };
        for route in text.split(".route(\"/").skip(1).filter(ours) {
            let (name, handlers) = route.split_once('"').expect("a path is quoted");
            let handlers = handlers.split(".route(").next().unwrap_or_default();
            // Up to the end of the call: what comes behind has other names.
            for method in ["get", "post", "put", "delete", "patch"] {
                let first = handlers.trim_start_matches(',').starts_with(&format!("{method}("));
                if first || handlers.contains(&format!(").{method}(")) {
                    found.insert(format!("{method} /{name}"));
                }
            }
        }
    }
}

#[tokio::test]
async fn every_route_is_described_and_every_description_has_a_route() {
    let server = serve().await;
    let document = ask(&server.sockets[0], "GET", "/v1/openapi.json", &[], "").await.json();
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            described.insert(format!("{method} {path}"));
            let asked = path.replace("{machine}", IDS[0]).replace("{name}", "a.service");
            let answer = ask(&server.sockets[0], &method.to_uppercase(), &asked, &[], "").await;
            let nowhere = answer.body.contains("nothing under this path");
            assert!(!nowhere && answer.status != 405, "{method} {path}: {answer:?}");
            assert!(
                operation["summary"].is_string() && operation["responses"]["default"].is_object(),
                "{path}"
            );
        }
    }
    let mut found = BTreeSet::new();
    routed(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() > 8, "{found:?}");
    assert_eq!(found, described, "describe it in crates/api/src/openapi.json");
}

/// Where `value` is not as `schema` says.
fn wrong(document: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        let named = &document["components"]["schemas"][name];
        assert!(named.is_object(), "{reference} is described nowhere");
        return wrong(document, named, value, &format!("{at}({name})"));
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(choices) = schema[key].as_array() {
            let none = choices.iter().all(|choice| wrong(document, choice, value, at).is_some());
            return none.then(|| format!("{at}: {value} is none of {choices:?}"));
        }
    }
    if let Some(words) = schema["enum"].as_array() {
        return (!words.contains(value)).then(|| format!("{at}: {value} is not in {words:?}"));
    }
    let kind = schema["type"].as_str().unwrap_or_else(|| panic!("{at} has no type: {schema}"));
    let right = match kind {
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "array" => value.is_array(),
        _ => value.is_object(),
    };
    if !right {
        return Some(format!("{at}: {value} is no {kind}"));
    }
    if let Some(items) = value.as_array() {
        return items.iter().find_map(|item| wrong(document, &schema["items"], item, &format!("{at}[]")));
    }
    let fields = value.as_object()?;
    let required = schema["required"].as_array();
    let missing =
        required.into_iter().flatten().find(|name| !fields.contains_key(name.as_str().unwrap_or_default()));
    if let Some(missing) = missing {
        return Some(format!("{at} lacks {missing}"));
    }
    fields.iter().find_map(|(name, value)| {
        match (&schema["properties"][name], &schema["additionalProperties"]) {
            (known, _) if known.is_object() => wrong(document, known, value, &format!("{at}.{name}")),
            (_, others) if others.is_object() => wrong(document, others, value, &format!("{at}.{name}")),
            (_, Value::Bool(true)) => None,
            _ => Some(format!("{at}.{name} is not described")),
        }
    })
}

#[tokio::test]
async fn answers_and_orders_are_as_described() {
    let server = serve().await;
    let document: Value = serde_json::from_str(include_str!("../../src/openapi.json")).expect("JSON");
    let changes = json!([{"name":"a.service","text":"[Service]\nExecStart=/bin/true\n","desired":"launched","replace":true}]);
    let order =
        &document["paths"]["/v1/units"]["post"]["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(wrong(&document, order, &changes, "changes"), None);
    let spoilt = json!([{"name":"a.service","desird":"launched"}]);
    assert!(wrong(&document, order, &spoilt, "changes").is_some(), "the check finds nothing");
    let body = changes.to_string();
    let maintenance = &format!("/v1/machines/{}/maintenance", IDS[0]);
    for (method, path, body, described) in [
        ("POST", "/v1/units", body.as_str(), "/v1/units"),
        ("GET", "/v1/units", "", "/v1/units"),
        ("GET", "/v1/units/a.service", "", "/v1/units/{name}"),
        ("GET", "/v1/machines", "", "/v1/machines"),
        ("GET", "/v1/units/a.service/why", "", "/v1/units/{name}/why"),
        (
            "PUT",
            maintenance,
            r#"{"state":"draining","reason":"new disk"}"#,
            "/v1/machines/{machine}/maintenance",
        ),
        ("GET", "/v1/machines", "", "/v1/machines"),
        ("DELETE", maintenance, "", "/v1/machines/{machine}/maintenance"),
        ("GET", "/v1/rebalance", "", "/v1/rebalance"),
        ("POST", "/v1/moves", r#"{"moves":[]}"#, "/v1/moves"),
        ("GET", "/v1/events?unit=a.service", "", "/v1/events"),
        ("GET", "/v1/units/a.service/history", "", "/v1/units/{name}/history"),
        ("GET", "/v1/rollouts", "", "/v1/rollouts"),
        ("POST", "/v1/rollouts", r#"{"name":"a.service"}"#, "/v1/rollouts"),
        ("GET", "/v1/rollouts/a.service", "", "/v1/rollouts/{name}"),
        ("POST", "/v1/rollouts/a.service", r#"{"command":"pause"}"#, "/v1/rollouts/{name}"),
        ("GET", "/sd/prometheus", "", "/sd/prometheus"),
        ("POST", "/v1/units/destroy", r#"{"units":["a.service"]}"#, "/v1/units/destroy"),
    ] {
        let answer = ask(&server.sockets[0], method, path, &[], body).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let operation = &document["paths"][described][method.to_lowercase()];
        let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
        assert_eq!(wrong(&document, schema, &answer.json(), path), None);
    }
    let refused = ask(&server.sockets[0], "GET", "/v1/units/nosuch.service", &[], "").await;
    assert_eq!(
        wrong(&document, &json!({"$ref":"#/components/schemas/Error"}), &refused.json(), "error"),
        None
    );
}
