//! Entry points for the fuzz targets: decodes and encodes the frames that nodes exchange.

use bytes::Bytes;
use consensus_core::{ClusterId, Message, SnapshotAck, SnapshotChunk};

use crate::{
    calls,
    convert::{
        ack_from_wire, ack_to_wire, chunk_from_wire, chunk_to_wire, message_from_wire, message_to_wire,
    },
    framing::error_text,
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

/// Identity of a node that sends a probe.
#[derive(Clone, Debug, PartialEq)]
pub struct Asker(Identity, Option<String>);

impl Asker {
    pub fn new(cluster: &str) -> Self {
        Self(identity(cluster), None)
    }
}

fn identity(cluster: &str) -> Identity {
    let cluster_name = cluster.to_owned();
    Identity {
        format_min: 1,
        format_max: 1,
        cluster_name,
        cluster: 7,
        node_id: 1,
        storage: 8,
        process: Some(9),
    }
}

/// The hello at the start of a connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Greeting(Hello);

impl Greeting {
    pub fn new(cluster: &str, endpoint: Option<&str>) -> Self {
        let endpoint = endpoint.map(str::to_owned);
        Self(Hello { caller: identity(cluster), callee: 2, endpoint, receipt_interval_ms: 125 })
    }
}

/// Decodes a call from a frame without its length.
pub fn read_call(frame: &[u8]) -> Result<Call, String> {
    let (sequence, call) = calls::read_call(frame).map_err(|error| error_text(&error))?;
    Ok(match call {
        calls::Call::Describe(asker, endpoint) => Call::Describe(Asker(asker, endpoint)),
        calls::Call::Hello(hello) => Call::Hello(Greeting(hello)),
        calls::Call::Deliver(message, _) => Call::Deliver(message_from_wire(message)?),
        calls::Call::SnapshotChunk(chunk, _) => Call::SnapshotChunk(sequence, chunk_from_wire(chunk)?),
        calls::Call::Unknown(name) => Call::Unknown(name),
    })
}

/// Encodes a call as a frame with its length; `None` for a call that nodes never send.
pub fn write_call(call: Call) -> Option<Bytes> {
    let frame = match call {
        Call::Describe(Asker(asker, endpoint)) => calls::encode_describe(asker, endpoint),
        Call::Hello(Greeting(hello)) => calls::encode_hello(hello),
        Call::Deliver(message) => calls::encode_deliver(message_to_wire(message).ok()?, CLUSTER),
        Call::SnapshotChunk(sequence, chunk) => {
            calls::encode_snapshot_chunk(sequence, chunk_to_wire(chunk), CLUSTER)
        }
        Call::Unknown(_) => return None,
    };
    frame.ok()
}

/// Decodes the response to a chunk from a frame without its length.
pub fn read_chunk_answer(frame: &[u8]) -> Result<(i32, SnapshotAck), String> {
    let (sequence, ack) = calls::read_chunk_reply(frame).map_err(|error| error_text(&error))?;
    Ok((sequence, ack_from_wire(ack)?))
}

/// Encodes the response to a chunk as a frame with its length.
pub fn write_chunk_answer(sequence: i32, ack: SnapshotAck) -> Option<Bytes> {
    calls::encode_chunk_reply(sequence, ack_to_wire(ack)).ok()
}

/// Decodes the response to a hello. The error of a refused hello is its reason.
pub fn read_hello_answer(frame: &[u8]) -> Result<(), String> {
    calls::read_hello_reply(frame).map(drop).map_err(|error| error_text(&error))
}

/// Decodes a receipt, and the response to a probe.
pub fn read_receipt_and_description(frame: &[u8]) -> Result<(), String> {
    let _ = calls::read_receipt(frame);
    description_from_wire(calls::read_describe_reply(frame).map_err(|error| error_text(&error))?).map(drop)
}

/// Encodes the response to a hello as a frame with its length.
pub fn write_hello_answer(refused: Option<&str>) -> Option<Bytes> {
    let answer = refused.map_or_else(|| Ok(identity("default")), |why| Err(why.to_owned()));
    calls::encode_hello_reply(0, answer).ok()
}

const CLUSTER: ClusterId = ClusterId(7);
