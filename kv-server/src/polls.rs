//! Watches as long polls: how Thrift, where each call has one answer, carries them.
//!
//! A poll has no memory: it begins a watch where the client says, waits for the first events, and answers with where the next
//! poll has to begin. Each poll holds a place while it waits, so that their number is bounded.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use kv_state_machine::{Caller, ConsensusKvDatabase, KeyRange, WatchEvent, WatchRequest, WatchStream};
use kv_store_client::{
    idl,
    protocol::{Fault, Reply},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{answers::Room, call_log, convert, leaderless::leaderless, routing::RoutingManager};

/// Places for the polls of a node.
#[derive(Clone, Debug)]
pub(crate) struct NodePolls(Arc<Semaphore>);

/// Places for the polls of a connection, as a part of the node's.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionPolls {
    node: Arc<Semaphore>,
    connection: Arc<Semaphore>,
    over: CancellationToken,
}

impl Default for NodePolls {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(NODE_POLLS_MAX)))
    }
}

impl NodePolls {
    pub(crate) fn connection(&self) -> ConnectionPolls {
        let connection = Arc::new(Semaphore::new(CONNECTION_POLLS_MAX));
        ConnectionPolls { node: self.0.clone(), connection, over: CancellationToken::new() }
    }
}

impl ConnectionPolls {
    /// Has all polls that wait, and those to come, answer at once.
    pub(crate) fn end(&self) {
        self.over.cancel();
    }

    /// Waits for the first events of a watch and answers with them.
    ///
    /// # Errors
    /// The start revision was compacted; too many polls wait; the node receives no new events.
    pub(crate) async fn poll(
        &self,
        router: &RoutingManager,
        caller: &Caller,
        request: idl::WatchRequest,
        room: &mut Room,
    ) -> Result<Reply, Fault> {
        let database = router.database();
        if database.is_witness() {
            let message = format!("node {} is a witness: it votes, and has no data", router.node());
            return Err(Fault::NoData(idl::NoData { message }));
        }
        let Poll { request, wait } = checked(request)?;
        let (start, known_events, keys) = (request.start_revision, request.start_event, request.keys.clone());
        call_log::note_keys(&keys);
        database.check_read(caller, &keys).map_err(convert::denied)?;
        let _places = [
            place(&self.connection, CONNECTION_POLLS_MAX, "of this connection")?,
            place(&self.node, NODE_POLLS_MAX, "of this node")?,
        ];
        let mut stream = database.watch(request).map_err(convert::fault)?;
        let events = self.wait_for_events(database, &mut stream, wait).await?;
        // A node that is no member hears of nothing.
        if let (true, Some(why)) = (events.is_empty(), router.cluster().and_then(|all| all.why_no_member())) {
            return Err(convert::unavailable(why, false));
        }
        let is_resumed = events.first().is_some_and(|event| event.kv.mod_revision == start);
        let part = part_of(&events, if is_resumed { known_events } else { 0 });
        let rest = match stream.next_revision() {
            next if next < start => (start, known_events),
            next => (next, stream.next_event()),
        };
        let (next_revision, next_event) = part.next.unwrap_or(rest);
        drop(stream);
        // Users or roles may have changed while the poll waited.
        database.check_read(caller, &keys).map_err(convert::denied)?;
        room.reserve(part.bytes).await;
        Ok(Reply::Watch(idl::WatchResponse {
            header: router.header()?,
            events: events.into_iter().take(part.len).map(converted).collect(),
            next_revision: convert::signed(next_revision),
            next_event: i64::try_from(next_event).unwrap_or(i64::MAX),
        }))
    }

