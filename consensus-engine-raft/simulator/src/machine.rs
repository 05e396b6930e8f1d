//! The replicated state machine of the simulation: a few registers, sessions, and a hash of the state.

use std::{
    collections::BTreeMap,
    io::Read,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use consensus_core::{
    Entry, LogId, Payload, Snapshot, StateMachine, StateMachineError, codec,
    session::{LastUse, Session, SessionDecision, Sessions},
};
use consensus_testkit::linearizability::Register;
use serde::{Deserialize, Serialize};

use crate::{host::Host, random::chain};

/// Number of registers of the machine.
pub const KEYS: usize = 4;

/// A client's command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// Session and number of the command, the same in each attempt.
    pub session: Session,
    /// Number of the attempt within the run.
    pub attempt: u64,
    /// Register of the command.
    pub key: u8,
    /// Operation; never [`Register::Read`].
    pub call: Register,
}

impl Command {
    /// Size of an encoded command in bytes.
    pub(crate) const BYTES: usize = 6 * 8;

    /// Encodes the command.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let (from, to) = match self.call {
            Register::CompareAndSet(from, to) => (from, to),
            Register::Write(to) => (u64::MAX, to),
            Register::Read => (u64::MAX, u64::MAX),
        };
        let numbers =
            [self.session.client_id, self.session.sequence, self.attempt, u64::from(self.key), from, to];
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    /// Decodes a command; a guest's command may follow it.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| bytes.get(8 * at..8 * at + 8)?.try_into().map(u64::from_le_bytes).ok();
        let (from, to) = (number(4)?, number(5)?);
        Some(Self {
            session: Session { client_id: number(0)?, sequence: number(1)? },
            attempt: number(2)?,
            key: number(3)? as u8 % KEYS as u8,
            call: if from == u64::MAX { Register::Write(to) } else { Register::CompareAndSet(from, to) },
        })
    }
}

/// State that survives a crash, which is also the content of a snapshot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Image {
    state: State,
    /// Snapshot of the guest, if there is one.
    guest: Bytes,
}

/// Replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    applied: LogId,
    registers: [u64; KEYS],
    /// Last number of each client, with its index and response.
    sessions: BTreeMap<u64, (LastUse, Option<u64>)>,
}

/// State machine of one node. Its flushed state outlives it in the [`MachineDisk`].
#[derive(Debug)]
pub struct SimMachine {
    state: State,
    sessions: Sessions,
    disk: MachineDisk,
    /// Commands that were applied since they were last taken out.
    pub(crate) effects: Vec<Effect>,
    /// The guest, which applies the same entries.
    guest: Option<Host>,
}

/// Flushed state of a machine.
#[derive(Clone, Debug, Default)]
pub struct MachineDisk(Arc<Mutex<Image>>);

/// An applied command.
#[derive(Clone, Copy, Debug)]
pub struct Effect {
    /// The command.
    pub command: Command,
    /// Whether the command was new and executed.
    pub executed: bool,
    /// Log id of its entry.
    pub at: LogId,
    /// Hash of the whole state afterwards.
    pub hash: u64,
}

