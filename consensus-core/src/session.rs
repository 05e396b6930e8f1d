//! Exactly-once commands, for any state machine (dissertation §6.3).
//!
//! A client that received no response does not know whether its command was applied. In a session it may propose the
//! command again, to any node: the state machine applies each sequence number of a session once, and returns the first
//! response for a repetition. Sessions are part of the replicated state, so they survive changes of leaders, restarts and
//! snapshots.
//!
//! * A machine that starts empty (in memory) is wrapped in [`ExactlyOnce`]; a [`Client`] creates the commands.
//! * A machine on disk must write sessions in the same atomic write as its data, which no wrapper can do for it. It keeps
//!   its own [`Sessions`] and the responses; `kv-state-machine` is an example.
//!
//! ```
//! use bytes::Bytes;
//! use consensus_core::{session::{Client, ExactlyOnce, SessionError}, typed::{Application, InMemory}, *};
//! # use serde::{Deserialize, Serialize};
//! # #[derive(Default, Serialize, Deserialize)] struct Counter(i64);
//! # impl Application for Counter {
//! #     type Command = i64; type Response = i64;
//! #     fn apply(&mut self, n: i64) -> i64 { self.0 += n; self.0 }
//! # }
//!
//! let machine = ExactlyOnce::new(InMemory::new(Counter::default())); // for the engine
//!
//! # async fn run(engines: &[&dyn ConsensusEngine], command: Bytes) -> Result<Bytes, SessionError> {
//! let mut client = Client::open(engines[0], 10_000).await?;
//! let call = client.next(command);
//! loop {
//!     for engine in engines {
//!         match call.propose(*engine).await {
//!             // However often it was proposed, it was applied once.
//!             Err(SessionError::Propose(_)) => {} // try another node
//!             other => return other,
//!         }
//!     }
//! }
//! # }
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    ConsensusEngine, Entry, LogId, Payload, ProposeError, Snapshot, StateMachine, StateMachineError,
    apply_all,
    codec::{self, CodecError},
};

/// A sequence number of a session. A command that carries it is applied once; a repetition returns the first response.
/// The numbers of a session's commands must grow, by any amount; a number below the last one is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Id of the session.
    pub client_id: u64,
    /// Sequence number of the command; the first is at least 1.
    pub sequence: u64,
}

/// The open sessions with the last sequence number of each. The state machine keeps the responses itself. Deterministic.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    by_id: BTreeMap<u64, LastUse>,
    /// Log index of the last use and id of each session, so that the first is idle for longest.
    by_last_use: BTreeSet<(u64, u64)>,
}

/// Last use of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastUse {
    /// Last sequence number; 0 if the session was opened and not used.
    pub sequence: u64,
    /// Log index of that command, or of the opening.
    pub index: u64,
}

/// Decision of a state machine about a command of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionDecision {
    /// The command is new: apply it, and store its response in place of the session's previous response.
    Apply,
    /// The command is the last one of its session: return the stored response.
    Repeat,
    /// The command is refused.
    Refuse(SessionRefusal),
}

/// Why a command of a session was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum SessionRefusal {
    /// The session was never opened, or was removed. It is unknown whether the command was applied before.
    #[error("there is no session {0}, or it was idle for too long; open a new one")]
    NoSession(u64),
    /// A command with a higher sequence number was applied in the session.
    #[error("sequence number {sequence} of session {client_id} is outdated; the last one was {last}")]
    Outdated {
        /// Id of the session.
        client_id: u64,
        /// Refused sequence number.
        sequence: u64,
        /// Last sequence number of the session.
        last: u64,
    },
    /// The command is not one of a [`Client`], or was created by an unknown version.
    #[error("the command was not created by a session client of this version")]
    Unreadable,
}

impl Sessions {
    /// Opens a session at log index `index`; replaces a session with the same id. Returns the sessions that were removed,
    /// so that at most `max` remain: the ones idle for longest, but at most 64 in one call. If `max` was lowered, the excess
    /// so disappears over several calls, and no single one delays the log.
    pub fn open(&mut self, client_id: u64, index: u64, max: u64) -> Vec<u64> {
        let mut removed = Vec::new();
        while self.by_id.len() as u64 >= max && removed.len() < REMOVED_AT_ONCE_MAX {
            let Some((_, idle)) = self.by_last_use.pop_first() else { break };
            self.by_id.remove(&idle);
            removed.push(idle);
        }
        self.set(client_id, LastUse { sequence: 0, index });
        removed
    }

