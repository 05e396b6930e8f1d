//! Section `[tls]`: encryption of the ports, and who may connect.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use consensus_tls::TlsVersion;

use super::values::{DAY, MILLISECOND, duration, tls_version};

/// Settings of `[tls]`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "[tls]")]
pub(crate) struct TlsSection {
    /// Certificate of the server for its clients, followed by those of intermediate authorities (PEM, or DER). With it clients use
    /// TLS.
    ///
    /// The server reads all files of this section again when one of them changes, and at SIGHUP. Followers forward requests to the
    /// leader with TLS, too, and show it this certificate. Default: clients use no TLS.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert_file: Option<PathBuf>,
    /// Private key of `tls_cert_file`, without a password. Default: none.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_key_file: Option<PathBuf>,
    /// Certificates of the authorities that sign those of clients, and those of the servers that this one forwards requests to.
    ///
    /// Default: clients show no certificate, and servers are verified by the authorities of the system and `tls_cert_file`.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca_file: Option<PathBuf>,
    /// Lists of revoked certificates of clients (CRL; PEM or DER). It needs `tls_ca_file`. Default: none is revoked.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_crl_file: Option<PathBuf>,
    /// Whether clients show a certificate. Default: `required` if there is a `tls_ca_file`, else `ignored`.
    #[arg(long)]
    pub(crate) tls_client_certificates: Option<CertificateUse>,
    /// Common names that certificates of clients may have. It needs `tls_ca_file`. Default: any.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub(crate) tls_allowed_names: Vec<String>,
    /// Host names or addresses that certificates of clients may be for. A certificate needs one of these, or of
    /// `tls_allowed_names`. Default: any.
    #[arg(long, value_delimiter = ',', value_name = "HOSTS")]
    pub(crate) tls_allowed_hostnames: Vec<String>,
    /// Certificate that this server shows when it forwards requests to the leader. Default: `tls_cert_file`.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_outgoing_cert_file: Option<PathBuf>,
    /// Private key of `tls_outgoing_cert_file`. Default: `tls_key_file`.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_outgoing_key_file: Option<PathBuf>,
    /// Whether the server makes a certificate for its clients' port if `tls_cert_file` is not set. Clients cannot verify it, so it is for
    /// trying out.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true",
        action = clap::ArgAction::Set, value_name = "BOOL")]
    pub(crate) tls_auto: bool,
    /// Whether clients may connect without TLS as well. `optional` is for the time in which a cluster changes to TLS: then an attacker in
    /// the network can prevent encryption.
    #[arg(long, default_value = "required")]
    pub(crate) tls_mode: TlsMode,
    /// Certificate of this node for other nodes, followed by those of intermediate authorities. With it nodes use TLS among each other.
    ///
    /// A node is both client and server, so the extended key usages must have both. Default: nodes use no TLS.
    #[arg(long, value_name = "FILE")]
    pub(crate) peer_tls_cert_file: Option<PathBuf>,
    /// Private key of `peer_tls_cert_file`, without a password. Default: none.
    #[arg(long, value_name = "FILE")]
    pub(crate) peer_tls_key_file: Option<PathBuf>,
    /// Certificates of the authorities that sign those of nodes. A node without such a certificate is refused, and so is a certificate
    /// that is for clients alone, or for no use in particular unless names are allowed.
    ///
    /// Default: none; it is required with `peer_tls_cert_file`.
    #[arg(long, value_name = "FILE")]
    pub(crate) peer_tls_ca_file: Option<PathBuf>,
    /// Lists of revoked certificates of nodes (CRL; PEM or DER). Default: none is revoked.
    #[arg(long, value_name = "FILE")]
    pub(crate) peer_tls_crl_file: Option<PathBuf>,
    /// Common names that certificates of nodes may have. Default: any.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub(crate) peer_tls_allowed_names: Vec<String>,
    /// Host names or addresses that certificates of nodes may be for. A certificate needs one of these, or of
    /// `peer_tls_allowed_names`. Default: any.
    #[arg(long, value_delimiter = ',', value_name = "HOSTS")]
    pub(crate) peer_tls_allowed_hostnames: Vec<String>,
    /// Certificate that this node shows when it connects to other nodes. Default: `peer_tls_cert_file`.
    #[arg(long, value_name = "FILE")]
    pub(crate) peer_tls_outgoing_cert_file: Option<PathBuf>,
    /// Private key of `peer_tls_outgoing_cert_file`. Default: `peer_tls_key_file`.
    #[arg(long, value_name = "FILE")]
    pub(crate) peer_tls_outgoing_key_file: Option<PathBuf>,
    /// Whether the node makes a certificate for other nodes if `peer_tls_cert_file` is not set. Nodes then encrypt, and do not verify
    /// each other, so it is for trying out.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true",
        action = clap::ArgAction::Set, value_name = "BOOL")]
    pub(crate) peer_tls_auto: bool,
    /// Whether nodes may connect without TLS as well, and this node to others that speak no TLS. `optional` is for the time in which a
    /// cluster changes to TLS.
    #[arg(long, default_value = "required")]
    pub(crate) peer_tls_mode: TlsMode,
    /// Oldest version of TLS: 1.2 or 1.3.
    #[arg(long, default_value = "1.2", value_name = "VERSION", value_parser = tls_version)]
    pub(crate) tls_min_version: TlsVersion,
    /// Newest version of TLS: 1.2 or 1.3.
    #[arg(long, default_value = "1.3", value_name = "VERSION", value_parser = tls_version)]
    pub(crate) tls_max_version: TlsVersion,
    /// Cipher suites, by the names that Go and etcd have for them. If the list has none of TLS 1.3, all of TLS 1.3 stay allowed.
    ///
    /// Default: all that there are, none of which is weak.
    #[arg(long, value_delimiter = ',', value_name = "SUITES")]
    pub(crate) tls_cipher_suites: Vec<String>,
    /// Interval at which the files are looked at for changes.
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = duration(MILLISECOND * 100..=DAY))]
    pub(crate) tls_reload_interval: Duration,
}

