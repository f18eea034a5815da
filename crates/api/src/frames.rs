//! A running program's input and output as streams of frames: one byte for the kind, four for the length
//! (big-endian), then the bytes. The last frame of an output is the exit code; a stream that ends without it was cut
//! off. The first frame of an input says what to run.

use crate::types::Shell;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};

/// A piece of a program's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// It wrote to its standard output.
    Stdout(Bytes),
    /// It wrote to its standard error.
    Stderr(Bytes),
    /// It ended with this code; 128 and the signal's number where a signal ended it.
    Exit(i32),
    /// What to run.
    Begin(Shell),
    /// For its standard input; an empty piece ends that.
    Stdin(Bytes),
    /// The terminal at the other end has so many rows and columns now.
    Size(u16, u16),
}

/// A frame's kind and length.
const HEADER: usize = 5;
/// Frames are made from reads of at most this size; a longer one comes from no server of ours.
pub const MAX_PAYLOAD: usize = 64 * 1024;

impl Frame {
    /// For the wire.
    pub fn encode(&self) -> Bytes {
        let (code, begin, size);
        let (kind, payload): (u8, &[u8]) = match self {
            Self::Stdout(bytes) => (1, bytes),
            Self::Stderr(bytes) => (2, bytes),
            Self::Exit(status) => {
                code = status.to_be_bytes();
                (3, &code)
            }
            Self::Begin(shell) => {
                begin = serde_json::to_vec(shell).expect("API types always render");
                (4, &begin)
            }
            Self::Stdin(bytes) => (5, bytes),
            Self::Size(rows, columns) => {
                size = [rows.to_be_bytes(), columns.to_be_bytes()].concat();
                (6, &size)
            }
        };
        let mut out = BytesMut::with_capacity(HEADER + payload.len());
        out.put_u8(kind);
        out.put_u32(u32::try_from(payload.len()).expect("payloads are below 64 KiB"));
        out.put_slice(payload);
        out.freeze()
    }

    /// Takes the first frame off `buffer`: `None` when it is not whole yet, an error when it is no frame.
    pub fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, &'static str> {
        if buffer.len() < HEADER {
            return Ok(None);
        }
        let length = u32::from_be_bytes([buffer[1], buffer[2], buffer[3], buffer[4]]) as usize;
        if length > MAX_PAYLOAD {
            return Err("a frame is too long");
        }
        if buffer.len() < HEADER + length {
            return Ok(None);
        }
        let kind = buffer[0];
        buffer.advance(HEADER);
        let payload = buffer.split_to(length).freeze();
        match kind {
            1 => Ok(Some(Self::Stdout(payload))),
            2 => Ok(Some(Self::Stderr(payload))),
            3 => match payload.as_ref().try_into() {
                Ok(code) => Ok(Some(Self::Exit(i32::from_be_bytes(code)))),
                Err(_) => Err("an exit code is not four bytes"),
            },
            4 => match serde_json::from_slice(&payload) {
                Ok(shell) => Ok(Some(Self::Begin(shell))),
                Err(_) => Err("the first frame does not say what to run"),
            },
            5 => Ok(Some(Self::Stdin(payload))),
            6 => match payload[..] {
                [a, b, c, d] => Ok(Some(Self::Size(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))),
                _ => Err("a terminal's size is not four bytes"),
            },
            _ => Err("a frame is of no known kind"),
        }
    }
}

/// The frames of a stream of bytes. Its last item is an error when the stream is none, or broke; `None` for a piece
/// means that it broke.
pub fn decoded<S>(chunks: S) -> impl Stream<Item = Result<Frame, &'static str>> + Send + Unpin
where
    S: Stream<Item = Option<Bytes>> + Send + 'static,
{
    let state = (Box::pin(chunks), BytesMut::new(), false);
    Box::pin(futures_util::stream::unfold(state, |(mut chunks, mut buffer, over)| async move {
        if over {
            return None;
        }
        loop {
            match Frame::decode(&mut buffer) {
                Ok(Some(frame)) => return Some((Ok(frame), (chunks, buffer, false))),
                Ok(None) => {}
                Err(reason) => return Some((Err(reason), (chunks, buffer, true))),
            }
            match chunks.next().await? {
                Some(chunk) => buffer.extend_from_slice(&chunk),
                None => return Some((Err("the connection broke"), (chunks, buffer, true))),
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Tty;
    use proptest::prelude::*;

    #[test]
    fn frames_survive_being_cut_anywhere() {
        let tty = Tty { rows: 24, columns: 80, term: "xterm".to_owned() };
        let frames = [
            Frame::Stdout("hello".into()),
            Frame::Stderr("".into()),
            Frame::Begin(Shell { command: Some("uptime".to_owned()), tty: Some(tty) }),
            Frame::Stdin("x".into()),
            Frame::Size(24, 300),
            Frame::Exit(-3),
        ];
        let wire: Vec<u8> = frames.iter().flat_map(|frame| frame.encode().to_vec()).collect();
        for cut in 0..wire.len() {
            let (mut buffer, mut out) = (BytesMut::new(), Vec::new());
            for part in [&wire[..cut], &wire[cut..]] {
                buffer.extend_from_slice(part);
                while let Some(frame) = Frame::decode(&mut buffer).expect("well-formed") {
                    out.push(frame);
                }
            }
            assert_eq!(out, frames);
        }
    }

    #[test]
    fn rubbish_is_refused() {
        let wrong: [&[u8]; 5] = [
            &[9, 0, 0, 0, 0],
            &[1, 255, 0, 0, 0],
            &[3, 0, 0, 0, 1, 7],
            &[4, 0, 0, 0, 1, b'{'],
            &[6, 0, 0, 0, 1, 7],
        ];
        for bytes in wrong {
            assert!(Frame::decode(&mut BytesMut::from(bytes)).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_frames_or_refused(bytes in prop::collection::vec(0_u8..9, 0..64)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Frame::decode(&mut buffer) {}
        }
    }
}