    /// Decides about a command at log index `index`. Unless the command is refused, its sequence number becomes the last one
    /// of its session.
    pub fn admit(&mut self, session: Session, index: u64) -> SessionDecision {
        let Session { client_id, sequence } = session;
        let Some(last) = self.by_id.get(&client_id).copied() else {
            return SessionDecision::Refuse(SessionRefusal::NoSession(client_id));
        };
        if sequence < last.sequence {
            return SessionDecision::Refuse(SessionRefusal::Outdated {
                client_id,
                sequence,
                last: last.sequence,
            });
        }
        self.set(client_id, LastUse { sequence, index });
        if sequence > last.sequence { SessionDecision::Apply } else { SessionDecision::Repeat }
    }

    /// Removes a session, for a machine that chooses itself which ones.
    pub fn remove(&mut self, client_id: u64) {
        if let Some(last) = self.by_id.remove(&client_id) {
            self.by_last_use.remove(&(last.index, client_id));
        }
    }

    /// Sets the last use of a session, for a machine that loads its sessions from disk.
    pub fn set(&mut self, client_id: u64, last: LastUse) {
        if let Some(old) = self.by_id.insert(client_id, last) {
            self.by_last_use.remove(&(old.index, client_id));
        }
        self.by_last_use.insert((last.index, client_id));
    }
}

/// A state machine that applies each command of a [`Client`] exactly once. It refuses all other commands.
#[derive(Debug)]
pub struct ExactlyOnce<M> {
    machine: M,
    sessions: Sessions,
    /// Last response of each session.
    responses: BTreeMap<u64, Bytes>,
}

/// Encoded command of a [`Client`].
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// The maximum is part of the command, so that all nodes remove the same sessions.
    Open {
        sessions_max: u64,
    },
    Call(Session, Bytes),
}

/// Encoded response to a [`Request`].
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Response {
    /// Id of the new session.
    Opened(u64),
    /// Response of the wrapped machine.
    Applied(Bytes),
    Refused(SessionRefusal),
}

/// Effect of an entry on the sessions, decided before the wrapped machine applies it.
enum EntryEffect {
    NoCommand,
    /// Opens the session with this id, and removes others.
    Open {
        id: u64,
        removed: Vec<u64>,
    },
    /// Stores a new response for the session with this id.
    Apply(u64),
    /// Returns the stored response of the session with this id.
    Repeat(u64),
    Refuse(SessionRefusal),
}

impl<M: StateMachine> ExactlyOnce<M> {
    /// Wraps a machine that has applied nothing.
    ///
    /// # Panics
    /// The machine has applied entries, whose sessions are not known. See the [module](self) for machines on disk.
    #[must_use]
    pub fn new(machine: M) -> Self {
        assert_eq!(machine.applied(), LogId::ZERO, "a machine on disk keeps its sessions itself");
        Self { machine, sessions: Sessions::default(), responses: BTreeMap::new() }
    }

    /// Updates the sessions for `entry`. Returns its effect, and the entry that the wrapped machine applies in its place.
    fn admit_entry(&mut self, entry: &Entry) -> (EntryEffect, Entry) {
        let instead = |payload| Entry { id: entry.id, payload };
        let Payload::Command(command) = &entry.payload else {
            return (EntryEffect::NoCommand, entry.clone());
        };
        let index = entry.id.index.0;
        match codec::decode("command", VERSION, command) {
            Err(_) => (EntryEffect::Refuse(SessionRefusal::Unreadable), instead(Payload::Blank)),
            // The log index is unique, so it serves as the id of the session.
            Ok(Request::Open { sessions_max }) => {
                let removed = self.sessions.open(index, index, sessions_max.max(1));
                (EntryEffect::Open { id: index, removed }, instead(Payload::Blank))
            }
            Ok(Request::Call(session, command)) => match self.sessions.admit(session, index) {
                SessionDecision::Apply => {
                    (EntryEffect::Apply(session.client_id), instead(Payload::Command(command)))
                }
                SessionDecision::Repeat => (EntryEffect::Repeat(session.client_id), instead(Payload::Blank)),
                SessionDecision::Refuse(refusal) => (EntryEffect::Refuse(refusal), instead(Payload::Blank)),
            },
        }
    }

    /// Stores the wrapped machine's response as `effect` demands, and returns the response to the client.
    fn finish_entry(&mut self, effect: EntryEffect, response: Bytes) -> Bytes {
        let response = match effect {
            EntryEffect::NoCommand => return response,
            EntryEffect::Open { id, removed } => {
                for session in removed {
                    self.responses.remove(&session);
                }
                self.responses.insert(id, Bytes::new());
                Response::Opened(id)
            }
            EntryEffect::Apply(id) => {
                self.responses.insert(id, response.clone());
                Response::Applied(response)
            }
            EntryEffect::Repeat(id) => {
                Response::Applied(self.responses.get(&id).cloned().unwrap_or_default())
            }
            EntryEffect::Refuse(refusal) => Response::Refused(refusal),
        };
        codec::encode(VERSION, &response).into()
    }
}

