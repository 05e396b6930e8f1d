//! States, calls and outputs as people read them.

use std::{collections::BTreeMap, fmt::Debug};

use consensus_core::{AppendOutcome, LogId, LogIndex, NodeId};
use consensus_raft_protocol::{Append, Call, Event, Output, Persist, Raft, ControlMessage, Returned};

/// What is shown of a state, by name.
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
        let snapshot = if peer.snapshot_bytes.is_some() { ", gets a snapshot" } else { "" };
        let active = if peer.active { "" } else { ", silent" };
        state.insert(format!("node {id}"), format!("has up to {}{snapshot}{active}", peer.matched));
    }
    state
}

/// How `after` differs from `before`.
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
        .extend(before.keys().filter(|what| !after.contains_key(*what)).map(|what| format!("{what}: over")));
    changes
}

pub(crate) fn call(call: &Call) -> String {
    match call {
        Call::Step(_, event) => self::event(event),
        Call::FinishTurn(_) => "end of the turn".to_owned(),
        Call::TakePersist => "the next write is fetched".to_owned(),
        Call::Propose(_, sizes) => format!("{} commands, of {sizes:?} bytes, are proposed", sizes.len()),
    }
}

pub(crate) fn returned(returned: &Returned) -> Vec<String> {
    match returned {
        Returned::Outputs(outputs) => outputs.iter().map(output).collect(),
        Returned::Persist(persist) => persist.iter().map(self::persist).collect(),
        Returned::Proposed(Some(first)) => vec![format!("they are in the log from {first} on")],
        Returned::Proposed(None) => vec!["they are refused".to_owned()],
    }
}

fn event(event: &Event) -> String {
    match event {
        Event::Tick => "time goes by".to_owned(),
        Event::VoteRequest(from, request) => format!("from {from}: {}", reply(&ControlMessage::VoteRequest(*request))),
        Event::VoteResponse(from, response) => {
            format!("from {from}: {}", reply(&ControlMessage::VoteResponse(*response)))
        }
        Event::Append { from, append, .. } => format!("from {from}: {}", self::append(append)),
        Event::AppendResponse(from, response) => {
            format!("from {from}: {}", reply(&ControlMessage::AppendResponse(*response)))
        }
        Event::ReadIndexRequest(from, request) => {
            format!("from {from}: {}", reply(&ControlMessage::ReadIndexRequest(*request)))
        }
        Event::ReadIndexResponse(from, response) => {
            format!("from {from}: {}", reply(&ControlMessage::ReadIndexResponse(*response)))
        }
        Event::TimeoutNow(from, request) => format!("from {from}: {}", reply(&ControlMessage::TimeoutNow(*request))),
        Event::SendFailed(to) => format!("a message to {to} could not be sent"),
        Event::Read { lease, .. } => format!("a read{}", if *lease { ", by lease" } else { "" }),
        Event::ChangeMembership { changes, .. } => format!("a change is asked for: {changes:?}"),
        Event::Transfer { to: Some(to), .. } => format!("the lead shall go to {to}"),
        Event::Transfer { to: None, .. } => "the lead shall go to whoever is fit".to_owned(),
        Event::Persisted => "the write is durable".to_owned(),
        Event::Compact(through) => format!("the log may go up to {through}"),
        Event::SnapshotArrived { from, term, meta } => {
            format!("from {from}: term {term}, a snapshot up to {} of {}", meta.last, meta.membership)
        }
        Event::SnapshotInstalled => "the state machine has the snapshot".to_owned(),
        Event::SnapshotNotInstalled => "the state machine did not take the snapshot".to_owned(),
        Event::SnapshotSent(to, Some(last)) => format!("node {to} took a snapshot up to {last}"),
        Event::SnapshotSent(to, None) => format!("node {to} took no snapshot"),
        Event::Disconnected(node) => format!("the connection to {node} broke for good"),
        Event::NoRoom => "the write found no room for its entries".to_owned(),
        Event::RetryEntries => "entries are to be written again".to_owned(),
        Event::Stalled(true) => "the disk or the state machine does not answer".to_owned(),
        Event::Stalled(false) => "the disk and the state machine answer again".to_owned(),
        Event::StepDown => "the node is to step down".to_owned(),
    }
}

fn output(output: &Output) -> String {
    match output {
        Output::Send(to, reply) => format!("to {to}: {}", self::reply(reply)),
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
        parts.push(format!("nothing up to {}", purge.last));
    }
    if let Some(after) = persist.truncate_after {
        parts.push(format!("nothing after {after}"));
    }
    if persist.append.0 < persist.append.1 {
        parts.push(format!("entries {}", range(persist.append)));
    }
    format!("write: {}", parts.join("; "))
}

fn append(append: &Append) -> String {
    let Append { term, prev, last, commit, round } = append;
    let what = if *last > prev.index {
        format!("come {}", range((prev.index, *last)))
    } else {
        "comes nothing".to_owned()
    };
    format!("term {term}: after {prev} {what}; committed {commit}, round {round}")
}

fn range((after, last): (LogIndex, LogIndex)) -> String {
    let first = after.0 + 1;
    if first == last.0 { first.to_string() } else { format!("{first} to {last}") }
}

fn reply(reply: &ControlMessage) -> String {
    match reply {
        ControlMessage::VoteRequest(request) => {
            let last: LogId = request.last_log;
            format!("{} in term {}? my log ends with {last}", plain(&request.kind), request.term)
        }
        ControlMessage::VoteResponse(response) => format!(
            "term {}: {}, {}",
            response.term,
            plain(&response.kind),
            if response.granted { "granted" } else { "refused" }
        ),
        ControlMessage::AppendResponse(response) => match &response.outcome {
            AppendOutcome::Accepted { matched } => {
                format!("term {}: I have all up to {matched}, round {}", response.term, response.round)
            }
            AppendOutcome::Rejected { prev, hint } => {
                format!("term {}: I do not have {prev}; try after {hint}", response.term)
            }
        },
        other => plain(other),
    }
}

fn plain(value: &impl Debug) -> String {
    format!("{value:?}")
}
