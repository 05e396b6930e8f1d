//! Import of another store that has the same model, with its revisions: a new store is filled with versions of keys, leases,
//! users and roles.

use bytes::Bytes;
use consensus_core::{LogId, LogIndex, StateMachine, StateMachineError, Term};

use crate::{
    AuthOperation, KEY_BYTES_MAX, KvStateMachine, Restore, VALUE_BYTES_MAX,
    execute::{Execution, History},
    lease::Lease,
    limits::Amount,
    pending_writes::PendingWrites,
    recent::Counts,
    view::{Base, Failure},
};

/// A version of a key in another store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedVersion {
    /// Key; 1 to [`KEY_BYTES_MAX`] bytes.
    pub key: Bytes,
    /// Revision at which it was written. A revision has at most one version of a key.
    pub revision: u64,
    /// Revision at which the key was created; 0 for a deletion.
    pub create_revision: u64,
    /// Number of writes since the key was created; 0 for a deletion.
    pub version: u64,
    /// Id of the lease to which the key is attached; 0 for none.
    pub lease_id: i64,
    /// Value; at most [`VALUE_BYTES_MAX`] bytes.
    pub value: Bytes,
}

/// Fills a new store. Nothing of it may be used before [`finish`](Self::finish).
#[derive(Debug)]
pub struct Importer<'a> {
    machine: &'a mut KvStateMachine,
    written: PendingWrites,
    bytes: usize,
    revision: u64,
}

impl KvStateMachine {
    /// Starts to fill this new store. Blocks on the disk.
    ///
    /// # Errors
    /// The store is not new.
    pub fn import(&mut self) -> Result<Importer<'_>, Failure> {
        if self.applied() != LogId::ZERO {
            return Err(StateMachineError::Other(
                "another store is imported into a new store only".to_owned(),
            ));
        }
        Ok(Importer { machine: self, written: PendingWrites::default(), bytes: 0, revision: 1 })
    }
}

impl Importer<'_> {
    /// Adds a lease with its whole time to live, in seconds. Leases precede the keys that are attached to them.
    pub fn lease(&mut self, id: i64, ttl: u64) {
        self.written.leases.insert(id, Some(Lease { ttl, remaining: None, is_ending: false }));
        self.written.granted.insert(id);
    }

    /// Adds a version. Versions come in the order of their revisions.
    ///
    /// # Errors
    /// The version is not valid, or the disk failed.
    pub fn version(&mut self, version: &ImportedVersion) -> Result<(), Failure> {
        let ImportedVersion { key, revision, create_revision, version, lease_id, value } = version;
        let is_right = (*version == 0) == (*create_revision == 0) && create_revision <= revision;
        let refused = |why: &str| {
            let start = key[..key.len().min(100)].escape_ascii();
            Err(StateMachineError::Other(format!("key {start} at revision {revision}: {why}")))
        };
        match () {
            () if *revision < self.revision.max(2) => return refused("the versions are not in order"),
            () if !is_right => return refused("its numbers contradict each other"),
            () if key.is_empty() => return refused("the key is empty"),
            () if key.len() > KEY_BYTES_MAX => return refused("the key is longer than 16 KiB"),
            () if value.len() > VALUE_BYTES_MAX => return refused("the value is longer than 2 MiB"),
            () => {}
        }
        // The changes of one revision are written at once.
        if *revision > self.revision && self.bytes > BATCH_BYTES {
            self.write()?;
        }
        self.revision = *revision;
        self.bytes += key.len() + value.len() + VERSION_BYTES;
        let counts = match version {
            0 => Counts::DELETED,
            _ => Counts { create_revision: *create_revision, version: *version, lease_id: *lease_id },
        };
        let generation = self.machine.current_generation();
        let (base, history) = (Base::new(&generation), History { revision: revision - 1, compacted: 0 });
        Execution::new(&base, &mut self.written, history, 0, Amount::OF_COMMANDS).import(key, counts, value)
    }

    /// Adds users and roles.
    ///
    /// # Errors
    /// A change is not valid.
    pub fn auth(&mut self, change: &AuthOperation) -> Result<(), Failure> {
        let changed = self.machine.auth.execute(change);
        changed.map_err(|rejection| StateMachineError::Other(format!("users and roles: {rejection}")))
    }

    /// Writes the rest. `revision` is that of the store, at least that of the last version; revisions before `compacted` cannot
    /// be read. Returns the entry after which the log of the node must start.
    ///
    /// # Errors
    /// The disk failed.
    pub fn finish(mut self, revision: u64, compacted: u64, restore: Restore) -> Result<LogId, Failure> {
        self.revision = self.revision.max(revision).max(compacted);
        self.write()?;
        let (applied, revision) = (LogId { term: Term(1), index: LogIndex(1) }, self.revision);
        self.machine.rewrite_meta(|meta| {
            (meta.applied, meta.cluster) = (applied, restore.cluster);
            meta.revision = revision.saturating_add(restore.bump_revision);
            meta.compacted = if restore.bump_revision > 0 { meta.revision } else { compacted };
        })?;
        self.machine.flush()?;
        Ok(applied)
    }

    fn write(&mut self) -> Result<(), Failure> {
        let written = std::mem::take(&mut self.written);
        self.bytes = 0;
        self.machine.commit_imported(&written, self.revision)
    }
}

