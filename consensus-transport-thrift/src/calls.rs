//! The calls of the service, as frames.

use bytes::Bytes;
use thrift::protocol::{TInputProtocol, TMessageType};

use crate::{
    convert::{signed, unsigned},
    framing,
    generated::{
        ConsensusDeliverArgs, ConsensusHelloArgs, ConsensusHelloResult, ConsensusReceivedArgs,
        ConsensusSnapshotChunkArgs, ConsensusSnapshotChunkResult, Hello, Message, Refused, SnapshotAck,
        SnapshotChunk,
    },
};

/// A call as it arrives.
pub(crate) enum Call {
    Hello(Hello),
    Deliver(Message),
    SnapshotChunk(SnapshotChunk),
    /// A method that the IDL does not have.
    Unknown(String),
}

pub(crate) fn hello(hello: Hello) -> thrift::Result<Bytes> {
    framing::encode("hello", TMessageType::Call, 0, |out| {
        ConsensusHelloArgs { hello }.write_to_out_protocol(out)
    })
}

pub(crate) fn deliver(message: Message) -> thrift::Result<Bytes> {
    let args = ConsensusDeliverArgs { message };
    framing::encode("deliver", TMessageType::OneWay, 0, |out| args.write_to_out_protocol(out))
}

pub(crate) fn snapshot_chunk(sequence: i32, chunk: SnapshotChunk) -> thrift::Result<Bytes> {
    let args = ConsensusSnapshotChunkArgs { chunk };
    framing::encode("snapshot_chunk", TMessageType::Call, sequence, |out| args.write_to_out_protocol(out))
}

/// The call in `frame` and its sequence number.
pub(crate) fn read_call(frame: &[u8]) -> thrift::Result<(i32, Call)> {
    let (identifier, mut protocol) = framing::open(frame)?;
    let call = match identifier.name.as_str() {
        "hello" => Call::Hello(ConsensusHelloArgs::read_from_in_protocol(&mut protocol)?.hello),
        "deliver" => Call::Deliver(ConsensusDeliverArgs::read_from_in_protocol(&mut protocol)?.message),
        "snapshot_chunk" => {
            Call::SnapshotChunk(ConsensusSnapshotChunkArgs::read_from_in_protocol(&mut protocol)?.chunk)
        }
        _ => Call::Unknown(identifier.name),
    };
    Ok((identifier.sequence_number, call))
}

pub(crate) fn answer_hello(sequence: i32, refused: Option<String>) -> thrift::Result<Bytes> {
    let result = ConsensusHelloResult { refused: refused.map(|message| Refused { message }) };
    framing::encode("hello", TMessageType::Reply, sequence, |out| result.write_to_out_protocol(out))
}

pub(crate) fn answer_chunk(sequence: i32, ack: SnapshotAck) -> thrift::Result<Bytes> {
    let result = ConsensusSnapshotChunkResult { result_value: Some(ack) };
    framing::encode("snapshot_chunk", TMessageType::Reply, sequence, |out| result.write_to_out_protocol(out))
}

/// A receipt: the callee has received this many bytes.
pub(crate) fn received(bytes: u64) -> thrift::Result<Bytes> {
    let args = ConsensusReceivedArgs { bytes: signed(bytes) };
    framing::encode(RECEIVED, TMessageType::OneWay, 0, |out| args.write_to_out_protocol(out))
}

/// The number of bytes if the frame is a receipt. What cannot be read is none; whoever reads it as an answer says why.
pub(crate) fn read_received(frame: &[u8]) -> Option<u64> {
    let (identifier, mut protocol) = framing::open(frame).ok()?;
    let is_receipt = identifier.name == RECEIVED && identifier.message_type == TMessageType::OneWay;
    let args = is_receipt.then(|| ConsensusReceivedArgs::read_from_in_protocol(&mut protocol))?;
    Some(unsigned(args.ok()?.bytes))
}

pub(crate) fn read_hello_answer(frame: &[u8]) -> thrift::Result<()> {
    let (identifier, mut protocol) = framing::open(frame)?;
    raise(identifier.message_type, &mut protocol)?;
    match ConsensusHelloResult::read_from_in_protocol(&mut protocol)?.refused {
        Some(Refused { message }) => Err(thrift::new_application_error(
            thrift::ApplicationErrorKind::Unknown,
            format!("refused: {message}"),
        )),
        None => Ok(()),
    }
}

pub(crate) fn read_chunk_answer(frame: &[u8]) -> thrift::Result<(i32, SnapshotAck)> {
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
