//! Exactly-once commands, for any state machine (dissertation §6.3).
//!
//! A client that got no answer does not know whether its command was applied. In a session it may propose it again, to
//! any node: the state machine applies each number of a session once, and a repetition is answered with the first
//! response. Sessions are part of the replicated state: they survive the loss of leaders, restarts and snapshots.
//!
//! * A machine that begins empty at each start (in memory) is wrapped in [`ExactlyOnce`], and commands are made by a
//!   [`Client`].
//! * A machine on disk must write sessions in the same atomic write as its data, which no wrapper can do for it. It keeps
//!   its [`Sessions`] itself, and the responses beside them; `kv-state-machine` is an example.
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
//!             Err(SessionError::Propose(_)) => {} // try another
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

/// A number of a session. A command that carries it is applied once, and a repetition is answered with the first response.
/// Numbers only go up, by as much as the client likes; one below the last is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Which session.
    pub client_id: u64,
    /// From 1.
    pub sequence: u64,
}

/// Which sessions there are, and the last number of each; the responses are kept by whoever keeps this. Deterministic.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    by_id: BTreeMap<u64, LastUse>,
    by_use: BTreeSet<(u64, u64)>,
}

/// What a session did last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastUse {
    /// With which number; 0 if it was only opened.
    pub sequence: u64,
    /// At which log index.
    pub index: u64,
}

/// What is to be done with a command of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is new: apply it, and keep the response in place of the session's last.
    Apply,
    /// It was the last one of its session: the response that was kept is the answer.
    Repeat,
    /// Neither can be.
    Refuse(SessionRefusal),
}

/// Why a command of a session was not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum SessionRefusal {
    /// It never was, or is forgotten; whether the command was applied before is not known any more.
    #[error("there is no session {0}, or it was idle for too long; open a new one")]
    NoSession(u64),
    /// A later number of the session was applied.
    #[error("sequence {sequence} of session {client_id} is over; the last was {last}")]
    Over {
        /// Which session.
        client_id: u64,
        /// The number refused.
        sequence: u64,
        /// The session's last number.
        last: u64,
    },
    /// The command is not one that a [`Client`] makes, by any version that is known here.
    #[error("this is no command of a session")]
    Unreadable,
}

impl Sessions {
    /// Opens a session at log index `index`, in place of the one of that id if there is one; returns those that are
    /// forgotten for it: beyond `max` the ones idle longest, at most 64 of them. So a maximum that was lowered is reached with
    /// the next sessions that are opened, and none of them holds up the log.
    pub fn open(&mut self, client_id: u64, index: u64, max: u64) -> Vec<u64> {
        let mut forgotten = Vec::new();
        while self.by_id.len() as u64 >= max && forgotten.len() < FORGOTTEN_AT_ONCE_MAX {
            let Some((_, idle)) = self.by_use.pop_first() else { break };
            self.by_id.remove(&idle);
            forgotten.push(idle);
        }
        self.set(client_id, LastUse { sequence: 0, index });
        forgotten
    }

    /// Takes a command at log index `index`: from now on its number is the last of its session.
    pub fn take(&mut self, session: Session, index: u64) -> Verdict {
        let Session { client_id, sequence } = session;
        let Some(last) = self.by_id.get(&client_id).copied() else {
            return Verdict::Refuse(SessionRefusal::NoSession(client_id));
        };
        if sequence < last.sequence {
            return Verdict::Refuse(SessionRefusal::Over { client_id, sequence, last: last.sequence });
        }
        self.set(client_id, LastUse { sequence, index });
        if sequence > last.sequence { Verdict::Apply } else { Verdict::Repeat }
    }

    /// Sets what a session did last, as it was stored.
    pub fn set(&mut self, client_id: u64, last: LastUse) {
        if let Some(old) = self.by_id.insert(client_id, last) {
            self.by_use.remove(&(old.index, client_id));
        }
        self.by_use.insert((last.index, client_id));
    }
}

/// A state machine of which every command is one of a [`Client`], applied exactly once.
#[derive(Debug)]
pub struct ExactlyOnce<M> {
    machine: M,
    sessions: Sessions,
    /// The last response of each session.
    responses: BTreeMap<u64, Bytes>,
}

/// A command as it is proposed.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// The maximum is part of the command, so that all nodes forget the same sessions.
    Open {
        sessions_max: u64,
    },
    Call(Session, Bytes),
}

/// What comes back.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Answer {
    Opened(u64),
    Response(Bytes),
    Refused(SessionRefusal),
}

