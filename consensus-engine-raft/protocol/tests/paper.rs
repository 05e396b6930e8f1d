//! Tests of sentences of the papers: Ongaro & Ousterhout 2014 by section; "D" is Ongaro's dissertation.

mod common;

use std::time::Duration;

use common::{SECOND, accepted, append, lead, node, outcome, propose, step, vote};
use consensus_core::{
    AppendOutcome, AppendResponse, HardState, LogId, LogIndex, LogState, Membership, NodeId, Role,
    SnapshotMeta, StorageId, Term, VoteKind, VoteRequest, VoteResponse,
};
use consensus_raft_protocol::{
    Append, Config, ControlMessage, Event, InterruptedInstall, Output, Raft, Restored, Time,
};

fn granted(outputs: &[Output]) -> Option<bool> {
    outputs.iter().find_map(|output| match output {
        Output::Send(_, ControlMessage::VoteResponse(response)) => Some(response.granted),
        _ => None,
    })
}

fn ask(raft: &mut Raft, from: u64, kind: VoteKind, term: u64, last_log: LogId) -> Option<bool> {
    let request =
        VoteRequest { kind, term: Term(term), last_log, storage: StorageId(0), voter_storage: None };
    granted(&step(raft, raft_time(), Event::VoteRequest(NodeId(from), request)))
}

fn raft_time() -> Time {
    SECOND * 10
}

#[test]
fn figure_2_persistent_state_is_updated_on_stable_storage_before_responding() {
    let mut raft = node(3, 0, &[]);
    let request = VoteRequest {
        kind: VoteKind::Vote,
        term: Term(1),
        last_log: LogId::new(0, 1),
        storage: StorageId(0),
        voter_storage: None,
    };
    let early = raft.step(SECOND, Event::VoteRequest(NodeId(1), request));
    assert_eq!(granted(&early), None, "no response before the vote is durable");
    let persist = raft.take_persist().unwrap();
    assert_eq!(persist.hard_state.unwrap().voted_for, Some(NodeId(1)), "term and vote in one write");
    assert_eq!(granted(&raft.step(SECOND, Event::Persisted)), Some(true));
}

#[test]
fn section_5_2_each_server_votes_for_at_most_one_candidate_in_a_term() {
    let mut raft = node(3, 0, &[]);
    let last = LogId::new(0, 1);
    assert_eq!(ask(&mut raft, 1, VoteKind::Vote, 1, last), Some(true));
    assert_eq!(ask(&mut raft, 2, VoteKind::Vote, 1, last), Some(false));
    assert_eq!(
        ask(&mut raft, 1, VoteKind::Vote, 1, last),
        Some(true),
        "the same candidate gets the same response"
    );
    assert_eq!(ask(&mut raft, 2, VoteKind::Vote, 2, last), Some(true), "the node has one vote in each term");
}

#[test]
fn section_5_2_duplicated_vote_counts_once() {
    let mut raft = node(5, 0, &[]);
    step(&mut raft, SECOND, Event::Tick);
    for _ in 0..5 {
        step(&mut raft, SECOND, Event::VoteResponse(NodeId(1), vote(VoteKind::PreVote, 1)));
    }
    assert_eq!(raft.role(), Role::PreCandidate);
    // A vote of a node that is no voter does not count either.
    step(&mut raft, SECOND, Event::VoteResponse(NodeId(77), vote(VoteKind::PreVote, 1)));
    assert_eq!(raft.role(), Role::PreCandidate);
}

#[test]
fn section_5_4_1_voter_denies_its_vote_if_its_own_log_is_more_up_to_date() {
    for (last_log, expected) in [
        (LogId::new(3, 1), true),  // a later term, though shorter
        (LogId::new(2, 3), true),  // the same
        (LogId::new(2, 2), false), // shorter
        (LogId::new(1, 9), false), // longer, of an earlier term
    ] {
        let mut raft = node(3, 2, &[1, 2]);
        assert_eq!(ask(&mut raft, 1, VoteKind::Vote, 5, last_log), Some(expected), "{last_log}");
    }
}