impl<M: StateMachine> StateMachine for ExactlyOnce<M> {
    fn applied(&self) -> LogId {
        self.machine.applied()
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        let (effects, entries): (Vec<_>, Vec<_>) =
            entries.iter().map(|entry| self.admit_entry(entry)).unzip();
        let responses = apply_all(&mut self.machine, &entries)?;
        Ok(effects
            .into_iter()
            .zip(responses)
            .map(|(effect, response)| self.finish_entry(effect, response))
            .collect())
    }

    /// Always returns [`LogId::ZERO`], so that the log is never purged: the machine's durable state lacks the sessions.
    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        self.machine.flush()?;
        Ok(LogId::ZERO)
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        let sessions = self
            .responses
            .iter()
            .filter_map(|(id, response)| Some((*id, *self.sessions.by_id.get(id)?, response.clone())));
        let sessions = codec::encode(VERSION, &sessions.collect::<Vec<StoredSession>>());
        Ok(Box::new(SessionSnapshot { sessions, machine: self.machine.snapshot()? }))
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        let mut length = [0; 8];
        stream.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        let mut bytes = Vec::new();
        stream.take(length).read_to_end(&mut bytes)?;
        let stored: Vec<StoredSession> = codec::decode("sessions of a snapshot", VERSION, &bytes)?;
        self.machine.restore(stream)?;
        self.sessions = Sessions::default();
        self.responses = BTreeMap::new();
        for (id, last, response) in stored {
            self.sessions.set(id, last);
            self.responses.insert(id, response);
        }
        Ok(())
    }
}

type StoredSession = (u64, LastUse, Bytes);

/// The length of the encoded sessions, the sessions, and the wrapped machine's snapshot.
struct SessionSnapshot {
    sessions: Vec<u8>,
    machine: Box<dyn Snapshot>,
}

impl Snapshot for SessionSnapshot {
    fn write_to(&mut self, out: &mut dyn Write) -> std::io::Result<()> {
        out.write_all(&(self.sessions.len() as u64).to_le_bytes())?;
        out.write_all(&self.sessions)?;
        self.machine.write_to(out)
    }
}

/// Creates the commands of one session, one after the other.
#[derive(Debug)]
pub struct Client {
    id: u64,
    sequence: u64,
}

/// A command with its sequence number. May be proposed any number of times, until the next call of its session is proposed.
#[derive(Clone, Debug)]
pub struct Call(Bytes);

/// Why a session or a call of it failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The engine returned an error. The same [`Call`] may be proposed again, to the same node or to another one.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The state machine refused the command; this call did not apply it.
    #[error(transparent)]
    Refused(#[from] SessionRefusal),
    /// The response cannot be decoded: the engine's state machine is not [`ExactlyOnce`], or has another version.
    #[error(transparent)]
    Response(#[from] CodecError),
}

impl Client {
    /// Opens a session. If there are more than `sessions_max` sessions then, the ones idle for longest are removed. After an
    /// error another session may be opened: a session whose id was lost with the response is removed when it has been idle
    /// for longest.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub async fn open(engine: &dyn ConsensusEngine, sessions_max: u64) -> Result<Self, SessionError> {
        let request = codec::encode(VERSION, &Request::Open { sessions_max });
        let committed = engine.propose(request.into()).await?;
        match codec::decode("response", VERSION, &committed.response)? {
            Response::Opened(id) => Ok(Self { id, sequence: 0 }),
            Response::Refused(refusal) => Err(refusal.into()),
            Response::Applied(_) => Err(wrong_response().into()),
        }
    }

    /// Id of the session.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Creates the next call of the session. Once it is proposed, earlier calls are refused.
    pub fn next(&mut self, command: Bytes) -> Call {
        self.sequence += 1;
        let session = Session { client_id: self.id, sequence: self.sequence };
        Call(codec::encode(VERSION, &Request::Call(session, command)).into())
    }
}

impl Call {
    /// Proposes the command. Returns the response of the one time that the command was applied.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub async fn propose(&self, engine: &dyn ConsensusEngine) -> Result<Bytes, SessionError> {
        let committed = engine.propose(self.0.clone()).await?;
        match codec::decode("response", VERSION, &committed.response)? {
            Response::Applied(response) => Ok(response),
            Response::Refused(refusal) => Err(refusal.into()),
            Response::Opened(_) => Err(wrong_response().into()),
        }
    }
}

