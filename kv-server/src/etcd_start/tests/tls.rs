//! Flags of TLS.

use std::path::Path;

use super::{settings, start_with, wrong};
use crate::config::CertificateUse;

const TLS_FLAGS: [&str; 8] = [
    "--cert-file=node.crt",
    "--key-file=node.key",
    "--trusted-ca-file=ca.crt",
    "--peer-cert-file=peer.crt",
    "--peer-key-file=peer.key",
    "--peer-trusted-ca-file=peer-ca.crt",
    "--listen-client-urls=https://10.0.1.11:2379,http://127.0.0.1:2379",
    "--advertise-client-urls=https://10.0.1.11:2379",
];

const PEER_URLS: [&str; 3] = [
    "--listen-peer-urls=https://10.0.1.11:2380",
    "--initial-advertise-peer-urls=https://10.0.1.11:2380",
    "--initial-cluster=default=https://10.0.1.11:2380",
];

#[test]
fn flags_of_tls_are_settings_of_tls_and_schemes_choose_the_listeners() {
    let flags =
        [&TLS_FLAGS[..], &PEER_URLS, &["--tls-min-version=TLS1.3", "--peer-cert-allowed-cn=a,b"]].concat();
    let found = settings(&flags);
    assert_eq!(found.tls.tls_cert_file.as_deref(), Some(Path::new("node.crt")));
    assert_eq!(found.tls.peer_tls_ca_file.as_deref(), Some(Path::new("peer-ca.crt")));
    assert_eq!(found.tls.peer_tls_allowed_names, ["a", "b"]);
    assert_eq!(found.tls.client_certificates(), CertificateUse::Required);
    assert_eq!(found.tls.tls_min_version, consensus_tls::TlsVersion::Tls13);
    let plain: Vec<String> = found.plain_listeners.iter().map(ToString::to_string).collect();
    assert_eq!((plain, found.advertises_plain), (vec!["127.0.0.1:2379".to_owned()], false));
}

#[test]
fn incomplete_flags_of_tls_are_refused_with_what_is_missing() {
    let with = |more: &[&'static str]| [&TLS_FLAGS[..], more].concat();
    for (flags, words) in [
        (vec!["--listen-peer-urls=https://10.0.1.11:2380"], "--peer-cert-file"),
        (vec!["--listen-client-urls=https://10.0.1.11:2379", TLS_FLAGS[7]], "--cert-file and --key-file"),
        (with(&["--listen-peer-urls=http://10.0.1.11:2380"]), "KV_PEER_TLS_MODE=optional"),
        (vec!["--peer-client-cert-auth"], "cannot verify each other"),
        (vec!["--peer-auto-tls", "--peer-client-cert-auth"], "with --peer-auto-tls they never do"),
        (vec!["--cert-file=a"], "key file must be given"),
        (vec!["--key-file=a"], "certificate file must be given"),
        (vec!["--cert-file=a", "--key-file=b", "--client-cert-auth"], "the CA that signs"),
        (vec!["--trusted-ca-file=a"], "without a certificate"),
        (vec!["--tls-min-version=TLS1.1"], "TLS1.2, TLS1.3"),
    ] {
        let error = wrong(&flags);
        assert!(error.contains(words), "{flags:?}: {error}");
    }
}

#[test]
fn unknown_key_of_a_section_of_tls_is_refused_unless_it_says_nothing() {
    let read = |file: &str| start_with(&["--config-file=etcd.yaml"], &[], file);
    for (file, words) in [
        ("client-transport-security:\n  allowed-cn: [alice]", "KV_TLS_ALLOWED_NAMES"),
        ("client-transport-security:\n  allowed-cn: alice", "client-transport-security.allowed-cn"),
        ("client-transport-security:\n  client-cert-autt: true", "client-cert-autt: the key is unknown"),
        ("peer-transport-security:\n  Allowed-CN: a", "peer-transport-security.Allowed-CN"),
    ] {
        let error = read(file).unwrap_err();
        assert!(error.contains("etcd.yaml") && error.contains(words), "{file}: {error}");
    }
    for nothing in ["allowed-cn: []", "allowed-cn:", "other: false"] {
        assert!(read(&format!("client-transport-security:\n  {nothing}")).is_ok(), "{nothing}");
    }
}

#[test]
fn variable_that_chooses_a_certificate_is_refused_with_the_flag_to_use() {
    for (variable, flag) in [("KV_TLS_CERT_FILE", "--cert-file"), ("KV_PEER_TLS_AUTO", "--peer-auto-tls")] {
        let error = start_with(&[], &[(variable, "true")], "").unwrap_err();
        assert!(error.contains(variable) && error.contains(flag), "{error}");
    }
}
