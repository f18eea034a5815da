//! A hub in a process of its own, to be killed: this test binary, run again.

use crate::config;
use hub::{Hub, HubConfig, Limits};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const DIRECTORY: &str = "HUB_TEST_DIRECTORY";
const QUOTA: &str = "HUB_TEST_QUOTA";
const LOG: &str = "HUB_TEST_LOG";

/// Not a test: what a child process runs.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a child process of other tests"]
async fn serve() {
    let directory = std::env::var_os(DIRECTORY).expect("only to be run by other tests");
    let bytes = |name| std::env::var(name).unwrap().parse().unwrap();
    let limits = Limits { quota: bytes(QUOTA), log: bytes(LOG) };
    let config = HubConfig { limits, ..config(&PathBuf::from(directory)) };
    let mut hub = Hub::start(config).await.unwrap();
    println!("\nlistening on {}", hub.address());
    panic!("{}", hub.finished().await);
}

/// A hub in a child process; killed when dropped.
pub(crate) struct ChildHub {
    child: Child,
    pub(crate) address: String,
}

impl ChildHub {
    pub(crate) fn start(directory: &Path) -> Self {
        Self::start_with(directory, Limits::default())
    }

    pub(crate) fn start_with(directory: &Path, limits: Limits) -> Self {
        Self::run(Command::new(std::env::current_exe().unwrap()), directory, limits)
    }

    /// One that may have so many files open.
    pub(crate) fn start_with_files(files: u32, directory: &Path) -> Self {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &format!("ulimit -n {files}; exec \"$0\" \"$@\"")])
            .arg(std::env::current_exe().unwrap());
        Self::run(shell, directory, Limits::default())
    }

    fn run(mut command: Command, directory: &Path, limits: Limits) -> Self {
        let mut child = command
            .args(["--exact", "child::serve", "--ignored", "--nocapture"])
            .env(DIRECTORY, directory)
            .env(QUOTA, limits.quota.to_string())
            .env(LOG, limits.log.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("listening on ").map(str::to_owned))
            .expect("the child tells its address");
        Self { child, address }
    }

    /// What it occupies, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for ChildHub {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may be dead already
        let _ = self.child.wait();
    }
}
