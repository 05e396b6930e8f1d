//! Directories that know whose they are.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use consensus_core::{NodeId, StorageError, StorageId};

/// A directory of one node, locked for this process. It holds two small files, `IDENTITY` (text, one `key = value` per
/// line, the last of them a checksum of those before) and `LOCK`, beside what its owner keeps there.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    storage: StorageId,
    /// The lock goes with it.
    _lock: File,
}

/// What a directory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// A word, for example `raft-log`.
    pub name: &'static str,
    /// The oldest format that this version reads.
    pub oldest: u64,
    /// The newest, which it writes.
    pub format: u64,
}

impl DataDir {
    /// Opens the directory of `node`, making it if it is not there. Nothing in it is changed before it is certain that
    /// it is the right one.
    ///
    /// # Errors
    /// It is in use, of another node or kind, of a newer format, or cannot be read or made.
    pub fn open(path: &Path, kind: Kind, node: NodeId) -> Result<Self, StorageError> {
        let io = |doing: &'static str| {
            move |source: io::Error| StorageError::Io {
                context: format!("{doing} {}", path.display()),
                source,
            }
        };
        fs::create_dir_all(path).map_err(io("creating"))?;
        let lock_path = path.join("LOCK");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(lock_path)
            .map_err(io("opening"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StorageError::Locked {
                path: path.display().to_string(),
                why: "its LOCK file is locked".to_owned(),
            },
            TryLockError::Error(source) => io("locking")(source),
        })?;
        let identity = path.join("IDENTITY");
        let storage = match fs::read_to_string(&identity) {
            Ok(text) => check(path, &text, kind, node)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                refuse_if_used(path)?;
                let storage = StorageId(rand::random_range(1..=u64::MAX));
                let Kind { name, format, .. } = kind;
                let text = format!("kind = {name}\nformat = {format}\nnode = {node}\nstorage = {storage}\n");
                let text = format!("{text}{}", sum_line(&text));
                sync_path_to(path).map_err(io("syncing the directory above"))?;
                write_durably(&identity, text.as_bytes()).map_err(io("writing IDENTITY in"))?;
                storage
            }
            Err(error) => return Err(io("reading IDENTITY in")(error)),
        };
        Ok(Self { path: path.to_owned(), storage, _lock: lock })
    }

    /// The directory's own identity, drawn when it was made.
    #[must_use]
    pub fn storage(&self) -> StorageId {
        self.storage
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory `name` in it, durably, if it is not there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn make_dir(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path)?;
        File::open(&self.path)?.sync_all()?;
        Ok(path)
    }

    /// Replaces the file `name` in the directory by `text` and a checksum, all or nothing, durably.
    ///
    /// # Errors
    /// Those of the file system; the old file is as it was.
    pub fn replace(&self, name: &str, text: &str) -> io::Result<()> {
        replace_with_checksum(&self.path.join(name), text)
    }

    /// The text that [`replace`](Self::replace) wrote; `None` if there is no such file.
    ///
    /// # Errors
    /// It is damaged, or cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<String>, StorageError> {
        read_with_checksum(&self.path.join(name))
    }
}

/// Replaces the file `path` by `text` and a checksum, all or nothing, durably.
///
/// # Errors
/// Those of the file system; the old file is as it was.
pub fn replace_with_checksum(path: &Path, text: &str) -> io::Result<()> {
    write_durably(path, format!("{text}{}", sum_line(text)).as_bytes())
}

/// The text that [`replace_with_checksum`] wrote; `None` if there is no such file.
///
/// # Errors
/// It is damaged, or cannot be read.
pub fn read_with_checksum(path: &Path) -> Result<Option<String>, StorageError> {
    let position = path.display().to_string();
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StorageError::Io { context: format!("reading {position}"), source }),
    };
    let text = String::from_utf8(bytes).ok().filter(|text| has_sum(text));
    let text = text.and_then(|text| Some(text[..text.rfind(SUM)?].to_owned()));
    text.map(Some).ok_or(StorageError::Corrupt { position, why: "its checksum is wrong".to_owned() })
}

/// An identity that is gone must not be replaced by another: the node would not be known for what it was.
fn refuse_if_used(path: &Path) -> Result<(), StorageError> {
    let io = |source| StorageError::Io { context: format!("reading {}", path.display()), source };
    for entry in fs::read_dir(path).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        // What a crash leaves of the very first start.
        if name != "LOCK" && name != "IDENTITY.new" {
            let position = path.join("IDENTITY").display().to_string();
            let why = format!("it is missing, and there is {}", name.display());
            return Err(StorageError::Corrupt { position, why });
        }
    }
    Ok(())
}

/// Returns the storage that `text` names.
fn check(path: &Path, text: &str, kind: Kind, node: NodeId) -> Result<StorageId, StorageError> {
    let value = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        lines.find(|(k, _)| k.trim() == key).map(|(_, value)| value.trim().to_owned())
    };
    let (position, path) = (path.join("IDENTITY").display().to_string(), path.display().to_string());
    let number = |key: &str| value(key).and_then(|text| text.parse::<u64>().ok());
    let corrupt =
        |position: &str, why: String| Err(StorageError::Corrupt { position: position.to_owned(), why });
    let (Some(found_kind), Some(format), Some(found), Some(storage)) =
        (value("kind"), number("format"), value("node"), number("storage"))
    else {
        return corrupt(
            &position,
            "it must have lines for kind, format, node, storage and crc32c".to_owned(),
        );
    };
    if format > kind.format {
        return Err(StorageError::NewerFormat { path, found: format, supported: kind.format });
    }
    if format < kind.oldest {
        let Kind { oldest, format: newest, .. } = kind;
        return corrupt(
            &path,
            format!("it has format {format}, this version reads formats {oldest} to {newest}"),
        );
    }
    if !has_sum(text) {
        return corrupt(&position, "its checksum is wrong".to_owned());
    }
    if found_kind != kind.name {
        return corrupt(&path, format!("the directory holds a {found_kind}, not a {}", kind.name));
    }
    if found != node.to_string() {
        return Err(StorageError::ForeignDirectory { path, found, expected: node.to_string() });
    }
    Ok(StorageId(storage))
}

/// The last line of a small text file, after `text`.
fn sum_line(text: &str) -> String {
    format!("{SUM} = {:08x}\n", crc32c::crc32c(text.as_bytes()))
}

fn has_sum(text: &str) -> bool {
    text.rfind(SUM).is_some_and(|at| text[at..] == sum_line(&text[..at]))
}

/// Makes the names of a new directory and of those above it durable: syncs below are no use when a power cut takes the
/// whole directory. Which of them were made just now, perhaps by a process that was killed, is not known.
///
/// # Errors
/// Those of the file system.
pub fn sync_path_to(path: &Path) -> io::Result<()> {
    let path = path.canonicalize()?;
    let mut above = path.ancestors().skip(1);
    above.next().map_or(Ok(()), |parent| File::open(parent)?.sync_all())?;
    for dir in above {
        // One that may not be opened was not made by us.
        let Ok(dir) = File::open(dir) else { continue };
        match dir.sync_all().map_err(|error| error.kind()) {
            // There are file systems without it; ours may begin below.
            Ok(()) | Err(io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {}
            Err(kind) => return Err(kind.into()),
        }
    }
    Ok(())
}

/// Replaces the file `path` by one with `content`: under a temporary name, synced; then renamed; then the directory synced.
/// A crash leaves the old file or the new one.
///
/// # Errors
/// Those of the file system; the old file is as it was.
pub fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

const SUM: &str = "crc32c";
