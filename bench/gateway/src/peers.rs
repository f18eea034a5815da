//! The balancers that are compared, each with the same four endpoints: our gateway as a process of its own, and Debian's
//! nginx, haproxy and caddy with the settings that their manuals give for keeping connections to endpoints open.
//!
//! Invariant: each runs with one thread that does the work.

use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Ours.
    Gateway,
    /// nginx.
    Nginx,
    /// haproxy.
    Haproxy,
    /// caddy.
    Caddy,
}

/// All of them.
pub const PEERS: [Peer; 4] = [Peer::Gateway, Peer::Nginx, Peer::Haproxy, Peer::Caddy];

/// A balancer that runs.
pub struct Started {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
}

impl Peer {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Caddy => "caddy",
        }
    }

    /// Whether it can be run; Debian's package is installed if need be.
    pub fn is_there(self) -> bool {
        let program = self.name();
        let found = |program| Command::new("which").arg(program).stdout(Stdio::null()).status();
        let has = || found(program).is_ok_and(|status| status.success());
        if self == Self::Gateway || has() {
            return true;
        }
        let mut install = Command::new("apt-get");
        install.args(["install", "--yes", "--no-install-recommends", program]);
        install.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()).stderr(Stdio::null());
        let _ = install.status(); // whether it helped is looked at next
        has()
    }

    /// Starts it in front of endpoints.
    pub fn start(self, port: u16, endpoints: &[SocketAddr], directory: &Path) -> Result<Started> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let folder = directory.display();
        let file = directory.join(format!("{}.conf", self.name()));
        let list = |line: &dyn Fn(usize, &SocketAddr) -> String| {
            endpoints.iter().enumerate().fold(String::new(), |mut all, (n, endpoint)| {
                let _ = writeln!(all, "{}", line(n, endpoint)); // a String takes it all
                all
            })
        };
        let mut command;
        match self {
            Self::Gateway => {
                command = Command::new(std::env::current_exe().context("where am I?")?);
                command.arg("serve").arg(port.to_string()).args(endpoints.iter().map(ToString::to_string));
            }
            Self::Nginx => {
                let servers = list(&|_, endpoint| format!("server {endpoint};"));
                let text = format!(
                    "daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\n\
                     events {{ worker_connections 4096; }}\n\
                     http {{ access_log off; keepalive_requests 1000000000;\n\
                     upstream all {{ {servers} keepalive 128; keepalive_requests 1000000000; }}\n\
                     server {{ listen {address} backlog=4096; location / {{ proxy_pass http://all;\n\
                     proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host;\n\
                     proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
                     proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $host;\n\
                     proxy_set_header X-Request-Id $request_id; }} }} }}\n"
                );
                std::fs::write(&file, text)?;
                command = Command::new("nginx");
                command.arg("-c").arg(&file);
            }
            Self::Haproxy => {
                let servers = list(&|n, endpoint| format!("  server s{n} {endpoint} maxconn 1024"));
                let text = format!(
                    "global\n  nbthread 1\ndefaults\n  mode http\n  timeout client 60s\n  timeout server 60s\n  \
                     timeout connect 300ms\n  option http-keep-alive\n  http-reuse always\n  option forwardfor\n\
                     frontend f\n  bind {address}\n  default_backend b\nbackend b\n  balance random(2)\n{servers}"
                );
                std::fs::write(&file, text)?;
                command = Command::new("haproxy");
                command.arg("-db").arg("-f").arg(&file);
            }
            Self::Caddy => {
                let servers = list(&|_, endpoint| endpoint.to_string()).replace('\n', " ");
                let text = format!(
                    "{{\n admin off\n auto_https off\n}}\nhttp://:{port} {{\n bind 127.0.0.1\n reverse_proxy {servers} \
                     {{\n lb_policy random_choose 2\n transport http {{\n keepalive_idle_conns_per_host 128\n}}\n}}\n}}\n"
                );
                std::fs::write(&file, text)?;
                command = Command::new("caddy");
                command.arg("run").arg("--adapter").arg("caddyfile").arg("--config").arg(&file);
                command.env("GOMAXPROCS", "1").env("HOME", directory);
            }
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.with_context(|| format!("failed to start {}", self.name()))?;
        let mut started = Started { address, child };
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(address).is_err() {
            let ended = started.child.try_wait()?;
            ensure!(ended.is_none() && Instant::now() < deadline, "{} did not start", self.name());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(started)
    }
}

impl Started {
    /// How long processors have worked for it so far, its children included.
    pub fn cpu(&self) -> Duration {
        let mut ticks = 0;
        let mut left = vec![self.child.id()];
        while let Some(pid) = left.pop() {
            let read =
                |what: &str| std::fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap_or_default();
            let stat = read("stat");
            // utime and stime are the 14th and 15th; the second is in brackets and may have anything in it.
            let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
            ticks += [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum::<u64>();
            left.extend(
                read(&format!("task/{pid}/children"))
                    .split(' ')
                    .filter_map(|pid| pid.trim().parse::<u32>().ok()),
            );
        }
        Duration::from_millis(ticks * 10) // Linux counts for us in hundredths of a second
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // nginx ends its worker when it is asked to end, not when it is killed.
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM); // it may be gone
        }
        let deadline = Instant::now() + Duration::from_secs(3);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill(); // the same
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
