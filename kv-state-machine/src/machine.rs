//! The store as a [`StateMachine`].

use std::{io::Read, path::Path, sync::Arc};

use bytes::Bytes;
use consensus_core::{
    Entry, FlushWork, LogId, NodeId, Payload, Snapshot, StateMachine, StateMachineError, StorageError, codec,
};
use consensus_storage_rocksdb::Reserve;
use rocksdb::{DB, WriteBatch, WriteOptions};

use crate::{
    KvAnswer, KvCommand, KvOperation, KvRejection, KvResult, KvStoreExecutor, REPLY_BYTES_MAX,
    SESSION_REPLY_BYTES_MAX,
    alarm::Alarms,
    changes, check,
    collect::{self, Collector},
    execute::{Execution, Halt, History, too_much},
    keys,
    lease::{self, Lease},
    limits::Amount,
    recent::Newest,
    session::{Sessions, Verdict},
    snapshot,
    store::{Generation, META_VERSION, Meta, Store},
    view::{Base, Failure, disk},
    written::Written,
};

/// A multi-version key-value store in a directory.
#[derive(Debug)]
pub struct KvStateMachine {
    store: Arc<Store>,
    durability: Durability,
    meta: Meta,
    sessions: Sessions,
    alarms: Alarms,
    collector: Collector,
    reserve: Reserve,
}

/// What a generation holds besides keys and values.
struct Loaded {
    meta: Meta,
    sessions: Sessions,
    alarms: Alarms,
    /// The compaction whose garbage is gone.
    collected: u64,
}

impl Loaded {
    fn of(generation: &Generation) -> Result<Self, Failure> {
        let db = generation.db();
        let (meta, sessions) = (generation.meta(), Sessions::load(db)?);
        Ok(Self { meta, sessions, alarms: Alarms::load(db)?, collected: collect::collected(db)? })
    }
}

/// What a batch is when `apply` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// In memory: the engine's log brings back what a crash takes. For engines with a durable log.
    FromLog,
    /// On disk: each batch is synced. For engines without a log.
    EachBatch,
}

impl KvStateMachine {
    /// Opens the store of `node` in the directory `path`, making it if it is not there.
    ///
    /// # Errors
    /// The directory is another's or in use, or what lies there cannot be read.
    pub fn open(path: &Path, node: NodeId, durability: Durability) -> Result<Self, StorageError> {
        Self::open_with(path, node, durability, RECENT_MAX)
    }

    /// With so many keys in memory; no answer depends on it.
    pub(crate) fn open_with(
        path: &Path,
        node: NodeId,
        durability: Durability,
        recent_max: usize,
    ) -> Result<Self, StorageError> {
        let store = Arc::new(Store::open(path, node, recent_max)?);
        let reserve = Reserve::new(store.path(), 0);
        let position = path.display().to_string();
        let unreadable =
            |error: Failure| StorageError::Corrupt { position: position.clone(), why: error.to_string() };
        let loaded = Loaded::of(&store.current()).map_err(unreadable)?;
        let mut machine = Self {
            store,
            durability,
            meta: Meta::default(),
            sessions: Sessions::default(),
            alarms: Alarms::default(),
            collector: Collector::default(),
            reserve,
        };
        machine.take_over(loaded);
        Ok(machine)
    }

    /// Has snapshots refused that would leave less than `bytes` of room on the disk while they are restored. Default: none.
    #[must_use]
    pub fn with_reserve(mut self, bytes: u64) -> Self {
        self.reserve = Reserve::new(self.store.path(), bytes);
        self
    }

    /// Takes over what the current generation holds.
    fn take_over(&mut self, loaded: Loaded) {
        (self.meta, self.sessions, self.alarms) = (loaded.meta, loaded.sessions, loaded.alarms);
        if loaded.collected < self.meta.compacted {
            self.collector.start(self.store.current(), self.store.hub().clone(), self.meta.compacted);
        }
    }

    pub(crate) fn is_collected(&self) -> bool {
        let collected = collect::collected(self.store.current().db());
        collected.is_ok_and(|collected| collected >= self.meta.compacted)
    }

    /// A handle for reads.
    #[must_use]
    pub fn executor(&self) -> KvStoreExecutor {
        KvStoreExecutor::new(self.store.clone())
    }

