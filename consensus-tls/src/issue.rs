//! Makes authorities and certificates.

use std::{fs::OpenOptions, io, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use time::{Duration, OffsetDateTime};

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
}

/// Days from now in which a certificate is valid. Negative: it ended before.
#[derive(Clone, Copy, Debug)]
pub struct Days(pub i64);

impl Authority {
    /// Makes an authority, with its key.
    ///
    /// # Errors
    /// The name cannot stand in a certificate.
    pub fn create(name: &str, valid: Days) -> Result<(Self, Issued), rcgen::Error> {
        let mut params = params(name, &[], valid)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate_pem = params.self_signed(&key)?.pem();
        let issued = Issued { certificate_pem: certificate_pem.clone(), key_pem: key.serialize_pem() };
        let issuer = Issuer::new(params, key);
        Ok((Self { certificate_pem, issuer }, issued))
    }

    /// Takes an authority from its certificate and key, in PEM.
    ///
    /// # Errors
    /// They cannot be parsed.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, rcgen::Error> {
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, KeyPair::from_pem(key_pem)?)?;
        Ok(Self { certificate_pem: certificate_pem.to_owned(), issuer })
    }

    /// The authority's certificate, in PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Issues the certificate of a node, which is a server for clients and both for other nodes.
    ///
    /// # Errors
    /// A name cannot stand in a certificate.
    pub fn issue_node(&self, name: &str, hosts: &[String], valid: Days) -> Result<Issued, rcgen::Error> {
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(name, hosts, valid, usages)
    }

    /// Issues the certificate of a client, whose common name is the name of a user.
    ///
    /// # Errors
    /// The name cannot stand in a certificate.
    pub fn issue_client(&self, name: &str, valid: Days) -> Result<Issued, rcgen::Error> {
        self.issue(name, &[], valid, vec![ExtendedKeyUsagePurpose::ClientAuth])
    }

    fn issue(
        &self,
        name: &str,
        hosts: &[String],
        valid: Days,
        usages: Vec<ExtendedKeyUsagePurpose>,
    ) -> Result<Issued, rcgen::Error> {
        let mut params = params(name, hosts, valid)?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        let key = KeyPair::generate()?;
        let certificate_pem = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { certificate_pem, key_pem: key.serialize_pem() })
    }

    /// Issues a list that revokes the certificates with these serial numbers. In PEM.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn revoke(&self, serial_numbers: &[Vec<u8>], valid: Days) -> Result<String, rcgen::Error> {
        let now = OffsetDateTime::now_utc();
        let revoked = |number: &Vec<u8>| RevokedCertParams {
            serial_number: SerialNumber::from_slice(number),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now - Duration::days(1) + Duration::days(valid.0.min(0)),
            next_update: now + Duration::days(valid.0),
            crl_number: SerialNumber::from(u64::try_from(now.unix_timestamp()).unwrap_or_default()),
            issuing_distribution_point: None,
            revoked_certs: serial_numbers.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer)?.pem()
    }
}

/// Makes a certificate for a server that its own key signs. Nobody can verify it, except who has a copy.
///
/// # Errors
/// A name cannot stand in a certificate.
pub fn self_signed(name: &str, hosts: &[String], valid: Days) -> Result<Issued, rcgen::Error> {
    let mut params = params(name, hosts, valid)?;
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    let certificate_pem = params.self_signed(&key)?.pem();
    Ok(Issued { certificate_pem, key_pem: key.serialize_pem() })
}

fn params(name: &str, hosts: &[String], valid: Days) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::now_utc();
    // Clocks differ. An expired one began earlier still.
    params.not_before = now - Duration::days(1) + Duration::days(valid.0.min(0));
    params.not_after = now + Duration::days(valid.0);
    Ok(params)
}

impl Issued {
    /// Writes both files; the key is readable for its owner alone. Files that exist are replaced one after the other.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, certificate_file: &Path, key_file: &Path) -> io::Result<()> {
        write(key_file, &self.key_pem, 0o600)?;
        write(certificate_file, &self.certificate_pem, 0o644)
    }
}

/// Writes a file beside its place, and renames it.
fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let write = || {
        let _ = std::fs::remove_file(&beside); // Its mode would stay.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(named)
}
