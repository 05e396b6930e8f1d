//! No message of a peer causes a panic by an overflow or a broken invariant.

mod common;

use std::sync::Arc;

use common::{SECOND, configured, lead};
use consensus_core::{
    AppendOutcome, AppendResponse, LeadershipId, LogId, LogIndex, Membership, NodeId, ReadIndexRequest,
    ReadIndexResponse, SnapshotMeta, StorageId, Term, TimeoutNow, VoteKind, VoteRequest, VoteResponse,
};
use consensus_raft_protocol::{Append, EntryInfo, Event, Output, Raft};
use proptest::prelude::*;

/// Small numbers, which occur in the node's state, and numbers at the limits of arithmetic.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..8, 1 => Just(u64::MAX), 1 => Just(u64::MAX - 1), 1 => Just(1u64 << 62), 1 => any::<u64>()]
}

fn log_id() -> impl Strategy<Value = LogId> {
    (number(), number()).prop_map(|(term, index)| LogId::new(term, index))
}

fn peer() -> impl Strategy<Value = NodeId> {
    prop_oneof![4 => 0u64..4, 1 => Just(u64::MAX)].prop_map(NodeId)
}

/// Sizes are measured by the driver, not reported by the peer.
fn entry() -> impl Strategy<Value = EntryInfo> {
    let voters = prop::option::of(prop::collection::vec(0u64..5, 0..4));
    (number(), voters).prop_map(|(term, voters)| {
        let membership = voters.map(|voters| Arc::new(Membership::of_voters(voters)));
        EntryInfo { term: Term(term), size_bytes: 100, membership }
    })
}

fn kind() -> impl Strategy<Value = VoteKind> {
    prop_oneof![Just(VoteKind::PreVote), Just(VoteKind::Vote), Just(VoteKind::Transfer)]
}

fn event() -> impl Strategy<Value = Event> {
    let storage = StorageId(0);
    let vote_request = (peer(), kind(), number(), log_id()).prop_map(move |(from, kind, term, last_log)| {
        Event::VoteRequest(
            from,
            VoteRequest { kind, term: Term(term), last_log, storage, voter_storage: None },
        )
    });
    let vote_response =
        (peer(), kind(), number(), any::<bool>()).prop_map(move |(from, kind, term, granted)| {
            Event::VoteResponse(from, VoteResponse { kind, term: Term(term), granted, storage })
        });
    let append = (peer(), number(), log_id(), number(), number(), prop::collection::vec(entry(), 0..5));
    let append = append.prop_map(|(from, term, prev, commit, round, entries)| {
        let last = LogIndex(prev.index.0.saturating_add(entries.len() as u64));
        let append = Append {
            term: Term(term),
            prev,
            prev_leadership: LeadershipId::NONE,
            last,
            commit: LogIndex(commit),
            round,
        };
        Event::Append { from, append, entries }
    });
    let outcome = prop_oneof![
        number().prop_map(|matched| AppendOutcome::Accepted { matched: LogIndex(matched) }),
        (number(), log_id()).prop_map(|(prev, hint)| AppendOutcome::Rejected { prev: LogIndex(prev), hint }),
    ];
    let append_response =
        (peer(), number(), number(), outcome).prop_map(move |(from, term, round, outcome)| {
            Event::AppendResponse(
                from,
                AppendResponse { term: Term(term), round, outcome, storage, joining: false },
            )
        });
    let snapshot = (peer(), number(), log_id()).prop_map(|(from, term, last)| {
        let meta = SnapshotMeta { last, membership: Membership::of_voters(0..3) };
        Event::SnapshotArrived { from, term: Term(term), meta }
    });
    let timeout_now =
        (peer(), number()).prop_map(|(from, term)| Event::TimeoutNow(from, TimeoutNow { term: Term(term) }));
    let read_request = (peer(), number(), number()).prop_map(|(from, term, id)| {
        Event::ReadIndexRequest(from, ReadIndexRequest { term: Term(term), id })
    });
    let read_response =
        (peer(), number(), number(), prop::option::of(number())).prop_map(|(from, term, id, index)| {
            let index = index.map(LogIndex);
            Event::ReadIndexResponse(from, ReadIndexResponse { term: Term(term), id, index })
        });
    prop_oneof![
        2 => vote_request,
        2 => vote_response,
        4 => append,
        3 => append_response,
        1 => snapshot,
        1 => timeout_now,
        1 => read_request,
        1 => read_response,
        2 => Just(Event::Tick),
        1 => any::<bool>().prop_map(|lease| Event::Read { token: 1, lease }),
        1 => peer().prop_map(Event::SendFailed),
        1 => peer().prop_map(Event::Disconnected),
        1 => number().prop_map(|through| Event::Compact(LogIndex(through))),
        2 => Just(Event::Persisted),
        1 => Just(Event::NoRoom),
        1 => Just(Event::RetryEntries),
        1 => any::<bool>().prop_map(Event::Stalled),
        1 => Just(Event::StepDown),
    ]
}

/// Steps the node like a driver. A write ends with the next `Persisted` event or fails with the next `NoRoom`, and the state
/// machine fails to restore every other snapshot.
fn run(mut raft: Raft, events: Vec<Event>) {
    let (mut writing, mut fails) = (false, false);
    for (n, event) in events.into_iter().enumerate() {
        let now = SECOND * (2 + n as u32);
        let outputs = match event {
            Event::Persisted | Event::NoRoom if !writing => continue,
            Event::Persisted | Event::NoRoom => {
                writing = false;
                raft.step(now, event)
            }
            event => raft.step(now, event),
        };
        let install = outputs.iter().any(|output| matches!(output, Output::Install(_)));
        if install {
            fails = !fails;
            raft.step(now, if fails { Event::SnapshotNotInstalled } else { Event::SnapshotInstalled });
        }
        raft.finish_turn(now);
        writing |= raft.take_persist().is_some();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn follower_does_not_panic_on_any_events(events in prop::collection::vec(event(), 1..40), drift in 0u32..20) {
        run(configured(3, 2, &[1, 1, 2], |config| config.lease_drift_percent = drift), events);
    }

    #[test]
    fn leader_does_not_panic_on_any_events(events in prop::collection::vec(event(), 1..40)) {
        let mut raft = configured(3, 2, &[1, 1, 2], |_| ());
        lead(&mut raft, SECOND);
        run(raft, events);
    }
}
