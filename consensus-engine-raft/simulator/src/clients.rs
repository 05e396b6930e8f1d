//! Clients: each has one request in flight, repeats it until it knows the outcome, and records its results.

use bytes::Bytes;
use consensus_core::{NodeId, Role, session::Session};
use consensus_raft_protocol::Event;
use consensus_testkit::linearizability::{CheckResult, Operation, Register, check, explain};

use crate::{
    machine::{Command, KEYS},
    node::ClientRequest,
    random::Random,
    trace::What,
    world::{Due, MS, World},
};

/// A client.
#[derive(Debug)]
pub(crate) struct Client {
    id: u64,
    random: Random,
    sequence: u64,
    /// Node that the client asks first.
    node: u64,
    /// Whether the client stays with its node as long as possible, which reveals leaders that should have stepped down.
    loyal: bool,
    current: Option<Current>,
    pub(crate) history: Vec<(u8, Operation<Register, Option<u64>>)>,
}

/// A request without a result.
#[derive(Clone, Copy, Debug)]
struct Current {
    key: u8,
    call: Register,
    attempt: u64,
    tries: u64,
}

/// Result of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done(Option<u64>),
    /// This attempt was certainly not applied.
    NotApplied,
    Unknown,
}

impl Client {
    pub(crate) fn new(seed: u64, id: u64, nodes: u64) -> Self {
        let mut random = Random::new(seed, 100 + id);
        let (node, loyal) = (random.below(nodes), random.percent(40));
        Self { id, random, sequence: 0, node, loyal, current: None, history: Vec::new() }
    }
}

impl World {
    fn client(&mut self, id: u64) -> &mut Client {
        &mut self.clients[id as usize]
    }

    /// Starts a new request if the last one is done, and sends it to a node.
    pub(crate) fn ask(&mut self, id: u64) {
        if self.quiet {
            return self.schedule(100 * MS, Due::Ask(id));
        }
        let (now, reads, nodes) = (self.now, self.plan.reads, self.nodes.len() as u64);
        self.attempts += 1;
        let attempt = self.attempts;
        let client = self.client(id);
        let current = match client.current {
            Some(current) => Current { attempt, tries: current.tries + 1, ..current },
            None => {
                let key = client.random.below(KEYS as u64) as u8;
                client.sequence += 1;
                // Every write has a different value, so a read shows which write it saw.
                let value = 1 + (client.id << 32) + client.sequence;
                let known = client.history.iter().rev().find_map(|(at, operation)| match &operation.ended {
                    Some((_, Some(seen))) if *at == key => Some(*seen),
                    _ => None,
                });
                let call = if client.random.percent(reads) {
                    Register::Read
                } else if client.random.percent(30) {
                    Register::CompareAndSet(known.unwrap_or(0), value)
                } else {
                    Register::Write(value)
                };
                client.history.push((key, Operation { client: id, call, began: now, ended: None }));
                Current { key, call, attempt, tries: 0 }
            }
        };
        client.current = Some(current);
        if !client.loyal || current.tries % 4 == 3 {
            client.node = if client.random.percent(60) { u64::MAX } else { client.random.below(nodes) };
        }
        let sequence = client.sequence;
        let node = self.target(id);
        let asked = ClientRequest {
            client: id,
            operation: sequence,
            attempt,
            key: current.key,
            acknowledged: self.checks.acknowledged,
        };
        self.schedule(1500 * MS, Due::GiveUp { client: id, attempt });
        self.request(node, asked, current.call);
    }

    /// Chooses the node that a client asks: its usual one, or one that reports to be leader.
    fn target(&mut self, id: u64) -> NodeId {
        let node = self.client(id).node;
        if node != u64::MAX && !self.is_witness(NodeId(node)) {
            return NodeId(node);
        }
        let leads = |node: &&crate::node::Node| node.raft().is_some_and(|raft| raft.role() == Role::Leader);
        let leader = self
            .nodes
            .iter()
            .filter(leads)
            .max_by_key(|node| node.raft().map(consensus_raft_protocol::Raft::term));
        let found = leader.map_or(NodeId(self.nodes.len() as u64 - 1), |node| node.id);
        self.client(id).node = found.0;
        found
    }

