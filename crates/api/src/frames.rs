//! A running program's output as a stream of frames: one byte for the kind, four for the length (big-endian),
//! then the bytes. The last frame is the exit code; a stream that ends without it was cut off.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A piece of a program's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// It wrote to its standard output.
    Stdout(Bytes),
    /// It wrote to its standard error.
    Stderr(Bytes),
    /// It ended with this code; 128 and the signal's number where a signal ended it.
    Exit(i32),
}

/// A frame's kind and length.
const HEADER: usize = 5;
/// Frames are made from reads of at most this size; a longer one comes from no server of ours.
pub const MAX_PAYLOAD: usize = 64 * 1024;

impl Frame {
    /// For the wire.
    pub fn encode(&self) -> Bytes {
        let code;
        let (kind, payload): (u8, &[u8]) = match self {
            Self::Stdout(bytes) => (1, bytes),
            Self::Stderr(bytes) => (2, bytes),
            Self::Exit(status) => {
                code = status.to_be_bytes();
                (3, &code)
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
            _ => Err("a frame is of no known kind"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_being_cut_anywhere() {
        let frames = [Frame::Stdout("hello".into()), Frame::Stderr("".into()), Frame::Exit(-3)];
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
        for bytes in [&[9, 0, 0, 0, 0][..], &[1, 255, 0, 0, 0], &[3, 0, 0, 0, 1, 7]] {
            assert!(Frame::decode(&mut BytesMut::from(bytes)).is_err());
        }
    }
}
