//! A node whose disk has no room or is stalled.

mod common;

use std::collections::BTreeSet;

use common::{LOG_1, SECOND, accepted, append, lead, node, outcome, propose, step};
use consensus_core::{
    AppendOutcome, LogId, LogIndex, Membership, NodeId, Role, SnapshotMeta, Term, TimeoutNow, VoteKind,
    VoteRequest,
};
use consensus_raft_protocol::{ControlMessage, Event, Output, Raft};

fn vote_request(term: u64, last_log: LogId) -> Event {
    let kind = VoteKind::Transfer;
    Event::VoteRequest(
        NodeId(2),
        VoteRequest {
            kind,
            term: Term(term),
            last_log,
            storage: Default::default(),
            voter_storage: Default::default(),
        },
    )
}

fn votes(outputs: &[Output]) -> usize {
    let is_vote = |output: &&Output| matches!(output, Output::Send(_, ControlMessage::VoteResponse(vote)) if vote.granted);
    outputs.iter().filter(is_vote).count()
}

/// A follower with an entry for which its disk has no room.
fn full_follower() -> Raft {
    let mut raft = node(3, 1, &[]);
    raft.step(SECOND, append(1, LOG_1, &[1], 0));
    assert_eq!(raft.take_persist().unwrap().append, (LogIndex(1), LogIndex(2)));
    raft.step(SECOND, Event::NoRoom);
    raft
}

#[test]
fn vote_is_written_before_entries_without_room() {
    let mut raft = full_follower();
    assert!(raft.take_persist().is_none(), "the write of the entries is not retried at once");
    let outputs = raft.step(SECOND, vote_request(2, LogId::new(1, 2)));
    assert_eq!(votes(&outputs), 0, "the vote is not sent before it is durable");

    let persist = raft.take_persist().unwrap();
    assert_eq!(persist.hard_state.unwrap().voted_for, Some(NodeId(2)));
    assert_eq!(persist.append, (LogIndex(1), LogIndex(1)), "without the entries");
    let outputs = raft.step(SECOND, Event::Persisted);
    assert_eq!(votes(&outputs), 1);
    assert_eq!(raft.durable(), LogIndex(1));
    // A repeated request needs no write.
    assert_eq!(votes(&raft.step(SECOND, vote_request(2, LogId::new(1, 2)))), 1);
}

#[test]
fn entries_without_room_are_acknowledged_once_written() {
    let mut raft = full_follower();
    raft.step(SECOND, append(1, LogId::new(1, 2), &[1], 0));
    assert!(raft.take_persist().is_none());
    raft.step(SECOND, Event::RetryEntries);
    assert_eq!(
        raft.take_persist().unwrap().append,
        (LogIndex(1), LogIndex(3)),
        "the write includes later entries"
    );
    let outputs = raft.step(SECOND, Event::Persisted);
    assert_eq!(outcome(&outputs), Some(AppendOutcome::Accepted { matched: LogIndex(3) }));
}

#[test]
fn vote_in_a_write_without_room_is_written_alone() {
    let mut raft = node(3, 1, &[]);
    raft.step(SECOND, append(1, LOG_1, &[1], 0));
    raft.step(SECOND, vote_request(2, LogId::new(1, 2)));
    assert!(raft.take_persist().unwrap().hard_state.is_some());
    raft.step(SECOND, Event::NoRoom);
    let persist = raft.take_persist().unwrap();
    assert!(persist.hard_state.is_some() && persist.append == (LogIndex(1), LogIndex(1)));
    assert_eq!(votes(&raft.step(SECOND, Event::Persisted)), 1);
}

/// Even the space that is kept for votes can be used up.
#[test]
fn vote_without_room_waits_and_is_sent_once_durable() {
    let mut raft = node(3, 1, &[]);
    raft.step(SECOND, vote_request(2, LOG_1));
    for round in 0..3 {
        // With the entries, if there are some, and then without them.
        for _ in 0..if round == 0 { 1 } else { 2 } {
            assert!(raft.take_persist().unwrap().hard_state.is_some());
            raft.step(SECOND, Event::NoRoom);
        }
        assert!(raft.lacks_room());
        assert_eq!(raft.take_persist(), None, "the write is not retried at once");
        // Entries that arrive meanwhile wait as well.
        let outputs = raft.step(SECOND, append(2, LOG_1, &[2], 0));
        assert_eq!((votes(&outputs), raft.take_persist()), (0, None));
        raft.step(SECOND, Event::RetryEntries);
    }
    let persist = raft.take_persist().unwrap();
    assert_eq!(persist.hard_state.unwrap().voted_for, Some(NodeId(2)));
    assert_eq!(persist.append, (LogIndex(1), LogIndex(2)));
    assert_eq!(votes(&raft.step(SECOND, Event::Persisted)), 1);
    assert!(!raft.lacks_room());
}

#[test]
fn purge_without_room_is_repeated() {
    let mut raft = node(3, 1, &[1, 1]);
    step(&mut raft, SECOND, append(1, LogId::new(1, 3), &[], 3));
    raft.step(SECOND, Event::Compact(LogIndex(3)));
    let purge = raft.take_persist().unwrap().purge;
    assert!(purge.is_some());
    raft.step(SECOND, Event::NoRoom);
    assert_eq!(raft.take_persist(), None);
    raft.step(SECOND, Event::RetryEntries);
    assert_eq!(raft.take_persist().unwrap().purge, purge);
}

