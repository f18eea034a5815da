//! The v2 API beside a real etcd 3.4 with `--enable-v2`: requests compared one by one, and Debian's etcdctl on both.

use crate::etcd::Etcd;
use crate::http::{neutral, send};
use crate::{Fixture, eventually, soon};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// One after the other: method, path and query, form.
pub(crate) const REQUESTS: &[(&str, &str, &str)] = &[
    ("GET", "", ""),
    ("GET", "/", ""),
    ("GET", "/a/b", ""),
    ("PUT", "/a/b", "value=1"),
    ("PUT", "/a/b", "value=<2>&ttl=600"),
    ("GET", "/a", ""),
    ("GET", "/a/b/c", ""),
    ("PUT", "/a/b/c", "value=1"),
    ("PUT", "/a", "value=1"),
    ("PUT", "/a", "dir=true"),
    ("PUT", "/a", "dir=true&prevExist=true&ttl=500"),
    ("PUT", "/a", "prevExist=true&ttl=500"),
    ("PUT", "/a", "prevExist=true&value=x"),
    ("GET", "/a", ""),
    ("GET", "/?recursive=true", ""),
    ("PUT", "/a/b", "value=1&prevExist=false"),
    ("PUT", "/a/z", "value=1&prevExist=true"),
    ("PUT", "/a/b", "value=1&prevValue=9"),
    ("PUT", "/a/b", "value=7&prevValue=%3C2%3E"),
    ("PUT", "/a/b", "refresh=true&ttl=90"),
    ("PUT", "/a/b", "refresh=true&ttl=90&prevExist=true"),
    ("PUT", "/a/b", "refresh=true"),
    ("PUT", "/a/b", "refresh=true&ttl=9&value=x"),
    ("PUT", "/a/nope", "refresh=true&ttl=3"),
    ("POST", "/q", "value=1"),
    ("POST", "/q", "value=2"),
    ("GET", "/q?sorted=true&quorum=true", ""),
    ("POST", "/a/b", "value=1"),
    ("DELETE", "/a", ""),
    ("DELETE", "/a?dir=true", ""),
    ("DELETE", "/a/b?prevValue=3", ""),
    ("DELETE", "/a/b?prevValue=7", ""),
    ("GET", "/a", ""),
    ("DELETE", "?recursive=true", ""),
    ("PUT", "", "value=1"),
    ("PUT", "/", "dir=true"),
    ("DELETE", "/q?recursive=true", ""),
    ("GET", "/q", ""),
    ("PUT", "/a", "ttl=x"),
    ("PUT", "/a", "prevIndex=x"),
    ("PUT", "/a", "prevExist=x"),
    ("PUT", "/a", "prevValue="),
    ("PUT", "/a?wait=true", ""),
    ("PATCH", "/a", ""),
    ("GET", "/q?recursive=maybe", ""),
    ("GET", "/q?waitIndex=x", ""),
    ("PUT", "/e", ""),
    ("GET", "/f?prevIndex=%zz", ""),
    ("PUT", "/_h/x", "value=x"),
    ("GET", "/_h", ""),
    ("PUT", "/f", "value=x&noValueOnSuccess=true"),
    ("PUT", "/f", "dir=true"),
    ("GET", "/f", ""),
    ("DELETE", "/f?prevValue=1&dir=true", ""),
    ("DELETE", "/f?dir=true", ""),
    ("DELETE", "/nope", ""),
    ("PUT", "/d", "dir=true&ttl=300"),
    ("PUT", "/d/x", "value=1"),
    ("GET", "/d", ""),
    ("PUT", "/d", "dir=true&prevExist=true&ttl=500"),
    ("GET", "/d/x", ""),
    ("PUT", "/u%C3%A4/b%20c", "value=a+b%26c"),
    ("GET", "/u%C3%A4?recursive=true", ""),
    ("PUT", "/g?value=1", ""),
    ("PUT", "/g", "value=2&prevIndex=0"),
    ("PUT", "/new", "value=1&prevIndex=3&prevExist=false"),
    ("PUT", "/g", "value=3&prevValue=2&prevExist=true"),
    ("POST", "", "value=1"),
    ("POST", "/dd", "dir=true"),
    ("POST", "/dd", "value=x&ttl=100"),
];

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_etcds() {
    let fixture = Fixture::start().await;
    let hub = fixture.hub.address().to_string();
    let etcd = Etcd::start(&["--enable-v2"]).await;
    // Seconds that pass between a request and its look at the clock differ.
    let seconds = |text: &str| text.replace(":499", ":500").replace(":599", ":600").replace(":299", ":300");
    for (method, path, form) in REQUESTS {
        let path = format!("/v2/keys{path}");
        let ours = send(&hub, method, &path, form).await;
        let theirs = send(&etcd.address, method, &path, form).await;
        assert_eq!(ours.status, theirs.status, "{method} {path} {form}: {} {}", ours.body, theirs.body);
        let (left, right) = (seconds(&neutral(&ours.body)), seconds(&neutral(&theirs.body)));
        assert_eq!(left, right, "{method} {path} {form}");
        for header in ["x-etcd-index", "x-raft-index", "x-raft-term", "x-etcd-cluster-id"] {
            let (ours, theirs) = (ours.header(header), theirs.header(header));
            assert_eq!(ours.is_some(), theirs.is_some(), "{header} of {method} {path}");
        }
        // On purpose: see the module.
        assert_eq!(ours.header("access-control-allow-origin"), None);
        assert_eq!(ours.header("content-type"), theirs.header("content-type"), "{method} {path}");
    }
    for path in ["/v2/nothing", "/v2/stats/nothing", "/v2/auth/enable", "/v2/members/nothing"] {
        let (ours, theirs) = (send(&hub, "GET", path, "").await, send(&etcd.address, "GET", path, "").await);
        assert_eq!((ours.status, ours.body), (theirs.status, theirs.body), "{path}");
    }
    let store = send(&hub, "GET", "/v2/stats/store", "").await.body;
    assert!(store.contains("\"compareAndSwapSuccess\":2,\"compareAndSwapFail\":1"), "{store}");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_apis_see_the_same_keys() {
    let fixture = Fixture::start().await;
    let hub = fixture.hub.address().to_string();
    let mut client = fixture.client().await;
    send(&hub, "PUT", "/v2/keys/a/b", "value=1&ttl=60").await;
    let kv = client.get("/a/b", None).await.unwrap().kvs()[0].clone();
    assert_eq!((kv.value(), kv.lease() != 0), (&b"1"[..], true));
    client.put("/a/c/d", "2", None).await.unwrap();
    client.put("plain", "3", None).await.unwrap();
    client.put("/x//y", "4", None).await.unwrap();
    let all = send(&hub, "GET", "/v2/keys?recursive=true", "").await.body;
    assert!(all.contains("\"key\":\"/a/c/d\",\"value\":\"2\"") && !all.contains("plain"), "{all}");
    // Without its time to live it has no lease, and the old lease is gone.
    send(&hub, "PUT", "/v2/keys/a/b", "value=1").await;
    assert_eq!(client.get("/a/b", None).await.unwrap().kvs()[0].lease(), 0);
    assert!(client.leases().await.unwrap().leases().is_empty());
    // The last one to go leaves the directory, which v3 sees as an empty key.
    send(&hub, "DELETE", "/v2/keys/a/b", "").await;
    assert_eq!(client.get("/a/", None).await.unwrap().count(), 0);
    send(&hub, "DELETE", "/v2/keys/a/c/d", "").await;
    assert_eq!(client.get("/a/c/", None).await.unwrap().kvs()[0].value(), b"");
    assert_eq!(send(&hub, "GET", "/v2/keys/a/c", "").await.status, 200);
    // What v3 did is told to those who wait for it.
    let index = client.put("/w", "1", None).await.unwrap().header().unwrap().revision();
    client.delete("/w", None).await.unwrap();
    let set = send(&hub, "GET", &format!("/v2/keys/w?wait=true&waitIndex={index}"), "").await.body;
    assert!(set.starts_with(r#"{"action":"set","node":{"key":"/w","value":"1""#), "{set}");
    let gone =
        send(&hub, "GET", &format!("/v2/keys/?recursive=true&wait=true&waitIndex={}", index + 1), "").await;
    assert!(gone.body.starts_with(r#"{"action":"delete","node":{"key":"/w","modified"#), "{}", gone.body);
    client.compact(index, None).await.unwrap();
    let cleared = send(&hub, "GET", "/v2/keys/w?wait=true&waitIndex=2", "").await;
    assert!(cleared.status == 400 && cleared.body.starts_with("{\"errorCode\":401,"), "{}", cleared.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_is_told() {
    let fixture = Fixture::start().await;
    let hub = fixture.hub.address().to_string();
    send(&hub, "PUT", "/v2/keys/t", "value=1&ttl=1").await;
    let event = send(&hub, "GET", "/v2/keys/t?wait=true", "").await.body;
    assert!(event.starts_with(r#"{"action":"expire","node":{"key":"/t","modifiedIndex""#), "{event}");
    assert_eq!(send(&hub, "GET", "/v2/keys/t", "").await.status, 404);
    // A directory takes with it what is in it, older or newer than its time to live.
    send(&hub, "PUT", "/v2/keys/d/old", "value=1").await;
    send(&hub, "PUT", "/v2/keys/d", "dir=true&prevExist=true&ttl=1").await;
    send(&hub, "PUT", "/v2/keys/d/new", "value=1").await;
    eventually("the directory ends", async || send(&hub, "GET", "/v2/keys/d", "").await.status == 404).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_compare_one_wins() {
    let fixture = Fixture::start().await;
    let hub = fixture.hub.address().to_string();
    send(&hub, "PUT", "/v2/keys/n", "value=0").await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let hub = hub.clone();
        tasks.spawn(async move {
            let mut won = 0;
            for number in 0..20 {
                let form = format!("value={}&prevValue={number}", number + 1);
                won += usize::from(send(&hub, "PUT", "/v2/keys/n", &form).await.status == 200);
            }
            for _ in 0..5 {
                assert_eq!(send(&hub, "POST", "/v2/keys/queue", "value=x").await.status, 201);
            }
            won
        });
    }
    let won: usize = tasks.join_all().await.into_iter().sum();
    let now = send(&hub, "GET", "/v2/keys/n", "").await.body;
    assert!(now.contains(&format!("\"value\":\"{won}\"")), "{won} {now}");
    let queue = send(&hub, "GET", "/v2/keys/queue", "").await.body;
    assert_eq!(queue.matches("\"key\":\"/queue/").count(), 40);
}

fn etcdctl(address: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("etcdctl");
    command
        .env("ETCDCTL_API", "2")
        .args(["--endpoints", &format!("http://{address}")])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Exit code, output and complaints, without what differs between two servers.
async fn run(address: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let child =
        etcdctl(address, arguments).spawn().expect("etcdctl runs (Debian: apt-get install etcd-client)");
    let output = soon(child.wait_with_output()).await.unwrap();
    let text = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).replace(address, "ADDRESS");
        // "(/a) [12]": the index.
        let ends = |line: &str| line.rfind(" [").map_or(line.len(), |at| at);
        text.lines()
            .map(|line| if line.ends_with(']') { &line[..ends(line)] } else { line })
            .collect::<Vec<_>>()
            .join("\n")
    };
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// What etcdctl is asked to do, one after the other.
const COMMANDS: &[&[&str]] = &[
    &["set", "/a", "1"],
    &["get", "/a"],
    &["get", "/nothing"],
    &["mk", "/a", "2"],
    &["mk", "/b/c", "2"],
    &["mk", "--in-order", "/queue", "x"],
    &["update", "/a", "3"],
    &["update", "/nothing", "3"],
    &["set", "--swap-with-value", "3", "/a", "4"],
    &["set", "--swap-with-value", "3", "/a", "5"],
    &["set", "--ttl", "100", "/ttl", "x"],
    &["mkdir", "/dir"],
    &["mkdir", "/dir"],
    &["mkdir", "--ttl", "100", "/dir2"],
    &["setdir", "/dir3"],
    &["setdir", "/dir"],
    &["updatedir", "--ttl", "100", "/dir"],
    &["ls", "--sort"],
    &["ls", "--recursive", "--sort", "-p", "/"],
    &["ls", "/b"],
    &["ls", "/nothing"],
    &["get", "/dir"],
    &["set", "/dir", "x"],
    &["rmdir", "/b"],
    &["rm", "/b/c"],
    &["ls", "/b"],
    &["rmdir", "/b"],
    &["rm", "/dir"],
    &["rm", "--dir", "/dir"],
    &["rm", "--recursive", "/queue"],
    &["rm", "--with-value", "5", "/a"],
    &["rm", "--with-value", "4", "/a"],
    &["rm", "/a"],
    &["rm", "--recursive", "/nothing"],
    &["-o", "json", "get", "/nothing"],
];

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_in_v2_mode() {
    let fixture = Fixture::start().await;
    let hub = fixture.hub.address().to_string();
    let etcd = Etcd::start(&["--enable-v2"]).await;
    let plain = |mut answer: (Option<i32>, String, String)| {
        for text in [&mut answer.1, &mut answer.2] {
            *text = neutral(text);
        }
        answer
    };
    for command in COMMANDS {
        let (ours, theirs) = (run(&hub, command).await, run(&etcd.address, command).await);
        assert_eq!(plain(ours), plain(theirs), "{command:?}");
    }
    let members = run(&hub, &["member", "list"]).await;
    assert_eq!(members.0, Some(0), "{members:?}");
    assert!(
        members.1.contains("name=test") && members.1.ends_with("clientURLs=http://ADDRESS isLeader=true"),
        "{members:?}"
    );
    let health = run(&hub, &["cluster-health"]).await;
    assert_eq!(health.0, Some(0), "{health:?}");
    assert!(health.1.contains("is healthy: got healthy result from http://ADDRESS"), "{health:?}");
    assert!(health.1.ends_with("cluster is healthy"), "{health:?}");
}

async fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> String {
    soon(lines.next_line()).await.unwrap().unwrap()
}

fn start(address: &str, arguments: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = etcdctl(address, arguments).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_watches() {
    let fixture = Fixture::start().await;
    let hub = fixture.hub.address().to_string();
    let etcd = Etcd::start(&["--enable-v2"]).await;
    for address in [&hub, &etcd.address] {
        let (mut watch, mut seen) = start(address, &["watch", "--recursive", "--forever", "/w"]);
        let script = "echo $ETCD_WATCH_ACTION $ETCD_WATCH_KEY $ETCD_WATCH_VALUE";
        let (mut exec, mut ran) =
            start(address, &["exec-watch", "--recursive", "/w", "--", "sh", "-c", script]);
        // Only a watcher that is there sees the first event; until then, more of them.
        let (mut first, mut second) = (String::new(), String::new());
        for _ in 0..100 {
            run(address, &["set", "/w/ready", "x"]).await;
            let patience = std::time::Duration::from_millis(100);
            if first.is_empty()
                && let Ok(line) = tokio::time::timeout(patience, seen.next_line()).await
            {
                first = line.unwrap().unwrap();
            }
            if second.is_empty()
                && let Ok(line) = tokio::time::timeout(patience, ran.next_line()).await
            {
                second = line.unwrap().unwrap();
            }
            if !first.is_empty() && !second.is_empty() {
                break;
            }
        }
        assert_eq!((first.as_str(), second.as_str()), ("[set] /w/ready", "set /w/ready x"));
        for command in [
            &["mk", "/w/a", "1"][..],
            &["update", "/w/a", "2"],
            &["set", "--swap-with-value", "2", "/w/a", "3"],
            &["rm", "/w/a"],
        ] {
            assert_eq!(run(address, command).await.0, Some(0));
        }
        for expected in ["[create] /w/a", "[update] /w/a", "[compareAndSwap] /w/a", "[delete] /w/a"] {
            let mut line = next(&mut seen).await;
            while !line.starts_with('[') || line == "[set] /w/ready" {
                line = next(&mut seen).await; // a value, or one more of the first
            }
            assert_eq!(line, expected);
        }
        for expected in ["create /w/a 1", "update /w/a 2", "compareAndSwap /w/a 3", "delete /w/a"] {
            let mut line = next(&mut ran).await;
            while line == "set /w/ready x" {
                line = next(&mut ran).await;
            }
            assert_eq!(line.trim_end(), expected);
        }
        watch.kill().await.unwrap();
        exec.kill().await.unwrap();
    }
}
