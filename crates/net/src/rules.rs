//! Runs `nft` and `iptables`, and turns forwarding on.
//!
//! Not here: the rules' text, which `muster_core::overlay::Firewall` writes. Invariant: our nftables table is
//! replaced in one transaction, so there is no moment without rules; a rule that is not ours is never removed.

pub(crate) mod nfnetlink;
pub(crate) mod peers;
pub(crate) mod watch;

use crate::NetError;
use muster_core::overlay::{Firewall, Jump};
use std::{io, process::Output, process::Stdio, time::Duration};
use tokio::{io::AsyncWriteExt, process::Command};
use tracing::{debug, info};

/// Longer than the programs ever take; shorter than a watchdog's patience.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(10);

/// Seconds to wait for another program that holds the lock of iptables.
const LOCK_WAIT: &str = "5";

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const IP6_FORWARD: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

/// Lets this machine pass packets on between containers and the cluster network (ip-sysctl: `ip_forward`).
pub async fn enable_forwarding() -> Result<(), NetError> {
    enable(IP_FORWARD)
}

/// The same for IPv6. A machine that forwards takes no default route from routers' announcements any more, unless its
/// `accept_ra` is 2.
pub async fn enable_forwarding6() -> Result<(), NetError> {
    enable(IP6_FORWARD)
}

/// In the calling thread: which namespace's switch it is depends on that.
fn enable(path: &str) -> Result<(), NetError> {
    let wrong = |source| NetError::Write { path: path.into(), source };
    if std::fs::read_to_string(path).map_err(wrong)?.trim() == "1" {
        return Ok(());
    }
    std::fs::write(path, "1\n").map_err(wrong)?;
    info!(path, "forwarding enabled");
    Ok(())
}

/// Puts the rules in place, whatever part of them is there already. Where there is no `iptables` there is no policy
/// of its to overcome, and nftables is enough.
///
/// Call it again when anything but the peers changes (for those there is [`change_peers`](peers::change_peers)), and
/// after Docker started: its chains come with it.
pub async fn apply_firewall(firewall: &Firewall) -> Result<(), NetError> {
    checked("nft", &["-f", "-"], Some(&firewall.nft_script())).await?;
    let rules = firewall.iptables_rules();
    match checked("iptables-restore", &["-w", LOCK_WAIT, "--noflush"], Some(&rules.chains)).await {
        Err(NetError::Spawn { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            debug!("no iptables here");
            return Ok(());
        }
        other => other?,
    };
    for jump in &rules.jumps {
        add_jump(jump).await?;
    }
    Ok(())
}

async fn add_jump(jump: &Jump) -> Result<(), NetError> {
    let listing = match iptables(&["-S", jump.from]).await {
        Err(NetError::Failed { .. }) if !jump.always_there => return Ok(()),
        other => other?,
    };
    let Some(addition) = jump.addition(&listing) else { return Ok(()) };
    let arguments: Vec<&str> = addition.iter().map(String::as_str).collect();
    iptables(&arguments).await?;
    info!(from = jump.from, to = jump.to, "jump added to iptables");
    Ok(())
}

/// Takes the rules away again. What is gone already is no error; the first real one is returned, after everything
/// was tried.
pub async fn remove_firewall(firewall: &Firewall) -> Result<(), NetError> {
    let table = checked("nft", &["-f", "-"], Some(Firewall::nft_removal())).await;
    let mut outcome = table.map(drop);
    let jumps = firewall.iptables_rules().jumps;
    let removals = jumps.iter().map(|jump| jump.removal().to_vec());
    // MUSTER-FORWARD jumps to MUSTER-OVERLAY, so it goes first.
    let chains = jumps.iter().rev().flat_map(|jump| [vec!["-F", jump.to], vec!["-X", jump.to]]);
    for arguments in removals.chain(chains) {
        match iptables(&arguments).await {
            // iptables has no answer of its own for "there is none".
            Ok(_) | Err(NetError::Failed { .. }) => {}
            Err(NetError::Spawn { source, .. }) if source.kind() == io::ErrorKind::NotFound => break,
            Err(other) => outcome = outcome.and(Err(other)),
        }
    }
    outcome
}

async fn iptables(arguments: &[&str]) -> Result<String, NetError> {
    checked("iptables", &[&["-w", LOCK_WAIT], arguments].concat(), None).await
}

/// Runs a program to its end and gives its output, or an error with what it said.
async fn checked(program: &str, arguments: &[&str], input: Option<&str>) -> Result<String, NetError> {
    let run = run(program, arguments, input.unwrap_or_default());
    let timeout = || NetError::Timeout { from: format!("`{program}`"), seconds: PROGRAM_TIMEOUT.as_secs() };
    let output = tokio::time::timeout(PROGRAM_TIMEOUT, run).await.map_err(|_| timeout())?;
    let output = output.map_err(|source| NetError::Spawn { program: program.to_owned(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(NetError::Failed {
        command: [&[program], arguments].concat().join(" "),
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

async fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdin = child.stdin.take();
    // Both at once, lest a program that answers before it has read everything waits for us, and we for it.
    let write = async move {
        match stdin {
            Some(mut stdin) => stdin.write_all(input.as_bytes()).await,
            None => Ok(()),
        }
    };
    let (written, output) = tokio::join!(write, child.wait_with_output());
    match written {
        // A program that stops reading says why on stderr.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => output,
    }
}
