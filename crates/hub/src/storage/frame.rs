//! Frames: a payload with its length, its checksum and its number.
//!
//! `length u32 | crc32c u32 | number u64 | payload`, little-endian. The checksum covers all of it and a salt that the
//! file was made with, so that bytes which a client chose can never pass for a frame. Invariant: [`read`] gives back
//! exactly what [`finish`] sealed, or nothing.

use crate::storage::crc::Crc;

/// Bytes before the payload.
pub(crate) const HEADER: usize = 16;

/// A frame read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) number: u64,
    pub(crate) payload: &'a [u8],
}

/// Room for the header; the payload is appended next.
pub(crate) fn begin(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.resize(HEADER, 0);
}

/// Fills in the header. None if the payload is longer than a frame can tell.
pub(crate) fn finish(buffer: &mut [u8], salt: u64, number: u64) -> Option<()> {
    let length = u32::try_from(buffer.len().checked_sub(HEADER)?).ok()?;
    let (header, payload) = buffer.split_at_mut(HEADER);
    header[0..4].copy_from_slice(&length.to_le_bytes());
    header[4..8].copy_from_slice(&checksum(salt, length, number, payload).to_le_bytes());
    header[8..16].copy_from_slice(&number.to_le_bytes());
    Some(())
}

/// The frame that `bytes` start with.
pub(crate) fn read(bytes: &[u8], salt: u64) -> Option<Frame<'_>> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (crc, rest) = rest.split_first_chunk()?;
    let (number, rest) = rest.split_first_chunk()?;
    let (length, number) = (u32::from_le_bytes(*length), u64::from_le_bytes(*number));
    let payload = rest.get(..length as usize)?;
    (checksum(salt, length, number, payload) == u32::from_le_bytes(*crc)).then_some(Frame { number, payload })
}

fn checksum(salt: u64, length: u32, number: u64, payload: &[u8]) -> u32 {
    let crc = Crc::new().feed(&salt.to_le_bytes()).feed(&length.to_le_bytes());
    crc.feed(&number.to_le_bytes()).feed(payload).finish()
}
