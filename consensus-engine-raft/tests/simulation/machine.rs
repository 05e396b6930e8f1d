//! The state machine of the simulated nodes: a few registers in sessions, kept in files.

use std::{
    io::Read,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use consensus_core::{
    Entry, LogId, Payload, Snapshot, StateMachine, StateMachineError, codec,
    session::{ExactlyOnce, Session, SessionRefusal},
};
use consensus_raft_simulator::{Command, KEYS};
use consensus_testkit::{OnFiles, SimDir, linearizability::Register};
use serde::{Deserialize, Serialize};

/// State machine of a node: registers with the sessions of `consensus-core`, in files.
pub(crate) type Machine = OnFiles<ExactlyOnce<Registers>>;

/// Opens the machine in `dir`; `shown` shows its content and its actions.
pub(crate) fn open(dir: SimDir, shown: &Arc<Mutex<Shown>>) -> Result<Machine, StateMachineError> {
    let registers = Registers { applied: LogId::ZERO, shown: shown.clone() };
    OnFiles::open(dir, ExactlyOnce::new(registers))
}

/// Registers that are written and compared.
#[derive(Debug)]
pub(crate) struct Registers {
    applied: LogId,
    shown: Arc<Mutex<Shown>>,
}

/// Content of [`Registers`], shared with the checks.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) values: [u64; KEYS],
    /// Commands that took effect since they were last taken out.
    pub(crate) executed: Vec<(Command, LogId)>,
}

impl StateMachine for Registers {
    fn applied(&self) -> LogId {
        self.applied
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        let mut shown = self.shown.lock().unwrap();
        let mut response = |entry: &Entry| {
            self.applied = entry.id;
            let Payload::Command(bytes) = &entry.payload else { return Bytes::new() };
            let command = Command::decode(bytes).expect("a command of the simulation's own");
            shown.executed.push((command, entry.id));
            let value = &mut shown.values[command.key as usize];
            let before = *value;
            match command.call {
                Register::Write(new) => *value = new,
                Register::CompareAndSet(from, to) if before == from => *value = to,
                Register::CompareAndSet(..) | Register::Read => {}
            }
            if matches!(command.call, Register::Write(_)) {
                return Bytes::new();
            }
            Bytes::copy_from_slice(&before.to_le_bytes())
        };
        Ok(entries.iter().map(&mut response).collect())
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        Ok(LogId::ZERO)
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        Ok(Box::new(codec::encode(1, &(self.applied, self.shown.lock().unwrap().values))))
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        let (applied, values) = codec::decode("registers", 1, &bytes)?;
        self.applied = applied;
        self.shown.lock().unwrap().values = values;
        Ok(())
    }
}

/// A command as [`ExactlyOnce`] decodes it. Defined here because each attempt at a call is a separate command, which its
/// client does not support.
#[derive(Serialize, Deserialize)]
enum Request {
    Open { sessions_max: u64 },
    Call(Session, Bytes),
}

/// A response of [`ExactlyOnce`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Opened(u64),
    Response(Bytes),
    Refused(SessionRefusal),
}

/// Encodes the command that opens a session, and closes the least recently used one if there are more than `sessions_max`.
pub(crate) fn open_session(sessions_max: u64) -> Bytes {
    codec::encode(1, &Request::Open { sessions_max }).into()
}

/// Encodes the command that executes `command` once in its session.
pub(crate) fn call(command: &Command) -> Bytes {
    codec::encode(1, &Request::Call(command.session, command.encode())).into()
}

/// Decodes a response; `None` if it is not a response of a session.
pub(crate) fn answer(response: &[u8]) -> Option<Answer> {
    codec::decode("answer", 1, response).ok()
}

/// The command within a call.
pub(crate) fn command_of(entry: &Entry) -> Option<Command> {
    let Payload::Command(bytes) = &entry.payload else { return None };
    match codec::decode("command", 1, bytes) {
        Ok(Request::Call(_, command)) => Command::decode(&command),
        _ => None,
    }
}
