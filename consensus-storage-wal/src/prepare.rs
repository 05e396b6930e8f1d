//! Segments are made ahead of time, by a thread of their own.

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
    /// Too little room; there may be more later.
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
    stop: AtomicBool,
}

#[derive(Debug)]
enum Next {
    Nothing,
    Ordered,
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
        let shared = Arc::new(Shared { next, made: Condvar::new(), stop: AtomicBool::new(false) });
        let (orders, inbox) = mpsc::channel();
        let mut worker = Worker { dir: dir.to_owned(), len, spares: Vec::new(), shared: shared.clone() };
        spares.into_iter().for_each(|spare| worker.keep_or_remove(spare));
        let thread =
            thread::Builder::new().name("wal-segments".to_owned()).spawn(move || worker.run(&inbox))?;
        Ok(Self { shared, orders: Some(orders), thread: Some(thread) })
    }

    /// Has the next segment made, if it is not made or ordered already. One that could not be made is left at that.
    pub(crate) fn order(&self, wanted: impl FnOnce() -> Wanted) {
        let mut next = self.next();
        if matches!(*next, Next::Nothing) {
            self.order_now(&mut next, &wanted());
        }
    }

    /// Has it tried again, if it could not be made.
    pub(crate) fn order_again(&self, wanted: &Wanted) {
        let mut next = self.next();
        if matches!(*next, Next::Not(_)) {
            self.order_now(&mut next, wanted);
        }
    }

    fn order_now(&self, next: &mut Next, wanted: &Wanted) {
        *next = Next::Ordered;
        self.send(Order::Next(wanted.clone()));
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
        while matches!(*next, Next::Ordered) {
            next = self.shared.made.wait(next).unwrap_or_else(PoisonError::into_inner);
        }
        match std::mem::replace(&mut *next, Next::Nothing) {
            Next::Ready(segment) => Ok(segment),
            Next::Not(why) => {
                // It stays known, so that the thread is not kept busy with what does not succeed.
                *next = Next::Not(NotMade::NoRoom("it was tried before".to_owned()));
                Err(why)
            }
            Next::Nothing | Next::Ordered => unreachable!("it was waited for"),
        }
    }

    /// Gives back what [`take`](Self::take) returned.
    pub(crate) fn put_back(&self, segment: Arc<Segment>) {
        *self.next() = Next::Ready(segment);
    }

    /// Puts a segment away that is needed no longer.
    pub(crate) fn retire(&self, segment: Arc<Segment>) {
        self.send(Order::Retire(segment));
    }

    fn send(&self, order: Order) {
        let sent = self.orders.as_ref().map(|orders| orders.send(order));
        assert!(matches!(sent, Some(Ok(()))), "the thread ends only with the workshop");
    }

    fn next(&self) -> MutexGuard<'_, Next> {
        self.shared.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever opens the directory next must have it for himself.
impl Drop for Workshop {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
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
                    let next = self.make(&wanted).map_or_else(Next::Not, |made| Next::Ready(made.into()));
                    *self.shared.next.lock().unwrap_or_else(PoisonError::into_inner) = next;
                    self.shared.made.notify_all();
                }
                Order::Retire(segment) => self.retire(segment),
            }
        }
    }

    fn make(&mut self, wanted: &Wanted) -> Result<Segment, NotMade> {
        let Wanted { sequence, len, reserve } = wanted;
        if let Some(spare) = self.spares.pop() {
            match Segment::recycle(&self.dir, &spare, *sequence) {
                Ok(segment) => return Ok(segment),
                // Of no use then, and a new one may be.
                Err(_) => drop(fs::remove_file(&spare)),
            }
        }
        reserve.check(*len).map_err(NotMade::NoRoom)?;
        let made = Segment::create(&self.dir, *sequence, *len, &self.shared.stop);
        made.map_err(|error| not_made(&self.dir, error))
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

/// What became of the room for a segment in `dir`.
pub(crate) fn not_made(dir: &Path, error: io::Error) -> NotMade {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => NotMade::NoRoom(format!(
            "the disk of {} has no room for a segment of the log: {error}",
            dir.display()
        )),
        _ => NotMade::Failed(error),
    }
}

/// So many purged segments are kept, to be used again.
const SPARES_MAX: usize = 2;
