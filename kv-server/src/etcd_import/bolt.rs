//! Reads files of bbolt, the format of etcd's data and snapshots: pages of a B+ tree for each bucket. Nothing in a file is
//! trusted: every offset is checked, and no more pages are read than the file has.
//!
//! ```text
//! page     id(8) flags(2) count(2) overflow(4), then elements; it is overflow + 1 pages long
//! meta     magic(4) version(4) page size(4) flags(4) root(8) sequence(8) freelist(8) pages(8) transaction(8) FNV-1a(8)
//! branch   offset(4) key length(4) page(8)
//! leaf     flags(4) offset(4) key length(4) value length(4)
//! bucket   root(8) sequence(8), then the bucket's only page if the root is 0
//! ```
//! Offsets count from their element. All numbers are little-endian, as on the machines that etcd supports.

use std::{fs::File, io, os::unix::fs::FileExt};

use bytes::Bytes;

/// Bytes that are read at any place.
pub(super) trait ReadAt {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

impl ReadAt for &[u8] {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let found = rest.and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A file of bbolt.
#[derive(Debug)]
pub(super) struct Bolt<F> {
    file: F,
    /// Bytes of the database, without what follows it.
    bytes: u64,
    page_bytes: u64,
    root: u64,
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BoltError {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("it is no database of etcd: {0}")]
    NoDatabase(&'static str),
    #[error("it is damaged: {0}")]
    Damaged(String),
}

/// A bucket: a page of the file, or the only page of a small bucket.
enum Root {
    Page(u64),
    Inline(Page),
}

impl<F: ReadAt> Bolt<F> {
    /// Opens the first `bytes` of a file.
    pub(super) fn open(file: F, bytes: u64) -> Result<Self, BoltError> {
        let mut metas = Vec::new();
        // The second meta page is at the page size, which only the metas tell.
        for offset in std::iter::once(0).chain((9..=16).map(|power| 1 << power)) {
            metas.extend(read_meta(&file, bytes, offset)?);
        }
        let newest = metas.into_iter().max_by_key(|meta| meta.transaction);
        let Meta { page_bytes, root, .. } =
            newest.ok_or(BoltError::NoDatabase("neither of its first pages is that of a bbolt file"))?;
        Ok(Self { file, bytes, page_bytes, root })
    }

    /// Calls `f` with each key and value of a bucket, in the order of keys. A bucket that does not exist is empty.
    pub(super) fn visit<E: From<BoltError>>(
        &self,
        bucket: &str,
        mut f: impl FnMut(Bytes, Bytes) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut found = None;
        self.walk(Root::Page(self.root), &mut |is_bucket, key, value| {
            if is_bucket && key == bucket.as_bytes() {
                found = Some(value);
            }
            Ok::<_, BoltError>(())
        })?;
        let Some(bucket) = found else { return Ok(()) };
        self.walk(self.bucket(bucket)?, &mut |is_bucket, key, value| {
            if is_bucket { Err(damaged("a bucket within a bucket").into()) } else { f(key, value) }
        })
    }

    fn bucket(&self, header: Bytes) -> Result<Root, BoltError> {
        match number::<8>(&header, 0)? {
            0 => Ok(Root::Inline(Page::of(header.slice(BUCKET_BYTES.min(header.len())..))?)),
            page => Ok(Root::Page(page)),
        }
    }

    /// Visits the leaves below a root in order.
    fn walk<E: From<BoltError>>(
        &self,
        root: Root,
        f: &mut impl FnMut(bool, Bytes, Bytes) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut pages_left = self.bytes / self.page_bytes;
        let first = match root {
            Root::Page(id) => self.page(id, &mut pages_left)?,
            Root::Inline(page) => page,
        };
        let mut path = vec![(first, 0)];
        while let Some((page, next)) = path.last_mut() {
            if *next >= page.count {
                path.pop();
                continue;
            }
            let index = *next;
            *next += 1;
            if page.is_leaf {
                let (is_bucket, key, value) = page.leaf(index)?;
                f(is_bucket, key, value)?;
                continue;
            }
            let child = page.branch(index)?;
            if path.len() >= DEPTH_MAX {
                return Err(damaged("its tree is too deep").into());
            }
            path.push((self.page(child, &mut pages_left)?, 0));
        }
        Ok(())
    }

    /// Reads a page with its overflow. `left`: the number of pages that a tree may still have.
    fn page(&self, id: u64, left: &mut u64) -> Result<Page, BoltError> {
        let offset = id.checked_mul(self.page_bytes).filter(|offset| *offset < self.bytes);
        let offset = offset.ok_or_else(|| damaged(&format!("page {id} is beyond its end")))?;
        let mut head = [0; PAGE_HEAD_BYTES];
        self.file.read_exact_at(&mut head, offset)?;
        let head = Bytes::copy_from_slice(&head);
        if number::<8>(&head, 0)? != id {
            return Err(damaged(&format!("page {id} says that it is another one")));
        }
        let pages = number::<4>(&head, 12)? + 1;
        *left = left.checked_sub(pages).ok_or_else(|| damaged("its tree has more pages than the file"))?;
        let length = pages * self.page_bytes;
        if length > (self.bytes - offset).min(PAGE_BYTES_MAX) {
            return Err(damaged(&format!("page {id} is too long")));
        }
        let mut page = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut page, offset)?;
        Page::of(page.into())
    }
}

/// A page with its overflow, or the page of a small bucket.
struct Page {
    bytes: Bytes,
    is_leaf: bool,
    count: usize,
}

impl Page {
    fn of(bytes: Bytes) -> Result<Self, BoltError> {
        let is_leaf = match number::<2>(&bytes, 8)? {
            BRANCH => false,
            LEAF => true,
            flags => return Err(damaged(&format!("a page of the kind {flags:#x} is in a tree"))),
        };
        let count = usize::from(number::<2>(&bytes, 10)? as u16);
        Ok(Self { bytes, is_leaf, count })
    }

