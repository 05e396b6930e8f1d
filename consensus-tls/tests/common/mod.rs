//! Certificates and connections of tests.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use consensus_tls::{
    ClientCertificates, Identity, Stream, Tls, TlsSettings,
    issue::{Authority, Days, Issued},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

pub(crate) const VALID: Days = Days(30);

/// A folder of certificates.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    pub(crate) fn identity(&self, name: &str, issued: &Issued) -> Identity {
        let identity = Identity::new(self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        issued.write(&identity.certificate_file, &identity.key_file).unwrap();
        identity
    }
}

pub(crate) fn authority(name: &str) -> Authority {
    Authority::create(name, VALID).unwrap().0
}

pub(crate) fn hosts() -> Vec<String> {
    vec!["localhost".to_owned(), "127.0.0.1".to_owned()]
}

/// Settings of a node with a certificate of `authority`, which clients must have, too.
pub(crate) fn node(folder: &Folder, authority: &Authority) -> TlsSettings {
    let mut settings = TlsSettings::new("clients");
    let issued = authority.issue_node("node", &hosts(), VALID).unwrap();
    settings.identity = Some(folder.identity("node", &issued));
    settings.ca_file = Some(folder.write("ca.crt", authority.certificate_pem()));
    settings.client_certificates = ClientCertificates::Required;
    settings
}

/// Settings of a client that trusts `authority`, with this certificate.
pub(crate) fn client(folder: &Folder, authority: &Authority, issued: Option<&Issued>) -> TlsSettings {
    let mut settings = TlsSettings::new("servers");
    settings.ca_file = Some(folder.write("client-ca.crt", authority.certificate_pem()));
    settings.identity = issued.map(|issued| folder.identity("client", issued));
    settings
}

/// Connects to a server with these settings, and exchanges a byte, without which a client of TLS 1.3 does not hear that it is
/// refused. Returns what either side sees.
pub(crate) async fn exchange(
    server: &Tls,
    client: &Tls,
) -> (std::io::Result<Option<Stream>>, std::io::Result<Stream>) {
    let (listener, address) = listener().await;
    let accepting = async {
        let (stream, from) = listener.accept().await?;
        let accepted = server.accept(stream, from).await?;
        match accepted {
            Some(mut stream) => {
                stream.write_all(b"s").await?;
                stream.flush().await?;
                Ok(Some(stream))
            }
            None => Ok(None),
        }
    };
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        let mut stream = client.connect(stream, "localhost", Duration::from_secs(5)).await?;
        stream.read_exact(&mut [0]).await?;
        Ok(stream)
    };
    tokio::join!(accepting, connecting)
}

pub(crate) async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Content of the first block of a PEM.
pub(crate) fn der(pem: &str) -> Vec<u8> {
    x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents
}

pub(crate) fn serial_number(issued: &Issued) -> Vec<u8> {
    let der = der(&issued.certificate_pem);
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
    certificate.raw_serial().to_vec()
}
