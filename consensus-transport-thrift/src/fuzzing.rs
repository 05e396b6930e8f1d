//! For the crate `fuzz`: what a node makes of the frames of others, and how it writes them.

use bytes::Bytes;
use consensus_core::{ClusterId, Message, SnapshotAck, SnapshotChunk};

use crate::{
    calls,
    convert::{
        ack_from_wire, ack_to_wire, chunk_from_wire, chunk_to_wire, message_from_wire, message_to_wire,
    },
    framing::describe,
    generated::{Hello, Identity},
    identity::description_from_wire,
};

/// A call on the consensus port.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    Describe(Asker),
    Hello(Greeting),
    Deliver(Message),
    SnapshotChunk(i32, SnapshotChunk),
    Unknown(String),
}

/// Who asks this node who it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Asker(Identity);

impl Asker {
    pub fn new(cluster: &str) -> Self {
        Self(identity(cluster))
    }
}

fn identity(cluster: &str) -> Identity {
    let cluster_name = cluster.to_owned();
    Identity { format_min: 1, format_max: 1, cluster_name, cluster: 7, node_id: 1, storage: 8 }
}

/// What a connection begins with.
#[derive(Clone, Debug, PartialEq)]
pub struct Greeting(Hello);

impl Greeting {
    pub fn new(cluster: &str, endpoint: Option<&str>) -> Self {
        let endpoint = endpoint.map(str::to_owned);
        Self(Hello { caller: identity(cluster), callee: 2, endpoint, receipt_interval_ms: 125 })
    }
}

/// The call in a frame without its length.
pub fn read_call(frame: &[u8]) -> Result<Call, String> {
    let (sequence, call) = calls::read_call(frame).map_err(|error| describe(&error))?;
    Ok(match call {
        calls::Call::Describe(asker) => Call::Describe(Asker(asker)),
        calls::Call::Hello(hello) => Call::Hello(Greeting(hello)),
        calls::Call::Deliver(message, _) => Call::Deliver(message_from_wire(message)?),
        calls::Call::SnapshotChunk(chunk, _) => Call::SnapshotChunk(sequence, chunk_from_wire(chunk)?),
        calls::Call::Unknown(name) => Call::Unknown(name),
    })
}

/// A call as a frame with its length; `None` for what nobody calls.
pub fn write_call(call: Call) -> Option<Bytes> {
    let frame = match call {
        Call::Describe(Asker(asker)) => calls::describe(asker),
        Call::Hello(Greeting(hello)) => calls::hello(hello),
        Call::Deliver(message) => calls::deliver(message_to_wire(message).ok()?, CLUSTER),
        Call::SnapshotChunk(sequence, chunk) => {
            calls::snapshot_chunk(sequence, chunk_to_wire(chunk), CLUSTER)
        }
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
    calls::read_hello_answer(frame).map(drop).map_err(|error| describe(&error))
}

/// What the callee says of itself to one that asks, and of what it has received.
pub fn read_what_a_callee_says(frame: &[u8]) -> Result<(), String> {
    let _ = calls::read_received(frame);
    description_from_wire(calls::read_description(frame).map_err(|error| describe(&error))?).map(drop)
}

/// The answer to a greeting as a frame with its length.
pub fn write_hello_answer(refused: Option<&str>) -> Option<Bytes> {
    let answer = refused.map_or_else(|| Ok(identity("default")), |why| Err(why.to_owned()));
    calls::answer_hello(0, answer).ok()
}

const CLUSTER: ClusterId = ClusterId(7);
