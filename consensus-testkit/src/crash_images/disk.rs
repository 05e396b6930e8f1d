//! Model of a disk that distinguishes synced data.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use super::{Survives, trace::Call};

/// Effect of a call on the images.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Nothing,
    /// A sync of this file or directory.
    Sync(String),
    /// A name was added, removed or changed.
    Names(String),
}

/// The directory `root` with everything below it, as a process sees it and as the disk has it.
pub(super) struct Disk {
    root: PathBuf,
    /// Files and directories; the first one is the root.
    nodes: Vec<Node>,
    open: HashMap<i64, Open>,
    /// Data that becomes durable with the sync in progress, by thread.
    syncing: HashMap<u64, Node>,
    printed: Vec<u8>,
}

#[derive(Clone)]
enum Node {
    File(File),
    Dir(Dir),
}

#[derive(Clone, Default)]
struct File {
    content: Vec<u8>,
    /// Content at the last sync.
    durable: Vec<u8>,
    /// Content with half of the last write.
    torn: Vec<u8>,
    /// Offsets of the pages that the next sync writes. Pages of a failed sync are not dirty any more: the system does not
    /// retry, and a later sync succeeds without them.
    dirty: BTreeSet<usize>,
}

#[derive(Clone, Default)]
struct Dir {
    names: BTreeMap<OsString, usize>,
    /// Names at the last sync.
    durable: BTreeMap<OsString, usize>,
}

struct Open {
    path: PathBuf,
    node: usize,
    at: usize,
    append: bool,
}

impl Disk {
    pub(super) fn new(root: &Path) -> Self {
        let nodes = vec![Node::Dir(Dir::default())];
        let (open, syncing) = (HashMap::new(), HashMap::new());
        Self { root: root.to_owned(), nodes, open, syncing, printed: Vec::new() }
    }

    /// Lines printed so far.
    pub(super) fn printed(&self) -> Vec<String> {
        String::from_utf8_lossy(&self.printed).lines().map(str::to_owned).collect()
    }

    /// Files and directories after a crash now.
    pub(super) fn tree(&self, survives: Survives) -> Vec<(PathBuf, Option<Vec<u8>>)> {
        let (mut tree, mut left) = (Vec::new(), vec![(PathBuf::new(), 0)]);
        while let Some((path, node)) = left.pop() {
            match &self.nodes[node] {
                Node::File(file) => tree.push((path, Some(file.after_crash(survives)))),
                Node::Dir(dir) => {
                    let names = if survives == Survives::SyncedNames { &dir.durable } else { &dir.names };
                    left.extend(names.iter().map(|(name, node)| (path.join(name), *node)));
                    if node != 0 {
                        tree.push((path, None));
                    }
                }
            }
        }
        tree
    }

    /// If a sync starts with this call, records the data that it will make durable, and returns the name of its file. Data
    /// that is written during the sync need not become durable.
    pub(super) fn start_sync_of(&mut self, call: &Call) -> Option<String> {
        if !call.is_sync() || !(call.whole || call.result.is_none()) {
            return None;
        }
        let open = self.open.get(&call.number(0))?;
        self.syncing.insert(call.thread, self.nodes[open.node].start_sync());
        Some(self.relative(&open.path))
    }

    /// Applies a call that has ended.
    pub(super) fn apply(&mut self, call: &Call) -> Seen {
        let Some(result) = call.result else { return Seen::Nothing };
        match call.name.as_str() {
            "open" | "openat" | "creat" => return self.opens(call, result),
            "close" => drop(self.open.remove(&call.number(0))),
            "write" | "writev" | "pwrite64" | "pwritev" => self.writes(call, result as usize),
            "lseek" => {
                if let Some(open) = self.open.get_mut(&call.number(0)) {
                    open.at = result as usize;
                }
            }
            "ftruncate" => self.resize(call.number(0), |_| call.number(1) as usize),
            // Other modes do not change the content below the end of the file.
            "fallocate" if call.fields()[1] == "0" => {
                self.resize(call.number(0), |len| len.max((call.number(2) + call.number(3)) as usize));
            }
            "fsync" | "fdatasync" => {
                let Some(node) = self.open.get(&call.number(0)).map(|open| open.node) else {
                    return Seen::Nothing;
                };
                let synced = self.syncing.remove(&call.thread).expect("a sync that ends has started");
                let mut what = self.relative(&self.open[&call.number(0)].path);
                if result == 0 {
                    self.nodes[node].synced(synced);
                } else {
                    what += ", failed";
                }
                return Seen::Sync(what);
            }
            "rename" | "renameat" | "renameat2" | "link" | "linkat" => return self.moves(call),
            "unlink" | "unlinkat" | "rmdir" => return self.removes(call),
            "mkdir" | "mkdirat" => return self.makes_dir(call),
            _ => self.refuse_unknown(call),
        }
        Seen::Nothing
    }