#[test]
fn section_5_3_consistency_check_removes_only_conflicting_suffix() {
    let mut raft = node(3, 3, &[1, 1, 2]);
    // The entry `prev` is missing: rejected with a hint that skips the whole term.
    let outputs = step(&mut raft, SECOND, append(4, LogId::new(3, 4), &[4], 0));
    let hint = LogId::new(2, 4);
    assert_eq!(outcome(&outputs), Some(AppendOutcome::Rejected { prev: LogIndex(4), hint }));
    // A conflict removes the entry and all later ones.
    let outputs = step(&mut raft, SECOND, append(4, LogId::new(1, 2), &[4, 4], 0));
    assert_eq!(outcome(&outputs), Some(AppendOutcome::Accepted { matched: LogIndex(4) }));
    assert_eq!(raft.last_log(), LogId::new(4, 4));
    // An old message that ends earlier removes nothing; only its own entries are acknowledged (I5).
    let outputs = step(&mut raft, SECOND, append(4, LogId::new(1, 2), &[4], 0));
    assert_eq!(outcome(&outputs), Some(AppendOutcome::Accepted { matched: LogIndex(3) }));
    assert_eq!(raft.last_log(), LogId::new(4, 4));
}

#[test]
fn section_5_3_follower_commits_no_further_than_the_entries_sent() {
    let mut raft = node(3, 1, &[1, 1, 1]);
    step(&mut raft, SECOND, append(2, LogId::new(0, 1), &[1], 4));
    assert_eq!(raft.commit(), LogIndex(2));
}

#[test]
fn figure_8_entry_of_earlier_term_is_not_committed_by_counting() {
    // (c): node 0 is leader of term 4; the entry of term 2 reaches a majority.
    let mut raft = node(5, 3, &[1, 2]);
    lead(&mut raft, SECOND);
    assert_eq!(raft.last_log(), LogId::new(4, 4), "a blank entry of its own term follows");
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), accepted(4, 3)));
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(2), accepted(4, 3)));
    assert_eq!(raft.commit(), LogIndex(0));
    // (e): with an entry of term 4 on a majority, earlier entries are committed with it.
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), accepted(4, 4)));
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(2), accepted(4, 4)));
    assert_eq!(raft.commit(), LogIndex(4));
}

#[test]
fn leader_counts_its_own_disk_like_any_other() {
    // Two of three followers have the entry; the leader's own write is in flight.
    let mut raft = node(2, 0, &[]);
    lead(&mut raft, SECOND);
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), accepted(1, 2)));
    assert_eq!(raft.commit(), LogIndex(2));
    raft.propose(SECOND, &[100]);
    raft.finish_turn(SECOND);
    assert!(raft.take_persist().is_some());
    raft.step(SECOND, Event::AppendResponse(NodeId(1), accepted(1, 3)));
    assert_eq!(raft.commit(), LogIndex(2), "one of two disks is not a majority");
    raft.step(SECOND, Event::Persisted);
    assert_eq!(raft.commit(), LogIndex(3));
}

#[test]
fn acknowledgement_of_earlier_term_does_not_count() {
    let mut raft = node(3, 1, &[1, 1]);
    lead(&mut raft, SECOND);
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), accepted(1, 4)));
    assert_eq!(raft.commit(), LogIndex(0));
}

#[test]
fn d_9_6_pre_vote_changes_no_term_and_no_vote() {
    let mut raft = node(3, 1, &[1]);
    assert_eq!(ask(&mut raft, 1, VoteKind::PreVote, 9, LogId::new(1, 2)), Some(true));
    assert_eq!((raft.term(), raft.hard_state().voted_for), (Term(1), None));
    // Its own term does not change either without a majority.
    for second in 11..20 {
        step(&mut raft, SECOND * second, Event::Tick);
    }
    assert_eq!((raft.role(), raft.term()), (Role::PreCandidate, Term(1)));
}

#[test]
fn d_4_2_3_node_in_touch_with_leader_does_not_vote() {
    let mut raft = node(3, 1, &[1]);
    let now = raft_time();
    step(&mut raft, now, append(1, LogId::new(1, 2), &[], 0));
    for kind in [VoteKind::PreVote, VoteKind::Vote] {
        let request = VoteRequest {
            kind,
            term: Term(2),
            last_log: LogId::new(1, 9),
            storage: StorageId(0),
            voter_storage: None,
        };
        assert_eq!(granted(&step(&mut raft, now, Event::VoteRequest(NodeId(2), request))), Some(false));
        assert_eq!(raft.term(), Term(1));
    }
    // It votes once the leader has been silent for an election timeout.
    let request = VoteRequest {
        kind: VoteKind::Vote,
        term: Term(2),
        last_log: LogId::new(1, 9),
        storage: StorageId(0),
        voter_storage: None,
    };
    let later = now + Duration::from_millis(500);
    assert_eq!(granted(&step(&mut raft, later, Event::VoteRequest(NodeId(2), request))), Some(true));
}

