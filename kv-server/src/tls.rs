//! TLS of the node's ports: built from the settings, and kept current while the node runs.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use consensus_core::Endpoint;
use consensus_tls::{
    AllowedNames, ClientCertificates, FileRole, Identity, PlainConnections, ServerTrust, Tls, TlsError,
    TlsSettings,
    issue::{self, Days},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use crate::{
    config::{CertificateUse, Settings, TlsMode, TlsSection},
    frontend::stopped,
};

/// TLS of a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Security {
    /// Of the port for clients, and of connections to the ports for clients of other nodes.
    pub(crate) clients: Option<Tls>,
    /// Of the port for nodes, and of connections to those of other nodes.
    pub(crate) peers: Option<Tls>,
    /// Whether this node advertises its port for clients without TLS although it has TLS, as another one of its listeners has.
    pub(crate) advertises_plain: bool,
}

/// Why the node has no TLS.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecurityError {
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    #[error("TLS: making a certificate: {0}")]
    Issue(String),
    #[error("TLS: cannot listen for SIGHUP: {0}")]
    Signal(io::Error),
}

impl Security {
    /// Reads and checks the files. From then on SIGHUP does not end the process, which may take long to start.
    pub(crate) fn load(settings: &Settings) -> Result<Self, SecurityError> {
        let section = &settings.tls;
        let clients = section.has_client_tls().then(|| of_clients(section, settings)).transpose()?;
        let peers = section.has_peer_tls().then(|| of_peers(section, settings)).transpose()?;
        if clients.is_some() || peers.is_some() {
            // The handler stays installed after this value is dropped.
            drop(signal(SignalKind::hangup()).map_err(SecurityError::Signal)?);
        }
        warn_of_plain(section);
        Ok(Self { clients, peers, advertises_plain: settings.advertises_plain })
    }

    /// TLS of connections to the ports for clients of other nodes.
    pub(crate) fn forwarding(&self) -> Option<&Tls> {
        self.clients.as_ref().filter(|_| !self.advertises_plain)
    }

    /// Scheme of URLs of ports for clients.
    pub(crate) fn client_scheme(&self) -> &'static str {
        scheme(self.forwarding())
    }

    /// Scheme of URLs of ports for nodes.
    pub(crate) fn peer_scheme(&self) -> &'static str {
        scheme(self.peers.as_ref())
    }

    /// Looks at the files at an interval and at SIGHUP, until the node stops.
    pub(crate) async fn keep_current(self, section: TlsSection, mut stop: watch::Receiver<bool>) {
        let all: Vec<Tls> = [self.clients, self.peers].into_iter().flatten().collect();
        if all.is_empty() {
            return;
        }
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => {
                tracing::error!(%error, "cannot listen for SIGHUP; certificates are not read again");
                return;
            }
        };
        let mut looks = interval(section.tls_reload_interval);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_requested = tokio::select! {
                () = stopped(&mut stop) => return,
                _ = looks.tick() => false,
                received = hangup.recv() => received.is_some(),
            };
            for tls in &all {
                tls.check_files(is_requested).await;
            }
        }
    }
}

/// Warns of ports that do not require TLS or certificates, although there are some.
fn warn_of_plain(section: &TlsSection) {
    let why = "connections without TLS are accepted, so an attacker in the network can prevent encryption; remove the setting when all \
               others use TLS";
    if section.has_client_tls() && section.tls_mode == TlsMode::Optional {
        tracing::warn!("tls_mode = optional: {why}");
    }
    if section.has_peer_tls() && section.peer_tls_mode == TlsMode::Optional {
        tracing::warn!(
            "peer_tls_mode = optional: {why}; a node without TLS shows no certificate, so anybody can be one"
        );
    }
    if section.client_certificates() == CertificateUse::Optional {
        tracing::warn!("tls_client_certificates = optional: clients without a certificate are served, too");
    }
}

