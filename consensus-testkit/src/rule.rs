//! Checks named rules one by one.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
    time::Duration,
};

/// Checks one rule of a suite. A panic of `case` becomes a panic that names the rule.
pub(crate) fn check(suite: &str, rule: &str, case: impl FnOnce()) {
    println!("{suite}: {rule}");
    if let Err(panic) = catch_unwind(AssertUnwindSafe(case)) {
        broken(suite, rule, &*panic);
    }
}

/// Like [`check`], for an asynchronous case, which must complete within `limit`.
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
        Err(_) => broken(suite, rule, &format!("not completed within {limit:?}: a call does not return")),
    }
}

fn broken(suite: &str, rule: &str, why: &(dyn Any + Send)) -> ! {
    let why = why.downcast_ref::<String>().map(String::as_str).or(why.downcast_ref::<&str>().copied());
    panic!("{suite} breaks the rule \"{rule}\": {}", why.unwrap_or("it panicked"));
}
