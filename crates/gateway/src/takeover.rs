//! Handing the listening sockets to the process that comes next.
//!
//! Two ways, both without a moment in which nobody listens. systemd keeps copies (`FileDescriptorStoreMax=`) while the
//! daemon restarts, and gives them to the next one: connections wait in the sockets' queues meanwhile. Or the next process
//! asks this one over a unix socket: it gets the sockets, says when it serves, and only then does this one stop accepting.
//! Invariant: this process stops accepting only after another has said that it serves.

use crate::listen::{Inherited, Listener};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// How long the next process may take to begin to serve.
const PATIENCE: Duration = Duration::from_secs(30);
/// The kernel passes at most so many sockets in a message.
const MOST: usize = 250;

/// What was taken over, and the process it was taken from.
#[derive(Debug)]
pub struct Takeover {
    /// The sockets, for [`crate::Gateway::start_with`].
    pub inherited: Inherited,
    former: UnixStream,
}

impl Takeover {
    /// Asks the process that listens on a takeover socket for its sockets. `Ok(None)` if there is none. Blocks.
    pub fn ask(path: &Path) -> io::Result<Option<Self>> {
        let mut former = match UnixStream::connect(path) {
            Ok(former) => former,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        former.set_read_timeout(Some(PATIENCE))?;
        let mut names = Vec::new();
        let mut sockets = Vec::new();
        loop {
            // A line of names, with their sockets; an empty one at the end.
            let (line, some) = receive(&mut former)?;
            if line.is_empty() {
                break;
            }
            names.extend(line.split(' ').map(str::to_owned));
            sockets.extend(some);
        }
        if names.len() != sockets.len() {
            return Err(io::Error::other("the former process sent fewer sockets than names"));
        }
        let mut inherited = Vec::new();
        for (name, socket) in names.into_iter().zip(sockets) {
            inherited.push((name.parse::<Listener>().map_err(io::Error::other)?, socket));
        }
        Ok(Some(Self { inherited, former }))
    }

    /// Says that this process serves now; the former one stops accepting and finishes what is under way.
    pub fn serving(mut self) -> io::Result<()> {
        self.former.write_all(b"serving\n")
    }
}

fn receive(from: &mut UnixStream) -> io::Result<(String, Vec<OwnedFd>)> {
    let mut length = [0u8; 4];
    from.read_exact(&mut length)?;
    let mut text = vec![0; (u32::from_be_bytes(length) as usize).min(1 << 20)];
    if text.is_empty() {
        return Ok((String::new(), Vec::new()));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = {
        let mut slices = [IoSliceMut::new(&mut text)];
        rustix::net::recvmsg(from.as_fd(), &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?
    };
    let mut sockets = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            sockets.extend(some);
        }
    }
    from.read_exact(&mut text[received.bytes..])?;
    let text = String::from_utf8(text).map_err(io::Error::other)?;
    Ok((text, sockets))
}

fn send(to: &mut UnixStream, part: &[(Listener, OwnedFd)]) -> io::Result<()> {
    let names: Vec<_> = part.iter().map(|(listener, _)| listener.to_string()).collect();
    let text = names.join(" ");
    to.write_all(&(text.len() as u32).to_be_bytes())?;
    if part.is_empty() {
        return Ok(());
    }
    let sockets: Vec<_> = part.iter().map(|(_, socket)| socket.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&sockets)) {
        return Err(io::Error::other("too many sockets at once"));
    }
    let sent = rustix::net::sendmsg(
        to.as_fd(),
        &[IoSlice::new(text.as_bytes())],
        &mut ancillary,
        SendFlags::empty(),
    )?;
    to.write_all(&text.as_bytes()[sent..])
}

/// Binds the socket on which the next process asks. What a former process left there is replaced.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    // Under another name first: the former process may still answer on the old one.
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let _ = std::fs::remove_file(&new); // as a rule there is none
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    std::fs::rename(&new, path)?;
    Ok(listener)
}

/// Hands the sockets over; true if the other process has said that it serves. Blocks.
pub(crate) fn hand_over(mut next: UnixStream, sockets: Inherited) -> io::Result<bool> {
    next.set_nonblocking(false)?;
    next.set_write_timeout(Some(PATIENCE))?;
    next.set_read_timeout(Some(PATIENCE))?;
    for part in sockets.chunks(MOST) {
        send(&mut next, part)?;
    }
    send(&mut next, &[])?;
    drop(sockets);
    let mut word = String::new();
    next.take(8).read_to_string(&mut word)?;
    Ok(word == "serving\n")
}

/// Sockets that systemd has kept for this process, by the names under which they were stored: what
/// [`crate::Gateway::sockets`] gave away with `FDSTORE=1`. Only those with names of the gateway's are taken. To be called
/// once, before other threads look at the environment.
pub fn inherited() -> io::Result<Inherited> {
    let Ok(names) = std::env::var("LISTEN_FDNAMES") else { return Ok(Inherited::new()) };
    let mut descriptors = listenfd::ListenFd::from_env();
    let mut inherited = Inherited::new();
    for (index, name) in names.split(':').enumerate() {
        let Ok(listener) = name.parse::<Listener>() else { continue };
        if let Some(socket) = descriptors.take_tcp_listener(index)? {
            inherited.push((listener, socket.into()));
        }
    }
    Ok(inherited)
}
