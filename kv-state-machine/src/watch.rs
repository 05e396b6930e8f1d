//! Watches: a client receives every change of some keys exactly once, in the order of revisions.
//!
//! One thread reads the changes of each batch, finds the watches of each changed key, and adds the events to the queues
//! of their sessions. A watch whose queue is full, or which starts at a past revision, reads changes from disk until it
//! has caught up. So a slow watch uses bounded memory, and does not delay others.

mod dispatch;
mod index;
mod session;
mod stream;
mod within;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64},
};

pub(crate) use self::dispatch::Dispatcher;
use self::{session::Queue, within::Within};
pub use self::{
    session::{WatchNews, Watches},
    stream::WatchStream,
};
use crate::KeyRange;

/// Parameters of a watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchRequest {
    /// Keys to watch.
    pub keys: KeyRange,
    /// First revision to watch, which may be in the past; 0: the next one.
    pub start_revision: u64,
    /// Number of events of the start revision that are skipped, because the client has them already. Without a start revision it
    /// has no effect.
    pub start_event: u64,
    /// Whether events include the previous pair.
    pub previous: bool,
    /// Whether puts are omitted.
    pub without_puts: bool,
    /// Whether deletions are omitted.
    pub without_deletes: bool,
}

/// Id of a watch, unique within its session.
pub type WatchId = u64;

/// State of a watch.
#[derive(Debug)]
struct Watch {
    id: WatchId,
    request: WatchRequest,
    /// First revision that the watch receives.
    start: u64,
    /// First revision that was not delivered, or the start revision.
    next: AtomicU64,
    /// The part of revision `next` that was delivered. Only a watch that reads from disk can have a part.
    within: Mutex<Within>,
    /// Whether the places where it stops within a revision are remembered.
    is_resumable: bool,
    ended: AtomicBool,
    /// Whether the watch is in the index: it has caught up, and the dispatcher adds its events to the queue.
    is_indexed: AtomicBool,
    queue: Arc<Queue>,
}

impl Watch {
    fn within(&self) -> MutexGuard<'_, Within> {
        self.within.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wants(&self, change: &crate::pending_writes::Change) -> bool {
        let keys = &self.request.keys;
        let is_in_range = match keys.range_end.as_deref() {
            None => change.key == keys.key,
            Some([0]) => change.key >= keys.key,
            Some(end) => change.key >= keys.key && &change.key[..] < end,
        };
        is_in_range && if change.deleted { !self.request.without_deletes } else { !self.request.without_puts }
    }
}
