//! Valid encodings of each kind, the same ones whenever they are made; `examples/seeds.rs` writes them to `corpus`.

#[cfg(feature = "kv")]
mod kv;

use std::time::Duration;

use bytes::Bytes;
use consensus_core::{
    ClusterId, Entry, HardState, LogId, LogIndex, LogState, Message, NodeId, Payload, SnapshotAck,
    SnapshotChunk, SnapshotMeta, SnapshotOutcome, StateMachine, Term, VoteKind, VoteResponse, codec, record,
    session::{ExactlyOnce, Session},
    typed::InMemory,
};
use consensus_engine_raft::flight::{MAGIC, Record, checksum, framed};
use consensus_raft_protocol::{Call as RaftCall, Config, Event, Raft, Restored};
use consensus_storage_wal::fuzzing;
use consensus_transport_thrift::fuzzing::{
    Asker, Call, Greeting, write_call, write_chunk_answer, write_hello_answer,
};
#[cfg(feature = "kv")]
pub use kv::*;

use crate::log::Names;

type Seeds = Vec<Vec<u8>>;

/// The members of the messages of the testkit, and short commands: a corpus is small.
fn all_messages() -> Vec<Message> {
    let mut messages = consensus_testkit::transport::samples();
    for message in &mut messages {
        if let Message::AppendEntries(append) = message {
            append.entries.retain(|entry| entry.size_bytes() < 1000);
        }
    }
    messages
}

fn membership() -> consensus_core::Membership {
    let memberships = all_messages().into_iter().flat_map(|message| match message {
        Message::AppendEntries(append) => append.entries,
        _ => Vec::new(),
    });
    let mut memberships = memberships.filter_map(|entry| match entry.payload {
        Payload::Membership(membership) => Some(membership),
        _ => None,
    });
    memberships.next_back().expect("the messages of the testkit have a joint configuration")
}

fn snapshot_meta() -> SnapshotMeta {
    SnapshotMeta { last: LogId::new(3, 300), membership: membership() }
}

/// Segments: of frames that only append, that change state too, that replace entries.
pub fn segments() -> Seeds {
    let entries = |term, first: u64, count: u64| -> Vec<Entry> {
        (first..first + count).map(|index| Entry::command(LogId::new(term, index), vec![b'x'; 20])).collect()
    };
    let (hard_state, purged) = (HardState { term: Term(3), ..HardState::default() }, snapshot_meta());
    let begin = Some((&hard_state, &purged));
    let at = purged.last.index.0;
    let mut configured = entries(3, at + 5, 1);
    configured[0].payload = Payload::Membership(membership());
    let frames = [
        fuzzing::frame(1, 0, LogId::new(3, at + 2), begin, &entries(3, at + 1, 2)),
        fuzzing::frame(2, 1, LogId::new(3, at + 4), None, &entries(3, at + 3, 2)),
        fuzzing::frame(3, 1, LogId::new(3, at + 5), None, &configured),
        fuzzing::frame(4, 1, LogId::new(3, at + 5), begin, &[]),
        fuzzing::frame(5, 4, LogId::new(4, at + 4), None, &entries(4, at + 4, 1)),
        fuzzing::frame(6, 5, LogId::new(4, at + 6), begin, &entries(4, at + 5, 2)),
    ];
    let without = |missing: usize, cut: u8| {
        let there = frames.iter().enumerate().filter(|(n, _)| *n != missing).map(|(_, frame)| frame.clone());
        [vec![cut], there.collect::<Vec<_>>().concat()].concat()
    };
    vec![without(9, 9), without(9, 2), without(1, 1), without(3, 3), without(4, 3)]
}

