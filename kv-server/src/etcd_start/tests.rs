mod tls;

use std::{collections::BTreeSet, path::Path, time::Duration};

use consensus_core::Endpoint;
use kv_state_machine::AutoCompaction;

use super::*;

/// A start with these flags, variables, and contents of the file `etcd.yaml`.
fn start_with(flags: &[&str], variables: &[(&str, &str)], file: &str) -> Result<EtcdStart, String> {
    let flags = flags.iter().map(OsString::from).collect();
    let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
    let read = |path: &str| match path {
        "etcd.yaml" => Ok(file.to_owned()),
        _ => Err(ConfigError::File { path: path.to_owned(), why: "it is not there".to_owned() }),
    };
    EtcdStart::load(flags, variables, read).map_err(|error| error.to_string())
}

fn start(flags: &[&str]) -> EtcdStart {
    start_with(flags, &[], "").unwrap()
}

fn wrong(flags: &[&str]) -> String {
    start_with(flags, &[], "").unwrap_err()
}

/// The settings of a first start in a directory that is not there.
pub(super) fn settings(flags: &[&str]) -> Settings {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(start(flags).settings()).unwrap()
}

fn at(text: &str) -> Endpoint {
    text.parse().unwrap()
}

#[test]
fn every_flag_of_etcd_is_known_with_its_default() {
    let mut names = BTreeSet::new();
    for line in include_str!("flags/etcd-3.7.3.txt").lines() {
        let (name, default) = line.split_once(' ').unwrap_or((line, ""));
        let name = name.trim_start_matches("--");
        let flag = Flag::find(name).unwrap_or_else(|| panic!("--{name} has no row"));
        assert!(names.insert(name), "{name} has two rows");
        let default = default.trim_matches('\'');
        let is_known_otherwise = ["data-dir", "max-concurrent-streams", "log-rotation-config-json"];
        let is_said = !default.is_empty() && !is_known_otherwise.contains(&name);
        assert!(!is_said || flag.is_default(default), "--{name}: etcd's default is {default:?}");
    }
    let more: Vec<_> = flags::all().map(|flag| flag.name).filter(|name| !names.contains(name)).collect();
    assert_eq!(more, ["config-file", "version"], "etcd shows them elsewhere");
}

#[test]
fn defaults_of_flags_are_valid_and_every_row_says_something() {
    for flag in flags::all() {
        assert!(flag.default.is_empty() || flag.check(flag.default).is_ok(), "--{}", flag.name);
        assert!(flag.note.len() > 2 && !flag.note.contains('|'), "--{}", flag.name);
    }
}

#[test]
fn flags_that_set_something_are_accepted_with_their_defaults() {
    let is_used = |flag: &&Flag| !matches!(flag.effect, Effect::Absent | Effect::Unneeded);
    for flag in flags::all().filter(is_used).filter(|flag| !flag.default.is_empty()) {
        let flags =
            ["--advertise-client-urls=http://localhost:2379", &format!("--{}={}", flag.name, flag.default)];
        if let Err(error) = start_with(&flags, &[], "") {
            panic!("--{} with etcd's default {:?}: {error}", flag.name, flag.default);
        }
        settings(&flags);
    }
}

#[test]
fn retention_of_zero_in_any_unit_is_no_compaction() {
    for zero in ["0", "0s", "0h"] {
        let flag = format!("--auto-compaction-retention={zero}");
        assert_eq!(settings(&[&flag]).limits.auto_compaction(), Ok(None), "{zero}");
    }
    let hours = settings(&["--auto-compaction-retention=5"]).limits.auto_compaction();
    assert_eq!(hours, Ok(Some(AutoCompaction::Periodic(Duration::from_secs(5 * 3600)))));
}

#[test]
fn member_without_flags_has_the_places_of_etcd() {
    let settings = settings(&[]);
    assert_eq!(settings.data_dir, Path::new("default.etcd"));
    assert_eq!(settings.client_listen, at("127.0.0.1:2379"));
    assert!(settings.deployment.cluster_name.starts_with("etcd-cluster-"), "{settings:?}");
    assert_eq!(settings.cluster.election_timeout, Duration::from_secs(1));
    assert_eq!(settings.limits.quota_size, 2 << 30);
    let topology = settings.topology.unwrap();
    assert_eq!(topology.consensus_listen, at("127.0.0.1:2380"));
    let own = &topology.nodes[&NodeId(0)];
    assert_eq!(own.client, Some(at("localhost:2379")));
    assert_eq!((&own.consensus, own.name.as_deref()), (&at("localhost:2380"), Some("default")));
    assert!(!settings.deployment.join);
}

