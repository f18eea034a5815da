//! A bbolt file out of sorted buckets, written from front to back.
//!
//! The metas come first and name pages that come last, so a [`Plan`] decides on all pages before the first is written.
//! Neither the plan nor the writing holds the file in memory. Invariant: every page that the metas count is in exactly
//! one tree, or a meta, or the (empty) list of free pages.

use super::{
    BRANCH, BUCKET, ELEMENT, FREELIST, HEADER, IS_BUCKET, LEAF, MAGIC, META, META_SUMMED, VERSION, fnv,
};
use std::io::{self, Write};
use std::ops::Range;

/// bbolt takes the page size of the machine that makes the file, and reads any.
const PAGE: usize = 4096;

/// The list of free pages, and the tree of buckets, which is one leaf: etcd has few buckets with short names.
const FREELIST_PAGE: u64 = 2;
const ROOT_PAGE: u64 = 3;
const FIRST_PAGE: u64 = 4;

/// A key and its value, made when they are written.
pub(crate) trait Entry {
    /// Bytes of the key and of the value.
    fn lengths(&self) -> (usize, usize);
    fn put_key(&self, out: &mut Vec<u8>);
    fn put_value(&self, out: &mut Vec<u8>);
}

/// A named, sorted list of entries.
pub(crate) struct Bucket<E> {
    pub(crate) name: &'static str,
    pub(crate) entries: Vec<E>,
}

/// One page, or several in a row if an entry needs them.
struct Node {
    page: u64,
    pages: u64,
    /// Which of the level below, or of the entries.
    children: Range<usize>,
    /// The first entry below.
    first: usize,
}

/// Where everything goes.
pub(crate) struct Plan<'a, E> {
    buckets: &'a [Bucket<E>],
    /// Per bucket its levels, leaves first; none if it is empty.
    trees: Vec<Vec<Vec<Node>>>,
    pages: u64,
}

impl<'a, E: Entry> Plan<'a, E> {
    /// The buckets must be sorted by name, and the entries by key.
    pub(crate) fn new(buckets: &'a [Bucket<E>]) -> Self {
        let mut pages = FIRST_PAGE;
        let trees = buckets.iter().map(|bucket| tree(&bucket.entries, &mut pages)).collect();
        Self { buckets, trees, pages }
    }

    /// How long the file will be.
    pub(crate) fn bytes(&self) -> u64 {
        self.pages * PAGE as u64
    }

    /// Writes the file.
    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&self.meta(0))?;
        out.write_all(&self.meta(1))?;
        out.write_all(&Page::new(FREELIST_PAGE, 1, FREELIST, 0).finish())?;
        out.write_all(&self.root())?;
        for (bucket, tree) in self.buckets.iter().zip(&self.trees) {
            for (height, level) in tree.iter().enumerate() {
                let below = height.checked_sub(1).map(|below| &tree[below]);
                for node in level {
                    out.write_all(&match below {
                        None => leaf(node, &bucket.entries),
                        Some(below) => branch(node, below, &bucket.entries),
                    })?;
                }
            }
        }
        Ok(())
    }

    fn meta(&self, number: u64) -> Vec<u8> {
        let mut page = Page::new(number, 1, META, 0);
        let start = page.bytes.len();
        for word in [MAGIC, VERSION, PAGE as u32, 0] {
            page.bytes.extend_from_slice(&word.to_le_bytes());
        }
        // The root bucket and its sequence, then the rest. bbolt numbers the first two transactions 0 and 1 too.
        for word in [ROOT_PAGE, 0, FREELIST_PAGE, self.pages, number] {
            page.bytes.extend_from_slice(&word.to_le_bytes());
        }
        let sum = fnv(&page.bytes[start..start + META_SUMMED]);
        page.bytes.extend_from_slice(&sum.to_le_bytes());
        page.finish()
    }

    fn root(&self) -> Vec<u8> {
        let mut page = Page::new(ROOT_PAGE, 1, LEAF, self.buckets.len());
        for (bucket, tree) in self.buckets.iter().zip(&self.trees) {
            let mut value = Vec::with_capacity(BUCKET + HEADER);
            let root = tree.last().and_then(|top| top.first()).map_or(0, |node| node.page);
            value.extend_from_slice(&root.to_le_bytes());
            value.extend_from_slice(&0u64.to_le_bytes());
            if root == 0 {
                value.extend_from_slice(&header(0, 1, LEAF, 0));
            }
            page.leaf_element(IS_BUCKET, bucket.name.len(), value.len());
            page.data.extend_from_slice(bucket.name.as_bytes());
            page.data.extend_from_slice(&value);
        }
        page.finish()
    }
}

