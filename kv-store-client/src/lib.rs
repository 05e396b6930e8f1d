//! The client side of the key-value service: `idl/kv.thrift` and `idl/admin.thrift` over framed, binary
//! Thrift.
//!
//! * [`KvClient`] - the client for programs. It finds the leader, follows it when it changes, retries, and
//!   never applies a write twice.
//! * [`Watch`] - a stream of changes of keys that resumes automatically.
//! * [`Lease`] - a lease that renews itself and detects its loss.
//! * [`Lock`], [`Leadership`] - locks and elections. They exclude etcd's clients that use the same names,
//!   too.
//! * [`Connection`] - one connection with many calls in flight, without retries.
//! * [`idl`], [`admin`] - the generated types.
//! * [`protocol`] - calls and replies as frames, for clients and servers.
//!
//! ```no_run
//! # async fn f() -> Result<(), Box<dyn std::error::Error>> {
//! use kv_store_client::{ClientConfig, KvClient};
//!
//! let client = KvClient::new(ClientConfig::new(vec!["localhost:9090".parse()?, "localhost:9091".parse()?]))?;
//! client.put("greeting", "hello").await?;
//! let found = client.get("greeting").await?;
//! assert_eq!(found.map(|kv| kv.value), Some(b"hello".to_vec()));
//! # Ok(()) }
//! ```

mod client;
mod connection;
#[rustfmt::skip]
pub mod admin;
#[rustfmt::skip]
pub mod idl;
pub mod protocol;
mod requests;
mod secrets;

pub use client::{
    ClientConfig, ClientError, Credentials, KvClient, Leadership, Lease, Lock, LockError, Watch, WatchError,
};
pub use connection::{CallError, Connection};
pub use requests::prefix_end;

// Compiles the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
