//! Describes states, calls and outputs in words.

use std::{collections::BTreeMap, fmt::Debug};

use consensus_core::{AppendOutcome, LogId, LogIndex, NodeId};
use consensus_raft_protocol::{Append, Call, ControlMessage, Event, Output, Persist, Raft, Returned};

/// The parts of a state that are printed, by name.
pub(crate) fn state(raft: &Raft) -> BTreeMap<String, String> {
    let or_none = |node: Option<NodeId>| node.map_or("none".to_owned(), |node| node.to_string());
    let mut state = BTreeMap::from([
        ("role".to_owned(), raft.role().to_string()),
        ("term".to_owned(), raft.term().to_string()),
        ("vote".to_owned(), or_none(raft.hard_state().voted_for)),
        ("leader".to_owned(), or_none(raft.leader())),
        ("log".to_owned(), format!("({}, {}]", raft.purged(), raft.last_log())),
        ("durable".to_owned(), raft.durable().to_string()),
        ("commit".to_owned(), raft.commit().to_string()),
        ("members".to_owned(), raft.membership().to_string()),
    ]);
    if let Some(to) = raft.transferring_to() {
        state.insert("transfer".to_owned(), format!("to node {to}"));
    }
    if let Some(meta) = &raft.hard_state().installing {
        state.insert("installing".to_owned(), format!("a snapshot up to {}", meta.last));
    }
    for (id, peer) in raft.peers() {
        let snapshot = if peer.snapshot_bytes.is_some() { ", is sent a snapshot" } else { "" };
        let active = if peer.active { "" } else { ", not in touch" };
        state.insert(format!("node {id}"), format!("has up to {}{snapshot}{active}", peer.matched));
    }
    state
}

/// Differences between `before` and `after`.
pub(crate) fn changes(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let mut changes = Vec::new();
    for (what, new) in after {
        match before.get(what) {
            Some(old) if old == new => {}
            Some(old) => changes.push(format!("{what}: {old} -> {new}")),
            None => changes.push(format!("{what}: {new}")),
        }
    }
    changes
        .extend(before.keys().filter(|what| !after.contains_key(*what)).map(|what| format!("{what}: gone")));
    changes
}

pub(crate) fn call(call: &Call) -> String {
    match call {
        Call::Step(_, event) => self::event(event),
        Call::FinishTurn(_) => "end of the turn".to_owned(),
        Call::TakePersist => "take the next write".to_owned(),
        Call::Propose(_, sizes) => format!("propose {} commands of {sizes:?} bytes", sizes.len()),
    }
}

pub(crate) fn returned(returned: &Returned) -> Vec<String> {
    match returned {
        Returned::Outputs(outputs) => outputs.iter().map(output).collect(),
        Returned::Persist(persist) => persist.iter().map(self::persist).collect(),
        Returned::Proposed(Some(first)) => vec![format!("appended from {first} on")],
        Returned::Proposed(None) => vec!["refused".to_owned()],
    }
}

