//! Rules that are checked one by one, each under its name.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
    time::Duration,
};

/// Checks one rule of a suite: a panic of `case` becomes one that names the rule.
pub(crate) fn check(suite: &str, rule: &str, case: impl FnOnce()) {
    println!("{suite}: {rule}");
    if let Err(panic) = catch_unwind(AssertUnwindSafe(case)) {
        broken(suite, rule, &*panic);
    }
}

/// The same for a rule that awaits; `limit` is how long all of it may take.
pub(crate) async fn check_within(suite: &str, rule: &str, limit: Duration, case: impl Future<Output = ()>) {
    println!("{suite}: {rule}");
    let mut case = pin!(case);
    let caught = poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| case.as_mut().poll(context))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(())) => Poll::Ready(Ok(())),
        Err(panic) => Poll::Ready(Err(panic)),
    });
    match tokio::time::timeout(limit, caught).await {
        Ok(Ok(())) => {}
        Ok(Err(panic)) => broken(suite, rule, &*panic),
        Err(_) => broken(suite, rule, &format!("no end within {limit:?}: a call does not return")),
    }
}

fn broken(suite: &str, rule: &str, why: &(dyn Any + Send)) -> ! {
    let why = why.downcast_ref::<String>().map(String::as_str).or(why.downcast_ref::<&str>().copied());
    panic!("{suite} breaks the rule \"{rule}\": {}", why.unwrap_or("it panicked"));
}