    /// Panics if the call would change files in a way that the model does not support.
    fn refuse_unknown(&self, call: &Call) {
        let fields = call.fields();
        let is_ours = |field: &&str| {
            field.parse().is_ok_and(|fd: i64| self.open.get(&fd).is_some_and(|open| self.is_file(open.node)))
        };
        let around = match call.name.as_str() {
            "mmap" => {
                call.arguments.contains("MAP_SHARED")
                    && call.arguments.contains("PROT_WRITE")
                    && is_ours(&fields[4])
            }
            "fcntl" => call.arguments.contains("F_DUPFD") && is_ours(&fields[0]),
            "dup" | "dup2" | "dup3" | "sendfile" | "splice" | "copy_file_range" | "pwritev2" => {
                fields.iter().any(is_ours)
            }
            "truncate" | "symlink" | "symlinkat" => self.path(call, 0).is_some(),
            "io_uring_setup" => true,
            _ => false,
        };
        assert!(!around, "the model of the disk does not support {}({})", call.name, call.arguments);
    }

    fn is_file(&self, node: usize) -> bool {
        matches!(self.nodes[node], Node::File(_))
    }

    fn opens(&mut self, call: &Call, fd: i64) -> Seen {
        self.open.remove(&fd);
        let Some(path) = self.path(call, 0) else { return Seen::Nothing };
        let has = |flag: &str| call.arguments.contains(flag);
        let (mut seen, found) = (Seen::Nothing, self.find(&path));
        let node = found.unwrap_or_else(|| {
            seen = Seen::Names(format!("{} created", self.relative(&path)));
            self.add(&path, Node::File(File::default()))
        });
        if has("O_TRUNC") || call.name == "creat" {
            self.file(node).resize(0);
        }
        self.open.insert(fd, Open { path, node, at: 0, append: has("O_APPEND") });
        seen
    }

    fn writes(&mut self, call: &Call, len: usize) {
        let mut bytes = call.strings().concat();
        bytes.truncate(len);
        let fd = call.number(0);
        if fd == 1 {
            self.printed.extend_from_slice(&bytes);
        }
        let Some(open) = self.open.get(&fd) else { return };
        let (node, append, at) = (open.node, open.append, open.at);
        let Node::File(file) = &mut self.nodes[node] else { return };
        let positioned = call.name.starts_with('p');
        let at = match append {
            _ if positioned => call.fields().last().and_then(|at| at.parse().ok()).unwrap_or(0),
            true => file.content.len(),
            false => at,
        };
        file.write(at, &bytes);
        if !positioned && let Some(open) = self.open.get_mut(&fd) {
            open.at = at + len;
        }
    }

    fn resize(&mut self, fd: i64, new: impl Fn(usize) -> usize) {
        if let Some(node) = self.open.get(&fd).map(|open| open.node) {
            let len = self.file(node).content.len();
            self.file(node).resize(new(len));
        }
    }

    fn moves(&mut self, call: &Call) -> Seen {
        let (Some(from), Some(to)) = (self.path(call, 0), self.path(call, 1)) else {
            let outside = self.path(call, 0).is_none() && self.path(call, 1).is_none();
            assert!(outside, "a file was moved into or out of the directory: {}", call.arguments);
            return Seen::Nothing;
        };
        let node = self.find(&from).unwrap_or_else(|| panic!("{} does not exist", from.display()));
        if call.name.starts_with("rename") {
            self.names(&from).remove(from.file_name().expect("a name"));
        }
        self.names(&to).insert(to.file_name().expect("a name").to_owned(), node);
        Seen::Names(format!("{} from {} to {}", call.name, self.relative(&from), self.relative(&to)))
    }

    fn removes(&mut self, call: &Call) -> Seen {
        let Some(path) = self.path(call, 0) else { return Seen::Nothing };
        self.names(&path).remove(path.file_name().expect("a name"));
        Seen::Names(format!("{} removed", self.relative(&path)))
    }

