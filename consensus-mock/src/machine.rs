//! The state machine and its thread.
//!
//! What comes alone may be applied on the caller's task ([`at_once`](crate::MockConsensusEngine::at_once)): waking a thread and
//! being woken by it takes as long as a fast disk's sync. What comes together waits for the thread, which makes one batch of it.

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

/// What a proposal is answered with.
pub(crate) type Reply = oneshot::Sender<ProposeReply>;
type ProposeReply = Result<Committed, ProposeError>;

/// The way to the thread.
#[derive(Clone, Debug)]
pub(crate) struct Jobs {
    queue: mpsc::Sender<Job>,
    waiting: Arc<AtomicU64>,
    worker: Arc<Mutex<Worker>>,
}

#[derive(Debug)]
enum Job {
    /// To be given the next position (single node).
    Next(Bytes, oneshot::Sender<ProposeReply>),
    /// With its position (replicated).
    At(Entry, Option<oneshot::Sender<ProposeReply>>),
    Stop,
}

impl Jobs {
    /// Applies `command` here, if nothing else is being applied or waits to be, it will not take long, and other tasks have
    /// another thread meanwhile. Otherwise gives the command back.
    pub(crate) fn propose_here(&self, command: Bytes) -> Result<ProposeReply, Bytes> {
        let Some(mut worker) = self.lock_if_free().filter(|_| others_can_run()) else { return Err(command) };
        let (reply, mut answer) = oneshot::channel();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        worker.apply(vec![Job::Next(command, reply)]);
        Ok(answer.try_recv().unwrap_or(Err(ProposeError::Unknown { why: "it was not applied" })))
    }

    fn lock_if_free(&self) -> Option<MutexGuard<'_, Worker>> {
        let worker = self.worker.try_lock().ok()?;
        let is_free = self.waiting.load(Ordering::Relaxed) == 0 && worker.took < HERE_MAX;
        (is_free && worker.machine.is_some()).then_some(worker)
    }

    /// `Ok(false)` if the thread has ended.
    pub(crate) fn propose(&self, command: Bytes, reply: Reply, max: u64) -> Result<bool, ProposeError> {
        let in_flight = self.waiting.fetch_add(1, Ordering::Relaxed);
        if in_flight >= max {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(ProposeError::Overloaded { in_flight, in_flight_bytes: 0 });
        }
        Ok(self.queue.send(Job::Next(command, reply)).is_ok())
    }

    pub(crate) fn apply(&self, entry: Entry, reply: Option<Reply>) {
        let _ = self.queue.send(Job::At(entry, reply)); // A thread that ended has told why in the status.
    }
}

/// The thread and the way to it. Dropping it waits for the thread: it may be using the machine's files, which the owner may open
/// again, and a process that ends meanwhile may be aborted by a library in use.
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
        let (machine, took) = (Some(machine), Duration::ZERO);
        let worker = Worker { machine, applied, waiting: waiting.clone(), status: status.0, took };
        let worker = Arc::new(Mutex::new(worker));
        let here = worker.clone();
        let thread =
            std::thread::Builder::new().name("mock-apply".to_owned()).spawn(move || run(&here, &jobs))?;
        Ok((Self { jobs: Jobs { queue, waiting, worker }, thread: Some(thread) }, status.1))
    }

    pub(crate) fn jobs(&self) -> Jobs {
        self.jobs.clone()
    }
}

impl Drop for MachineThread {
    /// Applies what waits, flushes, ends.
    fn drop(&mut self) {
        let _ = self.jobs.queue.send(Job::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // A panic was reported where it happened.
        }
    }
}

struct Worker {
    /// `None` when it failed, or was told to end.
    machine: Option<Box<dyn StateMachine>>,
    applied: LogId,
    waiting: Arc<AtomicU64>,
    status: watch::Sender<Arc<EngineStatus>>,
    /// How long the last batch took.
    took: Duration,
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
        // All that waits goes into one batch: with a machine that syncs each batch, this is group commit.
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
        // Whoever hears of the end may open the machine's files.
        drop(machine);
        self.set_health(flushed.map_or_else(|error| Health::Fatal(error.to_string()), |_| Health::ShutDown));
    }

    fn set_health(&self, health: Health) {
        self.status.send_modify(|status| Arc::make_mut(status).health = health);
    }

    fn apply(&mut self, batch: Vec<Job>) {
        let Some(machine) = &mut self.machine else { return };
        let began = Instant::now();
        let (mut entries, mut replies) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        let mut last = self.applied;
        for job in batch {
            let (entry, reply) = match job {
                Job::Next(command, reply) => {
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    let id = LogId { term: TERM, index: last.index.next() };
                    (Entry { id, payload: Payload::Command(command) }, Some(reply))
                }
                Job::At(entry, reply) => (entry, reply),
                Job::Stop => continue,
            };
            last = entry.id;
            entries.push(entry);
            replies.push(reply);
        }
        let result = catch_unwind(AssertUnwindSafe(|| apply_all(&mut **machine, &entries)));
        let result = result.unwrap_or_else(|_| Err(StateMachineError::Other("it panicked".to_owned())));
        let answers: Vec<ProposeReply> = match &result {
            Ok(responses) => {
                let answer = |(entry, response): (&Entry, &Bytes)| Committed {
                    log_id: entry.id,
                    response: response.clone(),
                };
                entries.iter().zip(responses).map(answer).map(Ok).collect()
            }
            Err(error) => {
                entries.iter().map(|_| Err(ProposeError::Fatal { why: error.to_string() })).collect()
            }
        };
        if result.is_ok() {
            self.applied = last;
            self.publish(last);
        }
        for (reply, answer) in replies.into_iter().zip(answers) {
            if let Some(reply) = reply {
                let _ = reply.send(answer);
            }
        }
        self.took = began.elapsed();
        if let Err(error) = result {
            self.machine = None;
            self.set_health(Health::Fatal(error.to_string()));
        }
    }

    fn publish(&self, last: LogId) {
        self.status.send_modify(|status| {
            let status = Arc::make_mut(status);
            (status.last_log, status.commit, status.applied) = (last, last.index, last.index);
            status.first_index = LogIndex(last.index.0 + 1);
        });
    }
}

/// Whether the thread of the task at hand may be blocked for a moment.
fn others_can_run() -> bool {
    Handle::try_current().is_ok_and(|runtime| {
        runtime.runtime_flavor() == RuntimeFlavor::MultiThread && runtime.metrics().num_workers() > 1
    })
}

/// What takes longer is left to the thread.
const HERE_MAX: Duration = Duration::from_millis(1);
/// The one term there is.
pub(crate) const TERM: Term = Term(1);
/// Commands applied in one call.
const BATCH_MAX: usize = 4096;
