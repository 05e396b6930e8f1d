//! The service `Watch`: many watches on one stream.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::stream::BoxStream;
use kv_etcd_api::{
    etcdserverpb::{
        WatchCancelRequest, WatchCreateRequest, WatchRequest, WatchResponse,
        watch_create_request::FilterType, watch_request::RequestUnion, watch_server::Watch,
    },
    mvccpb::{Event, event::EventType},
};
use kv_state_machine::{KeyRange, WatchEvent, WatchId, WatchNews, Watches};
use prost::Message;
use tokio::{
    sync::{mpsc, watch as channel},
    time::{Instant, sleep_until, timeout},
};
use tonic::{Request, Response, Status, Streaming};

use super::{Etcd, ROOM_WAIT, convert, error, signed};
use crate::{
    answers::GrowingRoom,
    call_log::{WatchLog, WatchRecord},
    frontend::stopped,
    measure::code_name,
};

/// A response, and its room if it was collected in parts.
type Sent = (Result<WatchResponse, Status>, Option<GrowingRoom>);
/// The client is gone, or the stream has ended.
type Gone = mpsc::error::SendError<Sent>;

/// The responses on the way to their client.
#[derive(Clone)]
struct Sender(mpsc::Sender<Sent>);

impl Sender {
    async fn send(&self, response: Result<WatchResponse, Status>) -> Result<(), Gone> {
        self.0.send((response, None)).await
    }
}

