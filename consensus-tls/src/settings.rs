//! Settings: which files, and which peers are accepted.

use std::path::PathBuf;

/// Settings of a [`Tls`](crate::Tls).
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// Name of the other side in messages, for example `clients` or `nodes`.
    pub peers: &'static str,
    /// Certificate and key of this program. A program that only connects needs none.
    pub identity: Option<Identity>,
    /// Certificate and key for connections that this program opens. `None`: [`identity`](Self::identity).
    pub outgoing_identity: Option<Identity>,
    /// Certificates of the authorities that are trusted, PEM or DER.
    pub ca_file: Option<PathBuf>,
    /// Revocation lists, PEM or DER. `None`: nothing is revoked.
    pub crl_file: Option<PathBuf>,
    /// Whether a peer that connects shows a certificate.
    pub client_certificates: ClientCertificates,
    /// Which certificates are accepted among those that an authority signed.
    pub allowed: AllowedNames,
    /// How the certificate of a server is verified.
    pub server_trust: ServerTrust,
    /// Whether connections without TLS are accepted as well.
    pub plain: PlainConnections,
    /// Oldest version that is negotiated.
    pub version_min: TlsVersion,
    /// Newest version that is negotiated.
    pub version_max: TlsVersion,
    /// Cipher suites by their names of the IANA registry; see [`cipher_suite_names`](crate::cipher_suite_names). Empty: all that
    /// the library has, none of which is weak. If the list names none of TLS 1.3, all of TLS 1.3 stay allowed, as in etcd.
    pub cipher_suites: Vec<String>,
    /// Protocols that this program offers or accepts by ALPN. A peer that offers none is accepted.
    pub protocols: Vec<&'static str>,
}

impl TlsSettings {
    /// Settings without any file: TLS 1.2 and 1.3, no certificates of clients, servers verified by the system's authorities.
    #[must_use]
    pub fn new(peers: &'static str) -> Self {
        Self {
            peers,
            identity: None,
            outgoing_identity: None,
            ca_file: None,
            crl_file: None,
            client_certificates: ClientCertificates::Ignored,
            allowed: AllowedNames::default(),
            server_trust: ServerTrust::Authorities,
            plain: PlainConnections::Refused,
            version_min: TlsVersion::Tls12,
            version_max: TlsVersion::Tls13,
            cipher_suites: Vec::new(),
            protocols: Vec::new(),
        }
    }
}

/// Files of a certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, followed by those of intermediate authorities. PEM, or DER without intermediates.
    pub certificate_file: PathBuf,
    /// Private key: PKCS#8, PKCS#1 or SEC1, in PEM or DER, without a password.
    pub key_file: PathBuf,
}

impl Identity {
    /// The files of a certificate and its key.
    pub fn new(certificate_file: impl Into<PathBuf>, key_file: impl Into<PathBuf>) -> Self {
        Self { certificate_file: certificate_file.into(), key_file: key_file.into() }
    }
}

/// Whether a peer that connects shows a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// It is not asked for one.
    Ignored,
    /// It may show one; one that it shows must be valid.
    Optional,
    /// It is refused without a valid one.
    Required,
}

/// Whether connections without TLS are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainConnections {
    /// Only TLS, in both directions.
    Refused,
    /// While a cluster changes to TLS: the first byte of a connection tells which it is, and this program falls back to a plain
    /// connection where a server speaks no TLS. An attacker in the network can therefore prevent encryption.
    Accepted,
}

/// How the certificate of a server is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerTrust {
    /// By [`ca_file`](TlsSettings::ca_file), or if there is no such file by the authorities of the system and the certificates of
    /// [`identity`](TlsSettings::identity). The certificate must be for the host that is connected to.
    Authorities,
    /// As `Authorities`, except that the certificate may be for any host. With [`AllowedNames`] it must be for one of those.
    AnyHost,
    /// Not at all. The connection is encrypted, but the server may be anybody.
    Unverified,
}

/// Names of which the certificate of a peer must have one. Without any name every certificate of a trusted authority is accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedNames {
    /// Common names of subjects.
    pub common_names: Vec<String>,
    /// Host names or addresses that the certificate is for.
    pub host_names: Vec<String>,
    /// Refuses certificates that are not for servers by their extended key usages. One without such usages is accepted only if
    /// names are allowed. So a stolen certificate of a client is no node, even if one authority signs both.
    pub node_usage: bool,
}

impl AllowedNames {
    /// Whether certificates need no check beyond their authority.
    pub(crate) fn is_any(&self) -> bool {
        !self.node_usage && !self.has_names()
    }

    pub(crate) fn has_names(&self) -> bool {
        !self.common_names.is_empty() || !self.host_names.is_empty()
    }
}

/// Version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}
