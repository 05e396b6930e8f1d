//! What a certificate says.

use std::net::IpAddr;

use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer, x509::X509Version,
};

use crate::files::seconds;

/// The certificate that a peer showed and that was verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Common name of its subject; `None` if it has none. The last one, if it has several, as in Go.
    pub common_name: Option<String>,
    /// DNS names and addresses that it is for.
    pub host_names: Vec<String>,
}

impl PeerCertificate {
    /// Reads the names of a certificate. One that cannot be parsed has none.
    pub(crate) fn of(der: &CertificateDer<'_>) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Self::default() };
        Self { common_name: common_name(&certificate), host_names: host_names(&certificate) }
    }
}

/// Description of a certificate for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) subject: String,
    /// Seconds since 1970 after which it is not valid.
    pub(crate) not_after: i64,
    /// The same in words.
    pub(crate) not_after_text: String,
}

/// Checks that a certificate has version 3.
pub(crate) fn check_version(der: &[u8]) -> Result<(), String> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|error| format!("it has no certificate: {error}"))?;
    if certificate.version() == X509Version::V3 {
        return Ok(());
    }
    Err(format!(
        "the certificate {} has version {}, and version 3 is needed: `openssl x509 -req` makes version 1 unless it is given \
         extensions (-extfile or -copy_extensions)",
        certificate.subject(),
        certificate.version().0 + 1
    ))
}

/// Checks that a certificate is valid now.
pub(crate) fn check_validity(der: &[u8]) -> Result<Description, String> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|error| format!("it has no certificate: {error}"))?;
    let (validity, now, subject) =
        (certificate.validity(), seconds(UnixTime::now()), certificate.subject().to_string());
    if now > validity.not_after.timestamp() {
        return Err(format!("the certificate {subject} expired at {}", validity.not_after));
    }
    if now < validity.not_before.timestamp() {
        return Err(format!(
            "the certificate {subject} is not valid before {}; check the clock of this machine",
            validity.not_before
        ));
    }
    let not_after = validity.not_after.timestamp();
    Ok(Description { subject, not_after, not_after_text: validity.not_after.to_string() })
}

/// Seconds since 1970 at which a certificate becomes valid, and from which it has expired.
pub(crate) fn validity_changes(der: &[u8]) -> Vec<i64> {
    X509Certificate::from_der(der).map_or_else(
        |_| Vec::new(),
        |(_, certificate)| {
            let validity = certificate.validity();
            vec![validity.not_before.timestamp(), validity.not_after.timestamp().saturating_add(1)]
        },
    )
}

/// Whether a certificate is one of an authority.
pub(crate) fn is_authority(der: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| certificate.is_ca())
}

/// What the extended key usages of a certificate allow; `None` if it has none.
pub(crate) fn usages(der: &[u8]) -> Option<Usages> {
    let refused = Some(Usages { server: false, client: false });
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return refused };
    match certificate.extended_key_usage() {
        Ok(None) => None,
        Ok(Some(usage)) => Some(Usages { server: usage.value.server_auth, client: usage.value.client_auth }),
        Err(_) => refused,
    }
}

/// Extended key usages. `any` is not among them, as the verifiers refuse certificates that have only that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usages {
    pub(crate) server: bool,
    pub(crate) client: bool,
}

fn common_name(certificate: &X509Certificate<'_>) -> Option<String> {
    let last = certificate.subject().iter_common_name().last()?;
    last.as_str().ok().map(str::to_owned).filter(|name| !name.is_empty())
}

fn host_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(bytes.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}
