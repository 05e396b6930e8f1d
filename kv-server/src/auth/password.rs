//! Passwords: hashed and verified on threads that may be blocked, a few at once.

use std::sync::{Arc, OnceLock};

use argon2::{Argon2, PasswordHasher, PasswordVerifier, password_hash::phc::PasswordHash};
use tokio::sync::Semaphore;

/// Hashes and verifies passwords. A login takes tens of milliseconds of a processor and 19 MiB of memory on purpose, so that
/// their number is bounded, and that of those who wait.
#[derive(Clone, Debug)]
pub(crate) struct Passwords {
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
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
        Self { running: Arc::new(Semaphore::new(running)), waiting: Arc::new(Semaphore::new(WAITING_MAX)) }
    }
}

impl Passwords {
    /// Verifies a password. Without a hash, which means that there is no such user, it takes as long and is wrong.
    pub(crate) async fn verify(&self, hash: Option<String>, password: String) -> Verified {
        let verified = self.run(move || match &hash {
            Some(hash) => is_right(hash, &password),
            None => {
                is_right(stand_in(), &password);
                false
            }
        });
        match verified.await {
            None => Verified::TooMany,
            Some(true) => Verified::Right,
            Some(false) => Verified::Wrong,
        }
    }

    /// Hashes a password; `None` if too many others wait.
    pub(crate) async fn hash(&self, password: String) -> Option<Result<String, String>> {
        self.run(move || hash(&password)).await
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let _waiting = self.waiting.clone().try_acquire_owned().ok()?;
        let running = self.running.clone().acquire_owned().await.ok()?;
        let done = tokio::task::spawn_blocking(move || {
            let _running = running; // Also if the caller has gone.
            work()
        });
        done.await.ok()
    }
}

fn hash(password: &str) -> Result<String, String> {
    let hashed = Argon2::default().hash_password(password.as_bytes());
    hashed.map(|hash| hash.to_string()).map_err(|error| error.to_string())
}

/// Whether a hash, in PHC format by argon2 or in the format of bcrypt, is that of a password.
fn is_right(hash: &str, password: &str) -> bool {
    if hash.starts_with("$2") {
        // Longer passwords were never accepted with these hashes; the algorithm would ignore the rest.
        return password.len() <= BCRYPT_BYTES_MAX
            && is_bcrypt(hash)
            && bcrypt::verify(password, hash).unwrap_or(false);
    }
    PasswordHash::new(hash)
        .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
}

/// Whether a text is a hash that can be imported, and verified in a bounded time.
pub(crate) fn is_bcrypt(hash: &str) -> bool {
    hash.parse::<bcrypt::HashParts>().is_ok_and(|parts| parts.get_cost() <= BCRYPT_COST_MAX)
}

/// The hash of some password, for users that do not exist.
fn stand_in() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| hash("no password").unwrap_or_default())
}

const BCRYPT_BYTES_MAX: usize = 72;
/// Logarithm of the number of rounds: at 14, a login takes about a second of a processor; at 31, it would take a day.
const BCRYPT_COST_MAX: u32 = 14;
/// Passwords that are verified at once at most: each takes a thread and 19 MiB.
const RUNNING_MAX: usize = 4;
/// Logins that wait for their turn.
const WAITING_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn password_is_right_for_its_hash_only() {
        let passwords = Passwords::default();
        let hash = passwords.hash("secret".to_owned()).await.unwrap().unwrap();
        assert!(hash.starts_with("$argon2id$"), "{hash}");
        let verify =
            |hash: &str, password: &str| passwords.verify(Some(hash.to_owned()), password.to_owned());
        assert_eq!(verify(&hash, "secret").await, Verified::Right);
        assert_eq!(verify(&hash, "Secret").await, Verified::Wrong);
        assert_eq!(verify("no hash", "secret").await, Verified::Wrong);
        assert_eq!(passwords.verify(None, "no password".to_owned()).await, Verified::Wrong);
    }

    #[tokio::test]
    async fn hash_of_bcrypt_is_verified_up_to_72_bytes() {
        let long = "x".repeat(BCRYPT_BYTES_MAX);
        let hash = bcrypt::hash(&long, 4).unwrap();
        assert!(is_bcrypt(&hash) && !is_bcrypt("$2a$") && !is_bcrypt("x"));
        assert!(is_right(&hash, &long));
        assert!(!is_right(&hash, &format!("{long}y")), "the algorithm ignores what follows");
    }

    #[test]
    fn hash_of_bcrypt_that_takes_too_long_is_refused() {
        let hash = bcrypt::hash("secret", 4).unwrap();
        let of_cost = |cost: &str| hash.replacen("$04$", cost, 1);
        assert!(is_bcrypt(&of_cost("$14$")));
        assert!(!is_bcrypt(&of_cost("$15$")) && !is_bcrypt(&of_cost("$31$")));
        assert!(!is_right(&of_cost("$31$"), "secret"), "it is not computed");
    }

    #[tokio::test]
    async fn flood_of_logins_is_refused_beyond_those_that_wait() {
        let passwords = Passwords { running: Arc::new(Semaphore::new(0)), ..Passwords::default() };
        let mut waiting: Vec<_> =
            (0..WAITING_MAX).map(|_| Box::pin(passwords.verify(None, String::new()))).collect();
        futures::future::poll_fn(|context| {
            for login in &mut waiting {
                assert!(login.as_mut().poll(context).is_pending());
            }
            std::task::Poll::Ready(())
        })
        .await;
        assert_eq!(passwords.verify(None, String::new()).await, Verified::TooMany);
        drop(waiting);
        passwords.running.add_permits(1);
        assert_eq!(passwords.verify(None, String::new()).await, Verified::Wrong);
    }
}
