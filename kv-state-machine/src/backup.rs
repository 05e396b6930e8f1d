//! Backups: a copy of a store in a file, and a new store from it.
//!
//! ```text
//! stream of a snapshot, zeros up to a multiple of 512 bytes, SHA-256 of all bytes before it(32)
//! ```
//! This is what etcd's clients expect of a file that they saved.

use std::io::{self, Read};

use consensus_core::{ClusterId, LogId, LogIndex, StateMachine, StateMachineError, Term};
use sha2::{Digest, Sha256};

use crate::{KvStateMachine, view::Failure};

/// Changes of a store that is restored from a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restore {
    /// Identity of the new cluster; [`ClusterId::NONE`] for a store without consensus.
    pub cluster: ClusterId,
    /// Number by which the revision is raised. If it is not 0, all revisions before the raised one count as compacted, so that a
    /// client that saw later revisions than the backup has notices it, and does not take old revisions for new ones.
    pub bump_revision: u64,
}

impl KvStateMachine {
    /// Replaces the content of this new store by that of a backup. Returns the last entry that the restored state reflects: the
    /// log of the node must start after it. Blocks on the disk.
    ///
    /// # Errors
    /// The backup is damaged or incomplete, the store is not new, or the disk failed. The store must not be used then.
    pub fn restore_backup(&mut self, backup: &mut dyn Read, restore: Restore) -> Result<LogId, Failure> {
        if self.applied() != LogId::ZERO {
            return Err(StateMachineError::Other("a backup is restored into a new store only".to_owned()));
        }
        let mut stream = Hashed { from: backup, held: Vec::new(), digest: Sha256::new() };
        self.restore(&mut stream)?;
        stream.check_end()?;
        let applied = self.applied();
        self.auth.separate(restore.cluster.0, restore.bump_revision);
        let applied = LogId { term: applied.term.max(Term(1)), index: applied.index.max(LogIndex(1)) };
        self.rewrite_meta(|meta| {
            (meta.applied, meta.cluster) = (applied, restore.cluster);
            // Clients of the old cluster may have later sessions than the backup. Their ids are not drawn again.
            meta.last_client_id = meta.last_client_id.saturating_add(SESSIONS_BUMP);
            if restore.bump_revision > 0 {
                meta.revision = meta.revision.saturating_add(restore.bump_revision);
                meta.compacted = meta.revision;
            }
        })?;
        self.flush()?;
        Ok(applied)
    }
}

/// Reads a backup up to its checksum, and computes the checksum.
struct Hashed<'a> {
    from: &'a mut dyn Read,
    /// The last bytes that were read: they may be the checksum.
    held: Vec<u8>,
    digest: Sha256,
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.held.len() < DIGEST_BYTES + 1 {
            let mut more = vec![0; buffer.len().max(1) + DIGEST_BYTES + 1 - self.held.len()];
            match self.from.read(&mut more)? {
                0 => return Ok(0),
                read => self.held.extend_from_slice(&more[..read]),
            }
        }
        let taken = buffer.len().min(self.held.len() - DIGEST_BYTES);
        buffer[..taken].copy_from_slice(&self.held[..taken]);
        self.digest.update(&self.held[..taken]);
        self.held.drain(..taken);
        Ok(taken)
    }
}

impl Hashed<'_> {
    /// Reads the zeros at the end, and compares the checksum.
    fn check_end(mut self) -> Result<(), Failure> {
        let bad = |why: &str| StateMachineError::Unreadable { what: "backup", why: why.to_owned() };
        let mut rest = Vec::new();
        (&mut self).take(BLOCK_BYTES).read_to_end(&mut rest)?;
        if rest.len() as u64 == BLOCK_BYTES || rest.iter().any(|byte| *byte != 0) {
            return Err(bad("there is more after its end"));
        }
        if self.held.len() != DIGEST_BYTES {
            return Err(bad("its checksum is missing: it was not saved to its end"));
        }
        if self.digest.finalize()[..] != self.held[..] {
            return Err(bad("its checksum is wrong"));
        }
        Ok(())
    }
}

/// Number by which the id of the last session is raised.
const SESSIONS_BUMP: u64 = 1 << 32;
const DIGEST_BYTES: usize = 32;
const BLOCK_BYTES: u64 = 512;

#[cfg(test)]
mod tests {
    use consensus_core::{Entry, NodeId, codec};

    use super::*;
    use crate::{
        AuthOperation, AuthSecret, Durability, KvCommand, KvOperation, KvResult, Password, Put, Range,
        machine::COMMAND_VERSION,
    };

    fn machine(dir: &std::path::Path) -> KvStateMachine {
        KvStateMachine::open(dir, NodeId(1), Durability::FromLog).unwrap()
    }

