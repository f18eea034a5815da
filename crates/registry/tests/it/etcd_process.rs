//! A real etcd with one member, as a child process with a directory and ports of its own.
//!
//! Invariant: the process is gone when [`Etcd`] is dropped, also by a panic. Without etcd every test that needs
//! it fails and says how to get it.

use crate::DEADLINE;
use access::Access;
use hub::TlsConfig;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How often a free port may be somebody else's by the time that etcd listens on it.
const ATTEMPTS: usize = 5;

pub(crate) struct Etcd {
    child: Child,
    dir: TempDir,
    client: String,
    peer: String,
    /// Flags of a secured one.
    flags: Vec<String>,
    /// How it is asked whether it serves.
    probe: Access,
}

impl Etcd {
    /// An empty one that answers.
    pub(crate) async fn new() -> Self {
        Self::begin("http", &[], Access::default()).await
    }

    /// One that wants a client certificate, and lets logins expire soon. `probe` is asked with as who it is.
    pub(crate) async fn secured(tls: TlsConfig, probe: Access) -> Self {
        let ca = tls.client_ca.unwrap();
        let files = [("--cert-file", &tls.cert), ("--key-file", &tls.key), ("--trusted-ca-file", &ca)];
        let mut flags: Vec<String> =
            files.iter().map(|(flag, path)| format!("{flag}={}", path.display())).collect();
        flags.extend(["--client-cert-auth", "--bcrypt-cost=4", "--auth-token-ttl=1"].map(str::to_owned));
        Self::begin("https", &flags, probe).await
    }

    async fn begin(scheme: &str, flags: &[String], probe: Access) -> Self {
        for _ in 0..ATTEMPTS {
            let dir = tempfile::tempdir().unwrap();
            let (client, peer) =
                (format!("{scheme}://{}", free_address()), format!("http://{}", free_address()));
            let child = spawn(&dir, &client, &peer, flags);
            let probe = Access { endpoints: vec![client.clone()], ..probe.clone() };
            let mut etcd = Self { child, dir, client, peer, flags: flags.to_vec(), probe };
            if etcd.answers().await {
                return etcd;
            }
        }
        panic!("etcd ended {ATTEMPTS} times while starting");
    }

    pub(crate) fn endpoint(&self) -> String {
        self.client.clone()
    }

    /// SIGTERM.
    pub(crate) fn stop(&mut self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
        self.child.wait().unwrap();
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGSTOP: it keeps its connections and says nothing any more.
    pub(crate) fn freeze(&self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
    }

    pub(crate) fn thaw(&self) {
        kill_process(self.pid(), Signal::CONT).unwrap();
    }

    pub(crate) async fn start_again(&mut self) {
        self.child = spawn(&self.dir, &self.client, &self.peer, &self.flags);
        if !self.answers().await {
            panic!("etcd did not start again, its log:\n{}", self.log());
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Waits until it serves; false if it ended instead.
    async fn answers(&mut self) -> bool {
        let start = Instant::now();
        loop {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            let options = self.probe.ready().unwrap().options(etcd_client::ConnectOptions::new());
            let client = etcd_client::Client::connect([&self.client], Some(options)).await.unwrap();
            let mut kv = client.kv_client();
            if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(2), kv.get("a", None)).await {
                return true;
            }
            assert!(start.elapsed() < DEADLINE, "etcd does not come up, its log:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> String {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    format!("127.0.0.1:{port}")
}

fn spawn(dir: &TempDir, client: &str, peer: &str, flags: &[String]) -> Child {
    let log = File::options().create(true).append(true).open(dir.path().join("log")).unwrap();
    let spawned = Command::new("etcd")
        .arg("--data-dir")
        .arg(dir.path().join("data"))
        .args(["--listen-client-urls", client, "--advertise-client-urls", client])
        .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .args(["--logger", "zap", "--log-level", "warn"])
        .args(flags)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn();
    match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            panic!("this test needs a real etcd: apt-get install --no-install-recommends etcd-server")
        }
        Err(error) => panic!("etcd cannot be started: {error}"),
    }
}
