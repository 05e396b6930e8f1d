//! Queues, on which locks and elections are built: keys with a common prefix, of which the oldest one is the first.

use bytes::Bytes;
use kv_state_machine::{
    Compare, CompareResult, CompareTarget, Delete, KeyRange, KeyValue, KvOperation, KvResult, Put, Range,
    Sort, SortBy, Txn, WatchRequest,
};
use tonic::Status;

use super::{Etcd, error, unexpected};
use crate::frontend::stopped;

/// A key in the queue of a name.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) key: Bytes,
    /// Create revision of the key.
    pub(super) revision: u64,
    /// Value of the key.
    pub(super) value: Bytes,
}

impl Etcd {
    /// Adds the key of a lease to the queue of a name. A key that is in the queue already keeps its value.
    pub(super) async fn queue_up(&self, name: &Bytes, lease_id: i64, value: Bytes) -> Result<Place, Status> {
        let key = Bytes::from([&name[..], b"/", hexadecimal(lease_id).as_bytes()].concat());
        let put = Put { key: key.clone(), value: value.clone(), lease_id, ..Put::default() };
        let range = Range { key: key.clone(), ..Range::default() };
        let txn = Txn {
            compare: vec![created(&key, 0)],
            success: vec![KvOperation::Put(put)],
            failure: vec![KvOperation::Range(range)],
            ..Txn::default()
        };
        let answer = self.write(KvOperation::Txn(txn)).await?;
        let KvResult::Txn(done) = answer.result else { return Err(unexpected(&answer.result)) };
        let before = match done.responses.into_iter().next() {
            Some(KvResult::Range(found)) => found.kvs.into_iter().next(),
            _ => None,
        };
        Ok(match before {
            Some(kv) => Place { key, revision: kv.create_revision, value: kv.value },
            None => Place { key, revision: answer.revision, value },
        })
    }

    /// Waits until the place is the first of its queue. Returns an error if the place is lost because its lease ends.
    pub(super) async fn wait_for_turn(&self, name: &Bytes, place: &Place) -> Result<(), Status> {
        loop {
            let (mine, before) = self.look_at_queue(name, place).await?;
            if !mine {
                return Err(Status::unknown("mutex: session is expired"));
            }
            let Some((before, at)) = before else { return Ok(()) };
            let mut watches = self.data()?.watches().map_err(error::of_read)?;
            // The own key too: a caller that has lost its place must not wait.
            for key in [before.key, place.key.clone()] {
                watches.add(WatchRequest {
                    keys: KeyRange { key, range_end: None },
                    start_revision: at + 1,
                    without_puts: true,
                    ..WatchRequest::default()
                });
            }
            // After any event the queue is read again.
            let mut stop = self.stop.clone();
            tokio::select! {
                news = watches.next() => news.map_err(error::of_read)?,
                () = stopped(&mut stop) => return Err(error::stopped()),
            };
        }
    }

    /// Returns whether the place still exists, and the last key before it with the revision of the read.
    async fn look_at_queue(
        &self,
        name: &Bytes,
        place: &Place,
    ) -> Result<(bool, Option<(KeyValue, u64)>), Status> {
        let before = Range {
            bounds: kv_state_machine::RevisionBounds {
                create_max: place.revision - 1,
                ..kv_state_machine::RevisionBounds::default()
            },
            descending: true,
            ..queue(name)
        };
        let mine = Range { key: place.key.clone(), ..Range::default() };
        let success = vec![KvOperation::Range(mine), KvOperation::Range(before)];
        let answer = self.read(KvOperation::Txn(Txn { success, ..Txn::default() }), false).await?;
        let KvResult::Txn(done) = answer.result else { return Err(unexpected(&answer.result)) };
        let [KvResult::Range(mine), KvResult::Range(before)] = &done.responses[..] else {
            return Err(unexpected(&done));
        };
        let is_there = mine.kvs.first().is_some_and(|kv| kv.create_revision == place.revision);
        Ok((is_there, before.kvs.first().map(|kv| (kv.clone(), answer.revision))))
    }

    /// Returns the first key of a queue, and the revision of the store.
    pub(super) async fn first_of_queue(&self, name: &Bytes) -> Result<(Option<KeyValue>, u64), Status> {
        let answer = self.read(KvOperation::Range(queue(name)), false).await?;
        let KvResult::Range(mut found) = answer.result else { return Err(unexpected(&answer.result)) };
        Ok((found.kvs.pop(), answer.revision))
    }

    /// Removes a place of a caller that no longer waits, unless the key is that of a newer place.
    pub(super) async fn give_up_place(&self, Place { key, revision, .. }: Place) -> Result<(), Status> {
        let compare = vec![created(&key, revision)];
        let success = vec![KvOperation::Delete(Delete { key, ..Delete::default() })];
        self.write(KvOperation::Txn(Txn { compare, success, ..Txn::default() })).await?;
        Ok(())
    }

    /// Removes a place. Returns the revision of the store.
    pub(super) async fn leave_queue(&self, key: Bytes) -> Result<u64, Status> {
        let answer = self.write(KvOperation::Delete(Delete { key, ..Delete::default() })).await?;
        Ok(answer.revision)
    }
}

/// The id of a lease as Go's client library writes it in keys.
fn hexadecimal(lease_id: i64) -> String {
    let sign = if lease_id < 0 { "-" } else { "" };
    format!("{sign}{:x}", lease_id.unsigned_abs())
}

/// Range of the oldest key of a queue.
fn queue(name: &Bytes) -> Range {
    let from = [&name[..], b"/"].concat();
    let end = [&name[..], b"0"].concat(); // The character after the slash.
    Range {
        key: from.into(),
        range_end: Some(end.into()),
        limit: 1,
        sort: Sort { by: SortBy::CreateRevision, after_limit: false },
        ..Range::default()
    }
}

/// Keys of a queue.
pub(super) fn below(name: &Bytes) -> KeyRange {
    let Range { key, range_end, .. } = queue(name);
    KeyRange { key, range_end }
}

/// Condition that a key was created at a revision; 0: that it does not exist.
pub(super) fn created(key: &Bytes, revision: u64) -> Compare {
    Compare {
        keys: KeyRange { key: key.clone(), range_end: None },
        target: CompareTarget::CreateRevision(super::signed(revision)),
        result: CompareResult::Equal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_ids_are_written_as_by_go() {
        assert_eq!(hexadecimal(255), "ff");
        assert_eq!(hexadecimal(-255), "-ff");
        assert_eq!(hexadecimal(i64::MIN), "-8000000000000000");
    }
}