    fn put(index: u64, value: &str) -> Entry {
        let put = Put { key: "k".into(), value: value.to_owned().into(), ..Put::default() };
        let command = KvCommand::new(None, KvOperation::Put(put));
        Entry::command(LogId::new(3, index), codec::encode(COMMAND_VERSION, &command))
    }

    fn backup(machine: &mut KvStateMachine) -> Vec<u8> {
        let mut bytes = Vec::new();
        machine.snapshot().unwrap().write_to(&mut bytes).unwrap();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let digest = Sha256::digest(&bytes);
        bytes.extend_from_slice(&digest);
        bytes
    }

    fn restored(bytes: &[u8], restore: Restore) -> Result<(LogId, u64, KvResult), String> {
        let dir = tempfile::tempdir().unwrap();
        let mut new = machine(dir.path());
        let applied = new.restore_backup(&mut &bytes[..], restore).map_err(|error| error.to_string())?;
        assert_eq!(new.cluster(), restore.cluster);
        drop(new);
        let new = machine(dir.path());
        assert_eq!(new.applied(), applied, "it was flushed");
        let range = Range { key: "k".into(), ..Range::default() };
        let answer = new.executor().read(&KvOperation::Range(range)).unwrap().unwrap();
        Ok((applied, new.executor().revision().unwrap(), answer.result))
    }

    #[test]
    fn backup_is_restored_with_raised_revision_and_new_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let mut old = machine(dir.path());
        old.apply(&[put(1, "a"), put(2, "b")]).unwrap();
        let bytes = backup(&mut old);
        let restore = Restore { cluster: ClusterId(9), bump_revision: 1000 };
        let (applied, revision, found) = restored(&bytes, restore).unwrap();
        assert_eq!((applied, revision), (LogId::new(3, 2), 1003));
        let KvResult::Range(found) = found else { panic!("{found:?}") };
        assert_eq!((&found.kvs[0].value[..], found.kvs[0].mod_revision), (&b"b"[..], 3));
        let (_, revision, _) = restored(&bytes, Restore::default()).unwrap();
        assert_eq!(revision, 3);
    }

    #[test]
    fn restored_store_has_another_key_for_tokens_and_a_later_revision_of_auth() {
        let dir = tempfile::tempdir().unwrap();
        let mut old = machine(dir.path());
        let (root, secret) = ("root".to_owned(), AuthSecret(vec![1; 32].into()));
        let changes = [
            AuthOperation::AddUser { user: root.clone(), password: Password::None },
            AuthOperation::GrantRole { user: root.clone(), role: root },
            AuthOperation::Enable { secret },
        ];
        for (index, change) in (1..).zip(changes) {
            let command = KvCommand::new(None, KvOperation::Auth(change));
            let entry = Entry::command(LogId::new(3, index), codec::encode(COMMAND_VERSION, &command));
            old.apply(&[entry]).unwrap();
        }
        let (bytes, before) = (backup(&mut old), old.executor().auth());
        let restored = |cluster: u64| {
            let dir = tempfile::tempdir().unwrap();
            let restore = Restore { cluster: ClusterId(cluster), bump_revision: 5 };
            machine(dir.path()).restore_backup(&mut &bytes[..], restore).unwrap();
            let auth = machine(dir.path()).executor().auth();
            (auth.secret().clone(), auth.revision())
        };
        let (secret, revision) = restored(7);
        assert_ne!(&secret, before.secret());
        assert_eq!((secret.0.len(), revision), (32, before.revision() + 6));
        assert_eq!(restored(7).0, secret, "all nodes of the new cluster have the same key");
        assert_ne!(restored(8).0, secret);
    }

    #[test]
    fn damaged_backup_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut old = machine(dir.path());
        old.apply(&[put(1, "a")]).unwrap();
        let bytes = backup(&mut old);
        let length = bytes.len();
        for wrong in [&bytes[..length - 1], &bytes[..length - 32], &bytes[..length / 2], &[]] {
            restored(wrong, Restore::default()).unwrap_err();
        }
        for position in [0, 100, length / 2, length - 40, length - 1] {
            let mut changed = bytes.clone();
            changed[position] ^= 1;
            restored(&changed, Restore::default()).unwrap_err();
        }
        let longer = [&bytes[..], &[0; 600]].concat();
        restored(&longer, Restore::default()).unwrap_err();
    }

    #[test]
    fn backup_is_not_restored_into_a_store_with_data() {
        let dir = tempfile::tempdir().unwrap();
        let mut old = machine(dir.path());
        old.apply(&[put(1, "a")]).unwrap();
        let bytes = backup(&mut old);
        old.restore_backup(&mut &bytes[..], Restore::default()).unwrap_err();
    }
}
