//! Exactly-once sessions: part of the replicated state, and of its snapshots.

use std::collections::{BTreeMap, BTreeSet};

use consensus_core::{StateMachineError, codec};
use rocksdb::{DB, IteratorMode, ReadOptions, WriteBatch};
use serde::{Deserialize, Serialize};

use crate::{
    KvRejection, Session, keys,
    view::{Failure, disk},
};

/// A session as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stored {
    sequence: u64,
    /// Log index at which it was last used; who is idle longest goes first.
    used: u64,
    /// The answer to `sequence`, as it was given.
    answer: Vec<u8>,
}

/// All sessions: numbers in memory, answers in the store.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    by_id: BTreeMap<u64, Numbers>,
    by_use: BTreeSet<(u64, u64)>,
    /// Changed by the batch in hand; `None`: gone.
    changed: BTreeMap<u64, Option<Stored>>,
}

#[derive(Clone, Copy, Debug)]
struct Numbers {
    sequence: u64,
    used: u64,
}

/// What a session says of a request.
pub(crate) enum Verdict {
    /// New: execute it.
    Execute,
    /// Executed before, with this answer.
    Answered(Vec<u8>),
    /// Neither can be.
    Refused(KvRejection),
}

impl Sessions {
    pub(crate) fn load(db: &DB) -> Result<Self, Failure> {
        let mut sessions = Self::default();
        let mut read = ReadOptions::default();
        read.set_iterate_range(keys::SESSIONS.start.to_vec()..keys::SESSIONS.end.to_vec());
        for item in db.iterator_opt(IteratorMode::Start, read) {
            let (key, bytes) = item.map_err(disk)?;
            let id = key[1..].try_into().map(u64::from_be_bytes);
            let id =
                id.map_err(|_| StateMachineError::Other(format!("session key {key:02x?} is damaged")))?;
            let stored: Stored = codec::decode("session", VERSION, &bytes)?;
            sessions.put_numbers(id, Numbers { sequence: stored.sequence, used: stored.used });
        }
        Ok(sessions)
    }

    fn put_numbers(&mut self, id: u64, numbers: Numbers) {
        if let Some(old) = self.by_id.insert(id, numbers) {
            self.by_use.remove(&(old.used, id));
        }
        self.by_use.insert((numbers.used, id));
    }

    /// Opens a session at log index `index`, and forgets those idle longest beyond `max`.
    pub(crate) fn open(&mut self, id: u64, index: u64, max: u64) {
        while self.by_id.len() as u64 >= max {
            let Some((_, idle)) = self.by_use.pop_first() else { break };
            self.by_id.remove(&idle);
            self.changed.insert(idle, None);
        }
        self.put_numbers(id, Numbers { sequence: 0, used: index });
        self.changed.insert(id, Some(Stored { sequence: 0, used: index, answer: Vec::new() }));
    }

    /// Looks at a request made at log index `index`.
    pub(crate) fn look(&mut self, db: &DB, session: Session, index: u64) -> Result<Verdict, Failure> {
        let Session { client_id, sequence } = session;
        let Some(numbers) = self.by_id.get(&client_id).copied() else {
            let why = format!("there is no session {client_id}, or it was idle for too long; open a new one");
            return Ok(Verdict::Refused(KvRejection::Invalid(why)));
        };
        if sequence < numbers.sequence {
            let why = format!(
                "sequence {sequence} of session {client_id} is over; the last was {}",
                numbers.sequence
            );
            return Ok(Verdict::Refused(KvRejection::Invalid(why)));
        }
        if sequence > numbers.sequence {
            return Ok(Verdict::Execute);
        }
        let answer = self.answer(db, client_id)?;
        self.record(session, index, answer.clone());
        Ok(Verdict::Answered(answer))
    }

    fn answer(&self, db: &DB, id: u64) -> Result<Vec<u8>, Failure> {
        if let Some(Some(stored)) = self.changed.get(&id) {
            return Ok(stored.answer.clone());
        }
        let bytes = db.get(keys::session(id)).map_err(disk)?;
        let bytes =
            bytes.ok_or_else(|| StateMachineError::Other(format!("session {id} is not in the store")))?;
        Ok(codec::decode::<Stored>("session", VERSION, &bytes)?.answer)
    }

    /// Keeps the answer to a request.
    pub(crate) fn record(&mut self, session: Session, index: u64, answer: Vec<u8>) {
        let Session { client_id, sequence } = session;
        self.put_numbers(client_id, Numbers { sequence, used: index });
        self.changed.insert(client_id, Some(Stored { sequence, used: index, answer }));
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

const VERSION: u8 = 1;