#[test]
fn refused_pre_vote_with_higher_term_raises_the_term() {
    // Otherwise two nodes could refuse each other for ever.
    let mut raft = node(3, 1, &[1]);
    step(&mut raft, SECOND, Event::Tick);
    let refused = VoteResponse { granted: false, ..vote(VoteKind::PreVote, 6) };
    step(&mut raft, SECOND, Event::VoteResponse(NodeId(1), refused));
    assert_eq!((raft.role(), raft.term()), (Role::Follower, Term(6)));
}

#[test]
fn d_6_2_leader_without_quorum_steps_down_and_refuses_reads() {
    let mut raft = node(3, 0, &[]);
    lead(&mut raft, SECOND);
    step(&mut raft, SECOND, Event::Read { lease: false, token: 7 });
    let outputs = step(&mut raft, SECOND * 2, Event::Tick);
    assert_eq!(raft.role(), Role::Follower);
    assert!(outputs.contains(&Output::ReadRefused(7)), "{outputs:?}");
}

#[test]
fn d_6_4_read_waits_for_entry_of_the_term_and_for_a_quorum_after_it() {
    let mut raft = node(3, 0, &[]);
    lead(&mut raft, SECOND);
    let outputs = step(&mut raft, SECOND, Event::Read { lease: false, token: 7 });
    assert!(!outputs.iter().any(|output| matches!(output, Output::ReadReady(..))));
    // The blank entry is committed: the index is recorded, and a round starts.
    let outputs = step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), accepted(1, 2)));
    assert!(
        outputs.iter().any(|output| matches!(output, Output::SendAppend(_, Append { round: 1, .. }))),
        "{outputs:?}"
    );
    assert!(!outputs.iter().any(|output| matches!(output, Output::ReadReady(..))));
    // A response to an earlier round does not confirm this one.
    let late = step(&mut raft, SECOND, Event::AppendResponse(NodeId(2), accepted(1, 2)));
    assert!(!late.iter().any(|output| matches!(output, Output::ReadReady(..))));
    let outcome = AppendOutcome::Accepted { matched: LogIndex(2) };
    let response = AppendResponse { term: Term(1), round: 1, outcome, storage: StorageId(0), joining: false };
    let outputs = step(&mut raft, SECOND, Event::AppendResponse(NodeId(2), response));
    assert!(outputs.contains(&Output::ReadReady(7, LogIndex(2))), "{outputs:?}");
}

#[test]
fn d_6_4_reads_of_one_turn_share_a_round() {
    let mut raft = node(3, 0, &[]);
    lead(&mut raft, SECOND);
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), accepted(1, 2)));
    for token in 0..3 {
        assert_eq!(raft.step(SECOND, Event::Read { token, lease: false }), []);
    }
    let rounds = |outputs: &[Output]| {
        let to_1 = |output: &Output| match output {
            Output::SendAppend(NodeId(1), append) => Some(append.round),
            _ => None,
        };
        outputs.iter().filter_map(to_1).collect::<Vec<_>>()
    };
    assert_eq!(rounds(&raft.finish_turn(SECOND)), [1]);
    // A later read is not confirmed by an earlier round.
    raft.step(SECOND, Event::Read { token: 3, lease: false });
    assert_eq!(rounds(&raft.finish_turn(SECOND)), [2]);
    let mut answer = |round| {
        let response = AppendResponse { round, ..accepted(1, 2) };
        step(&mut raft, SECOND, Event::AppendResponse(NodeId(2), response))
    };
    assert_eq!(answer(1), [0, 1, 2].map(|token| Output::ReadReady(token, LogIndex(2))));
    assert_eq!(answer(2), [Output::ReadReady(3, LogIndex(2))]);
}

#[test]
fn single_voter_commits_once_its_own_write_is_durable() {
    let mut raft = node(1, 0, &[]);
    step(&mut raft, Time::ZERO, Event::Tick);
    assert_eq!((raft.role(), raft.commit()), (Role::Leader, LogIndex(2)));
    raft.propose(SECOND, &[100]);
    assert_eq!(raft.commit(), LogIndex(2));
    assert!(raft.take_persist().is_some());
    let outputs = raft.step(SECOND, Event::Persisted);
    assert!(outputs.contains(&Output::Apply(LogIndex(3))), "{outputs:?}");
}

