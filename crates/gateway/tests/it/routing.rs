//! Whose request it is, what happens to it on the way, and how the table is replaced.

use crate::app::App;
use crate::support::{Client, applied, eventually, get, start, start_with, table, table_with};
use gateway::{Balance, Policy, Route, Table};
use std::collections::BTreeSet;
use std::time::Duration;

#[test]
fn a_service_answers_to_its_name_and_all_its_instances_in_turn() {
    let apps = ["web@1", "web@2", "web@3", "web@4"].map(App::start);
    let (_gateway, address) = start(table(&apps.each_ref()));
    let answered: BTreeSet<_> = (0..60).map(|_| get(address, "/").text()).collect();
    assert_eq!(answered.len(), 4, "{answered:?}");
    let mut client = Client::connect(address);
    for host in ["web", "web:80", "WEB", "web.svc.cluster.internal", "web.svc.cluster.internal.:8080"] {
        client.send(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.answer().expect("an answer").status, 200, "{host}");
    }
    client.send("GET / HTTP/1.1\r\nHost: elsewhere\r\n\r\n");
    let answer = client.answer().expect("an answer");
    assert_eq!((answer.status, answer.text().as_str()), (404, "no service answers for elsewhere\n"));
    // The connection goes on.
    assert_eq!(client.get("/").status, 200);
}

#[test]
fn connections_to_endpoints_are_used_again() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    let mut client = Client::connect(address);
    for _ in 0..50 {
        assert_eq!(client.get("/").text(), "web@1");
        assert_eq!(client.post("/echo", "hello").text(), "hello");
    }
    assert_eq!(app.connections(), 1);
    assert_eq!(app.count(), 100);
}

#[test]
fn headers_of_the_connection_end_here_and_the_clients_are_told() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    let mut client = Client::connect(address);
    client.send(
        "GET http://web/close?a=%20b HTTP/1.1\r\nHost: web\r\nConnection: keep-alive, X-Drop\r\nX-Drop: 1\r\n\
         Keep-Alive: timeout=5\r\nTE: gzip, trailers\r\nX-Keep: 1\r\nX-Keep: 2\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n",
    );
    let answer = client.answer().expect("an answer");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("connection"), None, "the app's, not ours");
    assert_eq!(client.get("/").status, 200, "the client's connection goes on");
    let seen = &app.seen()[0];
    assert_eq!(seen.line, "GET /close?a=%20b HTTP/1.1");
    assert_eq!(seen.header("host"), Some("web"));
    assert_eq!(seen.header("te"), Some("trailers"));
    assert_eq!(seen.headers["x-keep"], ["1", "2"]);
    assert_eq!(seen.headers["x-forwarded-for"], ["192.0.2.1, 127.0.0.1"]);
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.header("x-forwarded-host"), Some("web"));
    assert_eq!(seen.header("x-request-id").map(str::len), Some(16));
    for gone in ["connection", "x-drop", "keep-alive"] {
        assert_eq!(seen.header(gone), None, "{gone}");
    }
}

#[test]
fn bodies_of_all_kinds_pass_unchanged() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    let mut client = Client::connect(address);
    client.send("POST /echo HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n");
    assert_eq!(client.answer().expect("an answer").text(), "hello world");
    assert_eq!(client.get("/chunks").text(), "one two three");
    client.send("HEAD /bytes/1000 HTTP/1.1\r\nHost: web\r\n\r\n");
    // A response to HEAD has a length and no body: read by hand.
    let head = String::from_utf8(client.bytes(15)).expect("text");
    assert_eq!(head, "HTTP/1.1 200 OK");
    let mut client = Client::connect(address);
    assert_eq!(client.get("/status/204").status, 204);
    assert_eq!(client.get("/status/304").status, 304);
    assert_eq!(client.get("/bytes/3000000").body.len(), 3_000_000);
    let long = "y".repeat(2_000_000);
    assert_eq!(client.post("/echo", &long).body.len(), 2_000_000);
    client.send("POST /echo HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    std::thread::sleep(Duration::from_millis(20));
    client.send("hello");
    assert_eq!(client.answer().expect("an answer").text(), "hello");
    client.send("GET /a HTTP/1.1\r\nHost: web\r\n\r\nGET /b HTTP/1.1\r\nHost: web\r\n\r\n");
    assert_eq!(client.answer().expect("the first").status, 200);
    assert_eq!(client.answer().expect("the second").status, 200);
    // A client of 1996 gets an end instead of chunks.
    let old = crate::support::raw(address, b"GET /chunks HTTP/1.0\r\nHost: web\r\n\r\n");
    assert!(old.ends_with("\r\n\r\none two three"), "{old}");
}

