//! A file that lines are added to, and that is replaced by a new one when it is large.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The file, and those that it has replaced: `PATH.1` is the newest of them.
pub(super) struct RotatedFile {
    path: PathBuf,
    size_max: u64,
    files_max: u32,
    /// `None` after a failure, until it can be opened again.
    open: Option<Open>,
    /// Time at which the path was last compared with the open file.
    checked: Instant,
    is_rotation_failing: bool,
}

struct Open {
    file: File,
    /// Bytes of whole lines.
    size: u64,
}

/// Lines that were not written.
#[derive(Debug)]
pub(super) struct AppendError {
    /// Number of lines that are in the file.
    pub(super) written: usize,
    pub(super) error: io::Error,
}

impl RotatedFile {
    /// Opens the file, for the owner alone. A file that is there is continued.
    ///
    /// # Errors
    /// It cannot be opened, or is no regular file.
    pub(super) fn open(path: &Path, size_max: u64, files_max: u32) -> io::Result<Self> {
        let open = Some(open(path)?);
        let (path, checked) = (path.to_owned(), Instant::now());
        Ok(Self { path, size_max, files_max, open, checked, is_rotation_failing: false })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds lines, each of them whole or not at all.
    pub(super) fn append(&mut self, lines: &[String]) -> Result<(), AppendError> {
        let mut written = 0;
        while written < lines.len() {
            let size = match self.prepare(lines[written].len()) {
                Ok(size) => size,
                Err(error) => return Err(AppendError { written, error }),
            };
            let (count, text) = self.next_write(&lines[written..], size);
            if let Err(error) = self.write(text.as_bytes()) {
                return Err(AppendError { written, error });
            }
            written += count;
        }
        Ok(())
    }

    /// Syncs the file. A failure is left to the next write.
    pub(super) fn sync(&self) {
        if let Some(open) = &self.open {
            let _ = open.file.sync_data();
        }
    }

    /// The lines that the file has room for at its size, at least one.
    fn next_write(&self, lines: &[String], mut size: u64) -> (usize, String) {
        let (mut count, mut text) = (0, String::new());
        for line in lines {
            size += line.len() as u64;
            if count > 0 && size > self.size_max {
                break;
            }
            count += 1;
            text.push_str(line);
        }
        (count, text)
    }

    /// Makes sure that there is a file with room for a line. Returns its size.
    fn prepare(&mut self, bytes: usize) -> io::Result<u64> {
        if self.checked.elapsed() >= CHECK_INTERVAL {
            self.checked = Instant::now();
            self.open.take_if(|open| !is_at(&open.file, &self.path));
        }
        let size = self.opened()?.size;
        if size > 0 && size + bytes as u64 > self.size_max {
            self.rotate_or_go_on();
        }
        Ok(self.opened()?.size)
    }

    fn opened(&mut self) -> io::Result<&mut Open> {
        let opened = match self.open.take() {
            Some(opened) => opened,
            None => open(&self.path)?,
        };
        Ok(self.open.insert(opened))
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        let opened = self.opened()?;
        match opened.file.write_all(text) {
            Ok(()) => {
                opened.size += text.len() as u64;
                Ok(())
            }
            Err(error) => {
                // A part of a line may be there. A file that is shorter now was emptied by another program.
                let length = opened.file.metadata().map_or(0, |metadata| metadata.len());
                if length > opened.size && opened.file.set_len(opened.size).is_err() {
                    self.open = None;
                }
                Err(error)
            }
        }
    }

    /// Replaces the file. If that fails, the file grows: that is better than lines that are missing.
    fn rotate_or_go_on(&mut self) {
        let failure = self.rotate().err();
        if let Some(error) = failure.as_ref().filter(|_| !self.is_rotation_failing) {
            tracing::warn!(
                path = %self.path.display(), %error,
                "the audit log cannot be renamed, and grows beyond audit_log_size: let this user change its directory"
            );
        }
        self.is_rotation_failing = failure.is_some();
    }

    /// Renames the file to `PATH.1`, and the older ones to the next numbers.
    fn rotate(&mut self) -> io::Result<()> {
        self.sync();
        // First, so that the older files keep their names if this one cannot be renamed.
        let aside = self.numbered(0);
        // An earlier attempt may have ended here. Then this file is renamed by the next one.
        if !aside.exists() {
            rename(&self.path, &aside)?;
            self.open = None;
        }
        for number in (1..self.files_max).rev() {
            rename(&self.numbered(number), &self.numbered(number + 1))?;
        }
        rename(&aside, &self.numbered(1))
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

/// Renames a file, unless it is not there.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}

fn open(path: &Path) -> io::Result<Open> {
    // A pipe without a reader would have the thread wait.
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut file = File::options().append(true).create(true).read(true).mode(MODE).open(path)?;
    let metadata = file.metadata()?;
    if metadata.permissions().mode() & 0o777 != MODE {
        file.set_permissions(Permissions::from_mode(MODE))?;
    }
    let mut size = metadata.len();
    // The end of the process, or a full disk, may have left a part of a line.
    // A disk that is still full is no reason not to start: what cannot be written later is counted.
    if size > 0 && !ends_with_line_break(&file, size)? && file.write_all(b"\n").is_ok() {
        size += 1;
    }
    Ok(Open { file, size })
}

fn ends_with_line_break(file: &File, size: u64) -> io::Result<bool> {
    let mut last = [0];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut last, size - 1)?;
    Ok(last == *b"\n")
}

/// Whether the file has this path. Another program may have moved or removed it.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: io::Result<fs::Metadata>| metadata.ok().map(|at| (at.dev(), at.ino()));
    let own = identity(file.metadata());
    own.is_some() && own == identity(fs::metadata(path))
}

/// The owner alone may read and write the file: it names users and keys.
const MODE: u32 = 0o600;
/// Time between two looks whether the file was moved.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(range: std::ops::Range<u32>) -> Vec<String> {
        range.map(|n| format!("line {n}\n")).collect()
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn full_file_is_replaced_and_the_newest_ones_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut file = RotatedFile::open(&path, 14, 2).unwrap();
        file.append(&lines(0..9)).unwrap();
        let contents = ["audit.log", "audit.log.1", "audit.log.2"].map(|name| read(&dir.path().join(name)));
        assert_eq!(contents, ["line 8\n", "line 6\nline 7\n", "line 4\nline 5\n"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn line_that_is_longer_than_a_file_has_one_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut file = RotatedFile::open(&path, 3, 9).unwrap();
        file.append(&lines(0..2)).unwrap();
        assert_eq!((read(&path), read(&file.numbered(1))), ("line 1\n".to_owned(), "line 0\n".to_owned()));
    }

    #[test]
    fn file_that_is_there_is_continued_after_an_incomplete_line_and_loses_permissions_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        fs::write(&path, "line 0\nlin").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let mut file = RotatedFile::open(&path, 1000, 1).unwrap();
        file.append(&lines(1..2)).unwrap();
        assert_eq!(read(&path), "line 0\nlin\nline 1\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn file_that_was_moved_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut file = RotatedFile::open(&path, 1000, 1).unwrap();
        fs::rename(&path, dir.path().join("moved")).unwrap();
        file.checked = Instant::now().checked_sub(CHECK_INTERVAL).unwrap();
        file.append(&lines(0..1)).unwrap();
        assert_eq!(read(&path), "line 0\n");
    }

    #[test]
    fn failed_write_leaves_whole_lines_and_the_next_one_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut file = RotatedFile::open(&path, 1000, 1).unwrap();
        file.append(&lines(0..1)).unwrap();
        // A file that is open for reading alone refuses writes.
        let writable = std::mem::replace(&mut file.open.as_mut().unwrap().file, File::open(&path).unwrap());
        let failure = file.append(&lines(1..3)).unwrap_err();
        assert_eq!((failure.written, read(&path)), (0, "line 0\n".to_owned()));
        file.open.as_mut().unwrap().file = writable;
        file.append(&lines(3..4)).unwrap();
        assert_eq!(read(&path), "line 0\nline 3\n");
    }

    #[test]
    fn directories_and_devices_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path(), Path::new("/dev/null")] {
            assert!(RotatedFile::open(path, 1000, 1).is_err(), "{}", path.display());
        }
    }
}
