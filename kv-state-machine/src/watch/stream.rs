//! One watch as a stream.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use futures::{Stream, future::BoxFuture};

use super::{Watch, WatchNews, WatchRequest, Watches, session};
use crate::{KvError, KvRejection, WatchEvent, store::Store};

/// Stream of the changes of some keys: each event once, in the order of revisions.
///
/// Events of one revision are consecutive. The stream ends with [`KvRejection::Compacted`] if the revision that it has
/// to read next was compacted; the error contains the oldest revision from which a watch can start. After any other
/// error, which is a failure of the disk, the stream can be polled again and nothing is lost. A stream that is not
/// polled uses bounded memory.
pub struct WatchStream {
    store: Arc<Store>,
    watch: Arc<Watch>,
    events: VecDeque<Arc<WatchEvent>>,
    /// Pending call of [`Watches::next`]; `None` if the stream has ended.
    next: Option<BoxFuture<'static, (Watches, Result<WatchNews, KvError>)>>,
}

impl WatchStream {
    pub(crate) fn new(mut watches: Watches, request: WatchRequest) -> Self {
        let (watch, _) = watches.begin(request, true);
        let store = watches.store().clone();
        Self { store, watch, events: VecDeque::new(), next: Some(Box::pin(next(watches))) }
    }

    /// First revision that this stream has not returned completely: a new watch that starts there continues this
    /// stream. It grows with the store's revision even if the watched keys do not change, so a reader that saves it
    /// regularly can resume after a compaction. If only some events of a revision were taken, the new watch repeats
    /// that revision.
    #[must_use]
    pub fn next_revision(&self) -> u64 {
        match self.events.front() {
            Some(event) => event.kv.mod_revision,
            None => session::next_revision(&self.store, &self.watch),
        }
    }

    /// Number of events of [`next_revision`](Self::next_revision) that the client has, if no event that was read waits to be
    /// taken. A new watch that starts at both repeats no event. It is 0 unless the stream is within a revision whose events have
    /// more than 4 MiB, or has not reached the revision at which it was to skip some.
    #[must_use]
    pub fn next_event(&self) -> u64 {
        let within = self.watch.within().events;
        let is_within = self.next_revision() == self.watch.next.load(Ordering::Relaxed);
        if is_within { within } else { 0 }
    }

    /// Takes the events that were read together with the last one, without waiting.
    #[must_use]
    pub fn take_read(&mut self) -> Vec<Arc<WatchEvent>> {
        std::mem::take(&mut self.events).into()
    }
}

async fn next(mut watches: Watches) -> (Watches, Result<WatchNews, KvError>) {
    let news = watches.next().await;
    (watches, news)
}

impl Stream for WatchStream {
    type Item = Result<WatchEvent, KvError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(Some(Ok(Arc::unwrap_or_clone(event))));
            }
            let Some(pending) = &mut self.next else { return Poll::Ready(None) };
            let (watches, news) = ready!(pending.as_mut().poll(context));
            self.next = Some(Box::pin(next(watches)));
            match news {
                Ok(WatchNews::Events { events, .. }) => self.events = events.into(),
                Ok(WatchNews::Compacted { compacted, .. }) => {
                    self.next = None;
                    return Poll::Ready(Some(Err(KvRejection::Compacted { compacted }.into())));
                }
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

impl fmt::Debug for WatchStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchStream")
            .field("request", &self.watch.request)
            .field("next_revision", &self.next_revision())
            .field("is_ended", &self.next.is_none())
            .finish()
    }
}