impl MachineDisk {
    /// Returns a copy of the present content.
    #[must_use]
    pub fn image(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock().clone())))
    }

    /// Last index of the flushed state.
    #[must_use]
    pub fn applied(&self) -> LogId {
        self.lock().state.applied
    }

    fn lock(&self) -> MutexGuard<'_, Image> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SimMachine {
    /// Opens the machine with its flushed state.
    #[must_use]
    pub fn open(disk: &MachineDisk) -> Self {
        let state = disk.lock().state.clone();
        let mut machine = Self {
            sessions: Sessions::default(),
            state: State::default(),
            disk: disk.clone(),
            effects: Vec::new(),
            guest: None,
        };
        machine.set(state);
        machine
    }

    /// Adds a new guest, and restores it to the state at this machine's last flush.
    pub(crate) fn with_guest(mut self, mut guest: Host) -> Self {
        let image = self.disk.lock().clone();
        if image.state.applied != LogId::ZERO {
            guest.reopen(&image.guest, image.state.applied);
        }
        self.guest = Some(guest);
        self
    }

    /// Compares the guest's state with those of other nodes at this position, if there is a guest.
    pub(crate) fn compare_guest(&mut self) {
        if let Some(guest) = &mut self.guest {
            guest.compare_state();
        }
    }

    fn set(&mut self, state: State) {
        self.sessions = Sessions::default();
        for (client, (last, _)) in &state.sessions {
            self.sessions.set(*client, *last);
        }
        self.state = state;
    }

    /// Returns the value of a register.
    #[must_use]
    pub fn value(&self, key: u8) -> u64 {
        self.state.registers[key as usize % KEYS]
    }

    /// Returns the commands that were applied since the last call, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Hash of the replicated state.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let state = &self.state;
        let mut hash = chain(state.applied.term.0, state.applied.index.0);
        for value in state.registers {
            hash = chain(hash, value);
        }
        for (client, (last, answer)) in &state.sessions {
            hash =
                chain(chain(chain(hash, *client), last.sequence), answer.map_or(u64::MAX, |answer| answer));
        }
        hash
    }

    /// Applies a command once. Returns whether it was new, and its response.
    fn take(&mut self, command: &Command, index: u64) -> (bool, Option<u64>) {
        let Session { client_id, sequence } = command.session;
        if !self.state.sessions.contains_key(&client_id) {
            self.sessions.open(client_id, index, u64::MAX);
        }
        match self.sessions.admit(command.session, index) {
            SessionDecision::Apply => {
                let register = &mut self.state.registers[command.key as usize];
                let before = *register;
                let answer = match command.call {
                    Register::Write(value) => {
                        *register = value;
                        None
                    }
                    Register::CompareAndSet(from, to) => {
                        if before == from {
                            *register = to;
                        }
                        Some(before)
                    }
                    Register::Read => Some(before),
                };
                self.state.sessions.insert(client_id, (LastUse { sequence, index }, answer));
                (true, answer)
            }
            SessionDecision::Repeat => {
                (false, self.state.sessions.get(&client_id).and_then(|(_, answer)| *answer))
            }
            SessionDecision::Refuse(_) => (false, None),
        }
    }
}

/// Decodes a response: the former value of the register, if the call returns it.
pub(crate) fn answer_of(response: &[u8]) -> Option<u64> {
    response.try_into().map(u64::from_le_bytes).ok()
}

impl StateMachine for SimMachine {
    fn applied(&self) -> LogId {
        self.state.applied
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        let mut responses = Vec::with_capacity(entries.len());
        for entry in entries {
            assert_eq!(
                entry.id.index,
                self.state.applied.index.next(),
                "I8: entries are applied in order, each once"
            );
            self.state.applied = entry.id;
            let Payload::Command(bytes) = &entry.payload else {
                responses.push(Bytes::new());
                continue;
            };
            let command = Command::decode(bytes).expect("every command has a command of the simulation");
            let (executed, answer) = self.take(&command, entry.id.index.0);
            responses
                .push(answer.map_or_else(Bytes::new, |value| Bytes::copy_from_slice(&value.to_le_bytes())));
            self.effects.push(Effect { command, executed, at: entry.id, hash: self.hash() });
        }
        if let Some(guest) = &mut self.guest {
            guest.apply(entries);
        }
        Ok(responses)
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        let guest = self.guest.as_mut().map(Host::flush).unwrap_or_default();
        *self.disk.lock() = Image { state: self.state.clone(), guest };
        Ok(self.state.applied)
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        let state = self.state.clone();
        let guest = self.guest.as_mut().map(Host::snapshot).unwrap_or_default();
        Ok(Box::new(codec::encode(1, &Image { state, guest })))
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        let Image { state, guest } = codec::decode("state", 1, &bytes)?;
        self.set(state);
        if let Some(host) = &mut self.guest {
            host.restore(&guest, self.state.applied);
        }
        self.flush().map(|_| ())
    }
}

impl SimMachine {
    /// Last index applied.
    pub(crate) fn applied_index(&self) -> consensus_core::LogIndex {
        self.state.applied.index
    }
}
