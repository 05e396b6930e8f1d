//! Watches that resume automatically.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{Stream, future::BoxFuture};
use tokio::time::Instant;

use super::{
    ClientError, KvClient,
    calls::{Attempted, PAUSE_MAX, PAUSE_MIN, wait},
    failures::Failures,
};
use crate::{
    idl::{RangeRequest, WatchEvent, WatchRequest, WatchResponse},
    protocol::{Call, Fault, Reply},
};

/// Reason that a watch has ended.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The next revisions were compacted away, so that events are missing. The caller has to read the keys
    /// again, and to watch from the revision after that of the read.
    #[error("revisions below {oldest} were compacted away before they were watched")]
    Compacted {
        /// Oldest revision that can still be watched from.
        oldest: i64,
    },
    /// The request is invalid.
    #[error(transparent)]
    Rejected(Fault),
}

/// A stream of the changes of some keys. It has every event once, in the order of revisions. Events of one
/// revision follow each other.
///
/// The stream survives failures of connections and servers. It continues with the next revision at any server
/// that responds, without a time limit. It ends with an error only if events are missing or the request is
/// invalid. While a watch waits, it has a poll in flight. At most 512 watches of one client can wait at the
/// same time.
pub struct Watch {
    client: KvClient,
    /// Request of the next poll.
    request: WatchRequest,
    events: VecDeque<WatchEvent>,
    poll: Option<BoxFuture<'static, Result<WatchResponse, WatchError>>>,
    is_ended: bool,
}

impl KvClient {
    /// Watches the keys of a request. Without `start_revision`, this method reads the present revision with
    /// linearizable consistency, and the watch starts with the next write. It then omits all writes that were
    /// acknowledged before this call, and has all writes that start after it returns. The client sets
    /// `request.wait_ms`.
    ///
    /// # Errors
    /// See [`ClientError`]. Without `start_revision`: the present revision cannot be read. With it, there are
    /// no errors.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn f(client: kv_store_client::KvClient) -> Result<(), Box<dyn std::error::Error>> {
    /// use futures::TryStreamExt;
    /// use kv_store_client::{idl::WatchRequest, prefix_end};
    ///
    /// let mut watch = client.watch(WatchRequest::of("config/", Some(prefix_end("config/")))).await?;
    /// while let Some(event) = watch.try_next().await? {
    ///     println!("{} at revision {}", String::from_utf8_lossy(&event.kv.key), event.kv.mod_revision);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn watch(&self, mut request: WatchRequest) -> Result<Watch, ClientError> {
        if request.start_revision.unwrap_or(0) == 0 {
            let now = RangeRequest { count_only: Some(true), ..RangeRequest::of(request.key.clone(), None) };
            request.start_revision = Some(self.range(now).await?.header.revision + 1);
        }
        request.wait_ms = Some(i64::try_from(POLL_WAIT.as_millis()).unwrap_or(i64::MAX));
        Ok(Watch { client: self.clone(), request, events: VecDeque::new(), poll: None, is_ended: false })
    }

    /// Polls until a server responds.
    async fn poll(self, request: WatchRequest) -> Result<WatchResponse, WatchError> {
        let (call, mut pause) = (Call::Watch(request), PAUSE_MIN);
        let mut failures = Failures::default();
        loop {
            let deadline = Instant::now() + self.config.timeout + POLL_WAIT;
            let failure = match self.try_once(&call, deadline, POLL_WAIT).await {
                Ok(Reply::Watch(response)) => {
                    self.note_answer();
                    return Ok(response);
                }
                Ok(other) => format!("a watch was asked for, {other:?} came"),
                Err(Attempted::Refused(Fault::Compacted(why))) => {
                    return Err(WatchError::Compacted { oldest: why.compacted_revision });
                }
                Err(Attempted::Refused(fault)) => return Err(WatchError::Rejected(fault)),
                Err(Attempted::Failed(failure)) => {
                    let text = failure.to_string();
                    failures.note(failure);
                    text
                }
            };
            tracing::debug!(%failure, "the watch goes on elsewhere");
            if failures.include_all(&self.config.endpoints) {
                self.note_outage(|| failures.to_string());
            }
            wait(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

impl Watch {
    /// Returns the `start_revision` with which another watch continues after the events of this one. It grows
    /// with the revision of the store, even if the keys do not change. A program that saves it regularly can
    /// resume after a compaction. If this watch has returned only a part of the events of a revision, the
    /// other watch starts with the first of them again.
    #[must_use]
    pub fn next_revision(&self) -> i64 {
        let next = self.request.start_revision.unwrap_or(0);
        self.events.front().map_or(next, |event| event.kv.mod_revision)
    }
}

impl Stream for Watch {
    type Item = Result<WatchEvent, WatchError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.is_ended {
                return Poll::Ready(None);
            }
            let watch = &mut *self;
            let poll =
                watch.poll.get_or_insert_with(|| Box::pin(watch.client.clone().poll(watch.request.clone())));
            let polled = ready!(poll.as_mut().poll(context));
            watch.poll = None;
            match polled {
                Ok(response) => {
                    self.request.start_revision = Some(response.next_revision);
                    self.request.start_event = Some(response.next_event);
                    self.events = response.events.into();
                }
                Err(error) => {
                    self.is_ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("request", &self.request)
            .field("next_revision", &self.next_revision())
            .field("is_ended", &self.is_ended)
            .finish_non_exhaustive()
    }
}

/// Time for which a server waits for events before it responds without any. If a server does not respond
/// within this time plus [`attempt_timeout`](super::ClientConfig::attempt_timeout), the client polls another
/// server.
const POLL_WAIT: Duration = Duration::from_secs(4);