#[test]
fn section_7_snapshot_replaces_log_without_its_last_entry() {
    let mut raft = node(3, 1, &[1, 1, 1]);
    let meta = SnapshotMeta { last: LogId::new(2, 3), membership: Membership::of_voters(0..3) };
    let arrived = Event::SnapshotArrived { from: NodeId(1), term: Term(2), meta: meta.clone() };
    let outputs = raft.step(SECOND, arrived);
    assert!(
        !outputs.iter().any(|o| matches!(o, Output::Install(_))),
        "`installing` is durable before the state machine is changed"
    );
    assert_eq!(raft.take_persist().unwrap().hard_state.unwrap().installing, Some(meta.clone()));
    let outputs = raft.step(SECOND, Event::Persisted);
    assert!(outputs.contains(&Output::Install(meta.clone())));
    raft.step(SECOND, Event::SnapshotInstalled);
    let persist = raft.take_persist().unwrap();
    assert_eq!(
        (persist.purge, persist.truncate_after),
        (Some(meta), Some(LogIndex(3))),
        "the conflicting tail is removed"
    );
    assert_eq!(persist.hard_state.unwrap().installing, None);
    assert_eq!(raft.last_log(), LogId::new(2, 3));
    // The node then accepts the entries after the snapshot.
    raft.step(SECOND, Event::Persisted);
    let outputs = step(&mut raft, SECOND, append(2, LogId::new(2, 3), &[2], 4));
    assert_eq!(outcome(&outputs), Some(AppendOutcome::Accepted { matched: LogIndex(4) }));
}

/// A new leader probes the follower and finds that its own log does not reach far enough back.
#[test]
fn section_7_follower_behind_the_purged_log_is_sent_a_snapshot() {
    let log = LogState {
        hard_state: HardState { term: Term(2), ..HardState::default() },
        purged: SnapshotMeta { last: LogId::new(2, 100), membership: Membership::of_voters(0..3) },
        entries: vec![(LogId::new(2, 101), 100), (LogId::new(2, 102), 100)],
        ..LogState::default()
    };
    // Logs that end within the purged part, and one that ends after it with another history.
    for hint in [LogId::new(0, 0), LogId::new(1, 7), LogId::new(1, 100)] {
        let restored = Restored { log: log.clone(), applied: LogIndex(100) };
        let mut raft = Raft::new(Config::new(NodeId(0)), restored, Time::ZERO).unwrap();
        lead(&mut raft, SECOND);
        let mut prev = LogIndex(102);
        let mut probes = 0;
        let outputs = loop {
            let outcome = AppendOutcome::Rejected { prev, hint };
            let response = AppendResponse {
                term: raft.term(),
                round: 0,
                outcome,
                storage: StorageId(0),
                joining: false,
            };
            let outputs = step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), response));
            let next = outputs.iter().find_map(|output| match output {
                Output::SendAppend(NodeId(1), append) => Some(append.prev.index),
                _ => None,
            });
            let Some(next) = next else { break outputs };
            probes += 1;
            assert!(next < prev && probes < 3, "{prev} was rejected, {next} is tried");
            prev = next;
        };
        assert!(outputs.contains(&Output::SendSnapshot(NodeId(1))), "{hint}: {outputs:?}");
    }
}

/// Not in the paper: a snapshot for a stopped node would be outdated when it starts.
#[test]
fn section_7_silent_follower_is_sent_a_snapshot_when_it_responds_again() {
    let mut raft = node(3, 0, &[]);
    lead(&mut raft, SECOND);
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(2), accepted(1, 2)));
    let mut now = SECOND;
    let mut step_to = |raft: &mut Raft, event| {
        now += Duration::from_millis(100);
        step(raft, now, event)
    };
    let sends = |outputs: &[Output]| outputs.contains(&Output::SendSnapshot(NodeId(2)));
    for entry in 3..13 {
        propose(&mut raft, SECOND);
        step_to(&mut raft, Event::AppendResponse(NodeId(1), accepted(1, entry)));
    }
    // Its messages were lost, so the leader probes at its last position, which is purged now.
    step_to(&mut raft, Event::SendFailed(NodeId(2)));
    step_to(&mut raft, Event::Compact(LogIndex(8)));
    assert_eq!(raft.purged().index, LogIndex(8));
    for _ in 0..10 {
        let outputs = step_to(&mut raft, Event::Tick);
        assert!(!sends(&outputs), "{outputs:?}");
        step_to(&mut raft, Event::AppendResponse(NodeId(1), accepted(1, 12)));
    }
    let rejected = AppendOutcome::Rejected { prev: LogIndex(8), hint: LogId::new(1, 2) };
    let answer = AppendResponse { outcome: rejected, ..accepted(1, 0) };
    let outputs = step_to(&mut raft, Event::AppendResponse(NodeId(2), answer));
    assert!(sends(&outputs), "{outputs:?}");
}