fn scheme(tls: Option<&Tls>) -> &'static str {
    if tls.is_some() { "https" } else { "http" }
}

fn of_clients(section: &TlsSection, settings: &Settings) -> Result<Tls, SecurityError> {
    let mut tls = client_settings(section);
    if tls.identity.is_none() {
        tls.identity = Some(make(&settings.data_dir, "clients", &hosts(settings))?);
        tls.server_trust = ServerTrust::Unverified;
    }
    Ok(Tls::load(tls)?)
}

/// TLS of the port for clients, without a certificate that the node makes.
fn client_settings(section: &TlsSection) -> TlsSettings {
    let mut tls = TlsSettings::new("clients");
    tls.identity = identity(section.tls_cert_file.as_ref(), section.tls_key_file.as_ref());
    tls.outgoing_identity =
        identity(section.tls_outgoing_cert_file.as_ref(), section.tls_outgoing_key_file.as_ref());
    tls.ca_file.clone_from(&section.tls_ca_file);
    tls.crl_file.clone_from(&section.tls_crl_file);
    tls.client_certificates = match section.client_certificates() {
        CertificateUse::Ignored => ClientCertificates::Ignored,
        CertificateUse::Optional => ClientCertificates::Optional,
        CertificateUse::Required => ClientCertificates::Required,
    };
    tls.allowed = AllowedNames {
        common_names: section.tls_allowed_names.clone(),
        host_names: section.tls_allowed_hostnames.clone(),
        node_usage: false,
    };
    tls.plain = plain(section.tls_mode);
    // Clients of gRPC insist on h2. Those of Thrift offer nothing.
    tls.protocols = vec!["h2", "http/1.1"];
    common(&mut tls, section);
    tls
}

fn of_peers(section: &TlsSection, settings: &Settings) -> Result<Tls, SecurityError> {
    let mut tls = peer_settings(section);
    if tls.identity.is_none() {
        tracing::warn!(
            "nodes encrypt their connections and do not verify each other (peer_tls_auto): anybody who reaches the port can be one"
        );
        tls.identity = Some(make(&settings.data_dir, "nodes", &hosts(settings))?);
        tls.client_certificates = ClientCertificates::Ignored;
        tls.allowed = AllowedNames::default();
        tls.server_trust = ServerTrust::Unverified;
    }
    Ok(Tls::load(tls)?)
}

/// TLS of the port for nodes, without a certificate that the node makes.
fn peer_settings(section: &TlsSection) -> TlsSettings {
    let mut tls = TlsSettings::new("nodes");
    tls.identity = identity(section.peer_tls_cert_file.as_ref(), section.peer_tls_key_file.as_ref());
    tls.outgoing_identity =
        identity(section.peer_tls_outgoing_cert_file.as_ref(), section.peer_tls_outgoing_key_file.as_ref());
    tls.ca_file.clone_from(&section.peer_tls_ca_file);
    tls.crl_file.clone_from(&section.peer_tls_crl_file);
    tls.client_certificates = ClientCertificates::Required;
    tls.allowed = AllowedNames {
        common_names: section.peer_tls_allowed_names.clone(),
        host_names: section.peer_tls_allowed_hostnames.clone(),
        node_usage: true,
    };
    tls.plain = plain(section.peer_tls_mode);
    common(&mut tls, section);
    tls
}

/// Errors of the files of TLS and of its cipher suites, all of them. No certificate is made.
pub(crate) fn faults(section: &TlsSection) -> Vec<String> {
    let of_port = |has_tls: bool, settings: TlsSettings| {
        let peers = settings.peers;
        let errors = if has_tls { faults_of(&settings) } else { Vec::new() };
        errors.into_iter().map(move |error| format!("TLS of {peers}: {error}"))
    };
    of_port(section.has_client_tls(), client_settings(section))
        .chain(of_port(section.has_peer_tls(), peer_settings(section)))
        .collect()
}

