//! HTTP/1.1 beside gRPC: each request goes to the hub and to a real etcd 3.4, and the answers are compared.
//!
//! What must differ (ids, versions, indices, times) is made equal first. Without etcd these tests fail.

use crate::etcd::Etcd;
use crate::{Fixture, connect, soon};
use std::fmt::Write as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
    }
}

/// Sends bytes and reads until the server closes.
async fn raw(address: &str, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A server may answer and close before it has read all.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    answer
}

fn parse(answer: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
    let mut answer = Answer { status, head: head.to_owned(), body: body.to_owned() };
    if answer.header("transfer-encoding") == Some("chunked") {
        let mut whole = String::new();
        let mut rest = body;
        while let Some((size, tail)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size, 16).unwrap();
            if size == 0 {
                break;
            }
            whole.push_str(&tail[..size]);
            rest = &tail[size + 2..];
        }
        answer.body = whole;
    }
    answer
}

fn encode(method: &str, path: &str, kind: &str, body: &str) -> String {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n");
    if !body.is_empty() {
        write!(request, "Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len()).unwrap();
    }
    request + "\r\n" + body
}

pub(crate) async fn send(address: &str, method: &str, path: &str, body: &str) -> Answer {
    let kind = if path.starts_with("/v2") { "application/x-www-form-urlencoded" } else { "application/json" };
    parse(&raw(address, encode(method, path, kind, body).as_bytes()).await)
}

/// Sends a request whose answer goes on, and reads until it has so many lines.
async fn lines(address: &str, method: &str, path: &str, body: &str, count: usize) -> Vec<String> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = encode(method, path, "application/json", body);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let read = soon(stream.read(&mut buffer)).await.unwrap();
        assert!(read > 0, "ended: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&answer);
        let found: Vec<String> =
            text.lines().filter(|line| line.starts_with('{')).map(str::to_owned).collect();
        if found.len() >= count && text.ends_with("\r\n") {
            return found;
        }
    }
}

/// Takes out what two servers cannot have in common.
pub(crate) fn neutral(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    'text: while !rest.is_empty() {
        for (name, quoted) in [
            ("\"cluster_id\":\"", true),
            ("\"member_id\":\"", true),
            ("\"raft_term\":\"", true),
            ("\"expiration\":\"", true),
            ("\"modifiedIndex\":", false),
            ("\"createdIndex\":", false),
            ("\"index\":", false),
            ("\"hash\":", false),
            ("/0000000000", false),
        ] {
            if let Some(tail) = rest.strip_prefix(name) {
                out.push_str(name);
                let ends = |c: char| if quoted { c == '"' } else { !c.is_ascii_digit() };
                rest = &tail[tail.find(ends).unwrap_or(tail.len())..];
                continue 'text;
            }
        }
        let next = rest.chars().next().unwrap();
        out.push(next);
        rest = &rest[next.len_utf8()..];
    }
    out
}

