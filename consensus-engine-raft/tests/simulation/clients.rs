//! Clients: each repeats a request until it knows the outcome, and records its results.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use consensus_core::{ConsensusEngine, ProposeError, ReadConsistency, session::Session};
use consensus_raft_simulator::{Command, KEYS, Random};
use consensus_testkit::linearizability::{Operation, Register};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{
    cluster::{FOREVER, Node, World},
    machine,
    plan::ELECTION_TIMEOUT,
};

struct Client {
    world: Arc<World>,
    id: u64,
    random: Random,
    /// Session, opened when first needed.
    session: Option<Session>,
    /// Number of commands so far.
    values: u64,
    /// Last value seen in each register.
    seen: [u64; KEYS],
}

/// Outcome of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Done(Option<u64>),
    /// This attempt was certainly not applied.
    NotApplied,
    /// This attempt was certainly not applied, and the session is closed.
    NoSession,
    Unknown,
}

/// Runs operations one after the other until the end.
pub(crate) async fn run(world: Arc<World>, id: u64) {
    let random = Random::new(world.plan.seed, 100 + id);
    let mut client = Client { world, id, random, session: None, values: 0, seen: [0; KEYS] };
    while !client.world.over.load(Ordering::Relaxed) {
        client.pause(60).await;
        client.operation().await;
    }
}

impl Client {
    async fn pause(&mut self, most_ms: u64) {
        sleep(Duration::from_millis(1 + self.random.below(most_ms))).await;
    }

    async fn operation(&mut self) {
        let Some(session) = self.next_number().await else { return };
        let key = self.random.below(KEYS as u64) as u8;
        self.values += 1;
        // Every write has a different value, so a read shows which write it saw.
        let value = 1 + (self.id << 32) + self.values;
        let call = match self.random.below(100) {
            percent if percent < self.world.plan.reads_percent => Register::Read,
            percent if percent < 80 => Register::Write(value),
            _ => Register::CompareAndSet(self.seen[key as usize], value),
        };
        let now = self.world.now_ms();
        let began = self.world.record().moment(now);
        let consistency = match self.random.below(10) {
            0 | 1 => ReadConsistency::StaleWithin(STALE),
            percent if percent < 6 => ReadConsistency::Lease,
            _ => ReadConsistency::Linearizable,
        };
        let (mut answer, mut certain) = (None, true);
        for _ in 0..TRIES {
            match self.attempt(session, key, call, consistency).await {
                Answer::Done(value) => {
                    answer = Some(value);
                    break;
                }
                Answer::NotApplied => self.pause(60).await,
                Answer::NoSession => {
                    self.session = None;
                    break;
                }
                Answer::Unknown => {
                    certain = false;
                    self.pause(10).await;
                }
            }
        }
        let now = self.world.now_ms();
        let mut record = self.world.record();
        let ended = answer.map(|value| (record.moment(now), value));
        // A read that may be stale counts as if it had started that much earlier; a leader that was replaced may not have
        // noticed yet.
        let stale = call == Register::Read && matches!(consistency, ReadConsistency::StaleWithin(_));
        let under_way = self.world.plan.link.latency.1 + self.world.plan.latency.unwrap_or_default();
        let latest = now.saturating_sub((STALE + ELECTION_TIMEOUT + under_way).as_millis() as u64 + 1);
        let began = if stale { began.min(record.moment_at(latest)) } else { began };
        self.seen[key as usize] = answer.flatten().unwrap_or(self.seen[key as usize]);
        // For the explanation of a failure: 0, 1 and 2 hundreds mean linearizable, lease and stale reads.
        let kind = match consistency {
            _ if call != Register::Read => 0,
            ReadConsistency::Lease => 1,
            ReadConsistency::StaleWithin(_) => 2,
            _ => 0,
        };
        // An operation that certainly had no effect is not part of the history: no read may see it.
        if ended.is_some() || (!certain && call != Register::Read) {
            record.history[key as usize].push(Operation { client: self.id + 100 * kind, call, began, ended });
        }
        if stale && ended.is_some() {
            record.count("stale read");
        }
        record.count(if ended.is_some() { "operation" } else { "operation abandoned" });
    }

    /// Next number of the session; opens a new session if there is none or it was idle for long.
    async fn next_number(&mut self) -> Option<Session> {
        if self.random.percent(4) {
            self.pause(3_000).await;
        }
        if self.random.percent(3) {
            self.session = None;
        }
        if self.session.is_none() {
            self.session = self.open_session().await;
        }
        let session = self.session.as_mut()?;
        session.sequence += 1;
        Some(*session)
    }

    async fn open_session(&mut self) -> Option<Session> {
        let node = self.choose_node()?;
        let command = machine::open_session(self.world.plan.sessions_max);
        let opened = self.world.completes("a session", node.engine.propose(command)).await?;
        match machine::answer(&opened.ok()?.response) {
            Some(machine::Answer::Opened(client_id)) => {
                self.world.record().count("session opened");
                Some(Session { client_id, sequence: 0 })
            }
            other => {
                self.world.record().fail(format!("the response to the opening of a session is {other:?}"));
                None
            }
        }
    }

