//! Shared parts of storages on disk.
//!
//! * [`DataDir`]: a directory that records its node, kind and format, and refuses every other node and program.
//! * [`MarkFile`]: a record of how much data was written, kept outside of the data, so that a missing end is noticed.
//! * [`Reserve`]: disk space that must stay free.
//!
//! What this is *not*: a storage; it depends on none.

mod data_dir;
mod mark;
mod reserve;

pub use data_dir::{
    DataDir, DirKind, read_with_checksum, replace_with_checksum, require_node, sync_parent_dirs,
    write_durably,
};
pub use mark::{Mark, MarkFile};
pub use reserve::Reserve;
