//! For the crate `fuzz`: what a node makes of the frames of others, and how it writes them.

use bytes::Bytes;
use consensus_core::{Message, SnapshotAck, SnapshotChunk};

use crate::{
    calls,
    convert::{
        ack_from_wire, ack_to_wire, chunk_from_wire, chunk_to_wire, message_from_wire, message_to_wire,
    },
    framing::describe,
    generated::Hello,
};

/// A call on the consensus port.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    Hello(Greeting),
    Deliver(Message),
    SnapshotChunk(i32, SnapshotChunk),
    Unknown(String),
}

/// What a connection begins with.
#[derive(Clone, Debug, PartialEq)]
pub struct Greeting(Hello);

impl Greeting {
    pub fn new(cluster: &str, endpoint: Option<&str>) -> Self {
        let endpoint = endpoint.map(str::to_owned);
        let cluster = cluster.to_owned();
        Self(Hello { format: 1, cluster, node_id: 1, callee: 2, endpoint, receipt_interval_ms: 125 })
    }
}

/// The call in a frame without its length.
pub fn read_call(frame: &[u8]) -> Result<Call, String> {
    let (sequence, call) = calls::read_call(frame).map_err(|error| describe(&error))?;
    Ok(match call {
        calls::Call::Hello(hello) => Call::Hello(Greeting(hello)),
        calls::Call::Deliver(message) => Call::Deliver(message_from_wire(message)?),
        calls::Call::SnapshotChunk(chunk) => Call::SnapshotChunk(sequence, chunk_from_wire(chunk)?),
        calls::Call::Unknown(name) => Call::Unknown(name),
    })
}

/// A call as a frame with its length; `None` for what nobody calls.
pub fn write_call(call: Call) -> Option<Bytes> {
    let frame = match call {
        Call::Hello(Greeting(hello)) => calls::hello(hello),
        Call::Deliver(message) => calls::deliver(message_to_wire(message).ok()?),
        Call::SnapshotChunk(sequence, chunk) => calls::snapshot_chunk(sequence, chunk_to_wire(chunk)),
        Call::Unknown(_) => return None,
    };
    frame.ok()
}

/// The answer to a chunk in a frame without its length.
pub fn read_chunk_answer(frame: &[u8]) -> Result<(i32, SnapshotAck), String> {
    let (sequence, ack) = calls::read_chunk_answer(frame).map_err(|error| describe(&error))?;
    Ok((sequence, ack_from_wire(ack)?))
}

/// The answer to a chunk as a frame with its length.
pub fn write_chunk_answer(sequence: i32, ack: SnapshotAck) -> Option<Bytes> {
    calls::answer_chunk(sequence, ack_to_wire(ack)).ok()
}

/// The answer to a greeting: whether the node is taken, or what a refusal says.
pub fn read_hello_answer(frame: &[u8]) -> Result<(), String> {
    calls::read_hello_answer(frame).map_err(|error| describe(&error))
}

/// The answer to a greeting as a frame with its length.
pub fn write_hello_answer(refused: Option<&str>) -> Option<Bytes> {
    calls::answer_hello(0, refused.map(str::to_owned)).ok()
}
