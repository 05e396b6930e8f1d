//! Notes of the calls of clients: for the audit log, and for the warnings about slow requests.
//!
//! Each protocol starts a [`CallRecord`] where it counts the call, and the code that serves the call adds what it knows by the functions
//! `note_*` and [`timed`]. They find the record of the call that the current task serves, and do nothing without one: nobody passes
//! it on. A record is written when it ends, or when it is dropped because the client is gone.
//!
//! `audit` writes the file, `line` renders a line of it, `notes` collects keys and stages, `slow` warns, `watch` records the watches of a
//! stream, which end apart from their call.

mod audit;
mod escape;
mod line;
mod methods;
mod notes;
mod slow;
mod watch;

use std::{
    cell::RefCell,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use kv_state_machine::{Caller, KeyRange, KvOperation};

pub(crate) use self::{
    audit::AuditError,
    methods::DOWNLOAD,
    notes::Stage,
    watch::{WatchLog, WatchRecord},
};
use self::{audit::AuditLog, methods::Traits, notes::Notes, slow::SlowRequests};
use crate::{
    between::{FromNode, MemberRequest, NodeRequest},
    config::{Audit, Metrics},
    routing::Request,
};

/// Where records go. Cheap to clone; by default nothing is recorded.
#[derive(Clone, Default)]
pub(crate) struct CallLog(Option<Arc<Outputs>>);

/// The outputs of the records.
struct Outputs {
    audit: Option<AuditLog>,
    slow: Option<SlowRequests>,
}

/// Protocol of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Framed Thrift.
    Thrift,
    /// etcd's API over gRPC.
    Grpc,
    /// etcd's API as JSON, and downloads.
    Http,
}

/// CallOrigin of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallOrigin {
    /// Address of the client.
    pub(crate) peer: SocketAddr,
    pub(crate) protocol: Protocol,
}

/// A call that has not ended. Dropping it records the call as cancelled.
pub(crate) struct CallRecord {
    outputs: Arc<Outputs>,
    origin: CallOrigin,
    method: String,
    traits: Traits,
    start: Instant,
    notes: Notes,
    /// `ok`, or the code of the error; `None` until the call has ended.
    result: Option<&'static str>,
    /// Whether it is not written if it succeeds, because others are written in its place.
    is_silent: bool,
}

impl CallLog {
    /// Opens the outputs that the settings name.
    ///
    /// # Errors
    /// The file of the audit log cannot be written.
    pub(crate) fn open(audit: &Audit, metrics: &Metrics) -> Result<Self, AuditError> {
        let slow = SlowRequests::new(metrics.slow_request_limit);
        let audit = audit.audit_log.as_ref().map(|path| AuditLog::open(path, audit)).transpose()?;
        if audit.is_none() && slow.is_none() {
            return Ok(Self(None));
        }
        Ok(Self(Some(Arc::new(Outputs { audit, slow }))))
    }

    /// Starts the record of a call; `None` if nobody wants it.
    pub(crate) fn start(&self, origin: CallOrigin, method: &str) -> Option<Box<CallRecord>> {
        let outputs = self.0.as_ref()?;
        let method = method.trim_start_matches('/');
        let traits = Traits::of(method);
        if traits.is_left_out {
            return None;
        }
        Some(Box::new(CallRecord {
            outputs: outputs.clone(),
            origin,
            method: escape::shortened(method, METHOD_BYTES_MAX).to_owned(),
            traits,
            start: Instant::now(),
            notes: Notes::default(),
            result: None,
            is_silent: false,
        }))
    }

    /// Writes what waits, within [`FLUSH_MAX`].
    pub(crate) async fn flush(&self) {
        let Some(outputs) = self.0.clone() else { return };
        let flushed = tokio::task::spawn_blocking(move || {
            if let Some(slow) = &outputs.slow {
                slow.tell_omitted();
            }
            if let Some(audit) = &outputs.audit {
                audit.flush();
            }
        });
        if tokio::time::timeout(FLUSH_MAX, flushed).await.is_err() {
            tracing::warn!("the last lines of the audit log were not written in time");
        }
    }

    /// Tells each second how many slow requests were not logged, until `stop` says so.
    pub(crate) async fn tell_omitted(self, mut stop: tokio::sync::watch::Receiver<bool>) {
        let Some(slow) = self.0.as_ref().and_then(|outputs| outputs.slow.as_ref()) else { return };
        while tokio::time::timeout(slow::WINDOW, crate::frontend::stopped(&mut stop)).await.is_err() {
            slow.tell_omitted();
        }
    }
}

impl CallRecord {
    /// Whether the call has one response.
    pub(crate) fn is_unary(&self) -> bool {
        self.traits.is_unary
    }

    /// Ends the call with `ok` or the code of its error.
    pub(crate) fn end(mut self: Box<Self>, result: &'static str) {
        self.result = Some(result);
    }

    /// Notes the revision of a response.
    pub(crate) fn note_revision(&mut self, revision: Option<u64>) {
        self.notes.revision = revision.or(self.notes.revision);
    }

    pub(crate) fn note_sizes(&mut self, request_bytes: Option<usize>, response_bytes: usize) {
        self.notes.request_bytes = request_bytes.or(self.notes.request_bytes);
        self.notes.response_bytes = Some(response_bytes);
    }

