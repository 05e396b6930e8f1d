//! The replicated machine of the simulation: a few registers, sessions, and a hash of all of it.

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

/// Registers of the machine.
pub const KEYS: usize = 4;

/// A client's command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// Of the client; repeated with each attempt.
    pub session: Session,
    /// Which attempt to have it done, of all in the run.
    pub attempt: u64,
    /// On which register.
    pub key: u8,
    /// What; never [`Register::Read`].
    pub call: Register,
}

impl Command {
    /// How long it is.
    pub(crate) const BYTES: usize = 6 * 8;

    /// As it is proposed.
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

    /// From what was proposed; what follows is a guest's.
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

/// What survives a crash, and what a snapshot says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Image {
    state: State,
    /// A snapshot of the guest's, if there is a guest.
    guest: Bytes,
}

/// What is replicated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    applied: LogId,
    registers: [u64; KEYS],
    /// Each client's last number, at which index, and the answer.
    sessions: BTreeMap<u64, (LastUse, Option<u64>)>,
}

/// The machine of one node. What it flushed outlives it in its [`MachineDisk`].
#[derive(Debug)]
pub struct SimMachine {
    state: State,
    sessions: Sessions,
    disk: MachineDisk,
    /// Commands that were applied since they were last taken.
    pub(crate) effects: Vec<Effect>,
    /// Is given what this one is given.
    guest: Option<Host>,
}

/// What a machine flushed.
#[derive(Clone, Debug, Default)]
pub struct MachineDisk(Arc<Mutex<Image>>);

/// A command as it was applied.
#[derive(Clone, Copy, Debug)]
pub struct Effect {
    /// Which.
    pub command: Command,
    /// It was new, and changed something or could have.
    pub executed: bool,
    /// Its entry.
    pub at: LogId,
    /// Of the whole state afterwards.
    pub hash: u64,
}

impl MachineDisk {
    /// A copy of what lies there now.
    #[must_use]
    pub fn image(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock().clone())))
    }

    /// What it reflects.
    #[must_use]
    pub fn applied(&self) -> LogId {
        self.lock().state.applied
    }

    fn lock(&self) -> MutexGuard<'_, Image> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SimMachine {
    /// As it comes up.
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

    /// With a guest, which is new and comes to where it was when this machine was flushed.
    pub(crate) fn with_guest(mut self, mut guest: Host) -> Self {
        let image = self.disk.lock().clone();
        if image.state.applied != LogId::ZERO {
            guest.reopen(&image.guest, image.state.applied);
        }
        self.guest = Some(guest);
        self
    }

    /// Compares the guest's state, if there is a guest, with what others had here.
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

    /// The value of a register.
    #[must_use]
    pub fn value(&self, key: u8) -> u64 {
        self.state.registers[key as usize % KEYS]
    }

    /// The commands that were applied since this was last asked, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Of everything that is replicated.
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

    /// Takes a command, and tells whether it is new.
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

/// A response: what the register was, where the call asks for it.
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
                "I8: entries come in order, each once"
            );
            self.state.applied = entry.id;
            let Payload::Command(bytes) = &entry.payload else {
                responses.push(Bytes::new());
                continue;
            };
            let command = Command::decode(bytes).expect("a command of the simulation's own");
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
