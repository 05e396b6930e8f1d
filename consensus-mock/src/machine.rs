//! The state machine and its thread.
//!
//! A single command may be applied on the caller's task
//! ([`with_inline_apply`](crate::MockConsensusEngine::with_inline_apply)): waking a thread and being woken by it takes as long as
//! the sync of a fast disk. Concurrent commands wait for the thread, which applies them in one batch.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use consensus_core::{
    Committed, EngineStatus, Entry, Health, LogId, LogIndex, Membership, NodeId, Payload, ProposeError, Role,
    StateMachine, StateMachineError, Term, apply_all,
};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::{oneshot, watch},
};

use crate::stall::StallWatch;

/// Receiver of the result of a proposal.
pub(crate) type Reply = oneshot::Sender<ProposeResult>;
type ProposeResult = Result<Committed, ProposeError>;

/// Queue of the jobs for the thread.
#[derive(Clone, Debug)]
pub(crate) struct Jobs {
    queue: mpsc::Sender<Job>,
    waiting: Arc<AtomicU64>,
    worker: Arc<Mutex<Worker>>,
    stall: Arc<StallWatch>,
}

#[derive(Debug)]
enum Job {
    /// Applies a command at the next position (single node).
    Command(Bytes, Reply),
    /// Applies a replicated entry.
    Entry(Entry, Option<Reply>),
    Stop,
}

impl Jobs {
    /// Applies `command` on this thread, if no other command is pending, the last batch was quick, and other tasks have another
    /// thread. Otherwise returns the command.
    pub(crate) fn apply_inline(&self, command: Bytes) -> Result<ProposeResult, Bytes> {
        let Some(mut worker) = self.lock_if_free().filter(|_| others_can_run()) else { return Err(command) };
        let (reply, mut result) = oneshot::channel();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        worker.apply(vec![Job::Command(command, reply)]);
        Ok(result.try_recv().unwrap_or(Err(ProposeError::Unknown { why: "it was not applied" })))
    }

    fn lock_if_free(&self) -> Option<MutexGuard<'_, Worker>> {
        let worker = self.worker.try_lock().ok()?;
        let is_free = self.waiting.load(Ordering::Relaxed) == 0 && worker.last_duration < INLINE_MAX;
        (is_free && worker.machine.is_some()).then_some(worker)
    }

    /// Queues a command. Returns `Ok(false)` if the thread has ended.
    pub(crate) fn propose(&self, command: Bytes, reply: Reply, max: u64) -> Result<bool, ProposeError> {
        let in_flight = self.waiting.fetch_add(1, Ordering::Relaxed);
        if in_flight >= max {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(ProposeError::Overloaded { in_flight, in_flight_bytes: 0 });
        }
        Ok(self.queue.send(Job::Command(command, reply)).is_ok())
    }

    /// Sets the time after which the status shows that the machine does not respond.
    pub(crate) fn set_stall_limit(&self, limit: Duration) {
        self.stall.set_limit(limit);
    }

    pub(crate) fn apply(&self, entry: Entry, reply: Option<Reply>) {
        let _ = self.queue.send(Job::Entry(entry, reply)); // If the thread has ended, the status says why.
    }
}

/// The thread and its queue. Dropping it waits for the thread. Otherwise the thread could still use files of the machine that
/// the caller opens again, and a process that exits could be aborted by a library in use.
#[derive(Debug)]
pub(crate) struct MachineThread {
    jobs: Jobs,
    thread: Option<JoinHandle<()>>,
}

impl MachineThread {
    pub(crate) fn spawn(
        node_id: NodeId,
        machine: Box<dyn StateMachine>,
        role: Role,
        leader: Option<NodeId>,
    ) -> std::io::Result<(Self, watch::Receiver<Arc<EngineStatus>>)> {
        let (queue, jobs) = mpsc::channel();
        let waiting = Arc::new(AtomicU64::new(0));
        let applied = machine.applied();
        let status = watch::channel(Arc::new(EngineStatus {
            node_id,
            health: Health::Running,
            storage: consensus_core::StorageId::default(),
            no_room: None,
            storage_stalled_since: None,
            apply_stalled_since: None,
            snapshot_blocked: None,
            snapshot_errors: std::collections::BTreeMap::new(),
            role,
            term: TERM,
            leader,
            last_log: applied,
            first_index: applied.index.next(),
            commit: applied.index,
            applied: applied.index,
            membership: Arc::new(Membership::of_voters([node_id.0])),
            peers: std::collections::BTreeMap::new(),
        }));
        let stall = Arc::new(StallWatch::spawn(status.0.clone())?);
        let worker = Arc::new(Mutex::new(Worker {
            machine: Some(machine),
            applied,
            waiting: waiting.clone(),
            stall: stall.clone(),
            status: status.0,
            last_duration: Duration::ZERO,
        }));
        let shared = worker.clone();
        let thread =
            std::thread::Builder::new().name("mock-apply".to_owned()).spawn(move || run(&shared, &jobs))?;
        Ok((Self { jobs: Jobs { queue, waiting, worker, stall }, thread: Some(thread) }, status.1))
    }

