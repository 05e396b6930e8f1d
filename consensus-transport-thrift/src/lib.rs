//! Messages between nodes as Thrift over TCP: framed transport, strict binary protocol, `idl/consensus.thrift`.
//!
//! ```text
//!            ┌ connection for messages: hello, then oneway deliver, deliver, ...   (many in flight)
//! node A ────┤                                                                        ────▶ node B
//!            └ connection for snapshots: hello, then snapshot_chunk / answer, ...
//! ```
//! A connection begins with a hello in which both say who they are: node, log storage, cluster, message formats. Nodes of
//! two clusters never exchange a message. [`probe`] asks a node who it is; [`founding`] decides with that whether a node
//! with an empty log may begin a cluster.
//!
//! Each node calls each other one; what B says to A goes over B's own connections. A connection that breaks is made
//! anew, with back-off; names are resolved each time. What a peer can make this end allocate is bounded by the frame
//! limit, and by 4 KiB before it has said who it is.
//!
//! What this is *not*: authenticated or encrypted. It belongs on a network that only the nodes reach.
//!
//! ```no_run
//! # async fn start() -> Result<(), Box<dyn std::error::Error>> {
//! use consensus_core::{NetworkTransport, NodeId};
//! use consensus_transport_thrift::{ThriftConfig, ThriftTransport};
//!
//! let config = ThriftConfig::new(NodeId(1), "0.0.0.0:10090".parse()?);
//! let transport = ThriftTransport::bind(config).await?;
//! transport.set_endpoint(NodeId(2), "db2.example:10090".parse()?);
//! # Ok(())
//! # }
//! ```

mod calls;
mod chronicle;
mod connection;
mod convert;
pub mod founding;
pub mod framing;
#[doc(hidden)]
pub mod fuzzing;
#[rustfmt::skip]
mod generated;
mod identity;
mod peer;
mod probe;
mod progress;
mod repeats;
mod server;
pub mod testing;
mod transport;

pub use connection::{configure, connect};
pub use identity::{Founders, PeerIdentity, PeerState, Standing};
pub use probe::probe;
pub use transport::{ThriftConfig, ThriftTransport};
