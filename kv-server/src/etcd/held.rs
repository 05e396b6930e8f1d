//! Room for responses, until they are written to their clients.
//!
//! A response is large only if it has pairs. The room that was reserved for it travels with the response, and then with the
//! bytes of its body, which HTTP/2 keeps for as long as the client takes nothing.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Response;
use kv_state_machine::KvAnswer;
use prost::Message;
use tonic::body::Body;

use crate::{answers::Room, call_log};

/// An answer of the store, with the room for it.
pub(super) struct Answered {
    pub(super) answer: KvAnswer,
    pub(super) room: Room,
}

/// Room in the extensions of a response.
#[derive(Clone)]
struct Held {
    _room: Arc<Room>,
}

/// Bytes that hold the room.
struct HeldBytes {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A response that holds the room for its message.
pub(super) fn respond<M: Message>(message: M, mut room: Room) -> tonic::Response<M> {
    call_log::note_response_bytes(|| message.encoded_len());
    if room.is_empty() {
        return tonic::Response::new(message);
    }
    room.settle(message.encoded_len());
    room.note_unread();
    let mut response = tonic::Response::new(message);
    response.extensions_mut().insert(Held { _room: Arc::new(room) });
    response
}

/// Moves the room that a response holds to the bytes of its body.
pub(super) fn until_written(mut response: Response<Body>) -> Response<Body> {
    take_room(&mut response)(response)
}

/// Takes the room out of a response, for another one that is made of it.
pub(super) fn take_room(
    response: &mut Response<Body>,
) -> impl FnOnce(Response<Body>) -> Response<Body> + use<> {
    let held = response.extensions_mut().remove::<Held>();
    move |made| match held {
        Some(held) => made.map(|body| hold(body, held)),
        None => made,
    }
}

fn hold(body: Body, held: Held) -> Body {
    Body::new(body.map_frame(move |frame| {
        let held = held.clone();
        frame.map_data(|bytes| Bytes::from_owner(HeldBytes { bytes, _held: held }))
    }))
}
