//! Work that the engine's task does inline, and how the engine goes on if it hangs.
//!
//! The driver is not part of the call: the task puts it aside for as long as the call takes. If that is long, another task takes
//! the driver and goes on with the turn as if the call had been given to the worker's thread. The result arrives through the
//! queue then.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Driver;
use crate::{inbox::Inbox, worker::InlineJob};

/// The driver during a call, and when to take it.
pub(super) struct InlineWatch {
    aside: Mutex<Aside>,
    /// Takes the results of a call whose driver was taken.
    inbox: Inbox,
    /// Wakes [`takeover`](Self::takeover) when calls begin again.
    wake: Notify,
}

#[derive(Default)]
struct Aside {
    /// Number of calls that have begun.
    calls: u64,
    /// The driver, while a call runs and no other task has taken it.
    driver: Option<Box<Driver>>,
    /// Whether nobody watches, because no call began for a while.
    is_watcher_asleep: bool,
}

impl InlineWatch {
    pub(super) fn new(inbox: Inbox) -> Self {
        Self { aside: Mutex::default(), inbox, wake: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Aside> {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the driver aside for a call. Returns the number of the call.
    fn put(&self, driver: Box<Driver>) -> u64 {
        let mut aside = self.lock();
        aside.calls += 1;
        aside.driver = Some(driver);
        if std::mem::take(&mut aside.is_watcher_asleep) {
            self.wake.notify_one();
        }
        aside.calls
    }

    /// Returns the driver after a call, unless another task has taken it. It may have put it aside for another call since.
    fn take_back(&self, call: u64) -> Option<Box<Driver>> {
        let mut aside = self.lock();
        if aside.calls == call { aside.driver.take() } else { None }
    }

    /// Drops a driver whose call ended in a panic.
    pub(super) fn clear(&self) {
        let driver = self.lock().driver.take();
        drop(driver);
    }

    /// Waits for a call that takes longer than a [`TICK`], at most two, and returns the driver that waits for it. Checks nothing
    /// while there are no calls.
    pub(super) async fn takeover(&self) -> Box<Driver> {
        let mut seen = 0;
        loop {
            let is_idle = {
                let mut aside = self.lock();
                let is_same = aside.calls == seen;
                if is_same && let Some(driver) = aside.driver.take() {
                    return driver;
                }
                seen = aside.calls;
                aside.is_watcher_asleep = is_same;
                is_same
            };
            if is_idle {
                self.wake.notified().await;
            } else {
                tokio::time::sleep(TICK).await;
            }
        }
    }
}

impl Driver {
    /// Runs the jobs that are kept for this task. Returns `None` if another task took the driver meanwhile.
    pub(super) fn run_inline_jobs(mut self: Box<Self>) -> Option<Box<Self>> {
        if let Some(job) = self.writer.next_inline() {
            self = self.run_inline(job)?;
        }
        if let Some(job) = self.applier.next_inline() {
            self = self.run_inline(job)?;
        }
        Some(self)
    }

    fn run_inline<J: Send + 'static>(mut self: Box<Self>, job: InlineJob<J>) -> Option<Box<Self>> {
        let watch = self.inline.clone();
        // Results of a job that ran before, if any, are kept in front.
        let before = std::mem::take(&mut self.reports);
        let (kept, reports) = if before.is_empty() { (Vec::new(), before) } else { (before, Vec::new()) };
        self.reports = kept;
        let begin = || watch.put(self);
        job.run(reports, begin, |call, reports| {
            let Some(mut driver) = watch.take_back(call) else {
                for report in reports {
                    let _ = watch.inbox.send(report); // The engine may have ended meanwhile.
                }
                return None;
            };
            if driver.reports.is_empty() {
                driver.reports = reports;
            } else {
                driver.reports.extend(reports);
            }
            Some(driver)
        })
    }
}

/// How often calls are checked. A call that hangs delays everything else for that long.
const TICK: std::time::Duration = std::time::Duration::from_millis(50);