/// Loads each part by itself, because a load ends at its first error; and the whole if no part has one.
fn faults_of(settings: &TlsSettings) -> Vec<String> {
    let part = |fill: &dyn Fn(&mut TlsSettings)| {
        let mut part = TlsSettings::new(settings.peers);
        fill(&mut part);
        part
    };
    let identities = [&settings.identity, &settings.outgoing_identity].into_iter().flatten();
    let mut parts: Vec<TlsSettings> =
        identities.map(|identity| part(&|part| part.identity = Some(identity.clone()))).collect();
    parts.push(part(&|part| part.ca_file.clone_from(&settings.ca_file)));
    parts.push(part(&|part| {
        part.cipher_suites.clone_from(&settings.cipher_suites);
        (part.version_min, part.version_max) = (settings.version_min, settings.version_max);
    }));
    let mut errors: Vec<String> = parts.into_iter().filter_map(load_error).collect();
    for Identity { key_file, .. } in [&settings.identity, &settings.outgoing_identity].into_iter().flatten() {
        // The load of an identity ends at the error of its certificate.
        errors.extend(read_error(FileRole::Key, key_file));
    }
    match &settings.crl_file {
        _ if errors.is_empty() => errors.extend(load_error(settings.clone())),
        // It cannot be loaded without the rest.
        Some(path) => errors.extend(read_error(FileRole::Revocations, path)),
        None => {}
    }
    let mut seen = BTreeSet::new();
    errors.retain(|error| seen.insert(error.clone()));
    errors
}

/// Why a file cannot be read.
fn read_error(role: FileRole, path: &Path) -> Option<String> {
    let read = File::open(path).and_then(|mut file| file.read(&mut [0]));
    let error = |source| TlsError::Read { role, path: path.to_owned(), source };
    read.err().map(|source| error(source).to_string())
}

fn load_error(settings: TlsSettings) -> Option<String> {
    Tls::load(settings).err().map(|error| error.to_string())
}

fn common(tls: &mut TlsSettings, section: &TlsSection) {
    (tls.version_min, tls.version_max) = (section.tls_min_version, section.tls_max_version);
    tls.cipher_suites.clone_from(&section.tls_cipher_suites);
}

fn plain(mode: TlsMode) -> PlainConnections {
    match mode {
        TlsMode::Required => PlainConnections::Refused,
        TlsMode::Optional => PlainConnections::Accepted,
    }
}

fn identity(certificate: Option<&PathBuf>, key: Option<&PathBuf>) -> Option<Identity> {
    Some(Identity::new(certificate?, key?))
}

/// Hosts of a certificate that the node makes.
fn hosts(settings: &Settings) -> Vec<String> {
    let own = settings.topology.as_ref().and_then(|all| all.nodes.get(&settings.node));
    let of_node = own.into_iter().flat_map(|own| own.client.iter().chain([&own.consensus]));
    let mut hosts: Vec<String> =
        of_node.chain([&settings.client_listen]).map(Endpoint::host).map(str::to_owned).collect();
    hosts.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    hosts.sort();
    hosts.dedup();
    hosts
}

/// Makes a certificate in the data directory. It is made again at each start, so that it never expires for long.
fn make(data_dir: &Path, name: &str, hosts: &[String]) -> Result<Identity, SecurityError> {
    let folder = data_dir.join("tls");
    let file = |ending: &str| folder.join(format!("{name}.{ending}"));
    let identity = Identity::new(file("crt"), file("key"));
    let issued = issue::self_signed("kv-server", hosts, AUTO_VALID)
        .map_err(|error| SecurityError::Issue(error.to_string()))?;
    let written = std::fs::create_dir_all(&folder)
        .and_then(|()| issued.write(&identity.certificate_file, &identity.key_file));
    written.map_err(|error: io::Error| SecurityError::Issue(format!("{}: {error}", folder.display())))?;
    Ok(identity)
}

/// Validity of certificates that the node makes.
const AUTO_VALID: Days = Days(365);