const INFRA: [&str; 6] = [
    "--name=infra1",
    "--initial-advertise-peer-urls=http://10.0.1.11:2380",
    "--listen-peer-urls=http://10.0.1.11:2380",
    "--listen-client-urls=http://10.0.1.11:2379,http://127.0.0.1:2379",
    "--advertise-client-urls=http://10.0.1.11:2379",
    "--initial-cluster=infra2=http://10.0.1.12:2380,infra0=http://10.0.1.10:2380,infra1=http://10.0.1.11:2380",
];

#[test]
fn ids_of_a_new_cluster_follow_the_order_of_the_names() {
    let settings = settings(&INFRA);
    assert_eq!(
        (settings.node, settings.data_dir.display().to_string()),
        (NodeId(1), "infra1.etcd".to_owned())
    );
    assert_eq!(settings.client_listen, at("10.0.1.11:2379"));
    assert_eq!(settings.client_listen_also, [at("127.0.0.1:2379")]);
    let nodes = settings.topology.unwrap().nodes;
    let shown: Vec<_> = nodes
        .iter()
        .map(|(id, node)| {
            (id.0, node.name.clone().unwrap(), node.consensus.to_string(), node.client.is_some())
        })
        .collect();
    let expected = [
        (0, "infra0".to_owned(), "10.0.1.10:2380".to_owned(), false),
        (1, "infra1".to_owned(), "10.0.1.11:2380".to_owned(), true),
        (2, "infra2".to_owned(), "10.0.1.12:2380".to_owned(), false),
    ];
    assert_eq!(shown, expected);
}

#[test]
fn clusters_of_other_members_or_tokens_have_other_names() {
    let name = |flags: &[&str]| settings(&[&INFRA[..], flags].concat()).deployment.cluster_name;
    let members = |last: &str| {
        format!("--initial-cluster={last},infra1=http://10.0.1.11:2380,infra0=http://10.0.1.10:2380")
    };
    let same = members("infra2=http://10.0.1.12:2380");
    assert_eq!(name(&[]), name(&[&same]), "whatever their order");
    let others = [members("infra3=http://10.0.1.12:2380"), members("infra2=http://10.0.1.13:2380")];
    for other in [&others[0], &others[1], "--initial-cluster-token=other"] {
        assert_ne!(name(&[]), name(&[other]), "{other}");
    }
}

#[test]
fn flags_have_one_dash_or_two_and_a_value_in_either_form() {
    for flags in [&["-name", "a"][..], &["-name=a"], &["--name", "a"], &["--name=x", "--name=a"]] {
        assert_eq!(start(flags).member.name, "a", "{flags:?}");
    }
    let start = start(&["-strict-reconfig-check", "-pre-vote=false", "--name", "a"]);
    assert_eq!(start.member.name, "a", "a flag with truth values takes no other argument");
    assert_eq!(start.notes(), ["--pre-vote has no effect: always"]);
    assert_eq!(settings(&["--quota-backend-bytes", "-1"]).limits.quota_size, 0);
}

#[test]
fn wrong_command_lines_are_refused() {
    for (flags, words) in [
        (&["--nam=a"][..], "unexpected argument '--nam'"),
        (&["--nam=a"], "--name"),
        (&["start"], "unexpected argument 'start'"),
        (&["--name"], "value is required"),
        (&["--heartbeat-interval=abc"], "command line: --heartbeat-interval=abc: it must be a whole number"),
        (&["--pre-vote=maybe"], "true or false"),
        (&["--initial-cluster-state=old"], "it must be one of new, existing"),
        (&["--listen-client-urls=http://127.0.0.1:1"], "--advertise-client-urls is required"),
        (&["--listen-peer-urls=http://db:2380"], "an address of this machine"),
        (&["--listen-peer-urls=http://10.0.0.1:1,http://10.0.0.2:1"], "one URL for peers"),
        (&["--log-format=xml"], "json, console"),
        (&["--name=a\nb"], "control characters"),
        (
            &["--election-timeout=100", "--heartbeat-interval=90"],
            "--election-timeout=100: it must be at least twice",
        ),
        (&["--max-txn-ops=5000"], "--max-txn-ops=5000: it must be at most 4096"),
        (&["--max-request-bytes=99999999"], "--max-request-bytes=99999999: it must be at most 32.0 MiB"),
        (
            &["--auto-compaction-mode=revision", "--auto-compaction-retention=5m"],
            "--auto-compaction-retention=5m",
        ),
        (&["--feature-gates=InitialCorruptCheck=true"], "kvctl hash"),
        (&["--feature-gates=Nothing=true"], "no such feature"),
    ] {
        let error = wrong(flags);
        assert!(error.contains(words), "{flags:?}: {error}");
    }
}

