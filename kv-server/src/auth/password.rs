//! Passwords: hashed and verified on threads that may be blocked, a few at once.

use std::sync::Arc;

use kv_state_machine::{AuthState, AuthUser, Password};
use tokio::sync::Semaphore;

use super::{
    verify,
    waiting::{Origin, Waiting},
};
use crate::call_log::{Stage, timed};

/// Hashes and verifies passwords. A login takes tens of milliseconds of a processor and 19 MiB of memory on purpose, so that
/// their number is bounded, and that of those who wait.
#[derive(Clone, Debug)]
pub(crate) struct Passwords {
    running: Arc<Semaphore>,
    waiting: Waiting,
}

/// Outcome of a verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verified {
    Right,
    Wrong,
    /// It was not verified: too many others wait.
    TooMany,
}

impl Default for Passwords {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let running = (processors / 2).clamp(1, RUNNING_MAX);
        Self { running: Arc::new(Semaphore::new(running)), waiting: Waiting::default() }
    }
}

impl Passwords {
    /// Verifies the password of a user. If there is no such user, it takes as long and is wrong.
    pub(crate) async fn verify(
        &self,
        auth: Arc<AuthState>,
        origin: Origin,
        user: &str,
        password: String,
    ) -> Verified {
        let hash = match auth.user(user).map(AuthUser::password) {
            Some(Password::Hash(hash)) => Some(hash.clone()),
            Some(Password::None) | None => None,
        };
        let verify = move || verify::is_right(hash.as_deref(), &password, &auth).0;
        match self.run(origin, Some(user), verify).await {
            None => Verified::TooMany,
            Some(true) => Verified::Right,
            Some(false) => Verified::Wrong,
        }
    }

    /// Hashes a password; `None` if too many others wait.
    pub(crate) async fn hash(&self, origin: Origin, password: String) -> Option<Result<String, String>> {
        self.run(origin, None, move || verify::hash(&password)).await
    }

    async fn run<T: Send + 'static>(
        &self,
        origin: Origin,
        user: Option<&str>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let _place = self.waiting.enter(origin, user)?;
        let done = async {
            let running = self.running.clone().acquire_owned().await.ok()?;
            let done = tokio::task::spawn_blocking(move || {
                let _running = running; // Also if the caller has gone.
                work()
            });
            done.await.ok()
        };
        timed(Stage::Password, done).await
    }
}

/// Passwords that are verified at once at most: each takes a thread and 19 MiB.
const RUNNING_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn origin(address: &str) -> Origin {
        address.parse::<IpAddr>().unwrap().into()
    }

    #[tokio::test]
    async fn flood_of_logins_from_one_address_does_not_lock_out_another() {
        let passwords = Passwords { running: Arc::new(Semaphore::new(0)), ..Passwords::default() };
        let verify = |from: &str| {
            let auth = Arc::<AuthState>::default();
            let (passwords, origin) = (passwords.clone(), origin(from));
            Box::pin(async move { passwords.verify(auth, origin, "root", String::new()).await })
        };
        let mut flood: Vec<_> = (0..300).map(|_| verify("10.0.0.1")).collect();
        let mut other = verify("10.0.0.2");
        let mut refused = 0;
        futures::future::poll_fn(|context| {
            for login in &mut flood {
                refused += usize::from(login.as_mut().poll(context).is_ready());
            }
            assert!(other.as_mut().poll(context).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        assert_eq!(refused, 300 - 64);
        drop(flood);
        passwords.running.add_permits(1);
        assert_eq!(other.await, Verified::Wrong);
    }
}
