//! The thread that owns the state machine.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use consensus_core::{
    Committed, EngineStatus, Entry, Health, LogId, LogIndex, Membership, NodeId, Payload, ProposeError, Role,
    StateMachine, StateMachineError, Term,
};
use tokio::sync::{oneshot, watch};

/// What a proposal is answered with.
pub(crate) type Reply = oneshot::Sender<ProposeReply>;
type ProposeReply = Result<Committed, ProposeError>;

/// The way to the thread.
#[derive(Clone, Debug)]
pub(crate) struct Jobs {
    queue: mpsc::Sender<Job>,
    waiting: Arc<AtomicU64>,
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

/// The thread and the way to it.
#[derive(Debug)]
pub(crate) struct MachineThread {
    jobs: Jobs,
    thread: JoinHandle<()>,
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
            no_room: None,
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
        let worker = Worker { machine, applied, waiting: waiting.clone(), status: status.0 };
        let thread =
            std::thread::Builder::new().name("mock-apply".to_owned()).spawn(move || worker.run(&jobs))?;
        Ok((Self { jobs: Jobs { queue, waiting }, thread }, status.1))
    }

    pub(crate) fn jobs(&self) -> Jobs {
        self.jobs.clone()
    }

    /// Applies what waits, flushes, ends.
    pub(crate) fn stop(self) {
        let _ = self.jobs.queue.send(Job::Stop);
        let _ = self.thread.join();
    }
}

struct Worker {
    machine: Box<dyn StateMachine>,
    applied: LogId,
    waiting: Arc<AtomicU64>,
    status: watch::Sender<Arc<EngineStatus>>,
}

impl Worker {
    fn run(mut self, jobs: &mpsc::Receiver<Job>) {
        let mut health = Health::ShutDown;
        let mut stop = false;
        while !stop {
            let Ok(first) = jobs.recv() else { break };
            // All that waits goes into one batch: with a machine that syncs each batch, this is group commit.
            let batch: Vec<Job> = std::iter::once(first).chain(jobs.try_iter().take(BATCH_MAX - 1)).collect();
            stop = batch.iter().any(|job| matches!(job, Job::Stop));
            if let Err(error) = self.apply(batch) {
                health = Health::Fatal(error.to_string());
                break;
            }
        }
        if health == Health::ShutDown
            && let Err(error) = self.machine.flush()
        {
            health = Health::Fatal(error.to_string());
        }
        self.status.send_modify(|status| Arc::make_mut(status).health = health);
    }

    fn apply(&mut self, batch: Vec<Job>) -> Result<(), StateMachineError> {
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
        let machine = &mut self.machine;
        let result = catch_unwind(AssertUnwindSafe(|| machine.apply(&entries)));
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
        result.map(|_| ())
    }

    fn publish(&self, last: LogId) {
        self.status.send_modify(|status| {
            let status = Arc::make_mut(status);
            (status.last_log, status.commit, status.applied) = (last, last.index, last.index);
            status.first_index = LogIndex(last.index.0 + 1);
        });
    }
}

/// The one term there is.
pub(crate) const TERM: Term = Term(1);
/// Commands applied in one call.
const BATCH_MAX: usize = 4096;