#[test]
fn refused_flags_are_named_together_with_what_to_do() {
    let error = wrong(&["--cors=a", "--enable-pprof", "--discovery=http://c"]);
    for words in [
        "command line: --cors: kv-server does not have this; put a proxy before the server",
        "--enable-pprof: ",
        "--discovery: kv-server does not have this; name the members with --initial-cluster",
    ] {
        assert!(error.contains(words), "{error}");
    }
    let absent = flags::all().filter(|flag| flag.effect == Effect::Absent);
    for flag in absent {
        let value = if flag.is_bool() {
            "true"
        } else if flag.kind == Kind::Duration {
            "1h"
        } else {
            "extensive"
        };
        let error = wrong(&[&format!("--{}={value}", flag.name)]);
        assert!(error.contains(flag.name) && error.contains(flag.note), "{error}");
        assert!(!error.contains(&format!("{}={value}", flag.name)), "the value may be a password: {error}");
        // A default value is no reason to refuse.
        start(&[&format!("--{}={}", flag.name, flag.default)]);
    }
}

#[test]
fn passwords_are_in_no_error() {
    const SECRET: &str = "sEcrEt";
    let flag = format!("--discovery-password={SECRET}");
    let variable = [("ETCD_DISCOVERY_PASSWORD", SECRET)];
    let both = start_with(&[&flag], &variable, "").unwrap_err();
    assert!(both.contains("ETCD_DISCOVERY_PASSWORD") && both.contains("--discovery-password"), "{both}");
    let file = format!("discovery-config:\n  password: {SECRET}\n  user: [\n");
    let broken = start_with(&["--config-file=etcd.yaml"], &[], &file).unwrap_err();
    let invalid = wrong(&[&format!("--discovery-dial-timeout={SECRET}")]);
    let refused = wrong(&[&format!("--discovery={SECRET}")]);
    for error in [both, broken, invalid, refused] {
        assert!(!error.contains(SECRET), "{error}");
    }
}

#[test]
fn flags_without_effect_are_noted_unless_they_have_the_default() {
    let start = start(&[
        "--max-wals=5",
        "--max-snapshots=9",
        "--cors=*",
        "--unsafe-no-fsync",
        "--pre-vote",
        "--discovery-password=secret",
    ]);
    let notes = [
        "--discovery-password has no effect: only with a discovery service, which is refused",
        "--max-snapshots has no effect: files that are not needed are removed",
        "--unsafe-no-fsync has no effect: every write is synced all the same",
    ];
    assert_eq!(start.notes(), notes);
}

#[test]
fn settings_of_the_same_meaning_have_the_values_of_the_flags() {
    let settings = settings(&[
        "--heartbeat-interval=50",
        "--election-timeout=2500",
        "--snapshot-count=777",
        "--snapshot-catchup-entries=0",
        "--quota-backend-bytes=8589934592",
        "--max-txn-ops=1000",
        "--max-request-bytes=2097152",
        "--max-concurrent-streams=77",
        "--auto-compaction-retention=1h30m",
        "--watch-progress-notify-interval=5s",
        "--log-level=fatal",
    ]);
    assert_eq!(settings.cluster.heartbeat_interval, Duration::from_millis(50));
    assert_eq!(settings.cluster.election_timeout, Duration::from_millis(2500));
    assert_eq!((settings.log.compact_after_entries, settings.log.compact_keep_entries), (777, 10_000));
    let limits = &settings.limits;
    assert_eq!((limits.quota_size, limits.transaction_operations_max), (8 << 30, 1000));
    assert_eq!((limits.request_size, limits.streams_max), (2 << 20, 77));
    assert_eq!(limits.auto_compaction(), Ok(Some(AutoCompaction::Periodic(Duration::from_secs(5400)))));
    assert_eq!(limits.watch_progress_interval, Duration::from_secs(5));
    assert_eq!(settings.program.log, "error");
}

#[test]
fn retention_counts_revisions_in_that_mode() {
    let settings = settings(&["--auto-compaction-mode=revision", "--auto-compaction-retention=1000"]);
    assert_eq!(settings.limits.auto_compaction(), Ok(Some(AutoCompaction::Revisions(1000))));
}