/// Frames without their lengths.
pub fn messages() -> Seeds {
    let chunk = |offset, data: &'static [u8], last| SnapshotChunk {
        term: Term(2),
        transfer: 9,
        meta: snapshot_meta(),
        offset,
        data: data.into(),
        last,
    };
    let calls = all_messages().into_iter().map(Call::Deliver).chain([
        Call::Hello(Greeting::new("default", Some("db1.example:10090"))),
        Call::Hello(Greeting::new("", None)),
        Call::Describe(Asker::new("default")),
        Call::SnapshotChunk(1, chunk(0, b"some", None)),
        Call::SnapshotChunk(-1, chunk(4, b"more", Some(u32::MAX))),
    ]);
    let outcomes =
        [SnapshotOutcome::Continue { offset: 7 }, SnapshotOutcome::Installed, SnapshotOutcome::Refused];
    let acks = outcomes.map(|outcome| write_chunk_answer(3, SnapshotAck { term: Term(2), outcome }));
    let greetings = [None, Some("this is node 1, not node 2")].map(write_hello_answer);
    let frames = calls.map(write_call).chain(acks).chain(greetings);
    frames.map(|frame| frame.expect("a seed can be written")[4..].to_vec()).collect()
}

/// Connections.
pub fn frames() -> Seeds {
    let framed = |frame: &Vec<u8>| [&(frame.len() as u32).to_be_bytes()[..], frame].concat();
    let frames: Seeds = messages().iter().map(framed).collect();
    vec![vec![], vec![0; 4], frames[..3].concat(), frames[10..14].concat(), frames.concat()]
}

/// Scripts of chunks that arrive.
pub fn chunks() -> Seeds {
    let whole = [&[1, 0, 5, 9][..], b"hello", &[1, 5, 0, 9]].concat();
    let others =
        [&[1, 0, 5, 9][..], b"hello", &[2, 0, 2, 9], b"xx", &[1, 5, 1, 1], b"!", &[5, 0, 3, 0], b"abc"];
    vec![vec![0, 0, 3, 0, b'a', b'b', b'c'], whole, others.concat(), vec![17, 0, 0, 0]]
}

/// Records of the log.
pub fn records() -> Seeds {
    let payloads = [
        Payload::Blank,
        Payload::Withheld,
        Payload::Command(Bytes::from_static(b"a command")),
        Payload::Command(Bytes::new()),
        Payload::Membership(membership()),
        Payload::Membership(membership().without_outgoing()),
    ];
    let record = |(index, payload)| {
        let (mut record, id) = (Vec::new(), LogId::new(u64::MAX >> index, index));
        record::encode(&Entry { id, payload }, &mut record);
        record
    };
    (1..).zip(payloads).map(record).collect()
}

fn raft() -> Raft {
    let mut config = Config::new(NodeId(0));
    config.seed = 7;
    let log = LogState {
        hard_state: HardState { term: Term(2), ..HardState::default() },
        entries: (1..4).map(|index| (LogId::new(1, index), 100)).collect(),
        memberships: vec![(LogIndex(1), consensus_core::Membership::of_voters(0..3))],
        ..LogState::default()
    };
    Raft::new(config, Restored { log, applied: LogIndex(1) }, Duration::ZERO).expect("the settings are right")
}

/// A node that stands for election and is elected, call by call.
fn calls() -> Vec<RaftCall> {
    let now = Duration::from_secs(5);
    let vote = |kind, from| {
        let (term, granted, storage) = (Term(3), true, Default::default());
        let response = VoteResponse { kind, term, granted, storage };
        RaftCall::Step(now, Event::VoteResponse(NodeId(from), response))
    };
    vec![
        RaftCall::Step(now, Event::Tick),
        vote(VoteKind::PreVote, 1),
        RaftCall::FinishTurn(now),
        RaftCall::TakePersist,
        RaftCall::Step(now, Event::Persisted),
        vote(VoteKind::Vote, 2),
        RaftCall::Propose(now, vec![10, 20]),
        RaftCall::FinishTurn(now),
        RaftCall::TakePersist,
    ]
}

