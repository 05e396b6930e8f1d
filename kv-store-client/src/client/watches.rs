//! Watches that resume by themselves.

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
};
use crate::{
    idl::{RangeRequest, WatchEvent, WatchRequest, WatchResponse},
    protocol::{Call, Fault, Reply},
};

/// Why a watch has ended.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// What the watch had to read next was compacted away: there is a gap. Read the keys anew and watch from there.
    #[error("revisions below {oldest} were compacted away before they were watched")]
    Compacted {
        /// The oldest revision that can still be watched from.
        oldest: i64,
    },
    /// The request is wrong.
    #[error(transparent)]
    Rejected(Fault),
}

/// The changes of some keys as a stream: every event once, in the order of revisions; events of one revision follow each other.
///
/// The stream outlives connections and servers: it goes on from the next revision at whatever server answers, for as long as it
/// takes. It ends with an error only if there is a gap, or the request is wrong. While a watch waits it has a poll under way;
/// 512 watches of one client may wait at once.
pub struct Watch {
    client: KvClient,
    /// The next poll.
    request: WatchRequest,
    events: VecDeque<WatchEvent>,
    poll: Option<BoxFuture<'static, Result<WatchResponse, WatchError>>>,
    is_ended: bool,
}

impl KvClient {
    /// Watches the keys of a request. Without `start_revision` the watch begins with the first write that follows; every write
    /// that was acknowledged before this returns is not part of it. `request.wait_ms` is set by the client.
    ///
    /// # Errors
    /// See [`ClientError`]: the present revision cannot be learned. With a `start_revision` none.
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

    /// Polls until a server answers.
    async fn poll(self, request: WatchRequest) -> Result<WatchResponse, WatchError> {
        let (call, mut pause) = (Call::Watch(request), PAUSE_MIN);
        loop {
            let deadline = Instant::now() + self.config.timeout + POLL_WAIT;
            let failure = match self.try_once(&call, deadline, POLL_WAIT).await {
                Ok(Reply::Watch(response)) => return Ok(response),
                Ok(other) => format!("a watch was asked for, {other:?} came"),
                Err(Attempted::Refused(Fault::Compacted(why))) => {
                    return Err(WatchError::Compacted { oldest: why.compacted_revision });
                }
                Err(Attempted::Refused(fault)) => return Err(WatchError::Rejected(fault)),
                Err(Attempted::Failed(failure)) => failure.to_string(),
            };
            tracing::debug!(%failure, "the watch goes on elsewhere");
            wait(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

impl Watch {
    /// The `start_revision` of another watch that would go on where this one is. It grows with the store's revision, be the keys
    /// changed or not: who notes it now and then can resume after a compaction. If only a part of the events of a revision was
    /// taken, another watch begins with the first of them again.
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

/// How long a server waits for events before it answers without any. A server that is silent for longer, and for
/// [`attempt_timeout`](super::ClientConfig::attempt_timeout), is given up.
const POLL_WAIT: Duration = Duration::from_secs(4);