    /// Events that come together; empty: none came in time.
    async fn wait_for_events(
        &self,
        database: &ConsensusKvDatabase,
        stream: &mut WatchStream,
        wait: Duration,
    ) -> Result<Vec<Arc<WatchEvent>>, Fault> {
        let (start, newest) = (Instant::now(), database.revision().map_err(convert::fault)?);
        let mut look = start + wait;
        let mut leaderless = std::pin::pin!(leaderless(database.status()));
        loop {
            tokio::select! {
                biased;
                event = stream.next() => return match event {
                    Some(Ok(event)) => {
                        let more = stream.take_read();
                        Ok(std::iter::once(Arc::new(event)).chain(more).collect())
                    }
                    Some(Err(error)) => Err(convert::fault(error)),
                    None => Ok(Vec::new()),
                },
                () = self.over.cancelled() => return Ok(Vec::new()),
                () = &mut leaderless => {
                    let why = "this node has had no leader for seconds, and may not hear of new events";
                    return Err(convert::unavailable(why, false));
                }
                () = sleep_until(look) => {
                    // Events before the poll are sent even if the client does not want to wait.
                    let is_behind = stream.next_revision() <= newest;
                    if !is_behind || start.elapsed() > wait + CATCH_UP_MAX {
                        return Ok(Vec::new());
                    }
                    look = Instant::now() + CATCH_UP_LOOK;
                }
            }
        }
    }
}

fn place(places: &Arc<Semaphore>, max: usize, whose: &str) -> Result<OwnedSemaphorePermit, Fault> {
    places.clone().try_acquire_owned().map_err(|_| {
        let why = format!(
            "{max} polls {whose} wait for events, as many as may; watch on another connection or at another node"
        );
        convert::unavailable(why, false)
    })
}

/// A request that was checked.
#[derive(Debug)]
struct Poll {
    request: WatchRequest,
    wait: Duration,
}

fn checked(request: idl::WatchRequest) -> Result<Poll, Fault> {
    let idl::WatchRequest { key, range_end, .. } = request;
    if key.is_empty() {
        return Err(convert::invalid("a watch needs a key that is not empty"));
    }
    if range_end.as_ref().is_some_and(|end| end[..] != [0] && *end <= key) {
        return Err(convert::invalid("a watch of a range that ends where it begins, or before, has no keys"));
    }
    let wait = convert::natural("wait_ms", request.wait_ms)?.min(WAIT_MS_MAX);
    let start_revision = convert::natural("start_revision", request.start_revision)?;
    let start_event = convert::natural("start_event", request.start_event)?;
    Ok(Poll {
        request: WatchRequest {
            keys: KeyRange { key: key.into(), range_end: range_end.map(Into::into) },
            start_revision,
            start_event: if start_revision == 0 { 0 } else { start_event },
            previous: request.return_previous.unwrap_or(false),
            without_puts: request.without_puts.unwrap_or(false),
            without_deletes: request.without_deletes.unwrap_or(false),
        },
        wait: Duration::from_millis(wait),
    })
}

/// The part of the events that fits into one response.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    len: usize,
    bytes: usize,
    /// Where the next answer begins: revision, and number of events of it that are known. `None`: after all of them.
    next: Option<(u64, u64)>,
}

/// As many whole revisions as fit, or as much of the first one. Of the first one `known_events` went before.
fn part_of(events: &[Arc<WatchEvent>], known_events: u64) -> Part {
    let sizes = || events.iter().map(|event| event.response_bytes());
    let mut bytes = 0;
    let beyond = sizes().enumerate().position(|(place, size)| {
        bytes += size;
        bytes > PART_BYTES_MAX && place > 0
    });
    let (len, next) = match beyond {
        None => (events.len(), None),
        Some(place) => {
            let revision = events[place].kv.mod_revision;
            match events.partition_point(|event| event.kv.mod_revision < revision) {
                0 => (place, Some((revision, known_events + place as u64))),
                whole => (whole, Some((revision, 0))),
            }
        }
    };
    Part { len, bytes: sizes().take(len).sum(), next }
}

fn converted(event: Arc<WatchEvent>) -> idl::WatchEvent {
    let WatchEvent { deleted, kv, previous } = Arc::unwrap_or_clone(event);
    let (kv, previous) = (convert::key_value(kv), previous.map(convert::key_value));
    idl::WatchEvent { deleted, kv, previous }
}

/// Polls that wait at once. The calls that a connection may have in hand are more.
const CONNECTION_POLLS_MAX: usize = 512;
const NODE_POLLS_MAX: usize = 16_384;
/// Longest wait.
const WAIT_MS_MAX: u64 = 60_000;
/// Bytes of an answer; one event may have more.
const PART_BYTES_MAX: usize = 4 << 20;
/// How long a poll reads history beyond the time that its client wants to wait, and how often it looks how far it is.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);
const CATCH_UP_LOOK: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests;
