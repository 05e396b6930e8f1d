//! Exactly-once sessions: part of the replicated state, and of its snapshots.

mod owners;

use std::collections::BTreeMap;

use bytes::Bytes;
use consensus_core::{
    StateMachineError, codec,
    session::{self, LastUse, SessionRefusal},
};
use rocksdb::{DB, IteratorMode, ReadOptions, WriteBatch};
use serde::{Deserialize, Serialize};

use self::owners::Owners;
use crate::{
    KvRejection, Session, keys,
    view::{Failure, disk},
};

/// A session as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stored {
    last: LastUse,
    /// Response to the last number.
    response: Bytes,
    /// CRC-32C of the command with the last number, as it was in the log. A repetition has the same checksum.
    command: u32,
    /// Name of the user that opened the session while authentication was enabled.
    owner: Option<String>,
}

/// All sessions. Their last numbers are in memory, their last responses in the store.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    numbers: session::Sessions,
    owners: Owners,
    /// Sessions that the batch in progress changed; `None` if the session was removed.
    changed: BTreeMap<u64, Option<Stored>>,
}

/// Decision about a request in a session.
pub(crate) enum SessionOutcome {
    /// The request is new and must be executed.
    Execute,
    /// The request was executed before, with this response.
    Repeated(Bytes),
    /// The request is refused.
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
            sessions.owners.insert(id, stored.owner.as_deref(), stored.last.index);
        }
        Ok(sessions)
    }

    /// Opens a session of a user at log index `index`. If there are `max` sessions or more, removes sessions of the user that has
    /// most, which may be this one: those that were idle longest, but few in one call.
    pub(crate) fn open(&mut self, id: u64, index: u64, max: u64, owner: Option<&str>) {
        for _ in 0..REMOVED_AT_ONCE_MAX {
            let is_full = self.owners.len() as u64 >= max;
            let Some(idle) = self.owners.first_to_remove(owner).filter(|_| is_full) else { break };
            self.numbers.remove(idle);
            self.owners.remove(idle);
            self.changed.insert(idle, None);
        }
        let last = LastUse { sequence: 0, index };
        self.numbers.set(id, last);
        self.owners.insert(id, owner, index);
        let owner = owner.map(str::to_owned);
        self.changed.insert(id, Some(Stored { last, response: Bytes::new(), command: 0, owner }));
    }

    /// Name of the user that opened a session while authentication was enabled.
    pub(crate) fn owner(&self, id: u64) -> Option<&str> {
        self.owners.get(id)
    }

    /// Decides about a request at log index `index`. `command` is the request as it is in the log.
    pub(crate) fn admit(
        &mut self,
        db: &DB,
        session: Session,
        index: u64,
        command: &[u8],
    ) -> Result<SessionOutcome, Failure> {
        let decision = self.numbers.admit(session, index);
        if !matches!(decision, session::SessionDecision::Refuse(_)) {
            self.owners.touch(session.client_id, index);
        }
        Ok(match decision {
            session::SessionDecision::Apply => SessionOutcome::Execute,
            session::SessionDecision::Repeat => self.repeat(db, session, index, command)?,
            session::SessionDecision::Refuse(refusal) => SessionOutcome::Refused(rejection(refusal)),
        })
    }

    /// Responds to a repetition of the session's last number. Another request with the same number would get a response
    /// that is not its own, so it is refused, and the first response is kept.
    fn repeat(
        &mut self,
        db: &DB,
        session: Session,
        index: u64,
        command: &[u8],
    ) -> Result<SessionOutcome, Failure> {
        let mut stored = self.stored(db, session.client_id)?;
        stored.last.index = index;
        let is_same = stored.command == crc32c::crc32c(command);
        let response = stored.response.clone();
        self.changed.insert(session.client_id, Some(stored));
        let Session { client_id, sequence } = session;
        Ok(if is_same {
            SessionOutcome::Repeated(response)
        } else {
            SessionOutcome::Refused(KvRejection::Invalid(format!(
                "sequence {sequence} of session {client_id} was used for another request: use a new number \
                 for each write"
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

    /// Keeps the response to a request. `command` is the request as it is in the log.
    pub(crate) fn record(&mut self, session: Session, index: u64, command: &[u8], response: Bytes) {
        let last = LastUse { sequence: session.sequence, index };
        let command = crc32c::crc32c(command);
        let owner = self.owners.get(session.client_id).map(str::to_owned);
        self.changed.insert(session.client_id, Some(Stored { last, response, command, owner }));
    }

    /// Adds the changed sessions to a RocksDB write.
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

/// For the crate `fuzz`: decodes a stored session and encodes it again.
pub(crate) fn reread(bytes: &[u8]) -> Result<Vec<u8>, codec::CodecError> {
    Ok(codec::encode(VERSION, &codec::decode::<Stored>("session", VERSION, bytes)?))
}

const VERSION: u8 = 1;
/// Most sessions that are removed when one is opened, so that the log is not delayed after the maximum was lowered. All nodes
/// must use the same number.
const REMOVED_AT_ONCE_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_of_version_1() {
        let stored = Stored {
            last: LastUse { sequence: 3, index: 300 },
            response: Bytes::from_static(&[1, 251, 255]),
            command: 7,
            owner: Some("a".to_owned()),
        };
        assert_eq!(codec::encode(VERSION, &stored), [1, 3, 251, 44, 1, 3, 1, 251, 255, 7, 1, 1, 97]);
    }
}
