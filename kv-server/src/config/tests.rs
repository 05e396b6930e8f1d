use std::time::Duration;

use kv_state_machine::AutoCompaction;

use super::*;

fn settings(flags: &[&str], file: &str) -> Result<Settings, String> {
    from_text(flags, file).map_err(|error| error.to_string())
}

fn settings_with_environment(
    flags: &[&str],
    environment: &[(&str, &str)],
    file: &str,
) -> Result<Settings, String> {
    let flags = ["kv-server", "--config=cluster.toml"].into_iter().chain(flags.iter().copied());
    let variable =
        |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
    let settings = from_layers(flags.map(OsString::from), variable, file);
    settings.map_err(|error| error.to_string())
}

const EXAMPLE: &str = include_str!("../../../cluster_config.toml");

#[test]
fn example_file_works_unchanged_on_every_node() {
    for (flags, id, port) in
        [(&["--port", "9090"][..], 0, 9090), (&["--node-id", "1"], 1, 9091), (&["--node_id", "2"], 2, 9092)]
    {
        let settings = settings(flags, EXAMPLE).unwrap();
        assert_eq!((settings.node, settings.client_listen.port()), (NodeId(id), port));
        assert_eq!(settings.data_dir, PathBuf::from(format!("./data/node-{id}")));
        assert_eq!(settings.cluster.node_timeout, Duration::from_secs(10));
        let topology = settings.topology.unwrap();
        assert_eq!(topology.consensus_listen.port(), port + 1000);
        assert_eq!(topology.nodes.len(), 3);
    }
}

#[test]
fn retention_of_history_is_a_time_or_a_number_by_its_mode() {
    let of =
        |flags: &[&str], file: &str| settings(flags, file).map(|settings| settings.limits.auto_compaction());
    let hours = |hours: u64| Ok(Ok(Some(AutoCompaction::Periodic(Duration::from_secs(hours * 3600)))));
    assert_eq!(of(&[], ""), Ok(Ok(None)));
    assert_eq!(of(&["--auto-compaction-retention=2"], ""), hours(2));
    assert_eq!(of(&[], "[limits]\nauto_compaction_retention = \"5h\""), hours(5));
    let file = "[limits]\nauto_compaction_mode = \"revision\"\nauto_compaction_retention = 1000";
    assert_eq!(of(&[], file), Ok(Ok(Some(AutoCompaction::Revisions(1000)))));
    let wrong = of(&["--auto-compaction-mode=revision", "--auto-compaction-retention=5h"], "").unwrap_err();
    assert!(wrong.contains("auto-compaction-retention") && wrong.contains("number of revisions"), "{wrong}");
}

#[test]
fn server_without_file_is_standalone() {
    let settings = settings(&["--port", "7000"], "").unwrap();
    assert!(settings.topology.is_none());
    assert_eq!(settings.client_listen.to_string(), "127.0.0.1:7000");
}

#[test]
fn flags_beat_the_file_and_nodes_can_be_explicit() {
    let file = r#"
        [deployment]
        routing = "redirect"
        listen_host = "0.0.0.0"
        [[nodes]]
        id = 7
        client_endpoint = "[::1]:9000"
        consensus_endpoint = "[::1]:9500"
    "#;
    let flags = ["--node-id", "7", "--routing", "forward", "--node-timeout-ms", "3000"];
    let settings = settings(&flags, file).unwrap();
    assert_eq!(settings.deployment.routing, Routing::Forward);
    assert_eq!(settings.cluster.node_timeout, Duration::from_secs(3));
    assert_eq!(settings.client_listen.to_string(), "0.0.0.0:9000");
    assert_eq!(settings.topology.unwrap().nodes[&NodeId(7)].consensus.to_string(), "[::1]:9500");
}

#[test]
fn only_other_nodes_can_be_without_a_client_endpoint() {
    let file = r#"
        [[nodes]]
        id = 1
        name = "one"
        client_endpoint = "h:1"
        [[nodes]]
        id = 2
        consensus_endpoint = "h:2000"
    "#;
    let topology = settings(&["--node-id=1"], file).unwrap().topology.unwrap();
    let (one, two) = (&topology.nodes[&NodeId(1)], &topology.nodes[&NodeId(2)]);
    assert_eq!((one.name.as_deref(), one.consensus.port()), (Some("one"), 1001));
    assert_eq!((&two.client, two.consensus.port()), (&None, 2000));
    // The first configuration is the same on both nodes: it has what both know.
    let raft = crate::node::raft_config(&settings(&["--node-id=1"], file).unwrap(), &topology);
    let members = raft.bootstrap.unwrap();
    assert!(members.members().values().all(|member| member.client_endpoint.is_none()), "{members:?}");
    let error = settings(&["--node-id=2"], file).unwrap_err();
    assert!(error.contains("nodes.id = 2") && error.contains("needs a client_endpoint"), "{error}");
    let error = settings(&["--node-id=3"], &format!("{file}[[nodes]]\nid = 3")).unwrap_err();
    assert!(error.contains("nodes.id = 3") && error.contains("consensus_endpoint"), "{error}");
}

