//! Allocates segments ahead of time, on a thread of its own, at the pace at which the log fills the current one. Filling a
//! segment all at once would slow down concurrent writes, and would do so on all nodes of a cluster at the same time.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
};

use consensus_storage_dir::Reserve;

use crate::segment::{Segment, spare_name};

/// Allocates the segment that follows the current one, and reclaims purged segments.
#[derive(Debug)]
pub(crate) struct SegmentAllocator {
    shared: Arc<Shared>,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// Why a segment could not be allocated.
#[derive(Debug)]
pub(crate) enum AllocateError {
    /// There is too little disk space, or too few file descriptors, or no permission. A later attempt may succeed.
    NoRoom(String),
    Failed(io::Error),
}

/// A segment to allocate.
#[derive(Clone, Debug)]
pub(crate) struct SegmentSpec {
    pub(crate) sequence: u64,
    /// Length in bytes of a new file; a spare file keeps its own length.
    pub(crate) len: u64,
    /// Disk space that a new file must leave free.
    pub(crate) reserve: Reserve,
}

/// A job of the allocator's thread.
#[derive(Debug)]
enum Job {
    Allocate(SegmentSpec),
    Reclaim(Arc<Segment>),
}

#[derive(Debug)]
struct Shared {
    next: Mutex<NextSegment>,
    /// Signals that the allocation of the next segment has ended.
    allocated: Condvar,
    /// Wakes the thread while it pauses in an allocation: it may continue, or has another job to do first.
    resume: Condvar,
    stop: AtomicBool,
}

/// State of the segment after the current one.
#[derive(Debug)]
enum NextSegment {
    NotRequested,
    /// The thread is filling the segment, piece by piece.
    Allocating {
        /// Thousandths of the segment up to which the thread may start a piece.
        allowed: u64,
        /// Start of the piece for which the thread waits, in thousandths of the segment.
        awaited: u64,
    },
    Ready(Arc<Segment>),
    Failed(AllocateError),
}

impl SegmentAllocator {
    /// Creates an allocator for segments in `dir`. `next` is the prepared segment, if there is one. Of `spares`, at most
    /// two files of `len` bytes are kept for reuse; the others are removed.
    pub(crate) fn new(
        dir: &Path,
        len: u64,
        next: Option<Arc<Segment>>,
        spares: Vec<PathBuf>,
    ) -> io::Result<Self> {
        let next = Mutex::new(next.map_or(NextSegment::NotRequested, NextSegment::Ready));
        let allocated = Condvar::new();
        let resume = Condvar::new();
        let shared = Arc::new(Shared { next, allocated, resume, stop: AtomicBool::new(false) });
        let (jobs, inbox) = mpsc::channel();
        let mut worker = Worker { dir: dir.to_owned(), len, spares: Vec::new(), shared: shared.clone() };
        spares.into_iter().for_each(|spare| worker.keep_or_remove(spare));
        let thread =
            thread::Builder::new().name("wal-segments".to_owned()).spawn(move || worker.run(&inbox))?;
        Ok(Self { shared, jobs: Some(jobs), thread: Some(thread) })
    }

    /// Requests the next segment, unless it is ready or requested already. It will be ready when three quarters of the
    /// current segment are used. `used` is the used part of the current segment, in thousandths. A failed allocation is not
    /// repeated, see [`request_again`](Self::request_again).
    pub(crate) fn request(&self, used: u64, spec: impl FnOnce() -> SegmentSpec) {
        let mut next = self.next();
        if matches!(*next, NextSegment::NotRequested) {
            self.start_allocation(&mut next, &spec());
        }
        self.allow(&mut next, used * 4 / 3);
    }

    /// Requests the next segment again, if its allocation failed.
    pub(crate) fn request_again(&self, spec: &SegmentSpec) {
        let mut next = self.next();
        if matches!(*next, NextSegment::Failed(_)) {
            self.start_allocation(&mut next, spec);
        }
    }

    fn start_allocation(&self, next: &mut NextSegment, spec: &SegmentSpec) {
        *next = NextSegment::Allocating { allowed: 0, awaited: 0 };
        self.send(Job::Allocate(spec.clone()));
    }

    /// Allows the thread to fill the segment up to `thousandths` of its length.
    fn allow(&self, next: &mut NextSegment, thousandths: u64) {
        let NextSegment::Allocating { allowed, awaited } = next else { return };
        let waits = *awaited > *allowed;
        *allowed = thousandths.max(*allowed);
        if waits && *awaited <= *allowed {
            self.shared.resume.notify_one();
        }
    }

