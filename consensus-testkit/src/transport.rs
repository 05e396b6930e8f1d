//! Conformance of a [`NetworkTransport`].

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use consensus_core::{
    AppendEntries, AppendOutcome, AppendResponse, CommitNotification, Entry, LogId, LogIndex, Member,
    MemberKind, Membership, Message, MessageHandler, NetworkTransport, NodeId, Payload, ReadIndexRequest,
    ReadIndexResponse, SendError, SnapshotAck, SnapshotChunk, SnapshotMeta, SnapshotOutcome, StorageId, Term,
    TimeoutNow, TransportError, VoteKind, VoteRequest, VoteResponse,
};

use crate::eventually;

/// Checks an implementation: `cluster(n)` makes the transports of nodes 0 to n-1, not started, each with the endpoints of
/// all others set, over a network that is whole.
///
/// # Panics
/// A rule is broken; the output names it.
pub async fn run_suite<F: Future<Output = Vec<Arc<dyn NetworkTransport>>>>(cluster: impl Fn(u64) -> F) {
    println!("transport: every kind of message arrives as it was sent, and the sender is told");
    unaltered(cluster(3).await).await;
    println!("transport: send never waits, and queues are bounded");
    bounded(cluster(2).await).await;
    println!("transport: snapshot chunks are answered");
    chunks(cluster(2).await).await;
    println!("transport: misuse and unknown nodes are told");
    misuse(cluster(2).await).await;
}

/// Remembers what arrived.
#[derive(Default)]
struct Collector {
    messages: Mutex<Vec<(NodeId, Message)>>,
    chunks: Mutex<Vec<(NodeId, SnapshotChunk)>>,
}

#[async_trait]
impl MessageHandler for Collector {
    fn on_message(&self, from: NodeId, message: Message) {
        self.messages.lock().unwrap().push((from, message));
    }

    async fn on_snapshot_chunk(&self, from: NodeId, chunk: SnapshotChunk) -> SnapshotAck {
        let outcome = match (chunk.last, chunk.term.0) {
            (_, 9) => SnapshotOutcome::Refused,
            (Some(_), _) => SnapshotOutcome::Installed,
            (None, _) => SnapshotOutcome::Continue { offset: chunk.offset + chunk.data.len() as u64 },
        };
        let term = chunk.term;
        self.chunks.lock().unwrap().push((from, chunk));
        SnapshotAck { term, outcome }
    }
}

async fn start(transports: &[Arc<dyn NetworkTransport>]) -> Vec<Arc<Collector>> {
    let mut collectors = Vec::new();
    for transport in transports {
        let collector = Arc::new(Collector::default());
        transport.start(collector.clone()).await.unwrap();
        collectors.push(collector);
    }
    collectors
}

async fn stop(transports: &[Arc<dyn NetworkTransport>]) {
    for transport in transports {
        transport.shutdown().await;
    }
}

/// Every kind of message, with fields at their extremes.
#[must_use]
pub fn samples() -> Vec<Message> {
    let id = LogId::new(7, u64::MAX >> 1);
    let endpoint = "[::1]:65535".parse().ok();
    let known = Some(StorageId(u64::MAX));
    let client_endpoint = "db.example:1".parse().ok();
    let learner =
        Member { kind: MemberKind::Learner, endpoint, client_endpoint, storage: known, priority: u32::MAX };
    let others = [MemberKind::Joining, MemberKind::Witness].map(Member::new);
    let others = (10..).map(NodeId).zip(others).chain([(NodeId(9), learner)]);
    let voters = Membership::of_voters([1, 2]).members().clone();
    let members: BTreeMap<NodeId, Member> = voters.clone().into_iter().chain(others).collect();
    let payloads = [
        Payload::Blank,
        Payload::Command(vec![0, 255, 128, 10].into()),
        Payload::Command(vec![7; 300_000].into()),
        Payload::Membership(Membership::new(members.clone())),
        Payload::Membership(Membership::joint(members, voters)),
        Payload::Withheld,
    ];
    let entries = (1..).zip(payloads).map(|(n, payload)| Entry { id: LogId::new(2, n), payload }).collect();
    let (term, round, storage) = (Term(u64::MAX >> 1), 3, StorageId(u64::MAX - 1));
    let rejected = AppendOutcome::Rejected { prev: LogIndex(4), hint: LogId::new(1, 2) };
    let accepted = AppendOutcome::Accepted { matched: LogIndex(8) };
    let empty = AppendEntries { term, prev: LogId::ZERO, entries: Vec::new(), commit: LogIndex(0), round: 0 };
    vec![
        Message::VoteRequest(VoteRequest { kind: VoteKind::PreVote, term, last_log: id, storage }),
        Message::VoteRequest(VoteRequest { kind: VoteKind::Vote, term, last_log: LogId::ZERO, storage }),
        Message::VoteRequest(VoteRequest { kind: VoteKind::Transfer, term, last_log: id, storage }),
        Message::VoteResponse(VoteResponse { kind: VoteKind::PreVote, term, granted: false, storage }),
        Message::VoteResponse(VoteResponse { kind: VoteKind::Vote, term, granted: true, storage }),
        Message::TimeoutNow(TimeoutNow { term }),
        Message::ReadIndexRequest(ReadIndexRequest { term, id: u64::MAX }),
        Message::ReadIndexResponse(ReadIndexResponse { term, id: 0, index: None }),
        Message::ReadIndexResponse(ReadIndexResponse { term, id: 7, index: Some(LogIndex(9)) }),
        Message::AppendEntries(AppendEntries { term, prev: id, entries, commit: LogIndex(5), round }),
        Message::AppendEntries(empty),
        Message::AppendResponse(AppendResponse { term, round, outcome: rejected, storage }),
        Message::AppendResponse(AppendResponse { term, round, outcome: accepted, storage }),
        Message::CommitNotification(CommitNotification { term, commit: LogIndex(6) }),
        Message::Extension(vec![1, 0, 2].into()),
    ]
}

