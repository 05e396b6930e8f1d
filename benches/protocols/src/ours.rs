//! `consensus-raft-protocol`. It sees no payloads; what stands for the rest of a node here holds them: the log of each node,
//! to which messages bring them.

use std::collections::VecDeque;

use bytes::Bytes;
use consensus_core::{LogId, LogIndex, LogState, Membership, NodeId, Payload, StorageId, Term};
use consensus_raft_protocol::{
    Append, Config, ControlMessage, EntryInfo, Event, Output, Raft, Restored, Time,
};

use crate::compare::PAYLOAD_BYTES;

struct Node {
    raft: Raft,
    /// The payloads after `base`, with the terms of their entries.
    log: VecDeque<(Term, Bytes)>,
    base: LogIndex,
    /// Of the message in hand.
    incoming: Vec<(Term, Bytes)>,
    applied: LogIndex,
    /// Of the proposals in hand.
    sizes: Vec<u64>,
}

enum Message {
    Control(ControlMessage),
    Append(Append, Vec<EntryInfo>, Vec<(Term, Bytes)>),
}

/// Messages on their way, by receiver.
type Network = Vec<Vec<(NodeId, Message)>>;

pub(super) struct Cluster {
    /// The first one leads.
    nodes: Vec<Node>,
    network: Network,
    payload: Bytes,
}

impl crate::compare::Cluster for Cluster {
    fn elect(nodes: usize, _window: usize) -> Self {
        let payload = Bytes::from(vec![7; PAYLOAD_BYTES]);
        let network = (0..nodes).map(|_| Vec::new()).collect();
        let nodes = (0..nodes as u64).map(|id| Node::new(id, nodes as u64)).collect();
        let mut cluster = Self { nodes, network, payload };
        // Only the first comes to its election timeout.
        cluster.nodes[0].step(Event::Tick, &mut cluster.network);
        cluster.settle();
        assert_eq!(cluster.nodes[0].raft.leader(), Some(NodeId(0)), "the first node leads");
        cluster
    }

    fn done(&self) -> usize {
        self.nodes[0].applied.0 as usize
    }

    fn propose(&mut self, count: usize) {
        let leader = &mut self.nodes[0];
        leader.sizes.clear();
        leader.sizes.resize(count, Payload::command_bytes(&self.payload));
        let first = leader.raft.propose(NOW, &leader.sizes).expect("it leads");
        leader.log.extend((0..count).map(|_| (first.term, self.payload.clone())));
    }

    /// The leader has something to say, as a rule.
    fn settle(&mut self) {
        self.nodes[0].end_turn(&mut self.network);
        let mut quiet = false;
        while !quiet {
            quiet = true;
            for (to, node) in self.nodes.iter_mut().enumerate() {
                if self.network[to].is_empty() {
                    continue;
                }
                quiet = false;
                let mut messages = std::mem::take(&mut self.network[to]);
                for (from, message) in messages.drain(..) {
                    node.take(from, message, &mut self.network);
                }
                self.network[to] = messages; // Nobody writes to itself.
                node.end_turn(&mut self.network);
            }
        }
    }
}

impl Node {
    fn new(id: u64, nodes: u64) -> Self {
        let first = LogId::new(0, 1);
        let log = LogState {
            storage: StorageId(id + 1),
            entries: vec![(first, 100)],
            memberships: vec![(first.index, Membership::of_voters(0..nodes))],
            ..LogState::default()
        };
        let restored = Restored { log, applied: LogIndex(0) };
        let raft = Raft::new(Config::new(NodeId(id)), restored, Time::ZERO).expect("the defaults are right");
        Self {
            raft,
            log: [(first.term, Bytes::new())].into(),
            base: LogIndex(0),
            incoming: Vec::new(),
            applied: LogIndex(0),
            sizes: Vec::new(),
        }
    }

    fn take(&mut self, from: NodeId, message: Message, network: &mut Network) {
        match message {
            Message::Control(message) => self.step(message.into_event(from), network),
            Message::Append(append, entries, payloads) => {
                self.incoming = payloads;
                self.step(Event::Append { from, append, entries }, network);
                self.incoming.clear();
            }
        }
    }

    fn step(&mut self, event: Event, network: &mut Network) {
        let prev = match &event {
            Event::Append { append, .. } => append.prev.index,
            _ => LogIndex(0),
        };
        let mut outputs = self.raft.step(NOW, event);
        outputs.drain(..).for_each(|output| self.carry_out(output, prev, network));
        self.raft.recycle(outputs);
    }

    fn end_turn(&mut self, network: &mut Network) {
        let mut outputs = self.raft.finish_turn(NOW);
        outputs.drain(..).for_each(|output| self.carry_out(output, LogIndex(0), network));
        self.raft.recycle(outputs);
        // The log in memory is as durable as it gets.
        while self.raft.take_persist().is_some() {
            self.step(Event::Persisted, network);
        }
    }

    fn carry_out(&mut self, output: Output, prev: LogIndex, network: &mut Network) {
        let own = self.raft.id();
        match output {
            Output::Send(to, message) => network[to.0 as usize].push((own, Message::Control(message))),
            Output::SendAppend(to, append) => {
                let run = append.prev.index.since(self.base) as usize..append.last.since(self.base) as usize;
                let entries: Vec<_> = self.log.range(run).cloned().collect();
                let infos = entries.iter().map(|(term, payload)| {
                    let size_bytes = Payload::command_bytes(payload);
                    EntryInfo { term: *term, size_bytes, membership: None }
                });
                let message = Message::Append(append, infos.collect(), entries);
                network[to.0 as usize].push((own, message));
            }
            Output::AppendedBlank(id) => self.log.push_back((id.term, Bytes::new())),
            Output::Replaced(after) => {
                self.log.truncate(after.since(self.base) as usize);
                self.log.extend(self.incoming.drain(..).skip(after.since(prev) as usize));
            }
            Output::Apply(through) => self.apply(through),
            other => unreachable!("nothing else happens here: {other:?}"),
        }
    }

    /// The state machine looks at each payload; then the log goes.
    fn apply(&mut self, through: LogIndex) {
        let run = self.applied.since(self.base) as usize..through.since(self.base) as usize;
        std::hint::black_box(self.log.range(run).map(|(_, payload)| payload.len()).sum::<usize>());
        self.applied = through;
        if through.since(self.base) > KEPT {
            let keep = LogIndex(through.0 - KEPT / 2);
            self.log.drain(..keep.since(self.base) as usize);
            self.base = keep;
            let outputs = self.raft.step(NOW, Event::Compact(keep));
            assert!(outputs.is_empty(), "compacting says nothing");
        }
    }
}

/// The clock stands still, late enough for an election.
const NOW: Time = Time::from_secs(10);
/// Most entries of a log.
const KEPT: u64 = 8192;