#[tonic::async_trait]
impl Watch for Etcd {
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let watches = self.data()?.watches().map_err(error::of_read)?;
        let (out, answers) = mpsc::channel(ANSWERS_MAX);
        let stream = Stream {
            etcd: self.clone(),
            watches,
            out: Sender(out),
            clients: Clients::default(),
            progress_wanted: None,
            progress_not_before: Instant::now(),
            auth_changes: self.database().auth_changes(),
            log: WatchLog::of_current_call(),
            unfinished: None,
        };
        tokio::spawn(stream.run(request.into_inner()));
        let answers = futures::stream::unfold((answers, None), |(mut answers, written)| async move {
            // The response before is written, but for what HTTP/2 buffers for a client that reads slowly.
            drop::<Option<GrowingRoom>>(written);
            let (answer, room) = answers.recv().await?;
            Some((answer, (answers, room)))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

/// The client's view of a watch.
struct Client {
    watch: WatchId,
    keys: KeyRange,
    previous: bool,
    fragment: bool,
    /// Time of the next progress notification, unless events are sent before.
    progress_at: Option<Instant>,
    /// Records the end when it is dropped.
    record: Option<WatchRecord>,
}

/// The watches of a stream. Each step takes about the same time with one watch and with thousands.
#[derive(Default)]
struct Clients {
    /// Watches by the ids that their clients know.
    all: HashMap<i64, Client>,
    /// Ids that the clients know, by watch.
    ids: HashMap<WatchId, i64>,
    /// Times of the next progress notifications.
    due: BTreeSet<(Instant, i64)>,
    /// Id at which the search for a free one starts.
    next_id: i64,
}

impl Clients {
    /// Returns the id that a client requested, or a free one for 0; `None` if it is in use.
    fn free_id(&mut self, wanted: i64) -> Option<i64> {
        if wanted != 0 {
            return Some(wanted).filter(|id| !self.all.contains_key(id));
        }
        let id = (self.next_id..).find(|id| !self.all.contains_key(id))?;
        self.next_id = id.saturating_add(1);
        Some(id)
    }

    fn insert(&mut self, id: i64, client: Client) {
        self.ids.insert(client.watch, id);
        self.due.extend(client.progress_at.map(|at| (at, id)));
        self.all.insert(id, client);
    }

    fn remove(&mut self, id: i64) -> Option<Client> {
        let client = self.all.remove(&id)?;
        self.ids.remove(&client.watch);
        if let Some(at) = client.progress_at {
            self.due.remove(&(at, id));
        }
        Some(client)
    }

    /// Returns the client's view of a watch, and its id.
    fn of(&self, watch: WatchId) -> Option<(i64, &Client)> {
        let id = *self.ids.get(&watch)?;
        Some((id, self.all.get(&id)?))
    }

    /// Postpones the next progress notification of a watch, if it has any.
    fn put_off(&mut self, id: i64, until: Instant) {
        let Some(at) = self.all.get_mut(&id).and_then(|client| client.progress_at.as_mut()) else { return };
        self.due.remove(&(*at, id));
        *at = until;
        self.due.insert((until, id));
    }

    /// Returns the time of the next progress notification.
    fn first_due(&self) -> Option<(Instant, i64)> {
        self.due.first().copied()
    }
}

struct Stream {
    etcd: Etcd,
    watches: Watches,
    out: Sender,
    clients: Clients,
    /// Requests for progress that wait for a watch that is behind.
    progress_wanted: Option<ProgressWanted>,
    /// Time at which due progress notifications are tried again.
    progress_not_before: Instant,
    /// Changes of users and roles.
    auth_changes: Option<channel::Receiver<u64>>,
    log: WatchLog,
    /// The revision of which a part was read. Until its end nothing else is sent: clients join consecutive fragments.
    unfinished: Option<Unfinished>,
}

/// A revision whose events come in parts.
struct Unfinished {
    /// Id of the watch for the client.
    id: i64,
    /// Events for a client that takes no fragments, and about how much memory they take.
    held: Vec<Event>,
    bytes: usize,
    /// Part of the responses' memory, for the events that are held.
    room: GrowingRoom,
}

impl Stream {
    async fn run(mut self, mut requests: Streaming<WatchRequest>) {
        let mut stop = self.etcd.stop.clone();
        let mut has_more = true;
        loop {
            let look = sleep_until(self.next_look());
            let out = self.out.clone();
            let is_between_revisions = self.unfinished.is_none();
            let outcome = tokio::select! {
                biased;
                _ = stopped(&mut stop) => Err(Some(error::stopped())),
                request = requests.message(), if has_more && is_between_revisions => match request {
                    Ok(Some(request)) => self.request(request).await.map_err(|_| None),
                    Ok(None) => {
                        // A client that has sent all its requests still receives events.
                        has_more = false;
                        Ok(())
                    }
                    Err(status) => Err(Some(status)),
                },
                () = changed(&mut self.auth_changes), if is_between_revisions => self.check_permissions().await.map_err(|_| None),
                news = self.watches.next() => match news {
                    Ok(news) => self.news(news).await.map_err(|_| None),
                    Err(failure) => Err(Some(error::of_read(failure))),
                },
                () = look, if is_between_revisions => self.tell_progress().await.map_err(|_| None),
                () = out.0.closed() => Err(None),
            };
            if let Err(end) = outcome {
                // For some clients an end of the stream without an error is final. After an error they reconnect.
                if let Some(status) = end {
                    let _ = self.out.send(Err(status)).await;
                }
                return;
            }
        }
    }

    fn next_look(&self) -> Instant {
        let wait = match self.progress_wanted {
            None => LOOK,
            Some(wanted) if wanted.since.elapsed() < LOOK_PROGRESS_MAX => LOOK_PROGRESS,
            Some(_) => PROGRESS_RETRY,
        };
        let look = Instant::now() + wait;
        let due = self.clients.first_due().map(|(at, _)| at.max(self.progress_not_before));
        due.map_or(look, |due| due.min(look))
    }

    async fn request(&mut self, request: WatchRequest) -> Result<(), Gone> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => self.create(request).await,
            Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })) => self.cancel(watch_id).await,
            Some(RequestUnion::ProgressRequest(_)) => {
                let latest = self.watches.revision();
                let first = self.progress_wanted.map_or(latest, |wanted| wanted.first);
                let since = self.progress_wanted.map_or_else(Instant::now, |wanted| wanted.since);
                self.progress_wanted = Some(ProgressWanted { first, latest, since });
                self.tell_progress().await
            }
            None => Ok(()),
        }
    }

    async fn create(&mut self, request: WatchCreateRequest) -> Result<(), Gone> {
        let Some(id) = self.clients.free_id(request.watch_id) else {
            return self.refuse("etcdserver: mvcc: duplicate watch ID provided on the WatchStream").await;
        };
        let mut filters = Vec::new();
        for filter in &request.filters {
            match FilterType::try_from(*filter) {
                Ok(filter) => filters.push(filter),
                Err(_) => return self.refuse(error::unknown_number("watch filter", *filter).message()).await,
            }
        }
        let Ok(start_revision) = u64::try_from(request.start_revision) else {
            return self.refuse(error::compacted().message()).await;
        };
        let keys = watched(request.key, request.range_end);
        if keys.range_end.as_ref().is_some_and(|end| end[..] != [0] && *end <= keys.key) {
            return self.refuse("mvcc: watcher range is empty").await;
        }
        if let Err(status) = self.permission(&keys) {
            self.log.refused(id, &keys, code_name(status.code()));
            return self.refuse(&error::reason_of_watch(&status)).await;
        }
        let (watch, revision) = self.watches.add(kv_state_machine::WatchRequest {
            keys: keys.clone(),
            start_revision,
            start_event: 0,
            previous: request.prev_kv,
            without_puts: filters.contains(&FilterType::Noput),
            without_deletes: filters.contains(&FilterType::Nodelete),
        });
        let record = self.log.created(id, &keys, revision);
        let client = Client {
            watch,
            keys,
            previous: request.prev_kv,
            fragment: request.fragment,
            progress_at: request
                .progress_notify
                .then(|| Instant::now() + self.etcd.limits.watch_progress_interval),
            record,
        };
        self.clients.insert(id, client);
        // Some clients resume after the revision of the last header, so it must not be that of later events.
        let told = if start_revision == 0 { revision } else { revision.min(start_revision - 1) };
        let header = Some(self.etcd.header(told));
        self.out.send(Ok(WatchResponse { header, watch_id: id, created: true, ..Default::default() })).await
    }

    /// Creation and cancellation in one response: clients do not understand two.
    async fn refuse(&mut self, why: &str) -> Result<(), Gone> {
        let response = WatchResponse {
            header: Some(self.etcd.header(self.watches.revision())),
            watch_id: -1,
            created: true,
            canceled: true,
            cancel_reason: why.to_owned(),
            ..Default::default()
        };
        self.out.send(Ok(response)).await
    }

    /// Why the caller may not watch keys.
    fn permission(&self, keys: &KeyRange) -> Result<(), Status> {
        if self.etcd.has_invalid_token {
            return Err(error::invalid_auth_token());
        }
        self.etcd.database().check_read(&self.etcd.caller, keys).map_err(error::of_watcher)
    }

    /// Ends the watches that their caller may not have any more, after users or roles have changed.
    async fn check_permissions(&mut self) -> Result<(), Gone> {
        let refused = |(id, client): (&i64, &Client)| Some((*id, self.permission(&client.keys).err()?));
        let refused: Vec<_> = self.clients.all.iter().filter_map(refused).collect();
        for (id, status) in refused {
            self.end(id, &status).await?;
        }
        Ok(())
    }

    /// Ends a watch for a reason that its client is told.
    async fn end(&mut self, id: i64, status: &Status) -> Result<(), Gone> {
        self.unfinished.take_if(|unfinished| unfinished.id == id);
        let Some(client) = self.clients.remove(id) else { return Ok(()) };
        self.watches.remove(client.watch);
        if let Some(record) = client.record {
            record.fail(code_name(status.code()));
        }
        let response = WatchResponse {
            header: Some(self.etcd.header(self.watches.revision())),
            watch_id: id,
            canceled: true,
            cancel_reason: error::reason_of_watch(status),
            ..Default::default()
        };
        self.out.send(Ok(response)).await
    }

    async fn cancel(&mut self, id: i64) -> Result<(), Gone> {
        let Some(client) = self.clients.remove(id) else { return Ok(()) };
        self.watches.remove(client.watch);
        let header = Some(self.etcd.header(self.watches.revision()));
        self.out.send(Ok(WatchResponse { header, watch_id: id, canceled: true, ..Default::default() })).await
    }

    async fn news(&mut self, news: WatchNews) -> Result<(), Gone> {
        // The news may be newer than a change of permissions.
        if self.auth_changes.as_mut().is_some_and(|changes| changes.has_changed().unwrap_or(false)) {
            self.check_permissions_before_news().await?;
        }
        match news {
            WatchNews::Events { watch, events, more } => {
                let Some((id, client)) = self.clients.of(watch) else { return Ok(()) };
                let (previous, fragment) = (client.previous, client.fragment);
                self.clients.put_off(id, Instant::now() + self.etcd.limits.watch_progress_interval);
                let is_rest = self.unfinished.as_ref().is_some_and(|unfinished| unfinished.id == id);
                match (more || is_rest, fragment) {
                    (false, _) => self.send_events(id, &events, previous, fragment, false).await?,
                    (true, true) => {
                        self.unfinished = more.then(|| Unfinished::new(id, &self.etcd));
                        self.send_events(id, &events, previous, true, more).await?;
                    }
                    (true, false) => self.hold_events(id, &events, previous, more).await?,
                }
            }
            WatchNews::Compacted { watch, compacted } => {
                let Some((id, _)) = self.clients.of(watch) else { return Ok(()) };
                self.unfinished = None;
                if let Some(record) = self.clients.remove(id).and_then(|client| client.record) {
                    record.fail(code_name(error::compacted().code()));
                }
                let response = WatchResponse {
                    header: Some(self.etcd.header(0)),
                    watch_id: id,
                    canceled: true,
                    compact_revision: signed(compacted),
                    ..Default::default()
                };
                self.out.send(Ok(response)).await?;
            }
            _ => {}
        }
        if self.progress_wanted.is_some() && self.unfinished.is_none() {
            return self.tell_progress().await;
        }
        Ok(())
    }

    /// Within a revision only the watch that receives it can be ended. The others are checked after it.
    async fn check_permissions_before_news(&mut self) -> Result<(), Gone> {
        if let Some(id) = self.unfinished.as_ref().map(|unfinished| unfinished.id) {
            let refused = self.clients.all.get(&id).and_then(|client| self.permission(&client.keys).err());
            return match refused {
                Some(status) => self.end(id, &status).await,
                None => Ok(()),
            };
        }
        if let Some(changes) = &mut self.auth_changes {
            changes.mark_unchanged();
        }
        self.check_permissions().await
    }

    /// Collects the events of a revision for a client that takes no fragments, and sends them together. Ends the watch if they
    /// take too much memory.
    async fn hold_events(
        &mut self,
        id: i64,
        events: &[Arc<WatchEvent>],
        previous: bool,
        more: bool,
    ) -> Result<(), Gone> {
        let unfinished = self.unfinished.take();
        let mut unfinished = unfinished.unwrap_or_else(|| Unfinished::new(id, &self.etcd));
        unfinished.hold(events.iter().map(|event| converted(event, previous)));
        let bytes_max = unfinished.room.bytes_max();
        let refusal = if unfinished.bytes > bytes_max {
            Some(error::too_large_revision(bytes_max))
        } else {
            tokio::select! {
                grown = timeout(ROOM_WAIT, unfinished.room.grow(unfinished.bytes)) => grown.err().map(|_| error::no_room()),
                // The next step of the stream sees it.
                () = self.out.0.closed() => return Ok(()),
                _ = stopped(&mut self.etcd.stop) => return Ok(()),
            }
        };
        if let Some(status) = refusal {
            drop(unfinished);
            return self.end(id, &status).await;
        }
        if more {
            self.unfinished = Some(unfinished);
            return Ok(());
        }
        let revision = events.last().map_or(0, |event| event.kv.mod_revision);
        let header = Some(self.etcd.header(revision));
        let Unfinished { held: events, mut room, .. } = unfinished;
        room.note_unread();
        let response = WatchResponse { header, watch_id: id, events, ..Default::default() };
        self.out.0.send((Ok(response), Some(room))).await
    }

    /// The header has the revision of the last event: some clients resume after it. `more`: the last fragment is to come.
    async fn send_events(
        &mut self,
        id: i64,
        events: &[Arc<WatchEvent>],
        previous: bool,
        fragment: bool,
        more: bool,
    ) -> Result<(), Gone> {
        let revision = events.last().map_or(0, |event| event.kv.mod_revision);
        let response = |events: Vec<Event>, fragment: bool, etcd: &Etcd| WatchResponse {
            header: Some(etcd.header(revision)),
            watch_id: id,
            fragment,
            events,
            ..Default::default()
        };
        let (mut part, mut bytes) = (Vec::new(), 0);
        for event in events {
            let event = converted(event, previous);
            let size = event.encoded_len();
            if fragment && bytes + size > FRAGMENT_BYTES_MAX && !part.is_empty() {
                self.out.send(Ok(response(std::mem::take(&mut part), true, &self.etcd))).await?;
                bytes = 0;
            }
            bytes += size;
            part.push(event);
        }
        self.out.send(Ok(response(part, more, &self.etcd))).await
    }

    /// Answers requests for progress once they are true of all watches, and sends due progress notifications.
    async fn tell_progress(&mut self) -> Result<(), Gone> {
        let now = Instant::now();
        let is_due = |clients: &Clients| clients.first_due().filter(|(at, _)| *at <= now).map(|(_, id)| id);
        if self.progress_wanted.is_none() && is_due(&self.clients).is_none() {
            return Ok(());
        }
        let Some(revision) = self.watches.progress() else {
            self.progress_not_before = now + PROGRESS_RETRY;
            return Ok(());
        };
        let header = Some(self.etcd.header(revision));
        if let Some(ProgressWanted { first, latest, since }) = self.progress_wanted
            && first <= revision
        {
            self.progress_wanted =
                (latest > revision).then_some(ProgressWanted { first: latest, latest, since });
            if !self.clients.all.is_empty() {
                self.out.send(Ok(WatchResponse { header, watch_id: -1, ..Default::default() })).await?;
            }
        }
        while let Some(id) = is_due(&self.clients) {
            self.clients.put_off(id, now + self.etcd.limits.watch_progress_interval);
            self.out.send(Ok(WatchResponse { header, watch_id: id, ..Default::default() })).await?;
        }
        Ok(())
    }
}