    /// Whether [`take`](Self::take) would return a segment without waiting.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(*self.next(), NextSegment::Ready(_))
    }

    /// Takes the next segment. Waits until it is allocated; tries again if an earlier allocation failed.
    pub(crate) fn take(&self, spec: &SegmentSpec) -> Result<Arc<Segment>, AllocateError> {
        let mut next = self.next();
        if matches!(*next, NextSegment::NotRequested | NextSegment::Failed(_)) {
            self.start_allocation(&mut next, spec);
        }
        self.allow(&mut next, WHOLE);
        while matches!(*next, NextSegment::Allocating { .. }) {
            next = self.shared.allocated.wait(next).unwrap_or_else(PoisonError::into_inner);
        }
        match std::mem::replace(&mut *next, NextSegment::NotRequested) {
            NextSegment::Ready(segment) => Ok(segment),
            NextSegment::Failed(why) => {
                // Kept, so that `request` does not repeat an allocation that cannot succeed.
                *next = NextSegment::Failed(AllocateError::NoRoom("an earlier allocation failed".to_owned()));
                Err(why)
            }
            NextSegment::NotRequested | NextSegment::Allocating { .. } => {
                unreachable!("the loop above waits for the allocation to end")
            }
        }
    }

    /// Returns a segment that [`take`](Self::take) returned and that was not used.
    pub(crate) fn put_back(&self, segment: Arc<Segment>) {
        *self.next() = NextSegment::Ready(segment);
    }

    /// Reclaims a purged segment: keeps its file as a spare one, or removes it.
    pub(crate) fn reclaim(&self, segment: Arc<Segment>) {
        // The lock is held, as otherwise the thread could check its jobs before this one arrives and wait afterwards.
        let _next = self.next();
        self.send(Job::Reclaim(segment));
        self.shared.resume.notify_one();
    }

    fn send(&self, job: Job) {
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(job));
        assert!(matches!(sent, Some(Ok(()))), "the thread ends only when the allocator is dropped");
    }

    fn next(&self) -> MutexGuard<'_, NextSegment> {
        self.shared.next()
    }
}

impl Shared {
    fn next(&self) -> MutexGuard<'_, NextSegment> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the thread, which must not touch the directory when it is opened again.
impl Drop for SegmentAllocator {
    fn drop(&mut self) {
        {
            let _next = self.next();
            self.shared.stop.store(true, Ordering::Relaxed);
            self.shared.resume.notify_one();
        }
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    dir: PathBuf,
    /// Length of the spare files that are kept, in bytes.
    len: u64,
    spares: Vec<PathBuf>,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(&mut self, inbox: &Receiver<Job>) {
        for job in inbox {
            match job {
                // Jobs that are left at the end are done after the next start.
                _ if self.shared.stop.load(Ordering::Relaxed) => {}
                Job::Allocate(spec) => {
                    let next = match self.allocate(&spec, inbox) {
                        Ok(segment) => NextSegment::Ready(segment.into()),
                        Err(error) => NextSegment::Failed(error),
                    };
                    *self.shared.next() = next;
                    self.shared.allocated.notify_all();
                }
                Job::Reclaim(segment) => self.reclaim(segment),
            }
        }
    }

    fn allocate(&mut self, spec: &SegmentSpec, inbox: &Receiver<Job>) -> Result<Segment, AllocateError> {
        let SegmentSpec { sequence, len, reserve } = spec;
        if let Some(spare) = self.spares.pop() {
            match Segment::recycle(&self.dir, &spare, *sequence) {
                Ok(segment) => return Ok(segment),
                // The spare file cannot be used; a new file may work.
                Err(_) => drop(fs::remove_file(&spare)),
            }
        }
        reserve.check(*len).map_err(AllocateError::NoRoom)?;
        let dir = self.dir.clone();
        let wait_for_permission = &mut |from: u64| self.wait_for_permission(from * WHOLE / len, inbox);
        Segment::create(&dir, *sequence, *len, wait_for_permission)
            .map_err(|error| allocate_error(&dir, error))
    }

    /// Waits until the segment may be filled from `thousandths` on. Returns `false` if it is no longer wanted.
    fn wait_for_permission(&mut self, thousandths: u64, inbox: &Receiver<Job>) -> bool {
        let shared = self.shared.clone();
        let mut next = shared.next();
        while !shared.stop.load(Ordering::Relaxed) {
            if let Ok(Job::Reclaim(segment)) = inbox.try_recv() {
                drop(next);
                self.reclaim(segment);
                next = shared.next();
                continue;
            }
            match &mut *next {
                NextSegment::Allocating { allowed, awaited } if thousandths > *allowed => {
                    *awaited = thousandths;
                }
                _ => return true,
            }
            next = shared.resume.wait(next).unwrap_or_else(PoisonError::into_inner);
        }
        false
    }

    /// Keeps the file of a purged segment as a spare one, or removes it. Errors are ignored: they leave a file that is found
    /// again at the next start.
    fn reclaim(&mut self, segment: Arc<Segment>) {
        let path = segment.path().to_owned();
        // A concurrent read still uses the file. It must not be reused; the read keeps it open after its name is removed.
        let Some(segment) = Arc::into_inner(segment) else { return drop(fs::remove_file(path)) };
        let spare = self.dir.join(spare_name(segment.sequence));
        if fs::rename(&path, &spare).is_ok() {
            self.keep_or_remove(spare);
        }
    }

    fn keep_or_remove(&mut self, spare: PathBuf) {
        let fits = fs::metadata(&spare).is_ok_and(|file| file.len() == self.len);
        if fits && self.spares.len() < SPARES_MAX {
            self.spares.push(spare);
        } else {
            let _ = fs::remove_file(spare);
        }
    }
}

/// Converts the error of an allocation in `dir`. An error that an operator, or time, can remove becomes
/// [`AllocateError::NoRoom`], which is not final: the log is unchanged.
pub(crate) fn allocate_error(dir: &Path, error: io::Error) -> AllocateError {
    let dir = dir.display();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            AllocateError::NoRoom(format!("the disk of {dir} has no room for a segment of the log: {error}"))
        }
        io::ErrorKind::PermissionDenied => {
            AllocateError::NoRoom(format!("a segment of the log cannot be created in {dir}: {error}"))
        }
        _ if matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) => {
            AllocateError::NoRoom(format!("a segment of the log cannot be created in {dir}: {error}"))
        }
        _ => AllocateError::Failed(error),
    }
}

