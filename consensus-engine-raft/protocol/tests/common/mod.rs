//! Helpers that run one node.

#![allow(dead_code, reason = "each test uses a part of the module")]

use std::{sync::Arc, time::Duration};

use consensus_core::{
    AppendOutcome, AppendResponse, HardState, LeadershipId, LogId, LogIndex, LogState, Membership, NodeId,
    Role, StorageId, Term, VoteKind, VoteResponse,
};
use consensus_raft_protocol::{
    Append, Config, ControlMessage, EntryInfo, Event, Output, Raft, Restored, Time,
};

pub(crate) const SECOND: Time = Duration::from_secs(1);

/// Log id of the first configuration, with which every log starts.
pub(crate) const LOG_1: LogId = LogId { term: Term(0), index: LogIndex(1) };

/// Node 0 of `voters`, with entries of these terms after the first configuration.
pub(crate) fn node(voters: u64, term: u64, terms: &[u64]) -> Raft {
    configured(voters, term, terms, |_| ())
}

/// Like [`node`], with other settings.
pub(crate) fn configured(voters: u64, term: u64, terms: &[u64], configure: impl FnOnce(&mut Config)) -> Raft {
    let mut config = Config::new(NodeId(0));
    configure(&mut config);
    start(config, voters, term, terms, 0)
}

/// Like [`node`], with a state machine that has applied the log up to `applied`.
pub(crate) fn restored(voters: u64, term: u64, terms: &[u64], applied: u64) -> Raft {
    start(Config::new(NodeId(0)), voters, term, terms, applied)
}

fn start(config: Config, voters: u64, term: u64, terms: &[u64], applied: u64) -> Raft {
    start_with(config, Membership::of_voters(0..voters), term, terms, applied)
}

/// Node 0 with this first configuration.
pub(crate) fn founded(first: Membership) -> Raft {
    start_with(Config::new(NodeId(0)), first, 0, &[], 0)
}

fn start_with(config: Config, first: Membership, term: u64, terms: &[u64], applied: u64) -> Raft {
    let hard_state = HardState { term: Term(term), ..HardState::default() };
    let entries = std::iter::once(&0).chain(terms).zip(1..);
    let log = LogState {
        hard_state,
        entries: entries.map(|(term, index)| (LogId::new(*term, index), 100)).collect(),
        memberships: vec![(LogIndex(1), first)],
        ..LogState::default()
    };
    Raft::new(config, Restored { log, applied: LogIndex(applied) }, Time::ZERO).unwrap()
}

/// All outputs of one event, with writes that are durable at once.
pub(crate) fn step(raft: &mut Raft, now: Time, event: Event) -> Vec<Output> {
    let outputs = raft.step(now, event);
    outputs.into_iter().chain(settle(raft, now)).collect()
}

fn settle(raft: &mut Raft, now: Time) -> Vec<Output> {
    let mut outputs = Vec::new();
    loop {
        outputs.extend(raft.finish_turn(now));
        if raft.take_persist().is_none() {
            return outputs;
        }
        outputs.extend(raft.step(now, Event::Persisted));
    }
}

/// Proposes a command of 100 bytes, with writes that are durable at once. Returns its log id if it was accepted, and all outputs.
pub(crate) fn propose(raft: &mut Raft, now: Time) -> (Option<LogId>, Vec<Output>) {
    (raft.propose(now, &[100]), settle(raft, now))
}

pub(crate) fn vote(kind: VoteKind, term: u64) -> VoteResponse {
    VoteResponse { kind, term: Term(term), granted: true, storage: StorageId(0) }
}

/// Makes node 0 the leader of `term`, by the votes of the others.
pub(crate) fn lead(raft: &mut Raft, now: Time) {
    step(raft, now, Event::Tick);
    let term = raft.term().0;
    let others: Vec<NodeId> = raft.membership().voters().filter(|id| *id != NodeId(0)).collect();
    for kind in [VoteKind::PreVote, VoteKind::Vote] {
        for other in &others {
            step(raft, now, Event::VoteResponse(*other, vote(kind, term + 1)));
        }
    }
    assert_eq!(raft.role(), Role::Leader);
}

pub(crate) fn accepted(term: u64, matched: u64) -> AppendResponse {
    AppendResponse {
        term: Term(term),
        round: 0,
        outcome: AppendOutcome::Accepted { matched: LogIndex(matched) },
        storage: StorageId(0),
        joining: false,
    }
}

pub(crate) fn append(term: u64, prev: LogId, terms: &[u64], commit: u64) -> Event {
    let entries = terms.iter().map(|t| EntryInfo { term: Term(*t), size_bytes: 100, membership: None });
    append_entries(term, prev, entries.collect(), commit)
}

pub(crate) fn membership_entry(term: u64, membership: Membership) -> EntryInfo {
    EntryInfo { term: Term(term), size_bytes: 100, membership: Some(Arc::new(membership)) }
}

/// AppendEntries of node 1 with one configuration.
pub(crate) fn append_configuration(term: u64, prev: LogId, membership: Membership, commit: u64) -> Event {
    append_entries(term, prev, vec![membership_entry(term, membership)], commit)
}

fn append_entries(term: u64, prev: LogId, entries: Vec<EntryInfo>, commit: u64) -> Event {
    let last = LogIndex(prev.index.0 + entries.len() as u64);
    let append = Append {
        term: Term(term),
        prev,
        prev_leadership: LeadershipId::NONE,
        last,
        commit: LogIndex(commit),
        round: 0,
    };
    Event::Append { from: NodeId(1), append, entries }
}

/// The last acknowledgement; earlier ones cover entries that were durable before.
pub(crate) fn outcome(outputs: &[Output]) -> Option<AppendOutcome> {
    outputs.iter().rev().find_map(|output| match output {
        Output::Send(_, ControlMessage::AppendResponse(response)) => Some(response.outcome),
        _ => None,
    })
}
