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
//! * A state that differs from another in nothing but fewer messages under way, or less that may yet happen, is not followed:
//!   whatever a node does depends on the node and on what comes to it, so that each step from the one can be taken from the
//!   other, and leads to two such states again. This needs no knowledge of the protocol.
//! * A message that can never be of effect again - a grant of an earlier term, say - is taken away. When that is so follows from
//!   the protocol; that it is of no effect *now* is tried with the code each time.
//! * Each node's clock is its own: what matters is in which order deadlines pass ([`Raft::normalize`],
//!   [`Raft::normalize_durations`]). Leases, which compare clocks, have scenarios with one time for all and a rate for each
//!   ([`Clocks::Common`]).
//! * A node's patience with its leader ends only when somebody asks for its vote, or before it is asked to read: nothing else
//!   that it does depends on it.
//! * What waits for one write, and who refuses a vote, is told in no order and by no name.
//! * Nodes that begin alike can change names ([`Scenario::symmetric`]).
//!
//! That these lose nothing is tested: small scenarios are searched with and without them, and the nodes come to the same
//! states, all together (`with_fewer_states_all_that_nodes_can_come_to_is_reached`); and known bugs are found with them
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
