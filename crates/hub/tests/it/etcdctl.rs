//! Debian's etcdctl 3.4. Without it these tests fail: a hub that etcdctl has not seen is not finished.

use crate::Fixture;
use std::process::{Output, Stdio};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

pub(crate) fn command_at(address: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("etcdctl");
    command
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={address}"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

fn command(fixture: &Fixture, arguments: &[&str]) -> Command {
    command_at(&fixture.hub.address().to_string(), arguments)
}

pub(crate) fn start(mut command: Command) -> Child {
    command.spawn().expect("etcdctl runs (Debian: apt-get install etcd-client)")
}

pub(crate) async fn output(child: Child) -> Output {
    crate::soon(child.wait_with_output()).await.unwrap()
}

/// What it prints; it must succeed.
async fn run(fixture: &Fixture, arguments: &[&str]) -> String {
    let output = output(start(command(fixture, arguments))).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// What it complains; it must fail.
async fn fail(fixture: &Fixture, arguments: &[&str]) -> String {
    let output = output(start(command(fixture, arguments))).await;
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys() {
    let fixture = Fixture::start().await;
    assert_eq!(run(&fixture, &["put", "p/a", "1"]).await, "OK\n");
    assert_eq!(run(&fixture, &["put", "p/b", "2"]).await, "OK\n");
    assert_eq!(run(&fixture, &["put", "--prev-kv", "p/b", "3"]).await, "OK\np/b\n2\n");
    assert_eq!(run(&fixture, &["get", "--prefix", "p/"]).await, "p/a\n1\np/b\n3\n");
    assert_eq!(run(&fixture, &["get", "--prefix", "--keys-only", "p/"]).await, "p/a\n\np/b\n\n");
    let latest = ["get", "--prefix", "--order=DESCEND", "--sort-by=MODIFY", "--limit=1", "p/"];
    assert_eq!(run(&fixture, &latest).await, "p/b\n3\n");
    assert_eq!(run(&fixture, &["get", "--rev=3", "p/b"]).await, "p/b\n2\n");
    assert_eq!(run(&fixture, &["get", "--from-key", "p/b"]).await, "p/b\n3\n");
    assert_eq!(run(&fixture, &["del", "--prev-kv", "p/a"]).await, "1\np/a\n1\n");
    assert_eq!(run(&fixture, &["del", "nothing"]).await, "0\n");
    assert_eq!(run(&fixture, &["compaction", "5"]).await, "compacted revision 5\n");
    let error = fail(&fixture, &["get", "--rev=3", "p/b"]).await;
    assert!(error.contains("etcdserver: mvcc: required revision has been compacted"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_from_stdin() {
    let fixture = Fixture::start().await;
    run(&fixture, &["put", "a", "1"]).await;
    let mut command = command(&fixture, &["txn"]);
    command.stdin(Stdio::piped());
    let mut child = start(command);
    let mut stdin = child.stdin.take().unwrap();
    let script = "mod(\"a\") > \"0\"\nvalue(\"a\") = \"1\"\n\nput b 2\nget a\n\nput c 3\n\n";
    stdin.write_all(script.as_bytes()).await.unwrap();
    drop(stdin);
    let output = output(child).await;
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "SUCCESS\n\nOK\n\na\n1\n");
    assert_eq!(run(&fixture, &["get", "--prefix", "--keys-only", ""]).await, "a\n\nb\n\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn watches() {
    let fixture = Fixture::start().await;
    run(&fixture, &["put", "a", "1"]).await;
    let mut child = start(command(&fixture, &["watch", "--rev=2", "--prev-kv", "a"]));
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut expect = async |expected: &[&str]| {
        for line in expected {
            assert_eq!(crate::soon(lines.next_line()).await.unwrap().as_deref(), Some(*line));
        }
    };
    expect(&["PUT", "a", "1"]).await;
    run(&fixture, &["put", "a", "2"]).await;
    expect(&["PUT", "a", "1", "a", "2"]).await;
    run(&fixture, &["del", "a"]).await;
    expect(&["DELETE", "a", "2", "a", ""]).await;
    child.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn leases() {
    let fixture = Fixture::start().await;
    let granted = run(&fixture, &["lease", "grant", "60"]).await;
    let words: Vec<&str> = granted.split_whitespace().collect();
    let ["lease", id, "granted", "with", "TTL(60s)"] = words.as_slice() else { panic!("{granted}") };
    run(&fixture, &["put", "k", "v", &format!("--lease={id}")]).await;
    let left = run(&fixture, &["lease", "timetolive", id, "--keys"]).await;
    assert!(left.starts_with(&format!("lease {id} granted with TTL(60s), remaining(")), "{left}");
    assert!(left.ends_with("attached keys([k])\n"), "{left}");
    assert_eq!(run(&fixture, &["lease", "list"]).await, format!("found 1 leases\n{id}\n"));
    let kept = run(&fixture, &["lease", "keep-alive", "--once", id]).await;
    assert_eq!(kept, format!("lease {id} keepalived with TTL(60)\n"));
    assert_eq!(run(&fixture, &["lease", "revoke", id]).await, format!("lease {id} revoked\n"));
    assert_eq!(run(&fixture, &["get", "k"]).await, "");
    assert_eq!(run(&fixture, &["lease", "timetolive", id]).await, format!("lease {id} already expired\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_and_elections() {
    let fixture = Fixture::start().await;
    // The inner command runs while the lock is held.
    assert!(run(&fixture, &["lock", "mutex", "echo", "held"]).await.contains("held"));
    let mut first = start(command(&fixture, &["elect", "e", "first"]));
    let mut lines = BufReader::new(first.stdout.take().unwrap()).lines();
    assert!(crate::soon(lines.next_line()).await.unwrap().unwrap().starts_with("e/"));
    assert_eq!(crate::soon(lines.next_line()).await.unwrap().as_deref(), Some("first"));
    let mut second = start(command(&fixture, &["elect", "e", "second"]));
    let mut lines = BufReader::new(second.stdout.take().unwrap()).lines();
    crate::eventually("the second stands", async || {
        run(&fixture, &["get", "--prefix", "--keys-only", "e/"])
            .await
            .lines()
            .filter(|l| !l.is_empty())
            .count()
            == 2
    })
    .await;
    // The first leads until its key goes: with its lease, here.
    let leader =
        run(&fixture, &["get", "--prefix", "--sort-by=CREATE", "--order=ASCEND", "--limit=1", "e/"]).await;
    let key = leader.lines().next().unwrap();
    run(&fixture, &["lease", "revoke", key.trim_start_matches("e/")]).await;
    assert!(crate::soon(lines.next_line()).await.unwrap().unwrap().starts_with("e/"));
    assert_eq!(crate::soon(lines.next_line()).await.unwrap().as_deref(), Some("second"));
    first.kill().await.unwrap();
    second.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance() {
    let fixture = Fixture::start().await;
    run(&fixture, &["put", "a", "1"]).await;
    let status = run(&fixture, &["endpoint", "status"]).await;
    assert!(
        status.starts_with(&fixture.hub.address().to_string()) && status.contains(", 3.5.0, "),
        "{status}"
    );
    // Its verdict goes to standard error in 3.4.
    run(&fixture, &["endpoint", "health"]).await;
    run(&fixture, &["endpoint", "hashkv"]).await;
    let members = run(&fixture, &["member", "list"]).await;
    assert!(
        members.contains(&format!("started, test, , http://{}, false", fixture.hub.address())),
        "{members}"
    );
    assert_eq!(run(&fixture, &["alarm", "list"]).await, "");
    run(&fixture, &["defrag"]).await;
    // It takes "authentication is not enabled" for leave to go on without, as with etcd.
    assert_eq!(run(&fixture, &["--user=root:secret", "get", "a"]).await, "a\n1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_moves_the_data_to_another_hub() {
    let (from, to) = (Fixture::start().await, Fixture::start().await);
    run(&from, &["put", "a", "1"]).await;
    let target = to.hub.address().to_string();
    let mut mirror = start(command(&from, &["make-mirror", "--dest-insecure-transport", &target]));
    crate::eventually("the key arrives", async || run(&to, &["get", "a"]).await == "a\n1\n").await;
    run(&from, &["put", "b", "2"]).await;
    crate::eventually("the next one too", async || run(&to, &["get", "b"]).await == "b\n2\n").await;
    mirror.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_change_the_cluster_are_answered() {
    let fixture = Fixture::start().await;
    let address = fixture.hub.address().to_string();
    let run = async |arguments: &[&str]| {
        let output = output(start(command_at(&address, arguments))).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let (done, text, _) = run(&["alarm", "disarm"]).await;
    assert!(done && text.is_empty(), "{text}");
    let (_, _, text) = run(&["endpoint", "health", "--cluster"]).await;
    assert!(text.contains("is healthy"), "{text}");
    let (done, text, _) = run(&["endpoint", "status", "-w", "json"]).await;
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(done && status[0]["Status"]["leader"] == status[0]["Status"]["header"]["member_id"], "{text}");
    let leader = format!("{:x}", status[0]["Status"]["leader"].as_u64().unwrap());
    // There is nobody to lead instead.
    let (done, _, text) = run(&["move-leader", "1"]).await;
    assert!(!done && text.contains("bad leader transferee"), "{text}");
    for arguments in [
        &["member", "add", "m2", "--peer-urls=http://127.0.0.1:1"][..],
        &["member", "remove", &leader],
        &["member", "update", &leader, "--peer-urls=http://127.0.0.1:1"],
    ] {
        let (done, _, text) = run(arguments).await;
        assert!(!done && text.contains("Error"), "{arguments:?}: {text}");
    }
    let (done, text, _) = run(&["version"]).await;
    assert!(done && text.contains("API version: 3"), "{text}");
    // It is as it was.
    assert!(run(&["put", "a", "1"]).await.0);
}
