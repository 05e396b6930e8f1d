//! Limits, and messages with implausible content.

mod common;

use std::time::Duration;

use common::{LOG_1, SECOND, accepted, append, configured, lead, node, step, vote};
use consensus_core::{
    AppendOutcome, AppendResponse, LeadershipId, LogId, LogIndex, Membership, NodeId, ReadIndexResponse,
    SnapshotMeta, StorageId, Term, VoteKind, VoteRequest,
};
use consensus_raft_protocol::{Append, ArrivalOutcome, Config, EntryInfo, Event, Output, Raft};

#[test]
fn invalid_setting_is_named_with_allowed_values() {
    let ms = Duration::from_millis;
    let refused = |change: fn(&mut Config)| {
        let mut config = Config::new(NodeId(0));
        change(&mut config);
        config.validate().map_err(|error| error.to_string())
    };
    let must = |what: &str| Err(what.to_owned());
    assert_eq!(refused(|_| ()), Ok(()));
    assert_eq!(
        refused(|c| c.heartbeat_interval = Duration::ZERO),
        must("heartbeat_interval must be more than 0")
    );
    let timeouts = |heartbeat, election| {
        let config = Config {
            heartbeat_interval: ms(heartbeat),
            election_timeout: ms(election),
            ..Config::new(NodeId(0))
        };
        config.validate().map_err(|error| error.key)
    };
    assert_eq!((timeouts(50, 100), timeouts(50, 99)), (Ok(()), Err("election_timeout")));
    let day = 24 * 60 * 60 * 1000;
    assert_eq!((timeouts(50, day), timeouts(50, day + 1)), (Ok(()), Err("election_timeout")));
    assert_eq!(timeouts(u64::MAX, u64::MAX), Err("election_timeout"));
    assert_eq!(refused(|c| c.lease_drift_percent = 50), Ok(()));
    assert_eq!(refused(|c| c.lease_drift_percent = 51), must("lease_drift_percent must be at most 50"));
    assert_eq!(refused(|c| c.append_entries_max = 0), must("append_entries_max must be at least 1"));
    assert_eq!(refused(|c| c.inflight_messages_max = 0), must("inflight_messages_max must be at least 1"));
    assert_eq!(refused(|c| c.inflight_bytes_max = 0), must("inflight_bytes_max must be at least 1"));
}

/// Last index of each message with entries to node 1.
fn sent(outputs: &[Output]) -> Vec<u64> {
    let to_1 = |output: &Output| match output {
        Output::SendAppend(NodeId(1), append) if append.last > append.prev.index => Some(append.last.0),
        _ => None,
    };
    outputs.iter().filter_map(to_1).collect()
}

/// A leader of three voters that knows the end of node 1's log, with four entries of 100 bytes to send to it.
fn with_four_to_send(configure: impl FnOnce(&mut Config)) -> (Raft, Vec<u64>) {
    let mut raft = configured(3, 0, &[], configure);
    lead(&mut raft, SECOND);
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), accepted(1, 2)));
    for _ in 0..4 {
        raft.propose(SECOND, &[100]);
    }
    let first = sent(&raft.finish_turn(SECOND));
    (raft, first)
}

fn acknowledge(raft: &mut Raft, matched: u64) -> Vec<u64> {
    sent(&step(raft, SECOND, Event::AppendResponse(NodeId(1), accepted(1, matched))))
}

#[test]
fn messages_in_flight_are_limited() {
    let (mut raft, first) = with_four_to_send(|config| {
        config.append_entries_max = 1;
        config.inflight_messages_max = 2;
    });
    assert_eq!(first, [3, 4]);
    assert_eq!(acknowledge(&mut raft, 3), [5]);
    assert_eq!(acknowledge(&mut raft, 5), [6], "two are acknowledged, one is left");
}