    /// Executes entries from the first on, until they have done as much as one write to the disk should hold.
    fn execute(&mut self, generation: &Generation, entries: &[Entry]) -> Result<Executed, Failure> {
        let db = generation.db();
        let base = Base::new(generation);
        let Self { meta, sessions, alarms, .. } = self;
        let mut batch =
            Batch { db, base, written: Written::default(), meta, sessions, alarms, work_bytes: 0 };
        let (mut responses, mut response_bytes) = (Vec::with_capacity(entries.len()), 0);
        for entry in entries {
            responses.push(match &entry.payload {
                Payload::Command(bytes) => batch.command(entry.id, bytes)?,
                _ => Bytes::new(),
            });
            batch.meta.applied = entry.id;
            response_bytes += responses.last().map_or(0, Bytes::len);
            let is_full = batch.written.versions.len() >= BATCH_RECORDS_MAX
                || batch.work_bytes >= BATCH_BYTES_MAX
                || response_bytes >= RESPONSES_BYTES_MAX;
            if is_full {
                break;
            }
        }
        Ok((batch.written, responses))
    }

    fn commit(&mut self, generation: &Generation, written: &Written) -> Result<(), Failure> {
        let (db, overlay) = (generation.db(), &written.versions);
        let bytes = overlay.iter().map(|(place, record)| place.len() + record.len() + WRITE_OVERHEAD).sum();
        let mut write = WriteBatch::with_capacity_bytes(bytes);
        for (place, record) in overlay {
            write.put(place, record);
        }
        changes::write(&written.changes, &mut write);
        lease::write(written, &mut write);
        written.alarms.iter().for_each(|alarms| alarms.write(&mut write));
        self.sessions.write(&mut write);
        write.put(keys::META, codec::encode(META_VERSION, &self.meta));
        let written_bytes = write.size_in_bytes() as u64;
        match self.durability {
            Durability::FromLog => {
                let mut options = WriteOptions::default();
                options.disable_wal(true);
                db.write_opt(write, &options).map_err(disk)?;
            }
            Durability::EachBatch => db.write_synced(write)?,
        }
        for (place, record) in overlay {
            if let Some((prefix, revision)) = keys::prefix_and_revision(place) {
                generation.recent().note(prefix, Newest { revision, counts: keys::counts(record)? });
            }
        }
        // Only now: who reads as of this batch must not find an older version noted as the newest.
        generation.leases().publish(written);
        written.alarms.iter().for_each(|alarms| generation.alarms().publish(alarms.clone()));
        generation.note_written(written_bytes);
        generation.publish(self.meta);
        self.store.hub().batch_written();
        Ok(())
    }
}

/// What a batch writes, and what it answers.
type Executed = (Written, Vec<Bytes>);

/// A batch in hand.
struct Batch<'a> {
    db: &'a DB,
    base: Base<'a>,
    written: Written,
    meta: &'a mut Meta,
    sessions: &'a mut Sessions,
    alarms: &'a mut Alarms,
    /// Bytes read and written so far.
    work_bytes: u64,
}