#[test]
fn section_7_snapshot_of_entries_in_the_log_keeps_later_entries() {
    let mut raft = node(3, 1, &[1, 1, 1]);
    let meta = SnapshotMeta { last: LogId::new(1, 3), membership: Membership::of_voters(0..3) };
    step(&mut raft, SECOND, Event::SnapshotArrived { from: NodeId(1), term: Term(1), meta });
    assert_eq!((raft.last_log(), raft.commit()), (LogId::new(1, 4), LogIndex(3)));
}

#[test]
fn response_of_earlier_term_is_not_sent() {
    let mut raft = node(3, 0, &[]);
    let request = |term| {
        let last_log = LogId::new(0, 1);
        Event::VoteRequest(
            NodeId(term),
            VoteRequest {
                kind: VoteKind::Vote,
                term: Term(term),
                last_log,
                storage: StorageId(0),
                voter_storage: None,
            },
        )
    };
    raft.step(SECOND, request(1));
    assert!(raft.take_persist().is_some());
    raft.step(SECOND, request(2));
    assert_eq!(granted(&raft.step(SECOND, Event::Persisted)), None, "only the vote of term 1 is durable");
    assert!(raft.take_persist().is_some());
    assert_eq!(granted(&raft.step(SECOND, Event::Persisted)), Some(true), "the vote of term 2 is durable");
}

#[test]
fn section_5_2_response_to_earlier_vote_request_does_not_count() {
    let mut raft = node(3, 0, &[]);
    step(&mut raft, SECOND, Event::Tick);
    // The response to its request in term 0 arrives while it campaigns in term 3.
    let behind = VoteResponse { granted: false, ..vote(VoteKind::PreVote, 3) };
    step(&mut raft, SECOND, Event::VoteResponse(NodeId(1), behind));
    step(&mut raft, SECOND * 3, Event::Tick);
    assert_eq!((raft.role(), raft.term()), (Role::PreCandidate, Term(3)));
    let mut answer = |kind, term| {
        step(&mut raft, SECOND * 3, Event::VoteResponse(NodeId(1), vote(kind, term)));
        (raft.role(), raft.term())
    };
    assert_eq!(answer(VoteKind::PreVote, 1), (Role::PreCandidate, Term(3)));
    assert_eq!(
        answer(VoteKind::Vote, 4),
        (Role::PreCandidate, Term(3)),
        "a vote does not count as a pre-vote"
    );
    assert_eq!(answer(VoteKind::PreVote, 4), (Role::Candidate, Term(4)));
    assert_eq!(
        answer(VoteKind::PreVote, 4),
        (Role::Candidate, Term(4)),
        "a pre-vote does not count as a vote"
    );
    assert_eq!(answer(VoteKind::Vote, 3), (Role::Candidate, Term(4)));
    assert_eq!(answer(VoteKind::Vote, 4), (Role::Leader, Term(4)));
}

#[test]
fn follower_of_a_leader_votes_for_no_other_node_in_its_term() {
    let mut raft = node(3, 0, &[]);
    step(&mut raft, SECOND, append(2, LogId::new(0, 1), &[], 0));
    assert_eq!(
        ask(&mut raft, 2, VoteKind::Vote, 2, LogId::new(2, 9)),
        Some(false),
        "even long after it heard the leader"
    );
    assert_eq!(ask(&mut raft, 2, VoteKind::Vote, 3, LogId::new(2, 9)), Some(true));
}

#[test]
fn without_leases_follower_without_leader_votes_at_once() {
    let mut raft = node(3, 0, &[]);
    let now = raft_time();
    step(&mut raft, now, append(1, LogId::new(0, 1), &[], 0));
    assert_eq!(
        ask(&mut raft, 2, VoteKind::Vote, 6, LogId::new(9, 9)),
        Some(false),
        "the node is in touch with its leader"
    );
    let later_term = VoteResponse { granted: false, ..vote(VoteKind::PreVote, 5) };
    step(&mut raft, now, Event::VoteResponse(NodeId(1), later_term));
    assert_eq!(ask(&mut raft, 2, VoteKind::Vote, 6, LogId::new(9, 9)), Some(true));
}