#[test]
fn bytes_in_flight_are_limited() {
    // A message is sent while there is any room, so the limit is exceeded by at most one message.
    for (bytes_max, expected) in [(100, vec![3]), (101, vec![3, 4]), (201, vec![3, 4, 5])] {
        let (mut raft, first) = with_four_to_send(|config| {
            config.append_entries_max = 1;
            config.inflight_bytes_max = bytes_max;
        });
        assert_eq!(first, expected, "{bytes_max}");
        assert_eq!(acknowledge(&mut raft, 3), [expected.len() as u64 + 3], "{bytes_max}");
    }
}

#[test]
fn entries_and_bytes_of_a_message_are_limited() {
    let (_, by_count) = with_four_to_send(|config| config.append_entries_max = 3);
    assert_eq!(by_count, [5, 6]);
    let (_, by_bytes) = with_four_to_send(|config| config.append_bytes_max = 200);
    assert_eq!(by_bytes, [4, 6]);
    let (_, one_at_least) = with_four_to_send(|config| config.append_bytes_max = 1);
    assert_eq!(one_at_least, [3, 4, 5, 6]);
}

/// Larger than any plausible term or index.
const TOO_LARGE: u64 = (1 << 62) + 1;

#[test]
fn implausible_numbers_are_ignored() {
    let (large, storage) = (Term(TOO_LARGE), StorageId(0));
    let far = |term, index| LogId::new(term, index);
    let request = |term, last_log| {
        let request = VoteRequest { kind: VoteKind::Vote, term, last_log, storage, voter_storage: None };
        Event::VoteRequest(NodeId(1), request)
    };
    let appended = |term, prev: LogId, last, entry| {
        let append = Append {
            term,
            prev,
            prev_leadership: LeadershipId::NONE,
            last: LogIndex(last),
            commit: LogIndex(0),
            round: 1,
        };
        let entries = vec![EntryInfo { term: Term(entry), size_bytes: 1, membership: None }];
        Event::Append { from: NodeId(1), append, entries }
    };
    let refused = vote(VoteKind::Vote, TOO_LARGE);
    let snapshot = |term, last| {
        let meta = SnapshotMeta { last, membership: Membership::of_voters(0..3) };
        Event::SnapshotArrived { from: NodeId(1), term, meta }
    };
    for event in [
        request(large, LOG_1),
        request(Term(1), far(TOO_LARGE, 1)),
        request(Term(1), far(1, TOO_LARGE)),
        Event::VoteResponse(NodeId(1), consensus_core::VoteResponse { granted: false, ..refused }),
        appended(large, LOG_1, 2, 1),
        appended(Term(1), far(TOO_LARGE, 1), 2, 1),
        appended(Term(1), LOG_1, TOO_LARGE, 1),
        appended(Term(1), LOG_1, 2, TOO_LARGE),
        snapshot(large, far(1, 9)),
        snapshot(Term(1), far(TOO_LARGE, 9)),
        snapshot(Term(1), far(1, TOO_LARGE)),
    ] {
        let mut raft = node(3, 0, &[]);
        let outputs = step(&mut raft, SECOND, event.clone());
        let answer: &[Output] = match event {
            // The driver waits for the outcome.
            Event::SnapshotArrived { .. } => &[Output::SnapshotSettled(ArrivalOutcome::Refused)],
            _ => &[],
        };
        assert_eq!((raft.term(), raft.last_log(), &*outputs), (Term(0), LOG_1, answer), "{event:?}");
    }
}

#[test]
fn leader_ignores_implausible_numbers() {
    for (term, outcome) in [
        (TOO_LARGE, AppendOutcome::Accepted { matched: LogIndex(2) }),
        (1, AppendOutcome::Accepted { matched: LogIndex(TOO_LARGE) }),
        (1, AppendOutcome::Rejected { prev: LogIndex(TOO_LARGE), hint: LOG_1 }),
        (1, AppendOutcome::Rejected { prev: LogIndex(1), hint: LogId::new(TOO_LARGE, 0) }),
        (1, AppendOutcome::Rejected { prev: LogIndex(1), hint: LogId::new(0, TOO_LARGE) }),
    ] {
        let mut raft = node(3, 0, &[]);
        lead(&mut raft, SECOND);
        let response =
            AppendResponse { term: Term(term), round: 0, outcome, storage: StorageId(0), joining: false };
        let outputs = step(&mut raft, SECOND * 2, Event::AppendResponse(NodeId(1), response));
        assert_eq!((raft.term(), outputs), (Term(1), vec![]), "{outcome:?}");
        assert!(!raft.peers()[&NodeId(1)].active, "{outcome:?}: the response does not count as contact");
    }
}

