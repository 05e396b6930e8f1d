//! Encodes and decodes the calls of the Thrift service.

use bytes::Bytes;
use thrift::protocol::{TInputProtocol, TMessageType};

use consensus_core::ClusterId;

use crate::{
    convert::{signed, unsigned},
    framing,
    generated::{
        ConsensusDeliverArgs, ConsensusDescribeArgs, ConsensusDescribeResult, ConsensusHelloArgs,
        ConsensusHelloResult, ConsensusReceivedArgs, ConsensusSnapshotChunkArgs,
        ConsensusSnapshotChunkResult, Description, Hello, Identity, Message, Refused, SnapshotAck,
        SnapshotChunk,
    },
};

/// A decoded call.
pub(crate) enum Call {
    /// A probe: who asks, and the endpoint of the member that the asker wants to know.
    Describe(Identity, Option<String>),
    Hello(Hello),
    /// A message, and the cluster of its sender.
    Deliver(Message, ClusterId),
    SnapshotChunk(SnapshotChunk, ClusterId),
    /// A method that the IDL does not have.
    Unknown(String),
}

pub(crate) fn encode_describe(asker: Identity, endpoint: Option<String>) -> thrift::Result<Bytes> {
    let args = ConsensusDescribeArgs { asker, endpoint: endpoint.unwrap_or_default() };
    framing::encode("describe", TMessageType::Call, 0, |out| args.write_to_out_protocol(out))
}

pub(crate) fn encode_hello(hello: Hello) -> thrift::Result<Bytes> {
    let args = ConsensusHelloArgs { hello };
    framing::encode("hello", TMessageType::Call, 0, |out| args.write_to_out_protocol(out))
}

pub(crate) fn encode_deliver(message: Message, cluster: ClusterId) -> thrift::Result<Bytes> {
    let args = ConsensusDeliverArgs { message, cluster: signed(cluster.0) };
    framing::encode("deliver", TMessageType::OneWay, 0, |out| args.write_to_out_protocol(out))
}

pub(crate) fn encode_snapshot_chunk(
    sequence: i32,
    chunk: SnapshotChunk,
    cluster: ClusterId,
) -> thrift::Result<Bytes> {
    let args = ConsensusSnapshotChunkArgs { chunk, cluster: signed(cluster.0) };
    framing::encode("snapshot_chunk", TMessageType::Call, sequence, |out| args.write_to_out_protocol(out))
}

/// Decodes a call and its sequence number.
pub(crate) fn read_call(frame: &[u8]) -> thrift::Result<(i32, Call)> {
    let (identifier, mut protocol) = framing::open(frame)?;
    let input = &mut protocol;
    let call = match identifier.name.as_str() {
        "describe" => {
            let ConsensusDescribeArgs { asker, endpoint } =
                ConsensusDescribeArgs::read_from_in_protocol(input)?;
            Call::Describe(asker, Some(endpoint).filter(|endpoint| !endpoint.is_empty()))
        }
        "hello" => Call::Hello(ConsensusHelloArgs::read_from_in_protocol(input)?.hello),
        "deliver" => {
            let ConsensusDeliverArgs { message, cluster } =
                ConsensusDeliverArgs::read_from_in_protocol(input)?;
            Call::Deliver(message, ClusterId(unsigned(cluster)))
        }
        "snapshot_chunk" => {
            let args = ConsensusSnapshotChunkArgs::read_from_in_protocol(input)?;
            Call::SnapshotChunk(args.chunk, ClusterId(unsigned(args.cluster)))
        }
        _ => Call::Unknown(identifier.name),
    };
    Ok((identifier.sequence_number, call))
}

pub(crate) fn encode_describe_reply(sequence: i32, description: Description) -> thrift::Result<Bytes> {
    let result = ConsensusDescribeResult { result_value: Some(description) };
    framing::encode("describe", TMessageType::Reply, sequence, |out| result.write_to_out_protocol(out))
}

/// Encodes the callee's identity, or why it refuses the connection.
pub(crate) fn encode_hello_reply(sequence: i32, answer: Result<Identity, String>) -> thrift::Result<Bytes> {
    let result = match answer {
        Ok(callee) => ConsensusHelloResult { result_value: Some(callee), refused: None },
        Err(message) => ConsensusHelloResult { result_value: None, refused: Some(Refused { message }) },
    };
    framing::encode("hello", TMessageType::Reply, sequence, |out| result.write_to_out_protocol(out))
}

pub(crate) fn encode_chunk_reply(sequence: i32, ack: SnapshotAck) -> thrift::Result<Bytes> {
    let result = ConsensusSnapshotChunkResult { result_value: Some(ack) };
    framing::encode("snapshot_chunk", TMessageType::Reply, sequence, |out| result.write_to_out_protocol(out))
}

/// A receipt, which the callee sends to the caller on the same connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Receipt {
    /// Bytes that the callee has received on the connection.
    pub(crate) bytes: u64,
    /// Cluster of the callee.
    pub(crate) cluster: ClusterId,
}

pub(crate) fn encode_receipt(receipt: Receipt) -> thrift::Result<Bytes> {
    let args = ConsensusReceivedArgs { bytes: signed(receipt.bytes), cluster: signed(receipt.cluster.0) };
    framing::encode(RECEIVED, TMessageType::OneWay, 0, |out| args.write_to_out_protocol(out))
}

/// Decodes a receipt; `None` if the frame is not one. A damaged frame is reported when it is decoded as a reply.
pub(crate) fn read_receipt(frame: &[u8]) -> Option<Receipt> {
    let (identifier, mut protocol) = framing::open(frame).ok()?;
    let is_receipt = identifier.name == RECEIVED && identifier.message_type == TMessageType::OneWay;
    let args = is_receipt.then(|| ConsensusReceivedArgs::read_from_in_protocol(&mut protocol))?.ok()?;
    Some(Receipt { bytes: unsigned(args.bytes), cluster: ClusterId(unsigned(args.cluster)) })
}

pub(crate) fn read_describe_reply(frame: &[u8]) -> thrift::Result<Description> {
    let (identifier, mut protocol) = framing::open(frame)?;
    raise(identifier.message_type, &mut protocol)?;
    ConsensusDescribeResult::read_from_in_protocol(&mut protocol)?.ok_or()
}

pub(crate) fn read_hello_reply(frame: &[u8]) -> thrift::Result<Identity> {
    let (identifier, mut protocol) = framing::open(frame)?;
    raise(identifier.message_type, &mut protocol)?;
    let result = ConsensusHelloResult::read_from_in_protocol(&mut protocol)?;
    if let Some(Refused { message }) = result.refused {
        let kind = thrift::ApplicationErrorKind::Unknown;
        return Err(thrift::new_application_error(kind, format!("refused: {message}")));
    }
    result.ok_or()
}

pub(crate) fn read_chunk_reply(frame: &[u8]) -> thrift::Result<(i32, SnapshotAck)> {
    let (identifier, mut protocol) = framing::open(frame)?;
    raise(identifier.message_type, &mut protocol)?;
    let ack = ConsensusSnapshotChunkResult::read_from_in_protocol(&mut protocol)?.ok_or()?;
    Ok((identifier.sequence_number, ack))
}

fn raise(kind: TMessageType, protocol: &mut dyn TInputProtocol) -> thrift::Result<()> {
    match kind {
        TMessageType::Exception => {
            Err(thrift::Error::Application(thrift::Error::read_application_error_from_in_protocol(protocol)?))
        }
        _ => Ok(()),
    }
}

const RECEIVED: &str = "received";