impl Unfinished {
    fn new(id: i64, etcd: &Etcd) -> Self {
        Self { id, held: Vec::new(), bytes: 0, room: etcd.budget.growing_room() }
    }

    fn hold(&mut self, events: impl Iterator<Item = Event>) {
        for event in events {
            self.bytes += event.encoded_len() + EVENT_BYTES;
            self.held.push(event);
        }
    }
}

/// Returns when users or roles have changed.
async fn changed(changes: &mut Option<channel::Receiver<u64>>) {
    let is_over = match changes {
        Some(changes) => changes.changed().await.is_err(),
        None => true,
    };
    if is_over {
        std::future::pending::<()>().await;
    }
}

/// Requests for progress. A response must not be older than the store's revision at the time of its request.
#[derive(Clone, Copy)]
struct ProgressWanted {
    /// Revision of the store at the first request.
    first: u64,
    /// Revision of the store at the last request. One response serves all requests for which it is not too old.
    latest: u64,
    /// Time of the first request, by this node's clock.
    since: Instant,
}

/// A request without a key watches the first possible key, or all keys.
fn watched(key: bytes::Bytes, range_end: bytes::Bytes) -> KeyRange {
    let key = if key.is_empty() { bytes::Bytes::from_static(&[0]) } else { key };
    KeyRange { key, range_end: Some(range_end).filter(|end| !end.is_empty()) }
}

fn converted(event: &WatchEvent, previous: bool) -> Event {
    let r#type = if event.deleted { EventType::Delete } else { EventType::Put };
    let prev_kv = event.previous.clone().filter(|_| previous).map(convert::key_value);
    Event { r#type: r#type.into(), kv: Some(convert::key_value(event.kv.clone())), prev_kv }
}

/// Maximum number of responses that wait for the client. With more, the watches fall behind, which costs no memory.
const ANSWERS_MAX: usize = 16;
/// Bytes of a fragment.
const FRAGMENT_BYTES_MAX: usize = 3 << 19;
/// Memory of an event in addition to its encoded size.
const EVENT_BYTES: usize = size_of::<Event>();
const LOOK: Duration = Duration::from_secs(60);
const LOOK_PROGRESS: Duration = Duration::from_millis(5);
/// Time for which a stream looks this often. A watch may be behind for long, or start at a distant revision.
const LOOK_PROGRESS_MAX: Duration = Duration::from_secs(1);
/// Time between two attempts to send a due progress notification while a watch is behind.
const PROGRESS_RETRY: Duration = Duration::from_millis(100);
