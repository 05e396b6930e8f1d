//! The flags but those of TLS and users.

use super::{
    Effect::{Absent, Becomes, Sets, SetsAlways, Unneeded},
    Flag,
    Kind::{Bool, Bytes, Choice, Duration, ListenUrls, Milliseconds, Number, Retention, Signed, Text, Urls},
    flags,
};

pub(super) const FLAGS: &[Flag] = flags! {
    Member {
        "name" Text, "default" => Becomes("`name` of `[[nodes]]`"); "name of the member; the ids of a new cluster follow the order of its members' names";
        "data-dir" Text, "" => Becomes("`data_dir`"); "directory of the log and the state, by default NAME.etcd; a directory with etcd's data is refused";
        "wal-dir" Text, "" => Absent; "log and state are folders of the data directory: mount a disk at its log/ before the first start";
        "listen-client-urls" ListenUrls, "http://localhost:2379" => Becomes("`listen_host`, `--port`"); "where the member listens for clients: any number of URLs, with addresses of this machine";
        "listen-client-http-urls" ListenUrls, "" => Becomes("`listen_host`, `--port`"); "where the member also listens for clients; gRPC, JSON and Thrift are served at all their URLs";
        "advertise-client-urls" Urls, "http://localhost:2379" => Becomes("`client_endpoint` of `[[nodes]]`"); "where clients and the other members, which forward to the leader, reach the member: the first URL that is of use on other machines, else the host of the peer URL with the port where it listens for clients";
        "listen-peer-urls" ListenUrls, "http://localhost:2380" => Becomes("`listen_host`, `consensus_endpoint`"); "where the member listens for other members: one URL";
        "initial-advertise-peer-urls" Urls, "http://localhost:2380" => Becomes("`consensus_endpoint` of `[[nodes]]`"); "where other members reach the member: one URL; ignored once the member has data";
        "initial-cluster" Text, "default=http://localhost:2380" => Becomes("`[[nodes]]`"); "members of a new cluster, with one peer URL each; by default this member alone; ignored once the member has data";
        "initial-cluster-state" Choice(&["new", "existing"]), "new" => Becomes("`join`"); "new, or existing: the other members are asked for the id of the member with this one's peer URL; ignored once the member has data";
        "initial-cluster-token" Text, "etcd-cluster" => Becomes("`cluster_name`"); "begins the name of the cluster, which has a hash of the initial cluster too: members of a new cluster must have the same of both; ignored once the member has data";
        "force-new-cluster" Bool, "false" => Becomes("`--force-new-cluster`"); "makes a member with data the only one of its cluster, and starts it; remove it afterwards: it is refused once other members were added";
        "strict-reconfig-check" Bool, "true" => Unneeded; "always: a change that would leave no quorum is refused";
        "max-learners" Signed, "1" => Unneeded; "any number of learners is allowed";
        "config-file" Text, "" => Becomes("`--config`"); "etcd's file, YAML or JSON; other flags and variables are ignored then";
        "version" Bool, "false" => Becomes("`--version`"); "print the version";
        "discovery" Text, "" => Absent; DISCOVERY;
        "discovery-token" Text, "" => Absent; DISCOVERY;
        "discovery-endpoints" Text, "" => Absent; DISCOVERY;
        "discovery-srv" Text, "" => Absent; DISCOVERY;
        "discovery-srv-name" Text, "" => Absent; DISCOVERY;
        "discovery-proxy" Text, "" => Absent; DISCOVERY;
        "discovery-fallback" Choice(&["exit", "proxy"]), "exit" => Unneeded; WITH_DISCOVERY;
        "discovery-dial-timeout" Duration, "2s" => Unneeded; WITH_DISCOVERY;
        "discovery-request-timeout" Duration, "5s" => Unneeded; WITH_DISCOVERY;
        "discovery-keepalive-time" Duration, "2s" => Unneeded; WITH_DISCOVERY;
        "discovery-keepalive-timeout" Duration, "6s" => Unneeded; WITH_DISCOVERY;
        "discovery-insecure-transport" Bool, "true" => Unneeded; WITH_DISCOVERY;
        "discovery-insecure-skip-tls-verify" Bool, "false" => Unneeded; WITH_DISCOVERY;
        "discovery-cert" Text, "" => Unneeded; WITH_DISCOVERY;
        "discovery-key" Text, "" => Unneeded; WITH_DISCOVERY;
        "discovery-cacert" Text, "" => Unneeded; WITH_DISCOVERY;
        "discovery-user" Text, "" => Unneeded; WITH_DISCOVERY;
        "discovery-password" Text, "" => Unneeded; WITH_DISCOVERY;
    }
    Consensus {
        "heartbeat-interval" Milliseconds, "100" => Sets("heartbeat_interval"); "interval of the leader's heartbeats, in milliseconds";
        "election-timeout" Milliseconds, "1000" => SetsAlways("election_timeout"); "time without a leader after which an election starts, in milliseconds; kv-server alone has half of etcd's default";
        "pre-vote" Bool, "true" => Unneeded; "always";
        "initial-election-tick-advance" Bool, "true" => Unneeded; "a node that hears no leader starts an election after one election timeout";
        "snapshot-count" Number, "10000" => Sets("compact_after_entries"); "number of entries after which the log is compacted; `compact_after_size` counts too, and a snapshot is taken when a follower needs one";
        "snapshot-catchup-entries" Number, "5000" => Sets("compact_keep_entries"); "number of entries that are kept for slow followers; `compact_keep_size` counts too";
        "unsafe-no-fsync" Bool, "false" => Unneeded; "every write is synced all the same";
        "max-snapshots" Number, "5" => Unneeded; "files that are not needed are removed";
        "max-wals" Number, "5" => Unneeded; "files that are not needed are removed";
        "raft-read-timeout" Duration, "5s" => Unneeded; STALLED_CONNECTION;
        "raft-write-timeout" Duration, "5s" => Unneeded; STALLED_CONNECTION;
        "socket-reuse-port" Bool, "false" => Absent; "two processes cannot listen at one port";
        "socket-reuse-address" Bool, "false" => Unneeded; "always";
    }
    Store {
        "quota-backend-bytes" Signed, "0" => Becomes("`quota_size`"); "size of the store from which on it takes no more data; 0 is 2 GiB as in etcd, negative is no quota; kv-server alone has no quota by default";
        "auto-compaction-mode" Choice(&["periodic", "revision"]), "periodic" => Sets("auto_compaction_mode"); "what the retention counts";
        "auto-compaction-retention" Retention, "0" => Sets("auto_compaction_retention"); "history that is kept; 0: no automatic compaction";
        "max-txn-ops" Number, "128" => Sets("transaction_operations_max"); "greatest number of operations in a transaction, at most 4096";
        "max-request-bytes" Bytes, "1572864" => Sets("request_size"); "greatest size of a request, at most 32 MiB";
        "watch-progress-notify-interval" Duration, "10m" => Sets("watch_progress_interval"); "time without a change after which a watch is told of progress";
        "memory-mlock" Bool, "false" => Absent; "let the service manager lock memory, or turn swap off";
        "backend-bbolt-freelist-type" Text, "map" => Unneeded; ROCKSDB;
        "backend-batch-interval" Duration, "0s" => Unneeded; ROCKSDB;
        "backend-batch-limit" Signed, "0" => Unneeded; ROCKSDB;
        "compaction-batch-limit" Signed, "1000" => Unneeded; COMPACTION;
        "compaction-sleep-interval" Duration, "0s" => Unneeded; COMPACTION;
        "bootstrap-defrag-threshold-megabytes" Number, "0" => Unneeded; "nothing is to be defragmented";
        "corrupt-check-time" Duration, "0s" => Sets("state_check_interval"); "interval at which the nodes compare their states";
        "compact-hash-check-time" Duration, "1m" => Unneeded; "only with the feature CompactHashCheck, which is refused";
        "warning-apply-duration" Duration, "100ms" => Unneeded; SLOW;
        "warning-unary-request-duration" Duration, "300ms" => Sets("slow_request_limit"); "duration from which on a request is logged as slow; kv-server has 500ms by default";
        "v2-deprecation" Text, "write-only" => Unneeded; "there is no v2";
        "downgrade-check-time" Duration, "5s" => Unneeded; "there are no downgrades to check for";
        "feature-gates" Text, "" => Becomes("none"); "CompactHashCheck, InitialCorruptCheck and AllAlpha are refused: `kvctl hash` compares the nodes; the others have no effect";
    }
    Clients {
        "max-concurrent-streams" Number, "4294967295" => Sets("streams_max"); "greatest number of streams of a connection; kv-server has 10000 by default, and `clients_max` bounds the connections";
        "grpc-keepalive-interval" Duration, "2h" => Unneeded; KEEPALIVE;
        "grpc-keepalive-timeout" Duration, "20s" => Unneeded; KEEPALIVE;
        "grpc-keepalive-min-time" Duration, "5s" => Unneeded; "clients may ping as often as they like";
        "enable-grpc-gateway" Bool, "true" => Unneeded; "always";
        "cors" Text, "*" => Absent; "put a proxy before the server that checks the origin";
        "host-whitelist" Text, "*" => Absent; "put a proxy before the server that checks the host";
        "enable-pprof" Bool, "false" => Absent; "there are no profiles";
        "metrics" Choice(&["basic", "extensive"]), "basic" => Sets("metrics"); "what is measured; extensive adds the duration of every call and of every stage of a write";
        "listen-metrics-urls" ListenUrls, "" => Becomes("none"); "serves /metrics, /health, /livez, /readyz and /version there";
        "enable-distributed-tracing" Bool, "false" => Absent; "there is no tracing";
        "distributed-tracing-address" Text, "localhost:4317" => Unneeded; TRACING;
        "distributed-tracing-service-name" Text, "etcd" => Unneeded; TRACING;
        "distributed-tracing-instance-id" Text, "" => Unneeded; TRACING;
        "distributed-tracing-sampling-rate" Signed, "0" => Unneeded; TRACING;
    }
    Logging {
        "log-level" Choice(&["debug", "info", "warn", "error", "dpanic", "panic", "fatal"]), "info" => Becomes("`--log`"); "what is logged; panic and fatal are as error";
        "log-format" Choice(&["json", "console"]), "json" => Becomes("`--log-format`"); "lines of JSON with the keys of zap, or text, as kv-server alone writes";
        "log-outputs" Text, "default" => Becomes("none"); "stderr, stdout, or files; default and systemd/journal are stderr, which the service manager keeps";
        "logger" Choice(&["zap"]), "zap" => Unneeded; "lines have zap's format with --log-format json";
        "enable-log-rotation" Bool, "false" => Absent; "log to stderr and let the service manager rotate";
        "log-rotation-config-json" Text, "" => Unneeded; "only with --enable-log-rotation, which is refused";
    }
};

const DISCOVERY: &str = "name the members with --initial-cluster";
const WITH_DISCOVERY: &str = "only with a discovery service, which is refused";
const STALLED_CONNECTION: &str =
    "a connection on which a node hears nothing for an election timeout is replaced";
const ROCKSDB: &str = "the store is RocksDB";
const COMPACTION: &str = "compaction gives way to other work by itself";
const SLOW: &str = "a slow request is logged with the time of its stages, of which applying is one";
const KEEPALIVE: &str = "2 hours and 20 s, as etcd's defaults; TCP finds clients that are gone within 20 s";
const TRACING: &str = "only with --enable-distributed-tracing, which is refused";
