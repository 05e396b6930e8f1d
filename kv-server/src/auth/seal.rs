//! Seals: what has one was made by a node that has the replicated key.

use hmac::{Hmac, KeyInit, Mac};
use kv_state_machine::{AuthSecret, SECRET_BYTES_MIN};
use sha2::Sha256;

/// HMAC-SHA-256 of a request between nodes.
pub(crate) type Seal = [u8; SEAL_BYTES];

/// Seals a request between nodes; `None` without a key: authentication was never enabled, as far as this node knows. The
/// `context` is what the seal is bound to, beside the request.
pub(crate) fn seal(secret: &AuthSecret, context: &[u8; CONTEXT_BYTES], request: &[u8]) -> Option<Seal> {
    is_key(secret).then(|| started(secret, BETWEEN_NODES, &[context, request]).finalize().into_bytes().into())
}

/// Whether a node with the same key sealed a request.
pub(crate) fn is_sealed(
    secret: &AuthSecret,
    context: &[u8; CONTEXT_BYTES],
    request: &[u8],
    seal: &Seal,
) -> bool {
    is_key(secret) && started(secret, BETWEEN_NODES, &[context, request]).verify_slice(seal).is_ok()
}

fn is_key(secret: &AuthSecret) -> bool {
    secret.0.len() >= SECRET_BYTES_MIN
}

/// `domain` keeps what is signed for one purpose from being taken for another.
pub(super) fn mac(secret: &AuthSecret, domain: &[u8], bytes: &[u8]) -> Seal {
    started(secret, domain, &[bytes]).finalize().into_bytes().into()
}

/// In a time that does not depend on where the two differ.
pub(super) fn is_right(secret: &AuthSecret, domain: &[u8], bytes: &[u8], found: &Seal) -> bool {
    started(secret, domain, &[bytes]).verify_slice(found).is_ok()
}

/// All parts but the last one have a fixed length.
fn started(secret: &AuthSecret, domain: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&secret.0).expect("HMAC takes keys of any length");
    mac.update(domain);
    for part in parts {
        mac.update(part);
    }
    mac
}

pub(super) const SEAL_BYTES: usize = 32;
/// Bytes of what a seal is bound to: the id of a node, a challenge, and a number.
const CONTEXT_BYTES: usize = 8 + 32 + 8;
const BETWEEN_NODES: &[u8] = b"kv between nodes";
