//! Watchers that record what they are told, and the complete history of what they watch.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use consensus_testkit::watch_history::{self, Event, Step};
use futures::StreamExt;
use kv_etcd_api::{
    etcdserverpb::{
        WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse, watch_client::WatchClient,
        watch_request::RequestUnion,
    },
    mvccpb::event::EventType,
};
use kv_store_client::{
    ClientError, KvClient,
    idl::{self, DeleteRequest, Operation, PutRequest, RangeRequest, TxnRequest},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tonic::{Streaming, transport::Channel};

/// A key with its new value, or without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

/// Prefix of the watched keys.
pub const WATCHED: &str = "watched/";

fn end_of_watched() -> Vec<u8> {
    kv_store_client::prefix_end(WATCHED)
}

/// Writes some watched keys at one revision, again and again, until it is told to stop.
pub async fn write_watched(client: KvClient, seed: u64, stop: &AtomicBool) {
    let mut random = SmallRng::seed_from_u64(seed);
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let first = random.random_range(0..KEYS);
        let operations = (0..random.random_range(1..4)).map(|offset| {
            let key = format!("{WATCHED}keys/{}", (first + offset) % KEYS);
            if random.random_range(0..4) == 0 {
                Operation::DeleteRange(DeleteRequest::of(key, None))
            } else {
                Operation::Put(PutRequest::of(key, format!("{seed}-{n}")))
            }
        });
        let request = TxnRequest::new(Vec::new(), operations.collect(), Vec::new(), None, None, None);
        match client.txn(request).await {
            Ok(_) | Err(ClientError::Unknown(_) | ClientError::Unavailable(_)) => {}
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(2..20))).await;
    }
}

/// Reads the watched keys at every revision: what changed from one to the next, without a watch.
pub async fn written(client: &KvClient) -> (Vec<Event<Change>>, u64) {
    let read = |revision: i64| {
        let request =
            RangeRequest { revision: Some(revision), ..RangeRequest::of(WATCHED, Some(end_of_watched())) };
        async move { (revision, client.range(request).await.expect("all is well again").kvs) }
    };
    let newest =
        client.range(RangeRequest::of(WATCHED, None)).await.expect("all is well again").header.revision;
    let mut reads = futures::stream::iter(2..=newest).map(read).buffered(READS_AT_ONCE);
    let (mut events, mut before) = (Vec::new(), Vec::new());
    while let Some((revision, now)) = reads.next().await {
        let revision_of_event = revision.unsigned_abs();
        let deleted = before.iter().filter(|kv: &&idl::KeyValue| now.iter().all(|other| other.key != kv.key));
        events.extend(
            deleted
                .map(|kv| Change { key: kv.key.clone(), value: None })
                .chain(
                    now.iter()
                        .filter(|kv| kv.mod_revision == revision)
                        .map(|kv| Change { key: kv.key.clone(), value: Some(kv.value.clone()) }),
                )
                .map(|what| Event { revision: revision_of_event, what }),
        );
        before = now;
    }
    (events, newest.unsigned_abs())
}

/// Actions of one watcher, and the events that it received.
#[derive(Default)]
pub struct History {
    steps: Vec<Step<Change>>,
    /// Revision up to which the watcher knows everything.
    covered: u64,
    streams: u64,
}

impl History {
    /// Panics if a property of watches is broken.
    pub fn check(&self, watcher: &str, written: &[Event<Change>], through: u64) {
        if let Err(violation) = watch_history::check(written, &self.steps, Some(through)) {
            let from = violation.step.saturating_sub(SHOWN);
            let steps = &self.steps[from..self.steps.len().min(violation.step + 1)];
            panic!("watcher {watcher}: {violation}\nthe last steps until then: {steps:#?}");
        }
    }

    /// Number of streams that this watcher had, and of deliveries.
    pub fn counts(&self) -> (u64, usize) {
        (self.streams, self.steps.iter().filter(|step| matches!(step, Step::Events(_))).count())
    }

    fn start(&mut self) -> u64 {
        self.streams += 1;
        self.steps.push(Step::Started(self.covered + 1));
        self.covered + 1
    }

    fn events(&mut self, events: Vec<Event<Change>>) {
        self.covered = events.iter().map(|event| event.revision).fold(self.covered, u64::max);
        self.steps.push(Step::Events(events));
    }

    fn progress(&mut self, revision: u64) {
        if revision > self.covered {
            self.covered = revision;
            self.steps.push(Step::Progress(revision));
        }
    }
}