    fn makes_dir(&mut self, call: &Call) -> Seen {
        let Some(path) = self.path(call, 0) else { return Seen::Nothing };
        self.add(&path, Node::Dir(Dir::default()));
        Seen::Names(format!("{} created", self.relative(&path)))
    }

    fn add(&mut self, path: &Path, node: Node) -> usize {
        self.nodes.push(node);
        let number = self.nodes.len() - 1;
        self.names(path).insert(path.file_name().expect("a name").to_owned(), number);
        number
    }

    /// Returns the path in string number `which` of a call if it is the root or below it.
    fn path(&self, call: &Call, which: usize) -> Option<PathBuf> {
        let given = PathBuf::from(OsString::from_vec(call.strings().into_iter().nth(which)?));
        let path = if given.is_relative() && call.name.ends_with(['t', '2']) {
            // The descriptor of the directory precedes the path.
            let fields = call.fields();
            let at = fields.iter().enumerate().filter(|(_, field)| field.starts_with('"')).nth(which)?.0;
            self.open.get(&fields[at.checked_sub(1)?].parse().ok()?)?.path.join(given)
        } else {
            given
        };
        path.starts_with(&self.root).then_some(path)
    }

    fn relative(&self, path: &Path) -> String {
        let relative = path.strip_prefix(&self.root).unwrap_or(path).display().to_string();
        if relative.is_empty() { "the root".to_owned() } else { relative }
    }

    fn find(&self, path: &Path) -> Option<usize> {
        let mut node = 0;
        for name in path.strip_prefix(&self.root).ok()?.iter() {
            let Node::Dir(dir) = &self.nodes[node] else { return None };
            node = *dir.names.get(name)?;
        }
        Some(node)
    }

    /// Returns the names in the directory of `path`.
    fn names(&mut self, path: &Path) -> &mut BTreeMap<OsString, usize> {
        let parent = path.parent().and_then(|parent| self.find(parent));
        match parent.map(|parent| &mut self.nodes[parent]) {
            Some(Node::Dir(dir)) => &mut dir.names,
            _ => panic!("the directory of {} does not exist", path.display()),
        }
    }

    fn file(&mut self, node: usize) -> &mut File {
        match &mut self.nodes[node] {
            Node::File(file) => file,
            Node::Dir(_) => panic!("a directory is used as a file"),
        }
    }
}

impl Node {
    /// Returns the data that a sync starting now will make durable.
    fn start_sync(&mut self) -> Self {
        let snapshot = self.clone();
        if let Self::File(file) = self {
            file.dirty.clear();
        }
        snapshot
    }

    /// Makes the data in `snapshot`, taken at the start of the sync, durable.
    fn synced(&mut self, snapshot: Self) {
        match (self, snapshot) {
            (Self::File(file), Self::File(snapshot)) => {
                file.durable.resize(snapshot.content.len(), 0);
                for page in snapshot.dirty {
                    let end = (page + PAGE_BYTES).min(snapshot.content.len());
                    file.durable[page..end].copy_from_slice(&snapshot.content[page..end]);
                }
                if file.content == file.durable {
                    file.torn.clone_from(&file.durable);
                }
            }
            (Self::Dir(dir), Self::Dir(snapshot)) => dir.durable = snapshot.names,
            _ => unreachable!("a file stays a file"),
        }
    }
}

impl File {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.torn.clone_from(&self.content);
        overwrite(&mut self.torn, at, &bytes[..bytes.len() / 2]);
        overwrite(&mut self.content, at, bytes);
        self.mark_dirty(at, at + bytes.len());
    }

    fn mark_dirty(&mut self, from: usize, to: usize) {
        self.dirty.extend((from - from % PAGE_BYTES..to).step_by(PAGE_BYTES));
    }

    fn resize(&mut self, len: usize) {
        let old = self.content.len();
        // Truncated bytes that are added again are zero.
        if len < old {
            self.dirty.retain(|page| *page < len);
            self.mark_dirty(len, old);
        }
        self.content.resize(len, 0);
        self.torn.clone_from(&self.content);
    }

    fn after_crash(&self, survives: Survives) -> Vec<u8> {
        match survives {
            Survives::Everything => self.content.clone(),
            Survives::TornWrite => self.torn.clone(),
            Survives::Synced | Survives::SyncedNames => self.durable.clone(),
            Survives::Lengths => {
                let mut content = self.durable.clone();
                content.resize(self.content.len(), 0);
                content
            }
        }
    }
}

