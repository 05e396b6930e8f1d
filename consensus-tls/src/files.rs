//! Reads the files, and checks what is in them.

use std::{
    collections::hash_map::DefaultHasher,
    fmt,
    fs::File,
    hash::Hasher,
    io::{self, Read},
    path::{Path, PathBuf},
};

use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime,
    pem::{self, PemObject},
};
use x509_parser::{prelude::FromDer, revocation_list::CertificateRevocationList};

use crate::{
    certificate,
    settings::{Identity, TlsSettings},
};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{role} {}: cannot be read: {source}", path.display())]
    Read {
        /// Which of the files.
        role: FileRole,
        /// Its path.
        path: PathBuf,
        /// Reason.
        source: io::Error,
    },
    /// The content of a file is wrong.
    #[error("{role} {}: {why}", path.display())]
    Content {
        /// Which of the files.
        role: FileRole,
        /// Its path.
        path: PathBuf,
        /// Reason, and what to do.
        why: String,
    },
    /// A setting is wrong.
    #[error("{setting}: {why}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// Allowed values.
        why: String,
    },
}

/// Which of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileRole {
    /// Certificate of this program.
    Certificate,
    /// Private key of this program.
    Key,
    /// Certificates of trusted authorities.
    Authorities,
    /// Revocation lists.
    Revocations,
}

impl fmt::Display for FileRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate",
            Self::Key => "private key",
            Self::Authorities => "CA certificates",
            Self::Revocations => "revocation list (CRL)",
        })
    }
}

/// One file with its content.
pub(crate) struct Source {
    pub(crate) role: FileRole,
    pub(crate) path: PathBuf,
    content: Vec<u8>,
}

impl Source {
    fn read(role: FileRole, path: &Path) -> Result<Self, TlsError> {
        let content =
            read_bounded(path).map_err(|source| TlsError::Read { role, path: path.to_owned(), source })?;
        Ok(Self { role, path: path.to_owned(), content })
    }

    pub(crate) fn error(&self, why: impl Into<String>) -> TlsError {
        TlsError::Content { role: self.role, path: self.path.clone(), why: why.into() }
    }

    /// Whether the file has text in PEM; otherwise it is taken for DER.
    fn is_pem(&self) -> bool {
        self.content.windows(PEM_BEGIN.len()).any(|bytes| bytes == PEM_BEGIN)
    }

    fn pem_error(&self, error: &pem::Error, kind: &str) -> TlsError {
        match error {
            pem::Error::NoItemsFound => self.error(format!("it has no {kind} in PEM")),
            other => self.error(format!("it is no valid PEM: {other}")),
        }
    }

    /// The certificates of the file, at least one, each of version 3.
    pub(crate) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let found = if self.is_pem() {
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.content).collect();
            found.map_err(|error| self.pem_error(&error, "certificate"))?
        } else {
            vec![CertificateDer::from(self.content.clone())]
        };
        if found.is_empty() {
            return Err(self.error("it has no certificate (BEGIN CERTIFICATE)"));
        }
        for der in &found {
            certificate::check_version(der).map_err(|why| self.error(why))?;
        }
        Ok(found)
    }

    /// The private key of the file.
    pub(crate) fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        if !self.is_pem() {
            let key = PrivateKeyDer::try_from(self.content.clone());
            return key.map_err(|why| self.error(format!("it has no private key: {why}")));
        }
        let is_encrypted = [&b"ENCRYPTED PRIVATE KEY"[..], b"Proc-Type: 4,ENCRYPTED"]
            .iter()
            .any(|mark| self.content.windows(mark.len()).any(|bytes| bytes == *mark));
        PrivateKeyDer::from_pem_slice(&self.content).map_err(|error| match error {
            _ if is_encrypted => self.error(
                "the key has a password, which nobody can enter here: write it without one (openssl pkey)",
            ),
            pem::Error::NoItemsFound => self.error("it has no private key (BEGIN PRIVATE KEY)"),
            error => self.pem_error(&error, "private key"),
        })
    }

    /// The revocation lists of the file, at least one, each of version 2.
    pub(crate) fn revocation_lists(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
        let found = if self.is_pem() {
            let found: Result<Vec<_>, _> =
                CertificateRevocationListDer::pem_slice_iter(&self.content).collect();
            found.map_err(|error| self.pem_error(&error, "revocation list"))?
        } else {
            vec![CertificateRevocationListDer::from(self.content.clone())]
        };
        if found.is_empty() {
            return Err(self.error("it has no revocation list (BEGIN X509 CRL)"));
        }
        for der in &found {
            self.check_revocation_list(der)?;
        }
        Ok(found)
    }

    fn check_revocation_list(&self, der: &[u8]) -> Result<(), TlsError> {
        let (_, list) = CertificateRevocationList::from_der(der)
            .map_err(|error| self.error(format!("it is no revocation list: {error}")))?;
        if list.version().is_none_or(|version| version.0 != 1) {
            return Err(self.error(
                "it is a revocation list of version 1; version 2 is needed: issue it with `crlnumber` or extensions (openssl: \
                 -crlexts)",
            ));
        }
        let now = seconds(UnixTime::now());
        if list.next_update().is_some_and(|next| next.timestamp() < now) {
            tracing::warn!(file = %self.path.display(), issuer = %list.issuer(), "the revocation list is past the date of its next \
                update; it is used all the same, and certificates that were revoked since are accepted");
        }
        Ok(())
    }
}

