//! A state machine with its log, which can be restarted, and moved by a snapshot.

#![allow(dead_code, reason = "each test uses a part of the module")]

use std::path::{Path, PathBuf};

use bytes::Bytes;
use consensus_core::{Entry, LogId, StateMachine, codec};
use kv_state_machine::{
    KvCommand, KvOperation, KvStateMachine, Session,
    fuzzing::{Sizes, open_with},
};
use tempfile::TempDir;

pub(crate) struct Replica {
    machine: Option<KvStateMachine>,
    sizes: Sizes,
    log: Vec<Entry>,
    dir: TempDir,
}

impl Replica {
    pub(crate) fn new(sizes: Sizes) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { machine: Some(open_with(dir.path(), sizes).unwrap()), sizes, log: Vec::new(), dir }
    }

    pub(crate) fn machine(&mut self) -> &mut KvStateMachine {
        self.machine.as_mut().unwrap()
    }

    /// Applies commands as one batch. Returns the encoded responses.
    pub(crate) fn apply(
        &mut self,
        commands: impl IntoIterator<Item = (Option<Session>, KvOperation)>,
    ) -> Vec<Bytes> {
        let first = self.log.len();
        for (session, operation) in commands {
            let command = codec::encode(1, &KvCommand::new(session, operation));
            self.log.push(Entry::command(LogId::new(1, self.log.len() as u64 + 1), command));
        }
        let entries = self.log[first..].to_vec();
        self.machine().apply(&entries).unwrap()
    }

    /// Opens the store again, as after a crash: entries that were not flushed are applied again.
    pub(crate) fn restart(&mut self) {
        self.machine = None;
        let mut machine = open_with(self.dir.path(), self.sizes).unwrap();
        let applied = machine.applied().index.0 as usize;
        machine.apply(&self.log[applied..]).unwrap();
        self.machine = Some(machine);
    }

    /// Makes directories that have the names of RocksDB's next files. Returns their paths.
    pub(crate) fn block_next_files(&self) -> Vec<PathBuf> {
        let name = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        let entries = |dir: &Path| std::fs::read_dir(dir).unwrap().map(Result::unwrap).collect::<Vec<_>>();
        let generations = entries(self.dir.path());
        let generation = generations.iter().find(|entry| name(entry).starts_with("gen-")).unwrap().path();
        let number = |name: String| name.split('.').next()?.parse::<u64>().ok();
        let last = entries(&generation).iter().filter_map(|entry| number(name(entry))).max().unwrap();
        let blocked: Vec<_> =
            (last + 1..last + 30).map(|number| generation.join(format!("{number:06}.sst"))).collect();
        blocked.iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
        blocked
    }

    /// Replaces the machine with a new one that restores its snapshot.
    pub(crate) fn move_by_snapshot(&mut self) {
        let mut stream = Vec::new();
        self.machine().snapshot().unwrap().write_to(&mut stream).unwrap();
        let log = std::mem::take(&mut self.log);
        *self = Self { log, ..Self::new(self.sizes) };
        self.machine().restore(&mut &stream[..]).unwrap();
    }
}
