//! bbolt's file format, in which etcd keeps its data and ships its snapshots: enough of it to write a file and to read
//! one.
//!
//! Pure: bytes in, bytes out. A file is pages of one size: two metas, of which the newer valid one counts; a list of
//! free pages; and B+ trees, one of them the list of buckets. Knows nothing of what etcd keeps in the buckets.
//! Invariant: what [`write`] writes passes bbolt's own check (`Tx.Check`), and what [`read`] reads is in bounds and in
//! order, whatever the bytes.

/// A file's buckets and their entries.
pub(crate) mod read;
/// A file out of sorted buckets.
pub(crate) mod write;

/// At the start of each meta, and the version of the format.
const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;

/// What a page is.
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META: u16 = 0x04;
const FREELIST: u16 = 0x10;

/// A leaf's entry is a bucket.
const IS_BUCKET: u32 = 0x01;

/// Bytes of a page's header: id u64, flags u16, count u16, overflow u32; all little-endian.
const HEADER: usize = 16;
/// Bytes of an element, of a leaf (flags, place, key's and value's length, each u32) and of a branch (place u32, key's
/// length u32, page u64). The place counts from the element's own start.
const ELEMENT: usize = 16;
/// Bytes of a bucket's value: root page u64, sequence u64. A root of 0 means that the page follows within the value.
const BUCKET: usize = 16;
/// Bytes of a meta that its checksum covers: magic, version, page size and flags u32; root bucket; freelist's page,
/// pages in use and transaction u64.
const META_SUMMED: usize = 56;

/// FNV-1a, 64 bits: a meta's checksum.
fn fnv(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(OFFSET, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::read::File;
    use super::write::{Bucket, Entry, Plan};
    use super::*;

    impl Entry for (Vec<u8>, Vec<u8>) {
        fn lengths(&self) -> (usize, usize) {
            (self.0.len(), self.1.len())
        }
        fn put_key(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(&self.0);
        }
        fn put_value(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(&self.1);
        }
    }

    fn file(buckets: &[Bucket<(Vec<u8>, Vec<u8>)>]) -> Vec<u8> {
        let (plan, mut bytes) = (Plan::new(buckets), Vec::new());
        plan.write(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, plan.bytes());
        bytes
    }

    /// `count` entries, every so often one that needs pages of its own.
    fn entries(count: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let value = |i: usize| vec![(i % 251) as u8; if i % 97 == 5 { 3000 * (i % 7) } else { i % 300 }];
        (0..count).map(|i| (format!("key{i:09}").into_bytes(), value(i))).collect()
    }

    #[test]
    fn fnv_is_fnv() {
        assert_eq!(fnv(b"foobar"), 0x8594_4171_f739_67e8); // the test vector of its authors
    }

    #[test]
    fn what_is_written_is_read() {
        for count in [0, 1, 2, 50, 119, 240, 3000, 40_000] {
            let buckets = [
                Bucket { name: "a", entries: Vec::new() },
                Bucket { name: "big", entries: entries(count) },
                Bucket { name: "z", entries: entries(1) },
            ];
            let bytes = file(&buckets);
            let read = File::open(&bytes).unwrap();
            let names: Vec<&[u8]> = read.buckets().unwrap().iter().map(|bucket| bucket.name).collect();
            assert_eq!(names, [b"a".as_slice(), b"big", b"z"]);
            for (bucket, found) in buckets.iter().zip(read.buckets().unwrap()) {
                let mut at = bucket.entries.iter();
                read.each(&found, &mut |key, value| {
                    let (expected_key, expected_value) = at.next().unwrap();
                    assert_eq!((key, value), (expected_key.as_slice(), expected_value.as_slice()));
                })
                .unwrap();
                assert_eq!(at.next(), None, "{count}");
            }
        }
    }

    #[test]
    fn a_damaged_file_is_refused_and_never_panics() {
        let whole = file(&[Bucket { name: "key", entries: entries(2000) }]);
        let read = |bytes: &[u8]| -> Result<usize, read::Damage> {
            let file = File::open(bytes)?;
            let mut count = 0;
            for bucket in file.buckets()? {
                file.each(&bucket, &mut |_, _| count += 1)?;
            }
            Ok(count)
        };
        assert_eq!(read(&whole).unwrap(), 2000);
        for cut in [0, 1, 4096, 8192, whole.len() / 2, whole.len() - 4096] {
            assert!(read(&whole[..cut]).is_err(), "{cut}");
        }
        // The other meta is as good.
        let mut bytes = whole.clone();
        bytes[4096 + 20] ^= 1;
        assert_eq!(read(&bytes).unwrap(), 2000);
        // Headers and elements, bit by bit: refused, or what was hit does not matter; but never a panic or a loop.
        for at in (0..whole.len()).filter(|at| at % 4096 < 48) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0xff;
            if let Ok(count) = read(&bytes) {
                assert!(count <= 2000 * 2, "{at}");
            }
        }
    }
}
