//! `guard CASE`: a fixed amount of work on a hot path. `scripts/instructions` counts what it takes.

use std::{process::ExitCode, sync::Arc};

use bytes::Bytes;
use consensus_core::{
    AppendEntries, ConsensusEngine, Entry, LeadershipId, LogBatch, LogId, LogIndex, LogStorage, Message,
    NodeId, Term,
};
use consensus_engine_raft::RaftEngine;
use consensus_storage_wal::WalLogStorage;
use consensus_testkit::{Journal, MemLogStorage};
use consensus_transport_mem::MemNetwork;
use consensus_transport_thrift::fuzzing::{Call, read_call, write_call};

fn main() -> ExitCode {
    let case = std::env::args().nth(1).unwrap_or_default();
    match case.as_str() {
        "engine-1" => engine(1, 4000),
        "engine-64" => engine(64, 200),
        "log-write" => drop(log_write()),
        "log-read" => log_read(),
        "wire" => wire(),
        _ => {
            eprintln!("usage: guard engine-1|engine-64|log-write|log-read|wire");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Three nodes on one thread, log and network in memory: so many clients with so many proposals one after the other.
fn engine(clients: usize, each: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let (network, mut nodes) = (MemNetwork::new(1).with_direct_delivery(), Vec::new());
        for id in 1..=3 {
            let builder = RaftEngine::builder(NodeId(id)).voters(1..=3).without_threads();
            let builder = builder.configure(|config| config.protocol.seed = id);
            let (transport, storage) = (network.transport(NodeId(id)), MemLogStorage::new());
            nodes.push(builder.start(transport, storage, Journal::new()).await.expect("an engine"));
        }
        let mut status = nodes[0].status();
        let leads = status.wait_for(|status| status.leader.is_some()).await.expect("a running engine").leader;
        let leader: Arc<RaftEngine> = nodes[leads.map_or(0, |id| id.0 as usize - 1)].clone();
        let client = |leader: Arc<RaftEngine>| async move {
            for _ in 0..each {
                leader.propose(Bytes::from_static(&[7; 128])).await.expect("it is committed");
            }
        };
        futures::future::join_all((0..clients).map(|_| tokio::spawn(client(leader.clone())))).await;
    });
}

fn entries(first: u64, count: u64) -> Vec<Entry> {
    (first..first + count).map(|index| Entry::command(LogId::new(1, index), vec![7; 128])).collect()
}

/// Many small batches.
fn log_write() -> (tempfile::TempDir, u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let log = WalLogStorage::open(dir.path(), NodeId(1)).expect("a log");
    for first in (0..BATCHES).map(|n| n * PER_BATCH + 1) {
        let batch = LogBatch { entries: entries(first, PER_BATCH), ..LogBatch::default() };
        log.write(batch).expect("it is written");
    }
    (dir, BATCHES * PER_BATCH)
}

/// What they left, opened and read.
fn log_read() {
    let (dir, last) = log_write();
    for _ in 0..5 {
        let log = WalLogStorage::open(dir.path(), NodeId(1)).expect("a log");
        let read = log.read(LogIndex::ZERO, LogIndex(last), u64::MAX).expect("it can be read");
        assert_eq!(read.len() as u64, last);
    }
}

/// A message with entries, written and read.
fn wire() {
    let append = AppendEntries {
        term: Term(1),
        prev: LogId::new(1, 1),
        prev_leadership: LeadershipId::NONE,
        entries: entries(2, 64),
        commit: LogIndex(1),
        round: 1,
    };
    for _ in 0..500 {
        let call = Call::Deliver(Message::AppendEntries(append.clone()));
        let frame = write_call(call).expect("a call that there is");
        read_call(&frame[4..]).expect("what was written can be read");
    }
}

const BATCHES: u64 = 500;
const PER_BATCH: u64 = 10;