#[test]
fn d_6_2_leader_steps_down_an_election_timeout_after_its_quorum_was_heard() {
    let timeout = Config::new(NodeId(0)).election_timeout;
    let role_after = |silence| {
        let mut raft = node(3, 0, &[]);
        lead(&mut raft, SECOND);
        step(&mut raft, SECOND + silence, Event::Tick);
        raft.role()
    };
    let moment = Duration::from_millis(1);
    assert_eq!((role_after(timeout - moment), role_after(timeout)), (Role::Leader, Role::Follower));
}

#[test]
fn accessors_return_state_of_node_and_peers() {
    let own = Raft::new(Config::new(NodeId(2)), Restored::default(), Duration::ZERO).unwrap().id();
    let mut raft = node(3, 0, &[1, 1]);
    assert_eq!((raft.durable(), raft.storage(), raft.peers().len()), (LogIndex(3), StorageId(0), 0));
    assert_eq!((raft.leader(), own), (None, NodeId(2)));
    lead(&mut raft, SECOND);
    assert_eq!(raft.leader(), Some(NodeId(0)));
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), accepted(1, 4)));
    assert_eq!((raft.durable(), raft.log_bytes(), raft.log_tail(132)), (LogIndex(4), 332, LogIndex(2)));
    let timeout = Config::new(NodeId(0)).election_timeout;
    // One response to a round, and no further ones.
    propose(&mut raft, SECOND + timeout - Duration::from_millis(1));
    assert!(raft.peers()[&NodeId(2)].active);
    step(&mut raft, SECOND + timeout, Event::AppendResponse(NodeId(1), accepted(1, 5)));
    let peers = raft.peers();
    assert_eq!((peers[&NodeId(1)].matched, peers[&NodeId(2)].matched), (LogIndex(5), LogIndex(0)));
    assert_eq!((peers[&NodeId(1)].active, peers[&NodeId(2)].active), (true, false));
}

#[test]
fn interrupted_installation_is_completed_if_the_state_was_restored() {
    let meta = SnapshotMeta { last: LogId::new(2, 7), ..SnapshotMeta::default() };
    let hard = HardState { installing: Some(meta.clone()), ..HardState::default() };
    let todo = |applied| Raft::interrupted_install(&hard, LogIndex(applied));
    assert_eq!(todo(6), Some(InterruptedInstall::Discard));
    assert_eq!(
        (todo(7), todo(8)),
        (Some(InterruptedInstall::Finish(meta.clone())), Some(InterruptedInstall::Finish(meta)))
    );
    assert_eq!(Raft::interrupted_install(&HardState::default(), LogIndex(7)), None);
}

#[test]
fn storage_is_that_of_the_restored_log() {
    let log = LogState { storage: StorageId(7), ..LogState::default() };
    let raft =
        Raft::new(Config::new(NodeId(0)), Restored { log, applied: LogIndex::ZERO }, Time::ZERO).unwrap();
    assert_eq!(raft.storage(), StorageId(7));
}

/// Entries sent to node 1, as `(prev, last]`.
fn appends(outputs: &[Output]) -> Vec<(u64, u64)> {
    let to_1 = |output: &Output| match output {
        Output::SendAppend(NodeId(1), append) => Some((append.prev.index.0, append.last.0)),
        _ => None,
    };
    outputs.iter().filter_map(to_1).collect()
}

fn rejected(term: u64, prev: u64) -> Event {
    let outcome = AppendOutcome::Rejected { prev: LogIndex(prev), hint: LogId::new(0, 1) };
    Event::AppendResponse(NodeId(1), AppendResponse { outcome, ..accepted(term, 0) })
}

/// Leader of term 1; node 1 has entry 2, and entry 3 is in flight to it.
fn leader_with_one_in_flight() -> Raft {
    let mut raft = node(3, 0, &[]);
    lead(&mut raft, SECOND);
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), accepted(1, 2)));
    let (_, outputs) = propose(&mut raft, SECOND);
    assert_eq!(appends(&outputs), [(2, 3)]);
    raft
}