/// Watches by gRPC until everything up to the revision in `until` is known; on another server whenever one fails, and now and
/// then without a reason.
pub async fn watch_by_grpc(ports: Vec<u16>, seed: u64, until: watch::Receiver<Option<u64>>) -> History {
    let (mut random, mut history) = (SmallRng::seed_from_u64(seed), History::default());
    for server in seed.. {
        let port = ports[server as usize % ports.len()];
        let leaves = Instant::now() + Duration::from_millis(random.random_range(100..4_000));
        let stream = timeout(SILENCE_MAX, open(port, history.covered + 1)).await;
        let Ok(Some((requests, mut responses))) = stream else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        history.start();
        while Instant::now() < leaves {
            if until.borrow().is_some_and(|until| history.covered >= until) {
                return history;
            }
            // The answer to a request that was sent before may still be on its way: a second one has no effect.
            let request = RequestUnion::ProgressRequest(WatchProgressRequest {});
            let asked = random.random_range(0..3) == 0;
            if asked && requests.try_send(WatchRequest { request_union: Some(request) }).is_err() {
                break;
            }
            let Some(response) = next(&mut responses, asked).await else { break };
            let Some(response) = response else { continue };
            assert!(!response.canceled, "nothing is compacted in this test: {response:?}");
            let told = response.header.as_ref().map_or(0, |header| header.revision).unsigned_abs();
            let events: Vec<_> = response.events.into_iter().map(event).collect();
            if !events.is_empty() {
                history.events(events);
            }
            // Clients resume after the revision of any header.
            history.progress(told);
        }
    }
    unreachable!("it ends when it knows all")
}

async fn open(port: u16, from: u64) -> Option<(mpsc::Sender<WatchRequest>, Streaming<WatchResponse>)> {
    let channel = Channel::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect().await.ok()?;
    let (requests, sent) = mpsc::channel(8);
    let create = WatchCreateRequest {
        key: WATCHED.into(),
        range_end: end_of_watched().into(),
        start_revision: from.cast_signed(),
        ..Default::default()
    };
    requests.try_send(WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }).ok()?;
    let sent = futures::stream::unfold(sent, |mut sent| async move { Some((sent.recv().await?, sent)) });
    Some((requests, WatchClient::new(channel).watch(sent).await.ok()?.into_inner()))
}

/// The next response; `None` if the stream has failed. Without one for a while there is nothing, or the server is silent.
async fn next(responses: &mut Streaming<WatchResponse>, is_asked: bool) -> Option<Option<WatchResponse>> {
    let patience = if is_asked { SILENCE_MAX } else { PAUSE };
    match timeout(patience, responses.message()).await {
        Ok(Ok(Some(response))) => Some(Some(response)),
        Err(_) if !is_asked => Some(None),
        _ => None,
    }
}

fn event(event: kv_etcd_api::mvccpb::Event) -> Event<Change> {
    let deleted = event.r#type == i32::from(EventType::Delete);
    let kv = event.kv.expect("an event has a pair");
    let what = Change { key: kv.key.to_vec(), value: (!deleted).then(|| kv.value.to_vec()) };
    Event { revision: kv.mod_revision.unsigned_abs(), what }
}

/// Watches by polls over Thrift, with the client library, until everything up to the revision in `until` is known. The library
/// goes on at another server by itself; now and then another watch takes over.
pub async fn watch_by_polls(client: KvClient, seed: u64, until: watch::Receiver<Option<u64>>) -> History {
    let (mut random, mut history) = (SmallRng::seed_from_u64(seed), History::default());
    loop {
        let start_revision = Some(history.start().cast_signed());
        let request =
            idl::WatchRequest { start_revision, ..idl::WatchRequest::of(WATCHED, Some(end_of_watched())) };
        let mut watch = client.watch(request).await.expect("a start revision is given");
        let leaves = Instant::now() + Duration::from_millis(random.random_range(500..5_000));
        let mut same_revision: Vec<Event<Change>> = Vec::new();
        while Instant::now() < leaves || !same_revision.is_empty() {
            if until.borrow().is_some_and(|until| history.covered >= until) {
                return history;
            }
            if let Ok(event) = timeout(PAUSE, watch.next()).await {
                let event = event.expect("it does not end").expect("nothing is compacted in this test");
                let what = Change { key: event.kv.key, value: (!event.deleted).then_some(event.kv.value) };
                same_revision.push(Event { revision: event.kv.mod_revision.unsigned_abs(), what });
            }
            let next = watch.next_revision().unsigned_abs();
            if same_revision.last().is_some_and(|last| last.revision < next) {
                history.events(std::mem::take(&mut same_revision));
            }
            if same_revision.is_empty() {
                history.progress(next - 1);
            }
        }
    }
}

/// Shared by the tasks of a test.
pub type Stop = Arc<AtomicBool>;
const KEYS: u64 = 8;
const READS_AT_ONCE: usize = 64;
/// Steps that a failure shows.
const SHOWN: usize = 8;
const PAUSE: Duration = Duration::from_millis(50);
/// A server that is silent for longer is left for another one.
const SILENCE_MAX: Duration = Duration::from_millis(1_500);
