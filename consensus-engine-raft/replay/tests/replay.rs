//! Recordings of a cluster replay to the same state; a changed or damaged recording is reported.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use consensus_core::{Membership, NodeId};
use consensus_engine_raft::{
    RaftConfig, RaftEngine,
    flight::{FlightError, FlightReader, FlightRecorder, MAGIC, Record, framed, recording},
};
use consensus_testkit::{
    Journal, MemLogStorage,
    engine::{Node, converged, leader},
};
use consensus_transport_mem::MemNetwork;

const BYTES_MAX: u64 = 1 << 20;

/// Runs three nodes with recorders: the leader stops, and enough commands follow to fill the ring. Returns the directories.
async fn record(dir: &Path) -> Vec<PathBuf> {
    let network = MemNetwork::new(3);
    let mut nodes = Vec::new();
    let dirs: Vec<PathBuf> = (0..3).map(|id| dir.join(id.to_string())).collect();
    for id in 0..3 {
        let mut config = RaftConfig::new(NodeId(id));
        config.bootstrap = Some(Membership::of_voters(0..3));
        config.protocol.heartbeat_interval = Duration::from_millis(20);
        config.protocol.election_timeout = Duration::from_millis(150);
        config.flight_recorder =
            Some(FlightRecorder { dir: dirs[id as usize].clone(), bytes_max: BYTES_MAX });
        let (journal, storage) = (Journal::new(), Arc::new(MemLogStorage::new()));
        let reader = journal.reader();
        let transport = network.transport(NodeId(id));
        let engine = RaftEngine::start(config, transport, storage, Box::new(journal)).await.unwrap();
        nodes.push(Node { engine, journal: reader });
    }
    let first = leading(&nodes).await;
    for number in 0..4000 {
        nodes[first].engine.propose(format!("{number}").into()).await.unwrap();
    }
    nodes[first].engine.shutdown().await.unwrap();
    nodes.remove(first);
    let second = leading(&nodes).await;
    nodes[second].engine.propose("last".into()).await.unwrap();
    converged(&nodes, 4001).await;
    for node in nodes {
        node.engine.shutdown().await.unwrap();
    }
    dirs
}

async fn leading(nodes: &[Node]) -> usize {
    let id = leader(nodes).await.engine.status().borrow().node_id;
    nodes.iter().position(|node| node.engine.status().borrow().node_id == id).unwrap()
}

fn replay(arguments: &[&str], path: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_raft-replay")).args(arguments).arg(path).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn recording_replays_to_the_same_state_and_differences_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = record(dir.path()).await;
    for recorded in &dirs {
        let bytes: u64 = recording(recorded).unwrap().iter().map(|path| path.metadata().unwrap().len()).sum();
        assert!(bytes < BYTES_MAX + BYTES_MAX / 8, "{bytes} bytes: the ring is bounded");
        let output = replay(&[], recorded);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let story = text(&output.stdout);
        for part in ["role: ", "term: ", "leader: ", "commit: ", "node "] {
            assert!(story.contains(part), "{part}: {story}");
        }
    }
    let full = dirs.iter().find(|dir| recording(dir).unwrap()[0].file_name().unwrap() != "00000001.flight");
    let files = recording(full.expect("the oldest files are removed as new ones are created")).unwrap();
    assert!(files.len() >= 3, "{files:?}");

    let output = replay(&["--inputs", "--outputs", "--to", "4000000000"], &files[0]);
    assert!(text(&output.stdout).contains("the write is durable"), "{}", text(&output.stdout));

    let changed = dir.path().join("changed");
    let call = change_a_checksum(&files[0], &changed);
    let output = replay(&[], &changed);
    assert!(!output.status.success());
    assert!(
        text(&output.stderr).contains(&format!("call {call} returned another result")),
        "{}",
        text(&output.stderr)
    );

    let damaged = dir.path().join("damaged");
    let bytes = std::fs::read(&files[0]).unwrap();
    let (begin, middle) = (MAGIC.len(), bytes.len() / 2);
    // Anywhere: lengths, checksums, bodies.
    for at in (begin..begin + 40).chain(middle..middle + 40) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 4;
        std::fs::write(&damaged, &bytes).unwrap();
        let mut reader = FlightReader::open(&damaged).unwrap();
        let error = loop {
            match reader.next_record() {
                Ok(record) => assert!(record.is_some(), "byte {at}: not noticed"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, FlightError::Damaged { .. }), "byte {at}: {error}");
    }
    let output = replay(&[], &damaged);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("the record at byte"), "{}", text(&output.stderr));

    // Within the last record: at another place a record may just have ended.
    std::fs::write(&damaged, &bytes[..bytes.len() - 1]).unwrap();
    let output = replay(&[], &damaged);
    assert!(output.status.success(), "a killed process leaves such a file: {}", text(&output.stderr));
    assert!(text(&output.stdout).contains("is incomplete"));

    std::fs::write(&damaged, "something else").unwrap();
    let output = replay(&[], &damaged);
    assert!(text(&output.stderr).contains("not a recording"), "{}", text(&output.stderr));
}

/// Copies a recording and changes the checksum of one call. Returns the number of the call.
fn change_a_checksum(from: &Path, to: &Path) -> u64 {
    let (mut reader, mut bytes) = (FlightReader::open(from).unwrap(), MAGIC.to_vec());
    let (mut calls, mut changed) = (0, None);
    while let Some(record) = reader.next_record().unwrap() {
        let record = match record {
            Record::FileStart { calls: before, .. } => {
                calls = before;
                record
            }
            Record::Called(_) => {
                calls += 1;
                record
            }
            Record::Returned(checksum) if changed.is_none() && calls % 100 == 99 => {
                changed = Some(calls);
                Record::Returned(checksum ^ 1)
            }
            Record::Returned(_) => record,
        };
        bytes.extend(framed(&record).unwrap());
    }
    std::fs::write(to, bytes).unwrap();
    changed.unwrap()
}