/// All files of the settings, read together.
pub(crate) struct Sources {
    pub(crate) identity: Option<(Source, Source)>,
    pub(crate) outgoing_identity: Option<(Source, Source)>,
    pub(crate) authorities: Option<Source>,
    pub(crate) revocations: Option<Source>,
}

impl Sources {
    pub(crate) fn read(settings: &TlsSettings) -> Result<Self, TlsError> {
        let pair = |identity: &Option<Identity>| {
            let pair = identity.as_ref().map(|Identity { certificate_file, key_file }| {
                Ok((
                    Source::read(FileRole::Certificate, certificate_file)?,
                    Source::read(FileRole::Key, key_file)?,
                ))
            });
            pair.transpose()
        };
        let one =
            |role, path: &Option<PathBuf>| path.as_ref().map(|path| Source::read(role, path)).transpose();
        Ok(Self {
            identity: pair(&settings.identity)?,
            outgoing_identity: pair(&settings.outgoing_identity)?,
            authorities: one(FileRole::Authorities, &settings.ca_file)?,
            revocations: one(FileRole::Revocations, &settings.crl_file)?,
        })
    }

    /// What is known of the files now.
    pub(crate) fn findings(&self) -> Findings {
        let now = seconds(UnixTime::now());
        let own = self.identity.iter().chain(&self.outgoing_identity).map(|(certificate, _)| certificate);
        let certificates =
            own.chain(&self.authorities).filter_map(|source| source.certificates().ok()).flatten();
        let changes = certificates.flat_map(|der| certificate::validity_changes(&der));
        let stale_at = changes.filter(|at| *at > now).min().unwrap_or(i64::MAX);
        Findings { fingerprint: self.fingerprint(), stale_at }
    }

    /// Hash of the contents, by which a change is noticed.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let pairs = self.identity.iter().chain(&self.outgoing_identity).flat_map(|(one, two)| [one, two]);
        for source in pairs.chain(&self.authorities).chain(&self.revocations) {
            hasher.write_usize(source.content.len());
            hasher.write(&source.content);
        }
        hasher.finish()
    }
}

/// State of all files at some time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Findings {
    fingerprint: u64,
    /// Seconds since 1970 at which the next certificate becomes valid or expires, so that the files must be checked again.
    stale_at: i64,
}

impl Findings {
    /// Whether these are the files of `earlier`, and what was found out of them then still holds.
    pub(crate) fn is_still(self, earlier: Self) -> bool {
        self.fingerprint == earlier.fingerprint && self.stale_at == earlier.stale_at
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(content)
}

/// Seconds since 1970.
pub(crate) fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

/// Revocation lists of large organizations have some megabytes.
const FILE_BYTES_MAX: u64 = 64 << 20;
const PEM_BEGIN: &[u8] = b"-----BEGIN ";