    /// Asks a node, and waits as long as it has time_limit; the answer is recorded whenever it comes.
    async fn attempt(
        &mut self,
        session: Session,
        key: u8,
        call: Register,
        consistency: ReadConsistency,
    ) -> Answer {
        let Some(node) = self.choose_node() else { return Answer::NotApplied };
        let (world, id) = (self.world.clone(), self.id);
        let attempt = {
            let mut record = world.record();
            record.attempts += 1;
            record.attempts
        };
        let command = Command { session, attempt, key, call };
        let leaves = self.random.percent(5).then(|| Duration::from_millis(self.random.below(30)));
        let (told, answer) = oneshot::channel();
        tokio::spawn(async move {
            let answer = if call == Register::Read {
                read(&world, &node, key, consistency).await
            } else {
                let proposal = propose(&world, &node, &command);
                // Some clients do not wait for the result.
                timeout(leaves.unwrap_or(2 * FOREVER), proposal).await.unwrap_or(Answer::Unknown)
            };
            let (now, mut record) = (world.now_ms(), world.record());
            let (kind, value) = match answer {
                Answer::Done(value) => (0, value.unwrap_or(0)),
                Answer::NotApplied => (1, 0),
                Answer::Unknown => (2, 0),
                Answer::NoSession => (3, 0),
            };
            record.note(&[now, id, attempt, node.id, kind, value]);
            let _ = told.send(answer);
        });
        let time_limit = self.world.plan.time_limit;
        timeout(time_limit, answer).await.map_or(Answer::Unknown, |answer| answer.unwrap_or(Answer::Unknown))
    }

    /// A node that reports to be leader, or any node.
    fn choose_node(&mut self) -> Option<Node> {
        let leader = if self.random.percent(60) { self.world.leader() } else { None };
        let nodes = self.world.nodes();
        leader.or_else(|| nodes.get(self.random.below(nodes.len() as u64) as usize).cloned())
    }
}

async fn propose(world: &World, node: &Node, command: &Command) -> Answer {
    let what = format!("attempt {} on node {}", command.attempt, node.id);
    match world.completes(&what, node.engine.propose(machine::call(command))).await {
        Some(Ok(committed)) => answered(world, &committed.response),
        Some(Err(error)) if !error.maybe_applied() => {
            let mut record = world.record();
            record.not_applied(command.attempt, &error.to_string());
            record.count(match error {
                ProposeError::Overloaded { .. } => "refused: overload",
                ProposeError::NoRoom { .. } => "refused: no room",
                ProposeError::TransferringLeadership { .. } => "refused: transferring leadership",
                _ => "refused: other",
            });
            Answer::NotApplied
        }
        Some(Err(_)) => {
            world.record().count("unknown outcome");
            Answer::Unknown
        }
        None => Answer::Unknown,
    }
}

fn answered(world: &World, response: &Bytes) -> Answer {
    match machine::answer(response) {
        Some(machine::Answer::Response(response)) => {
            Answer::Done(response[..].try_into().map(u64::from_le_bytes).ok())
        }
        Some(machine::Answer::Refused(_)) => {
            world.record().count("refused: session is closed");
            Answer::NoSession
        }
        other => {
            world.record().fail(format!("the response to a call is {other:?}"));
            Answer::Unknown
        }
    }
}

async fn read(world: &World, node: &Node, key: u8, consistency: ReadConsistency) -> Answer {
    match world.completes("a read", node.engine.read_barrier(consistency)).await {
        Some(Ok(_)) => Answer::Done(Some(node.view.lock().unwrap().registers[key as usize])),
        _ => Answer::NotApplied,
    }
}

/// Reads all keys on every node at the end.
pub(crate) async fn read_everything(world: &World) -> Result<(), String> {
    for node in world.members() {
        for key in 0..KEYS as u8 {
            let began = world.record().moment(world.now_ms());
            let mut value = Answer::NotApplied;
            for _ in 0..TRIES {
                value = read(world, &node, key, ReadConsistency::Linearizable).await;
                if value != Answer::NotApplied {
                    break;
                }
                sleep(Duration::from_millis(500)).await;
            }
            let Answer::Done(value) = value else {
                let told: Vec<_> = world.nodes().iter().map(Node::status).collect();
                return Err(format!(
                    "node {} does not serve reads long after the last fault\n{told:#?}",
                    node.id
                ));
            };
            let mut record = world.record();
            let ended = Some((record.moment(world.now_ms()), value));
            let read = Operation { client: 1000 + node.id, call: Register::Read, began, ended };
            record.history[key as usize].push(read);
        }
    }
    Ok(())
}

/// Maximum age of stale reads.
const STALE: Duration = Duration::from_millis(300);
/// Attempts before a client abandons an operation.
const TRIES: u64 = 6;