    /// Notes that another node received the call from its client.
    pub(crate) fn note_forwarded(&mut self) {
        self.notes.is_forwarded = true;
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        let (result, duration) = (self.result.unwrap_or(CANCELLED), self.start.elapsed());
        if let Some(slow) = &self.outputs.slow
            && duration >= slow.limit()
            && !self.traits.waits
        {
            slow.warn(self, result, duration);
        }
        let Some(audit) = &self.outputs.audit else { return };
        let is_read = self.notes.is_read.unwrap_or(self.traits.is_read);
        let is_ok = result == OK;
        if (is_ok && self.is_silent) || (is_ok && is_read && !audit.has_reads()) {
            return;
        }
        audit.write(line::of_call(self, result, SystemTime::now(), duration));
    }
}

tokio::task_local! {
    static CURRENT: RefCell<Option<Box<CallRecord>>>;
}

/// Serves a call whose notes go to `record`, and returns the record with the outcome.
pub(crate) async fn recorded<T>(
    record: Option<Box<CallRecord>>,
    call: impl Future<Output = T>,
) -> (T, Option<Box<CallRecord>>) {
    if record.is_none() {
        return (call.await, None);
    }
    let served = async {
        let outcome = call.await;
        (outcome, CURRENT.with(|current| current.borrow_mut().take()))
    };
    CURRENT.scope(RefCell::new(record), served).await
}

/// Changes the record of the current call, if there is one.
fn note(change: impl FnOnce(&mut CallRecord)) {
    let _ = CURRENT.try_with(|current| {
        if let Ok(mut current) = current.try_borrow_mut()
            && let Some(record) = current.as_mut()
        {
            change(record);
        }
    });
}

/// Notes the caller.
pub(crate) fn note_caller(caller: &Caller) {
    if let Some(name) = caller.name() {
        note(|record| record.notes.user = Some(name.to_owned()));
    }
}

/// Notes the name of a login, which counts as the user if the login succeeds.
pub(crate) fn note_login(name: &str) {
    note(|record| record.notes.login = Some(escape::shortened(name, NAME_BYTES_MAX).to_owned()));
}

/// Notes the revision of a response.
pub(crate) fn note_revision(revision: u64) {
    if revision > 0 {
        note(|record| record.notes.revision = Some(revision));
    }
}

/// Notes the size of a response in bytes.
pub(crate) fn note_response_bytes(bytes: impl FnOnce() -> usize) {
    note(|record| record.notes.response_bytes = Some(bytes()));
}

pub(crate) fn note_keys(keys: &KeyRange) {
    note(|record| record.notes.keys.add(keys.key.clone(), keys.range_end.clone()));
}

pub(crate) fn note_operation(operation: &KvOperation) {
    note(|record| record.notes.add_operation(operation));
}

/// Notes what is known of a request over Thrift.
pub(crate) fn note_request(request: &Request) {
    match request {
        Request::Operation { operation, .. } => note_operation(operation),
        Request::KeepAlive { id } | Request::TimeToLive { id, .. } => note_lease(*id),
        Request::ChangeMembers(changes) => note(|record| {
            let nodes = changes.iter().take(notes::MEMBERS_MAX).map(|change| change.node_id.cast_unsigned());
            record.notes.subject.members.extend(nodes);
        }),
        Request::TransferLeader(to) => {
            note(|record| record.notes.subject.members.extend(to.map(|node| node.0)));
        }
        Request::OfNode(request) => note_forwarded(request),
        Request::ListLeases { .. } | Request::Alarms | Request::DisarmAlarm(_) => {}
    }
}

/// Notes a request that another node sends, with the client that it names.
fn note_forwarded(FromNode { caller, request }: &FromNode) {
    note(|record| {
        record.note_forwarded();
        record.method = methods::of_node_request(request).to_owned();
        record.traits = Traits::of(&record.method);
    });
    note_caller(caller);
    note_node_request(request);
}

/// Notes the name of a call that another node passes on.
pub(crate) fn note_forwarded_method(name: &str) {
    note(|record| {
        record.method = escape::shortened(name, METHOD_BYTES_MAX).to_owned();
        record.traits = Traits::of(&record.method);
    });
}

/// Notes a request that is executed by the leader.
pub(crate) fn note_node_request(request: &NodeRequest) {
    match request {
        NodeRequest::Execute(operation) => note_operation(operation),
        NodeRequest::KeepAlive { id } | NodeRequest::TimeToLive { id } => note_lease(*id),
        NodeRequest::Member(request) => note(|record| {
            record.notes.subject.members.extend(match request {
                MemberRequest::Add { .. } => None,
                MemberRequest::Promote(node) | MemberRequest::Remove(node) => Some(node.0),
                MemberRequest::Move { node, .. } => Some(node.0),
                MemberRequest::Publish(own) => Some(own.node.0),
            });
        }),
        NodeRequest::Call(_) | NodeRequest::ReportState(_) => {}
    }
}

fn note_lease(id: i64) {
    note(|record| record.notes.subject.lease = Some(id));
}

/// Measures a stage of the current call.
pub(crate) async fn timed<T>(stage: Stage, work: impl Future<Output = T>) -> T {
    let is_noted = CURRENT.try_with(|current| current.try_borrow().is_ok_and(|current| current.is_some()));
    if !is_noted.unwrap_or(false) {
        return work.await;
    }
    let start = Instant::now();
    let done = work.await;
    let duration = start.elapsed();
    note(|record| record.notes.stages.add(stage, duration));
    done
}

/// Result of a call that succeeded.
pub(crate) const OK: &str = "ok";
/// Result of a call whose client is gone.
const CANCELLED: &str = "Canceled";
/// Maximum bytes of the name of a method: a client may send any.
const METHOD_BYTES_MAX: usize = 128;
/// Maximum bytes of the name of a user.
const NAME_BYTES_MAX: usize = 256;
/// Maximum time for the last lines at the end of the program.
const FLUSH_MAX: Duration = Duration::from_secs(2);
