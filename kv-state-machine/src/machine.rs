//! The store as a [`StateMachine`].

use std::{
    borrow::Cow,
    io::Read,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use consensus_core::{
    ClusterId, Entry, FlushWork, LogId, NodeId, Payload, Snapshot, StateMachine, StateMachineError,
    StorageError, codec,
};
use consensus_storage_rocksdb::Reserve;
use rocksdb::{DB, WriteBatch};

use crate::{
    Caller, KvAnswer, KvCommand, KvOperation, KvRejection, KvResult, KvStoreExecutor, REPLY_BYTES_MAX,
    SESSION_REPLY_BYTES_MAX, Session,
    alarm::Alarms,
    auth::AuthState,
    changes, check,
    collect::{self, Collector},
    execute::{ExecuteError, Execution, History, too_much_work},
    keys,
    lease::{self, Lease},
    lease_checks::LeaseChecks,
    limits::Amount,
    pending_writes::{PendingWrites, RangeDeletionWrite},
    range_deletions::{Deleter, RangeDeletions},
    recent::Newest,
    segments::{SEGMENT_KEYS_MAX, Segments},
    session::{SessionOutcome, Sessions},
    snapshot,
    state_check::StateChecker,
    store::{Generation, META_VERSION, Meta, Published, Store, Tuning},
    view::{Base, Failure, Overlay, View, write_unlogged},
};

/// A multi-version key-value store in a directory.
#[derive(Debug)]
pub struct KvStateMachine {
    store: Arc<Store>,
    durability: Durability,
    meta: Meta,
    segments: Segments,
    sessions: Sessions,
    alarms: Alarms,
    pub(crate) auth: AuthState,
    collector: Collector,
    deleter: Deleter,
    checker: StateChecker,
    reserve: Reserve,
}

/// State of a generation besides keys and values.
struct Loaded {
    published: Published,
    sessions: Sessions,
    alarms: Alarms,
    auth: AuthState,
    /// Revision up to which garbage was collected.
    collected: u64,
}

impl Loaded {
    fn of(generation: &Generation) -> Result<Self, Failure> {
        let db = generation.db();
        let (published, sessions) = (generation.published(), Sessions::load(db)?);
        let (alarms, auth) = (Alarms::load(db)?, AuthState::load(db)?);
        Ok(Self { published, sessions, alarms, auth, collected: collect::collected(db)? })
    }
}

/// Durability of a batch when `apply` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The batch is in memory; after a crash the engine's log replays it. For engines with a durable log.
    FromLog,
    /// The batch is on disk: each batch is synced. For engines without a log.
    EachBatch,
}

impl KvStateMachine {
    /// Opens the store of `node` in the directory `path`. Creates the directory if it does not exist.
    ///
    /// # Errors
    /// The directory belongs to another node or is in use, or its content cannot be read.
    pub fn open(path: &Path, node: NodeId, durability: Durability) -> Result<Self, StorageError> {
        Self::open_with_cache(path, node, durability, CACHE_BYTES)
    }

    /// Same as [`open`](Self::open), with at most `cache_bytes` of the tables on disk in memory; [`open`](Self::open) keeps
    /// 128 MiB. Reads of data that is not in memory take longer.
    ///
    /// # Errors
    /// See [`open`](Self::open).
    pub fn open_with_cache(
        path: &Path,
        node: NodeId,
        durability: Durability,
        cache_bytes: usize,
    ) -> Result<Self, StorageError> {
        let tuning = Tuning {
            recent_max: RECENT_MAX,
            segment_keys_max: SEGMENT_KEYS_MAX,
            deletions_max: DELETIONS_MAX,
            deletion_part: DELETION_PART,
            cache_bytes,
        };
        Self::open_with(path, node, durability, tuning)
    }

