//! Whether nginx works by the file that it was told to load. It says nothing to whoever sends the signal: a new process
//! may have failed to take a port and the old ones go on, which only the log tells.
//!
//! nginx is asked, by the file's own server for a name that nobody has, which generation it is. Invariant: it counts as
//! loaded when a worker answers with the new generation. Where the file has no such server, or something else answers on
//! that port, a living master and a log without a new emergency are all there is to see.

use crate::NginxConfig;
use render::{Failure, Rendered};
use rustix::process::Pid;
use std::{
    fs,
    io::{Read, Seek, SeekFrom},
    net::Ipv4Addr,
    path::PathBuf,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

/// A reload takes 15 ms, and 200 ms with a large configuration.
const WITHIN: Duration = Duration::from_secs(2);
/// Without a generation to ask for: how long the log is looked at.
const UNASKED: Duration = Duration::from_millis(150);
const PAUSE: Duration = Duration::from_millis(10);

/// The error log, from where it ended before the reload.
pub(crate) struct Log {
    path: PathBuf,
    from: u64,
}

impl Log {
    pub(crate) fn here(config: &NginxConfig) -> Self {
        let main = fs::read_to_string(&config.main).unwrap_or_default();
        let path = error_log(&main).map_or_else(|| "/var/log/nginx/error.log".into(), PathBuf::from);
        let path = config.main.parent().map_or_else(|| path.clone(), |directory| directory.join(&path));
        let from = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        Self { path, from }
    }

    /// Emergencies since.
    fn emergency(&self) -> Option<String> {
        let mut file = fs::File::open(&self.path).ok()?;
        file.seek(SeekFrom::Start(self.from)).ok()?;
        let mut said = Vec::new();
        file.take(64 << 10).read_to_end(&mut said).ok()?;
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().filter(|line| line.contains("[emerg]")).take(3).collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }
}

/// The first `error_log` of the main file.
fn error_log(main: &str) -> Option<&str> {
    let directives = main.split([';', '{', '}', '\n']).map(str::trim);
    let path = directives
        .filter_map(|directive| directive.strip_prefix("error_log"))
        .next()?
        .split_whitespace()
        .next()?;
    (!path.starts_with("syslog:") && !path.starts_with("memory:") && path != "stderr").then_some(path)
}

pub(crate) async fn verify(
    config: &NginxConfig,
    rendered: &Rendered,
    master: Pid,
    log: Log,
) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut other = None;
    loop {
        if rustix::process::test_kill_process(master).is_err() {
            return Err(Failure::Failed("nginx ended when it was told to reload".to_owned()));
        }
        if let Some(generation) = &rendered.generation {
            match ask(config.listen).await {
                Some(answer) if answer == *generation => return Ok(()),
                Some(answer) => other = Some(answer),
                None => {}
            }
        }
        // Looked at after the answer: what stands there now is of this reload.
        if let Some(said) = log.emergency() {
            return Err(Failure::Failed(said));
        }
        let patience = if rendered.generation.is_some() { WITHIN } else { UNASKED };
        if begin.elapsed() >= patience {
            return match other {
                Some(_) => Err(Failure::Failed(format!(
                    "nginx still works by an older file after {} s",
                    WITHIN.as_secs()
                ))),
                None => Ok(()),
            };
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The generation that nginx says it works by; none if what answers is not our server.
async fn ask(port: u16) -> Option<String> {
    let exchange = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        let request = "GET / HTTP/1.1\r\nHost: generation.muster.invalid\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer).await.ok()?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let plain = body.len() == 16 && body.bytes().all(|b| b.is_ascii_hexdigit());
        (head.starts_with("HTTP/1.1 200") && plain).then(|| body.to_owned())
    };
    tokio::time::timeout(Duration::from_millis(500), exchange).await.ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_where_the_main_file_says() {
        assert_eq!(error_log("user x;\nerror_log /var/log/e.log warn;\n"), Some("/var/log/e.log"));
        assert_eq!(error_log("pid x; error_log log;\nevents {}"), Some("log"));
        assert_eq!(error_log("error_log syslog:server=x;"), None);
        assert_eq!(error_log("events {}"), None);
    }
}
