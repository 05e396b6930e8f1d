//! Asking a node who it is.

use std::{io, time::Duration};

use consensus_core::{ClusterId, Endpoint, NodeId, StorageId, TransportError};
use tokio::{io::AsyncWriteExt, time::timeout};

use crate::{
    PeerIdentity, calls,
    connection::connect,
    convert::signed,
    framing, generated as wire,
    identity::{FORMATS, Own, description_from_wire},
    progress::next_frame,
};

/// Asks the node that listens at `endpoint` who it is, within `patience`. Whoever asks need not be a member, and the answer
/// tells nothing of the asker ([`PeerIdentity::knows_asker`] is `None`).
///
/// # Errors
/// There is no answer, or none that a node of this library gives.
pub async fn probe(endpoint: &Endpoint, patience: Duration) -> Result<PeerIdentity, TransportError> {
    let nobody = wire::Identity {
        format_min: *FORMATS.start(),
        format_max: *FORMATS.end(),
        cluster_name: String::new(),
        cluster: signed(ClusterId::NONE.0),
        node_id: signed(NodeId(u64::MAX).0),
        storage: signed(StorageId(0).0),
    };
    ask(nobody, endpoint, patience).await
}

/// The same as the node that this is: the answer says what is known of it.
pub(crate) async fn probe_as(
    own: &Own,
    endpoint: &Endpoint,
    patience: Duration,
) -> Result<PeerIdentity, TransportError> {
    ask(own.identity(), endpoint, patience).await
}

async fn ask(
    asker: wire::Identity,
    endpoint: &Endpoint,
    patience: Duration,
) -> Result<PeerIdentity, TransportError> {
    let io = |source| TransportError::Io { context: format!("asking {endpoint} who it is"), source };
    let exchange = async {
        let stream = connect(endpoint, patience).await?;
        let (reader, mut writer) = stream.into_split();
        let frame = calls::describe(asker).map_err(|error| invalid(framing::describe(&error)))?;
        writer.write_all(&frame).await?;
        let mut answers = framing::reader(reader, ANSWER_BYTES_MAX);
        let answer = next_frame(&mut answers).await?;
        let answer = calls::read_description(&answer).map_err(|error| invalid(framing::describe(&error)))?;
        description_from_wire(answer).map_err(invalid)
    };
    timeout(patience, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(io)
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Room for an answer: some thousand founders.
const ANSWER_BYTES_MAX: usize = 64 << 10;
