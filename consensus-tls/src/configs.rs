//! Builds the configurations of rustls from the files.

use std::{io, sync::Arc};

use rustls::{
    AlertDescription, CertificateError, CipherSuite, ClientConfig, ConfigBuilder, Error, RootCertStore,
    ServerConfig, SupportedProtocolVersion, WantsVerifier,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::CertificateRevocationListDer,
    server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};

use crate::{
    certificate::{self, Description},
    files::{Findings, Source, Sources, TlsError},
    settings::{ClientCertificates, ServerTrust, TlsSettings, TlsVersion},
    verify::{AllowedClients, AllowedServers, AnyServer},
};

/// Configurations that were made of the same files.
pub(crate) struct Configs {
    /// For connections of others; `None` without a certificate.
    pub(crate) server: Option<Arc<ServerConfig>>,
    /// For connections that this program opens.
    pub(crate) client: Arc<ClientConfig>,
    /// The certificate of this program; `None` if it has none.
    pub(crate) certificate: Option<Description>,
    /// The certificate for connections that this program opens; `None` if it has no other one for them.
    pub(crate) outgoing_certificate: Option<Description>,
    /// The files.
    pub(crate) findings: Findings,
}

impl Configs {
    pub(crate) fn build(settings: &TlsSettings, sources: &Sources) -> Result<Self, TlsError> {
        let provider = Arc::new(provider(settings)?);
        let builder = Builder { settings, sources, versions: versions(settings)?, provider };
        let findings = sources.findings(); // First, as time goes on.
        let check = |identity: &Option<(Source, Source)>| {
            identity.as_ref().map(|(certificate, _)| check_identity(certificate)).transpose()
        };
        let (certificate, outgoing_certificate) =
            (check(&sources.identity)?, check(&sources.outgoing_identity)?);
        check_own_usages(settings, sources)?;
        Ok(Self {
            server: builder.server()?.map(Arc::new),
            client: Arc::new(builder.client()?),
            certificate,
            outgoing_certificate,
            findings,
        })
    }
}

struct Builder<'a> {
    settings: &'a TlsSettings,
    sources: &'a Sources,
    versions: Vec<&'static SupportedProtocolVersion>,
    provider: Arc<CryptoProvider>,
}