    /// Same as [`open`](Self::open) with other sizes.
    pub(crate) fn open_with(
        path: &Path,
        node: NodeId,
        durability: Durability,
        tuning: Tuning,
    ) -> Result<Self, StorageError> {
        let store = Arc::new(Store::open(path, node, tuning)?);
        let reserve = Reserve::new(store.path(), 0);
        let position = path.display().to_string();
        let unreadable =
            |error: Failure| StorageError::Corrupt { position: position.clone(), why: error.to_string() };
        let loaded = Loaded::of(&store.current()).map_err(unreadable)?;
        let Published { meta, segments, .. } = loaded.published.clone();
        let mut machine = Self {
            store,
            durability,
            meta,
            segments,
            sessions: Sessions::default(),
            alarms: Alarms::default(),
            auth: AuthState::default(),
            collector: Collector::default(),
            deleter: Deleter::default(),
            checker: StateChecker::default(),
            reserve,
        };
        machine.adopt(loaded);
        Ok(machine)
    }

    /// Refuses to restore a snapshot that would leave less than `bytes` free on the disk. The deletion of a large range
    /// waits while there is less than half of that. Default: no reserve.
    #[must_use]
    pub fn with_reserve(mut self, bytes: u64) -> Self {
        self.reserve = Reserve::new(self.store.path(), bytes);
        self.store.set_reserve_bytes(bytes);
        self
    }

    /// Adopts the state of the current generation.
    fn adopt(&mut self, loaded: Loaded) {
        (self.meta, self.segments) = (loaded.published.meta, loaded.published.segments);
        if !loaded.published.deletions.is_empty() {
            self.deleter.start(&self.store);
        }
        (self.sessions, self.alarms, self.auth) = (loaded.sessions, loaded.alarms, loaded.auth);
        if loaded.collected < self.meta.compacted {
            self.collector.start(self.store.current(), self.store.dispatcher().clone(), self.meta.compacted);
        }
    }

    pub(crate) fn is_collected(&self) -> bool {
        let collected = collect::collected(self.store.current().db());
        collected.is_ok_and(|collected| collected >= self.meta.compacted)
    }