#[test]
fn variables_count_without_the_flag_and_are_refused_beside_it() {
    let variables = [("ETCD_NAME", "a"), ("ETCD_MAX_TXN_OPS", "7"), ("ETCD_DATA_DIR", ""), ("ETCD_X", "1")];
    let start = start_with(&["--data-dir=d"], &variables, "").unwrap();
    assert_eq!((start.member.name.as_str(), start.member.data_dir.as_path()), ("a", Path::new("d")));
    assert_eq!(start.notes(), ["the variable ETCD_X is not one of etcd's"]);
    let error = start_with(&["--name=b"], &variables, "").unwrap_err();
    assert!(error.contains("environment: ETCD_NAME: --name gives the same setting"), "{error}");
    let error = start_with(&[], &[("ETCD_MAX_TXN_OPS", "x")], "").unwrap_err();
    assert!(error.contains("environment: ETCD_MAX_TXN_OPS=x: it must be a whole number"), "{error}");
}

#[test]
fn settings_without_a_flag_are_variables_of_kv_server() {
    let variables = [("KV_DISK_RESERVE", "5MiB"), ("KV_NODE_ID", "77"), ("KV_MAX_TXN_OPS", "1")];
    let start = start_with(&[], &variables, "").unwrap();
    let settings = start.settings_of(NodeId(3), "c", vec![start.member.entry(NodeId(3))], false).unwrap();
    assert_eq!((settings.limits.disk_reserve, settings.node), (5 << 20, NodeId(3)));
}

const FILE: &str = r#"
# A member.
name: 'from file'
data-dir: /var/lib/etcd
heartbeat-interval: 200
quota-backend-bytes: 0
listen-client-urls: http://127.0.0.1:12379
advertise-client-urls: http://127.0.0.1:12379
watch-progress-notify-interval: 600000000
auto-compaction-retention: "5h"
strict-reconfig-check: false
initial-cluster-state: 'new'
log-outputs: [stderr, stdout]
client-transport-security:
  cert-file:
  client-cert-auth: false
peer-transport-security: {auto-tls: false}
nothing: 7
"#;

#[test]
fn file_counts_in_place_of_flags_and_variables() {
    let variables = [("ETCD_NAME", "a"), ("ETCD_CORS", "b")];
    let start = start_with(&["--config-file=etcd.yaml", "--name=b", "--max-txn-ops=9"], &variables, FILE);
    let start = start.unwrap();
    assert_eq!(start.member.name, "from file");
    assert_eq!(start.member.data_dir, Path::new("/var/lib/etcd"));
    assert_eq!(start.member.listen_clients, [at("127.0.0.1:12379")]);
    let settings = start.settings_of(NodeId(0), "c", vec![start.member.entry(NodeId(0))], false).unwrap();
    assert_eq!(settings.cluster.heartbeat_interval, Duration::from_millis(200));
    assert_eq!(settings.limits.watch_progress_interval, Duration::from_millis(600));
    assert_eq!(settings.limits.transaction_operations_max, 128);
    let notes = start.notes().join("\n");
    for words in
        ["the key nothing is not", "flags and variables are ignored", "--max-txn-ops, --name", "strict"]
    {
        assert!(notes.contains(words), "{notes}");
    }
    let by_variable = start_with(&[], &[("ETCD_CONFIG_FILE", "etcd.yaml")], FILE).unwrap();
    assert_eq!(by_variable.member, start.member);
    let json =
        start_with(&["--config-file", "etcd.yaml"], &[], r#"{"name": "j", "max-txn-ops": 5}"#).unwrap();
    assert_eq!(json.member.name, "j");
}

#[test]
fn wrong_files_are_refused_with_their_name() {
    for (file, words) in [
        ("name: [", "etcd.yaml"),
        ("- a", "keys and values"),
        ("name: {a: 1}", "name must be a value"),
        ("client-transport-security: 5", "client-transport-security must have"),
        ("heartbeat-interval: soon", "etcd.yaml: heartbeat-interval: soon: it must be a whole number"),
        ("peer-transport-security: {cert-file: x}", "it must be https://"),
        (
            "client-transport-security: {allowed-hostname: [a, b]}",
            "client-transport-security.allowed-hostname: a,b: it has no effect without a certificate",
        ),
        ("discovery-config: {endpoints: [a]}", "discovery-config.endpoints: kv-server does not"),
        ("socket-options: {reuse-port: true}", "socket-options.reuse-port: kv-server does not"),
    ] {
        let error = start_with(&["--config-file=etcd.yaml"], &[], file).unwrap_err();
        assert!(error.contains(words), "{file}: {error}");
    }
    let error = wrong(&["--config-file=other.yaml"]);
    assert!(error.contains("other.yaml: it is not there"), "{error}");
}

#[test]
fn damaged_files_and_command_lines_are_refused_or_read_and_never_panic() {
    use rand::{Rng, SeedableRng, rngs::SmallRng};
    let mut random = SmallRng::seed_from_u64(1);
    let pieces = [
        ":",
        "{",
        "}",
        "[",
        "]",
        "-",
        "&a ",
        "*a",
        "!!binary ",
        "\0",
        "\u{85}",
        "'",
        "\"",
        "\n",
        "1e999",
        "é",
        "=",
        ",",
    ];
    for _ in 0..3000 {
        let mut text: Vec<char> = FILE.chars().collect();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..text.len());
            let piece = pieces[random.random_range(0..pieces.len())];
            text.splice(at..at + random.random_range(0..3).min(text.len() - at), piece.chars());
        }
        let text: String = text.into_iter().collect();
        let _ = start_with(&["--config-file=etcd.yaml"], &[], &text);
        let words: Vec<&str> = text.split_whitespace().collect();
        let _ = start_with(&words, &[], "");
    }
}