#[test]
fn follower_ignores_implausible_numbers_of_its_leader() {
    let mut raft = node(3, 1, &[]);
    step(&mut raft, SECOND, append(1, LOG_1, &[1], 1));
    let outputs = step(&mut raft, SECOND, Event::Read { token: 5, lease: false });
    let id = outputs.iter().find_map(|output| match output {
        Output::Send(_, consensus_raft_protocol::ControlMessage::ReadIndexRequest(request)) => {
            Some(request.id)
        }
        _ => None,
    });
    let answer = |index| {
        let response = ReadIndexResponse { term: Term(1), id: id.unwrap(), index: Some(LogIndex(index)) };
        Event::ReadIndexResponse(NodeId(1), response)
    };
    assert_eq!(step(&mut raft, SECOND, answer(TOO_LARGE)), []);
    assert_eq!(step(&mut raft, SECOND, answer(2)), [Output::ReadReady(5, LogIndex(2))]);
}

#[test]
fn inconsistent_message_is_ignored() {
    let message = |last, prev, entries: &[u64]| {
        let append = Append {
            term: Term(2),
            prev,
            prev_leadership: LeadershipId::NONE,
            last: LogIndex(last),
            commit: LogIndex(0),
            round: 0,
        };
        let entries =
            entries.iter().map(|term| EntryInfo { term: Term(*term), size_bytes: 1, membership: None });
        Event::Append { from: NodeId(1), append, entries: entries.collect() }
    };
    for (what, event) in [
        ("fewer entries than its header has", message(3, LOG_1, &[1])),
        ("more entries than its header has", message(2, LOG_1, &[1, 1])),
        ("an end before its start", message(0, LOG_1, &[])),
        ("decreasing terms", message(3, LOG_1, &[2, 1])),
        ("an entry with a lower term than `prev`", message(3, LogId::new(2, 2), &[1])),
        ("an entry with a higher term than the leader's", message(2, LOG_1, &[3])),
    ] {
        let mut raft = node(3, 0, &[]);
        assert_eq!(step(&mut raft, SECOND, event), [], "{what}");
        assert_eq!((raft.leader(), raft.last_log()), (None, LOG_1), "{what}");
    }
    assert!(!step(&mut node(3, 0, &[]), SECOND, message(3, LOG_1, &[1, 2])).is_empty());
}

#[test]
fn snapshot_of_earlier_term_to_leader_or_during_installation_is_refused() {
    let refused = |raft: &mut Raft, term| {
        let meta = SnapshotMeta { last: LogId::new(1, 9), membership: Membership::of_voters(0..3) };
        let event = Event::SnapshotArrived { from: NodeId(1), term: Term(term), meta };
        let outputs = step(raft, SECOND, event);
        let installs = outputs.iter().any(|output| matches!(output, Output::Install(_)));
        let refused = outputs.contains(&Output::SnapshotSettled(ArrivalOutcome::Refused));
        assert_ne!(installs, refused, "{outputs:?}");
        refused
    };
    assert!(refused(&mut node(3, 2, &[]), 1), "a snapshot of an earlier term");
    let mut leader = node(3, 0, &[]);
    lead(&mut leader, SECOND);
    assert!(refused(&mut leader, 1), "a snapshot sent to a leader of the term");
    let mut raft = node(3, 2, &[]);
    assert!(!refused(&mut raft, 2));
    assert!(refused(&mut raft, 2), "a second snapshot");
}