/// Whether clients show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CertificateUse {
    /// They are not asked for one.
    Ignored,
    /// They may show one, which must be valid.
    Optional,
    /// They are refused without a valid one.
    Required,
}

/// Whether connections are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TlsMode {
    /// All of them.
    Required,
    /// Plain ones are accepted as well.
    Optional,
}

impl TlsSection {
    /// Whether the clients' port has TLS.
    pub(crate) fn has_client_tls(&self) -> bool {
        self.tls_cert_file.is_some() || self.tls_auto
    }

    /// Whether the nodes' port has TLS.
    pub(crate) fn has_peer_tls(&self) -> bool {
        self.peer_tls_cert_file.is_some() || self.peer_tls_auto
    }

    /// How clients use certificates.
    pub(crate) fn client_certificates(&self) -> CertificateUse {
        let by_default =
            if self.tls_ca_file.is_some() { CertificateUse::Required } else { CertificateUse::Ignored };
        self.tls_client_certificates.unwrap_or(by_default)
    }

    /// The settings that are wrong beside the others, each with the reason.
    pub(crate) fn conflicts(&self) -> Vec<Conflict> {
        let mut conflicts = self.key_conflicts();
        conflicts.extend(self.client_conflicts());
        conflicts.extend(self.restriction_conflicts());
        conflicts.extend(self.peer_conflicts());
        if self.tls_min_version > self.tls_max_version {
            conflicts.push(("tls_min_version", "it must not be newer than tls_max_version"));
        }
        // The first reason says what to do; another one for the same setting follows from it.
        let mut names = BTreeSet::new();
        conflicts.retain(|(name, _)| names.insert(*name));
        conflicts
    }