#[test]
fn file_whose_aliases_multiply_is_refused() {
    let mut file = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for n in 1..30 {
        let before = vec![format!("*a{}", n - 1); 9].join(", ");
        file.push_str(&format!("a{n}: &a{n} [{before}]\n"));
    }
    let error = start_with(&["--config-file=etcd.yaml"], &[], &file).unwrap_err();
    assert!(error.contains("etcd.yaml"), "{error}");
}

#[test]
fn initial_cluster_must_have_the_member_under_its_url() {
    let initial = |flags: &[&str]| {
        let start = start(flags);
        start.member.initial(&start.values).map_err(|error| error.to_string())
    };
    for (cluster, words) in [
        ("a=http://h:1", "it must have this member, m"),
        ("m=http://h:1", "at http://h:1 there, and at http://localhost:2380"),
        ("m", "NAME=http://HOST:PORT"),
        ("m=h:1", "http://HOST:PORT"),
        ("m=http://h:1,m=http://h:2", "m is there twice"),
    ] {
        let error = initial(&["--name=m", &format!("--initial-cluster={cluster}")]).unwrap_err();
        assert!(error.contains(words) && error.contains("--initial-cluster="), "{error}");
    }
    let two = "--initial-advertise-peer-urls=http://h:1,http://h:2";
    assert!(initial(&[two]).unwrap_err().contains("one peer URL"));
    // As long as it has no data.
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity { node: NodeId(7), cluster_name: "c".to_owned() };
    identity.store(dir.path()).unwrap();
    let dir = format!("--data-dir={}", dir.path().display());
    let settings = settings(&[&dir, "--name=m", "--initial-cluster=nonsense", "--initial-cluster-token=t"]);
    assert_eq!((settings.node, settings.deployment.cluster_name.as_str()), (NodeId(7), "c"));
    assert!(settings.deployment.join);
}

#[test]
fn clients_are_told_an_address_that_others_can_use() {
    let client = |listen: &str, advertise: &str, peer: &str| {
        let start = start(&[
            &format!("--listen-client-urls={listen}"),
            &format!("--advertise-client-urls={advertise}"),
            &format!("--initial-advertise-peer-urls={peer}"),
        ]);
        (start.member.client.to_string(), start.notes().len())
    };
    let (all, local) = ("http://0.0.0.0:2379", "http://127.0.0.1:2379");
    let peer = "http://10.0.0.1:2380";
    for (listen, advertise, peer, expected) in [
        (all, "http://db:77", peer, ("db:77", 0)),
        (all, "http://127.0.0.1:2379,http://db:77", peer, ("db:77", 0)),
        (all, all, peer, ("10.0.0.1:2379", 0)),
        (all, local, peer, ("10.0.0.1:2379", 0)),
        (local, local, peer, ("127.0.0.1:2379", 1)),
        (all, all, "http://localhost:2380", ("localhost:2379", 0)),
        (local, local, "http://localhost:2380", ("127.0.0.1:2379", 0)),
    ] {
        let (endpoint, notes) = client(listen, advertise, peer);
        assert_eq!((endpoint.as_str(), notes), expected, "{listen} {advertise} {peer}");
    }
}

#[test]
fn help_lists_flags_in_groups_and_those_that_are_refused() {
    let help = wrong(&["-h"]);
    for words in
        ["Member and cluster:", "Logging:", "Not supported", "--snapshot-count", "no effect: always", "KV_"]
    {
        assert!(help.contains(words), "{words}: {help}");
    }
    let refused = help.split("Not supported").nth(1).unwrap();
    assert!(!refused.contains("no effect:"), "they come last: {refused}");
    assert!(refused.contains("--cors") && refused.contains("refused: put a proxy"), "{refused}");
    let version = wrong(&["--version"]);
    assert!(version.starts_with("etcd Version: 3.7.") && version.contains("kv-server"), "{version}");
}