#[test]
fn routes_by_host_and_path_go_to_their_services() {
    let (web, api) = (App::start("web@1"), App::start("api@1"));
    let mut table = table(&[&web]);
    let more = crate::support::table(&[&api]);
    table
        .services
        .extend(more.services.into_values().map(|service| ("api".parse().expect("a name"), service)));
    let route = |host: &str, prefix: &str, service: &str| Route {
        host: host.parse().expect("a host"),
        prefix: prefix.to_owned(),
        service: service.parse().expect("a name"),
    };
    table.routes = vec![route("app.example.com", "/", "web"), route("*.example.com", "/api", "api")];
    table.routes.push(route("app.example.com", "/api", "api"));
    let (_gateway, address) = start(table);
    let mut client = Client::connect(address);
    for (host, path, app) in [
        ("app.example.com", "/", "web@1"),
        ("app.example.com", "/api/x", "api@1"),
        ("b.example.com", "/api", "api@1"),
    ] {
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.answer().expect("an answer").text(), app, "{host}{path}");
    }
}

#[test]
fn a_new_table_serves_at_once_and_no_connection_ends() {
    let apps = ["web@1", "web@2"].map(App::start);
    let (gateway, address) = start(table(&[&apps[0]]));
    let mut client = Client::connect(address);
    assert_eq!(client.get("/").text(), "web@1");
    for round in 1..200 {
        let app = &apps[round % 2];
        gateway.update(table(&[app]), round as u64);
        applied(&gateway, round as u64);
        assert_eq!(client.get("/").text(), app.name);
        assert_eq!(client.post("/echo", "x").text(), "x");
    }
}

#[test]
fn a_drain_is_acknowledged_when_nothing_is_under_way_and_idle_connections_end() {
    let apps = ["web@1", "web@2"].map(App::start);
    let (gateway, address) =
        start(table_with(&apps.each_ref(), Policy { balance: Balance::RoundRobin, ..Policy::default() }));
    let mut clients: Vec<_> = (0..8).map(|_| Client::connect(address)).collect();
    for client in &mut clients {
        for _ in 0..2 {
            client.get("/");
        }
    }
    assert!(apps[0].open() > 0);
    // One request that takes its time, at each app.
    for client in &mut clients[..4] {
        client.send("GET /slow/1500 HTTP/1.1\r\nHost: web\r\n\r\n");
    }
    eventually(|| apps.iter().map(App::count).sum::<usize>() == 20);
    let mut drained = table(&apps.each_ref());
    let service = drained.services.values_mut().next().expect("there is one");
    service.endpoints[0].draining = true;
    gateway.update(drained, 7);
    applied(&gateway, 7);
    let key = ("web".parse().expect("a name"), "web@1".to_owned());
    let under_way = gateway.applied().borrow().draining[&key];
    assert!(under_way > 0, "something is under way there");
    let count = apps[0].count();
    for _ in 0..20 {
        assert_eq!(clients[5].get("/").text(), "web@2");
    }
    assert_eq!(apps[0].count(), count, "nothing new goes there");
    let acknowledged = gateway.applied();
    eventually(|| acknowledged.borrow().draining[&key] == 0);
    for client in &mut clients[..4] {
        assert_eq!(client.answer().expect("what was under way is finished").status, 200);
    }
    eventually(|| apps[0].open() == 0);
    assert!(apps[1].open() > 0);
    // And it may come back.
    gateway.update(
        table_with(&apps.each_ref(), Policy { balance: Balance::RoundRobin, ..Policy::default() }),
        8,
    );
    applied(&gateway, 8);
    assert!(!gateway.applied().borrow().draining.contains_key(&key));
    let answered: BTreeSet<_> = (0..40).map(|_| clients[5].get("/").text()).collect();
    assert_eq!(answered.len(), 2);
}

