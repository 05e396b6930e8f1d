//! A durable [`LogStorage`](consensus_core::LogStorage) in files of its own: a write-ahead log and nothing behind it.
//!
//! Each call is one `pwrite` and one `fdatasync` to a file whose blocks were written before, so that the file system has
//! nothing of its own to sync. Raft's log *is* a write-ahead log: a general store writes it twice, to its own log and later
//! to a table, and merges tables of what is soon purged.
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
//! IDENTITY, LOCK                     whose the directory is (consensus_storage_dir::DataDir)
//! MARK                               how far it was written (consensus_storage_dir::MarkFile)
//! segments/0000000000000007.wal      header | frame 811 | frame 812 | ...
//! segments/0000000000000008.wal      header | frame 907 | frame 908 | (zeros)          written now
//! segments/0000000000000009.wal      header | (zeros)                                  prepared
//! segments/0000000000000003.spare    purged; one that is prepared later is made of it
//!
//! frame                              head                            records, in consensus_core::record's format
//!                                    number, state, length and
//!                                    checksum of each record
//! ```
//! A frame is a batch, and there or not as a whole. Its head says where the log ends after it, so that truncation needs no
//! record; a new hard state or purge stands in the head. The first frame of a segment always has both, hence segments
//! before it are needed for their entries only, and go when those are purged.
//!
//! Each life of a file has a random number, in its header and in each head: what a file of an earlier life left is not
//! taken for a frame, and no payload can look like one.
//!
//! # The order of things
//! `write`: encode, `pwrite`, `fdatasync`, mark (not synced), tell the readers where the entries are. While a segment
//! is written, a thread prepares the next one - fills it with zeros, syncs, gives it its name - or makes it of a spare one; a
//! write waits for that only if it is not done when it needs it.
//!
//! # What is noticed
//! * The last frame is torn, none is missing before it, and the mark does not know of it: nobody was told, and it is cut
//!   silently.
//! * A record is damaged: [`LogState::damage`](consensus_core::LogState::damage). So it is with the head of a frame, or
//!   several, or a whole segment, when a later head shows that they only appended, or says all that may have changed.
//!   Nothing is put away of such a log but what was purged.
//! * A block that the disk does not give back is damage like any other, but for the end of the log: there it is an error, as
//!   the next frame would go there.
//! * Any other damage, also zeros or an end in the place of what the mark knows of:
//!   [`StorageError::Corrupt`](consensus_core::StorageError::Corrupt).
//!
//! A sync that failed is final, and what it should have made durable is written again when the log is opened and it is still
//! there: the system takes it for written, and a power cut would take it away.
//!
//! The mark is not synced: a power cut may take the last half minute of it. Damage *and* a power cut together can make
//! the very last frame disappear; anything before it is missed even then, as a later frame shows that there was more.
//!
//! What this is *not*: a general log. It holds one Raft log, in memory 8 bytes for each entry, and has one writer.

mod frame;
#[doc(hidden)]
pub mod fuzzing;
mod index;
mod prepare;
mod scan;
mod segment;
mod storage;

pub use storage::WalLogStorage;