fn event(event: &Event) -> String {
    match event {
        Event::Tick => "tick".to_owned(),
        Event::VoteRequest(from, request) => {
            format!("from {from}: {}", message(&ControlMessage::VoteRequest(*request)))
        }
        Event::VoteResponse(from, response) => {
            format!("from {from}: {}", message(&ControlMessage::VoteResponse(*response)))
        }
        Event::Append { from, append, .. } => format!("from {from}: {}", self::append(append)),
        Event::AppendResponse(from, response) => {
            format!("from {from}: {}", message(&ControlMessage::AppendResponse(*response)))
        }
        Event::ReadIndexRequest(from, request) => {
            format!("from {from}: {}", message(&ControlMessage::ReadIndexRequest(*request)))
        }
        Event::ReadIndexResponse(from, response) => {
            format!("from {from}: {}", message(&ControlMessage::ReadIndexResponse(*response)))
        }
        Event::TimeoutNow(from, request) => {
            format!("from {from}: {}", message(&ControlMessage::TimeoutNow(*request)))
        }
        Event::SendFailed(to) => format!("a message to {to} could not be sent"),
        Event::Read { lease, .. } => format!("a read{}", if *lease { ", by lease" } else { "" }),
        Event::ChangeMembership { changes, .. } => {
            format!("request to change the configuration: {changes:?}")
        }
        Event::Transfer { to: Some(to), .. } => format!("request to transfer leadership to {to}"),
        Event::Transfer { to: None, .. } => "request to transfer leadership".to_owned(),
        Event::Persisted => "the write is durable".to_owned(),
        Event::Compact(through) => format!("the log may be purged up to {through}"),
        Event::SnapshotArrived { from, term, meta } => {
            format!("from {from}: term {term}, a snapshot up to {} of {}", meta.last, meta.membership)
        }
        Event::SnapshotInstalled => "the snapshot is restored".to_owned(),
        Event::SnapshotNotInstalled => "restoring the snapshot failed".to_owned(),
        Event::SnapshotSent(to, Some(last)) => format!("node {to} accepted a snapshot up to {last}"),
        Event::SnapshotSent(to, None) => format!("sending a snapshot to node {to} failed"),
        Event::Disconnected(node) => format!("the connection to {node} broke and cannot be restored"),
        Event::NoRoom => "the disk has no room for the entries of the write".to_owned(),
        Event::RetryEntries => "entries are written again".to_owned(),
        Event::Stalled(true) => "the disk or the state machine is stalled".to_owned(),
        Event::Stalled(false) => "the disk and the state machine respond again".to_owned(),
        Event::StepDown => "the node must step down".to_owned(),
    }
}

fn output(output: &Output) -> String {
    match output {
        Output::Send(to, message) => format!("to {to}: {}", self::message(message)),
        Output::SendAppend(to, append) => format!("to {to}: {}", self::append(append)),
        Output::SendSnapshot(to) => format!("to {to}: a snapshot"),
        Output::AppendedBlank(id) => format!("appends {id}, blank"),
        Output::AppendedMembership(id, membership) => format!("appends {id}, members {membership}"),
        Output::Replaced(after) => format!("the log after {after} is replaced"),
        Output::ReadReady(_, index) => format!("the read may be served at {index}"),
        Output::ReadRefused(_) => "the read is refused".to_owned(),
        Output::Apply(through) => format!("apply up to {through}"),
        Output::Install(meta) => format!("install the snapshot up to {}", meta.last),
        other => plain(other),
    }
}

fn persist(persist: &Persist) -> String {
    let mut parts = Vec::new();
    if let Some(hard) = &persist.hard_state {
        let vote = hard.voted_for.map_or(String::new(), |node| format!(", vote for {node}"));
        parts.push(format!("term {}{vote}", hard.term));
    }
    if let Some(purge) = &persist.purge {
        parts.push(format!("purge up to {}", purge.last));
    }
    if let Some(after) = persist.truncate_after {
        parts.push(format!("truncate after {after}"));
    }
    if persist.append.0 < persist.append.1 {
        parts.push(format!("append {}", range(persist.append)));
    }
    format!("write: {}", parts.join("; "))
}

fn append(append: &Append) -> String {
    let Append { term, prev, last, commit, round, .. } = append;
    let entries = if *last > prev.index {
        format!("entries {}", range((prev.index, *last)))
    } else {
        "no entries".to_owned()
    };
    format!("term {term}, after {prev}: {entries}; commit index {commit}, round {round}")
}

fn range((after, last): (LogIndex, LogIndex)) -> String {
    let first = after.0 + 1;
    if first == last.0 { first.to_string() } else { format!("{first} to {last}") }
}

fn message(message: &ControlMessage) -> String {
    match message {
        ControlMessage::VoteRequest(request) => {
            let last: LogId = request.last_log;
            format!("request {} in term {}, last entry {last}", plain(&request.kind), request.term)
        }
        ControlMessage::VoteResponse(response) => format!(
            "term {}: {}, {}",
            response.term,
            plain(&response.kind),
            if response.granted { "granted" } else { "refused" }
        ),
        ControlMessage::AppendResponse(response) => match &response.outcome {
            AppendOutcome::Accepted { matched } => {
                format!("term {}: accepted up to {matched}, round {}", response.term, response.round)
            }
            AppendOutcome::Rejected { prev, hint } => {
                format!("term {}: rejected, {prev} is missing; try after {hint}", response.term)
            }
        },
        other => plain(other),
    }
}

fn plain(value: &impl Debug) -> String {
    format!("{value:?}")
}
