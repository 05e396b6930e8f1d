//! Messages between nodes as Thrift over TCP: framed transport, strict binary protocol, `idl/consensus.thrift`.
//!
//! ```text
//!            ┌ connection for messages: hello, then oneway deliver, deliver, ...   (many in flight)
//! node A ────┤                                                                        ────▶ node B
//!            └ connection for snapshots: hello, then snapshot_chunk / reply, ...
//! ```
//! A connection starts with a hello, in which both nodes identify themselves: node id, log storage, cluster, message formats.
//! Nodes of different clusters never exchange messages. [`probe`] asks a node for its identity, [`find_member`] also for the
//! member at an endpoint. [`founding`] uses such probes to decide whether a node with an empty log may bootstrap a cluster.
//!
//! Every node connects to every other node. Messages from B to A use B's own connections. A broken connection is replaced,
//! with back-off; names are resolved again for every attempt. The memory that a peer can make this node allocate is bounded
//! by the frame limit, and by 4 KiB before the peer has identified itself.
//!
//! With [`ThriftConfig::tls`] connections are encrypted, and nodes show each other certificates. Without it anybody who reaches
//! the port can claim to be a node: use it only on a network that no one but the nodes can reach.
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
mod connection;
mod connection_log;
mod convert;
pub mod founding;
pub mod framing;
#[doc(hidden)]
pub mod fuzzing;
#[rustfmt::skip]
mod generated;
mod identity;
mod measure;
mod peer;
mod probe;
mod receipts;
mod repeated_events;
mod server;
pub mod testing;
mod transport;

pub use connection::{configure, connect, connect_with};
pub use identity::{ClusterHistory, Founders, MemberAtEndpoint, PeerIdentity, PeerState};
pub use probe::{find_member, probe};
pub use transport::{ThriftConfig, ThriftTransport};