#[test]
fn section_5_3_leader_retries_after_the_last_acknowledged_entry() {
    let mut raft = leader_with_one_in_flight();
    assert_eq!(
        appends(&step(&mut raft, SECOND, Event::SendFailed(NodeId(1)))),
        [],
        "no retry before the next heartbeat"
    );
    let (_, outputs) = propose(&mut raft, SECOND);
    assert_eq!(appends(&outputs), [], "new entries cause no retry either");
    let outputs = step(&mut raft, SECOND + SECOND / 5, Event::Tick);
    assert_eq!(appends(&outputs), [(2, 4)]);
}

#[test]
fn late_rejection_has_no_effect() {
    let mut raft = leader_with_one_in_flight();
    for prev in [1, 2] {
        let outputs = step(&mut raft, SECOND, rejected(1, prev));
        assert_eq!(appends(&outputs), [], "the follower has entry 2, so the rejection is older");
    }
    // The leader probes at entry 2.
    step(&mut raft, SECOND, Event::SendFailed(NodeId(1)));
    assert_eq!(appends(&step(&mut raft, SECOND, rejected(1, 2))), []);
    let mut raft = node(3, 1, &[1, 1]);
    lead(&mut raft, SECOND); // The leader probes at entry 3.
    for prev in [1, 2, 4] {
        assert_eq!(
            appends(&step(&mut raft, SECOND, rejected(2, prev))),
            [],
            "a rejection of another position"
        );
    }
    assert_eq!(appends(&step(&mut raft, SECOND, rejected(2, 3))), [(1, 4)]);
}

#[test]
fn only_first_message_of_a_round_is_acknowledged_before_the_write() {
    let mut raft = node(3, 1, &[]);
    let mut answers = |index: u64, round| {
        let prev = if index == 2 { LogId::new(0, 1) } else { LogId::new(1, index - 1) };
        let Event::Append { from, append, entries } = append(1, prev, &[1], 0) else { unreachable!() };
        let append = Append { round, ..append };
        let outputs = raft.step(SECOND, Event::Append { from, append, entries });
        outcome(&outputs)
    };
    let of_the_disk = Some(AppendOutcome::Accepted { matched: LogIndex(1) });
    assert_eq!(answers(2, 0), None, "a message without a round");
    assert_eq!(answers(3, 1), of_the_disk);
    assert_eq!(answers(4, 1), None, "the same round");
    assert_eq!(answers(5, 2), of_the_disk);
    assert_eq!(answers(6, 1), None, "an earlier round");
}

#[test]
fn early_acknowledgement_is_followed_by_one_after_the_write() {
    let mut raft = node(3, 1, &[]);
    let matched = |outputs: &[Output]| {
        let matched = |output: &Output| match output {
            Output::Send(_, ControlMessage::AppendResponse(AppendResponse { outcome, .. })) => {
                match outcome {
                    AppendOutcome::Accepted { matched } => Some(matched.0),
                    AppendOutcome::Rejected { .. } => None,
                }
            }
            _ => None,
        };
        outputs.iter().filter_map(matched).collect::<Vec<_>>()
    };
    let send = |raft: &mut Raft, terms: &[u64], round| {
        let Event::Append { from, append, entries } = append(1, LogId::new(0, 1), terms, 0) else {
            unreachable!()
        };
        let append = Append { round, ..append };
        matched(&raft.step(SECOND, Event::Append { from, append, entries }))
    };
    assert_eq!(send(&mut raft, &[1, 1], 1), [1]);
    assert!(raft.take_persist().is_some());
    assert_eq!(send(&mut raft, &[], 2), [1], "a heartbeat gets one acknowledgement");
    assert_eq!(matched(&raft.step(SECOND, Event::Persisted)), [3]);
    assert_eq!(send(&mut raft, &[1, 1], 3), [3], "a repeated message gets one acknowledgement");
    // A heartbeat whose `prev` entry is not durable gets no later acknowledgement either.
    send(&mut raft, &[1, 1, 1], 3);
    assert!(raft.take_persist().is_some());
    let heartbeat = append(1, LogId::new(1, 4), &[], 0);
    assert_eq!(matched(&raft.step(SECOND, heartbeat)), [3]);
    assert_eq!(matched(&raft.step(SECOND, Event::Persisted)), [4], "the entries get one acknowledgement");
}

