//! etcd's API on the port of the clients: gRPC and JSON, beside Thrift.

mod auth;
pub(crate) mod clients;
mod cluster;
mod gateway;
mod kv;
mod lease;
mod lock;
mod logins;
mod maintenance;
mod members;
mod metrics;
mod watch;
