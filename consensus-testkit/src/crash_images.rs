//! States in which a power loss or a `kill -9` can leave a directory, at every sync of a program that writes to it.
//!
//! [`record`] runs a test that writes, the *workload*, as a process under `strace`, which records every system call on files
//! with its data. [`Recording::images`] replays the calls on a model of a disk. For the moments before and after each sync
//! and after each change of a name, it returns the directory as a crash at that moment may leave it ([`Survives`]). Each
//! image includes the lines that the workload had printed by then, such as `acknowledged 7`: acknowledged data must be in
//! the image, complete.
//!
//! ```text
//! workload, under strace ──▶ calls ──▶ model of the disk ──▶ image, lines printed so far ──▶ open it, compare
//! ```
//!
//! # Limits
//! * Unsynced writes to one file survive as a prefix, in order; a real disk may also keep a later one and lose an earlier
//!   one.
//! * Changes of names survive up to the crash, or not beyond the last sync of their directory; some file systems can keep a
//!   mixture.
//! * A torn write is torn at one position.
//! * Syncs may fail temporarily ([`record_with_failing_syncs`]), writes and reads never.
//! * Disks that acknowledge a sync without performing it, and bytes that change by themselves, are not modelled (see
//!   [`damage`]( crate::damage) for the latter).
//! * Files changed through shared memory maps, `io_uring` or `copy_file_range`: the model does not support them, and panics
//!   if it observes one.

mod disk;
mod trace;

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use disk::{Disk, Seen};

/// Which unsynced data survives the crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Survives {
    /// All written data, as after `kill -9`.
    Everything,
    /// All written data, but only half of the last unsynced write to each file.
    TornWrite,
    /// The length of each file, with zeros in place of unsynced data.
    Lengths,
    /// Names, and synced data.
    Synced,
    /// Synced data, under the names that a sync of their directory made durable.
    SyncedNames,
}

/// A directory as a crash may leave it. Its `Display` describes the crash.
pub struct Image {
    /// Moment of the crash, in words.
    pub moment: String,
    /// Which unsynced data survived.
    pub survives: Survives,
    /// Lines that the workload had printed.
    pub printed: Vec<String>,
    /// Relative paths with content; `None` for directories, which precede their content.
    tree: Vec<(PathBuf, Option<Vec<u8>>)>,
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a crash {}, {:?} of the unsynced data survives, last line printed: {:?}",
            self.moment,
            self.survives,
            self.printed.last()
        )
    }
}

impl Image {
    /// The rest of the last printed line that starts with `prefix`.
    #[must_use]
    pub fn printed_value(&self, prefix: &str) -> Option<&str> {
        self.printed.iter().rev().find_map(|line| line.strip_prefix(prefix)).map(str::trim)
    }

    /// Writes the image to `dir`, which must be empty.
    ///
    /// # Errors
    /// The file system reported an error.
    pub fn write_to(&self, dir: &Path) -> io::Result<()> {
        for (path, content) in &self.tree {
            match content {
                None => fs::create_dir(dir.join(path))?,
                Some(content) => fs::write(dir.join(path), content)?,
            }
        }
        Ok(())
    }
}

/// Recorded system calls of a workload.
#[derive(Debug)]
pub struct Recording {
    trace: String,
    root: PathBuf,
}

/// Must be called by the workload: returns the directory to write to, or `None` if the test was not started by [`record`]
/// and must do nothing.
#[must_use]
pub fn workload_dir() -> Option<PathBuf> {
    let dir = std::env::var_os(DIR_VARIABLE)?;
    // Ends the line that the test harness has started.
    println!();
    Some(dir.into())
}

/// Which syncs of each thread fail: number `first`, counted from 1, and every `step`th one after it.
#[derive(Clone, Copy, Debug)]
pub struct FailingSyncs {
    /// Number of the first sync that fails.
    pub first: usize,
    /// Distance between syncs that fail.
    pub step: usize,
}

/// Like [`record`], but some syncs of the workload fail, which it must handle. As on Linux, the pages that such a sync did
/// not write count as clean afterwards: reads return them, no later sync writes them, and a power loss loses them.
///
/// # Errors
/// Those of [`record`].
///
/// # Panics
/// Those of [`record`]; or no sync failed.
pub fn record_with_failing_syncs(
    workload: &str,
    place: &Path,
    failing: FailingSyncs,
) -> Result<Recording, String> {
    let FailingSyncs { first, step } = failing;
    let inject = format!("inject=fsync,fdatasync:error=EIO:when={first}+{step}");
    let recording = record_with(workload, place, &["-e", &inject])?;
    assert!(recording.trace.contains("(INJECTED)"), "no sync failed");
    Ok(recording)
}

/// Runs the test `workload` of the same test program, which must be `#[ignore]`d, with an empty directory in `place` as
/// [`workload_dir`].
///
/// # Errors
/// Programs cannot be traced here, for this reason. A test prints the reason and ends.
///
/// # Panics
/// The workload failed.
pub fn record(workload: &str, place: &Path) -> Result<Recording, String> {
    record_with(workload, place, &[])
}

fn record_with(workload: &str, place: &Path, more: &[&str]) -> Result<Recording, String> {
    let traced =
        Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).stderr(Stdio::piped()).output();
    match traced {
        Err(error) => return Err(format!("strace cannot be run: {error}")),
        Ok(output) if !output.status.success() => {
            return Err(format!("strace cannot trace: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        Ok(_) => {}
    }
    let (root, log) = (place.join("traced"), place.join("trace"));
    fs::create_dir(&root).map_err(|error| error.to_string())?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new("strace");
    command.args(["-f", "-xx", "-s", "16777216", "-e", trace::CALLS]).args(more);
    command.arg("-o").arg(&log).arg(program);
    command
        .args(["--exact", workload, "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIR_VARIABLE, &root);
    let output = command.output().map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "the workload failed\n{out}\n{err}");
    let trace = fs::read_to_string(&log).map_err(|error| error.to_string())?;
    Ok(Recording { trace, root })
}

impl Recording {
    /// Calls `each` for every image; identical images with the same printed lines only once. Returns the number of syncs.
    pub fn images(&self, mut each: impl FnMut(&Image)) -> usize {
        let (mut disk, mut known, mut syncs) = (Disk::new(&self.root), BTreeSet::new(), 0);
        let mut visit = |disk: &Disk, moment: &str| {
            for survives in ALL {
                let (printed, tree) = (disk.printed(), disk.tree(survives));
                if known.insert(digest(&printed, &tree)) {
                    each(&Image { moment: moment.to_owned(), survives, printed, tree });
                }
            }
        };
        for call in trace::calls(&self.trace) {
            let before = disk.start_sync_of(&call);
            if let Some(file) = &before {
                visit(&disk, &format!("before sync {} ({file})", syncs + 1));
            }
            match disk.apply(&call) {
                Seen::Nothing => {}
                Seen::Sync(file) => {
                    syncs += 1;
                    visit(&disk, &format!("after sync {syncs} ({file})"));
                }
                Seen::Names(what) => visit(&disk, &format!("after sync {syncs} and {what}")),
            }
        }
        syncs
    }
}

fn digest(printed: &[String], tree: &[(PathBuf, Option<Vec<u8>>)]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (printed.len(), tree).hash(&mut hasher);
    hasher.finish()
}

const ALL: [Survives; 5] =
    [Survives::Everything, Survives::TornWrite, Survives::Lengths, Survives::Synced, Survives::SyncedNames];
const DIR_VARIABLE: &str = "CRASH_IMAGES_DIR";
