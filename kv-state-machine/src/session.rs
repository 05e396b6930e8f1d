//! Exactly-once sessions: part of the replicated state, and of its snapshots.

use std::collections::BTreeMap;

use bytes::Bytes;
use consensus_core::{
    StateMachineError, codec,
    session::{self, LastUse},
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
        self.changed.insert(id, Some(Stored { last: LastUse { sequence: 0, index }, answer: Bytes::new() }));
    }

    /// Takes a request made at log index `index`.
    pub(crate) fn take(&mut self, db: &DB, session: Session, index: u64) -> Result<Verdict, Failure> {
        Ok(match self.numbers.take(session, index) {
            session::Verdict::Apply => Verdict::Execute,
            session::Verdict::Repeat => {
                let answer = self.answer(db, session.client_id)?;
                self.record(session, index, answer.clone());
                Verdict::Answered(answer)
            }
            session::Verdict::Refuse(refusal) => Verdict::Refused(KvRejection::Invalid(refusal.to_string())),
        })
    }

    fn answer(&self, db: &DB, id: u64) -> Result<Bytes, Failure> {
        if let Some(Some(stored)) = self.changed.get(&id) {
            return Ok(stored.answer.clone());
        }
        let bytes = db.get(keys::session(id)).map_err(disk)?;
        let bytes =
            bytes.ok_or_else(|| StateMachineError::Other(format!("session {id} is not in the store")))?;
        Ok(codec::decode::<Stored>("session", VERSION, &bytes)?.answer)
    }

    /// Keeps the answer to a request.
    pub(crate) fn record(&mut self, session: Session, index: u64, answer: Bytes) {
        let last = LastUse { sequence: session.sequence, index };
        self.changed.insert(session.client_id, Some(Stored { last, answer }));
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
        let (last, answer) = (LastUse { sequence: 3, index: 300 }, Bytes::from_static(&[1, 251, 255]));
        assert_eq!(codec::encode(VERSION, &Stored { last, answer }), [1, 3, 251, 44, 1, 3, 1, 251, 255]);
    }
}
