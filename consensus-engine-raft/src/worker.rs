//! Runs work that may block, on a dedicated thread or on the engine's task
//! ([`RaftConfig::threads`](crate::RaftConfig::threads)).
//!
//! Even if there is a thread, a short job that arrives alone is done on the engine's task: waking a thread and being woken
//! by it takes as long as the sync of a fast disk.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
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
    /// The thread's queue, the thread, the shared state, and the job that is to run inline. Dropped in this order: the thread
    /// ends when the sender is dropped.
    Thread(mpsc::Sender<J>, Joined, Arc<Shared<J>>, Option<J>),
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
    /// `None` once the thread has ended.
    work: Mutex<Option<Box<dyn Work<Job = J>>>>,
    /// Number of jobs that were given and are not done.
    given: AtomicU64,
    /// Duration of the last job in microseconds.
    took: AtomicU64,
}

impl<J: Send + 'static> Shared<J> {
    fn lock(&self) -> MutexGuard<'_, Option<Box<dyn Work<Job = J>>>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does a job on the calling thread. `work` is [locked](Self::lock).
    fn work(&self, work: &mut Option<Box<dyn Work<Job = J>>>, job: J, report: Report<'_>) -> Next<J> {
        let Some(work) = work else { return Next::Stop };
        let began = std::time::Instant::now();
        let next = work.work(job, report);
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
        let work = Mutex::new(Some(Box::new(work) as _));
        let shared = Arc::new(Shared { work, given: AtomicU64::new(0), took: AtomicU64::new(0) });
        let there = shared.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _in = span.entered();
            run(&there, &queue, &inbox);
        })?;
        Ok(Self::Thread(jobs, Joined(Some(thread)), shared, None))
    }

    pub(crate) fn inline(work: impl Work<Job = J>) -> Self {
        Self::Inline(Some(Box::new(work)), None, VecDeque::new())
    }

    pub(crate) fn late(latency: Latency, inbox: Inbox, work: impl Work<Job = J>) -> Self {
        let (jobs, queue) = unbounded_channel();
        Self::Simulated(Some(jobs), tokio::spawn(run_simulated(latency, queue, inbox, work)))
    }

    /// Gives a job to the worker. Returns `false` if the worker has stopped. Without a thread the job runs at once and adds its
    /// result to `reports`. With a thread, a job that `may_run_inline`, which requires [`others_can_run`], is kept for
    /// [`next_inline`](Self::next_inline) if it will probably be short.
    pub(crate) fn give(&mut self, job: J, may_run_inline: bool, reports: &mut Vec<Input>) -> bool {
        let mut report = |input| {
            reports.push(input);
            true
        };
        match self {
            Self::Thread(jobs, _, shared, inline) => {
                let is_free = shared.is_free();
                shared.given.fetch_add(1, Ordering::Relaxed);
                if may_run_inline && is_free {
                    *inline = Some(job);
                    return true;
                }
                // Jobs run in order.
                inline.take().into_iter().chain([job]).all(|job| jobs.send(job).is_ok())
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

    pub(crate) fn has_inline_job(&self) -> bool {
        matches!(self, Self::Thread(_, _, _, Some(_)))
    }

    /// Returns the job that is to run inline, if there is one. It must be [run](InlineJob::run).
    pub(crate) fn next_inline(&mut self) -> Option<InlineJob<J>> {
        let Self::Thread(_, _, shared, inline) = self else { return None };
        inline.take().map(|job| InlineJob { shared: shared.clone(), job })
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
            Self::Thread(_, mut thread, ..) => thread.0.take(),
            Self::Inline(work, ..) => {
                work.into_iter().for_each(|mut work| work.end());
                None
            }
            Self::Simulated(..) => None,
        }
    }
}

/// A job of a worker with a thread that runs on the engine's task.
pub(crate) struct InlineJob<J> {
    shared: Arc<Shared<J>>,
    job: J,
}

impl<J: Send + 'static> InlineJob<J> {
    /// Calls `begin`, runs the job, and passes what `begin` returned and the results to `end`. Later jobs of the worker wait
    /// meanwhile. `reports` is empty; its allocation is reused.
    pub(crate) fn run<B, T>(
        self,
        mut reports: Vec<Input>,
        begin: impl FnOnce() -> B,
        end: impl FnOnce(B, Vec<Input>) -> T,
    ) -> T {
        let Self { shared, job } = self;
        let mut work = shared.lock();
        let begun = begin();
        block_in_place(|| work_until_done(&shared, &mut work, job, &mut reports));
        let result = end(begun, reports);
        drop(work);
        shared.given.fetch_sub(1, Ordering::Release);
        result
    }
}

/// Does a job and its retries, which are rare: only a read of the log is retried, and short jobs read nothing.
fn work_until_done<J: Send + 'static>(
    shared: &Shared<J>,
    work: &mut Option<Box<dyn Work<Job = J>>>,
    mut job: J,
    reports: &mut Vec<Input>,
) {
    let mut report = |input| {
        reports.push(input);
        true
    };
    while let Next::Retry(again, after) = shared.work(work, job, &mut report) {
        std::thread::sleep(after);
        job = again;
    }
}

fn run<J: Send + 'static>(shared: &Shared<J>, queue: &mpsc::Receiver<J>, inbox: &Inbox) {
    run_jobs(shared, queue, inbox);
    // Dropped by this thread, which is joined, and not by the last holder of the shared state.
    drop(shared.lock().take());
}

fn run_jobs<J: Send + 'static>(shared: &Shared<J>, queue: &mpsc::Receiver<J>, inbox: &Inbox) {
    let mut report = |input| inbox.send(input).is_ok();
    // Jobs that arrived while another one waited for its retry.
    let mut waiting = VecDeque::new();
    while let Some(mut job) = waiting.pop_front().or_else(|| queue.recv().ok()) {
        loop {
            let next = shared.work(&mut shared.lock(), job, &mut report);
            match next {
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
    if let Some(work) = &mut *shared.lock() {
        work.end();
    }
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