async fn unaltered(transports: Vec<Arc<dyn NetworkTransport>>) {
    let collectors = start(&transports).await;
    // Best effort: a message sent before the connection stands may be lost, so each is sent until it has arrived.
    for message in samples() {
        for (from, to) in [(0, 1), (1, 0), (1, 2)] {
            let (sender, receiver) = (transports[from].local(), &collectors[to]);
            let (transport, target) = (&transports[from], transports[to].local());
            eventually("a message arrives", || {
                let arrived = receiver.messages.lock().unwrap().contains(&(sender, message.clone()));
                if arrived { Ok(()) } else { Err(transport.send(target, message.clone())) }
            })
            .await;
        }
    }
    let known = samples();
    for (from, message) in collectors.iter().flat_map(|c| c.messages.lock().unwrap().clone()) {
        assert!(known.contains(&message), "node {from} never sent {message:?}");
    }
    stop(&transports).await;
}

async fn bounded(transports: Vec<Arc<dyn NetworkTransport>>) {
    // The receiver is not started: whatever is sent can only queue.
    transports[0].start(Arc::new(Collector::default())).await.unwrap();
    let message = Message::Extension(vec![1; 1 << 20].into());
    let flood = async {
        for _ in 0..2_000 {
            match transports[0].send(transports[1].local(), message.clone()) {
                Ok(()) | Err(SendError::QueueFull(_) | SendError::Unreachable(_)) => {}
                Err(other) => panic!("{other}"),
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), flood).await.expect("send returns at once");
    stop(&transports).await;
}

async fn chunks(transports: Vec<Arc<dyn NetworkTransport>>) {
    let collectors = start(&transports).await;
    let meta = SnapshotMeta { last: LogId::new(3, 4), membership: Membership::of_voters([1, 2, 3]) };
    let data = vec![5; 100_000];
    let chunk = |term, offset, last| SnapshotChunk {
        term: Term(term),
        transfer: 77,
        meta: meta.clone(),
        offset,
        data: data.clone().into(),
        last,
    };
    let to = transports[1].local();
    let steps = [
        (chunk(1, 0, None), SnapshotOutcome::Continue { offset: 100_000 }),
        (chunk(1, 100_000, Some(u32::MAX)), SnapshotOutcome::Installed),
        (chunk(9, 0, None), SnapshotOutcome::Refused),
    ];
    for (chunk, outcome) in steps {
        let mut answer = transports[0].send_snapshot_chunk(to, chunk.clone()).await;
        for _ in 0..100 {
            if answer.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await; // Not connected yet.
            answer = transports[0].send_snapshot_chunk(to, chunk.clone()).await;
        }
        assert_eq!(answer.unwrap(), SnapshotAck { term: chunk.term, outcome });
        assert!(collectors[1].chunks.lock().unwrap().contains(&(transports[0].local(), chunk)));
    }
    stop(&transports).await;
}

async fn misuse(transports: Vec<Arc<dyn NetworkTransport>>) {
    start(&transports).await;
    let again = transports[0].start(Arc::new(Collector::default())).await;
    assert!(matches!(again, Err(TransportError::Misuse(_))), "started twice: {again:?}");
    let message = Message::Extension(vec![1].into());
    let nobody = NodeId(4711);
    assert_eq!(transports[0].send(nobody, message.clone()), Err(SendError::UnknownNode(nobody)));
    let other = transports[1].local();
    transports[0].remove_endpoint(other);
    assert_eq!(transports[0].send(other, message.clone()), Err(SendError::UnknownNode(other)));
    stop(&transports).await;
    assert_eq!(transports[1].send(transports[0].local(), message), Err(SendError::Closed));
}
