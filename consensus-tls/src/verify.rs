//! Verifiers that accept some of the certificates that an authority signed, or servers that are not verified.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use crate::{
    certificate::{self, PeerCertificate},
    settings::AllowedNames,
};

/// Reason that a certificate of a trusted authority is refused.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotAllowed(String);

fn not_allowed(why: String) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(NotAllowed(why)))))
}

/// Checks the names of a certificate that was verified.
fn check(allowed: &AllowedNames, der: &CertificateDer<'_>) -> Result<(), Error> {
    if allowed.node_usage {
        check_node_usage(allowed, der)?;
    }
    if !allowed.has_names() {
        return Ok(());
    }
    let PeerCertificate { common_name, host_names } = PeerCertificate::of(der);
    if common_name.as_ref().is_some_and(|name| allowed.common_names.contains(name)) {
        return Ok(());
    }
    let parsed = ParsedCertificate::try_from(der)?;
    let is_for = |host: &String| {
        ServerName::try_from(host.as_str()).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
    };
    if allowed.host_names.iter().any(is_for) {
        return Ok(());
    }
    Err(not_allowed(format!(
        "the certificate with the common name {:?}, for the hosts {host_names:?}, is not among the allowed names",
        common_name.unwrap_or_default()
    )))
}

/// Checks that a certificate is not one of a client: by its extended key usages, or if it has none by the allowed names.
fn check_node_usage(allowed: &AllowedNames, der: &CertificateDer<'_>) -> Result<(), Error> {
    let why = match certificate::usages(der) {
        Some(usages) if usages.server => return Ok(()),
        Some(_) => {
            "is for clients alone (extended key usage without serverAuth), and this is a port for nodes"
        }
        None if allowed.has_names() => return Ok(()),
        None => {
            "has no extended key usage, so it may be one of a client: nodes need serverAuth and clientAuth, or allowed names"
        }
    };
    let name = PeerCertificate::of(der).common_name.unwrap_or_default();
    Err(not_allowed(format!("the certificate of {name} {why}")))
}

/// Accepts clients with allowed names.
#[derive(Debug)]
pub(crate) struct AllowedClients {
    pub(crate) verifier: Arc<dyn ClientCertVerifier>,
    pub(crate) allowed: AllowedNames,
}

impl ClientCertVerifier for AllowedClients {
    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.verifier.verify_client_cert(end_entity, intermediates, now)?;
        check(&self.allowed, end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Accepts servers with allowed names.
#[derive(Debug)]
pub(crate) struct AllowedServers {
    pub(crate) verifier: Arc<dyn ServerCertVerifier>,
    pub(crate) allowed: AllowedNames,
    /// Whether the certificate may be for another host than the one that was connected to.
    pub(crate) any_host: bool,
}

impl ServerCertVerifier for AllowedServers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let verified = match verified {
            // The verifier looks at the name last, when all else was found valid.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.any_host => ServerCertVerified::assertion(),
            verified => verified?,
        };
        check(&self.allowed, end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Accepts any server. Its signature is checked, so that only the owner of the certificate's key can read the connection.
#[derive(Debug)]
pub(crate) struct AnyServer(pub(crate) Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
