//! Reaching an API through SSH: the system's `ssh` logs in, and `muster fd-forward` at the far end passes standard
//! input and output on to the API's socket. Keys, agents and jump hosts are ssh's business.

use anyhow::{Context, Result, bail};
use api::Endpoint;
use clap::Args;
use std::{
    fs::File,
    io::{self, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::mpsc,
    thread,
};

/// An SSH server, and how to log in.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tunnel {
    /// `HOST[:PORT]`
    pub host: String,
    pub username: Option<String>,
    /// Seconds to connect.
    pub timeout: Option<f64>,
    pub known_hosts: Option<PathBuf>,
    /// Whether unknown host keys are asked about (or refused, where nobody can answer) instead of taken.
    pub strict: Option<bool>,
    /// What to call at the far end.
    pub program: &'static str,
}

impl Tunnel {
    /// The API that `endpoint` is at the far end.
    pub fn to(&self, endpoint: &Endpoint) -> Result<Endpoint> {
        let mut words = vec!["ssh".to_owned(), "-T".to_owned()];
        let mut option = |name: &str, value: &str| words.extend(["-o".to_owned(), format!("{name}={value}")]);
        if let Some(timeout) = self.timeout {
            // ssh counts whole seconds, and 0 would mean for ever.
            option("ConnectTimeout", &format!("{:.0}", timeout.ceil().max(1.0)));
        }
        if let Some(strict) = self.strict {
            option("StrictHostKeyChecking", if strict { "ask" } else { "no" });
        }
        if let Some(path) = &self.known_hosts {
            let path = at_home(path);
            if let Some(directory) = path.parent() {
                std::fs::create_dir_all(directory)
                    .with_context(|| format!("cannot make {}", directory.display()))?;
            }
            option("UserKnownHostsFile", &path.display().to_string());
        }
        let (host, port) = split(&self.host)?;
        if let Some(port) = port {
            words.extend(["-p".to_owned(), port.to_string()]);
        }
        if let Some(user) = &self.username {
            words.extend(["-l".to_owned(), user.clone()]);
        }
        match endpoint {
            Endpoint::Unix(path) => {
                words.extend(["--".to_owned(), host.to_owned()]);
                words.push(format!("{} fd-forward {}", self.program, quoted(&path.display().to_string())));
            }
            Endpoint::Tcp(address) => {
                words.extend(["-W".to_owned(), address.to_string(), "--".to_owned(), host.to_owned()]);
            }
            Endpoint::Program(_) => bail!("one tunnel is enough"),
        }
        Ok(Endpoint::Program(words))
    }
}

/// `HOST`, `HOST:PORT`, `[ADDRESS]:PORT`, or an IPv6 address as it is.
fn split(text: &str) -> Result<(&str, Option<u16>)> {
    let number = |port: &str| port.parse().with_context(|| format!("`{port}` in `{text}` is no port"));
    if let Some((address, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let port = rest.strip_prefix(':').map(number).transpose()?;
        return Ok((address, port));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host, Some(number(port)?)),
        _ => (text, None),
    };
    if host.is_empty() {
        bail!("`{text}` names no host: HOST or HOST:PORT does");
    }
    Ok((host, port))
}

fn at_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

/// For the far end's shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[derive(Args)]
pub struct FdForward {
    /// The socket.
    socket: PathBuf,
}

impl FdForward {
    /// Passes standard input to the socket and what comes from it to standard output, until either ends.
    pub fn run(self) -> Result<ExitCode> {
        let socket = UnixStream::connect(&self.socket)
            .with_context(|| format!("cannot connect to {}", self.socket.display()))?;
        let (mut to, mut from) = (socket.try_clone()?, socket);
        // Rust's own stdout would keep back whatever does not end a line.
        let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let (ended, first) = mpsc::channel();
        let other = ended.clone();
        // The end that is still open is closed with the process. Whoever listens to neither needs no news of them.
        thread::spawn(move || ended.send(pass(&mut stdin, &mut to)));
        thread::spawn(move || other.send(pass(&mut from, &mut stdout)));
        first.recv().context("both ends are gone")?.context("the connection broke")?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Not `io::copy`: that would use splice(2), which gathers what comes until a pipe is full.
fn pass(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(&buffer[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_is_told_everything() {
        let tunnel = Tunnel {
            host: "10.0.0.1:2222".to_owned(),
            username: Some("core".to_owned()),
            timeout: Some(2.5),
            known_hosts: Some("/tmp/known hosts".into()),
            strict: Some(false),
            program: "fleetctl",
        };
        let unix = Endpoint::Unix("/run/muster/muster.sock".into());
        let Ok(Endpoint::Program(words)) = tunnel.to(&unix) else { panic!("no program") };
        assert_eq!(
            words.join(" "),
            "ssh -T -o ConnectTimeout=3 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/tmp/known hosts \
             -p 2222 -l core -- 10.0.0.1 fleetctl fd-forward '/run/muster/muster.sock'"
        );
        let plain = Tunnel { host: "m1".to_owned(), ..Tunnel::default() };
        let tcp = "http://10.0.0.9:49153".parse().expect("valid");
        let Ok(Endpoint::Program(words)) = plain.to(&tcp) else { panic!("no program") };
        assert_eq!(words.join(" "), "ssh -T -W 10.0.0.9:49153 -- m1");
    }

    #[test]
    fn hosts_are_taken_apart() {
        for (text, host, port) in [
            ("m1", "m1", None),
            ("m1:22", "m1", Some(22)),
            ("[fe80::1]:22", "fe80::1", Some(22)),
            ("[fe80::1]", "fe80::1", None),
            ("fe80::1", "fe80::1", None),
        ] {
            assert_eq!(split(text).expect(text), (host, port), "{text}");
        }
        for text in ["", ":22", "m1:ssh", "m1:99999"] {
            assert!(split(text).is_err(), "{text}");
        }
    }
}
