//! A bbolt file's buckets and their entries.
//!
//! The whole file is in memory. Invariant: no byte of the file can make this panic, read out of bounds, or go on
//! without end; keys come in ascending order or not at all.

use super::{BRANCH, BUCKET, ELEMENT, HEADER, IS_BUCKET, LEAF, MAGIC, META, META_SUMMED, VERSION, fnv};

/// A tree is as high as the logarithm of its keys; a higher one goes in circles.
const HIGHEST: u32 = 32;

/// bbolt's page size is that of the machine: 4 KiB to 64 KiB.
const PAGE_SIZES: std::ops::RangeInclusive<u32> = 10..=16;

/// What is wrong with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("page {page} {what}")]
pub(crate) struct Damage {
    pub(crate) page: u64,
    pub(crate) what: &'static str,
}

fn damage(page: u64, what: &'static str) -> Damage {
    Damage { page, what }
}

/// An open file.
#[derive(Debug)]
pub(crate) struct File<'a> {
    bytes: &'a [u8],
    page_size: usize,
    root: u64,
    /// Pages in use.
    pages: u64,
}

/// A bucket of a file.
#[derive(Debug)]
pub(crate) struct Found<'a> {
    pub(crate) name: &'a [u8],
    tree: Tree<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Tree<'a> {
    Page(u64),
    Inline(&'a [u8]),
}

/// What a walk has seen.
struct Walk<'a, 'f> {
    visited: u64,
    last: Option<&'a [u8]>,
    found: &'f mut dyn FnMut(u32, &'a [u8], &'a [u8]) -> Result<(), Damage>,
}

impl<'a> File<'a> {
    /// Finds the newer of the two metas.
    pub(crate) fn open(bytes: &'a [u8]) -> Result<Self, Damage> {
        let second = PAGE_SIZES.filter_map(|bits| meta(bytes.get(1 << bits..)?, bytes));
        let metas = meta(bytes, bytes).into_iter().chain(second);
        let newest = metas.max_by_key(|(transaction, _)| *transaction);
        newest.map(|(_, file)| file).ok_or_else(|| damage(0, "is not the beginning of a bbolt file"))
    }

    /// Bytes that the file says it uses.
    pub(crate) fn size(&self) -> u64 {
        self.pages * self.page_size as u64
    }

    /// All buckets, by name.
    pub(crate) fn buckets(&self) -> Result<Vec<Found<'a>>, Damage> {
        let mut buckets = Vec::new();
        self.walk(Tree::Page(self.root), &mut |flags, name, value| {
            if flags & IS_BUCKET != 0 {
                let wrong = || damage(self.root, "has a bucket that is cut short");
                let root = u64_at(value, 0).filter(|_| value.len() >= BUCKET).ok_or_else(wrong)?;
                let tree = if root == 0 { Tree::Inline(&value[BUCKET..]) } else { Tree::Page(root) };
                buckets.push(Found { name, tree });
            }
            Ok(())
        })?;
        Ok(buckets)
    }

    /// Every entry of a bucket, in order of keys.
    pub(crate) fn each(
        &self,
        bucket: &Found<'a>,
        found: &mut dyn FnMut(&'a [u8], &'a [u8]),
    ) -> Result<(), Damage> {
        self.walk(bucket.tree, &mut |_, key, value| {
            found(key, value);
            Ok(())
        })
    }

    fn walk(
        &self,
        tree: Tree<'a>,
        found: &mut dyn FnMut(u32, &'a [u8], &'a [u8]) -> Result<(), Damage>,
    ) -> Result<(), Damage> {
        let mut walk = Walk { visited: 0, last: None, found };
        match tree {
            Tree::Page(page) => self.visit(page, 0, &mut walk),
            Tree::Inline(page) => elements(0, page, LEAF, &mut |element| walk.leaf(0, page, element)),
        }
    }

    fn visit(&self, id: u64, height: u32, walk: &mut Walk<'a, '_>) -> Result<(), Damage> {
        walk.visited += 1;
        if height > HIGHEST || walk.visited > self.pages {
            return Err(damage(id, "is part of a circle"));
        }
        let page = self.page(id)?;
        let flags = u16_at(page, 8).unwrap_or_default();
        match flags {
            LEAF => elements(id, page, LEAF, &mut |element| walk.leaf(id, page, element)),
            BRANCH => elements(id, page, BRANCH, &mut |element| {
                let child = u64_at(page, element + 8);
                self.visit(child.ok_or_else(|| damage(id, "is cut short"))?, height + 1, walk)
            }),
            _ => Err(damage(id, "is neither leaf nor branch")),
        }
    }

    /// A page with its overflow.
    fn page(&self, id: u64) -> Result<&'a [u8], Damage> {
        let missing = || damage(id, "is beyond the end of the file");
        if id >= self.pages {
            return Err(damage(id, "is not in use"));
        }
        let start = usize::try_from(id).ok().and_then(|id| id.checked_mul(self.page_size));
        let rest = start.and_then(|start| self.bytes.get(start..)).ok_or_else(missing)?;
        if u64_at(rest, 0) != Some(id) {
            return Err(damage(id, "bears another number"));
        }
        let pages = 1 + u32_at(rest, 12).ok_or_else(missing)? as usize;
        rest.get(..pages * self.page_size).ok_or_else(missing)
    }
}

impl<'a> Walk<'a, '_> {
    fn leaf(&mut self, id: u64, page: &'a [u8], element: usize) -> Result<(), Damage> {
        let cut = || damage(id, "has an element that points out of it");
        let word = |at| u32_at(page, element + at).ok_or_else(cut);
        let (flags, place, key, value) = (word(0)?, word(4)?, word(8)?, word(12)?);
        let data = page.get(element + place as usize..).ok_or_else(cut)?;
        let (key, rest) = data.split_at_checked(key as usize).ok_or_else(cut)?;
        let value = rest.get(..value as usize).ok_or_else(cut)?;
        if self.last.is_some_and(|last| last >= key) {
            return Err(damage(id, "has keys out of order"));
        }
        self.last = Some(key);
        (self.found)(flags, key, value)
    }
}

/// Calls `each` with the place of every element.
fn elements(
    id: u64,
    page: &[u8],
    flags: u16,
    each: &mut dyn FnMut(usize) -> Result<(), Damage>,
) -> Result<(), Damage> {
    let cut = || damage(id, "is cut short");
    if u16_at(page, 8) != Some(flags) {
        return Err(damage(id, "is of the wrong kind"));
    }
    let count = u16_at(page, 10).ok_or_else(cut)?;
    (0..usize::from(count)).try_for_each(|at| each(HEADER + at * ELEMENT))
}

/// The meta on the page at the start of `page`, with its transaction, if it is one.
fn meta<'a>(page: &[u8], bytes: &'a [u8]) -> Option<(u64, File<'a>)> {
    if u16_at(page, 8)? != META {
        return None;
    }
    let meta = page.get(HEADER..HEADER + META_SUMMED + 8)?;
    let sum = u64_at(meta, META_SUMMED)?;
    if u32_at(meta, 0)? != MAGIC || u32_at(meta, 4)? != VERSION || sum != fnv(&meta[..META_SUMMED]) {
        return None;
    }
    let page_size = u32_at(meta, 8)? as usize;
    let file = File { bytes, page_size, root: u64_at(meta, 16)?, pages: u64_at(meta, 40)? };
    let sane = page_size.is_power_of_two() && PAGE_SIZES.contains(&page_size.ilog2());
    sane.then_some((u64_at(meta, 48)?, file))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
