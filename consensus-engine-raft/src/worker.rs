//! Runs work that may block, on a dedicated thread or on the engine's task
//! ([`RaftConfig::threads`](crate::RaftConfig::threads)).
//!
//! Even if there is a thread, a short job that arrives alone is done on the engine's task: waking a thread and being woken
//! by it takes as long as the sync of a fast disk.

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

/// Executes jobs in order.
pub(crate) trait Work: Send + 'static {
    type Job: Send + 'static;

    /// Does a job. `report` sends its result to the engine's task, and returns `false` if that task has ended.
    fn work(&mut self, job: Self::Job, report: Report<'_>) -> Next<Self::Job>;

    /// Called after the last job.
    fn end(&mut self) {}
}

pub(crate) type Report<'a> = &'a mut dyn FnMut(Input) -> bool;

/// How to continue after a job.
pub(crate) enum Next<J> {
    Ready,
    /// Repeat the same job after a pause; other jobs wait behind it.
    Retry(J, Duration),
    /// Do no more jobs: this one failed, and its error was reported.
    Stop,
}

pub(crate) enum Worker<J> {
    /// Dropped in this order: the thread ends when the sender is dropped.
    Thread(mpsc::Sender<J>, Joined, Arc<Shared<J>>),
    /// The worker, `None` once it has stopped; a job to retry, and when; and the jobs behind it.
    Inline(Option<Box<dyn Work<Job = J>>>, Option<(Instant, J)>, VecDeque<J>),
    /// A task of its own, on which each job takes a simulated time. The sender is `None` once the task was waited for.
    Simulated(Option<UnboundedSender<J>>, tokio::task::JoinHandle<()>),
}

/// A thread that is joined when its handle is dropped. The thread may be using files that their owner opens again, and a
/// library in use may abort a process that exits meanwhile.
pub(crate) struct Joined(Option<JoinHandle<()>>);

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            let _ = thread.join(); // A panic was reported where it occurred.
        }
    }
}

/// State shared by the thread and the engine's task.
pub(crate) struct Shared<J> {
    work: Mutex<Box<dyn Work<Job = J>>>,
    /// Number of jobs that were given and are not done.
    given: AtomicU64,
    /// Duration of the last job in microseconds.
    took: AtomicU64,
}

impl<J: Send + 'static> Shared<J> {
    /// Does a job on the calling thread.
    fn work(&self, job: J, report: Report<'_>) -> Next<J> {
        let began = std::time::Instant::now();
        let next = self.work.lock().unwrap_or_else(PoisonError::into_inner).work(job, report);
        self.took.store(began.elapsed().as_micros() as u64, Ordering::Relaxed);
        next
    }

    /// Whether a job could start at once and will probably be short.
    fn is_free(&self) -> bool {
        self.given.load(Ordering::Acquire) == 0 && self.took.load(Ordering::Relaxed) < INLINE_MICROS_MAX
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
        Self::Simulated(Some(jobs), tokio::spawn(run_simulated(latency, queue, inbox, work)))
    }

    /// Gives a job to the worker. Returns `false` if the worker has stopped. A job that runs inline adds its result to
    /// `reports`. With a thread, a job runs inline only if `may_run_inline`, which requires [`others_can_run`].
    pub(crate) fn give(&mut self, job: J, may_run_inline: bool, reports: &mut Vec<Input>) -> bool {
        let mut report = |input| {
            reports.push(input);
            true
        };
        match self {
            Self::Thread(jobs, _, shared) => {
                let mut job = job;
                if may_run_inline && shared.is_free() {
                    match block_in_place(|| shared.work(job, &mut report)) {
                        // After an error the engine gives no further jobs.
                        Next::Ready | Next::Stop => return true,
                        Next::Retry(again, _) => job = again,
                    }
                }
                shared.given.fetch_add(1, Ordering::Relaxed);
                jobs.send(job).is_ok()
            }
            Self::Simulated(jobs, _) => jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok()),
            Self::Inline(work, again, waiting) => {
                let Some(working) = work else { return false };
                if again.is_some() {
                    waiting.push_back(job);
                    return true;
                }
                match working.work(job, &mut report) {
                    Next::Ready => {}
                    Next::Retry(job, after) => *again = Some((Instant::now() + after, job)),
                    Next::Stop => *work = None,
                }
                true
            }
        }
    }

    /// When [`retry`](Self::retry) must be called.
    pub(crate) fn due(&self) -> Option<Instant> {
        match self {
            Self::Thread(..) | Self::Simulated(..) => None, // These wait by themselves.
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

    /// Waits until a simulated worker has done its jobs; a thread is joined by [`end`](Self::end).
    pub(crate) async fn settle(&mut self) {
        if let Self::Simulated(jobs, task) = self {
            *jobs = None;
            let _ = task.await; // A panic was reported where it occurred.
        }
    }

    /// Ends the worker. Returns the thread to join, if there is one.
    pub(crate) fn end(self) -> Option<JoinHandle<()>> {
        match self {
            Self::Thread(_, mut thread, _) => thread.0.take(),
            Self::Inline(work, ..) => {
                work.into_iter().for_each(|mut work| work.end());
                None
            }
            Self::Simulated(..) => None,
        }
    }
}

fn run<J: Send + 'static>(shared: &Shared<J>, queue: &mpsc::Receiver<J>, inbox: &Inbox) {
    let mut report = |input| inbox.send(input).is_ok();
    // Jobs that arrived while another one waited for its retry.
    let mut waiting = VecDeque::new();
    while let Some(mut job) = waiting.pop_front().or_else(|| queue.recv().ok()) {
        loop {
            match shared.work(job, &mut report) {
                Next::Ready => break,
                Next::Stop => return,
                Next::Retry(again, after) => {
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

async fn run_simulated<J>(
    mut latency: Latency,
    mut queue: UnboundedReceiver<J>,
    inbox: Inbox,
    mut work: impl Work<Job = J>,
) {
    let mut report = |input| inbox.send(input).is_ok();
    while let Some(mut job) = queue.recv().await {
        latency.pass().await;
        loop {
            match work.work(job, &mut report) {
                Next::Ready => break,
                Next::Stop => return,
                Next::Retry(_, _) if queue.is_closed() => return,
                Next::Retry(again, after) => {
                    sleep(after).await;
                    job = again;
                }
            }
        }
    }
    work.end();
}

/// Waits for `time`, and collects jobs that arrive meanwhile. Returns `false` if no more jobs can arrive.
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

/// Whether the runtime has another thread for other tasks while the current task blocks. Never true under a paused clock.
pub(crate) fn others_can_run() -> bool {
    let runtime = Handle::current();
    runtime.runtime_flavor() == RuntimeFlavor::MultiThread && runtime.metrics().num_workers() > 1
}

/// Longest last job after which the next one may run inline, in microseconds.
const INLINE_MICROS_MAX: u64 = 1000;

/// Makes one call that may block: on a thread of the runtime, or inline.
pub(crate) async fn call<T: Send + 'static>(
    threads: bool,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if threads { tokio::task::spawn_blocking(call).await } else { Ok(call()) }
}