/// Asks both, and compares status, kind and body.
async fn compare(hub: &str, etcd: &str, method: &str, path: &str, body: &str) {
    let (ours, theirs) = (send(hub, method, path, body).await, send(etcd, method, path, body).await);
    let of = |answer: &Answer| {
        (answer.status, answer.header("content-type").map(str::to_owned), neutral(&answer.body))
    };
    assert_eq!(of(&ours), of(&theirs), "{method} {path} {body}\n{}\n{}", ours.body, theirs.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages() {
    let fixture = Fixture::start().await;
    let hub = fixture.hub.address().to_string();
    let etcd = Etcd::start(&[]).await;
    for (method, path) in [("GET", "/health"), ("POST", "/health"), ("GET", "/nothing"), ("GET", "/")] {
        compare(&hub, &etcd.address, method, path, "").await;
    }
    let version = send(&hub, "GET", "/version", "").await.body;
    assert_eq!(version, r#"{"etcdserver":"3.5.0","etcdcluster":"3.5.0"}"#);
    let mut client = fixture.client().await;
    client.put("a", "1", None).await.unwrap();
    client.put("", "1", None).await.unwrap_err();
    let mut snapshot = client.snapshot().await.unwrap();
    while snapshot.message().await.unwrap().is_some() {}
    let _watch = client.watch("a", None).await.unwrap();
    let metrics = send(&hub, "GET", "/metrics", "").await;
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    for line in [
        "etcd_server_has_leader 1",
        "etcd_debugging_mvcc_keys_total 1",
        "etcd_server_proposals_committed_total 2",
        "etcd_server_quota_backend_bytes 2147483648",
        "grpc_server_started_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 2",
        "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 1",
        "grpc_server_handled_total{grpc_code=\"InvalidArgument\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 1",
        "grpc_server_started_total{grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"} 1",
        "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Snapshot\",grpc_service=\"etcdserverpb.Maintenance\",grpc_type=\"server_stream\"} 1",
        "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"+Inf\"} 2",
        "etcd_disk_wal_fsync_duration_seconds_count 2",
        "etcd_disk_backend_commit_duration_seconds_count 1",
    ] {
        assert!(metrics.body.lines().any(|found| found == line), "{line} in\n{}", metrics.body);
    }
    assert!(metrics.body.contains("\nprocess_resident_memory_bytes "));
    // Every figure that dashboards of etcd draw and one node has is there, with the same kind and labels.
    let theirs = send(&etcd.address, "GET", "/metrics", "").await.body;
    let shape = |page: &str, name: &str| -> Vec<String> {
        let mut lines: Vec<String> = page
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
            .collect();
        lines.sort();
        lines
    };
    for name in [
        "etcd_disk_wal_fsync_duration_seconds_bucket",
        "etcd_disk_wal_fsync_duration_seconds_sum",
        "etcd_disk_backend_commit_duration_seconds_bucket",
        "etcd_disk_backend_commit_duration_seconds_count",
        "etcd_mvcc_db_total_size_in_bytes",
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "etcd_server_has_leader",
        "etcd_server_is_leader",
        "etcd_server_leader_changes_seen_total",
        "etcd_server_proposals_applied_total",
        "etcd_server_proposals_committed_total",
        "etcd_server_proposals_failed_total",
        "etcd_server_proposals_pending",
        "etcd_server_quota_backend_bytes",
        "process_resident_memory_bytes",
    ] {
        assert_eq!(shape(&metrics.body, name), shape(&theirs, name), "{name}");
        assert!(metrics.body.contains(&format!("{name}{{")) || metrics.body.contains(&format!("{name} ")));
    }
    let ours = shape(&metrics.body, "grpc_server_started_total");
    for line in shape(&theirs, "grpc_server_started_total") {
        assert!(ours.contains(&line), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_scrapes_needs_no_login() {
    let fixture = Fixture::start().await;
    let address = fixture.hub.address().to_string();
    let mut client = connect(&fixture.hub).await;
    client.put("a", "1", None).await.unwrap();
    client.user_add("root", "r", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
    let options = etcd_client::ConnectOptions::new().with_user("root", "r");
    etcd_client::Client::connect([&address], Some(options)).await.unwrap();
    let metrics = send(&address, "GET", "/metrics", "").await;
    assert_eq!(metrics.status, 200, "{}", metrics.body);
    let logins = |line: &str| {
        line.starts_with("grpc_server_handled_total{grpc_code=\"OK\"") && line.contains("\"Authenticate\"")
    };
    assert!(metrics.body.lines().any(|line| logins(line) && line.ends_with(" 1")), "{}", metrics.body);
    assert!(metrics.body.contains("\netcd_debugging_mvcc_keys_total 1\n"), "{}", metrics.body);
}

/// Requests for the gateway: path, body.
const GATEWAY: &[(&str, &str)] = &[
    ("kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#),
    ("kv/range", r#"{"key":"Zm9v"}"#),
    ("kv/range", r#"{"key":"Zm9"}"#),
    ("kv/range", r#"{"key":"Z*9v"}"#),
    ("kv/range", r#"{"key":"Zm9v""#),
    ("kv/range", r#"{"key" "x"}"#),
    ("kv/range", r#"{"kez":"Zm9v"}"#),
    ("kv/range", "{}"),
    ("kv/range", ""),
    ("kv/range", "null"),
    ("kv/range", "[]"),
    ("kv/range", "\"x\""),
    ("kv/range", "hello"),
    ("kv/range", r#"{"key":3}"#),
    ("kv/range", r#"{"key":null,"limit":1.0}"#),
    ("kv/range", r#"{"limit":"99999999999999999999"}"#),
    ("kv/range", r#"{"key":"Zm9v","limit":"x"}"#),
    ("kv/range", r#"{"key":"Zm9v","keys_only":"true"}"#),
    ("kv/range", r#"{"key":"Zm9v","sort_order":"FOO"}"#),
    ("kv/range", r#"{"key":"Zm9v","sort_order":"DESCEND","sortTarget":1,"keys_only":true}"#),
    ("kv/range", r#"{"key":"Zm9v","revision":99}"#),
    ("kv/put", r#"{"key":"Zm9v","lease":"77"}"#),
    ("kv/put", r#"{"key":"Zm9v","ignore_value":true,"value":"YQ=="}"#),
    (
        "kv/txn",
        r#"{"compare":[{"key":"Zm9v","target":"CREATE","createRevision":"2"},{"key":"Zm9v","result":"NOT_EQUAL","target":"VALUE","value":"eA=="}],"success":[{"requestRange":{"key":"Zm9v"}},{"request_put":{"key":"Zm9v","value":"YQ==","prev_kv":true}},{"request_delete_range":{"key":"eA=="}}]}"#,
    ),
    (
        "kv/txn",
        r#"{"compare":[{"key":"Zm9v","target":"VERSION","version":"0"}],"success":[],"failure":[{"requestTxn":{"success":[{"requestRange":{"key":"Zm9v"}}]}}]}"#,
    ),
    ("kv/txn", r#"{"success":[{}]}"#),
    ("lease/grant", r#"{"TTL":60,"ID":"7"}"#),
    ("lease/grant", r#"{"TTL":60,"ID":"7"}"#),
    ("lease/keepalive", r#"{"ID":7}"#),
    ("lease/keepalive", r#"{"ID":9}"#),
    ("lease/keepalive", r#"{"ID":"x"}"#),
    ("lease/leases", "{}"),
    ("kv/lease/leases", ""),
    ("kv/put", r#"{"key":"bA==","value":"bA==","lease":7}"#),
    ("kv/range", r#"{"key":"AA==","rangeEnd":"AA=="}"#),
    ("lease/revoke", r#"{"ID":7}"#),
    ("lease/revoke", r#"{"ID":7}"#),
    ("kv/deleterange", r#"{"key":"Zm9v","prevKv":true}"#),
    ("kv/deleterange", r#"{"key":"Zm9v"}"#),
    ("kv/compaction", r#"{"revision":3}"#),
    ("kv/compaction", r#"{"revision":3}"#),
    ("kv/range", r#"{"key":"Zm9v","revision":1}"#),
    ("maintenance/hash", "{}"),
    ("auth/authenticate", r#"{"name":"a","password":"b"}"#),
    ("kv/nothing", "{}"),
    ("nothing", "{}"),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_answers_like_etcd() {
    let fixture = Fixture::start().await;
    let hub = fixture.hub.address().to_string();
    let etcd = Etcd::start(&[]).await;
    for prefix in ["/v3", "/v3beta"] {
        for (path, body) in GATEWAY.iter().take(if prefix == "/v3" { GATEWAY.len() } else { 3 }) {
            compare(&hub, &etcd.address, "POST", &format!("{prefix}/{path}"), body).await;
        }
    }
    compare(&hub, &etcd.address, "GET", "/v3/kv/range", "").await;
    let status = send(&hub, "POST", "/v3/maintenance/status", "").await.body;
    assert!(status.contains("\"version\":\"3.5.0\",\"dbSize\":\""), "{status}");
    let members = send(&hub, "POST", "/v3/cluster/member/list", "{}").await.body;
    assert!(members.contains(&format!("\"name\":\"test\",\"clientURLs\":[\"http://{hub}\"]")), "{members}");
    for path in ["maintenance/alarm", "maintenance/defragment", "auth/status"] {
        assert_eq!(send(&hub, "POST", &format!("/v3/{path}"), "{}").await.status, 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_streams() {
    let fixture = Fixture::start().await;
    let hub = fixture.hub.address().to_string();
    let etcd = Etcd::start(&[]).await;
    let mut both = Vec::new();
    for address in [&hub, &etcd.address] {
        send(address, "POST", "/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#).await;
        let watch = r#"{"create_request":{"key":"Zm9v","start_revision":"2","prev_kv":true}}"#;
        let (found, _) = tokio::join!(lines(address, "POST", "/v3/watch", watch, 3), async {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            send(address, "POST", "/v3/kv/deleterange", r#"{"key":"Zm9v"}"#).await
        });
        both.push(found.iter().map(|line| neutral(line)).collect::<Vec<_>>());
    }
    assert_eq!(both[0], both[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_refused() {
    let fixture = Fixture::start().await;
    let hub = fixture.hub.address().to_string();
    let large = format!(r#"{{"key":"YQ==","value":"{}"}}"#, "AAAA".repeat(600_000));
    let answer = send(&hub, "POST", "/v3/kv/put", &large).await;
    assert_eq!((answer.status, answer.body.contains("request is too large")), (400, true), "{answer:?}");
    let huge = format!(r#"{{"key":"YQ==","value":"{}"}}"#, "AAAA".repeat(2_000_000));
    assert_eq!(send(&hub, "POST", "/v3/kv/put", &huge).await.status, 400);
    let deep = r#"{"success":[{"request_txn":"#.repeat(100);
    assert_eq!(send(&hub, "POST", "/v3/kv/txn", &deep).await.status, 400);
    for request in [
        "GET / HTTP/9.9\r\n\r\n",
        "\0\0\0\r\n\r\n",
        "PUT /v2/keys/a HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
    ] {
        let answer = raw(&hub, request.as_bytes()).await;
        assert!(
            answer.starts_with(b"HTTP/1.1 4") || answer.is_empty() || answer.starts_with(b"HTTP/1.0 4"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    // Unknown gRPC calls are still gRPC's.
    let channel = crate::raw::channel(&hub).await;
    let call = crate::raw::call::<_, ()>(&channel, "/nothing.Here/Call", ()).await;
    assert_eq!(call.unwrap_err().code(), tonic::Code::Unimplemented);
    assert_eq!(send(&hub, "GET", "/health", "").await.body, r#"{"health":"true"}"#);
}

/// Splitmix64: small, and the same everywhere.
fn roll(state: &mut u64) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from((z ^ (z >> 31)) >> 33).unwrap()
}

/// Changes a few bytes of the text: one goes, one comes, one is another, or the end is lost.
fn damage(text: &str, dice: &mut u64) -> String {
    const BYTES: &[u8] = b"{}[]\",:0-9.eE%&=/?\\ntu+";
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..=roll(dice) % 3 {
        let (at, byte) = (roll(dice) % (bytes.len() + 1), BYTES[roll(dice) % BYTES.len()]);
        match roll(dice) % 4 {
            0 if at < bytes.len() => drop(bytes.remove(at)),
            1 => bytes.insert(at, byte),
            2 if at < bytes.len() => bytes[at] = byte,
            3 if roll(dice).is_multiple_of(4) => bytes.truncate(at),
            _ => {}
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_requests_get_an_answer() {
    let fixture = Fixture::start().await;
    let hub = fixture.hub.address().to_string();
    let seed = 20_261_123;
    println!("seed {seed}");
    let mut dice: u64 = seed;
    for round in 0..600 {
        let (method, path, body) = if u32::is_multiple_of(round, 2) {
            let (path, body) = GATEWAY[roll(&mut dice) % GATEWAY.len()];
            ("POST", format!("/v3/{path}"), damage(body, &mut dice))
        } else {
            let (method, path, form) = crate::v2::REQUESTS[roll(&mut dice) % crate::v2::REQUESTS.len()];
            let path = damage(path, &mut dice).replace(' ', "+");
            (method, format!("/v2/keys/{path}"), damage(form, &mut dice))
        };
        // A wait or a watch that was damaged into being right would be answered when something happens.
        if path.contains("wait=") {
            continue;
        }
        let answer = send(&hub, method, &path, &body).await;
        // 500 is grpc-gateway's answer to wrong JSON in a stream, 501 to what the hub does not have.
        let wrong_stream = answer.status == 500 && path.ends_with("keepalive");
        let refused = answer.status < 500 || answer.status == 501 || wrong_stream;
        assert!(refused, "{method} {path} {body}: {answer:?}");
    }
    assert_eq!(send(&hub, "GET", "/health", "").await.body, r#"{"health":"true"}"#);
}

/// What grpc.health.v1 asks and answers.
#[derive(Clone, PartialEq, prost::Message)]
struct Health {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_health() {
    let fixture = Fixture::start().await;
    let channel = crate::raw::channel(&fixture.hub.address().to_string()).await;
    let answer: Health = crate::raw::call(&channel, "/grpc.health.v1.Health/Check", ()).await.unwrap();
    assert_eq!(answer.status, 1, "serving");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_range_comes_in_parts() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    for number in 0..1300 {
        client.put(format!("k{number:04}"), "v", None).await.unwrap();
    }
    for number in 0..3 {
        client.put(format!("l{number}"), vec![b'x'; 1 << 20], None).await.unwrap();
    }
    let options = || etcd_client::GetOptions::new().with_prefix();
    for (prefix, limit, parts, keys) in
        [("k", 0, 3, 1300), ("k", 600, 2, 600), ("l", 0, 3, 3), ("z", 0, 1, 0)]
    {
        let mut stream =
            client.kv_client().get_stream(prefix, Some(options().with_limit(limit))).await.unwrap();
        let (mut count, mut found, mut last) = (0, Vec::new(), None);
        while let Some(part) = soon(stream.message()).await.unwrap() {
            count += 1;
            found.extend(part.kvs().iter().map(|kv| kv.key().to_vec()));
            last = Some((part.count(), part.more(), part.header().is_some()));
        }
        let whole = client.get(prefix, Some(options().with_limit(limit))).await.unwrap();
        let expected: Vec<Vec<u8>> = whole.kvs().iter().map(|kv| kv.key().to_vec()).collect();
        assert_eq!((found.len(), found), (keys, expected));
        assert_eq!((count, last), (parts, Some((whole.count(), whole.more(), true))), "{prefix} {limit}");
    }
}