    /// Identity of the cluster whose entries the store has applied; [`ClusterId::NONE`] for a new store and for one without
    /// consensus.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.meta.cluster
    }

    /// Returns a handle for reads.
    #[must_use]
    pub fn executor(&self) -> KvStoreExecutor {
        KvStoreExecutor::new(self.store.clone())
    }

    /// Executes entries in order until they have done as much work as one write to the disk should contain.
    fn execute(&mut self, generation: &Generation, entries: &[Entry]) -> Result<Executed, Failure> {
        let db = generation.db();
        let base = Base::new(generation);
        let deletions_max = self.store.tuning().deletions_max;
        let Self { meta, segments, sessions, alarms, auth, .. } = self;
        let mut batch = Batch {
            db,
            base,
            written: PendingWrites::default(),
            meta,
            segments,
            deletions: generation.deletions(),
            deletions_max,
            sessions,
            alarms,
            auth,
            lease_checks: LeaseChecks::unbounded(),
            work_bytes: 0,
        };
        let (mut responses, mut response_bytes) = (Vec::with_capacity(entries.len()), 0);
        for entry in entries {
            responses.push(match &entry.payload {
                Payload::Command(bytes) => batch.command(entry.id, bytes)?,
                Payload::Membership(membership) => {
                    batch.meta.cluster = membership.cluster();
                    Bytes::new()
                }
                _ => Bytes::new(),
            });
            batch.meta.applied = entry.id;
            response_bytes += responses.last().map_or(0, Bytes::len);
            // Changes after a deletion of a range must not be in one record with changes before it, nor in the state that
            // is checked.
            let is_full = batch.written.range_deletion.is_some()
                || batch.written.checks_state
                || batch.written.versions.len() >= BATCH_RECORDS_MAX
                || batch.work_bytes >= BATCH_BYTES_MAX
                || response_bytes >= RESPONSES_BYTES_MAX;
            if is_full {
                break;
            }
        }
        Ok((batch.written, responses))
    }

    fn commit(&mut self, generation: &Generation, written: &PendingWrites) -> Result<(), Failure> {
        self.commit_with(generation, written, self.durability == Durability::FromLog)
    }

    /// `flushes_users`: changes of users are durable before they are served.
    fn commit_with(
        &mut self,
        generation: &Generation,
        written: &PendingWrites,
        flushes_users: bool,
    ) -> Result<(), Failure> {
        let overlay = &written.versions;
        let bytes = overlay.iter().map(|(place, record)| place.len() + record.len() + WRITE_OVERHEAD).sum();
        let mut write = WriteBatch::with_capacity_bytes(bytes);
        for (place, record) in overlay {
            write.put(place, record);
        }
        changes::write(&written.changes, &mut write);
        lease::write(written, &mut write);
        written.alarms.iter().for_each(|alarms| alarms.write(&mut write));
        let auth_changed = self.auth.write(&mut write);
        self.sessions.write(&mut write);
        write.put(keys::META, codec::encode(META_VERSION, &self.meta));
        let _exclusive = generation.exclusive_for_batch();
        let full_segments = self.write_counts(generation, written, &mut write);
        let written_bytes = write.size_in_bytes() as u64;
        self.write(generation, write)?;
        for (place, record) in overlay {
            if let Some((prefix, revision)) = keys::prefix_and_revision(place) {
                generation.recent().note(prefix, Newest { revision, counts: keys::counts(record)? });
            }
        }
        // The order matters: a read at this batch's revision must not find an older version in the cache of newest
        // versions.
        generation.leases().publish(written);
        written.alarms.iter().for_each(|alarms| generation.alarms().publish(alarms.clone()));
        if auth_changed {
            // A node that restarts without the others must not serve what it has by permissions that were taken away.
            if flushes_users {
                self.flush_when_possible(generation)?;
            }
            self.store.auth().publish(self.auth.clone());
        }
        generation.add_written_bytes(written_bytes);
        let deletion = written.range_deletion.as_ref().map(|write| write.deletion.clone());
        generation.publish(self.meta, self.segments.clone(), deletion);
        if !full_segments.is_empty() {
            self.split_segments(generation, &full_segments)?;
        }
        self.store.dispatcher().batch_written();
        Ok(())
    }

    /// Makes all writes durable, as soon as that is possible. The batch is in the store already, so it cannot be refused; the engine
    /// sees an apply that takes long.
    fn flush_when_possible(&self, generation: &Generation) -> Result<(), Failure> {
        let mut failures = 0_u64;
        loop {
            match generation.flush() {
                Err(Failure::Io(error)) => {
                    if failures == 0 {
                        tracing::warn!(%error, "cannot make a change of users durable; nothing is applied until it is");
                    }
                    failures += 1;
                    self.store.set_waits_for_disk(true);
                    std::thread::sleep(FLUSH_RETRY);
                }
                Ok(()) if failures > 0 => {
                    self.store.set_waits_for_disk(false);
                    tracing::info!(failures, "a change of users is durable; commands are applied again");
                    return Ok(());
                }
                other => return other,
            }
        }
    }

    /// Adds the counts of segments, and a deletion of a range, to a RocksDB write. Returns the starts of the segments
    /// that have too many keys.
    fn write_counts(
        &mut self,
        generation: &Generation,
        written: &PendingWrites,
        write: &mut WriteBatch,
    ) -> Vec<Bytes> {
        let Some(RangeDeletionWrite { deletion, places, in_parts }) = &written.range_deletion else {
            if let Some(recount) = generation.take_recount() {
                self.segments.recount(&recount, write);
            }
            return self.segments.change(&written.counts, write);
        };
        // The segments are those that the deletion was counted with.
        let full_segments = self.segments.change(&written.counts, write);
        deletion.write(write);
        self.segments.remove_living(places, *in_parts, write);
        full_segments
    }

    pub(crate) fn current_generation(&self) -> Arc<Generation> {
        self.store.current()
    }

    /// Writes versions and leases of another store, up to a revision.
    pub(crate) fn commit_imported(&mut self, written: &PendingWrites, revision: u64) -> Result<(), Failure> {
        self.meta.revision = revision;
        let generation = self.store.current();
        self.commit_with(&generation, written, false)
    }

    /// Changes the metadata of the store apart from a batch of commands, and writes changes of users and roles.
    pub(crate) fn rewrite_meta(&mut self, change: impl FnOnce(&mut Meta)) -> Result<(), Failure> {
        change(&mut self.meta);
        let generation = self.store.current();
        let mut write = WriteBatch::default();
        write.put(keys::META, codec::encode(META_VERSION, &self.meta));
        let auth_changed = self.auth.write(&mut write);
        self.write(&generation, write)?;
        if auth_changed {
            self.store.auth().publish(self.auth.clone());
        }
        generation.publish(self.meta, self.segments.clone(), None);
        Ok(())
    }

    fn write(&self, generation: &Generation, write: WriteBatch) -> Result<(), Failure> {
        match self.durability {
            Durability::FromLog => write_unlogged(generation.db(), write),
            Durability::EachBatch => Ok(generation.db().write_synced(write)?),
        }
    }

    /// Splits segments that have too many keys, or corrects their count.
    fn split_segments(&mut self, generation: &Generation, starts: &[Bytes]) -> Result<(), Failure> {
        let (mut write, deletions) = (WriteBatch::default(), generation.deletions());
        for start in starts {
            let (base, nothing) = (Base::new(generation), Overlay::new());
            let view = View { source: &base, overlay: &nothing, deletions: &deletions };
            let keys = view.stored_keys(self.segments.places(start))?;
            self.segments.split(start, &keys, &mut write);
        }
        self.write(generation, write)?;
        generation.publish(self.meta, self.segments.clone(), None);
        Ok(())
    }
}

