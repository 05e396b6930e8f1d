//! Directories that record the node that they belong to.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use consensus_core::{NodeId, StorageError, StorageId};

/// A directory of one node, locked by this process. Besides the data of the storage it contains two small files: `LOCK`, and
/// `IDENTITY` (text, one `key = value` per line; the last line is a checksum of the others).
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    storage: StorageId,
    /// The file that holds the lock; dropping it releases the lock.
    _lock: File,
}

/// Kind and formats of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirKind {
    /// Name of the kind, for example `raft-log`.
    pub name: &'static str,
    /// Oldest format that this version reads.
    pub oldest_format: u64,
    /// Newest format that this version reads; it writes this one.
    pub format: u64,
}

impl DataDir {
    /// Opens the directory of `node`; creates it if it does not exist. Nothing in an existing directory is changed before its
    /// node, kind and format are checked.
    ///
    /// # Errors
    /// The directory is in use, belongs to another node, has another kind or an unsupported format, or cannot be read or
    /// created.
    pub fn open(path: &Path, kind: DirKind, node: NodeId) -> Result<Self, StorageError> {
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
                let DirKind { name, format, .. } = kind;
                let text = format!("kind = {name}\nformat = {format}\nnode = {node}\nstorage = {storage}\n");
                let text = format!("{text}{}", sum_line(&text));
                sync_parent_dirs(path).map_err(io("syncing the directory above"))?;
                write_durably(&identity, text.as_bytes()).map_err(io("writing IDENTITY in"))?;
                storage
            }
            Err(error) => return Err(io("reading IDENTITY in")(error)),
        };
        Ok(Self { path: path.to_owned(), storage, _lock: lock })
    }

    /// Identity of the directory, drawn at random when it was created.
    #[must_use]
    pub fn storage(&self) -> StorageId {
        self.storage
    }

    /// Path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the directory `name` in it, if it does not exist. The new directory is durable on return.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create_dir(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path)?;
        File::open(&self.path)?.sync_all()?;
        Ok(path)
    }

    /// Replaces the file `name` in the directory by `text` and a checksum, see [`replace_with_checksum`].
    ///
    /// # Errors
    /// Those of the file system; the old file is then unchanged.
    pub fn replace_file(&self, name: &str, text: &str) -> io::Result<()> {
        replace_with_checksum(&self.path.join(name), text)
    }

    /// Reads the text that [`replace_file`](Self::replace_file) wrote; `None` if the file does not exist.
    ///
    /// # Errors
    /// The file is damaged or cannot be read.
    pub fn read_file(&self, name: &str) -> Result<Option<String>, StorageError> {
        read_with_checksum(&self.path.join(name))
    }
}

/// Checks that a directory, if it exists and records a node, is that of `node`. Reads its `IDENTITY` alone, and changes nothing.
///
/// # Errors
/// The directory belongs to another node, or its record is damaged or cannot be read.
pub fn require_node(path: &Path, node: NodeId) -> Result<(), StorageError> {
    let identity = path.join("IDENTITY");
    let Some(text) = read_with_checksum(&identity)? else { return Ok(()) };
    let nodes = text.lines().filter_map(|line| line.strip_prefix("node = "));
    match nodes.map(str::trim).find(|found| *found != node.to_string()) {
        None => Ok(()),
        Some(found) => Err(StorageError::ForeignDirectory {
            path: path.display().to_string(),
            found: found.to_owned(),
            expected: node.to_string(),
        }),
    }
}

/// Replaces the file `path` by `text` and a checksum. The replacement is atomic, and durable on return.
///
/// # Errors
/// Those of the file system; the old file is then unchanged.
pub fn replace_with_checksum(path: &Path, text: &str) -> io::Result<()> {
    write_durably(path, format!("{text}{}", sum_line(text)).as_bytes())
}

/// Reads the text that [`replace_with_checksum`] wrote, without the checksum; `None` if the file does not exist.
///
/// # Errors
/// The file is damaged or cannot be read.
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

/// Refuses a directory that has data but no `IDENTITY`: with a new identity its node would count as one with an empty disk.
fn refuse_if_used(path: &Path) -> Result<(), StorageError> {
    let io = |source| StorageError::Io { context: format!("reading {}", path.display()), source };
    for entry in fs::read_dir(path).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        // A crash during the very first start leaves these.
        if name != "LOCK" && name != "IDENTITY.new" {
            let position = path.join("IDENTITY").display().to_string();
            let why = format!("it is missing, though the directory contains {}", name.display());
            return Err(StorageError::Corrupt { position, why });
        }
    }
    Ok(())
}

/// Checks an `IDENTITY` file, and returns the storage that it names.
fn check(path: &Path, text: &str, kind: DirKind, node: NodeId) -> Result<StorageId, StorageError> {
    let value = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        lines.find(|(k, _)| k.trim() == key).map(|(_, value)| value.trim().to_owned())
    };
    let position = path.join("IDENTITY").display().to_string();
    let path = path.display().to_string();
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
    if format < kind.oldest_format {
        let DirKind { oldest_format, format: newest, .. } = kind;
        return corrupt(
            &path,
            format!("it has format {format}, this version reads formats {oldest_format} to {newest}"),
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

/// The checksum line that follows `text` in a file.
fn sum_line(text: &str) -> String {
    format!("{SUM} = {:08x}\n", crc32c::crc32c(text.as_bytes()))
}

fn has_sum(text: &str) -> bool {
    text.rfind(SUM).is_some_and(|at| text[at..] == sum_line(&text[..at]))
}

/// Makes the directory entry of a new directory, and those of all directories above it, durable. Without this a power cut
/// could remove the whole directory, with all synced files in it. All parents are synced, because it is not known which of
/// them are new, perhaps created by a process that was killed.
///
/// # Errors
/// Those of the file system.
pub fn sync_parent_dirs(path: &Path) -> io::Result<()> {
    let path = path.canonicalize()?;
    let mut above = path.ancestors().skip(1);
    above.next().map_or(Ok(()), |parent| File::open(parent)?.sync_all())?;
    for dir in above {
        // A directory that this process may not open existed before.
        let Ok(dir) = File::open(dir) else { continue };
        match dir.sync_all().map_err(|error| error.kind()) {
            // Some file systems cannot sync directories; the data may be on another one mounted below.
            Ok(()) | Err(io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {}
            Err(kind) => return Err(kind.into()),
        }
    }
    Ok(())
}

/// Replaces the file `path` by one with `content`: writes and syncs a temporary file, renames it, and syncs the directory.
/// A crash leaves either the old file or the new one.
///
/// # Errors
/// Those of the file system; the old file is then unchanged.
pub fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

const SUM: &str = "crc32c";