    pub(crate) fn jobs(&self) -> Jobs {
        self.jobs.clone()
    }
}

impl Drop for MachineThread {
    /// Applies the pending commands, flushes the machine and ends the thread.
    fn drop(&mut self) {
        let _ = self.jobs.queue.send(Job::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // A panic of the machine was reported in the status.
        }
    }
}

struct Worker {
    /// `None` after a failure and at the end.
    machine: Option<Box<dyn StateMachine>>,
    applied: LogId,
    /// Number of queued commands.
    waiting: Arc<AtomicU64>,
    stall: Arc<StallWatch>,
    status: watch::Sender<Arc<EngineStatus>>,
    /// Duration of the last batch.
    last_duration: Duration,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("applied", &self.applied).finish_non_exhaustive()
    }
}

fn run(worker: &Mutex<Worker>, jobs: &mpsc::Receiver<Job>) {
    let lock = || worker.lock().unwrap_or_else(PoisonError::into_inner);
    while let Ok(first) = jobs.recv() {
        let mut worker: MutexGuard<'_, Worker> = lock();
        // All queued commands go into one batch: for a machine that syncs each batch, this is group commit.
        let batch: Vec<Job> = std::iter::once(first).chain(jobs.try_iter().take(BATCH_MAX - 1)).collect();
        let stop = batch.iter().any(|job| matches!(job, Job::Stop));
        worker.apply(batch);
        if stop || worker.machine.is_none() {
            break;
        }
    }
    lock().end();
}

impl Worker {
    fn end(&mut self) {
        let Some(mut machine) = self.machine.take() else { return };
        let flushed = machine.flush();
        // The status changes last, because its watchers may open the machine's files again.
        drop(machine);
        self.set_health(flushed.map_or_else(|error| Health::Fatal(error.to_string()), |_| Health::ShutDown));
    }

    fn set_health(&self, health: Health) {
        self.status.send_modify(|status| Arc::make_mut(status).health = health);
    }

    fn apply(&mut self, batch: Vec<Job>) {
        let Some(machine) = &mut self.machine else { return };
        let start = Instant::now();
        let mut entries = Vec::with_capacity(batch.len());
        let mut replies = Vec::with_capacity(batch.len());
        let mut last = self.applied;
        for job in batch {
            let (entry, reply) = match job {
                Job::Command(command, reply) => {
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    let id = LogId { term: TERM, index: last.index.next() };
                    (Entry { id, payload: Payload::Command(command) }, Some(reply))
                }
                Job::Entry(entry, reply) => (entry, reply),
                Job::Stop => continue,
            };
            last = entry.id;
            entries.push(entry);
            replies.push(reply);
        }
        self.stall.begin(start);
        let result = catch_unwind(AssertUnwindSafe(|| apply_all(&mut **machine, &entries)));
        self.stall.end(&self.status);
        let result =
            result.unwrap_or_else(|_| Err(StateMachineError::Other("the state machine panicked".to_owned())));
        let results: Vec<ProposeResult> = match &result {
            Ok(responses) => {
                let committed = |(entry, response): (&Entry, &Bytes)| Committed {
                    log_id: entry.id,
                    response: response.clone(),
                };
                entries.iter().zip(responses).map(committed).map(Ok).collect()
            }
            Err(error) => {
                entries.iter().map(|_| Err(ProposeError::Fatal { why: error.to_string() })).collect()
            }
        };
        if result.is_ok() {
            self.applied = last;
            self.publish(last);
        }
        for (reply, result) in replies.into_iter().zip(results) {
            if let Some(reply) = reply {
                let _ = reply.send(result);
            }
        }
        self.last_duration = start.elapsed();
        if let Err(error) = result {
            self.machine = None;
            self.set_health(Health::Fatal(error.to_string()));
        }
    }

    fn publish(&self, last: LogId) {
        self.status.send_modify(|status| {
            let status = Arc::make_mut(status);
            status.last_log = last;
            status.commit = last.index;
            status.applied = last.index;
            status.first_index = LogIndex(last.index.0 + 1);
        });
    }
}

/// Whether this task may block its thread for a moment, because the runtime has other threads.
fn others_can_run() -> bool {
    Handle::try_current().is_ok_and(|runtime| {
        runtime.runtime_flavor() == RuntimeFlavor::MultiThread && runtime.metrics().num_workers() > 1
    })
}

/// After a batch that took longer, commands are left to the thread.
const INLINE_MAX: Duration = Duration::from_millis(1);
/// The only term.
pub(crate) const TERM: Term = Term(1);
/// Most commands applied in one batch.
const BATCH_MAX: usize = 4096;
