//! Segments are made ahead of time, by a thread of their own, at the pace at which the log comes to need them: all at once
//! would take a processor and the disk from those who write meanwhile, and on all nodes of a cluster at the same time.

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

/// Makes the segment that comes next, and puts away those that are done with.
#[derive(Debug)]
pub(crate) struct Workshop {
    shared: Arc<Shared>,
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

/// Why there is no next segment.
#[derive(Debug)]
pub(crate) enum NotMade {
    /// Too little room, or too few file descriptors, or no permission; there may be later.
    NoRoom(String),
    Failed(io::Error),
}

/// The segment that comes next.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) sequence: u64,
    /// How long it should be, if it has to be made.
    pub(crate) len: u64,
    /// What has to stay free then.
    pub(crate) reserve: Reserve,
}

#[derive(Debug)]
enum Order {
    Next(Wanted),
    Retire(Arc<Segment>),
}

#[derive(Debug)]
struct Shared {
    next: Mutex<Next>,
    made: Condvar,
    /// The segment that is being made may go on, or there is something else to be done meanwhile.
    go_on: Condvar,
    stop: AtomicBool,
}

#[derive(Debug)]
enum Next {
    Nothing,
    /// Up to how many thousandths its next piece may begin by now, and where the one begins that its maker waits with.
    Ordered {
        allowed: u64,
        awaited: u64,
    },
    Ready(Arc<Segment>),
    Not(NotMade),
}

impl Workshop {
    /// For segments in `dir`, where there may be a next one already, and `spares`. Those of `len` bytes are used again.
    pub(crate) fn new(
        dir: &Path,
        len: u64,
        next: Option<Arc<Segment>>,
        spares: Vec<PathBuf>,
    ) -> io::Result<Self> {
        let next = Mutex::new(next.map_or(Next::Nothing, Next::Ready));
        let (made, go_on, stop) = (Condvar::new(), Condvar::new(), AtomicBool::new(false));
        let shared = Arc::new(Shared { next, made, go_on, stop });
        let (orders, inbox) = mpsc::channel();
        let mut worker = Worker { dir: dir.to_owned(), len, spares: Vec::new(), shared: shared.clone() };
        spares.into_iter().for_each(|spare| worker.keep_or_remove(spare));
        let thread =
            thread::Builder::new().name("wal-segments".to_owned()).spawn(move || worker.run(&inbox))?;
        Ok(Self { shared, orders: Some(orders), thread: Some(thread) })
    }

    /// Has the next segment made, if it is not made or ordered already, so that it is ready when three quarters of this one
    /// are used; so many thousandths are. One that could not be made is left at that.
    pub(crate) fn order(&self, used: u64, wanted: impl FnOnce() -> Wanted) {
        let mut next = self.next();
        if matches!(*next, Next::Nothing) {
            self.order_now(&mut next, &wanted());
        }
        self.allow(&mut next, used * 4 / 3);
    }

    /// Has it tried again, if it could not be made.
    pub(crate) fn order_again(&self, wanted: &Wanted) {
        let mut next = self.next();
        if matches!(*next, Next::Not(_)) {
            self.order_now(&mut next, wanted);
        }
    }

    fn order_now(&self, next: &mut Next, wanted: &Wanted) {
        *next = Next::Ordered { allowed: 0, awaited: 0 };
        self.send(Order::Next(wanted.clone()));
    }

    fn allow(&self, next: &mut Next, thousandths: u64) {
        let Next::Ordered { allowed, awaited } = next else { return };
        let waits = *awaited > *allowed;
        *allowed = thousandths.max(*allowed);
        if waits && *awaited <= *allowed {
            self.shared.go_on.notify_one();
        }
    }

    /// Whether [`take`](Self::take) will return at once.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(*self.next(), Next::Ready(_))
    }

    /// The next segment. Waits for it if it is being made, and has it tried again if it could not be made before.
    pub(crate) fn take(&self, wanted: &Wanted) -> Result<Arc<Segment>, NotMade> {
        let mut next = self.next();
        if matches!(*next, Next::Nothing | Next::Not(_)) {
            self.order_now(&mut next, wanted);
        }
        self.allow(&mut next, ALL);
        while matches!(*next, Next::Ordered { .. }) {
            next = self.shared.made.wait(next).unwrap_or_else(PoisonError::into_inner);
        }
        match std::mem::replace(&mut *next, Next::Nothing) {
            Next::Ready(segment) => Ok(segment),
            Next::Not(why) => {
                // It stays known, so that the thread is not kept busy with what does not succeed.
                *next = Next::Not(NotMade::NoRoom("it was tried before".to_owned()));
                Err(why)
            }
            Next::Nothing | Next::Ordered { .. } => unreachable!("it was waited for"),
        }
    }

    /// Gives back what [`take`](Self::take) returned.
    pub(crate) fn put_back(&self, segment: Arc<Segment>) {
        *self.next() = Next::Ready(segment);
    }

    /// Puts a segment away that is needed no longer.
    pub(crate) fn retire(&self, segment: Arc<Segment>) {
        // Within the lock, or the worker could look before and wait after.
        let _next = self.next();
        self.send(Order::Retire(segment));
        self.shared.go_on.notify_one();
    }

    fn send(&self, order: Order) {
        let sent = self.orders.as_ref().map(|orders| orders.send(order));
        assert!(matches!(sent, Some(Ok(()))), "the thread ends only with the workshop");
    }

    fn next(&self) -> MutexGuard<'_, Next> {
        self.shared.next()
    }
}

