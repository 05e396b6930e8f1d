//! Watches: a client is told of every change of some keys, once, in the order of revisions.
//!
//! One thread reads what each batch changed, finds who watches it, and puts it into the queues of their sessions. A watch
//! whose queue is full, or which begins in the past, reads the changes from the disk by itself until it has caught up: a slow
//! watcher costs bounded memory, and nobody else anything.

mod dispatch;
mod index;
mod session;
mod stream;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64},
};

pub(crate) use self::dispatch::Hub;
use self::session::Queue;
pub use self::{
    session::{WatchNews, Watches},
    stream::WatchStream,
};
use crate::KeyRange;

/// What is watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchRequest {
    /// Which keys.
    pub keys: KeyRange,
    /// First revision of interest, which may be in the past; 0: the next one.
    pub start_revision: u64,
    /// With what the key was before.
    pub previous: bool,
    /// Not of keys that are written.
    pub without_puts: bool,
    /// Not of keys that are deleted.
    pub without_deletes: bool,
}

/// A watch within its session.
pub type WatchId = u64;

/// A watch.
#[derive(Debug)]
struct Watch {
    id: WatchId,
    request: WatchRequest,
    /// What is before this revision was delivered, or is not wanted.
    next: AtomicU64,
    ended: AtomicBool,
    /// It is in the index: it has caught up, and is told by the thread.
    is_indexed: AtomicBool,
    queue: Arc<Queue>,
}

impl Watch {
    fn wants(&self, change: &crate::written::Change) -> bool {
        let keys = &self.request.keys;
        let is_in_range = match keys.range_end.as_deref() {
            None => change.key == keys.key,
            Some([0]) => change.key >= keys.key,
            Some(end) => change.key >= keys.key && &change.key[..] < end,
        };
        is_in_range && if change.deleted { !self.request.without_deletes } else { !self.request.without_puts }
    }
}
