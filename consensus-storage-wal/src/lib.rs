//! A durable [`LogStorage`](consensus_core::LogStorage) in its own files: a write-ahead log without a database.
//!
//! Each write makes one `pwrite` and one `fdatasync` to a file whose blocks were written before, so that the file system has
//! no metadata to sync, and one small `pwrite` that is not synced. Raft's log *is* a write-ahead log. A general key-value store writes it twice, to its own log and
//! later to a table, and merges tables of entries that are soon purged.
//!
//! ```no_run
//! # fn open() -> Result<(), consensus_core::StorageError> {
//! use consensus_core::{LogStorage, NodeId};
//! use consensus_storage_wal::WalLogStorage;
//!
//! let storage = WalLogStorage::open("./data/node-1/log".as_ref(), NodeId(1))?.with_reserve(512 << 20);
//! let state = storage.load()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Layout
//! ```text
//! IDENTITY, LOCK                     node, kind and format of the directory (consensus_storage_dir::DataDir)
//! MARK                               number of frames written (consensus_storage_dir::MarkFile)
//! segments/0000000000000007.wal      header | frame 811 | frame 812 | ...
//! segments/0000000000000008.wal      header | frame 907 | frame 908 | (zeros)          the current segment
//! segments/0000000000000009.wal      header | (zeros)                                  the prepared segment
//! segments/0000000000000003.spare    a purged segment, to be reused for a later one
//!
//! frame                              head                            records, in consensus_core::record's format
//!                                    number, state, length and
//!                                    checksum of each record
//! ```
//! A frame holds one batch, and is either read completely or not at all. Its head contains the last index of the log after
//! the batch, so that truncation needs no record of its own, and a new hard state or purge position. The first frame of a
//! segment always contains both. So older segments are needed for their entries only, and are removed when those are purged.
//!
//! Each use of a file has a random number (the salt), which is in its header and in each head. So neither an old frame of a
//! reused file nor any payload can look like a frame of the current use.
//!
//! # Order of operations
//! `write` encodes the frame, writes it (`pwrite`), syncs it (`fdatasync`), writes the mark (not synced), and then makes the
//! entries visible to readers. While one segment is written, a thread prepares the next one: it fills a new file with zeros,
//! syncs it and renames it, or reuses a spare file. A write waits for the thread only if it needs a new segment that is not
//! ready.
//!
//! # Detection of damage
//! * The last frame is torn, no frame before it is missing, and the mark does not count it: the write was never acknowledged,
//!   and the frame is removed silently.
//! * A record is damaged: reported as [`LogState::damage`](consensus_core::LogState::damage). The same holds for damaged heads
//!   and whole missing segments, if a later head shows that the missing frames only appended entries, or contains everything
//!   that they may have changed. Of a damaged log, only purged segments are removed.
//! * A block that the disk cannot read counts as damaged. At the end of the log it is an error, because the next frame
//!   would be written there.
//! * Any other damage, including zeros or a missing file end where the mark counts frames:
//!   [`StorageError::Corrupt`](consensus_core::StorageError::Corrupt).
//!
//! A failed sync is final. If the frame is found when the log is opened again, it is written and synced again: after a failed
//! sync the operating system treats the data as written, and a power cut would lose it.
//!
//! The mark is not synced, so a power cut may lose the marks of the last half minute. If it does, *and*
//! the last frames are damaged, they go unnoticed. A missing frame before an intact one is always noticed, because the later
//! frame shows that it existed.
//!
//! What this is *not*: a general log. It holds one Raft log, keeps 8 bytes in memory for each entry, and has one writer.

mod allocator;
mod frame;
#[doc(hidden)]
pub mod fuzzing;
mod index;
mod scan;
mod segment;
mod storage;

pub use storage::WalLogStorage;
