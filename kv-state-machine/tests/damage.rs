//! Damaged files: either the whole durable state is intact, or the store reports the damage when it is opened or read.

use std::path::Path;

use bytes::Bytes;
use consensus_core::{Entry, LogId, NodeId, StateMachine, codec};
use consensus_testkit::damage::{self, Outcome};
use kv_state_machine::{Delete, Durability, KvCommand, KvOperation, KvStateMachine, Put, Session};

fn command(n: u64) -> Bytes {
    let key = Bytes::from(format!("key {}", n % 40));
    let (mut session, value) = (None, vec![n as u8; 500]);
    let operation = match n {
        1 => KvOperation::OpenSession { sessions_max: 2 },
        _ if n.is_multiple_of(9) => KvOperation::Delete(Delete { key, ..Delete::default() }),
        _ => {
            session = Some(Session { client_id: 1, sequence: n });
            KvOperation::Put(Put { key, value: value.into(), return_previous: true, ..Put::default() })
        }
    };
    codec::encode(1, &KvCommand::new(session, operation)).into()
}

fn apply(machine: &mut KvStateMachine, index: u64, command: u64) -> Result<Bytes, String> {
    let entry = Entry::command(LogId::new(1, index), self::command(command));
    Ok(machine.apply(&[entry]).map_err(|error| error.to_string())?.remove(0))
}

/// Everything observable of the store: positions, versions, and the response to a repeated request of a session.
fn look(dir: &Path, durability: Durability) -> Result<String, String> {
    let mut machine = KvStateMachine::open(dir, NodeId(1), durability).map_err(|error| error.to_string())?;
    let in_place = |error: &dyn std::fmt::Display| format!("{}: reading: {error}", dir.display());
    let hash = machine.executor().hash().map_err(|error| in_place(&error))?;
    let applied = machine.applied();
    let again = apply(&mut machine, applied.index.0 + 1, ENTRIES).map_err(|error| in_place(&error))?;
    Ok(format!("{applied} {hash:?} {again:?}"))
}

fn assert_damage_is_detected(durability: Durability) {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("state");
    // The first half is flushed to a table before the second half starts.
    for half in 0..2 {
        let mut machine = KvStateMachine::open(&dir, NodeId(1), durability).unwrap();
        for index in half * ENTRIES / 2 + 1..=(half + 1) * ENTRIES / 2 {
            apply(&mut machine, index, index).unwrap();
        }
        machine.flush().unwrap();
    }
    // Opening the store changes its files slightly.
    let looked_at = place.path().join("looked-at");
    assert!(std::process::Command::new("cp").arg("-r").arg(&dir).arg(&looked_at).status().unwrap().success());
    let content = look(&looked_at, durability).unwrap();
    let is_log_or_list = |file: &Path| {
        let name = file.file_name().unwrap().to_string_lossy();
        name.ends_with(".log") || name.starts_with("MANIFEST")
    };
    let more = |file: &Path| if is_log_or_list(file) { 60 } else { 8 };
    let tally = damage::try_all(&dir, 2, more, |damage, place| match look(place, durability) {
        Ok(found) => {
            assert_eq!(found, content, "{damage}: opened with different content");
            Outcome::Intact
        }
        Err(why) => Outcome::Refused(why),
    });
    println!("{tally:?}");
    assert!(tally.intact > 20 && tally.refused > 100, "{tally:?}");
}

#[test]
fn damage_to_store_without_log_is_detected() {
    assert_damage_is_detected(Durability::EachBatch);
}

#[test]
fn damage_to_store_with_log_is_detected() {
    assert_damage_is_detected(Durability::FromLog);
}

/// The name of the current generation decides which directories are removed as leftovers, so a damaged name must be
/// detected.
#[test]
fn damaged_generation_name_removes_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = KvStateMachine::open(dir.path(), NodeId(1), Durability::EachBatch).unwrap();
    apply(&mut machine, 1, 1).unwrap();
    drop(machine);
    let current = dir.path().join("CURRENT");
    let good = std::fs::read_to_string(&current).unwrap();
    for bad in [Some(good.replace("gen-1", "gen-3")), Some(String::new()), None] {
        match &bad {
            Some(text) => std::fs::write(&current, text).unwrap(),
            None => std::fs::remove_file(&current).unwrap(),
        }
        let error =
            KvStateMachine::open(dir.path(), NodeId(1), Durability::EachBatch).unwrap_err().to_string();
        assert!(error.contains("CURRENT"), "{bad:?}: {error}");
    }
    std::fs::write(&current, good).unwrap();
    let machine = KvStateMachine::open(dir.path(), NodeId(1), Durability::EachBatch).unwrap();
    assert_eq!(machine.applied(), LogId::new(1, 1));
}

const ENTRIES: u64 = 80;
