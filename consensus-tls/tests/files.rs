//! Files: which are refused, and reloading.

#[allow(dead_code, reason = "tests use parts of what they share")]
mod common;

use std::{os::unix::fs::symlink, path::Path};

use common::{Folder, VALID, authority, client, exchange, hosts, node};
use consensus_tls::{
    Checked, Identity, Tls, TlsSettings,
    issue::{Days, Issued},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Checks that settings are refused with a message that has these words.
fn assert_refused(settings: TlsSettings, path: &Path, words: &[&str]) {
    let error = Tls::load(settings).unwrap_err().to_string();
    let path = path.display().to_string();
    for word in words.iter().chain([&path.as_str()]) {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

#[tokio::test]
async fn bad_file_is_named_with_the_reason() {
    let (folder, ca) = (Folder::new(), authority("ca"));
    let good = node(&folder, &ca);
    let identity = good.identity.clone().unwrap();
    let with_certificate = |name: &str, content: &str| {
        let path = folder.write(name, content);
        let identity = Identity::new(&path, &identity.key_file);
        (TlsSettings { identity: Some(identity), ..good.clone() }, path)
    };
    let with_key = |name: &str, content: &str| {
        let path = folder.write(name, content);
        let identity = Identity::new(&identity.certificate_file, &path);
        (TlsSettings { identity: Some(identity), ..good.clone() }, path)
    };
    let expired = ca.issue_node("node", &hosts(), Days(-1)).unwrap();
    let other = ca.issue_node("node", &hosts(), VALID).unwrap();
    for ((settings, path), words) in [
        (
            with_certificate("expired", &expired.certificate_pem),
            &["certificate", "CN=node", "expired at"][..],
        ),
        (with_certificate("old", VERSION_1), &["CN=old", "version 1", "openssl x509 -req"]),
        (with_certificate("empty", ""), &["certificate"]),
        (with_certificate("key", &other.key_pem), &["BEGIN CERTIFICATE"]),
        (with_key("other", &other.key_pem), &["private key", "not that of the certificate"]),
        (with_key("none", &other.certificate_pem), &["no private key"]),
        (with_key("text", "some text"), &["private key"]),
    ] {
        assert_refused(settings, &path, words);
    }
    let ca_file = folder.write("ca.bad", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n");
    assert_refused(TlsSettings { ca_file: Some(ca_file.clone()), ..good.clone() }, &ca_file, &["CA"]);
    for (content, words) in
        [("some text", &["no revocation list"][..]), (LIST_OF_VERSION_1, &["version 1", "crlnumber"])]
    {
        let crl_file = folder.write("crl", content);
        assert_refused(TlsSettings { crl_file: Some(crl_file.clone()), ..good.clone() }, &crl_file, words);
    }
    let absent = folder.path("absent");
    assert_refused(
        TlsSettings { ca_file: Some(absent.clone()), ..good.clone() },
        &absent,
        &["cannot be read", "No such file"],
    );
    let error = Tls::load(TlsSettings { ca_file: None, ..good }).unwrap_err().to_string();
    assert!(error.contains("no CA is given"), "{error}");
}

#[tokio::test]
async fn all_files_are_replaced_together_and_open_connections_stay() {
    let (folder, old, new) = (Folder::new(), authority("old"), authority("new"));
    let settings = node(&folder, &old);
    let server = Tls::load(settings.clone()).unwrap();
    let (alice, bob) = (old.issue_client("alice", VALID).unwrap(), new.issue_client("bob", VALID).unwrap());
    let of_old = Tls::load(client(&folder, &old, Some(&alice))).unwrap();
    let folder_of_new = Folder::new();
    let of_new = Tls::load(client(&folder_of_new, &new, Some(&bob))).unwrap();
    let (accepted, connected) = exchange(&server, &of_old).await;
    let (mut accepted, mut connected) = (accepted.unwrap().unwrap(), connected.unwrap());
    assert!(exchange(&server, &of_new).await.1.is_err());
    assert!(matches!(server.check_files(false).await, Checked::Unchanged));

    // A certificate without its key is not used, and is not refused again at each look.
    let Issued { certificate_pem, key_pem } = new.issue_node("node", &hosts(), VALID).unwrap();
    let identity = settings.identity.unwrap();
    std::fs::write(&identity.certificate_file, certificate_pem).unwrap();
    let Checked::Refused(error) = server.check_files(false).await else { panic!("it is refused") };
    assert!(error.to_string().contains("not that of the certificate"), "{error}");
    assert!(matches!(server.check_files(false).await, Checked::Unchanged));
    assert!(exchange(&server, &of_old).await.1.is_ok());

    std::fs::write(&identity.key_file, key_pem).unwrap();
    std::fs::write(settings.ca_file.unwrap(), new.certificate_pem()).unwrap();
    assert!(matches!(server.check_files(false).await, Checked::Reloaded));
    assert!(exchange(&server, &of_new).await.1.is_ok());
    assert!(exchange(&server, &of_old).await.1.is_err());
    accepted.write_all(b"x").await.unwrap();
    accepted.flush().await.unwrap();
    connected.read_exact(&mut [0]).await.unwrap();
    assert!(matches!(server.check_files(true).await, Checked::Reloaded), "a request is always carried out");
}

#[tokio::test]
async fn files_that_are_bad_a_second_time_are_refused_a_second_time() {
    let (folder, ca) = (Folder::new(), authority("ca"));
    let settings = node(&folder, &ca);
    let server = Tls::load(settings.clone()).unwrap();
    let ca_file = settings.ca_file.unwrap();
    for _ in 0..2 {
        std::fs::write(&ca_file, "text").unwrap();
        assert!(matches!(server.check_files(false).await, Checked::Refused(_)));
        std::fs::write(&ca_file, ca.certificate_pem()).unwrap();
        assert!(matches!(server.check_files(false).await, Checked::Unchanged));
    }
}

/// A certificate of the same key and name, valid from `from` seconds after now.
fn certificate_from(key: &rcgen::KeyPair, from: i64) -> String {
    let mut params = rcgen::CertificateParams::new(hosts()).unwrap();
    params.not_before = time::OffsetDateTime::now_utc() + time::Duration::seconds(from);
    params.self_signed(key).unwrap().pem()
}

#[tokio::test]
async fn certificate_that_was_not_valid_yet_is_used_as_soon_as_it_is() {
    let folder = Folder::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let identity = Identity::new(
        folder.write("node.crt", certificate_from(&key, -60)),
        folder.write("node.key", key.serialize_pem()),
    );
    let mut settings = TlsSettings::new("clients");
    settings.identity = Some(identity);
    let server = Tls::load(settings).unwrap();
    folder.write("node.crt", certificate_from(&key, 3));
    let Checked::Refused(error) = server.check_files(false).await else { panic!("it is refused") };
    assert!(error.to_string().contains("is not valid before"), "{error}");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        match server.check_files(false).await {
            Checked::Reloaded => break,
            Checked::Unchanged => assert!(std::time::Instant::now() < deadline, "it is never used"),
            Checked::Refused(error) => panic!("{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn swap_of_a_symlink_in_the_path_is_noticed() {
    let (folder, ca, other) = (Folder::new(), authority("ca"), authority("other"));
    for (name, authority) in [("1", &ca), ("2", &other)] {
        std::fs::create_dir(folder.path(name)).unwrap();
        let issued = authority.issue_node("node", &hosts(), VALID).unwrap();
        issued.write(&folder.path(name).join("node.crt"), &folder.path(name).join("node.key")).unwrap();
    }
    symlink("1", folder.path("data")).unwrap();
    let mut settings = TlsSettings::new("clients");
    settings.identity = Some(Identity::new(folder.path("data/node.crt"), folder.path("data/node.key")));
    let server = Tls::load(settings).unwrap();
    symlink("2", folder.path("next")).unwrap();
    std::fs::rename(folder.path("next"), folder.path("data")).unwrap();
    assert!(matches!(server.check_files(false).await, Checked::Reloaded));
    let trusts_other = Tls::load(client(&folder, &other, None)).unwrap();
    assert!(exchange(&server, &trusts_other).await.1.is_ok());
}

/// What `openssl x509 -req -signkey` makes.
const VERSION_1: &str = "\
-----BEGIN CERTIFICATE-----
MIIBGDCBvwIUKNPXKpx/avO7N3AZ5yRLye6YNwUwCgYIKoZIzj0EAwIwDjEMMAoG
A1UEAwwDb2xkMCAXDTI2MTEzMDE4NTEzNVoYDzIxMjYxMTA2MTg1MTM1WjAOMQww
CgYDVQQDDANvbGQwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARqkyNqrkWXdRvP
XQ++8f0D01w2IJhDtR/bPCmeR8uE9UAbdysTzReBoKcWRQfb11qP5weQbwJuzzmi
uqmYz9A2MAoGCCqGSM49BAMCA0gAMEUCIQCJ9YzqPWo2aDDqx/yzVn/+YfhHtPCf
8vcRXCiwYhj2EgIgSodiYO6KlocUEnW65B2npkKuX+/FeXk88Ic+Sit4QmQ=
-----END CERTIFICATE-----
";
/// What `openssl ca -gencrl` makes without a crlnumber.
const LIST_OF_VERSION_1: &str = "\
-----BEGIN X509 CRL-----
MIGTMDwwCgYIKoZIzj0EAwIwDjEMMAoGA1UEAwwDb2xkFw0yNjExMzAxODUxMzVa
GA8yMTI2MTEwNjE4NTEzNVowCgYIKoZIzj0EAwIDRwAwRAIgB251xYVH3pZ7ulo2
RO9HAcxx5pLDcShvmn+bVo9tEc8CIEiSh7XzTbPdW9FlP2bpnQ2ei2+4mmNnHB6/
qFGu739/
-----END X509 CRL-----
";
