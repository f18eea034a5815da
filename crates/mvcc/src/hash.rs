//! A checksum over the history, for `HashKV`.
//!
//! CRC-32C, as etcd uses, over our own encoding: two hubs with the same history agree, a hub and an etcd do not.

use crate::index::Index;
use crate::noun::Revision;

const TABLE: [u32; 256] = table();

/// Over every version at or below `at`, by key, then by revision.
pub(crate) fn of(index: &Index, at: Revision) -> u32 {
    let mut crc = !0;
    for (key, version) in index.versions().filter(|(_, version)| version.row.main <= at) {
        feed(&mut crc, &(key.len() as u64).to_be_bytes());
        feed(&mut crc, key);
        feed(&mut crc, &version.row.main.0.to_be_bytes());
        feed(&mut crc, &version.row.sub.to_be_bytes());
        feed(&mut crc, &version.create_revision.0.to_be_bytes());
        feed(&mut crc, &version.version.to_be_bytes());
        feed(&mut crc, &version.lease.0.to_be_bytes());
        feed(&mut crc, &(version.value.len() as u64).to_be_bytes());
        feed(&mut crc, &version.value);
    }
    !crc
}

/// CRC-32C (Castagnoli) of `bytes`, going on from the sum of what came before; 0 begins.
pub fn crc32c(sum: u32, bytes: &[u8]) -> u32 {
    let mut crc = !sum;
    feed(&mut crc, bytes);
    !crc
}

fn feed(crc: &mut u32, bytes: &[u8]) {
    for byte in bytes {
        let [low, ..] = crc.to_le_bytes();
        *crc = (*crc >> 8) ^ TABLE[usize::from(low ^ byte)];
    }
}

const fn table() -> [u32; 256] {
    const CASTAGNOLI: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ CASTAGNOLI } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_crc32c() {
        assert_eq!(crc32c(crc32c(0, b"1234"), b"56789"), 0xe306_9283); // the check value of RFC 3720, appendix B.4
    }
}
