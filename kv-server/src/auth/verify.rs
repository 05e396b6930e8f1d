//! Verification of a password. A failed one takes the same work for all users, also for those that do not exist: its time must not
//! tell which users there are, or how their passwords are hashed.

use std::sync::OnceLock;

use argon2::{Argon2, PasswordHasher, PasswordVerifier, password_hash::phc::PasswordHash};
use kv_state_machine::{AuthState, AuthUser, Password};

/// Work of a verification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Computed hashes of argon2.
    argon2: u32,
    /// Computed rounds of bcrypt.
    bcrypt_rounds: u64,
}

/// Whether a hash, in PHC format by argon2 or in the format of bcrypt, is that of a password; without a hash, which means that there
/// is no such user, it is not. If not, the work is the same for every hash of the store.
pub(super) fn is_right(hash: Option<&str>, password: &str, auth: &AuthState) -> (bool, Work) {
    let mut work = Work::default();
    if hash.is_some_and(|hash| work.is_right(hash, password)) {
        return (true, work);
    }
    if work.argon2 == 0 {
        work.is_right(stand_in(), password);
    }
    if let Some(cost) = bcrypt_cost_max(auth) {
        work.fill_bcrypt(cost, password);
    }
    (false, work)
}

impl Work {
    fn is_right(&mut self, hash: &str, password: &str) -> bool {
        if hash.starts_with("$2") {
            return self.is_right_bcrypt(hash, password);
        }
        let Ok(hash) = PasswordHash::new(hash) else { return false };
        self.argon2 += 1;
        Argon2::default().verify_password(password.as_bytes(), &hash).is_ok()
    }

    fn is_right_bcrypt(&mut self, hash: &str, password: &str) -> bool {
        // Longer passwords were never accepted with these hashes; the algorithm would ignore the rest.
        if password.len() > BCRYPT_BYTES_MAX {
            return false;
        }
        let Some(cost) = bcrypt_cost(hash) else { return false };
        let Ok(is_right) = bcrypt::verify(password, hash) else { return false };
        self.bcrypt_rounds += 1 << cost;
        is_right
    }

    /// Computes as many rounds of bcrypt as are missing to those of a cost. A cost has twice the rounds of the one below it.
    fn fill_bcrypt(&mut self, cost: u32, password: &str) {
        while self.bcrypt_rounds < 1 << cost {
            let next = if self.bcrypt_rounds == 0 { cost } else { self.bcrypt_rounds.ilog2() };
            if bcrypt::hash_with_salt(password, next, [0; 16]).is_err() {
                return;
            }
            self.bcrypt_rounds += 1 << next;
        }
    }
}

/// Whether a text is a hash that can be imported, and verified in a bounded time.
pub(crate) fn is_bcrypt(hash: &str) -> bool {
    bcrypt_cost(hash).is_some()
}

/// Cost of a hash of bcrypt that is verified.
fn bcrypt_cost(hash: &str) -> Option<u32> {
    let cost = hash.parse::<bcrypt::HashParts>().ok()?.get_cost();
    (cost <= BCRYPT_COST_MAX).then_some(cost)
}

/// The highest cost of the hashes of bcrypt in the store; `None` if there is none.
fn bcrypt_cost_max(auth: &AuthState) -> Option<u32> {
    let hashes = auth.users().filter_map(|user| match auth.user(user).map(AuthUser::password) {
        Some(Password::Hash(hash)) if hash.starts_with("$2") => bcrypt_cost(hash),
        _ => None,
    });
    hashes.max()
}

/// The hash of some password, for users that do not exist.
fn stand_in() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| hash("no password").unwrap_or_default())
}

pub(super) fn hash(password: &str) -> Result<String, String> {
    let hashed = Argon2::default().hash_password(password.as_bytes());
    hashed.map(|hash| hash.to_string()).map_err(|error| error.to_string())
}

const BCRYPT_BYTES_MAX: usize = 72;
/// Logarithm of the number of rounds: at 14, a login takes about a second of a processor; at 31, it would take a day.
const BCRYPT_COST_MAX: u32 = 14;

#[cfg(test)]
mod tests {
    use kv_state_machine::AuthOperation;

    use super::*;

    fn bcrypt(password: &str, cost: u32) -> String {
        bcrypt::hash_with_salt(password, cost, [1; 16]).unwrap().to_string()
    }

    fn auth(hashes: &[&str]) -> AuthState {
        let mut auth = AuthState::default();
        for hash in hashes {
            let password = Password::Hash((*hash).to_owned());
            auth.execute(&AuthOperation::AddUser { user: (*hash).to_owned(), password }).unwrap();
        }
        auth
    }

    fn is_right_alone(hash: &str, password: &str) -> bool {
        is_right(Some(hash), password, &AuthState::default()).0
    }

    #[test]
    fn password_is_right_for_its_hash_only() {
        let hash = hash("secret").unwrap();
        assert!(hash.starts_with("$argon2id$"), "{hash}");
        assert!(is_right_alone(&hash, "secret") && !is_right_alone(&hash, "Secret"));
        assert!(!is_right_alone("no hash", "secret"));
        assert!(!is_right(None, "no password", &AuthState::default()).0);
    }

    #[test]
    fn hash_of_bcrypt_is_verified_up_to_72_bytes() {
        let long = "x".repeat(BCRYPT_BYTES_MAX);
        let hash = bcrypt(&long, 4);
        assert!(is_bcrypt(&hash) && !is_bcrypt("$2a$") && !is_bcrypt("x"));
        assert!(is_right_alone(&hash, &long));
        assert!(!is_right_alone(&hash, &format!("{long}y")), "the algorithm ignores what follows");
    }

    #[test]
    fn hash_of_bcrypt_that_takes_too_long_is_refused() {
        let hash = bcrypt("secret", 4);
        let of_cost = |cost: &str| hash.replacen("$04$", cost, 1);
        assert!(is_bcrypt(&of_cost("$14$")));
        assert!(!is_bcrypt(&of_cost("$15$")) && !is_bcrypt(&of_cost("$31$")));
        assert!(!is_right_alone(&of_cost("$31$"), "secret"), "it is not computed");
    }

    #[test]
    fn failed_login_takes_the_same_work_for_every_user_and_for_none() {
        let (argon2, low, high) = (hash("a").unwrap(), bcrypt("b", 4), bcrypt("c", 7));
        let auth = auth(&[&argon2, &low, &high]);
        let expected = Work { argon2: 1, bcrypt_rounds: 1 << 7 };
        for hash in [None, Some(&*argon2), Some(&low), Some(&high), Some("no hash"), Some("$2a$31$x")] {
            for password in ["wrong", &"long".repeat(100)] {
                assert_eq!(is_right(hash, password, &auth), (false, expected), "{hash:?}");
            }
        }
        assert!(is_right(Some(&low), "b", &auth).0);
    }

    #[test]
    fn store_without_hashes_of_bcrypt_computes_none() {
        let argon2 = hash("a").unwrap();
        let auth = auth(&[&argon2]);
        for hash in [None, Some(&*argon2)] {
            assert_eq!(is_right(hash, "wrong", &auth), (false, Work { argon2: 1, bcrypt_rounds: 0 }));
        }
    }
}
