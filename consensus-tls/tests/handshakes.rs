//! Handshakes: who is accepted.

#[allow(dead_code, reason = "tests use parts of what they share")]
mod common;

use std::{io, time::Duration};

use common::{Folder, VALID, authority, client, exchange, hosts, listener, node};
use consensus_tls::{
    AllowedNames, ClientCertificates, Identity, PeerCertificate, PlainConnections, ServerTrust, Tls,
    TlsSettings, TlsVersion, cipher_suite_names,
    issue::{Authority, Days, Issued, self_signed},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

fn load(settings: TlsSettings) -> Tls {
    Tls::load(settings).unwrap()
}

#[tokio::test]
async fn client_with_certificate_is_accepted_and_its_names_are_known() {
    let (folder, ca) = (Folder::new(), authority("ca"));
    let issued = ca.issue_client("alice", VALID).unwrap();
    let server = load(node(&folder, &ca));
    let (accepted, connected) = exchange(&server, &load(client(&folder, &ca, Some(&issued)))).await;
    let (accepted, connected) = (accepted.unwrap().unwrap(), connected.unwrap());
    assert!(accepted.is_encrypted() && connected.is_encrypted());
    let alice = PeerCertificate { common_name: Some("alice".to_owned()), host_names: Vec::new() };
    assert_eq!(accepted.peer_certificate(), Some(alice));
    let node = PeerCertificate { common_name: Some("node".to_owned()), host_names: hosts() };
    assert_eq!(connected.peer_certificate(), Some(node));
}

#[tokio::test]
async fn client_without_certificate_is_refused_only_if_one_is_required() {
    let (folder, ca) = (Folder::new(), authority("ca"));
    let nobody = load(client(&folder, &ca, None));
    for (wanted, is_accepted) in [
        (ClientCertificates::Required, false),
        (ClientCertificates::Optional, true),
        (ClientCertificates::Ignored, true),
    ] {
        let server = load(TlsSettings { client_certificates: wanted, ..node(&folder, &ca) });
        let (accepted, connected) = exchange(&server, &nobody).await;
        assert_eq!((accepted.is_ok(), connected.is_ok()), (is_accepted, is_accepted), "{wanted:?}");
    }
}

#[tokio::test]
async fn certificates_of_another_authority_are_refused_on_both_sides() {
    let (folder, ca, other) = (Folder::new(), authority("ca"), authority("other"));
    let stranger = other.issue_client("alice", VALID).unwrap();
    let optional = TlsSettings { client_certificates: ClientCertificates::Optional, ..node(&folder, &ca) };
    let server = load(optional);
    let (accepted, connected) = exchange(&server, &load(client(&folder, &ca, Some(&stranger)))).await;
    assert!(accepted.unwrap_err().to_string().contains("UnknownIssuer"));
    assert!(connected.is_err());
    let (accepted, connected) = exchange(&server, &load(client(&folder, &other, None))).await;
    assert!(accepted.is_err());
    let error = connected.unwrap_err();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    assert_ne!(error.kind(), io::ErrorKind::Unsupported, "a server that is refused speaks TLS");
}

#[tokio::test]
async fn server_for_another_host_is_refused_unless_any_host_will_do() {
    let (folder, ca) = (Folder::new(), authority("ca"));
    let mut settings = node(&folder, &ca);
    settings.client_certificates = ClientCertificates::Ignored;
    let issued = ca.issue_node("node", &["elsewhere.example".to_owned()], VALID).unwrap();
    settings.identity = Some(folder.identity("node", &issued));
    let server = load(settings);
    let mut settings = client(&folder, &ca, None);
    let (_, connected) = exchange(&server, &load(settings.clone())).await;
    assert!(connected.unwrap_err().to_string().contains("not valid for name"));
    settings.server_trust = ServerTrust::AnyHost;
    assert!(exchange(&server, &load(settings.clone())).await.1.is_ok());
    settings.allowed.host_names = vec!["elsewhere.example".to_owned()];
    assert!(exchange(&server, &load(settings.clone())).await.1.is_ok());
    settings.allowed.host_names = vec!["localhost".to_owned()];
    assert!(exchange(&server, &load(settings)).await.1.is_err());
}

#[tokio::test]
async fn self_signed_server_is_accepted_by_who_has_its_certificate_or_verifies_nothing() {
    let (folder, ca) = (Folder::new(), authority("ca"));
    let issued = self_signed("auto", &hosts(), VALID).unwrap();
    let mut settings = TlsSettings::new("clients");
    settings.identity = Some(folder.identity("auto", &issued));
    let server = load(settings);
    let mut trusting = client(&folder, &ca, None);
    assert!(exchange(&server, &load(trusting.clone())).await.1.is_err());
    trusting.ca_file = Some(folder.path("auto.crt"));
    assert!(exchange(&server, &load(trusting)).await.1.is_ok());
    let mut blind = TlsSettings::new("servers");
    blind.server_trust = ServerTrust::Unverified;
    assert!(exchange(&server, &load(blind)).await.1.is_ok());
    // Nodes that share the certificate trust each other without a CA.
    assert!(exchange(&server, &server).await.1.is_ok());
}

#[tokio::test]
async fn certificate_of_a_client_is_no_node_and_names_beyond_the_allowed_ones_are_refused() {
    let (folder, folder_of_peer, ca) = (Folder::new(), Folder::new(), authority("ca"));
    let alice = ca.issue_client("alice", VALID).unwrap();
    let peer = ca.issue_node("n2", &["n2.example".to_owned()], VALID).unwrap();
    let (alice, peer) = (client(&folder, &ca, Some(&alice)), client(&folder_of_peer, &ca, Some(&peer)));
    let allowed = |common_names: &[&str], host_names: &[&str], node_usage| AllowedNames {
        common_names: common_names.iter().map(|name| (*name).to_owned()).collect(),
        host_names: host_names.iter().map(|name| (*name).to_owned()).collect(),
        node_usage,
    };
    for (allowed, alice_passes, peer_passes) in [
        (allowed(&[], &[], false), true, true),
        (allowed(&[], &[], true), false, true),
        (allowed(&["alice"], &[], true), false, false),
        (allowed(&["alice"], &[], false), true, false),
        (allowed(&[], &["n2.example"], false), false, true),
        (allowed(&["alice"], &["n2.example"], false), true, true),
    ] {
        let server = load(TlsSettings { allowed: allowed.clone(), ..node(&folder, &ca) });
        for (settings, passes) in [(&alice, alice_passes), (&peer, peer_passes)] {
            let (accepted, _) = exchange(&server, &load(settings.clone())).await;
            assert_eq!(accepted.is_ok(), passes, "{allowed:?} {accepted:?}");
        }
    }
}

#[tokio::test]
async fn revoked_certificate_is_refused_and_others_are_not() {
    let (folder, ca, other) = (Folder::new(), authority("ca"), authority("other"));
    let (alice, bob) = (ca.issue_client("alice", VALID).unwrap(), ca.issue_client("bob", VALID).unwrap());
    let of_other = other.issue_client("carol", VALID).unwrap();
    let list = ca.revoke(&[common::serial_number(&alice)], VALID).unwrap();
    let mut settings = node(&folder, &ca);
    // An authority without a list revokes nothing.
    settings.ca_file =
        Some(folder.write("both.crt", [ca.certificate_pem(), other.certificate_pem()].concat()));
    for content in [list.clone().into_bytes(), common::der(&list)] {
        settings.crl_file = Some(folder.write("crl", content));
        let server = load(settings.clone());
        for (issued, passes) in [(&alice, false), (&bob, true), (&of_other, true)] {
            let (accepted, _) = exchange(&server, &load(client(&folder, &ca, Some(issued)))).await;
            assert_eq!(accepted.is_ok(), passes, "{accepted:?}");
        }
    }
    settings.crl_file = Some(folder.write("crl", ca.revoke(&[], Days(-1)).unwrap()));
    let server = load(settings);
    let (accepted, _) = exchange(&server, &load(client(&folder, &ca, Some(&bob)))).await;
    assert!(accepted.is_ok(), "an old list is used with a warning");
}

#[tokio::test]
async fn versions_and_suites_are_restricted() {
    let (folder, ca) = (Folder::new(), authority("ca"));
    let plain = TlsSettings { client_certificates: ClientCertificates::Ignored, ..node(&folder, &ca) };
    let both = client(&folder, &ca, None);
    let only =
        |version| TlsSettings { version_min: version, version_max: version, ..client(&folder, &ca, None) };
    let server = load(TlsSettings { version_min: TlsVersion::Tls13, ..plain.clone() });
    assert!(exchange(&server, &load(both.clone())).await.1.is_ok());
    assert!(exchange(&server, &load(only(TlsVersion::Tls12))).await.1.is_err());
    let server = load(TlsSettings { version_max: TlsVersion::Tls12, ..plain.clone() });
    assert!(exchange(&server, &load(only(TlsVersion::Tls13))).await.1.is_err());
    let suites = vec!["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".to_owned()];
    let server = load(TlsSettings { cipher_suites: suites, ..plain.clone() });
    assert!(exchange(&server, &load(both)).await.1.is_ok(), "those of TLS 1.3 stay");
    assert!(exchange(&server, &load(only(TlsVersion::Tls12))).await.1.is_err(), "the key is not RSA");
    let suites = vec!["TLS_RSA_WITH_AES_128_CBC_SHA".to_owned()];
    let error = Tls::load(TlsSettings { cipher_suites: suites, ..plain }).unwrap_err().to_string();
    assert!(error.contains("TLS_RSA_WITH_AES_128_CBC_SHA") && error.contains("TLS_AES_128_GCM_SHA256"));
    assert!(cipher_suite_names().iter().all(|name| name.starts_with("TLS_") && !name.contains("CBC")));
}

#[tokio::test]
async fn plain_client_is_refused_or_served_as_set() {
    let (folder, ca) = (Folder::new(), authority("ca"));
    for (plain, is_served) in [(PlainConnections::Refused, false), (PlainConnections::Accepted, true)] {
        let server = load(TlsSettings { plain, ..node(&folder, &ca) });
        let (listener, address) = listener().await;
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let (stream, from) = listener.accept().await.unwrap();
        let accepted = server.accept(stream, from).await;
        if is_served {
            assert_eq!(accepted.unwrap().unwrap().peek().await.unwrap(), Some(b'G'));
            continue;
        }
        assert!(accepted.unwrap_err().to_string().contains("no TLS"));
        // It is the whole response, not a connection that was reset.
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.0 400") && answer.ends_with("use https.\n"), "{answer}");
    }
}

#[tokio::test]
async fn server_that_speaks_no_tls_is_told_from_one_that_is_refused() {
    let (folder, ca) = (Folder::new(), authority("ca"));
    let client = load(client(&folder, &ca, None));
    let (listener, address) = listener().await;
    let stream = TcpStream::connect(address).await.unwrap();
    let closing = async { drop(listener.accept().await) };
    let (connected, ()) = tokio::join!(client.connect(stream, "localhost", Duration::from_secs(5)), closing);
    assert_eq!(connected.unwrap_err().kind(), io::ErrorKind::Unsupported);
}

#[tokio::test(start_paused = true)]
async fn silent_client_is_given_up() {
    let (folder, ca) = (Folder::new(), authority("ca"));
    let server = load(node(&folder, &ca));
    let (listener, address) = listener().await;
    for first in [&b""[..], &[22, 3, 1]] {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(first).await.unwrap();
        let (stream, from) = listener.accept().await.unwrap();
        assert_eq!(server.accept(stream, from).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
    drop(TcpStream::connect(address).await.unwrap());
    let (stream, from) = listener.accept().await.unwrap();
    assert!(server.accept(stream, from).await.unwrap().is_none(), "a probe of the port is no failure");
}

#[tokio::test]
async fn clients_that_stop_in_the_middle_of_the_handshake_keep_nobody_out() {
    let (folder, ca) = (Folder::new(), authority("ca"));
    let server = load(node(&folder, &ca));
    let alice = load(client(&folder, &ca, Some(&ca.issue_client("alice", VALID).unwrap())));
    let hello = first_message(&alice).await;
    let (listener, address) = listener().await;
    let mut stalled = Vec::new();
    for _ in 0..300 {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(&hello).await.unwrap();
        let (stream, from) = listener.accept().await.unwrap();
        let server = server.clone();
        tokio::spawn(async move { server.accept(stream, from).await });
        // The server has answered, and waits for the certificate.
        client.read_exact(&mut [0]).await.unwrap();
        stalled.push(client);
    }
    let served = tokio::time::timeout(Duration::from_secs(5), exchange(&server, &alice)).await;
    assert!(served.expect("a place for the handshake").1.is_ok());
}

/// The first message of a client.
async fn first_message(client: &Tls) -> Vec<u8> {
    let (listener, address) = listener().await;
    let stream = TcpStream::connect(address).await.unwrap();
    let reading = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut header = [0; 5];
        stream.read_exact(&mut header).await.unwrap();
        let mut message = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
        stream.read_exact(&mut message).await.unwrap();
        [&header[..], &message].concat()
    };
    let (_, message) = tokio::join!(client.connect(stream, "localhost", Duration::from_secs(5)), reading);
    message
}

#[tokio::test(start_paused = true)]
async fn caller_sets_the_time_in_which_the_handshake_must_end() {
    let (folder, ca) = (Folder::new(), authority("ca"));
    let limit = Duration::from_secs(2);
    for plain in [PlainConnections::Refused, PlainConnections::Accepted] {
        let server = load(TlsSettings { plain, ..node(&folder, &ca) });
        let (listener, address) = listener().await;
        for first in [&b""[..], &[22, 3, 1]] {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(first).await.unwrap();
            let (stream, from) = listener.accept().await.unwrap();
            let start = tokio::time::Instant::now();
            let error = server.accept_soon(stream, from, limit).await.unwrap_err();
            assert_eq!((error.kind(), start.elapsed().as_secs()), (io::ErrorKind::TimedOut, 2));
        }
    }
}

/// A certificate without extended key usages.
fn without_usages(folder: &Folder, name: &str, ca: &Issued) -> Identity {
    let issuer_key = rcgen::KeyPair::from_pem(&ca.key_pem).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&ca.certificate_pem, issuer_key).unwrap();
    let mut params = rcgen::CertificateParams::new(hosts()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate_pem = params.signed_by(&key, &issuer).unwrap().pem();
    folder.identity(name, &Issued { certificate_pem, key_pem: key.serialize_pem() })
}

#[tokio::test]
async fn certificate_without_usages_is_a_node_only_by_its_name() {
    let folder = Folder::new();
    let (ca, issued) = Authority::create("ca", VALID).unwrap();
    let identity = without_usages(&folder, "n2", &issued);
    let by = |names: &[&str]| AllowedNames {
        common_names: names.iter().map(|name| (*name).to_owned()).collect(),
        node_usage: true,
        ..AllowedNames::default()
    };
    let peer = TlsSettings { identity: Some(identity), ..client(&folder, &ca, None) };
    for (names, passes) in [(&[][..], false), (&["n2"], true), (&["n1"], false)] {
        let server = load(TlsSettings { allowed: by(names), ..node(&folder, &ca) });
        let (accepted, _) = exchange(&server, &load(peer.clone())).await;
        assert_eq!(accepted.is_ok(), passes, "{names:?} {accepted:?}");
        let own = Tls::load(TlsSettings { allowed: by(names), ..peer.clone() });
        assert_eq!(own.is_ok(), !names.is_empty(), "its own certificate: {own:?}");
    }
    let for_clients = ca.issue_client("n2", VALID).unwrap();
    let own = TlsSettings { allowed: by(&["n2"]), ..client(&folder, &ca, Some(&for_clients)) };
    let error = Tls::load(own).unwrap_err().to_string();
    assert!(error.contains("serverAuth and clientAuth"), "{error}");
}
