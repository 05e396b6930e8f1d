//! For the crate `fuzz`: what the server makes of a configuration, and of the calls of clients.

use consensus_core::NodeId;
use kv_state_machine::{KvAnswer, KvCommand, KvError, KvRejection};
use kv_store_client::protocol::{Call, Fault, Reply};

pub use crate::etcd::fuzzing::{json as etcd_json, request as etcd_request};

use crate::{
    config::{self, ConfigError},
    convert, etcd_import, node,
    routing::{self, Request},
};

/// Settings of flags and a file, as text. The engine accepts what is accepted here.
///
/// # Errors
/// The message to the operator.
///
/// # Panics
/// The engine does not accept it.
pub fn configuration(flags: &[&str], file: &str) -> Result<String, String> {
    let settings = config::from_text(flags, file).map_err(|error| match error {
        ConfigError::CommandLine(error) => format!("command line: {error}"),
        error => error.to_string(),
    })?;
    if let Some(topology) = &settings.topology {
        let engine = node::raft_config(&settings, topology);
        assert_eq!(engine.validate(), Ok(()), "{settings:?}");
    }
    Ok(format!("{settings:?}"))
}

/// The command that a call becomes; `None` if it is none.
///
/// # Errors
/// As the client is told.
pub fn command(call: Call) -> Result<Option<KvCommand>, Fault> {
    Ok(match routing::request(call, 10_000)? {
        Request::Operation { operation, session, .. } => Some(KvCommand::new(session, operation)),
        _ => None,
    })
}

/// Reads a snapshot of etcd, without its checksum. Returns the number of leases, versions of keys, and changes of users.
///
/// # Errors
/// The message to the operator.
pub fn etcd_snapshot(bytes: &[u8]) -> Result<usize, String> {
    etcd_import::read(bytes).map_err(|error| error.to_string())
}

/// Returns the response to a client.
///
/// # Errors
/// The store refused.
pub fn reply(answer: Result<KvAnswer, KvRejection>) -> Result<Reply, Fault> {
    let answer = answer.map_err(|rejection| convert::fault(KvError::Rejected(rejection)))?;
    Ok(convert::reply(NodeId(1), answer))
}
