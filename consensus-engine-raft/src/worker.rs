//! Where what may block is done: on a thread of its own, or on the engine's task
//! ([`RaftConfig::threads`](crate::RaftConfig::threads)).
//!
//! Even where there is a thread, a job that comes alone and will be done at once is done on the engine's task: to wake a
//! thread and to be woken by it takes as long as a fast disk's sync.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::{JoinError, block_in_place},
    time::{Instant, sleep},
};

use crate::{
    inbox::{Inbox, Input},
    latency::Latency,
};

/// What is done with jobs, in order.
pub(crate) trait Work: Send + 'static {
    type Job: Send + 'static;

    /// Does a job. `report` takes what came of it to the engine's task, and says whether that is there still.
    fn work(&mut self, job: Self::Job, report: Report<'_>) -> Next<Self::Job>;

    /// No job comes any more.
    fn end(&mut self) {}
}

pub(crate) type Report<'a> = &'a mut dyn FnMut(Input) -> bool;

/// What comes after a job.
pub(crate) enum Next<J> {
    Ready,
    /// The same job, after a while; other jobs wait behind it.
    Again(J, Duration),
    /// Nothing: it failed, and that was reported.
    Over,
}

pub(crate) enum Worker<J> {
    /// Dropped in this order: without a sender, the thread ends.
    Thread(mpsc::Sender<J>, Joined, Arc<Shared<J>>),
    /// `None` once it is over; with the job to do again, and when; and the jobs behind it.
    Inline(Option<Box<dyn Work<Job = J>>>, Option<(Instant, J)>, VecDeque<J>),
    /// On a task of its own, where each job takes a simulated time. Without a sender once it is settled.
    Late(Option<UnboundedSender<J>>, tokio::task::JoinHandle<()>),
}

/// A thread that is waited for where its handle is dropped: it may be using files, which their owner may open again, and a
/// process that ends meanwhile may be aborted by a library in use.
pub(crate) struct Joined(Option<JoinHandle<()>>);

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            let _ = thread.join(); // A panic was reported where it happened.
        }
    }
}

/// Between the thread and the engine's task.
pub(crate) struct Shared<J> {
    work: Mutex<Box<dyn Work<Job = J>>>,
    /// Jobs that are given and not done.
    given: AtomicU64,
    /// How long the last job took, in microseconds.
    took: AtomicU64,
}

impl<J: Send + 'static> Shared<J> {
    /// Does a job, on whichever thread.
    fn work(&self, job: J, report: Report<'_>) -> Next<J> {
        let began = std::time::Instant::now();
        let next = self.work.lock().unwrap_or_else(PoisonError::into_inner).work(job, report);
        self.took.store(began.elapsed().as_micros() as u64, Ordering::Relaxed);
        next
    }

    /// Whether a job would be done at once.
    fn is_free(&self) -> bool {
        self.given.load(Ordering::Acquire) == 0 && self.took.load(Ordering::Relaxed) < HERE_MICROS_MAX
    }
}