/// What the codec encodes, with its kind in front.
pub fn stored() -> Seeds {
    let state = HardState {
        term: Term(7),
        voted_for: Some(NodeId(300)),
        installing: Some(snapshot_meta()),
        lost_through: Some(LogId::new(1, 2)),
        joining: Some(LogIndex(3)),
        cluster: ClusterId(4),
    };
    let mut raft = raft();
    let mut returned: Seeds = calls().into_iter().map(|call| codec::encode(1, &raft.call(call))).collect();
    returned.dedup();
    let commands = [(0u32, Term(3), 7u64, 1u64, Bytes::from_static(b"command"))];
    let answers = [(1u32, 7u64, 1u64, (0u32, LogId::new(2, 3), Bytes::from_static(b"response")))];
    let refusals = [(1u32, 7u64, 1u64, 4u32, String::from("no room"))];
    let numbers = (-1i8, -300i16, 70_000i32, i64::MIN, i128::MAX, 251u16, u128::MAX, 0.5f32, -1e300f64);
    let names: [(&str, Vec<Result<u8, &str>>); 2] = [("a", vec![Ok(1), Err("b")]), ("c", vec![])];
    let inner = (numbers, ('é', "inner", 0u8), 0u8);
    let kinds: [(u8, Seeds); 7] = [
        (0, vec![codec::encode(1, &HardState::default()), codec::encode(1, &state)]),
        (1, vec![codec::encode(1, &snapshot_meta())]),
        (2, vec![codec::encode(1, &membership())]),
        (3, returned),
        (
            4,
            vec![
                codec::encode(1, &inner),
                codec::encode(1, &(numbers, ('x', "outer", 1u8, inner), 2u8, names)),
            ],
        ),
        (5, commands.iter().map(|command| codec::encode(1, command)).collect()),
        (6, vec![self::raft().checkpoint(), raft.checkpoint()]),
    ];
    let mut seeds: Seeds = Vec::new();
    for (kind, encodings) in kinds {
        seeds.extend(encodings.into_iter().map(|encoding| [vec![kind], encoding].concat()));
    }
    seeds.extend(answers.map(|answer| [vec![5], codec::encode(1, &answer)].concat()));
    seeds.extend(refusals.map(|refusal| [vec![5], codec::encode(1, &refusal)].concat()));
    seeds
}

/// Commands of sessions, and the picture that they lead to.
pub fn sessions() -> Seeds {
    let name = |id: u64| Bytes::from(codec::encode(1, &(id, Bytes::from_static(b"name"))));
    let call =
        |client_id, sequence| codec::encode(1, &(1u32, Session { client_id, sequence }, name(sequence)));
    let commands = [
        codec::encode(1, &(0u32, 2u64)),
        call(1, 1),
        call(1, 300),
        codec::encode(1, &(0u32, 1u64)),
        call(9, 1),
    ];
    let mut machine = ExactlyOnce::new(InMemory::new(Names::default()));
    let mut seeds = commands.to_vec();
    for (index, command) in (1..).zip(commands) {
        let applied = machine.apply(&[Entry::command(LogId::new(1, index), command)]);
        assert!(applied.is_ok(), "a seed is applied: {applied:?}");
        let mut picture = Vec::new();
        let snapshot = machine.snapshot().and_then(|mut snapshot| Ok(snapshot.write_to(&mut picture)?));
        assert!(snapshot.is_ok(), "a picture is taken: {snapshot:?}");
        seeds.push(picture);
    }
    seeds
}

/// Recordings, and single records.
pub fn flights() -> Seeds {
    let mut raft = raft();
    let state = raft.checkpoint().into();
    let mut records =
        vec![Record::FileStart { node: NodeId(0), run: 1 << 40, now: Duration::ZERO, calls: 0, state }];
    for call in calls() {
        records.push(Record::Called(call.clone()));
        records.push(Record::Returned(checksum(&raft.call(call))));
    }
    let arrived = Event::SnapshotArrived { from: NodeId(1), term: Term(4), meta: snapshot_meta() };
    records.push(Record::Called(RaftCall::Step(Duration::from_secs(6), arrived)));
    let framed: Seeds = records.iter().map(|record| framed(record).expect("a seed is short")).collect();
    let mut seeds = vec![MAGIC.to_vec(), [&MAGIC[..], &framed.concat()].concat()];
    seeds.extend(framed.iter().map(|record| record[12..].to_vec()));
    seeds.sort();
    seeds.dedup();
    seeds
}