#[test]
fn first_of_flag_environment_file_default_counts() {
    let file = "[cluster]\nnode_timeout = \"20s\"\n";
    let variable = [("KV_NODE_TIMEOUT", "30s")];
    let timeout = |flags: &[&str], environment: &[(&str, &str)], file| {
        settings_with_environment(flags, environment, file).unwrap().cluster.node_timeout.as_secs()
    };
    assert_eq!(timeout(&["--node-timeout=40s"], &variable, file), 40);
    assert_eq!(timeout(&["--node-timeout-ms=40000"], &variable, file), 40);
    assert_eq!(timeout(&[], &variable, file), 30);
    assert_eq!(timeout(&[], &[("KV_NODE_TIMEOUT_MS", "30000")], file), 30);
    assert_eq!(timeout(&[], &[("KV_NODE_TIMEOUT", "")], file), 20);
    assert_eq!(timeout(&[], &[], file), 20);
    assert_eq!(timeout(&[], &[], ""), 10);
}

#[test]
fn list_in_the_environment_is_separated_by_commas() {
    let environment = [("KV_REPLICA_ENDPOINTS", "a:1,b:2,c:3"), ("KV_NODE_ID", "1"), ("KV_WITNESSES", "2")];
    let topology = settings_with_environment(&[], &environment, "").unwrap().topology.unwrap();
    assert_eq!((topology.nodes.len(), topology.witnesses.len()), (3, 1));
}

#[test]
fn old_names_with_units_are_accepted() {
    let old = "[deployment]\ninstance_id = 4\nsessions_max = 5\ndisk_reserve_mib = 1\n\
               [cluster]\nhealth_check_interval_ms = 1\nnode_timeout_ms = 2\nelection_timeout_ms = 4\n\
               heartbeat_interval_ms = 2\n\
               [log]\nstorage = \"rocksdb\"\ncompact_after_mib = 2\ncompact_keep_mib = 4\ncompact_hold_mib = 5\n\
               flight_recorder_mib = 6\nsnapshot_mib_per_second = 7\n";
    let new = "[deployment]\nnode_id = 4\n\
               [cluster]\nhealth_check_interval = \"1ms\"\nnode_timeout = \"2ms\"\nelection_timeout = \"4ms\"\n\
               heartbeat_interval = \"2ms\"\n\
               [log]\nlog_storage = \"rocksdb\"\ncompact_after_size = \"2MiB\"\ncompact_keep_size = \"4MiB\"\n\
               compact_hold_size = \"5MiB\"\nflight_recorder_size = \"6MiB\"\nsnapshot_rate = \"7MiB/s\"\n\
               [limits]\nsessions_max = 5\ndisk_reserve = \"1MiB\"\n";
    let (mut old, mut new) = (settings(&[], old).unwrap(), settings(&[], new).unwrap());
    // The lists have the lines of the file.
    assert!(old.listing.contains("node_id = 4  (cluster.toml, line 2)"), "{}", old.listing);
    old.listing.clear();
    new.listing.clear();
    assert_eq!(format!("{old:?}"), format!("{new:?}"));
    assert_eq!((new.log.snapshot_rate, new.limits.disk_reserve), (7 << 20, 1 << 20));
    for flag in ["--compact-hold-mib=6", "--compact-hold-size=6MiB"] {
        assert_eq!(settings(&[flag], "").unwrap().log.compact_hold_size, 6 << 20);
    }
}

#[test]
fn settings_of_the_log_reach_the_engine() {
    let file = format!("{EXAMPLE}[log]\ncompact_hold_size = \"5MiB\"\nsnapshot_rate = \"7MiB\"\n");
    let settings = settings(&["--node-id", "0", "--compact-hold-size", "6MiB"], &file).unwrap();
    let raft = crate::node::raft_config(&settings, settings.topology.as_ref().unwrap());
    assert_eq!((raft.compact_hold_bytes, raft.snapshot_bytes_per_second), (6 << 20, 7 << 20));
}