    pub(crate) fn request(&mut self, node: NodeId, asked: ClientRequest, call: Register) {
        let now = self.now;
        let (lease, session) = (self.client(asked.client).random.percent(50), asked.operation);
        let paused_until = self.node(node).paused_until;
        let is_paused = paused_until > now;
        if is_paused && asked.attempt.is_multiple_of(2) {
            return self.schedule(paused_until - now, Due::Request(node, asked, call));
        }
        let Some(up) = self.node_mut(node).up.as_mut().filter(|_| !is_paused) else {
            return self.answer(asked, Answer::NotApplied);
        };
        if call == Register::Read {
            self.tokens += 1;
            let token = self.tokens;
            let Some(up) = &mut self.node_mut(node).up else { return };
            up.reads.insert(token, (asked, lease));
            self.step(node, Event::Read { token, lease });
            let waits = self.node(node).up.as_ref().is_some_and(|up| up.reads.contains_key(&token));
            let leads = self.node(node).raft().is_some_and(|raft| raft.role() == Role::Leader);
            if waits && lease && leads && self.plan.lease_drift > 0 {
                self.checks.reach("lease ended during a read");
            }
            return;
        }
        let is_stalled = up.stall.is_stalled(now) && up.raft.transferring_to().is_none();
        if (up.no_room || is_stalled) && up.raft.role() == Role::Leader {
            return self.answer(asked, Answer::NotApplied);
        }
        let session = Session { client_id: asked.client + 1, sequence: session };
        let command = Command { session, attempt: asked.attempt, key: asked.key, call };
        let mut command: Bytes = command.encode();
        if let Some(guest) = &self.guest {
            command = guest.command(&command, self.seed, session);
        }
        self.propose(node, command, asked);
    }

    /// Delivers the result of a request to a client.
    pub(crate) fn answer(&mut self, asked: ClientRequest, answer: Answer) {
        let (now, think) = (self.now, self.plan.think_max_ms);
        self.trace.hash(&[now, asked.client, asked.attempt, u64::from(matches!(answer, Answer::Done(_)))]);
        let client = &mut self.clients[asked.client as usize];
        let is_read = matches!(client.current, Some(Current { call: Register::Read, .. }));
        let current = client.current.filter(|_| client.sequence == asked.operation);
        if answer == Answer::NotApplied && !(is_read && current.is_some()) {
            self.checks.not_applied.insert(asked.attempt);
            self.checks.reach("attempt certainly not applied");
        }
        let client = &mut self.clients[asked.client as usize];
        let Some(current) = current else { return };
        match answer {
            Answer::Done(value) => {
                if let Some((_, operation)) = client.history.last_mut() {
                    operation.ended = Some((now, value));
                }
                client.current = None;
                self.checks.answered += 1;
                let pause = client.random.below(think * MS);
                self.schedule(pause, Due::Ask(asked.client));
            }
            Answer::NotApplied if current.attempt == asked.attempt => {
                client.node = if client.loyal { client.node } else { u64::MAX };
                let pause = MS + client.random.below(60 * MS);
                self.schedule(pause, Due::Ask(asked.client));
            }
            // The client repeats the request at its time limit.
            Answer::NotApplied | Answer::Unknown => return,
        }
        let text = || What::Client {
            client: asked.client,
            text: format!("{:?} of {} -> {answer:?}", current.call, asked.key),
        };
        self.trace.note(now, None, text);
    }

    /// Handles the time limit of a client: it repeats the request in the same session, or abandons it.
    pub(crate) fn give_up(&mut self, id: u64, attempt: u64) {
        let client = self.client(id);
        let Some(current) = client.current.filter(|current| current.attempt == attempt) else { return };
        client.node = u64::MAX;
        if current.tries >= 5 {
            client.current = None;
            if current.call == Register::Read {
                client.history.pop();
            }
            self.checks.reach("operation abandoned");
        }
        self.schedule(MS, Due::Ask(id));
    }

    /// Checks that the history of every key is linearizable.
    pub(crate) fn check_histories(&mut self) {
        for key in 0..KEYS as u8 {
            let all = self.clients.iter().flat_map(|client| &client.history);
            let history: Vec<_> =
                all.filter(|(at, _)| *at == key).map(|(_, operation)| operation.clone()).collect();
            let result = check(&Register::Read, &history, SEARCH_STEPS);
            match result {
                CheckResult::Violation { .. } => {
                    panic!("not linearizable, key {key}: {}", explain(&history, &result))
                }
                CheckResult::Undecided => self.checks.reach("history undecided"),
                CheckResult::Linearizable => self.checks.reach("history checked"),
            }
        }
    }
}

/// More steps than almost all histories need.
const SEARCH_STEPS: u64 = 400_000;
