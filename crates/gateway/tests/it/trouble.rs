//! Endpoints that fail: what is tried again, what is not, who is taken out.

use crate::app::App;
use crate::support::{Client, applied, endpoint, eventually, get, start, start_with, table, table_with};
use gateway::{Balance, Policy};
use std::time::Duration;

fn in_turn() -> Policy {
    Policy { balance: Balance::RoundRobin, ..Policy::default() }
}

#[test]
fn nobody_notices_an_endpoint_that_does_not_listen() {
    let apps = ["web@1", "web@2", "web@3"].map(App::start);
    let (gateway, address) = start(table_with(&apps.each_ref(), in_turn()));
    let mut client = Client::connect(address);
    client.get("/");
    apps[0].kill();
    for _ in 0..50 {
        // A POST too: it was never sent.
        assert_eq!(client.post("/echo", "body").text(), "body");
        assert_eq!(client.get("/").status, 200);
    }
    let metrics = gateway.metrics();
    assert!(!metrics.contains("muster_gateway_ejections_total{service=\"web\"} 0"), "{metrics}");
}

#[test]
fn what_may_have_arrived_is_sent_again_only_if_that_does_no_harm() {
    let apps = ["web@1", "web@2"].map(App::start);
    let (_gateway, address) = start(table_with(&apps.each_ref(), in_turn()));
    let mut client = Client::connect(address);
    for _ in 0..4 {
        client.get("/");
    }
    apps[0].go_deaf(true);
    apps[1].go_deaf(true);
    let seen = || apps[0].count() + apps[1].count();
    let before = seen();
    let answer = client.post("/", "once");
    assert_eq!((answer.status, seen() - before), (502, 1), "{}", answer.text());
    let before = seen();
    assert_eq!(client.get("/").status, 502);
    assert!((2..=3).contains(&(seen() - before)), "{}", seen() - before);
    let before = seen();
    client.send("POST / HTTP/1.1\r\nHost: web\r\nIdempotency-Key: 7\r\nContent-Length: 2\r\n\r\nhi");
    assert_eq!(client.answer().expect("an answer").status, 502);
    assert!((2..=3).contains(&(seen() - before)));
    assert!(
        apps.iter()
            .flat_map(App::seen)
            .filter(|s| s.header("idempotency-key").is_some())
            .all(|s| s.body == b"hi")
    );
    apps[1].go_deaf(false);
    for _ in 0..20 {
        assert_eq!(client.get("/").status, 200, "another one answers");
    }
}

#[test]
fn after_the_first_byte_nothing_is_tried_again() {
    let apps = ["web@1", "web@2"].map(App::start);
    let (_gateway, address) = start(table_with(&apps.each_ref(), in_turn()));
    let mut client = Client::connect(address);
    client.send("GET /break HTTP/1.1\r\nHost: web\r\n\r\n");
    assert_eq!(client.answer(), None, "the client sees that it is not whole");
    assert_eq!(apps[0].count() + apps[1].count(), 1);
    assert_eq!(get(address, "/garbage").status, 502);
}

#[test]
fn an_idle_connection_that_the_app_has_closed_costs_nobody_a_request() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    let mut client = Client::connect(address);
    for round in 0..30 {
        // The app ends the connection after its answer without having said so.
        assert_eq!(client.post("/close", "x").status, 200, "{round}");
        assert_eq!(client.post("/echo", "x").status, 200, "{round}");
    }
    assert_eq!(app.count(), 60);
}

#[test]
fn errors_of_an_app_reach_the_client_and_take_it_out_after_five() {
    let apps = ["web@1", "web@2"].map(App::start);
    let (gateway, address) = start(table_with(&[&apps[0]], in_turn()));
    let mut client = Client::connect(address);
    for _ in 0..10 {
        assert_eq!(client.get("/status/503").status, 503);
    }
    assert!(gateway.metrics().contains("ejections_total{service=\"web\"} 0"), "the last one stays in");
    gateway.update(table_with(&apps.each_ref(), in_turn()), 1);
    applied(&gateway, 1);
    for _ in 0..30 {
        let answer = client.get("/status/503");
        assert_eq!(answer.status, 503);
    }
    let ejected = gateway.metrics();
    assert!(!ejected.contains("ejections_total{service=\"web\"} 0"), "{ejected}");
}