/// Bytes that are written at once.
const BATCH_BYTES: usize = 8 << 20;
/// Approximate bytes of a version in memory besides key and value.
const VERSION_BYTES: usize = 200;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use consensus_core::{ClusterId, Entry, NodeId, codec};

    use super::*;
    use crate::{Delete, Durability, KvCommand, KvOperation, KvResult, Put, Range, machine::COMMAND_VERSION};

    fn machine(dir: &std::path::Path) -> KvStateMachine {
        KvStateMachine::open(dir, NodeId(1), Durability::FromLog).unwrap()
    }

    fn version(key: &str, revision: u64, create_revision: u64, version: u64) -> ImportedVersion {
        let (key, value) = (Bytes::from(key.to_owned()), Bytes::from(format!("{key}@{revision}")));
        ImportedVersion { key, revision, create_revision, version, lease_id: 0, value }
    }

    fn deletion(key: &str, revision: u64) -> ImportedVersion {
        ImportedVersion { value: Bytes::new(), ..version(key, revision, 0, 0) }
    }

    fn read(machine: &KvStateMachine, revision: u64) -> Result<BTreeMap<Bytes, (u64, u64, u64)>, String> {
        let range = Range { key: "\0".into(), range_end: Some("\0".into()), revision, ..Range::default() };
        let answer = machine.executor().read(&KvOperation::Range(range)).unwrap();
        let KvResult::Range(found) = answer.map_err(|error| error.to_string())?.result else { panic!() };
        assert_eq!(found.count, found.kvs.len() as u64);
        let of = |kv: crate::KeyValue| (kv.key, (kv.mod_revision, kv.create_revision, kv.version));
        Ok(found.kvs.into_iter().map(of).collect())
    }

    /// Executes the same commands that another store executed, and imports its versions: both stores are equal.
    #[test]
    fn imported_store_equals_one_that_executed_the_commands() {
        let (executed, imported) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut executed = machine(executed.path());
        let put = |key: &str, revision: u64, lease_id| {
            let value = format!("{key}@{revision}").into();
            KvOperation::Put(Put { key: key.to_owned().into(), value, lease_id, ..Put::default() })
        };
        let delete =
            |key: &str| KvOperation::Delete(Delete { key: key.to_owned().into(), ..Delete::default() });
        let commands = [
            KvOperation::GrantLease { id: 7, ttl: 60 },
            put("a", 2, 0),
            put("b", 3, 7),
            put("a", 4, 7),
            delete("a"),
            put("a", 6, 0),
            put("b", 7, 0),
            put("c", 8, 7),
        ];
        for (index, command) in (1..).zip(commands) {
            let command = codec::encode(COMMAND_VERSION, &KvCommand::new(None, command));
            executed.apply(&[Entry::command(LogId::new(1, index), command)]).unwrap();
        }
        let mut machine = machine(imported.path());
        let mut import = machine.import().unwrap();
        import.lease(7, 60);
        let leased = |version| ImportedVersion { lease_id: 7, ..version };
        for version in [
            version("a", 2, 2, 1),
            leased(version("b", 3, 3, 1)),
            leased(version("a", 4, 2, 2)),
            deletion("a", 5),
            version("a", 6, 6, 1),
            version("b", 7, 3, 2),
            leased(version("c", 8, 8, 1)),
        ] {
            import.version(&version).unwrap();
        }
        let applied = import.finish(8, 0, Restore::default()).unwrap();
        assert_eq!((applied, machine.applied()), (LogId::new(1, 1), applied));
        assert_eq!(machine.executor().hash().unwrap().hash, executed.executor().hash().unwrap().hash);
        for revision in 2..=8 {
            assert_eq!(read(&machine, revision), read(&executed, revision), "{revision}");
        }
        let statistics = |machine: &KvStateMachine| {
            let statistics = machine.executor().statistics().unwrap();
            (statistics.revision, statistics.keys, statistics.leases)
        };
        assert_eq!(statistics(&machine), statistics(&executed));
    }

    #[test]
    fn compacted_history_and_its_deletions_are_imported() {
        let dir = tempfile::tempdir().unwrap();
        let mut machine = machine(dir.path());
        let mut import = machine.import().unwrap();
        // The deletion at the compacted revision is all that is left of `a`; of `b` there is the version in force.
        for version in [version("b", 5, 3, 2), deletion("a", 9), version("c", 10, 10, 1)] {
            import.version(&version).unwrap();
        }
        let restore = Restore { cluster: ClusterId(5), ..Restore::default() };
        import.finish(12, 9, restore).unwrap();
        assert_eq!(machine.cluster(), ClusterId(5));
        assert_eq!(read(&machine, 9).unwrap(), BTreeMap::from([("b".into(), (5, 3, 2))]));
        assert_eq!(read(&machine, 12).unwrap().len(), 2);
        assert!(read(&machine, 8).unwrap_err().contains("compacted"));
        assert!(read(&machine, 13).is_err());
        assert!(machine.import().is_err(), "the store is not new");
    }

    #[test]
    fn bump_raises_the_revision_and_compacts_what_is_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut machine = machine(dir.path());
        let mut import = machine.import().unwrap();
        import.version(&version("a", 5, 5, 1)).unwrap();
        import.finish(5, 0, Restore { bump_revision: 100, ..Restore::default() }).unwrap();
        assert_eq!(machine.executor().revision().unwrap(), 105);
        assert!(read(&machine, 5).is_err());
        assert_eq!(read(&machine, 105).unwrap()[&b"a"[..]], (5, 5, 1));
    }

    #[test]
    fn versions_that_make_no_sense_are_refused() {
        let long = "k".repeat(KEY_BYTES_MAX + 1);
        let large = ImportedVersion { value: vec![0; VALUE_BYTES_MAX + 1].into(), ..version("a", 5, 5, 1) };
        for (wrong, why) in [
            (version("a", 1, 1, 1), "order"),
            (version("a", 5, 6, 1), "contradict"),
            (version("a", 5, 0, 1), "contradict"),
            (version("a", 5, 5, 0), "contradict"),
            (version("", 5, 5, 1), "empty"),
            (version(&long, 5, 5, 1), "longer"),
            (large, "longer"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let mut machine = machine(dir.path());
            let error = machine.import().unwrap().version(&wrong).unwrap_err().to_string();
            assert!(error.contains(why) && error.len() < 500, "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let mut machine = machine(dir.path());
        let mut import = machine.import().unwrap();
        import.version(&version("a", 5, 5, 1)).unwrap();
        assert!(import.version(&version("b", 4, 4, 1)).is_err());
    }
}