/// Writes of a batch, and the responses to its entries.
type Executed = (PendingWrites, Vec<Bytes>);

/// A batch in progress.
struct Batch<'a> {
    db: &'a DB,
    base: Base<'a>,
    written: PendingWrites,
    meta: &'a mut Meta,
    /// Segments before the batch.
    segments: &'a Segments,
    deletions: RangeDeletions,
    deletions_max: u64,
    sessions: &'a mut Sessions,
    alarms: &'a mut Alarms,
    auth: &'a mut AuthState,
    lease_checks: LeaseChecks,
    /// Bytes read and written so far.
    work_bytes: u64,
}

impl Batch<'_> {
    /// Executes one command. Returns the encoded response.
    fn command(&mut self, id: LogId, bytes: &[u8]) -> Result<Bytes, Failure> {
        let command: KvCommand = codec::decode("command", COMMAND_VERSION, bytes)?;
        let identity = identity(&command, bytes);
        let KvCommand { session, operation, caller } = command;
        let checked = match check::command(session.as_ref(), &operation) {
            Ok(()) if self.auth.is_enabled() => self.check_permission(&caller, &operation)?,
            checked => checked,
        };
        let outcome = match (checked, session) {
            (Err(rejection), _) => SessionOutcome::Refused(rejection),
            (Ok(()), Some(Session { client_id, .. })) if !self.may_use_session(&caller, client_id) => {
                SessionOutcome::Refused(KvRejection::NoSession { client_id })
            }
            (Ok(()), Some(session)) => self.sessions.admit(self.db, session, id.index.0, &identity)?,
            (Ok(()), None) => SessionOutcome::Execute,
        };
        let response = match outcome {
            SessionOutcome::Repeated(response) => return Ok(response),
            SessionOutcome::Refused(rejection) => {
                return Ok(codec::encode(ANSWER_VERSION, &Err::<KvAnswer, _>(rejection)).into());
            }
            SessionOutcome::Execute => self.execute(id, &caller, &operation, session.is_some())?,
        };
        let response = Bytes::from(codec::encode(ANSWER_VERSION, &response));
        if let Some(session) = session {
            self.sessions.record(session, id.index.0, &identity, response.clone());
        }
        Ok(response)
    }

    fn execute(
        &mut self,
        id: LogId,
        caller: &Caller,
        operation: &KvOperation,
        in_session: bool,
    ) -> Result<Result<KvAnswer, KvRejection>, Failure> {
        let result = match operation {
            KvOperation::OpenSession { sessions_max } => {
                self.meta.last_client_id += 1;
                let owner = if self.auth.is_enabled() { caller.name() } else { None };
                self.sessions.open(self.meta.last_client_id, id.index.0, *sessions_max, owner);
                KvResult::OpenSession(self.meta.last_client_id)
            }
            KvOperation::ExpireLeases { ids, term } => {
                if *term == id.term.0 {
                    self.expire(ids)?;
                }
                KvResult::Lease
            }
            KvOperation::CheckpointLeases { remaining, term } => {
                if *term == id.term.0 {
                    remaining.iter().for_each(|(lease, left)| self.checkpoint(*lease, *left));
                }
                KvResult::Lease
            }
            KvOperation::ReserveMemberIds { through, more } => {
                let last = self.meta.last_member_id.max(*through).saturating_add(*more);
                if *more > 0 && last > MEMBER_ID_MAX {
                    let why =
                        format!("no member id is left: {last} would exceed the maximum {MEMBER_ID_MAX}");
                    return Ok(Err(KvRejection::invalid(why)));
                }
                self.meta.last_member_id = last;
                KvResult::MemberId(last)
            }
            KvOperation::RaiseAlarm(alarm) => {
                self.alarms.raise(*alarm);
                self.written.alarms = Some(self.alarms.clone());
                KvResult::Alarm(true)
            }
            KvOperation::DisarmAlarm(alarm) => {
                let was_raised = self.alarms.disarm(*alarm);
                self.written.alarms = Some(self.alarms.clone());
                KvResult::Alarm(was_raised)
            }
            KvOperation::CheckState => {
                self.written.checks_state = true;
                KvResult::CheckState
            }
            KvOperation::Auth(change) => match self.auth.execute(change) {
                Ok(()) => KvResult::Auth,
                Err(rejection) => return Ok(Err(rejection.into())),
            },
            operation => {
                if let Some(rejection) = self.alarms.refusal(operation) {
                    return Ok(Err(rejection));
                }
                self.written.transactions += u64::from(matches!(operation, KvOperation::Txn(_)));
                match self.execute_on_keys(operation, in_session)? {
                    Ok(result) => result,
                    Err(rejection) => return Ok(Err(rejection)),
                }
            }
        };
        let (applied_index, term) = (id.index.0, id.term.0);
        Ok(Ok(KvAnswer { revision: self.meta.revision, applied_index, term, result }))
    }

    /// Whether a session is that of a caller. A user of another session could use up its sequence numbers, and guess the
    /// last command to get the response.
    fn may_use_session(&self, caller: &Caller, client_id: u64) -> bool {
        let is_checked = self.auth.is_enabled() && *caller != Caller::Server;
        !is_checked || self.sessions.owner(client_id) == caller.name()
    }

    /// Checks the permissions of a caller in the state to which the command is applied.
    fn check_permission(
        &self,
        caller: &Caller,
        operation: &KvOperation,
    ) -> Result<Result<(), KvRejection>, Failure> {
        let view = View { source: &self.base, overlay: &self.written.versions, deletions: &self.deletions };
        let checked = self.auth.check_operation(caller, operation, &|lease, keys| {
            self.lease_checks.are_attached_keys_in(&view, lease, keys, &self.written.attached)
        })?;
        Ok(checked.map_err(KvRejection::from))
    }

    fn execute_on_keys(
        &mut self,
        operation: &KvOperation,
        in_session: bool,
    ) -> Result<Result<KvResult, KvRejection>, Failure> {
        let room = if in_session { SESSION_REPLY_BYTES_MAX } else { REPLY_BYTES_MAX };
        Ok(self.execute_within(operation, room, Amount::OF_COMMANDS)?.0)
    }

    /// Executes an operation within a bound of work. Returns the result, and the amount of work.
    fn execute_within(
        &mut self,
        operation: &KvOperation,
        room: usize,
        bound: Amount,
    ) -> Result<(Result<KvResult, KvRejection>, Amount), Failure> {
        let history = History { revision: self.meta.revision, compacted: self.meta.compacted };
        let execution = Execution::new(&self.base, &mut self.written, history, room, bound)
            .with_deletions(self.deletions.clone())
            .deletes_ranges(self.segments, self.deletions_max);
        let (outcome, work) = execution.run_counted(operation);
        self.work_bytes += work.bytes;
        match outcome {
            Ok((result, after)) => {
                (self.meta.revision, self.meta.compacted) = (after.revision, after.compacted);
                Ok((Ok(result), work))
            }
            Err(ExecuteError::Rejected(rejection)) => Ok((Err(rejection), work)),
            // The leader checked this before it proposed the command, but keys may have been added since.
            Err(ExecuteError::TooMuchWork | ExecuteError::TooMuchGarbage | ExecuteError::Cancelled) => {
                Ok((Err(too_much_work(operation)), work))
            }
            Err(ExecuteError::Failed(failure)) => Err(failure),
        }
    }

    /// Expires leases that have not ended already. All together delete as many keys as one command may; the leader
    /// proposes again what is left.
    fn expire(&mut self, ids: &[i64]) -> Result<(), Failure> {
        let mut left = Amount::OF_COMMANDS;
        for id in ids {
            let revoke = KvOperation::RevokeLease { id: *id };
            let (result, work) = self.execute_within(&revoke, REPLY_BYTES_MAX, left)?;
            match result {
                // The rest of its keys is deleted by a later command.
                Ok(KvResult::LeaseEnding) | Err(KvRejection::NoLease { .. }) => {}
                Ok(_) => self.written.expired += 1,
                Err(rejection) => {
                    let why = format!("lease {id} cannot be expired: {rejection}");
                    return Err(StateMachineError::Other(why));
                }
            }
            left.keys = left.keys.saturating_sub(work.keys);
            left.bytes = left.bytes.saturating_sub(work.bytes);
            if left.keys == 0 || left.bytes <= Amount::OF_COMMANDS.bytes / 2 {
                break;
            }
        }
        Ok(())
    }

    fn checkpoint(&mut self, id: i64, remaining: Option<u64>) {
        if let Some(lease) = self.written.lease(&self.base, id).filter(|lease| !lease.is_ending) {
            self.written.leases.insert(id, Some(Lease { remaining, ..lease }));
        }
    }
}