#[test]
fn entries_truncated_without_room_are_replaced_by_entries_of_next_leaders() {
    let mut raft = node(3, 1, &[1]);
    raft.step(SECOND, append(1, LogId::new(1, 2), &[1, 1], 0));
    assert_eq!(raft.take_persist().unwrap().append, (LogIndex(2), LogIndex(4)));
    // Before the write fails, the next leaders replace the last of these entries, and then the one that is on the disk.
    raft.step(SECOND, append(2, LogId::new(1, 3), &[2], 0));
    raft.step(SECOND, append(2, LOG_1, &[2, 2, 2], 0));
    raft.step(SECOND, Event::NoRoom);
    let persist = raft.take_persist().unwrap();
    assert_eq!((persist.truncate_after, persist.append), (Some(LogIndex(1)), (LogIndex(1), LogIndex(1))));
    raft.step(SECOND, Event::Persisted);
    raft.step(SECOND, Event::RetryEntries);
    let persist = raft.take_persist().unwrap();
    assert_eq!((persist.truncate_after, persist.append), (None, (LogIndex(1), LogIndex(4))));
    let outputs = raft.step(SECOND, Event::Persisted);
    assert_eq!(outcome(&outputs), Some(AppendOutcome::Accepted { matched: LogIndex(4) }));
}

#[test]
fn snapshot_replaces_entries_without_room() {
    let mut raft = full_follower();
    let meta = SnapshotMeta { last: LogId::new(1, 9), membership: Membership::of_voters(0..3) };
    let (from, term) = (NodeId(1), Term(1));
    raft.step(SECOND, Event::SnapshotArrived { from, term, meta: meta.clone() });
    assert_eq!(raft.take_persist().unwrap().append, (LogIndex(1), LogIndex(1)));
    let outputs = raft.step(SECOND, Event::Persisted);
    assert!(outputs.contains(&Output::Install(meta.clone())), "{outputs:?}");
    raft.step(SECOND, Event::SnapshotInstalled);
    let persist = raft.take_persist().unwrap();
    assert_eq!((persist.purge, persist.append), (Some(meta), (LogIndex(9), LogIndex(9))));
    let outputs = raft.step(SECOND, Event::Persisted);
    assert!(outputs.iter().any(|output| matches!(output, Output::SnapshotSettled(_))), "{outputs:?}");
}

#[test]
fn failed_restore_of_snapshot_leaves_the_log_unchanged() {
    let mut raft = node(3, 1, &[1]);
    let meta = SnapshotMeta { last: LogId::new(1, 9), membership: Membership::of_voters(0..3) };
    let (from, term) = (NodeId(1), Term(1));
    step(&mut raft, SECOND, Event::SnapshotArrived { from, term, meta });
    assert!(raft.hard_state().installing.is_some());
    raft.step(SECOND, Event::SnapshotNotInstalled);
    assert_eq!(raft.take_persist().unwrap().hard_state.unwrap().installing, None);
    raft.step(SECOND, Event::Persisted);
    let outputs = step(&mut raft, SECOND, append(1, LogId::new(1, 2), &[1], 3));
    assert_eq!(outcome(&outputs), Some(AppendOutcome::Accepted { matched: LogIndex(3) }));
    assert!(outputs.contains(&Output::Apply(LogIndex(3))), "{outputs:?}");
}

#[test]
fn stalled_node_does_not_campaign_until_the_stall_ends() {
    let mut raft = node(3, 1, &[]);
    raft.step(SECOND, Event::Stalled(true));
    assert_eq!(raft.next_deadline(), None);
    raft.step(60 * SECOND, Event::Tick);
    raft.step(60 * SECOND, append(1, LOG_1, &[], 0));
    raft.step(60 * SECOND, Event::TimeoutNow(NodeId(1), TimeoutNow { term: Term(1) }));
    assert_eq!((raft.role(), raft.term()), (Role::Follower, Term(1)));
    raft.step(70 * SECOND, Event::Stalled(false));
    assert!(raft.next_deadline() > Some(70 * SECOND), "the node first waits for a leader");
    raft.step(90 * SECOND, Event::Tick);
    assert_eq!(raft.role(), Role::PreCandidate);
}

#[test]
fn leader_that_steps_down_is_follower_in_its_term() {
    let mut raft = node(3, 1, &[]);
    lead(&mut raft, SECOND);
    raft.step(SECOND, Event::StepDown);
    assert_eq!((raft.role(), raft.term(), raft.leader()), (Role::Follower, Term(2), None));
}

#[test]
fn successor_and_a_quorum_without_the_leader_have_the_whole_log() {
    let mut raft = node(3, 1, &[]);
    lead(&mut raft, SECOND);
    propose(&mut raft, SECOND);
    let none = BTreeSet::new();
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), accepted(2, 3)));
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(2), accepted(2, 2)));
    assert_eq!(
        raft.successor(&none),
        None,
        "node 1 and this node, which cannot write, could not commit anything"
    );
    assert!(raft.can_be_replaced(), "another node could be elected");
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(2), accepted(2, 3)));
    let first = raft.successor(&none).unwrap();
    let second = raft.successor(&BTreeSet::from([first])).unwrap();
    assert_ne!(first, second, "another candidate is preferred after a failed transfer");
    // Silent nodes do not count.
    raft.step(SECOND + raft_timeout(), Event::Tick);
    assert!(raft.successor(&none).is_none() && !raft.can_be_replaced());
}

fn raft_timeout() -> std::time::Duration {
    consensus_raft_protocol::Config::new(NodeId(0)).election_timeout
}