fn overwrite(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if content.len() < at + bytes.len() {
        content.resize(at + bytes.len(), 0);
    }
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Size of a page. Pages start at multiples of it.
const PAGE_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::{super::trace::calls, *};

    fn hexadecimal(text: &str) -> String {
        text.bytes().map(|byte| format!("\\x{byte:02x}")).collect()
    }

    fn after(trace: &[String]) -> Disk {
        let mut disk = Disk::new(Path::new("/d"));
        for call in calls(&trace.join("\n")) {
            disk.start_sync_of(&call);
            disk.apply(&call);
        }
        disk
    }

    /// Names and contents of files.
    fn files(disk: &Disk, survives: Survives) -> Vec<(String, String)> {
        let text = |(path, content): (PathBuf, Option<Vec<u8>>)| {
            (path.display().to_string(), String::from_utf8(content.unwrap()).unwrap())
        };
        disk.tree(survives).into_iter().map(text).collect()
    }

    fn expect(name: &str, content: &str) -> Vec<(String, String)> {
        vec![(name.to_owned(), content.to_owned())]
    }

    #[test]
    fn crash_loses_unsynced_data() {
        let disk = after(&[
            format!("1 openat(AT_FDCWD, \"{}\", O_WRONLY|O_CREAT) = 3", hexadecimal("/d/a")),
            format!("1 openat(AT_FDCWD, \"{}\", O_RDONLY|O_DIRECTORY) = 4", hexadecimal("/d")),
            format!("1 write(3, \"{}\", 4) = 4", hexadecimal("good")),
            "1 fsync(3) = 0".to_owned(),
            "1 fsync(4) = 0".to_owned(),
            format!("1 write(3, \"{}\", 4) = 4", hexadecimal("half")),
            format!("1 rename(\"{}\", \"{}\") = 0", hexadecimal("/d/a"), hexadecimal("/d/b")),
            format!("1 write(1, \"{}\", 5) = 5", hexadecimal("line\n")),
        ]);
        assert_eq!(files(&disk, Survives::Everything), expect("b", "goodhalf"));
        assert_eq!(files(&disk, Survives::TornWrite), expect("b", "goodha"));
        assert_eq!(files(&disk, Survives::Lengths), expect("b", "good\0\0\0\0"));
        assert_eq!(files(&disk, Survives::Synced), expect("b", "good"));
        assert_eq!(files(&disk, Survives::SyncedNames), expect("a", "good"));
        assert_eq!(disk.printed(), ["line"]);
    }

    #[test]
    fn pages_of_failed_sync_are_not_written_by_later_syncs() {
        let begin = [
            format!("1 openat(AT_FDCWD, \"{}\", O_WRONLY|O_CREAT) = 3", hexadecimal("/d/a")),
            format!("1 pwrite64(3, \"{}\", 4, 0) = 4", hexadecimal("lost")),
            "1 fdatasync(3) = -1 EIO (Input/output error) (INJECTED)".to_owned(),
        ];
        let later = [
            format!("1 pwrite64(3, \"{}\", 4, 4096) = 4", hexadecimal("kept")),
            "1 fdatasync(3) = 0".to_owned(),
        ];
        let durable = |disk: &Disk| files(disk, Survives::Synced)[0].1.replace('\0', "");
        let disk = after(&[&begin[..], &later].concat());
        assert_eq!(durable(&disk), "kept");
        assert!(files(&disk, Survives::Everything)[0].1.starts_with("lost"));
        // After another write to the page, even of one byte, it is durable.
        let again = [format!("1 pwrite64(3, \"{}\", 1, 3) = 1", hexadecimal("t")), later[1].clone()];
        assert_eq!(durable(&after(&[&begin[..], &later, &again].concat())), "lostkept");
    }

    #[test]
    fn data_written_during_sync_need_not_be_durable() {
        let disk = after(&[
            format!("1 openat(AT_FDCWD, \"{}\", O_WRONLY|O_CREAT) = 3", hexadecimal("/d/a")),
            format!("1 write(3, \"{}\", 1) = 1", hexadecimal("x")),
            "1 fdatasync(3 <unfinished ...>".to_owned(),
            format!("2 pwrite64(3, \"{}\", 1, 1) = 1", hexadecimal("y")),
            "1 <... fdatasync resumed>) = 0".to_owned(),
        ]);
        assert_eq!(files(&disk, Survives::Synced), expect("a", "x"));
        assert_eq!(files(&disk, Survives::Everything), expect("a", "xy"));
    }
}