/// The bytes by which a session knows a repetition: the command without the revision at which its caller was admitted.
fn identity<'a>(command: &KvCommand, bytes: &'a [u8]) -> Cow<'a, [u8]> {
    match (&command.session, &command.caller) {
        (Some(_), Caller::User(admission)) => {
            let caller = Caller::user(&admission.user, 0);
            Cow::Owned(codec::encode(COMMAND_VERSION, &KvCommand { caller, ..command.clone() }))
        }
        _ => Cow::Borrowed(bytes),
    }
}

impl Drop for KvStateMachine {
    fn drop(&mut self) {
        self.checker.stop();
        self.deleter.stop();
        self.collector.stop();
        self.store.dispatcher().stop();
    }
}

impl StateMachine for KvStateMachine {
    fn applied(&self) -> LogId {
        self.meta.applied
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        let generation = self.store.current();
        let compacted = self.meta.compacted;
        let (mut responses, mut response_bytes) = (Vec::with_capacity(entries.len()), 0);
        while responses.len() < entries.len() && response_bytes < RESPONSES_BYTES_MAX {
            let (written, more) = self.execute(&generation, &entries[responses.len()..])?;
            let start = Instant::now();
            self.commit(&generation, &written)?;
            self.store.measures().batch_written(&written, more.len(), start.elapsed());
            if written.checks_state {
                self.checker.start(&self.store);
            }
            response_bytes += more.iter().map(Bytes::len).sum::<usize>();
            responses.extend(more);
        }
        if !generation.deletions().is_empty() {
            self.deleter.start(&self.store);
        }
        if self.meta.compacted > compacted {
            self.collector.start(generation, self.store.dispatcher().clone(), self.meta.compacted);
        }
        Ok(responses)
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        if self.durability == Durability::FromLog {
            self.store.current().flush()?;
        }
        Ok(self.meta.applied)
    }