impl Batch<'_> {
    /// Executes one command. Returns the encoded answer.
    fn command(&mut self, id: LogId, bytes: &[u8]) -> Result<Bytes, Failure> {
        let command: KvCommand = codec::decode("command", COMMAND_VERSION, bytes)?;
        let KvCommand { session, operation } = command;
        let verdict = match (check::command(session.as_ref(), &operation), session) {
            (Err(rejection), _) => Verdict::Refused(rejection),
            (Ok(()), Some(session)) => self.sessions.take(self.db, session, id.index.0, bytes)?,
            (Ok(()), None) => Verdict::Execute,
        };
        let answer = match verdict {
            Verdict::Answered(answer) => return Ok(answer),
            Verdict::Refused(rejection) => {
                return Ok(codec::encode(ANSWER_VERSION, &Err::<KvAnswer, _>(rejection)).into());
            }
            Verdict::Execute => self.execute(id, &operation, session.is_some())?,
        };
        let answer = Bytes::from(codec::encode(ANSWER_VERSION, &answer));
        if let Some(session) = session {
            self.sessions.record(session, id.index.0, bytes, answer.clone());
        }
        Ok(answer)
    }

    fn execute(
        &mut self,
        id: LogId,
        operation: &KvOperation,
        in_session: bool,
    ) -> Result<Result<KvAnswer, KvRejection>, Failure> {
        let result = match operation {
            KvOperation::OpenSession { sessions_max } => {
                self.meta.last_client_id += 1;
                self.sessions.open(self.meta.last_client_id, id.index.0, *sessions_max);
                KvResult::OpenSession(self.meta.last_client_id)
            }
            KvOperation::ExpireLeases { ids, term } => {
                if *term == id.term.0 {
                    ids.iter().try_for_each(|lease| self.expire(*lease))?;
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
                        format!("no id above {last} is left for a member; the last one is {MEMBER_ID_MAX}");
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
            operation => {
                if let Some(rejection) = self.alarms.refusal(operation) {
                    return Ok(Err(rejection));
                }
                match self.execute_on_keys(operation, in_session)? {
                    Ok(result) => result,
                    Err(rejection) => return Ok(Err(rejection)),
                }
            }
        };
        let (applied_index, term) = (id.index.0, id.term.0);
        Ok(Ok(KvAnswer { revision: self.meta.revision, applied_index, term, result }))
    }

    fn execute_on_keys(
        &mut self,
        operation: &KvOperation,
        in_session: bool,
    ) -> Result<Result<KvResult, KvRejection>, Failure> {
        let history = History { revision: self.meta.revision, compacted: self.meta.compacted };
        let room = if in_session { SESSION_REPLY_BYTES_MAX } else { REPLY_BYTES_MAX };
        let execution = Execution::new(&self.base, &mut self.written, history, room, Amount::OF_COMMANDS);
        let (outcome, work) = execution.run_counted(operation);
        self.work_bytes += work.bytes;
        match outcome {
            Ok((result, after)) => {
                (self.meta.revision, self.meta.compacted) = (after.revision, after.compacted);
                Ok(Ok(result))
            }
            Err(Halt::Rejected(rejection)) => Ok(Err(rejection)),
            // Looked for before it was proposed, too; but keys may have come since.
            Err(Halt::TooMuch | Halt::Abandoned) => Ok(Err(too_much(operation))),
            Err(Halt::Failed(failure)) => Err(failure),
        }
    }

    /// Ends a lease, unless it is gone already.
    fn expire(&mut self, id: i64) -> Result<(), Failure> {
        match self.execute_on_keys(&KvOperation::RevokeLease { id }, false)? {
            Ok(_) | Err(KvRejection::NoLease { .. }) => Ok(()),
            Err(rejection) => {
                Err(StateMachineError::Other(format!("lease {id} cannot be ended: {rejection}")))
            }
        }
    }

    fn checkpoint(&mut self, id: i64, remaining: Option<u64>) {
        if let Some(lease) = self.written.lease(&self.base, id) {
            self.written.leases.insert(id, Some(Lease { remaining, ..lease }));
        }
    }
}

impl Drop for KvStateMachine {
    fn drop(&mut self) {
        self.collector.stop();
        self.store.hub().stop();
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
            self.commit(&generation, &written)?;
            response_bytes += more.iter().map(Bytes::len).sum::<usize>();
            responses.extend(more);
        }
        if self.meta.compacted > compacted {
            self.collector.start(generation, self.store.hub().clone(), self.meta.compacted);
        }
        Ok(responses)
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        if self.durability == Durability::FromLog {
            self.store.current().db().flush_synced()?;
        }
        Ok(self.meta.applied)
    }

    /// A restore makes another generation: what is flushed then of this one is of no use, and does no harm.
    fn flush_in_background(&mut self) -> Option<FlushWork> {
        let (generation, applied) = (self.store.current(), self.meta.applied);
        let flush = move || {
            generation.db().flush_synced()?;
            Ok(applied)
        };
        (self.durability == Durability::FromLog).then(|| Box::new(flush) as FlushWork)
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        snapshot::take(&self.store)
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        // Until the switch nothing has changed.
        let generation = snapshot::receive_generation(&self.store, stream, &self.reserve)?;
        let loaded = Loaded::of(&generation).inspect_err(|_| generation.discard())?;
        self.store.switch(generation)?;
        self.collector.stop();
        self.take_over(loaded);
        self.store.hub().batch_written();
        Ok(())
    }
}

/// Greatest id that is given to a member: etcd's clients are shown it with a tag in the bytes above.
const MEMBER_ID_MAX: u64 = (1 << 48) - 1;
/// Format of commands in the log. A second one must tell a repetition in the other format from another request
/// (`Sessions::take`).
pub(crate) const COMMAND_VERSION: u8 = 1;
/// Format of the answers to them.
pub(crate) const ANSWER_VERSION: u8 = 1;
/// Records that one write to the disk holds, and what it was made from; one command goes beyond by its own bounds at most.
const BATCH_RECORDS_MAX: usize = 20_000;
const BATCH_BYTES_MAX: u64 = 64 << 20;
/// Responses in memory at once; the rest is applied by another call. While a log is applied again at the start, nobody waits
/// for any of them.
const RESPONSES_BYTES_MAX: usize = 16 << 20;
/// Of each record in a write, about: kind and lengths.
const WRITE_OVERHEAD: usize = 8;
/// With the longest keys that are kept 48 MiB, with keys of 16 bytes 24.
const RECENT_MAX: usize = 1 << 18;
