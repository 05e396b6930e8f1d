//! Model checker: a breadth-first search through all states of a small cluster, with the protocol's own code.
//!
//! A [`Scenario`] has the size of the cluster and the maximum number of elections, entries, crashes,
//! repeated messages, changes of members, reads and snapshots. [`search`] visits all states that these can lead to, in any
//! order of deliveries, disk writes and timeouts, and checks each state. The first violation that it finds has a shortest path,
//! which is part of the result.
//!
//! These reductions keep the number of states small:
//! * A message need never be delivered, so the loss of a message is no separate step. A message that is sent again while it is in
//!   transit is the same message. Duplication is a step (`repeats`).
//! * A delivery without effect is not followed: the result is equivalent to the message still being in transit.
//! * A state that differs from another only in fewer messages in transit or smaller allowances is not followed:
//!   the actions of a node depend only on the node and its inputs, so each step from the one can also be taken from the
//!   other, and leads to two such states again. This needs no knowledge of the protocol.
//! * A message that can never have an effect any more, such as a grant of an earlier term, is removed. The condition follows from
//!   the protocol; that the message has no effect *now* is tested with the code each time.
//! * Each node has its own clock: only the order in which deadlines pass matters ([`Raft::normalize`],
//!   [`Raft::normalize_durations`]). Leases compare clocks; their scenarios have a common time and a rate for each clock
//!   ([`Clocks::Common`]).
//! * The time for which a node protects its leader ends only when its vote is requested, or before a read: no other action
//!   depends on it.
//! * Outputs that wait for one write have no order, and refusals of votes have no sender.
//! * Nodes with equal initial states can exchange names ([`Scenario::symmetric`]).
//!
//! Tests check that the reductions lose nothing: small scenarios are searched with and without them, and the nodes reach the same
//! combined states (`reductions_reach_all_node_states`). Known bugs are found with them
//! (`scripts/mutants`).
//!
//! [`Raft::normalize`]: consensus_raft_protocol::Raft
//! [`Raft::normalize_durations`]: consensus_raft_protocol::Raft

mod checks;
mod fingerprint;
mod message;
mod node;
mod scenario;
mod search;
mod seen;
mod state;
mod step;
#[cfg(test)]
mod tests;

pub use scenario::{Clocks, Scenario, scenarios};
pub use search::{Found, Limits, search};
pub use state::Action;
