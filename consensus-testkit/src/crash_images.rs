//! What a power cut or a `kill -9` can leave of a directory, at every sync of a program that writes to it.
//!
//! [`record`] runs a test that writes - the *workload* - in a process of its own under `strace`, which notes every system
//! call on files with its data. [`Recording::images`] plays the calls back on a model of a disk and hands out, for the
//! moments before and after each sync and after each change of a name, the directory as it may be found after a crash
//! there ([`Survives`]). Whoever reads the image also knows what the workload had printed by then, such as
//! `acknowledged 7`: that must be there, whole.
//!
//! ```text
//! workload, under strace ──▶ calls ──▶ model of the disk ──▶ image, lines printed so far ──▶ open it, compare
//! ```
//!
//! # What is not covered
//! * Unsynced writes to one file survive as a prefix, in order; a disk may also keep a later one and lose an earlier one.
//! * Names are either kept in the order of the calls, or go back to the last sync of their directory; a mixture is
//!   possible on some file systems.
//! * A write torn in the middle is torn at one place.
//! * Syncs fail for a while at most ([`record_with_failing_syncs`]), writes and reads never.
//! * Disks that say "synced" and are not, and bytes that change by themselves (see the tests of damaged files).
//! * Files changed through shared memory maps, `io_uring` or `copy_file_range`: the model does not know those, and panics
//!   when it meets one it can see.

mod disk;
mod trace;

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use disk::{Disk, Seen};

/// How much of what was not synced is there after the crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Survives {
    /// All that was written: `kill -9`.
    Everything,
    /// All, but the last write to each file that was not synced only by half.
    TornWrite,
    /// The length of each file, and zeros where nothing was synced.
    Lengths,
    /// Names and what was synced.
    Synced,
    /// What was synced, under the names that a sync of their directory made durable.
    SyncedNames,
}

/// A directory as a crash may leave it. Displayed, it says which crash.
pub struct Image {
    /// When the crash was, for people.
    pub moment: String,
    /// What survived it.
    pub survives: Survives,
    /// The lines that the workload had printed.
    pub said: Vec<String>,
    /// Relative paths; `None` for directories, which come before what is in them.
    tree: Vec<(PathBuf, Option<Vec<u8>>)>,
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a crash {}, {:?} of what was not synced survives, said: {:?}",
            self.moment,
            self.survives,
            self.said.last()
        )
    }
}

impl Image {
    /// What stood after `beginning` in the last line printed that begins so.
    #[must_use]
    pub fn told(&self, beginning: &str) -> Option<&str> {
        self.said.iter().rev().find_map(|line| line.strip_prefix(beginning)).map(str::trim)
    }

    /// Writes the image to `dir`, which must be empty.
    ///
    /// # Errors
    /// Those of the file system.
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

/// What a workload did.
#[derive(Debug)]
pub struct Recording {
    trace: String,
    root: PathBuf,
}

/// In the workload: the directory to write to. `None` if the test was started in another way; it has nothing to do then.
#[must_use]
pub fn workload_dir() -> Option<PathBuf> {
    let dir = std::env::var_os(DIR_VARIABLE)?;
    // The test harness has begun a line.
    println!();
    Some(dir.into())
}

/// Which syncs fail, of each thread: the `first` one, counted from 1, and after it each `step`th.
#[derive(Clone, Copy, Debug)]
pub struct FailingSyncs {
    /// This one,
    pub first: usize,
    /// and so many later another one.
    pub step: usize,
}

/// [`record`]s a workload some of whose syncs fail; it has to live with that. The system takes what such a sync did not write
/// for written, as Linux does: whoever reads it finds it, no later sync writes it, and a power cut takes it away.
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

/// Runs the test `workload` of the same test program, which must be `#[ignore]`d, with [`workload_dir`] an empty directory
/// in `place`.
///
/// # Errors
/// Programs cannot be traced here; says why. A test prints that and ends.
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
    /// Hands out every image; those that are alike, with the same lines printed, only once. Returns how many syncs there
    /// were.
    pub fn images(&self, mut each: impl FnMut(&Image)) -> usize {
        let (mut disk, mut known, mut syncs) = (Disk::new(&self.root), BTreeSet::new(), 0);
        let mut hand_out = |disk: &Disk, moment: &str| {
            for survives in ALL {
                let (said, tree) = (disk.said(), disk.tree(survives));
                if known.insert(digest(&said, &tree)) {
                    each(&Image { moment: moment.to_owned(), survives, said, tree });
                }
            }
        };
        for call in trace::calls(&self.trace) {
            let before = disk.sync_begins(&call);
            if let Some(file) = &before {
                hand_out(&disk, &format!("before sync {} ({file})", syncs + 1));
            }
            match disk.apply(&call) {
                Seen::Nothing => {}
                Seen::Sync(file) => {
                    syncs += 1;
                    hand_out(&disk, &format!("after sync {syncs} ({file})"));
                }
                Seen::Names(what) => hand_out(&disk, &format!("after sync {syncs} and {what}")),
            }
        }
        syncs
    }
}

fn digest(said: &[String], tree: &[(PathBuf, Option<Vec<u8>>)]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (said.len(), tree).hash(&mut hasher);
    hasher.finish()
}

const ALL: [Survives; 5] =
    [Survives::Everything, Survives::TornWrite, Survives::Lengths, Survives::Synced, Survives::SyncedNames];
const DIR_VARIABLE: &str = "CRASH_IMAGES_DIR";