#[test]
fn ipv6_listen_host_is_accepted_with_and_without_brackets() {
    for host in ["[::]", "::"] {
        let from_flag = settings(&["--listen-host", host], "").unwrap();
        let from_file = settings(&[], &format!("[deployment]\nlisten_host = \"{host}\"")).unwrap();
        for settings in [from_flag, from_file] {
            assert_eq!(settings.client_listen.to_string(), "[::]:9090");
        }
    }
}

/// Flags, file, and words of the error.
type Wrong<'a> = (&'a [&'a str], &'a str, &'a [&'a str]);

#[track_caller]
fn refuses(cases: &[Wrong<'_>]) {
    for (flags, file, words) in cases {
        let error = settings(flags, file).unwrap_err();
        let missing: Vec<_> = words.iter().filter(|word| !error.contains(**word)).collect();
        assert!(missing.is_empty(), "{missing:?} in the error for {flags:?}, {file}: {error}");
    }
}

#[test]
fn unknown_key_is_refused_with_the_nearest_name() {
    refuses(&[
        (&[], "[deployment]\nnode = 1", &["cluster.toml, line 2", "node = 1", "expected one of", "node_id"]),
        (&[], "[deployment]\n\nnod_id = 1", &["line 3", "did you mean node_id?"]),
        (&[], "[deploymnt]\nnode_id = 1", &["line 1", "[deploymnt]", "did you mean deployment?", "nodes"]),
        (&[], "[cluster]\ncompact_keep_entries = 1", &["line 2", "this key belongs to [log]"]),
        (&[], "node_id = 1", &["line 1", "[node_id]", "unknown section"]),
        (&[], "[deployment]\nport = 1", &["port = 1", "unknown key"]),
        (&[], "cluster = 1", &["line 1", "it is a section"]),
        (&[], "[[nodes]]\nid = 1\nclient = \"a:1\"", &["cluster.toml", "client", "client_endpoint"]),
        (&["--node-ids=1"], "", &["--node-ids", "--node-id"]),
    ]);
}

#[test]
fn wrong_value_is_refused_with_place_key_and_what_is_allowed() {
    refuses(&[
        (&[], "[deployment]\nmode = \"both\"", &["line 2: mode = both: ", "one of standalone, replicated"]),
        (
            &[],
            "[deployment]\nreplica_endpoints = [\"localhost\"]",
            &["replica_endpoints = [localhost]", "no port", "host:port"],
        ),
        (&[], "[deployment]\nnode_id = [1, 2]", &["node_id = [1, 2]", "one value, not a list"]),
        (&[], "[deployment]\nnode_id = { a = 1 }", &["node_id", "a value, or a list of values"]),
        (&[], "[deployment]\nnode_id = -1", &["node_id = -1"]),
        (
            &[],
            "[deployment]\nnode_id = 1\ninstance_id = 2",
            &["node_id = 1", "instance_id = 2", "remove one"],
        ),
        (&[], "[cluster]\nnode_timeout = 500", &["node_timeout = 500", "needs a unit", "500ms"]),
        (&[], "[cluster]\nnode_timeout_ms = \"5s\"", &["node_timeout_ms = 5s", "whole number"]),
        (&[], "[log]\ncompact_hold_size = 5", &["compact_hold_size = 5", "5MiB"]),
        (&[], "[deployment]\nsessions_max = 0", &["sessions_max = 0", "at least 1"]),
        (&[], "[cluster]\nlease_drift_percent = 51", &["lease_drift_percent = 51", "at most 50"]),
        (
            &[],
            "[cluster]\nelection_timeout_ms = 86400001",
            &["election_timeout_ms = 86400001", "at most 1day"],
        ),
        (&[], "[cluster]\nheartbeat_interval_ms = 0", &["heartbeat_interval_ms = 0", "at least 1ms"]),
        (&["--disk-reserve-mib", "99999999999999"], "", &["--disk-reserve-mib=99999999999999", "no disk"]),
        (&["--log", "verbose"], "", &["--log", "`verbose`"]),
        (&["--mode", "both"], "", &["both", "standalone", "replicated"]),
    ]);
    let error = settings_with_environment(&[], &[("KV_NODE_TIMEOUT", "5x")], "").unwrap_err();
    assert!(error.starts_with("environment: KV_NODE_TIMEOUT=5x: "), "{error}");
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let nodes = "[deployment]\nreplica_endpoints = [\"a:1\", \"b:2\"]";
    refuses(&[
        (&["--node-id", "5"], nodes, &["command line: --node-id=5: ", "cluster.toml", "0, 1"]),
        (&["--port", "3"], nodes, &["--port=3", "a:1"]),
        (&[], "[cluster]\nnode_timeout_ms = 1", &["node_timeout_ms = 1", "health_check_interval (2s)"]),
        (
            &[],
            "[cluster]\nelection_timeout_ms = 150",
            &["election_timeout_ms = 150", "twice heartbeat_interval (100ms)"],
        ),
        (&["--heartbeat-interval=400ms"], "", &["default: election_timeout = 500ms: ", "(400ms)"]),
        (&[], "[deployment]\nreplica_endpoints = [\"a:1\", \"a:1001\"]", &["a:1001", "same place"]),
        (&[], "[deployment]\nreplica_endpoints = [\"a:65000\"]", &["a:65000", "65535"]),
        (&["--mode", "replicated"], "", &["replica_endpoints"]),
        (
            &["--founding-peers-missing", "1,0"],
            nodes,
            &["command line: --founding-peers-missing=0: ", "not one of the other nodes"],
        ),
        (&["--witnesses", "7"], nodes, &["--witnesses=7", "not one of"]),
        (&["--witnesses", "0,1"], nodes, &["--witnesses=0,1", "at least one node must keep data"]),
        (
            &[],
            "[[nodes]]\nid = 1\nclient_endpoint = \"a:1\"\n[[nodes]]\nid = 1\nclient_endpoint = \"a:2\"",
            &["nodes.id = 1", "two [[nodes]]"],
        ),
    ]);
}

#[test]
fn help_shows_sections_and_no_old_names() {
    let help = Definitions::new().command().render_long_help().to_string();
    assert!(help.starts_with("A replicated key-value server."), "{help}");
    for words in [
        "[deployment]:",
        "[limits]:",
        "--election-timeout <DURATION>",
        "[default: 500ms]",
        "Allowed: at least 1ms, at most 1day.",
    ] {
        assert!(help.contains(words), "{words} in\n{help}");
    }
    assert!(!help.contains("-ms"), "{help}");
}

#[test]
fn restriction_of_clients_that_show_no_certificate_is_refused() {
    let tls = ["--tls-cert-file=n.crt", "--tls-key-file=n.key"];
    let with = |more: &[&'static str]| [&tls[..], more].concat();
    let ca = "--tls-ca-file=ca.crt";
    for (flags, setting, words) in [
        (with(&["--tls-allowed-names=alice"]), "tls-allowed-names", "not asked for a certificate"),
        (with(&["--tls-allowed-hostnames=a.example"]), "tls-allowed-hostnames", "not asked"),
        (with(&["--tls-crl-file=crl.pem"]), "tls-crl-file", "tls_ca_file"),
        (with(&[ca, "--tls-client-certificates=ignored", "--tls-crl-file=c"]), "tls-crl-file", "not asked"),
        (
            with(&[ca, "--tls-client-certificates=optional", "--tls-allowed-names=alice"]),
            "tls-allowed-names",
            "clients without a certificate",
        ),
        (vec!["--tls-auto", "--tls-allowed-names=alice"], "tls-allowed-names", "not asked"),
        (vec!["--tls-mode=optional"], "tls-mode", "without a certificate of the server"),
        (vec!["--peer-tls-mode=optional"], "peer-tls-mode", "without a certificate of this node"),
    ] {
        refuses(&[(&flags, "", &[setting, words])]);
    }
    assert!(settings(&with(&[ca, "--tls-allowed-names=alice", "--tls-crl-file=c"]), "").is_ok());
    assert!(settings(&with(&[ca, "--tls-client-certificates=optional", "--tls-crl-file=c"]), "").is_ok());
}

#[test]
fn all_layers_are_told_of_at_once_and_what_depends_on_a_refused_value_is_not() {
    let file = "[cluster]\nhealth_check_interval = \"1x\"\nnode_timeout = \"1ms\"\n[[nodes]]\nid = \"a\"\n[[nodes]]\nclient = 1";
    let error = settings_with_environment(&["--node-id=x"], &[("KV_SESSIONS_MAX", "0")], file).unwrap_err();
    let lines: Vec<&str> = error.lines().collect();
    let expected = [
        "command line: --node-id=x: ",
        "environment: KV_SESSIONS_MAX=0: ",
        "cluster.toml, line 2: health_check_interval = 1x: ",
        "cluster.toml, line 5: [[nodes]]: ",
        "cluster.toml, line 7: [[nodes]]: ",
    ];
    assert!(
        lines.len() == expected.len()
            && expected.iter().zip(&lines).all(|(start, line)| line.starts_with(start)),
        "{lines:#?}"
    );
}
