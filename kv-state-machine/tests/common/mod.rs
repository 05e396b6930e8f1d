//! A state machine with its log, which can be restarted, and moved by a snapshot.

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

    /// Replaces the machine with a new one that restores its snapshot.
    pub(crate) fn move_by_snapshot(&mut self) {
        let mut stream = Vec::new();
        self.machine().snapshot().unwrap().write_to(&mut stream).unwrap();
        let log = std::mem::take(&mut self.log);
        *self = Self { log, ..Self::new(self.sizes) };
        self.machine().restore(&mut &stream[..]).unwrap();
    }
}