impl Builder<'_> {
    fn server(&self) -> Result<Option<ServerConfig>, TlsError> {
        let Some(identity) = &self.sources.identity else { return Ok(None) };
        let (certificate, key) = identity;
        let builder = self.versioned(ServerConfig::builder_with_provider(self.provider.clone()))?;
        let builder = builder.with_client_cert_verifier(self.client_verifier()?);
        let mut config = builder
            .with_single_cert(certificate.certificates()?, key.key()?)
            .map_err(|error| key_error(key, certificate, &error))?;
        config.alpn_protocols = self.protocols();
        Ok(Some(config))
    }

    fn client(&self) -> Result<ClientConfig, TlsError> {
        let builder = self.versioned(ClientConfig::builder_with_provider(self.provider.clone()))?;
        let builder = builder.dangerous().with_custom_certificate_verifier(self.server_verifier()?);
        let mut config = match self.sources.outgoing_identity.as_ref().or(self.sources.identity.as_ref()) {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder
                .with_client_auth_cert(certificate.certificates()?, key.key()?)
                .map_err(|error| key_error(key, certificate, &error))?,
        };
        config.alpn_protocols = self.protocols();
        Ok(config)
    }

    fn protocols(&self) -> Vec<Vec<u8>> {
        self.settings.protocols.iter().map(|name| name.as_bytes().to_vec()).collect()
    }

    fn versioned<S: rustls::ConfigSide>(
        &self,
        builder: ConfigBuilder<S, rustls::WantsVersions>,
    ) -> Result<ConfigBuilder<S, WantsVerifier>, TlsError> {
        builder.with_protocol_versions(&self.versions).map_err(|error| TlsError::Setting {
            setting: "cipher suites",
            why: format!("no cipher suite is left for the allowed versions: {error}"),
        })
    }

    fn client_verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let settings = self.settings;
        if settings.client_certificates == ClientCertificates::Ignored {
            return Ok(Arc::new(NoClientAuth));
        }
        let (roots, crls) = (Arc::new(self.roots()?), self.revocations()?);
        let builder = WebPkiClientVerifier::builder_with_provider(roots, self.provider.clone());
        let mut builder = builder.with_crls(crls).allow_unknown_revocation_status();
        if settings.client_certificates == ClientCertificates::Optional {
            builder = builder.allow_unauthenticated();
        }
        let verifier = builder.build().map_err(|error| self.verifier_error(error.to_string()))?;
        if settings.allowed.is_any() {
            return Ok(verifier);
        }
        Ok(Arc::new(AllowedClients { verifier, allowed: settings.allowed.clone() }))
    }

    fn server_verifier(&self) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
        let settings = self.settings;
        if settings.server_trust == ServerTrust::Unverified {
            return Ok(Arc::new(AnyServer(self.provider.clone())));
        }
        let (roots, crls) = (Arc::new(self.roots()?), self.revocations()?);
        let builder = WebPkiServerVerifier::builder_with_provider(roots, self.provider.clone());
        let builder = builder.with_crls(crls).allow_unknown_revocation_status();
        let verifier = builder.build().map_err(|error| self.verifier_error(error.to_string()))?;
        let any_host = settings.server_trust == ServerTrust::AnyHost;
        // Names of clients say nothing about servers, unless both are nodes.
        if !any_host && !settings.allowed.node_usage {
            return Ok(verifier);
        }
        Ok(Arc::new(AllowedServers { verifier, allowed: settings.allowed.clone(), any_host }))
    }

    /// An authority or revocation list that rustls does not take.
    fn verifier_error(&self, why: String) -> TlsError {
        let source = self.sources.revocations.as_ref().or(self.sources.authorities.as_ref());
        match source {
            Some(source) => source.error(why),
            None => TlsError::Setting { setting: "authorities", why },
        }
    }

    /// The trusted authorities: those of the file, or of the system.
    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        let Some(file) = &self.sources.authorities else {
            if self.settings.client_certificates != ClientCertificates::Ignored {
                let why = "certificates of clients are asked for, but no CA is given that signs them";
                return Err(TlsError::Setting { setting: "CA certificates", why: why.to_owned() });
            }
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            // Nodes may share a certificate that no authority signed, or have those of one intermediate authority.
            if let Some((own, _)) = &self.sources.identity {
                roots.add_parsable_certificates(own.certificates()?);
            }
            return if roots.is_empty() { Err(no_authorities()) } else { Ok(roots) };
        };
        let mut expired = None;
        for der in file.certificates()? {
            if let Err(why) = certificate::check_validity(&der) {
                tracing::warn!(file = %file.path.display(), "{why}; it is ignored");
                expired = Some(why);
                continue;
            }
            roots
                .add(der)
                .map_err(|error| file.error(format!("a certificate is unfit for a CA: {error}")))?;
        }
        match expired {
            Some(why) if roots.is_empty() => Err(file.error(why)),
            _ => Ok(roots),
        }
    }

    fn revocations(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
        self.sources.revocations.as_ref().map_or(Ok(Vec::new()), Source::revocation_lists)
    }
}

fn no_authorities() -> TlsError {
    let why =
        "no CA is given, and the system has none either; give the CA that signed the servers' certificates";
    TlsError::Setting { setting: "CA certificates", why: why.to_owned() }
}

/// Checks the certificate of this program beyond what rustls checks.
fn check_identity(source: &Source) -> Result<Description, TlsError> {
    let certificates = source.certificates()?;
    let Some(leaf) = certificates.first() else { return Err(source.error("it has no certificate")) };
    if certificate::is_authority(leaf) {
        tracing::warn!(file = %source.path.display(), "the certificate is one of an authority (CA:TRUE), which many clients and all \
            nodes refuse for a server; issue one for this server: kvctl cert node");
    }
    certificate::check_validity(leaf).map_err(|why| source.error(why))
}

