//! fleet's HTTP API v1 as documented and measured: each request with its answer, and each mistake with its refusal,
//! after which nothing is stored.

use crate::{
    memory::{IDS, Server, serve},
    raw::{Answer, Socket, ask},
};
use serde_json::json;

const JSON: &str = "Content-Type: application/json";
const OPTIONS: &str = r#"[{"section":"Service","name":"ExecStart","value":"/bin/sleep infinity"}]"#;

async fn tcp(server: &Server, method: &str, path: &str, body: &str) -> Answer {
    let headers: &[&str] = if body.is_empty() { &[] } else { &[JSON] };
    ask(&server.sockets[0], method, path, headers, body).await
}

async fn create(server: &Server, name: &str, desired: &str) {
    let body = format!(r#"{{"name":"{name}","desiredState":"{desired}","options":{OPTIONS}}}"#);
    let answer = tcp(server, "PUT", &format!("/fleet/v1/units/{name}?alt=json"), &body).await;
    assert_eq!((answer.status, answer.body.as_str()), (201, ""), "{answer:?}");
}

#[tokio::test]
async fn a_units_life_on_every_path_and_socket() {
    for prefix in ["/fleet/v1", "/v1-alpha"] {
        let server = serve().await;
        for socket in &server.sockets {
            let go = |method: &'static str, path: String, body: String| async move {
                let headers: &[&str] = if body.is_empty() { &[] } else { &[JSON] };
                let answer = ask(socket, method, &path, headers, &body).await;
                assert_eq!(answer.headers["content-type"], "application/json", "{method} {path}");
                assert!(answer.headers["server"].starts_with("fleetd/v1.0.0"), "{answer:?}");
                answer
            };
            let unit = format!("{prefix}/units/hello%401.service?alt=json");
            let empty = go("GET", format!("{prefix}/units?alt=json"), String::new()).await;
            assert_eq!((empty.status, empty.body.as_str()), (200, "{}"));
            assert_eq!(go("GET", unit.clone(), String::new()).await.message(), "unit does not exist");

            let body = format!(r#"{{"desiredState":"inactive","options":{OPTIONS}}}"#);
            let put = go("PUT", unit.clone(), body).await;
            assert_eq!((put.status, put.body.as_str()), (201, ""));
            let option = json!([{"name":"ExecStart","section":"Service","value":"/bin/sleep infinity"}]);
            let expected = json!({"currentState":"inactive","desiredState":"inactive","name":"hello@1.service","options":option});
            assert_eq!(go("GET", unit.clone(), String::new()).await.json(), expected);

            // The same options again and another desired state: that is an update, without an answer's body.
            let body =
                format!(r#"{{"name":"hello@1.service","desiredState":"launched","options":{OPTIONS}}}"#);
            let put = go("PUT", unit.clone(), body).await;
            assert_eq!((put.status, put.body.as_str()), (204, ""));
            let expected = json!({"currentState":"launched","desiredState":"launched","machineID":IDS[0],
                "name":"hello@1.service","options":option});
            assert_eq!(go("GET", unit.clone(), String::new()).await.json(), expected);
            let list = go("GET", format!("{prefix}/units"), String::new()).await;
            assert_eq!(list.json(), json!({"units":[expected]}));

            let state = json!({"hash":hash(),"machineID":IDS[0],"name":"hello@1.service",
                "systemdActiveState":"active","systemdLoadState":"loaded","systemdSubState":"running"});
            let states = go("GET", format!("{prefix}/state"), String::new()).await;
            assert_eq!(states.json(), json!({"states":[state]}));
            let one = go("GET", format!("{prefix}/state/hello%401.service"), String::new()).await;
            assert_eq!(one.json(), state);

            let deleted = go("DELETE", unit.clone(), String::new()).await;
            assert_eq!((deleted.status, deleted.body.as_str()), (204, ""));
            assert_eq!(go("DELETE", unit.clone(), String::new()).await.message(), "unit does not exist");
            // A 404 here is what fleetctl 1.0 panics at.
            let none = go("GET", format!("{prefix}/state/hello%401.service"), String::new()).await;
            assert_eq!((none.status, none.body.as_str()), (200, "{}"));
        }
    }
}

/// As the file of these options hashes.
fn hash() -> String {
    let file = unit::UnitFile::parse("[Service]\nExecStart=/bin/sleep infinity\n").expect("parses");
    file.hash()
}

#[tokio::test]
async fn other_options_replace_a_unit_and_its_desired_state() {
    let server = serve().await;
    create(&server, "a.service", "launched").await;
    let body = r#"{"options":[{"section":"Service","name":"ExecStart","value":"/bin/sleep 5"}]}"#;
    assert_eq!(tcp(&server, "PUT", "/fleet/v1/units/a.service", body).await.status, 201);
    let unit = tcp(&server, "GET", "/fleet/v1/units/a.service", "").await.json();
    assert_eq!(
        (&unit["desiredState"], &unit["options"][0]["value"]),
        (&json!("inactive"), &json!("/bin/sleep 5"))
    );
}

#[tokio::test]
async fn what_is_wanted_already_changes_nothing() {
    let server = serve().await;
    create(&server, "a.service", "launched").await;
    let before = server.memory.writes();
    let put = tcp(&server, "PUT", "/fleet/v1/units/a.service", r#"{"desiredState":"launched"}"#).await;
    assert_eq!((put.status, server.memory.writes()), (204, before));
}

#[tokio::test]
async fn a_global_unit_has_no_machine_and_no_current_state_but_many_states() {
    let server = serve().await;
    let options = r#"[{"section":"Service","name":"ExecStart","value":"/bin/true"},{"section":"X-Fleet","name":"Global","value":"true"}]"#;
    let body = format!(r#"{{"desiredState":"launched","options":{options}}}"#);
    assert_eq!(tcp(&server, "PUT", "/fleet/v1/units/g.service", &body).await.status, 201);
    create(&server, "a.service", "launched").await;
    let unit = tcp(&server, "GET", "/fleet/v1/units/g.service", "").await.json();
    assert!(unit.get("machineID").is_none() && unit.get("currentState").is_none(), "{unit}");
    let rows = async |query: &str| {
        let answer = tcp(&server, "GET", &format!("/fleet/v1/state{query}"), "").await.json();
        let rows = answer["states"].as_array().cloned().unwrap_or_default();
        let text = |row: &serde_json::Value| format!("{} {}", row["name"], row["machineID"]).replace('"', "");
        rows.iter().map(text).collect::<Vec<_>>()
    };
    let [first, second] = IDS;
    let all = [format!("a.service {first}"), format!("g.service {first}"), format!("g.service {second}")];
    assert_eq!(rows("").await, all);
    assert_eq!(rows("?unitName=g.service").await, all[1..]);
    assert_eq!(rows(&format!("?machineID={second}")).await, all[2..]);
    assert_eq!(rows(&format!("?machineID={first}&unitName=a.service&alt=json")).await, all[..1]);
    assert_eq!(rows("?machineID=0123").await, [""; 0]);
}

#[tokio::test]
async fn lists_come_in_pages_of_a_hundred() {
    let server = serve().await;
    for number in 0..205 {
        create(&server, &format!("u{number:03}.service"), "launched").await;
    }
    for (path, items) in [("units", "units"), ("state", "states")] {
        let (mut names, mut tokens, mut query) = (Vec::new(), Vec::new(), String::new());
        loop {
            let page = tcp(&server, "GET", &format!("/fleet/v1/{path}?alt=json{query}"), "").await.json();
            names.extend(page[items].as_array().into_iter().flatten().map(|unit| unit["name"].clone()));
            let Some(token) = page["nextPageToken"].as_str() else { break };
            tokens.push(token.to_owned());
            query = format!("&nextPageToken={}", token.replace('=', "%3D"));
        }
        assert_eq!(tokens, ["ZAACAA==", "ZAADAA=="]);
        let expected: Vec<_> = (0..205).map(|number| json!(format!("u{number:03}.service"))).collect();
        assert_eq!(names, expected);
    }
    let beyond = tcp(&server, "GET", "/fleet/v1/units?nextPageToken=ZAAJAA==", "").await;
    assert_eq!((beyond.status, beyond.body.as_str()), (200, "{}"));
}

#[tokio::test]
async fn metadata_is_changed_and_shown_merged() {
    let server = serve().await;
    let [first, second] = IDS;
    let list = async || tcp(&server, "GET", "/fleet/v1/machines?alt=json", "").await.json();
    let machine = |id: &str, ip: &str, metadata| json!({"id":id,"metadata":metadata,"primaryIP":ip});
    let eu = json!({"region":"eu"});
    let before =
        json!({"machines":[machine(first, "10.0.0.1", eu.clone()), machine(second, "10.0.0.2", eu)]});
    assert_eq!(list().await, before);
    // Both spellings of a value; no content type is asked for.
    let body = format!(
        r#"[{{"op":"add","path":"/{first}/metadata/foo","value":{{"value":"bar"}}}},
            {{"op":"replace","path":"/{second}/metadata/region","value":"us"}},
            {{"op":"add","path":"/00000000000000000000000000000000/metadata/absent","value":"yes"}}]"#
    );
    let patched = ask(&server.sockets[0], "PATCH", "/fleet/v1/machines", &[], &body).await;
    assert_eq!((patched.status, patched.body.as_str()), (204, ""));
    assert_eq!(patched.headers["content-type"], "application/json");
    let both = json!({"foo":"bar","region":"eu"});
    let after = json!({"machines":[machine(first, "10.0.0.1", both), machine(second, "10.0.0.2", json!({"region":"us"}))]});
    assert_eq!(list().await, after);
    let body = format!(
        r#"[{{"op":"remove","path":"/{first}/metadata/foo"}},{{"op":"remove","path":"/{first}/metadata/region"}}]"#
    );
    assert_eq!(tcp(&server, "PATCH", "/fleet/v1/machines", &body).await.status, 204);
    assert_eq!(list().await["machines"][0], json!({"id":first,"primaryIP":"10.0.0.1"}), "no empty object");
}

#[tokio::test]
async fn the_discovery_document_knows_every_path_that_fleetctl_asks() {
    let server = serve().await;
    let document = tcp(&server, "GET", "/fleet/v1/discovery", "").await.json();
    assert_eq!(
        (&document["kind"], &document["basePath"]),
        (&json!("discovery#restDescription"), &json!("/fleet/v1/"))
    );
    let mut methods = Vec::new();
    for resource in document["resources"].as_object().expect("resources").values() {
        for method in resource["methods"].as_object().expect("methods").values() {
            let text = |key: &str| method[key].as_str().expect("a text").to_owned();
            methods.push(format!("{} {}", text("httpMethod"), text("path")));
            for reference in [&method["request"]["$ref"], &method["response"]["$ref"]] {
                let known = reference.is_null()
                    || document["schemas"].get(reference.as_str().unwrap_or_default()).is_some();
                assert!(known, "{reference} is described nowhere");
            }
        }
    }
    methods.sort();
    let expected = [
        "DELETE units/{unitName}",
        "GET machines",
        "GET state",
        "GET state/{unitName}",
        "GET units",
        "GET units/{unitName}",
        "PUT units/{unitName}",
    ];
    assert_eq!(methods, expected);
}

#[tokio::test]
async fn mistakes_are_refused_and_nothing_is_stored() {
    let server = serve().await;
    create(&server, "known.service", "loaded").await;
    create(&server, "tpl@.service", "inactive").await;
    let stored = async || {
        let units = tcp(&server, "GET", "/fleet/v1/units", "").await.body;
        (server.memory.writes(), units, tcp(&server, "GET", "/fleet/v1/machines", "").await.body)
    };
    let before = stored().await;
    let options = |given: &str| format!(r#"{{"options":[{given}]}}"#);
    let option = |section: &str, name: &str, value: &str| {
        json!({"section":section,"name":name,"value":value}).to_string()
    };
    let fleet = |pairs: &[(&str, &str)]| {
        let all: Vec<_> = [option("Service", "ExecStart", "/bin/true")]
            .into_iter()
            .chain(pairs.iter().map(|(name, value)| option("X-Fleet", name, value)))
            .collect();
        options(&all.join(","))
    };
    let good = format!(r#"{{"options":{OPTIONS}}}"#);
    let long = format!("{}.service", "a".repeat(260));
    let put = |name: &str| ("PUT", format!("/fleet/v1/units/{name}"));
    let get = |path: &str| ("GET", format!("/fleet/v1/{path}"));
    let new = || put("new.service");
    let id = IDS[0];
    let patch = |body: &str| (("PATCH", "/fleet/v1/machines".to_owned()), body.to_owned());
    let add = |rest: &str| format!(r#"[{{"op":"add","path":"/{id}/metadata/ok","value":"v"}},{{{rest}}}]"#);
    let mut table: Vec<((&str, String), String, u16, &str)> = vec![
        // Names.
        (put("new"), good.clone(), 400, "unit name must contain \".\""),
        (put("new."), good.clone(), 400, "unit name cannot end in \".\""),
        (put("new.foo"), good.clone(), 400, "invalid unit type: \"foo\""),
        (put("a@1.mount"), good.clone(), 400, "invalid unit type for template: \"mount\""),
        (put("a%20b.service"), good.clone(), 400, "invalid character ' ' in unit name"),
        (put("a%2Fb.service"), good.clone(), 400, "invalid character '/' in unit name"),
        (put("%40a.service"), good.clone(), 400, "unit name cannot start in \"@\""),
        (put(&long), good.clone(), 400, "unit name exceeds maximum length (256)"),
        (get("units/new"), String::new(), 400, "unit name must contain \".\""),
        (get("state/new"), String::new(), 400, "unit name must contain \".\""),
        (("DELETE", "/fleet/v1/units/new".to_owned()), String::new(), 400, "unit name must contain \".\""),
        (
            new(),
            format!(r#"{{"name":"x.service","options":{OPTIONS}}}"#),
            400,
            "name in URL \"new.service\" differs from unit name in request body \"x.service\"",
        ),
        // Bodies.
        (new(), "{".to_owned(), 400, "unable to decode body: "),
        (new(), "[]".to_owned(), 400, "unable to decode body: "),
        (new(), r#"{"options":"x"}"#.to_owned(), 400, "options must be a list"),
        (new(), options(r#"{"section":"A","name":"b","value":1}"#), 400, "value must be a string"),
        (new(), options(&option("Ser\nvice", "a", "b")), 400, "options: "),
        (new(), options(&option("Service", "ExecStart", "a\nUser=root")), 400, "options: "),
        (new(), options(&option("Unit", "Description", "no service")), 400, "options: "),
        // States.
        (
            new(),
            format!(r#"{{"desiredState":"bogus","options":{OPTIONS}}}"#),
            400,
            "invalid desiredState \"bogus\"",
        ),
        (
            put("known.service"),
            r#"{"desiredState":"bogus"}"#.to_owned(),
            400,
            "invalid desiredState \"bogus\"",
        ),
        (put("known.service"), r#"{"desiredState":1}"#.to_owned(), 400, "desiredState must be a string"),
        (
            new(),
            r#"{"desiredState":"launched"}"#.to_owned(),
            409,
            "unit does not exist and options field empty",
        ),
        (put("known.service"), "{}".to_owned(), 409, "must provide DesiredState to update existing unit"),
        (put("known.service"), good.clone(), 409, "must provide DesiredState to update existing unit"),
        (
            put("tpl@.service"),
            r#"{"desiredState":"loaded"}"#.to_owned(),
            400,
            "cannot activate template \"tpl@.service\"",
        ),
        (
            put("new@.service"),
            format!(r#"{{"desiredState":"launched","options":{OPTIONS}}}"#),
            400,
            "cannot activate template \"new@.service\"",
        ),
        // What excludes each other.
        (
            new(),
            fleet(&[("MachineOf", "a.service"), ("Conflicts", "a.*")]),
            400,
            "unresolvable requirements: peer \"a.service\" matches conflict \"a.*\"",
        ),
        (
            new(),
            fleet(&[("MachineID", id), ("MachineOf", "a.service")]),
            400,
            "MachineID cannot be used with Peers",
        ),
        (
            new(),
            fleet(&[("MachineID", id), ("Conflicts", "a.*")]),
            400,
            "MachineID cannot be used with Conflicts",
        ),
        (new(), fleet(&[("MachineID", id), ("Global", "true")]), 400, "MachineID cannot be used with Global"),
        (
            new(),
            fleet(&[("Global", "true"), ("MachineOf", "a.service")]),
            400,
            "Global cannot be used with Peers",
        ),
        (
            new(),
            fleet(&[("Global", "true"), ("Replaces", "a.*")]),
            400,
            "Global cannot be used with Replaces",
        ),
        (
            new(),
            fleet(&[("Conflicts", "b.*"), ("Replaces", "a.*")]),
            400,
            "Conflicts cannot be used with Replaces",
        ),
        // Tokens.
        (get("machines?nextPageToken=EwBMLg=="), String::new(), 400, "token limit must be 100"),
        (get("units?nextPageToken=*"), String::new(), 400, "illegal base64 data at input byte 0"),
        (get("state?nextPageToken=ZAAAAA=="), String::new(), 400, "token page must be greater than zero"),
        (
            get("units?nextPageToken=ZAACAA==&nextPageToken=ZAACAA=="),
            String::new(),
            400,
            "too many values for page token",
        ),
        // Methods and paths.
        (
            ("POST", "/fleet/v1/machines".to_owned()),
            String::new(),
            405,
            "only GET and PATCH supported against this resource",
        ),
        (
            ("POST", "/fleet/v1/units".to_owned()),
            String::new(),
            405,
            "only GET supported against this resource",
        ),
        (
            ("POST", "/fleet/v1/units/a.service".to_owned()),
            String::new(),
            405,
            "only GET, PUT and DELETE supported against this resource",
        ),
        (
            ("PUT", "/fleet/v1/state".to_owned()),
            String::new(),
            405,
            "only GET supported against this resource",
        ),
        (
            ("PUT", "/fleet/v1/state/a.service".to_owned()),
            String::new(),
            405,
            "only GET supported against this resource",
        ),
        (
            ("POST", "/fleet/v1/discovery".to_owned()),
            String::new(),
            400,
            "only HTTP GET supported against this resource",
        ),
        (("GET", "/".to_owned()), String::new(), 405, ""),
        (("GET", "/fleet/v1".to_owned()), String::new(), 405, ""),
        (("GET", "/fleet/v1/nosuch".to_owned()), String::new(), 404, ""),
        (get("units/nosuch.service"), String::new(), 404, "unit does not exist"),
    ];
    // One bad operation spoils them all.
    for (body, message) in [
        (
            add(&format!(r#""op":"noop","path":"/{id}/metadata/a","value":"v""#)),
            "invalid op: expect add, remove, or replace",
        ),
        (add(&format!(r#""op":"add","path":"/{id}/a","value":"v""#)), "machine metadata path invalid"),
        (
            add(&format!(r#""op":"add","path":"/{id}/metadata/a","value":"""#)),
            "invalid value: add and replace require a value",
        ),
        (
            add(&format!(r#""op":"replace","path":"/{id}/metadata/a""#)),
            "invalid value: add and replace require a value",
        ),
        (r#"{"op":"add"}"#.to_owned(), "unable to decode body: "),
    ] {
        let (request, body) = patch(&body);
        table.push((request, body, 400, message));
    }
    for ((method, path), body, status, message) in table {
        let answer = tcp(&server, method, &path, &body).await;
        assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
        let said = answer.message();
        let exact = status == 400
            && !message.ends_with(' ')
            && !said.starts_with("unable")
            && !message.contains("bogus");
        let right = if exact && message != "options: " { said == message } else { said.contains(message) };
        assert!(right, "{method} {path} {body}: {said:?} is not {message:?}");
        assert_eq!(stored().await, before, "{method} {path} {body} changed something");
    }
}

#[tokio::test]
async fn the_content_type_is_checked_where_fleet_did() {
    let server = serve().await;
    let socket: &Socket = &server.sockets[0];
    let body = format!(r#"{{"options":{OPTIONS}}}"#);
    for (headers, message) in [
        (&[][..], "expected 1 Content-Type, got 0"),
        (&[JSON, JSON], "expected 1 Content-Type, got 2"),
        (&["Content-Type: text/plain"], "only acceptable Content-Type is application/json"),
        (&["Content-Type: application/jsonx"], "only acceptable Content-Type is application/json"),
    ] {
        let answer = ask(socket, "PUT", "/fleet/v1/units/a.service", headers, &body).await;
        assert_eq!((answer.status, answer.message().as_str()), (415, message));
    }
    let charset = ["Content-Type: application/json; charset=utf-8"];
    assert_eq!(ask(socket, "PUT", "/fleet/v1/units/a.service", &charset, &body).await.status, 201);
}

#[tokio::test]
async fn without_the_hub_every_answer_is_fleets_503() {
    let server = serve().await;
    server.memory.hub_is_away(true);
    let body = format!(r#"{{"options":{OPTIONS}}}"#);
    let patch = format!(r#"[{{"op":"add","path":"/{}/metadata/a","value":"v"}}]"#, IDS[0]);
    for (method, path, body) in [
        ("GET", "machines", ""),
        ("GET", "units", ""),
        ("GET", "units/a.service", ""),
        ("GET", "state", ""),
        ("GET", "state/a.service", ""),
        ("PUT", "units/a.service", &body),
        ("DELETE", "units/a.service", ""),
        ("PATCH", "machines", &patch),
    ] {
        let answer = tcp(&server, method, &format!("/fleet/v1/{path}"), body).await;
        assert_eq!(answer.status, 503, "{method} {path}");
        assert_eq!(answer.message(), "fleet server unable to communicate with etcd", "{method} {path}");
    }
    server.memory.hub_is_away(false);
    assert_eq!(tcp(&server, "GET", "/fleet/v1/machines", "").await.status, 200);
}

/// Our own API, under `/v1`.
#[tokio::test]
async fn mistakes_in_our_own_api_name_the_field_too() {
    let server = serve().await;
    create(&server, "known.service", "loaded").await;
    let before = server.memory.writes();
    for (method, path, body, status, words) in [
        ("POST", "/v1/units", "", 400, "unable to decode body"),
        ("POST", "/v1/units", "{}", 400, "unable to decode body"),
        ("POST", "/v1/units", r#"[{"text":"x"}]"#, 400, "missing field `name`"),
        ("POST", "/v1/units", r#"[{"name":"new"}]"#, 400, "unit name must contain"),
        ("POST", "/v1/units", r#"[{"name":"a.service","desired":"bogus"}]"#, 400, "unknown variant `bogus`"),
        ("POST", "/v1/units", r#"[{"name":"a.service","replace":"yes"}]"#, 400, "expected a boolean"),
        ("POST", "/v1/units/destroy", r#"{"units":"a.service"}"#, 400, "unable to decode body"),
        (
            "POST",
            "/v1/units/destroy",
            r#"{"units":["nosuch.service"]}"#,
            404,
            "nosuch.service does not exist",
        ),
        ("POST", "/v1/units/watch", "{}", 400, "missing field `units`"),
        ("POST", "/v1/units/known.service/run", r#""reboot""#, 400, "unknown variant `reboot`"),
        ("POST", "/v1/units/known.service/run", r#"{"journal":{"lines":-1}}"#, 400, "unable to decode body"),
        ("GET", "/v1/units/x", "", 400, "unit name must contain"),
        ("GET", "/v1/units/nosuch.service", "", 404, "nosuch.service does not exist"),
        ("GET", "/v1/nosuch", "", 404, "nothing under this path"),
        ("PUT", "/v1/units", "", 405, "does not know that method"),
        ("POST", "/v1/machines/nobody/units/known.service/run", r#""status""#, 400, "is no machine-id"),
    ] {
        let answer = tcp(&server, method, path, body).await;
        assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
        assert!(answer.message().contains(words), "{method} {path} {body}: {answer:?}");
    }
    assert_eq!(server.memory.writes(), before);
}