#[test]
fn section_7_follower_is_sent_entries_once_it_reaches_the_start_of_the_log() {
    let mut raft = node(3, 0, &[]);
    lead(&mut raft, SECOND);
    for token in 0..6 {
        propose(&mut raft, SECOND);
        step(&mut raft, SECOND, Event::AppendResponse(NodeId(2), accepted(1, 3 + token)));
    }
    let outputs = step(&mut raft, SECOND, Event::Compact(LogIndex(5)));
    assert!(outputs.contains(&Output::SendSnapshot(NodeId(1))), "{outputs:?}");
    let mut answer = |matched| {
        let outputs = step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), accepted(1, matched)));
        assert!(!outputs.contains(&Output::SendSnapshot(NodeId(1))), "one snapshot at a time");
        (raft.peers()[&NodeId(1)].snapshot_bytes.is_some(), appends(&outputs))
    };
    assert_eq!(answer(2), (true, vec![]), "the entries that the follower needs are purged");
    assert_eq!(answer(4), (true, vec![]));
    assert_eq!(answer(5), (false, vec![(5, 8)]));
}

#[test]
fn section_7_log_is_not_compacted_during_installation() {
    let mut raft = node(3, 1, &[1, 1]);
    step(&mut raft, SECOND, append(1, LogId::new(1, 3), &[], 3));
    let meta = SnapshotMeta { last: LogId::new(1, 9), membership: Membership::of_voters(0..3) };
    step(&mut raft, SECOND, Event::SnapshotArrived { from: NodeId(1), term: Term(1), meta });
    step(&mut raft, SECOND, Event::Compact(LogIndex(2)));
    assert_eq!(raft.purged(), LogId::ZERO);
    step(&mut raft, SECOND, Event::SnapshotInstalled);
    assert_eq!(raft.purged(), LogId::new(1, 9));
}

#[test]
fn section_5_2_election_timeouts_are_randomised_by_the_seed() {
    let timeout = Config::new(NodeId(0)).election_timeout;
    let deadlines = |seed| {
        let mut raft = common::configured(3, 0, &[], |config| config.seed = seed);
        let deadline = |n: u32| {
            step(&mut raft, SECOND * n, append(1, LogId::new(0, 1), &[], 0));
            raft.next_deadline().unwrap() - SECOND * n
        };
        (1..=100).map(deadline).collect::<Vec<_>>()
    };
    let drawn = deadlines(1);
    assert!(drawn.iter().all(|after| (timeout..timeout * 2).contains(after)), "{drawn:?}");
    let sorted = drawn.iter().collect::<std::collections::BTreeSet<_>>();
    let (least, most) = (**sorted.first().unwrap(), **sorted.last().unwrap());
    assert!(sorted.len() > 90 && least < timeout * 11 / 10 && most > timeout * 19 / 10, "{drawn:?}");
    assert_eq!(drawn, deadlines(1), "repeatable");
    assert_ne!(drawn, deadlines(2));
}

/// A node is leader of term 2, starts round 1, and becomes leader again in term 4, which the voter knows. Then the append of
/// term 2 arrives late, and the voter's rejection has term 4. The node has started round 1 of term 4, and must not count the
/// rejection as a response to it: another leader may have been elected since (I9).
#[test]
fn rejection_of_append_of_earlier_term_does_not_count_for_a_round() {
    let mut voter = node(3, 4, &[]);
    let Event::Append { from, append, entries } = append(2, common::LOG_1, &[], 0) else { unreachable!() };
    let append = Append { round: 1, ..append };
    let outputs = step(&mut voter, SECOND, Event::Append { from, append, entries });
    let answers: Vec<_> = outputs
        .iter()
        .filter_map(|output| match output {
            Output::Send(_, ControlMessage::AppendResponse(response)) => {
                Some((response.term, response.round))
            }
            _ => None,
        })
        .collect();
    assert_eq!(answers, [(Term(4), 0)]);
}

/// Entries that are appended during a write do not reduce what the write makes durable (known bug C22).
#[test]
fn write_counts_although_entries_were_appended_during_it() {
    let mut raft = node(3, 1, &[]);
    raft.step(SECOND, append(1, common::LOG_1, &[1], 0));
    raft.finish_turn(SECOND);
    assert!(raft.take_persist().is_some());
    raft.step(SECOND, append(1, LogId::new(1, 2), &[1], 0));
    let outputs = raft.step(SECOND, Event::Persisted);
    assert_eq!(raft.durable(), LogIndex(2));
    assert_eq!(outcome(&outputs), Some(AppendOutcome::Accepted { matched: LogIndex(2) }));
}
