//! Where what may block is done: on a thread of its own, or on the engine's task
//! ([`RaftConfig::threads`](crate::RaftConfig::threads)).

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    thread::JoinHandle,
    time::Duration,
};

use tokio::{task::JoinError, time::Instant};

use crate::inbox::{Inbox, Input};

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
    /// The same job, after a while; until then no other comes, but the end may.
    Again(J, Duration),
    /// Nothing: it failed, and that was reported.
    Over,
}

pub(crate) enum Worker<J> {
    Thread(mpsc::Sender<J>, JoinHandle<()>),
    /// `None` once it is over; with the job to do again, and when.
    Inline(Option<Box<dyn Work<Job = J>>>, Option<(Instant, J)>),
}

impl<J: Send + 'static> Worker<J> {
    pub(crate) fn spawn(
        name: &str,
        span: tracing::Span,
        inbox: Inbox,
        work: impl Work<Job = J>,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _in = span.entered();
            run(work, &queue, &inbox);
        })?;
        Ok(Self::Thread(jobs, thread))
    }

    pub(crate) fn inline(work: impl Work<Job = J>) -> Self {
        Self::Inline(Some(Box::new(work)), None)
    }

    /// `false` if it is over. What came of a job that was done here is added to `reports`.
    pub(crate) fn give(&mut self, job: J, reports: &mut Vec<Input>) -> bool {
        match self {
            Self::Thread(jobs, _) => jobs.send(job).is_ok(),
            Self::Inline(work, again) => {
                let Some(working) = work else { return false };
                let mut report = |input| {
                    reports.push(input);
                    true
                };
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
            Self::Thread(..) => None, // It has a clock of its own.
            Self::Inline(_, again) => again.as_ref().map(|(at, _)| *at),
        }
    }

    pub(crate) fn retry(&mut self, reports: &mut Vec<Input>) {
        let Self::Inline(_, again) = self else { return };
        if let Some((_, job)) = again.take_if(|(at, _)| *at <= Instant::now()) {
            self.give(job, reports);
        }
    }

    /// Nothing more is given; returns the thread that is to be waited for, if there is one.
    pub(crate) fn end(self) -> Option<JoinHandle<()>> {
        match self {
            Self::Thread(_, thread) => Some(thread),
            Self::Inline(work, _) => {
                work.into_iter().for_each(|mut work| work.end());
                None
            }
        }
    }
}

fn run<W: Work>(mut work: W, queue: &mpsc::Receiver<W::Job>, inbox: &Inbox) {
    let mut report = |input| inbox.send(input).is_ok();
    while let Ok(mut job) = queue.recv() {
        loop {
            match work.work(job, &mut report) {
                Next::Ready => break,
                Next::Over => return,
                Next::Again(again, after) => {
                    if !matches!(queue.recv_timeout(after), Err(RecvTimeoutError::Timeout)) {
                        return;
                    }
                    job = again;
                }
            }
        }
    }
    work.end();
}

/// One call that may block: on a thread of the runtime, or here.
pub(crate) async fn call<T: Send + 'static>(
    threads: bool,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if threads { tokio::task::spawn_blocking(call).await } else { Ok(call()) }
}
