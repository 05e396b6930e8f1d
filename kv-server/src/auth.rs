//! Authentication of clients. The store decides about their permissions.
//!
//! Passwords are hashed and verified here, beside the tasks that serve others; only hashes are replicated. A client that has
//! authenticated itself gets a token, which every node accepts, also after a restart: it is signed with a key from the
//! replicated state (`AuthState::secret`). The same key seals requests between nodes, so that no client can name another
//! caller than itself.

mod password;
mod seal;
mod token;
mod verify;
mod waiting;

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use kv_state_machine::{AuthSecret, AuthState, Caller, Password, SECRET_BYTES_MIN};

pub(crate) use self::{
    password::{Passwords, Verified},
    seal::{Seal, is_sealed, seal},
    verify::is_bcrypt,
    waiting::Origin,
};

/// Reason that a client was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoginError {
    #[error("authentication is not enabled")]
    NotEnabled,
    #[error("authentication failed: the user does not exist, or has another password")]
    Failed,
    #[error("authentication failed: the user has no password, and authenticates itself by a certificate")]
    NoPassword,
    #[error("too many logins wait on this node, in all, from this address or as this user; try again later")]
    TooMany,
}

/// Verifies a password. Returns the caller on success.
///
/// # Errors
/// See [`LoginError`].
pub(crate) async fn login(
    passwords: &Passwords,
    auth: &Arc<AuthState>,
    origin: Origin,
    user: &str,
    password: String,
) -> Result<Caller, LoginError> {
    if !auth.is_enabled() {
        return Err(LoginError::NotEnabled);
    }
    if auth.user(user).is_some_and(|user| *user.password() == Password::None) {
        return Err(LoginError::NoPassword);
    }
    match passwords.verify(auth.clone(), origin, user, password).await {
        Verified::Right => Ok(Caller::user(user, auth.revision())),
        Verified::Wrong => Err(LoginError::Failed),
        Verified::TooMany => Err(LoginError::TooMany),
    }
}

/// Makes a token for a caller; `None` for one without a user.
pub(crate) fn token_for(auth: &AuthState, caller: &Caller) -> Option<String> {
    let Caller::User(admission) = caller else { return None };
    Some(token::issue(auth.secret(), &admission.user, admission.revision))
}

/// The caller that a token names; `None` if the token is not valid, or its user was deleted or has got another password.
pub(crate) fn caller_of(auth: &AuthState, token: &[u8]) -> Option<Caller> {
    let (user, revision) = token::read(auth.secret(), token)?;
    let is_valid = auth.user(&user).is_some_and(|user| revision >= user.since());
    is_valid.then(|| Caller::user(user, revision))
}

/// A new key for tokens.
///
/// # Errors
/// The operating system has no random numbers.
pub(crate) fn new_secret() -> Result<AuthSecret, getrandom::Error> {
    let mut bytes = [0; SECRET_BYTES_MIN];
    getrandom::fill(&mut bytes)?;
    Ok(AuthSecret(bytes.to_vec().into()))
}

/// Seconds since 1970, by this node's clock.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