impl<J: Send + 'static> Worker<J> {
    pub(crate) fn spawn(
        name: &str,
        span: tracing::Span,
        inbox: Inbox,
        work: impl Work<Job = J>,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let (work, given, took) = (Mutex::new(Box::new(work) as _), AtomicU64::new(0), AtomicU64::new(0));
        let shared = Arc::new(Shared { work, given, took });
        let there = shared.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _in = span.entered();
            run(&there, &queue, &inbox);
        })?;
        Ok(Self::Thread(jobs, Joined(Some(thread)), shared))
    }

    pub(crate) fn inline(work: impl Work<Job = J>) -> Self {
        Self::Inline(Some(Box::new(work)), None, VecDeque::new())
    }

    pub(crate) fn late(latency: Latency, inbox: Inbox, work: impl Work<Job = J>) -> Self {
        let (jobs, queue) = unbounded_channel();
        Self::Late(Some(jobs), tokio::spawn(run_late(latency, queue, inbox, work)))
    }

    /// `false` if it is over. What came of a job that was done here is added to `reports`. A small one may be done here if
    /// [`others_can_run`].
    pub(crate) fn give(&mut self, job: J, may_be_here: bool, reports: &mut Vec<Input>) -> bool {
        let mut report = |input| {
            reports.push(input);
            true
        };
        match self {
            Self::Thread(jobs, _, shared) => {
                let mut job = job;
                if may_be_here && shared.is_free() {
                    match block_in_place(|| shared.work(job, &mut report)) {
                        // After an error the engine gives no more.
                        Next::Ready | Next::Over => return true,
                        Next::Again(again, _) => job = again,
                    }
                }
                shared.given.fetch_add(1, Ordering::Relaxed);
                jobs.send(job).is_ok()
            }
            Self::Late(jobs, _) => jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok()),
            Self::Inline(work, again, waiting) => {
                let Some(working) = work else { return false };
                if again.is_some() {
                    waiting.push_back(job);
                    return true;
                }
                match working.work(job, &mut report) {
                    Next::Ready => {}
                    Next::Again(job, after) => *again = Some((Instant::now() + after, job)),
                    Next::Over => *work = None,
                }
                true
            }
        }
    }

    /// When [`retry`](Self::retry) has something to do.
    pub(crate) fn due(&self) -> Option<Instant> {
        match self {
            Self::Thread(..) | Self::Late(..) => None, // It has a clock of its own.
            Self::Inline(_, again, _) => again.as_ref().map(|(at, _)| *at),
        }
    }

    pub(crate) fn retry(&mut self, reports: &mut Vec<Input>) {
        let Self::Inline(_, again, waiting) = self else { return };
        let Some((_, job)) = again.take_if(|(at, _)| *at <= Instant::now()) else { return };
        for job in std::iter::once(job).chain(std::mem::take(waiting)) {
            self.give(job, true, reports);
        }
    }

    /// Waits until a task has done what it was given; a thread is waited for by [`end`](Self::end).
    pub(crate) async fn settle(&mut self) {
        if let Self::Late(jobs, task) = self {
            *jobs = None;
            let _ = task.await; // A panic was reported where it happened.
        }
    }

    /// Nothing more is given; returns the thread that is to be waited for, if there is one.
    pub(crate) fn end(self) -> Option<JoinHandle<()>> {
        match self {
            Self::Thread(_, mut thread, _) => thread.0.take(),
            Self::Inline(work, ..) => {
                work.into_iter().for_each(|mut work| work.end());
                None
            }
            Self::Late(..) => None,
        }
    }
}

fn run<J: Send + 'static>(shared: &Shared<J>, queue: &mpsc::Receiver<J>, inbox: &Inbox) {
    let mut report = |input| inbox.send(input).is_ok();
    // Jobs that came while one waited to be done again.
    let mut waiting = VecDeque::new();
    while let Some(mut job) = waiting.pop_front().or_else(|| queue.recv().ok()) {
        loop {
            match shared.work(job, &mut report) {
                Next::Ready => break,
                Next::Over => return,
                Next::Again(again, after) => {
                    if !pause(after, queue, &mut waiting) {
                        return;
                    }
                    job = again;
                }
            }
        }
        shared.given.fetch_sub(1, Ordering::Release);
    }
    shared.work.lock().unwrap_or_else(PoisonError::into_inner).end();
}

async fn run_late<J>(
    mut latency: Latency,
    mut queue: UnboundedReceiver<J>,
    inbox: Inbox,
    mut work: impl Work<Job = J>,
) {
    let mut report = |input| inbox.send(input).is_ok();
    while let Some(mut job) = queue.recv().await {
        sleep(latency.draw()).await;
        loop {
            match work.work(job, &mut report) {
                Next::Ready => break,
                Next::Over => return,
                Next::Again(_, _) if queue.is_closed() => return,
                Next::Again(again, after) => {
                    sleep(after).await;
                    job = again;
                }
            }
        }
    }
    work.end();
}

/// Waits, and takes in what comes meanwhile. `false` if no job comes any more.
fn pause<J>(time: Duration, queue: &mpsc::Receiver<J>, waiting: &mut VecDeque<J>) -> bool {
    let until = std::time::Instant::now() + time;
    loop {
        match queue.recv_timeout(until.saturating_duration_since(std::time::Instant::now())) {
            Ok(job) => waiting.push_back(job),
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}

/// Whether other tasks have a thread while the one at hand is blocked for a moment. Never under a paused clock.
pub(crate) fn others_can_run() -> bool {
    let runtime = Handle::current();
    runtime.runtime_flavor() == RuntimeFlavor::MultiThread && runtime.metrics().num_workers() > 1
}

/// What took longer the last time is left to the thread.
const HERE_MICROS_MAX: u64 = 1000;

/// One call that may block: on a thread of the runtime, or here.
pub(crate) async fn call<T: Send + 'static>(
    threads: bool,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if threads { tokio::task::spawn_blocking(call).await } else { Ok(call()) }
}