#[test]
fn an_endpoint_that_comes_back_is_found_by_a_check() {
    let apps = ["web@1", "web@2"].map(App::start);
    let (_gateway, address) = start(table_with(&apps.each_ref(), in_turn()));
    let mut client = Client::connect(address);
    apps[0].kill();
    for _ in 0..10 {
        assert_eq!(client.get("/").text(), "web@2");
    }
    let again = App::start_on("web@1", apps[0].address);
    eventually(|| client.get("/").text() == "web@1");
    assert!(again.count() > 0);
}

#[test]
fn an_app_that_does_not_answer_in_time_is_not_waited_for() {
    let app = App::start("web@1");
    let policy = Policy { timeout: Duration::from_millis(200), ..Policy::default() };
    let (_gateway, address) = start(table_with(&[&app], policy));
    let answer = get(address, "/slow/5000");
    assert_eq!((answer.status, answer.text().as_str()), (504, "web did not answer in time\n"));
    assert_eq!(app.count(), 1);
}

#[test]
fn a_service_that_cannot_be_reached_says_so() {
    let mut lost = table(&[]);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = nobody.local_addr().expect("it is bound");
    drop(nobody);
    lost.services.values_mut().next().expect("one").endpoints.push(endpoint("web@1", address));
    let (_gateway, address) = start(lost);
    let answer = get(address, "/");
    assert_eq!(answer.status, 503);
    assert_eq!(answer.text(), "no instance of web could be reached\n");
}

#[test]
fn a_client_that_goes_away_leaves_nothing_behind() {
    let app = App::start("web@1");
    let (gateway, address) = start(table(&[&app]));
    for _ in 0..20 {
        let mut client = Client::connect(address);
        client.send("GET /slow/300 HTTP/1.1\r\nHost: web\r\n\r\n");
    }
    for _ in 0..20 {
        let mut client = Client::connect(address);
        client.send("POST /echo HTTP/1.1\r\nHost: web\r\nContent-Length: 100000\r\n\r\nonly this");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    eventually(|| {
        let snapshot = runtime.block_on(gateway.snapshot());
        let inflight: u64 = snapshot.services.values().flatten().map(|e| e.inflight).sum();
        snapshot.connections == 0 && inflight == 0
    });
}

#[test]
fn slow_and_silent_clients_are_shown_the_door() {
    let app = App::start("web@1");
    let mut config = crate::support::config();
    config.limits.header_timeout = Duration::from_millis(400);
    config.limits.idle_timeout = Duration::from_millis(800);
    let (_gateway, address) = start_with(config, table(&[&app]));
    let mut silent = Client::connect(address);
    let mut slow = Client::connect(address);
    slow.send("GET / HTTP/1.1\r\nHost: w");
    let mut idle = Client::connect(address);
    assert_eq!(idle.get("/").status, 200);
    slow.send("eb\r\nX-");
    let mut stalled = Client::connect(address);
    stalled.send("POST /echo HTTP/1.1\r\nHost: web\r\nContent-Length: 10\r\n\r\nonly");
    assert!(silent.is_closed());
    assert!(slow.is_closed());
    assert!(idle.is_closed());
    assert!(stalled.answer().is_none_or(|answer| answer.status == 408));
    // Others are served meanwhile, and one that takes long to be answered is none of these.
    assert_eq!(get(address, "/slow/1500").status, 200);
}

#[test]
fn bodies_have_a_limit() {
    let app = App::start("web@1");
    let (_gateway, address) =
        start(table_with(&[&app], Policy { max_body: Some(1000), ..Policy::default() }));
    assert_eq!(Client::connect(address).post("/echo", &"x".repeat(1000)).status, 200);
    let mut client = Client::connect(address);
    client.send("POST /echo HTTP/1.1\r\nHost: web\r\nContent-Length: 1001\r\n\r\n");
    assert_eq!(client.answer().expect("an answer").status, 413);
    let chunk = format!("{:x}\r\n{}\r\n", 600, "y".repeat(600));
    let mut client = Client::connect(address);
    client.send(&format!(
        "POST /echo HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n"
    ));
    assert_eq!(client.answer().expect("an answer").status, 413);
    assert_eq!(app.count(), 1, "the others never were whole");
}
