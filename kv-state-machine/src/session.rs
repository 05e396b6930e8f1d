//! Exactly-once sessions: part of the replicated state, and of its snapshots.

use std::collections::BTreeMap;

use bytes::Bytes;
use consensus_core::{
    StateMachineError, codec,
    session::{self, LastUse, SessionRefusal},
};
use rocksdb::{DB, IteratorMode, ReadOptions, WriteBatch};
use serde::{Deserialize, Serialize};

use crate::{
    KvRejection, Session, keys,
    view::{Failure, disk},
};

/// A session as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stored {
    last: LastUse,
    /// The answer to the last number, as it was given.
    answer: Bytes,
    /// CRC-32C of the command that had the last number, as it was in the log; a repetition has the same.
    command: u32,
}

/// All sessions: numbers in memory, answers in the store.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    numbers: session::Sessions,
    /// Changed by the batch in hand; `None`: gone.
    changed: BTreeMap<u64, Option<Stored>>,
}

/// What a session says of a request.
pub(crate) enum Verdict {
    /// New: execute it.
    Execute,
    /// Executed before, with this answer.
    Answered(Bytes),
    /// Neither can be.
    Refused(KvRejection),
}

impl Sessions {
    pub(crate) fn load(db: &DB) -> Result<Self, Failure> {
        let mut sessions = Self::default();
        let mut read = ReadOptions::default();
        read.set_total_order_seek(true);
        read.set_iterate_range(keys::SESSIONS.start.to_vec()..keys::SESSIONS.end.to_vec());
        for item in db.iterator_opt(IteratorMode::Start, read) {
            let (key, bytes) = item.map_err(disk)?;
            let id = key[1..].try_into().map(u64::from_be_bytes);
            let id =
                id.map_err(|_| StateMachineError::Other(format!("session key {key:02x?} is damaged")))?;
            let stored: Stored = codec::decode("session", VERSION, &bytes)?;
            sessions.numbers.set(id, stored.last);
        }
        Ok(sessions)
    }

    /// Opens a session at log index `index`, and forgets those idle longest beyond `max`.
    pub(crate) fn open(&mut self, id: u64, index: u64, max: u64) {
        for idle in self.numbers.open(id, index, max) {
            self.changed.insert(idle, None);
        }
        let last = LastUse { sequence: 0, index };
        self.changed.insert(id, Some(Stored { last, answer: Bytes::new(), command: 0 }));
    }

    /// Takes a request made at log index `index`; `command` is the request as it is in the log.
    pub(crate) fn take(
        &mut self,
        db: &DB,
        session: Session,
        index: u64,
        command: &[u8],
    ) -> Result<Verdict, Failure> {
        Ok(match self.numbers.admit(session, index) {
            session::SessionDecision::Apply => Verdict::Execute,
            session::SessionDecision::Repeat => self.repeat(db, session, index, command)?,
            session::SessionDecision::Refuse(refusal) => Verdict::Refused(rejection(refusal)),
        })
    }

    /// Answers a repetition of the session's last number. Another request with that number would get an answer that is
    /// not its own: it is refused, and the first answer stays.
    fn repeat(&mut self, db: &DB, session: Session, index: u64, command: &[u8]) -> Result<Verdict, Failure> {
        let mut stored = self.stored(db, session.client_id)?;
        stored.last.index = index;
        let is_same = stored.command == crc32c::crc32c(command);
        let answer = stored.answer.clone();
        self.changed.insert(session.client_id, Some(stored));
        let Session { client_id, sequence } = session;
        Ok(if is_same {
            Verdict::Answered(answer)
        } else {
            Verdict::Refused(KvRejection::Invalid(format!(
                "sequence {sequence} of session {client_id} was used for another request: each write takes a number of its own"
            )))
        })
    }

    fn stored(&self, db: &DB, id: u64) -> Result<Stored, Failure> {
        if let Some(Some(stored)) = self.changed.get(&id) {
            return Ok(stored.clone());
        }
        let bytes = db.get(keys::session(id)).map_err(disk)?;
        let bytes =
            bytes.ok_or_else(|| StateMachineError::Other(format!("session {id} is not in the store")))?;
        Ok(codec::decode::<Stored>("session", VERSION, &bytes)?)
    }

    /// Keeps the answer to a request; `command` is the request as it is in the log.
    pub(crate) fn record(&mut self, session: Session, index: u64, command: &[u8], answer: Bytes) {
        let last = LastUse { sequence: session.sequence, index };
        let command = crc32c::crc32c(command);
        self.changed.insert(session.client_id, Some(Stored { last, answer, command }));
    }

    /// Adds what changed to the write.
    pub(crate) fn write(&mut self, write: &mut WriteBatch) {
        for (id, stored) in std::mem::take(&mut self.changed) {
            match stored {
                Some(stored) => write.put(keys::session(id), codec::encode(VERSION, &stored)),
                None => write.delete(keys::session(id)),
            }
        }
    }
}

fn rejection(refusal: SessionRefusal) -> KvRejection {
    match refusal {
        SessionRefusal::NoSession(client_id) => KvRejection::NoSession { client_id },
        SessionRefusal::Outdated { client_id, sequence, last } => {
            KvRejection::SequenceOver { client_id, sequence, last }
        }
        other => KvRejection::Invalid(other.to_string()),
    }
}

/// For the crate `fuzz`: reads a stored session and writes it again.
pub(crate) fn reread(bytes: &[u8]) -> Result<Vec<u8>, codec::CodecError> {
    Ok(codec::encode(VERSION, &codec::decode::<Stored>("session", VERSION, bytes)?))
}

const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_of_version_1() {
        let stored = Stored {
            last: LastUse { sequence: 3, index: 300 },
            answer: Bytes::from_static(&[1, 251, 255]),
            command: 7,
        };
        assert_eq!(codec::encode(VERSION, &stored), [1, 3, 251, 44, 1, 3, 1, 251, 255, 7]);
    }
}