/// What an entry came to before the machine applied it.
enum Course {
    NoCommand,
    Open(u64, Vec<u64>),
    Apply(u64),
    Repeat(u64),
    Refuse(SessionRefusal),
}

impl<M: StateMachine> ExactlyOnce<M> {
    /// Wraps a machine that has applied nothing.
    ///
    /// # Panics
    /// It has applied something: what sessions there were is known to nobody then. See the [module](self) for machines
    /// on disk.
    #[must_use]
    pub fn new(machine: M) -> Self {
        assert_eq!(machine.applied(), LogId::ZERO, "a machine on disk keeps its sessions itself");
        Self { machine, sessions: Sessions::default(), responses: BTreeMap::new() }
    }

    /// What becomes of an entry, and what the machine is to apply in its place.
    fn enter(&mut self, entry: &Entry) -> (Course, Entry) {
        let instead = |payload| Entry { id: entry.id, payload };
        let Payload::Command(command) = &entry.payload else { return (Course::NoCommand, entry.clone()) };
        let index = entry.id.index.0;
        match codec::decode("command", VERSION, command) {
            Err(_) => (Course::Refuse(SessionRefusal::Unreadable), instead(Payload::Blank)),
            // No other session has this id: no other entry has this index.
            Ok(Request::Open { sessions_max }) => {
                let forgotten = self.sessions.open(index, index, sessions_max.max(1));
                (Course::Open(index, forgotten), instead(Payload::Blank))
            }
            Ok(Request::Call(session, command)) => match self.sessions.take(session, index) {
                Verdict::Apply => (Course::Apply(session.client_id), instead(Payload::Command(command))),
                Verdict::Repeat => (Course::Repeat(session.client_id), instead(Payload::Blank)),
                Verdict::Refuse(refusal) => (Course::Refuse(refusal), instead(Payload::Blank)),
            },
        }
    }

    fn leave(&mut self, course: Course, response: Bytes) -> Bytes {
        let answer = match course {
            Course::NoCommand => return response,
            Course::Open(id, forgotten) => {
                forgotten.iter().for_each(|id| drop(self.responses.remove(id)));
                self.responses.insert(id, Bytes::new());
                Answer::Opened(id)
            }
            Course::Apply(id) => {
                self.responses.insert(id, response.clone());
                Answer::Response(response)
            }
            Course::Repeat(id) => Answer::Response(self.responses.get(&id).cloned().unwrap_or_default()),
            Course::Refuse(refusal) => Answer::Refused(refusal),
        };
        codec::encode(VERSION, &answer).into()
    }
}

impl<M: StateMachine> StateMachine for ExactlyOnce<M> {
    fn applied(&self) -> LogId {
        self.machine.applied()
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        let (courses, entries): (Vec<_>, Vec<_>) = entries.iter().map(|entry| self.enter(entry)).unzip();
        let responses = apply_all(&mut self.machine, &entries)?;
        Ok(courses
            .into_iter()
            .zip(responses)
            .map(|(course, response)| self.leave(course, response))
            .collect())
    }

    /// What the machine can answer for is without its sessions: the log is kept whole.
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
        Ok(Box::new(Picture { sessions, machine: self.machine.snapshot()? }))
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        let mut length = [0; 8];
        stream.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        let mut bytes = Vec::new();
        stream.take(length).read_to_end(&mut bytes)?;
        let stored: Vec<StoredSession> = codec::decode("sessions of a snapshot", VERSION, &bytes)?;
        self.machine.restore(stream)?;
        (self.sessions, self.responses) = (Sessions::default(), BTreeMap::new());
        for (id, last, response) in stored {
            self.sessions.set(id, last);
            self.responses.insert(id, response);
        }
        Ok(())
    }
}

type StoredSession = (u64, LastUse, Bytes);

/// Sessions with their length in front, then the machine's picture.
struct Picture {
    sessions: Vec<u8>,
    machine: Box<dyn Snapshot>,
}

impl Snapshot for Picture {
    fn write_to(&mut self, out: &mut dyn Write) -> std::io::Result<()> {
        out.write_all(&(self.sessions.len() as u64).to_le_bytes())?;
        out.write_all(&self.sessions)?;
        self.machine.write_to(out)
    }
}

/// Makes the commands of one session, one after the other.
#[derive(Debug)]
pub struct Client {
    id: u64,
    sequence: u64,
}

/// A command with its number. May be proposed as often as need be, until the next one of its session is.
#[derive(Clone, Debug)]
pub struct Call(Bytes);