/// "Too many open files", of the process and of the system. The numbers are the same on all Unix systems.
const EMFILE: i32 = 24;
const ENFILE: i32 = 23;

/// Purged segments whose files are kept for reuse.
const SPARES_MAX: usize = 2;
/// A whole segment, in thousandths.
pub(crate) const WHOLE: u64 = 1000;

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const LEN: u64 = 8 << 20;

    fn spec() -> SegmentSpec {
        SegmentSpec { sequence: 2, len: LEN, reserve: Reserve::new(Path::new("/"), 0) }
    }

    /// An allocator whose thread pauses, when `used` thousandths of the current segment are used.
    fn paused_allocator(used: u64) -> (TempDir, SegmentAllocator) {
        let dir = tempfile::tempdir().unwrap();
        let allocator = SegmentAllocator::new(dir.path(), LEN, None, Vec::new()).unwrap();
        allocator.request(used, spec);
        wait_until_paused(&allocator);
        (dir, allocator)
    }

    /// Waits until the thread pauses. Returns the start of the piece for which it waits, in thousandths.
    fn wait_until_paused(allocator: &SegmentAllocator) -> u64 {
        loop {
            match *allocator.next() {
                NextSegment::Allocating { allowed, awaited } if awaited > allowed => return awaited,
                NextSegment::Allocating { .. } => {}
                ref next => panic!("{next:?}"),
            }
            thread::yield_now();
        }
    }

    #[test]
    fn segment_is_filled_at_the_pace_of_the_current_one() {
        let (_dir, allocator) = paused_allocator(250);
        assert_eq!(wait_until_paused(&allocator), 375, "pieces of an eighth; a third is allowed");
        allocator.request(300, spec);
        assert_eq!(wait_until_paused(&allocator), 500);
        allocator.request(750, spec);
        while !allocator.is_ready() {
            thread::yield_now();
        }
    }

    #[test]
    fn segment_taken_early_is_filled_at_once() {
        let (_dir, allocator) = paused_allocator(0);
        assert_eq!(allocator.take(&spec()).unwrap().len().unwrap(), LEN);
    }

    #[test]
    fn unneeded_segment_is_not_completed() {
        let (dir, allocator) = paused_allocator(100);
        drop(allocator);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
