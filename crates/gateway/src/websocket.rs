//! Tunnels of WebSocket frames, which can be ended in order: each side is told by a frame, between two others, as its
//! counterpart would tell it (RFC 6455, 5.5.1 and 7.4.1), instead of finding its connection cut.
//!
//! Not here: what the frames say. Invariant: until a tunnel is to end every byte is passed on as it came; after a close
//! frame nothing is.

use crate::tcp;
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

/// How long each side may take to answer a close frame, and to come to the end of a frame before.
const FAREWELL: Duration = Duration::from_secs(1);
/// Close frames have this opcode.
const CLOSE: u8 = 0x8;
/// "Going away": come back, and be led to another instance.
const GOING_AWAY: [u8; 2] = 1001_u16.to_be_bytes();

/// Follows where frames begin and end (RFC 6455, 5.2).
#[derive(Debug, Default)]
struct Frames {
    head: Vec<u8>,
    /// How much of the current frame's payload is to come.
    left: u64,
    /// A close frame has come, as a whole.
    closed: bool,
}

impl Frames {
    fn is_between(&self) -> bool {
        self.head.is_empty() && self.left == 0
    }

    /// Takes bytes up to the end of the current frame; gives how many.
    fn step(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        if self.left == 0 {
            while taken < bytes.len() && self.payload().is_none() {
                self.head.push(bytes[taken]);
                taken += 1;
            }
            let Some(left) = self.payload() else { return taken };
            self.left = left;
        }
        let payload = self.left.min((bytes.len() - taken) as u64);
        self.left -= payload;
        if self.left == 0 {
            self.closed |= self.head.first().is_some_and(|first| first & 0xf == CLOSE);
            self.head.clear();
        }
        taken + payload as usize
    }

    /// How long the payload is, when the head is there as a whole.
    fn payload(&self) -> Option<u64> {
        let second = self.head.get(1)?;
        let mask = if second & 0x80 != 0 { 4 } else { 0 };
        let short = u64::from(second & 0x7f);
        let (width, length) = match short {
            126 => (2, self.number(2)?),
            127 => (8, self.number(8)?),
            short => (0, short),
        };
        (self.head.len() >= 2 + width + mask).then_some(length)
    }

    fn number(&self, width: usize) -> Option<u64> {
        let bytes = self.head.get(2..2 + width)?;
        Some(bytes.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    }
}

/// Passes frames on in both directions until both have ended, nothing has come from either for `idle`, or `over` is
/// ready: then both sides are told. `mask` is what a client has to mask its frames with. Gives how many bytes went to the
/// client.
pub(crate) async fn tunnel<A, B>(
    client: A,
    endpoint: B,
    idle: Duration,
    mask: [u8; 4],
    over: impl Future<Output = ()>,
) -> io::Result<u64>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_endpoint, mut to_endpoint) = tokio::io::split(endpoint);
    let shared = Shared {
        last: Cell::new(Instant::now()),
        ends: Rc::new(tokio::sync::Notify::new()),
        ending: Cell::new(false),
    };
    let masked = [GOING_AWAY[0] ^ mask[0], GOING_AWAY[1] ^ mask[1]];
    let to_server = [&[0x80 | CLOSE, 0x82][..], &mask, &masked].concat();
    let to_browser = [&[0x80 | CLOSE, 2][..], &GOING_AWAY].concat();
    let up = copy(&mut from_client, &mut to_endpoint, &shared, &to_server);
    let down = copy(&mut from_endpoint, &mut to_client, &shared, &to_browser);
    let both = async { tokio::try_join!(up, down) };
    let watch = async {
        loop {
            let end = shared.last.get() + idle;
            if Instant::now() >= end {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    };
    let farewell = async {
        over.await;
        shared.ending.set(true);
        shared.ends.notify_waiters();
        tokio::time::sleep(FAREWELL).await;
    };
    let ended = tokio::select! {
        copied = both => copied.map(|(_, down)| down),
        () = watch => Err(tcp::timed_out()),
        () = farewell => Ok(0),
    };
    // The last bytes are on their way; whoever did not answer is not waited for.
    let _ =
        tokio::time::timeout(FAREWELL, async { tokio::join!(to_client.shutdown(), to_endpoint.shutdown()) })
            .await;
    ended
}

/// What the two directions of a tunnel have in common.
struct Shared {
    /// When a byte last came.
    last: Cell<Instant>,
    ends: Rc<tokio::sync::Notify>,
    ending: Cell<bool>,
}

/// Bytes read at once.
const PIECE: usize = 16 << 10;

/// One direction, until its sender has ended; or, when the tunnel is to end, until its sender has answered.
async fn copy<R, W>(from: &mut R, to: &mut W, shared: &Shared, close: &[u8]) -> io::Result<u64>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut piece = vec![0; PIECE];
    let mut frames = Frames::default();
    let mut all = 0;
    // The receiver has been told.
    let mut told = false;
    loop {
        if shared.ending.get() && frames.is_between() && !told {
            told = true;
            if !frames.closed {
                to.write_all(close).await?;
                to.flush().await?;
            }
        }
        if told && frames.closed {
            return Ok(all);
        }
        let read = tokio::select! {
            read = from.read(&mut piece) => read?,
            () = shared.ends.notified(), if !shared.ending.get() => continue,
        };
        if read == 0 {
            if !told {
                to.shutdown().await?;
            }
            return Ok(all);
        }
        shared.last.set(Instant::now());
        let mut passed = 0;
        while passed < read && !(told || shared.ending.get() && frames.is_between()) {
            passed += frames.step(&piece[passed..read]);
        }
        to.write_all(&piece[..passed]).await?;
        to.flush().await?;
        all += passed as u64;
        // What comes after the receiver was told only matters for whether it ends with an answer.
        let mut rest = &piece[passed..read];
        while !rest.is_empty() && !frames.closed {
            rest = &rest[frames.step(rest)..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(bytes: &[u8], size: usize) -> (Vec<usize>, bool) {
        let (mut frames, mut ends, mut at) = (Frames::default(), Vec::new(), 0);
        for piece in bytes.chunks(size) {
            let mut rest = piece;
            while !rest.is_empty() {
                let taken = frames.step(rest);
                (at, rest) = (at + taken, &rest[taken..]);
                if frames.is_between() {
                    ends.push(at);
                }
            }
        }
        (ends, frames.closed)
    }

    #[test]
    fn frames_are_followed_however_they_are_cut() {
        let long = [&[0x82, 126, 1, 0][..], &[7; 256]].concat();
        let masked = [&[0x81, 0x83, 1, 2, 3, 4][..], b"abc"].concat();
        let huge = [&[0x02, 127, 0, 0, 0, 0, 0, 0, 1, 1][..], &[0x88; 257]].concat();
        let all = [&[0x81, 2, b'h', b'i'][..], &[0x89, 0], &masked, &long, &huge].concat();
        let expected = (vec![4, 6, 15, 275, 542], false);
        for size in [1, 2, 3, 7, 300, 1000] {
            assert_eq!(ends(&all, size), expected, "{size}");
        }
        let closed = [&all[..], &[0x88, 0x82, 9, 9, 9, 9, 0, 0]].concat();
        assert!(ends(&closed, 5).1);
        assert!(!ends(&closed[..closed.len() - 1], 5).1);
    }
}