/// Checks that other nodes accept the certificates of this one, which are for both uses.
fn check_own_usages(settings: &TlsSettings, sources: &Sources) -> Result<(), TlsError> {
    if !settings.allowed.node_usage {
        return Ok(());
    }
    for (source, _) in sources.identity.iter().chain(&sources.outgoing_identity) {
        let leaf = source.certificates()?.into_iter().next();
        let is_fit = match leaf.and_then(|leaf| certificate::usages(&leaf)) {
            Some(usages) => usages.server && usages.client,
            None => settings.allowed.has_names(),
        };
        if !is_fit {
            return Err(source.error(
                "other nodes would refuse it: the extended key usages of a node are serverAuth and clientAuth. Without any, the \
                 allowed names must say which certificates are those of nodes",
            ));
        }
    }
    Ok(())
}

fn key_error(key: &Source, certificate: &Source, error: &Error) -> TlsError {
    match error {
        Error::InconsistentKeys(_) => {
            key.error(format!("the key is not that of the certificate {}", certificate.path.display()))
        }
        Error::InvalidCertificate(_) => certificate.error(error.to_string()),
        _ => key.error(error.to_string()),
    }
}

fn versions(settings: &TlsSettings) -> Result<Vec<&'static SupportedProtocolVersion>, TlsError> {
    let (min, max) = (settings.version_min, settings.version_max);
    if min > max {
        let why = "the oldest version that is allowed is newer than the newest one";
        return Err(TlsError::Setting { setting: "TLS versions", why: why.to_owned() });
    }
    let all = [(TlsVersion::Tls13, &TLS13), (TlsVersion::Tls12, &TLS12)];
    Ok(all.into_iter().filter(|(version, _)| (min..=max).contains(version)).map(|(_, of)| of).collect())
}

/// The cryptography, with the cipher suites that are allowed.
fn provider(settings: &TlsSettings) -> Result<CryptoProvider, TlsError> {
    let mut provider = library();
    if settings.cipher_suites.is_empty() {
        return Ok(provider);
    }
    let mut wanted = Vec::new();
    for name in &settings.cipher_suites {
        let mut known = provider.cipher_suites.iter().map(rustls::SupportedCipherSuite::suite);
        let found = known.find(|suite| suite_name(*suite) == *name);
        wanted.push(found.ok_or_else(|| TlsError::Setting {
            setting: "cipher suites",
            why: format!(
                "{name} is unknown, or too weak to be offered; the suites are {}",
                cipher_suite_names().join(", ")
            ),
        })?);
    }
    let is_newest = |suite: CipherSuite| suite.as_str().is_some_and(|name| name.starts_with("TLS13_"));
    let has_newest = wanted.iter().copied().any(is_newest);
    provider
        .cipher_suites
        .retain(|known| wanted.contains(&known.suite()) || (!has_newest && is_newest(known.suite())));
    Ok(provider)
}

/// Names of the cipher suites, the preferred one first.
#[must_use]
pub fn cipher_suite_names() -> Vec<String> {
    library().cipher_suites.iter().map(|suite| suite_name(suite.suite())).collect()
}

/// Name of the registry, which etcd has too.
fn suite_name(suite: CipherSuite) -> String {
    let name = suite.as_str().unwrap_or_default();
    name.strip_prefix("TLS13_").map_or_else(|| name.to_owned(), |rest| format!("TLS_{rest}"))
}

#[cfg(feature = "aws-lc-rs")]
fn library() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

#[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
fn library() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

/// The error of a handshake, in words for an operator.
pub(crate) fn handshake_error(error: &io::Error) -> String {
    let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match of_tls {
        Some(Error::NoCertificatesPresented) => {
            "the client shows no certificate, and one is required".to_owned()
        }
        Some(Error::InvalidMessage(_)) => format!("the other side speaks no TLS ({error})"),
        Some(Error::AlertReceived(alert)) => match alert {
            // The second one is sent where a trusted authority has the name of the issuer, and another key.
            AlertDescription::UnknownCA
            | AlertDescription::DecryptError
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate => {
                format!("the other side does not accept the certificate of this one (alert {alert:?})")
            }
            alert => format!("the other side refused: alert {alert:?}"),
        },
        Some(Error::InvalidCertificate(CertificateError::BadSignature)) => {
            "invalid peer certificate: a trusted authority has the name of its issuer, and another key"
                .to_owned()
        }
        _ if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the other side closed the connection during the handshake".to_owned()
        }
        _ => error.to_string(),
    }
}
