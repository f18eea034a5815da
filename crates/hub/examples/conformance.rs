//! Other people's tests, run on the hub: those that the crate etcd-client has in its package, and etcdctl's own checks.
//!
//! `cargo run -p hub --example conformance`: takes minutes. The crate's tests are copied out of cargo's registry, changed in
//! one line (the address that they all have in common), and built in the directory for temporary files, where a
//! second run finds what the first has built. Fails if anything does.

use etcd_client::Client;
use hub::{AuthConfig, Hub, HubConfig};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What the crate's tests have written in them.
const THEIR_ADDRESS: &str = "localhost:2379";

/// The one test that needs more members than one; it would also leave the cluster in ruins.
const NEEDS_MEMBERS: &str = "test_cluster";

#[tokio::main]
async fn main() -> Outcome<()> {
    let dir = std::env::temp_dir().join(format!("hub-conformance-{}", std::process::id()));
    let outcome = all(&dir).await;
    fs::remove_dir_all(&dir)?;
    outcome
}

async fn all(dir: &Path) -> Outcome<()> {
    for kind in ["datascale", "perf"] {
        let hub = start(&dir.join(kind)).await?;
        let endpoints = format!("--endpoints=http://{}", hub.address());
        let mut etcdctl = tokio::process::Command::new("etcdctl");
        etcdctl.env("ETCDCTL_API", "3").args([&endpoints, "check", kind, "--load=s"]);
        let output = etcdctl.output().await?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).replace('\r', "\n");
        let verdicts: Vec<&str> =
            text.lines().filter(|line| line.contains("PASS") || line.contains("FAIL")).collect();
        println!("etcdctl check {kind}\n{}", verdicts.join("\n"));
        if !output.status.success() || verdicts.is_empty() || text.contains("FAIL") {
            return Err(format!("etcdctl check {kind} failed: {text}").into());
        }
        hub.shutdown().await;
    }
    clients_tests(&start(&dir.join("client")).await?).await
}

async fn start(data_dir: &Path) -> Outcome<Hub> {
    // The crate's tests wait for a token to end.
    let auth = AuthConfig { token_ttl: Duration::from_secs(2), bcrypt_cost: 4 };
    let listen = ([127, 0, 0, 1], 0).into();
    let (name, data_dir) = ("conformance".to_owned(), data_dir.to_owned());
    Ok(Hub::start(HubConfig {
        data_dir,
        listen,
        advertise: None,
        name,
        auth,
        tls: None,
        limits: hub::Limits::default(),
    })
    .await?)
}

async fn clients_tests(hub: &Hub) -> Outcome<()> {
    let mut client = Client::connect([hub.address().to_string()], None).await?;
    client.user_add("root", "rootpwd", None).await?;
    client.role_add("root").await?;
    client.user_grant_role("root", "root").await?;
    let copied = std::env::temp_dir().join("hub-conformance-etcd-client");
    copy(&package()?, &copied)?;
    let place = copied.join("tests/testing.rs");
    let text = fs::read_to_string(&place)?;
    if !text.contains(THEIR_ADDRESS) {
        return Err(format!("{} does not name {THEIR_ADDRESS}", place.display()).into());
    }
    fs::write(&place, text.replace(THEIR_ADDRESS, &hub.address().to_string()))?;
    let mut cargo = tokio::process::Command::new(env!("CARGO"));
    cargo.args(["test", "--tests", "--no-fail-fast", "--", "--test-threads=1", "--include-ignored"]);
    cargo.arg(format!("--skip={NEEDS_MEMBERS}")).current_dir(&copied);
    cargo.env("CARGO_TARGET_DIR", copied.join("target")).stdin(Stdio::null());
    let status = cargo.status().await?;
    if status.success() { Ok(()) } else { Err("tests of etcd-client failed".into()) }
}

/// Where cargo keeps the crate's package.
fn package() -> Outcome<PathBuf> {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata tells no packages")?;
    let found = packages.iter().find(|package| package["name"] == "etcd-client");
    let manifest =
        found.and_then(|package| package["manifest_path"].as_str()).ok_or("there is no etcd-client")?;
    Ok(Path::new(manifest).parent().ok_or("it has no directory")?.to_owned())
}

fn copy(from: &Path, to: &Path) -> Outcome<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        } else {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
