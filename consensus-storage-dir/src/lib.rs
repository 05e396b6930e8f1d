//! What storages on disk have in common, whatever they store their data with.
//!
//! * [`DataDir`]: a directory that says whose it is, in which format, and is refused to anybody else.
//! * [`MarkFile`]: how far something was written, noted outside of it, so that an end that is missing is missed.
//! * [`Reserve`]: room on the disk that is not given away.
//!
//! What this is *not*: a storage, nor does it know of one.

mod data_dir;
mod mark;
mod reserve;

pub use data_dir::{DataDir, Kind, read_with_checksum, replace_with_checksum, sync_path_to, write_durably};
pub use mark::{Mark, MarkFile};
pub use reserve::Reserve;
