//! Tokens: the name of a user and the revision of auth by which it was admitted, with a signature.
//!
//! ```text
//! base64url of: version (1) revision of auth (8) time of issue in seconds (8) name, then HMAC-SHA-256 of these (32)
//! ```

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use kv_state_machine::{AuthSecret, SECRET_BYTES_MIN};

use super::seal::{self, SEAL_BYTES};

/// Issues a token.
pub(super) fn issue(secret: &AuthSecret, user: &str, revision: u64) -> String {
    let mut token = vec![VERSION];
    token.extend_from_slice(&revision.to_be_bytes());
    token.extend_from_slice(&super::now().to_be_bytes());
    token.extend_from_slice(user.as_bytes());
    let seal = seal::mac(secret, DOMAIN, &token);
    token.extend_from_slice(&seal);
    URL_SAFE_NO_PAD.encode(token)
}

/// User and revision of a token; `None` if its signature is wrong.
pub(super) fn read(secret: &AuthSecret, token: &[u8]) -> Option<(String, u64)> {
    if secret.0.len() < SECRET_BYTES_MIN || token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let token = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (token, signature) = token.split_last_chunk::<SEAL_BYTES>()?;
    if !seal::is_right(secret, DOMAIN, token, signature) {
        return None;
    }
    let (&[VERSION], rest) = token.split_first_chunk::<1>()? else { return None };
    let (revision, rest) = rest.split_first_chunk::<8>()?;
    let (_issued, user) = rest.split_first_chunk::<8>()?;
    Some((String::from_utf8(user.to_vec()).ok()?, u64::from_be_bytes(*revision)))
}

const VERSION: u8 = 1;
const DOMAIN: &[u8] = b"kv token";
/// Longer ones are not decoded. HTTP headers are bounded, too.
const TOKEN_BYTES_MAX: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(fill: u8) -> AuthSecret {
        AuthSecret(vec![fill; SECRET_BYTES_MIN].into())
    }

    #[test]
    fn token_names_its_user_under_its_own_key_only() {
        let token = issue(&secret(1), "ann", 7);
        assert_eq!(read(&secret(1), token.as_bytes()), Some(("ann".to_owned(), 7)));
        assert_eq!(read(&secret(2), token.as_bytes()), None);
        assert_eq!(read(&AuthSecret::default(), token.as_bytes()), None);
        let with_empty_key = issue(&AuthSecret::default(), "ann", 7);
        assert_eq!(read(&AuthSecret::default(), with_empty_key.as_bytes()), None, "auth was never enabled");
    }

    #[test]
    fn changed_or_shortened_token_is_refused() {
        let token = issue(&secret(1), "ann", 7);
        let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(read(&secret(1), URL_SAFE_NO_PAD.encode(changed).as_bytes()), None, "byte {at}");
        }
        for len in 0..token.len() {
            assert_eq!(read(&secret(1), &token.as_bytes()[..len]), None, "{len} bytes");
        }
    }
}
