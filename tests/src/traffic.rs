//! Load from outside the cluster on its gateways, with an account of every request.
//!
//! The load generator is a program of its own, which ends when its standard input does: whatever happens to the test that
//! started it, it does not stay.

use crate::{Cluster, cluster};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::process::{Child, Stdio};

/// Where m1's gateway listens, and as whom the app is asked.
pub const PORT: u16 = 8080;

/// A load that runs.
pub struct Traffic {
    child: Child,
}

/// What came of a load: the load generator's own summary.
#[derive(Debug, Clone)]
pub struct Account(pub Value);

impl Traffic {
    /// Begins to ask m1's gateway for `host`. `options` are the load generator's.
    pub fn start(cluster: &Cluster, host: &str, options: &[&str]) -> Result<Self> {
        let address = format!("{}:{PORT}", cluster.m1().address());
        Self::start_at(cluster, &address, host, options)
    }

    /// The same for any address.
    pub fn start_at(cluster: &Cluster, address: &str, host: &str, options: &[&str]) -> Result<Self> {
        let program = cluster::built()?.join("load");
        let program = program.to_str().context("the program's path is text")?;
        let fixed = [program, address, "--host", host, "--until-eof", "-o", "json"];
        let command: Vec<_> = fixed.iter().chain(options).copied().collect();
        let child =
            cluster.lab.outside().command(&command).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        Ok(Self { child: child.context("the load generator does not start")? })
    }

    /// Ends it.
    pub fn stop(mut self) -> Result<Account> {
        drop(self.child.stdin.take());
        let output = self.child.wait_with_output()?;
        // It ends with 1 if requests were lost, which is for the caller to judge.
        let summary = serde_json::from_slice(&output.stdout).context("the load generator gave no account")?;
        Ok(Account(summary))
    }
}

impl Account {
    /// A number of it.
    pub fn count(&self, field: &str) -> u64 {
        self.0[field].as_u64().unwrap_or_default()
    }

    /// How long the slowest request took, in milliseconds.
    pub fn slowest(&self) -> f64 {
        self.count("max_micros") as f64 / 1e3
    }

    /// In a line.
    pub fn line(&self) -> String {
        format!(
            "{} requests, {} failed, {} connections opened, {} of them anew; p50 {:.1} ms, p99 {:.1} ms, slowest {:.0} ms",
            self.count("requests"),
            self.count("failed"),
            self.count("opened"),
            self.count("reconnects"),
            self.count("p50_micros") as f64 / 1e3,
            self.count("p99_micros") as f64 / 1e3,
            self.slowest(),
        )
    }

    /// Nothing was lost, and there was something to lose.
    pub fn ensure_nothing_lost(&self) -> Result<()> {
        ensure!(self.count("requests") > 20, "hardly anything was asked: {}", self.0);
        ensure!(self.count("failed") == 0, "requests were lost: {}", self.0);
        Ok(())
    }
}
