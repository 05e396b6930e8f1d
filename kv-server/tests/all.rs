//! The tests of the server and of `kvctl` in one program: it links and compiles in a small part of the time that one program for each
//! file would take.

mod common;

mod audit;
mod backup;
mod blackouts;
mod check_config;
mod client;
mod debug_bundle;
mod dev;
mod disk;
mod etcd;
mod etcd_import;
mod etcd_start;
mod etcd_start_failures;
mod founding;
mod histories;
mod identities;
mod install;
mod kvctl;
mod limits;
mod logging;
mod low_disk;
mod manual;
mod members;
mod old_data;
mod operations;
mod polls;
mod processes;
mod quiet_logs;
mod read_only_disk;
mod security_page;
mod service_manager;
mod stalls;
mod state_check;
mod stock_client;
mod tls;
mod tls_changes;
mod witness;