/// The levels of a bucket's tree.
fn tree<E: Entry>(entries: &[E], next: &mut u64) -> Vec<Vec<Node>> {
    if entries.is_empty() {
        return Vec::new();
    }
    let sizes = entries.iter().map(|entry| {
        let (key, value) = entry.lengths();
        ELEMENT + key + value
    });
    let mut levels = vec![level(group(sizes), next, |children| children)];
    while let Some(below) = levels.last().filter(|below| below.len() > 1) {
        let sizes = below.iter().map(|node| ELEMENT + entries[node.first].lengths().0);
        let mut groups = group(sizes);
        // A branch of one child is legal, but bbolt never makes one. Two keys of etcd's (17 bytes) fit on a page.
        if let [.., before, last] = groups.as_mut_slice()
            && last.0.len() == 1
            && before.0.len() > 2
        {
            before.0.end -= 1;
            last.0.start -= 1;
            last.1 = PAGE;
        }
        let above = level(groups, next, |first| below[first].first);
        levels.push(above);
    }
    levels
}

/// Fills pages: what belongs on each, and its bytes.
fn group(sizes: impl Iterator<Item = usize>) -> Vec<(Range<usize>, usize)> {
    let mut groups: Vec<(Range<usize>, usize)> = Vec::new();
    for (at, size) in sizes.enumerate() {
        match groups.last_mut() {
            Some((children, used)) if *used + size <= PAGE => {
                children.end = at + 1;
                *used += size;
            }
            _ => groups.push((at..at + 1, HEADER + size)),
        }
    }
    groups
}

fn level(groups: Vec<(Range<usize>, usize)>, next: &mut u64, first: impl Fn(usize) -> usize) -> Vec<Node> {
    let place = |(children, used): (Range<usize>, usize)| {
        let pages = used.div_ceil(PAGE) as u64;
        let node = Node { page: *next, pages, first: first(children.start), children };
        *next += pages;
        node
    };
    groups.into_iter().map(place).collect()
}

fn leaf<E: Entry>(node: &Node, entries: &[E]) -> Vec<u8> {
    let mut page = Page::new(node.page, node.pages, LEAF, node.children.len());
    for entry in &entries[node.children.clone()] {
        let (key, value) = entry.lengths();
        page.leaf_element(0, key, value);
        entry.put_key(&mut page.data);
        entry.put_value(&mut page.data);
    }
    page.finish()
}

fn branch<E: Entry>(node: &Node, below: &[Node], entries: &[E]) -> Vec<u8> {
    let mut page = Page::new(node.page, node.pages, BRANCH, node.children.len());
    for child in &below[node.children.clone()] {
        let entry = &entries[child.first];
        page.branch_element(entry.lengths().0, child.page);
        entry.put_key(&mut page.data);
    }
    page.finish()
}

fn header(page: u64, pages: u64, flags: u16, count: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&page.to_le_bytes());
    header[8..10].copy_from_slice(&flags.to_le_bytes());
    // Each element takes 16 bytes of a page of 4096, and a value comes from a request of at most 1.5 MiB.
    header[10..12].copy_from_slice(&(count as u16).to_le_bytes());
    header[12..].copy_from_slice(&(pages as u32 - 1).to_le_bytes());
    header
}

/// A page in the making: header and elements, and what they point at.
struct Page {
    bytes: Vec<u8>,
    /// Elements to come, these included that are there.
    count: usize,
    data: Vec<u8>,
    length: usize,
}

impl Page {
    fn new(page: u64, pages: u64, flags: u16, count: usize) -> Self {
        let length = pages as usize * PAGE;
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&header(page, pages, flags, count));
        Self { bytes, count, data: Vec::new(), length }
    }

    /// From the element that comes next to the data that comes next.
    fn place(&self) -> [u8; 4] {
        let data = HEADER + self.count * ELEMENT + self.data.len();
        ((data - self.bytes.len()) as u32).to_le_bytes()
    }

    fn leaf_element(&mut self, flags: u32, key: usize, value: usize) {
        let place = self.place();
        self.bytes.extend_from_slice(&flags.to_le_bytes());
        self.bytes.extend_from_slice(&place);
        self.bytes.extend_from_slice(&(key as u32).to_le_bytes());
        self.bytes.extend_from_slice(&(value as u32).to_le_bytes());
    }

    fn branch_element(&mut self, key: usize, page: u64) {
        let place = self.place();
        self.bytes.extend_from_slice(&place);
        self.bytes.extend_from_slice(&(key as u32).to_le_bytes());
        self.bytes.extend_from_slice(&page.to_le_bytes());
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.append(&mut self.data);
        self.bytes.resize(self.length, 0);
        self.bytes
    }
}