fn wrong_response() -> CodecError {
    CodecError::Malformed {
        what: "response",
        why: "it is the response to another kind of request".to_owned(),
    }
}

/// Format version of requests, responses and snapshots.
const VERSION: u8 = 1;
/// Most sessions that are removed when one is opened. All nodes must use the same number.
const REMOVED_AT_ONCE_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        codec::tests::check_damaged,
        typed::{Application, InMemory},
    };

    #[test]
    fn sessions_above_lowered_maximum_are_removed_in_steps() {
        let mut sessions = Sessions::default();
        for id in 1..=200 {
            assert_eq!(sessions.open(id, id, 200), []);
        }
        let removed: Vec<usize> = (201..206).map(|id| sessions.open(id, id, 1).len()).collect();
        assert_eq!(removed, [64, 64, 64, 11, 1]);
        assert_eq!(sessions.by_id.len(), 1);
    }

    fn bytes() -> impl Strategy<Value = Bytes> {
        any::<Vec<u8>>().prop_map(Bytes::from)
    }

    fn session() -> impl Strategy<Value = Session> {
        any::<(u64, u64)>().prop_map(|(client_id, sequence)| Session { client_id, sequence })
    }

    fn request() -> impl Strategy<Value = Request> {
        let open = any::<u64>().prop_map(|sessions_max| Request::Open { sessions_max });
        prop_oneof![open, (session(), bytes()).prop_map(|(session, command)| Request::Call(session, command))]
    }

    fn response() -> impl Strategy<Value = Response> {
        let outdated = any::<(u64, u64, u64)>()
            .prop_map(|(client_id, sequence, last)| SessionRefusal::Outdated { client_id, sequence, last });
        let none = any::<u64>().prop_map(SessionRefusal::NoSession);
        prop_oneof![
            any::<u64>().prop_map(Response::Opened),
            bytes().prop_map(Response::Applied),
            prop_oneof![none, outdated, Just(SessionRefusal::Unreadable)].prop_map(Response::Refused),
        ]
    }

    #[derive(Debug, Default, Serialize, Deserialize)]
    struct Text(String);

    impl Application for Text {
        type Command = String;
        type Response = usize;

        fn apply(&mut self, text: String) -> usize {
            self.0.push_str(&text);
            self.0.len()
        }
    }

    /// A snapshot of a machine that has applied some sessions and calls.
    fn snapshot_of(texts: &[String]) -> Vec<u8> {
        let mut machine = ExactlyOnce::new(InMemory::new(Text::default()));
        for (index, text) in (1..).zip(texts) {
            let call =
                Request::Call(Session { client_id: 1, sequence: index }, codec::encode(1, text).into());
            let request = if index % 3 == 1 { Request::Open { sessions_max: 2 } } else { call };
            let entry = Entry::command(LogId::new(1, index), codec::encode(VERSION, &request));
            machine.apply(&[entry]).unwrap();
        }
        written(&mut machine)
    }

    fn written(machine: &mut ExactlyOnce<InMemory<Text>>) -> Vec<u8> {
        let mut stream = Vec::new();
        machine.snapshot().unwrap().write_to(&mut stream).unwrap();
        stream
    }

    fn restored(stream: &[u8]) -> Option<Vec<u8>> {
        let mut machine = ExactlyOnce::new(InMemory::new(Text::default()));
        machine.restore(&mut &*stream).ok().map(|()| written(&mut machine))
    }

    proptest! {
        #[test]
        fn request_and_response_round_trip(
            request in request(),
            response in response(),
            cut: prop::sample::Index,
            bit: prop::sample::Index,
        ) {
            check_damaged(&request, cut, bit)?;
            check_damaged(&response, cut, bit)?;
        }

        #[test]
        fn snapshot_round_trips_and_truncated_snapshot_is_refused(
            texts in prop::collection::vec(".{0,9}", 0..9),
            cut: prop::sample::Index,
            bit: prop::sample::Index,
        ) {
            let stream = snapshot_of(&texts);
            prop_assert_eq!(restored(&stream), Some(stream.clone()));
            prop_assert_eq!(restored(&stream[..cut.index(stream.len())]), None);
            let mut flipped = stream.clone();
            let bit = bit.index(8 * stream.len());
            flipped[bit / 8] ^= 1 << (bit % 8);
            // The snapshot has no checksum of its own; engines verify one over the whole stream.
            if let Some(changed) = restored(&flipped) {
                prop_assert_eq!(restored(&changed), Some(changed));
            }
        }
    }
}