    /// Certificates without their keys, or the reverse.
    fn key_conflicts(&self) -> Vec<Conflict> {
        let pairs = [
            ("tls_cert_file", &self.tls_cert_file, "tls_key_file", &self.tls_key_file),
            (
                "tls_outgoing_cert_file",
                &self.tls_outgoing_cert_file,
                "tls_outgoing_key_file",
                &self.tls_outgoing_key_file,
            ),
            ("peer_tls_cert_file", &self.peer_tls_cert_file, "peer_tls_key_file", &self.peer_tls_key_file),
            (
                "peer_tls_outgoing_cert_file",
                &self.peer_tls_outgoing_cert_file,
                "peer_tls_outgoing_key_file",
                &self.peer_tls_outgoing_key_file,
            ),
        ];
        let conflict = |(certificate_name, certificate, key_name, key): (_, &Option<_>, _, &Option<_>)| match (
            certificate,
            key,
        ) {
            (Some(_), None) => Some((certificate_name, "its key file must be given, too")),
            (None, Some(_)) => Some((key_name, "its certificate file must be given, too")),
            _ => None,
        };
        pairs.into_iter().filter_map(conflict).collect()
    }

    /// Settings of the clients' port that lack another one.
    fn client_conflicts(&self) -> Vec<Conflict> {
        if self.client_certificates() != CertificateUse::Ignored && self.tls_ca_file.is_none() {
            let why = "the CA that signs the certificates of clients must be given, too";
            return vec![("tls_client_certificates", why)];
        }
        if self.has_client_tls() {
            return Vec::new();
        }
        let set = [
            ("tls_ca_file", self.tls_ca_file.is_some()),
            ("tls_crl_file", self.tls_crl_file.is_some()),
            ("tls_outgoing_cert_file", self.tls_outgoing_cert_file.is_some()),
            ("tls_allowed_names", !self.tls_allowed_names.is_empty()),
            ("tls_allowed_hostnames", !self.tls_allowed_hostnames.is_empty()),
            ("tls_mode", self.tls_mode != TlsMode::Required),
        ];
        all_set(&set, "it has no effect without a certificate of the server")
    }

    /// Settings that restrict who may connect, although clients without a certificate may.
    fn restriction_conflicts(&self) -> Vec<Conflict> {
        let names = [
            ("tls_allowed_names", !self.tls_allowed_names.is_empty()),
            ("tls_allowed_hostnames", !self.tls_allowed_hostnames.is_empty()),
        ];
        match self.client_certificates() {
            CertificateUse::Required => Vec::new(),
            CertificateUse::Optional => all_set(
                &names,
                "clients without a certificate would be served all the same; set tls_client_certificates to required",
            ),
            CertificateUse::Ignored => {
                let revocations = [("tls_crl_file", self.tls_crl_file.is_some())];
                let why = "clients are not asked for a certificate, so all of them would be served; give the CA that signs their \
                           certificates (tls_ca_file), and do not set tls_client_certificates to ignored";
                [all_set(&names, why), all_set(&revocations, why)].concat()
            }
        }
    }

    /// Settings of the nodes' port that lack another one.
    fn peer_conflicts(&self) -> Vec<Conflict> {
        if self.peer_tls_cert_file.is_some() {
            let why =
                "the CA that signs the certificates of nodes must be given, too: nodes verify each other";
            return all_set(&[("peer_tls_cert_file", self.peer_tls_ca_file.is_none())], why);
        }
        let set = [
            ("peer_tls_ca_file", self.peer_tls_ca_file.is_some()),
            ("peer_tls_crl_file", self.peer_tls_crl_file.is_some()),
            ("peer_tls_outgoing_cert_file", self.peer_tls_outgoing_cert_file.is_some()),
            ("peer_tls_allowed_names", !self.peer_tls_allowed_names.is_empty()),
            ("peer_tls_allowed_hostnames", !self.peer_tls_allowed_hostnames.is_empty()),
            ("peer_tls_mode", self.peer_tls_mode != TlsMode::Required && !self.peer_tls_auto),
        ];
        all_set(&set, "it has no effect without a certificate of this node for other nodes")
    }
}

/// Name of a setting that is wrong beside others, and the reason.
type Conflict = (&'static str, &'static str);

/// Those of these settings that are set.
fn all_set(settings: &[(&'static str, bool)], why: &'static str) -> Vec<Conflict> {
    settings.iter().filter(|(_, is_set)| *is_set).map(|(name, _)| (*name, why)).collect()
}