    /// A restore creates another generation. A flush of the old generation is then useless, but harmless.
    fn flush_in_background(&mut self) -> Option<FlushWork> {
        let (generation, applied) = (self.store.current(), self.meta.applied);
        let flush = move || {
            generation.flush()?;
            Ok(applied)
        };
        (self.durability == Durability::FromLog).then(|| Box::new(flush) as FlushWork)
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        snapshot::take(&self.store)
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        // Before the switch nothing is changed.
        let generation = snapshot::receive_generation(&self.store, stream, &self.reserve)?;
        let loaded = Loaded::of(&generation).inspect_err(|_| generation.discard())?;
        // First, so that no reader sees the new state by old permissions.
        self.store.auth().publish(loaded.auth.clone());
        self.store.switch(generation).inspect_err(|_| self.store.auth().publish(self.auth.clone()))?;
        self.deleter.stop();
        self.collector.stop();
        self.adopt(loaded);
        self.store.dispatcher().batch_written();
        Ok(())
    }
}

const FLUSH_RETRY: Duration = Duration::from_millis(500);
/// Greatest id of a member. etcd's clients see the id with a tag in the bytes above.
const MEMBER_ID_MAX: u64 = (1 << 48) - 1;
/// Format of commands in the log. It may change without another number until the first release; from then on, each change
/// needs one, so that a program of another version refuses a log that it would misread. A second format must distinguish a repetition in the other format from another
/// request (`Sessions::admit`).
pub(crate) const COMMAND_VERSION: u8 = 1;
/// Format of the responses to commands.
pub(crate) const ANSWER_VERSION: u8 = 1;
/// Maximum number of records in one write to the disk, and maximum bytes that its commands read and wrote. The last
/// command may exceed them by its own limits.
const BATCH_RECORDS_MAX: usize = 20_000;
const BATCH_BYTES_MAX: u64 = 64 << 20;
/// Maximum bytes of responses in memory. The remaining entries are applied by another call. When the log is replayed
/// after a start, no client waits for the responses.
const RESPONSES_BYTES_MAX: usize = 16 << 20;
/// Number of keys above which a range is deleted by one record first. Other commands wait while keys are deleted one by
/// one.
const DELETIONS_MAX: u64 = 1000;
/// Number of keys of such a range that are deleted in one write. Batches wait for it: a few milliseconds.
const DELETION_PART: u64 = 512;
/// Bytes of tables in memory, by default.
const CACHE_BYTES: usize = 128 << 20;
/// Approximate bytes of each record in a write in addition to place and content: kind and lengths.
const WRITE_OVERHEAD: usize = 8;
/// Number of keys in the cache of newest versions: 48 MiB with the longest keys that are cached, 24 MiB with keys of 16
/// bytes.
const RECENT_MAX: usize = 1 << 18;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Delete, Put, Range, Txn};

    const TUNING: Tuning = Tuning {
        recent_max: 64,
        segment_keys_max: 4,
        deletions_max: 1,
        deletion_part: 8,
        cache_bytes: 1 << 20,
    };

    fn entry(index: u64, operation: KvOperation) -> Entry {
        let command = KvCommand::new(None, operation);
        Entry::command(LogId::new(1, index), codec::encode(COMMAND_VERSION, &command))
    }

    fn put(key: &'static str) -> KvOperation {
        KvOperation::Put(Put { key: key.into(), lease_id: 7, ..Put::default() })
    }

    #[test]
    fn key_that_is_put_again_while_its_range_is_deleted_stays_attached_to_its_lease() {
        let dir = tempfile::tempdir().unwrap();
        let mut machine =
            KvStateMachine::open_with(dir.path(), NodeId(1), Durability::FromLog, TUNING).unwrap();
        let hold = |machine: &KvStateMachine, hold| {
            machine.store.are_deletions_held().store(hold, std::sync::atomic::Ordering::Relaxed);
        };
        hold(&machine, true);
        let delete = Delete { key: "a".into(), range_end: Some("z".into()), ..Delete::default() };
        let operations =
            [KvOperation::GrantLease { id: 7, ttl: 9 }, put("a"), put("b"), KvOperation::Delete(delete)];
        machine
            .apply(&(1..).zip(operations).map(|(index, one)| entry(index, one)).collect::<Vec<_>>())
            .unwrap();
        // The deletion is carried out between the execution of the put and its write.
        let generation = machine.store.current();
        let (written, _) = machine.execute(&generation, &[entry(5, put("a"))]).unwrap();
        hold(&machine, false);
        while !generation.published().deletions.is_empty() {
            std::thread::yield_now();
        }
        machine.commit(&generation, &written).unwrap();
        let (base, nothing, none) = (Base::new(&generation), Overlay::new(), RangeDeletions::default());
        let view = View { source: &base, overlay: &nothing, deletions: &none };
        assert_eq!(view.attached_keys(7, usize::MAX).unwrap(), ["a"]);
    }

    #[test]
    fn command_of_another_version_is_refused_with_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        let mut machine =
            KvStateMachine::open_with(dir.path(), NodeId(1), Durability::FromLog, TUNING).unwrap();
        let mut bytes = codec::encode(COMMAND_VERSION, &KvCommand::new(None, put("a")));
        bytes[0] = COMMAND_VERSION + 1;
        let refused = machine.apply(&[Entry::command(LogId::new(1, 1), bytes)]).unwrap_err();
        let text = "command has format version 2, this program reads version 1";
        assert!(refused.to_string().contains(text), "{refused}");
    }

    #[test]
    fn keys_that_are_garbage_do_not_count_as_work_but_have_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let mut machine =
            KvStateMachine::open_with(dir.path(), NodeId(1), Durability::FromLog, TUNING).unwrap();
        let keys = ["a", "b", "c", "d"];
        let put = |key: &'static str| KvOperation::Put(Put { key: key.into(), ..Put::default() });
        let delete = |key: &'static str| KvOperation::Delete(Delete { key: key.into(), ..Delete::default() });
        let operations = keys.map(put).into_iter().chain(keys.map(delete));
        machine
            .apply(&(1..).zip(operations).map(|(index, one)| entry(index, one)).collect::<Vec<_>>())
            .unwrap();
        let generation = machine.store.current();
        let (base, revision) = (Base::new(&generation), machine.meta.revision);
        let range = Range { key: "a".into(), range_end: Some("z".into()), ..Range::default() };
        let txn = KvOperation::Txn(Txn { success: vec![KvOperation::Range(range)], ..Txn::default() });
        let run = |compacted: u64, garbage_max: u64| {
            let (mut nothing, history) = (PendingWrites::default(), History { revision, compacted });
            let execution = Execution::new(&base, &mut nothing, history, 1000, Amount::OF_COMMANDS);
            let (result, work) = execution.with_garbage_max(garbage_max).run_counted(&txn);
            (result.map(|_| ()), work.keys)
        };
        assert!(matches!(run(0, 0), (Ok(()), 4)), "nothing is compacted");
        assert!(matches!(run(revision, 4), (Ok(()), 0)));
        assert!(matches!(run(revision, 3), (Err(ExecuteError::TooMuchGarbage), 0)));
    }
}