#[test]
fn requests_wait_while_a_service_is_empty_but_not_for_ever() {
    let app = App::start("web@1");
    let policy = Policy { hold: Duration::from_secs(60), ..Policy::default() };
    let (gateway, address) = start(table_with(&[], policy.clone()));
    let mut waiting = Client::connect(address);
    waiting.send("POST /echo HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\n\r\nhi");
    eventually(|| gateway.metrics().contains("muster_gateway_held_total{service=\"web\"} 1"));
    gateway.update(table_with(&[&app], policy), 1);
    assert_eq!(waiting.answer().expect("an answer").text(), "hi");
    gateway.update(table_with(&[], Policy { hold: Duration::from_millis(50), ..Policy::default() }), 2);
    applied(&gateway, 2);
    let answer = waiting.get("/");
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert_eq!(answer.text(), "web has no instance at the moment\n");
    gateway.update(Table::default(), 3);
    applied(&gateway, 3);
    assert_eq!(waiting.get("/").status, 404);
}

#[test]
fn clients_stay_with_their_instance_by_a_cookie() {
    let apps = ["web@1", "web@2", "web@3"].map(App::start);
    let policy = Policy { sticky: true, ..Policy::default() };
    let (gateway, address) = start(table_with(&apps.each_ref(), policy.clone()));
    let first = get(address, "/");
    let cookie = first.header("set-cookie").and_then(|cookie| cookie.split(';').next()).expect("a cookie");
    let again = |path: &str| {
        let mut client = Client::connect(address);
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: web\r\nCookie: other=1; {cookie}\r\n\r\n"));
        client.answer().expect("an answer")
    };
    for _ in 0..20 {
        let answer = again("/");
        assert_eq!((answer.text(), answer.header("set-cookie")), (first.text(), None));
    }
    let rest: Vec<_> = apps.iter().filter(|app| app.name != first.text()).collect();
    gateway.update(table_with(&rest, policy), 1);
    applied(&gateway, 1);
    let answer = again("/");
    assert!(answer.text() != first.text() && answer.header("set-cookie").is_some());
}

#[test]
fn a_hash_keeps_what_belongs_together_in_one_place() {
    let apps = ["web@1", "web@2", "web@3"].map(App::start);
    let balance = "hash:header:X-User".parse().expect("valid");
    let (_gateway, address) = start(table_with(&apps.each_ref(), Policy { balance, ..Policy::default() }));
    let mut places = BTreeSet::new();
    for user in 0..12 {
        let of_user: BTreeSet<_> = (0..5)
            .map(|_| {
                let mut client = Client::connect(address);
                client.send(&format!("GET / HTTP/1.1\r\nHost: web\r\nX-User: {user}\r\n\r\n"));
                client.answer().expect("an answer").text()
            })
            .collect();
        assert_eq!(of_user.len(), 1, "user {user}");
        places.extend(of_user);
    }
    assert_eq!(places.len(), 3);
}

#[test]
fn plain_http_is_sent_to_https_where_a_service_asks_for_it() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table_with(&[&app], Policy { redirect: true, ..Policy::default() }));
    let answer = get(address, "/a?b=c");
    assert_eq!((answer.status, answer.header("location")), (308, Some("https://web/a?b=c")));
    assert_eq!(app.count(), 0);
}

#[test]
fn metrics_routes_and_health_are_on_the_admin_port_only() {
    let app = App::start("web@1");
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("access.log");
    let config = gateway::GatewayConfig { access_log: Some(log.clone()), ..crate::support::config() };
    let (gateway, address) = start_with(config, table(&[&app]));
    let admin = gateway.admin_address().expect("it has one");
    assert_eq!(get(address, "/x?y=1").status, 200);
    assert_eq!(get(admin, "/_muster/healthz").text(), "ok\n");
    let metrics = get(admin, "/metrics").text();
    assert!(metrics.contains("muster_gateway_requests_total{service=\"web\"} 1"), "{metrics}");
    assert!(metrics.contains("muster_gateway_responses_total{service=\"web\",code=\"2xx\"} 1"), "{metrics}");
    let routes = get(admin, "/routes").text();
    assert!(
        routes.contains("\"instance\": \"web@1\"") && routes.contains("\"standing\": \"in\""),
        "{routes}"
    );
    assert_eq!(get(address, "/_muster/healthz").text(), "web@1", "a path like any other");
    let mut text = String::new();
    eventually(|| {
        text = std::fs::read_to_string(&log).unwrap_or_default();
        text.contains('\n')
    });
    for part in ["\"path\":\"/x?y=1\"", "\"instance\":\"web@1\"", "\"status\":200", "\"complete\":true"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}
