//! Trace of a run, for reading and for comparing runs.

use std::fmt::Write as _;

use consensus_core::{NodeId, Role};
use serde::Serialize;

use crate::random::chain;

/// Trace of a run: a hash, and the moments if they are kept.
#[derive(Debug, Default)]
pub struct Trace {
    /// Hash of all events in order.
    pub hash: u64,
    /// Whether moments are kept.
    pub keeps: bool,
    /// Moments in order of time.
    pub moments: Vec<Moment>,
}

/// An event in the trace.
#[derive(Clone, Debug, Serialize)]
pub struct Moment {
    /// Milliseconds since the start of the run.
    pub ms: f64,
    /// Node of the event; `None` for the whole cluster.
    pub node: Option<u64>,
    /// The event.
    pub what: What,
}

/// Kinds of events.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names of the fields are sufficient")]
pub enum What {
    /// A message arrived; it had been sent by `from` at `sent_ms`.
    Message { from: u64, sent_ms: f64, text: String },
    /// A message was lost on its way to `to`.
    Lost { to: u64, text: String },
    /// A node's role, term, commit index or last entry changed.
    State { role: &'static str, term: u64, commit: u64, last: String },
    /// A fault was injected.
    Fault { number: u64, text: String },
    /// A node stopped.
    Down,
    /// A node started, or failed to start.
    Up { text: String },
    /// A client got a result, or none.
    Client { client: u64, text: String },
    /// A check failed.
    Failure { text: String },
}

impl Trace {
    pub(crate) fn hash(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.hash = chain(self.hash, *number);
        }
    }

    /// Adds a moment, if moments are kept.
    pub(crate) fn note(&mut self, now_us: u64, node: Option<NodeId>, what: impl FnOnce() -> What) {
        if self.keeps {
            let (ms, node) = (now_us as f64 / 1000.0, node.map(|id| id.0));
            self.moments.push(Moment { ms, node, what: what() });
        }
    }

    /// The moments as lines of text.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for Moment { ms, node, what } in &self.moments {
            let node = node.map_or("  ".to_owned(), |id| format!("n{id}"));
            let line = match what {
                What::Message { from, text, .. } => format!("<- n{from}: {text}"),
                What::Lost { to, text } => format!("-> n{to} lost: {text}"),
                What::State { role, term, commit, last } => {
                    format!("== {role}, term {term}, last {last}, commit {commit}")
                }
                What::Fault { number, text } => format!("** fault {number}: {text}"),
                What::Down => "xx down".to_owned(),
                What::Up { text } => format!("++ up {text}"),
                What::Client { client, text } => format!("client {client}: {text}"),
                What::Failure { text } => format!("FAILURE: {text}"),
            };
            let _ = writeln!(text, "{ms:10.2} {node} {line}");
        }
        text
    }
}

pub(crate) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Candidate => "candidate",
        Role::PreCandidate => "pre-candidate",
        Role::Follower => "follower",
        Role::Learner => "learner",
        _ => "other",
    }
}
