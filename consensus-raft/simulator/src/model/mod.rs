//! Every state of a small cluster: a breadth-first search over what can happen to the protocol's own code.
//!
//! A [`Scenario`] says how large the cluster is and how often what may happen: so many elections, entries, crashes,
//! repeated messages, changes of members, reads, snapshots. [`search`] then goes through all that can come of it, in any
//! order of deliveries, disk writes and timeouts, and checks each state. The first violation that it finds is a shortest one,
//! and comes with the way to it.
//!
//! What makes it small enough:
//! * A message need never be delivered, so that losing one is no step of its own; one that is sent again while it is under
//!   way is the same message. Two copies are a step (`repeats`).
//! * A delivery of which nothing comes is not followed: it is as if the message were still under way.
//! * Each node's clock is its own: what matters is in which order deadlines pass ([`Raft::normalize`]). Leases, which
//!   compare clocks, have scenarios with one time for all and a rate for each ([`Clocks::Common`]).
//! * Nodes that begin alike can change names ([`Scenario::symmetric`]).
//!
//! [`Raft::normalize`]: consensus_raft_protocol::Raft

mod checks;
mod fingerprint;
mod message;
mod node;
mod scenario;
mod search;
mod state;
mod step;

pub use scenario::{Clocks, Scenario, scenarios};
pub use search::{Found, Limits, search};
pub use state::Action;