    /// Whether an element is a bucket, its key, and its value.
    fn leaf(&self, index: usize) -> Result<(bool, Bytes, Bytes), BoltError> {
        let element = PAGE_HEAD_BYTES + index * ELEMENT_BYTES;
        let field = |at| number::<4>(&self.bytes, element + at);
        let (flags, offset, key, value) = (field(0)?, field(4)?, field(8)?, field(12)?);
        let start = element as u64 + offset;
        let part = |start: u64, length: u64| {
            let range = usize::try_from(start).ok()?..usize::try_from(start + length).ok()?;
            (range.end <= self.bytes.len()).then(|| self.bytes.slice(range))
        };
        let parts = part(start, key).zip(part(start + key, value));
        let (key, value) = parts.ok_or_else(|| damaged("a pair reaches beyond its page"))?;
        Ok((flags & BUCKET_FLAG != 0, key, value))
    }

    /// Page of a child.
    fn branch(&self, index: usize) -> Result<u64, BoltError> {
        number::<8>(&self.bytes, PAGE_HEAD_BYTES + index * ELEMENT_BYTES + 8)
    }
}

/// Content of a meta page.
struct Meta {
    page_bytes: u64,
    root: u64,
    transaction: u64,
}

/// Reads the meta page at an offset; `None` if there is none.
fn read_meta(file: &impl ReadAt, bytes: u64, offset: u64) -> Result<Option<Meta>, BoltError> {
    let mut page = [0; PAGE_HEAD_BYTES + META_BYTES];
    if offset + page.len() as u64 > bytes {
        return Ok(None);
    }
    file.read_exact_at(&mut page, offset)?;
    let meta = Bytes::copy_from_slice(&page[PAGE_HEAD_BYTES..]);
    let (page_bytes, root) = (number::<4>(&meta, 8)?, number::<8>(&meta, 16)?);
    let is_right = number::<4>(&meta, 0)? == MAGIC
        && number::<4>(&meta, 4)? == VERSION
        && (512..=1 << 16).contains(&page_bytes)
        && page_bytes.is_power_of_two()
        && (offset == 0 || offset == page_bytes)
        && number::<8>(&meta, META_BYTES - 8)? == fnv_1a(&meta[..META_BYTES - 8]);
    Ok(is_right.then_some(Meta { page_bytes, root, transaction: number::<8>(&meta, 48)? }))
}

/// Checksum of a meta page.
fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3))
}

/// A little-endian number of `N` bytes, at most 8.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<u64, BoltError> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
    let found = found.ok_or_else(|| damaged("a page ends too early"))?;
    Ok(found.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn damaged(why: &str) -> BoltError {
    BoltError::Damaged(why.to_owned())
}

const MAGIC: u64 = 0xED0C_DAED;
const VERSION: u64 = 2;
const BRANCH: u64 = 1;
const LEAF: u64 = 2;
const BUCKET_FLAG: u64 = 1;
const PAGE_HEAD_BYTES: usize = 16;
const META_BYTES: usize = 64;
const ELEMENT_BYTES: usize = 16;
const BUCKET_BYTES: usize = 16;
/// Greatest length of a page: it has at least one pair, and etcd's are far smaller.
const PAGE_BYTES_MAX: u64 = 256 << 20;
/// A tree of this depth would be larger than any disk.
const DEPTH_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// Any change of any byte of a real file is read, or refused with a reason.
    #[test]
    fn changed_bytes_never_panic() {
        let mut file = include_bytes!("../../tests/data/etcd-3.7.3.snapshot").to_vec();
        file.truncate(file.len() - 32);
        let buckets = ["key", "lease", "meta", "auth", "authUsers", "authRoles", "members"];
        let pairs = |file: &[u8]| -> Result<usize, BoltError> {
            let (bolt, mut pairs) = (Bolt::open(file, file.len() as u64)?, 0);
            for bucket in buckets {
                bolt.visit(bucket, |_, _| {
                    pairs += 1;
                    Ok::<_, BoltError>(())
                })?;
            }
            Ok(pairs)
        };
        let all = pairs(&file).unwrap();
        assert!(all > 10, "{all}");
        let mut refused = 0;
        for at in (0..file.len()).step_by(3) {
            let before = file[at];
            for other in [0, 0xFF, before ^ 1] {
                file[at] = other;
                refused += usize::from(pairs(&file).is_err());
            }
            file[at] = before;
        }
        assert!(refused > 100, "{refused}");
        for length in (0..file.len()).step_by(509) {
            let _ = pairs(&file[..length]);
        }
    }
}