/// Why there is no response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The engine gave none. The same [`Call`] may be proposed again, there or elsewhere.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// It was not applied by this call.
    #[error(transparent)]
    Refused(#[from] SessionRefusal),
    /// The engine's state machine is not an [`ExactlyOnce`] one, or one of another version.
    #[error(transparent)]
    Response(#[from] CodecError),
}

impl Client {
    /// Opens a session. If there are more than `sessions_max` then, the ones idle longest are forgotten. One that is opened
    /// and never heard of, as the answer was lost, does no harm.
    ///
    /// # Errors
    /// The engine's; see [`SessionError`].
    pub async fn open(engine: &dyn ConsensusEngine, sessions_max: u64) -> Result<Self, SessionError> {
        let request = codec::encode(VERSION, &Request::Open { sessions_max });
        let committed = engine.propose(request.into()).await?;
        match codec::decode("answer", VERSION, &committed.response)? {
            Answer::Opened(id) => Ok(Self { id, sequence: 0 }),
            Answer::Refused(refusal) => Err(refusal.into()),
            Answer::Response(_) => Err(not_asked().into()),
        }
    }

    /// The session's id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The next call of the session; ends the one before.
    pub fn next(&mut self, command: Bytes) -> Call {
        self.sequence += 1;
        let session = Session { client_id: self.id, sequence: self.sequence };
        Call(codec::encode(VERSION, &Request::Call(session, command)).into())
    }
}

impl Call {
    /// Proposes it, once. The response is that of the first time that it was applied.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub async fn propose(&self, engine: &dyn ConsensusEngine) -> Result<Bytes, SessionError> {
        let committed = engine.propose(self.0.clone()).await?;
        match codec::decode("answer", VERSION, &committed.response)? {
            Answer::Response(response) => Ok(response),
            Answer::Refused(refusal) => Err(refusal.into()),
            Answer::Opened(_) => Err(not_asked().into()),
        }
    }
}

fn not_asked() -> CodecError {
    CodecError::Malformed { what: "answer", why: "it answers something else".to_owned() }
}

/// Format of requests, answers and snapshots.
const VERSION: u8 = 1;
/// Sessions that one opening forgets at most. Part of the replicated state's rules.
const FORGOTTEN_AT_ONCE_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        codec::tests::check_damaged,
        typed::{Application, InMemory},
    };

    #[test]
    fn lowered_maximum_is_reached_without_forgetting_all_at_once() {
        let mut sessions = Sessions::default();
        for id in 1..=200 {
            assert_eq!(sessions.open(id, id, 200), []);
        }
        let forgotten: Vec<usize> = (201..206).map(|id| sessions.open(id, id, 1).len()).collect();
        assert_eq!(forgotten, [64, 64, 64, 11, 1]);
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

    fn answer() -> impl Strategy<Value = Answer> {
        let over = any::<(u64, u64, u64)>().prop_map(|(client_id, sequence, last)| SessionRefusal::Over {
            client_id,
            sequence,
            last,
        });
        let none = any::<u64>().prop_map(SessionRefusal::NoSession);
        prop_oneof![
            any::<u64>().prop_map(Answer::Opened),
            bytes().prop_map(Answer::Response),
            prop_oneof![none, over, Just(SessionRefusal::Unreadable)].prop_map(Answer::Refused),
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

    /// A picture after some sessions and some calls of theirs.
    fn picture(texts: &[String]) -> Vec<u8> {
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
        fn requests_and_answers_come_back(
            request in request(),
            answer in answer(),
            cut: prop::sample::Index,
            bit: prop::sample::Index,
        ) {
            check_damaged(&request, cut, bit)?;
            check_damaged(&answer, cut, bit)?;
        }

        #[test]
        fn a_picture_comes_back_and_a_part_of_one_is_refused(
            texts in prop::collection::vec(".{0,9}", 0..9),
            cut: prop::sample::Index,
            bit: prop::sample::Index,
        ) {
            let stream = picture(&texts);
            prop_assert_eq!(restored(&stream), Some(stream.clone()));
            prop_assert_eq!(restored(&stream[..cut.index(stream.len())]), None);
            let (mut flipped, bit) = (stream.clone(), bit.index(8 * stream.len()));
            flipped[bit / 8] ^= 1 << (bit % 8);
            // There is no checksum: engines have one over the whole stream.
            if let Some(changed) = restored(&flipped) {
                prop_assert_eq!(restored(&changed), Some(changed));
            }
        }
    }
}