impl Shared {
    fn next(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever opens the directory next must have it for himself.
impl Drop for Workshop {
    fn drop(&mut self) {
        {
            let _next = self.next();
            self.shared.stop.store(true, Ordering::Relaxed);
            self.shared.go_on.notify_one();
        }
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    dir: PathBuf,
    len: u64,
    spares: Vec<PathBuf>,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(&mut self, inbox: &Receiver<Order>) {
        for order in inbox {
            match order {
                // What is left undone at the end is done after the next start.
                _ if self.shared.stop.load(Ordering::Relaxed) => {}
                Order::Next(wanted) => {
                    let next =
                        self.make(&wanted, inbox).map_or_else(Next::Not, |made| Next::Ready(made.into()));
                    *self.shared.next() = next;
                    self.shared.made.notify_all();
                }
                Order::Retire(segment) => self.retire(segment),
            }
        }
    }

    fn make(&mut self, wanted: &Wanted, inbox: &Receiver<Order>) -> Result<Segment, NotMade> {
        let Wanted { sequence, len, reserve } = wanted;
        if let Some(spare) = self.spares.pop() {
            match Segment::recycle(&self.dir, &spare, *sequence) {
                Ok(segment) => return Ok(segment),
                // Of no use then, and a new one may be.
                Err(_) => drop(fs::remove_file(&spare)),
            }
        }
        reserve.check(*len).map_err(NotMade::NoRoom)?;
        let dir = self.dir.clone();
        let may_go_on = &mut |from: u64| self.may_go_on(from * ALL / len, inbox);
        Segment::create(&dir, *sequence, *len, may_go_on).map_err(|error| not_made(&dir, error))
    }

    /// Waits until the next segment may be made from so many thousandths on; `false` if it is not to be made at all.
    fn may_go_on(&mut self, thousandths: u64, inbox: &Receiver<Order>) -> bool {
        let shared = self.shared.clone();
        let mut next = shared.next();
        while !shared.stop.load(Ordering::Relaxed) {
            if let Ok(Order::Retire(segment)) = inbox.try_recv() {
                drop(next);
                self.retire(segment);
                next = shared.next();
                continue;
            }
            match &mut *next {
                Next::Ordered { allowed, awaited } if thousandths > *allowed => *awaited = thousandths,
                _ => return true,
            }
            next = shared.go_on.wait(next).unwrap_or_else(PoisonError::into_inner);
        }
        false
    }

    /// Nobody waits for this, and what does not succeed leaves a file that is found again after the next start.
    fn retire(&mut self, segment: Arc<Segment>) {
        let path = segment.path().to_owned();
        // Who reads there still must find what he looks for: the file loses its name only.
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

/// Why there is no segment in `dir`. What an operator, or time, can change is no failure: nothing of the log was touched.
pub(crate) fn not_made(dir: &Path, error: io::Error) -> NotMade {
    let dir = dir.display();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            NotMade::NoRoom(format!("the disk of {dir} has no room for a segment of the log: {error}"))
        }
        io::ErrorKind::PermissionDenied => {
            NotMade::NoRoom(format!("no segment of the log can be made in {dir}: {error}"))
        }
        _ if matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) => {
            NotMade::NoRoom(format!("no segment of the log can be made in {dir}: {error}"))
        }
        _ => NotMade::Failed(error),
    }
}

/// "Too many open files", of the process and of the system; the same number on all Unix systems.
const EMFILE: i32 = 24;
const ENFILE: i32 = 23;

/// So many purged segments are kept, to be used again.
const SPARES_MAX: usize = 2;
/// Of a segment, in thousandths.
pub(crate) const ALL: u64 = 1000;

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const LEN: u64 = 8 << 20;

    fn wanted() -> Wanted {
        Wanted { sequence: 2, len: LEN, reserve: Reserve::new(Path::new("/"), 0) }
    }

    /// One whose maker waits, when so many thousandths of the segment before are used.
    fn workshop(used: u64) -> (TempDir, Workshop) {
        let dir = tempfile::tempdir().unwrap();
        let workshop = Workshop::new(dir.path(), LEN, None, Vec::new()).unwrap();
        workshop.order(used, wanted);
        paused(&workshop);
        (dir, workshop)
    }

    /// Until the maker waits; for how many thousandths.
    fn paused(workshop: &Workshop) -> u64 {
        loop {
            match *workshop.next() {
                Next::Ordered { allowed, awaited } if awaited > allowed => return awaited,
                Next::Ordered { .. } => {}
                ref next => panic!("{next:?}"),
            }
            thread::yield_now();
        }
    }

    #[test]
    fn a_segment_is_made_as_the_one_before_is_used() {
        let (_dir, workshop) = workshop(250);
        assert_eq!(paused(&workshop), 375, "pieces of an eighth; a third is allowed");
        workshop.order(300, wanted);
        assert_eq!(paused(&workshop), 500);
        workshop.order(750, wanted);
        while !workshop.is_ready() {
            thread::yield_now();
        }
    }

    #[test]
    fn who_needs_it_now_waits_for_no_pace() {
        let (_dir, workshop) = workshop(0);
        assert_eq!(workshop.take(&wanted()).unwrap().len().unwrap(), LEN);
    }

    #[test]
    fn one_that_is_not_needed_is_not_finished() {
        let (dir, workshop) = workshop(100);
        drop(workshop);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
