//! The member that is started, and the members that a new cluster has.

use std::{collections::BTreeMap, path::PathBuf};

use consensus_core::{Endpoint, NodeId};
use sha2::{Digest, Sha256};

use super::{
    flags::is_of_no_use_elsewhere,
    urls::{Url, endpoints, listen_urls, url, urls},
    values::Values,
};
use crate::config::{ConfigError, NodeEntry};

/// The member that is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) data_dir: PathBuf,
    /// Where clients and the other members reach it.
    pub(super) client: Endpoint,
    /// Where the other members reach it for consensus.
    pub(super) peer: Endpoint,
    pub(super) listen_clients: Vec<Endpoint>,
    pub(super) listen_peer: Endpoint,
    /// Where it tells of its health alone.
    pub(super) listen_health: Vec<Endpoint>,
    /// Listeners of clients without TLS, if there is TLS.
    pub(super) plain_listeners: Vec<Endpoint>,
    /// Whether `client` is without TLS, if there is TLS.
    pub(super) advertises_plain: bool,
}

/// Settings that matter at the first start of a member only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Initial {
    /// Peer endpoints of the members, by name.
    pub(super) members: BTreeMap<String, Endpoint>,
    pub(super) state: State,
    pub(super) token: String,
}

impl Initial {
    /// Name of a new cluster: the token, and a hash of its members. Their list is the first entry of the log, so members with different
    /// lists must not begin a cluster; nodes of another name are refused.
    pub(super) fn cluster_name(&self) -> String {
        let mut hash = Sha256::new();
        for (name, endpoint) in &self.members {
            hash.update(format!("{name}=http://{endpoint},"));
        }
        let hash: String = hash.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{hash}", self.token)
    }
}

/// Whether the cluster is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    New,
    Existing,
}

impl Member {
    pub(super) fn of(values: &mut Values) -> Result<Self, ConfigError> {
        let name = values.text("name").to_owned();
        check_text(values, "name", &name)?;
        if values.given("listen-client-urls").is_some() && values.given("advertise-client-urls").is_none() {
            let why = "--advertise-client-urls is required beside it";
            return Err(values.error("listen-client-urls", why));
        }
        check_schemes(values)?;
        let mut client_urls = listen_urls(values, "listen-client-urls")?;
        for http in listen_urls(values, "listen-client-http-urls")? {
            if !client_urls.iter().any(|url| url.endpoint == http.endpoint) {
                client_urls.push(http);
            }
        }
        let health_urls = listen_urls(values, "listen-metrics-urls")?;
        let plain_listeners = plain_listeners(values, &client_urls, &health_urls);
        let listen_clients: Vec<Endpoint> = client_urls.into_iter().map(|url| url.endpoint).collect();
        let peers = endpoints(values, "initial-advertise-peer-urls")?;
        let peer = peers.first().cloned();
        let peer = peer.ok_or_else(|| values.error("initial-advertise-peer-urls", "there must be one"))?;
        let client = client_url(values, &listen_clients, &peer)?;
        let data_dir = values.given("data-dir").map(|given| PathBuf::from(&given.value));
        let member = Self {
            data_dir: data_dir.unwrap_or_else(|| PathBuf::from(format!("{name}.etcd"))),
            client: client.endpoint,
            listen_peer: listen_peer(values)?,
            listen_health: health_urls.into_iter().map(|url| url.endpoint).collect(),
            plain_listeners,
            advertises_plain: !client.has_tls,
            name,
            peer,
            listen_clients,
        };
        if !is_of_no_use_elsewhere(member.peer.host()) && is_of_no_use_elsewhere(member.client.host()) {
            values.notes.push(format!(
                "other members cannot reach this one at {}, where they forward what only the leader can do; with more than one \
                 member, let --listen-client-urls and --advertise-client-urls have an address that the others reach",
                member.client
            ));
        }
        Ok(member)
    }

    /// The member as a node of the topology.
    pub(super) fn entry(&self, node: NodeId) -> NodeEntry {
        NodeEntry {
            id: node.0,
            client_endpoint: Some(self.client.clone()),
            consensus_endpoint: Some(self.peer.clone()),
            name: Some(self.name.clone()),
        }
    }

    /// Another member of a new cluster as a node of the topology.
    pub(super) fn other(id: u64, name: &str, peer: &Endpoint) -> NodeEntry {
        NodeEntry {
            id,
            client_endpoint: None,
            consensus_endpoint: Some(peer.clone()),
            name: Some(name.to_owned()),
        }
    }

    /// Settings that matter at the first start only.
    pub(super) fn initial(&self, values: &Values) -> Result<Initial, ConfigError> {
        let token = values.text("initial-cluster-token").to_owned();
        check_text(values, "initial-cluster-token", &token)?;
        let state = match values.text("initial-cluster-state") {
            "existing" => State::Existing,
            _ => State::New,
        };
        if endpoints(values, "initial-advertise-peer-urls")?.len() > 1 {
            return Err(values.error("initial-advertise-peer-urls", ONE_PEER_URL));
        }
        let members = match values.given("initial-cluster") {
            None => [(self.name.clone(), self.peer.clone())].into(),
            Some(given) => initial_cluster(&given.value).map_err(|why| given.error(why))?,
        };
        match members.get(&self.name) {
            Some(peer) if *peer == self.peer => Ok(Initial { members, state, token }),
            Some(peer) => Err(values.error(
                "initial-cluster",
                format!(
                    "{} is at http://{peer} there, and at http://{} by --initial-advertise-peer-urls",
                    self.name, self.peer
                ),
            )),
            None => Err(values.error("initial-cluster", format!("it must have this member, {}", self.name))),
        }
    }
}

/// The members of `a=http://h:1,b=http://h:2`.
fn initial_cluster(text: &str) -> Result<BTreeMap<String, Endpoint>, String> {
    let mut members = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, text) =
            part.split_once('=').ok_or_else(|| format!("{part:?} must be NAME=http://HOST:PORT"))?;
        if members.insert(name.to_owned(), url(text)?.endpoint).is_some() {
            return Err(format!("{name} is there twice; {ONE_PEER_URL}"));
        }
    }
    Ok(members)
}

/// Where clients and other members reach the member: what it advertises, unless that is of use on its own machine alone.
fn client_url(values: &Values, listen: &[Endpoint], peer: &Endpoint) -> Result<Url, ConfigError> {
    let advertised = urls(values, "advertise-client-urls")?;
    if let Some(usable) = advertised.iter().find(|url| !is_of_no_use_elsewhere(url.endpoint.host())) {
        return Ok(usable.clone());
    }
    let first = advertised.first();
    let first = first.ok_or_else(|| values.error("advertise-client-urls", "there must be one"))?;
    let Url { endpoint: first, has_tls } = first.clone();
    let is_remote = |endpoint: &&Endpoint| {
        let address = endpoint.host().parse::<std::net::IpAddr>();
        address.is_ok_and(|address| !address.is_loopback())
    };
    let is_unspecified = first.host() == "0.0.0.0" || first.host() == "::";
    let at_peer_host = match listen.iter().find(is_remote) {
        Some(listen) if !is_of_no_use_elsewhere(peer.host()) => Some(listen.port()),
        _ if is_unspecified => Some(first.port()),
        _ => None,
    };
    let at_peer_host = at_peer_host.and_then(|port| Endpoint::new(peer.host(), port).ok());
    Ok(Url { endpoint: at_peer_host.unwrap_or(first), has_tls })
}

/// Where the member listens for other members.
fn listen_peer(values: &Values) -> Result<Endpoint, ConfigError> {
    let listen = listen_urls(values, "listen-peer-urls")?;
    let listen: Vec<Endpoint> = listen.into_iter().map(|url| url.endpoint).collect();
    let is_unspecified = |endpoint: &&Endpoint| endpoint.host() == "0.0.0.0" || endpoint.host() == "::";
    match &listen[..] {
        [one] => Ok(one.clone()),
        several => several.iter().find(is_unspecified).cloned().ok_or_else(|| {
            let why = "there must be one URL for peers; http://0.0.0.0:PORT listens at all addresses";
            values.error("listen-peer-urls", why)
        }),
    }
}

/// Checks that URLs with TLS have certificates, that peer URLs without TLS have none, and that members which are to verify each
/// other can.
fn check_schemes(values: &Values) -> Result<(), ConfigError> {
    let can_verify =
        values.given("peer-cert-file").is_some() && values.given("peer-trusted-ca-file").is_some();
    if values.is_set(PEER_CERT_AUTH) && !can_verify {
        let why = "members cannot verify each other without --peer-cert-file, --peer-key-file and --peer-trusted-ca-file; with \
                   --peer-auto-tls they never do";
        return Err(values.error(PEER_CERT_AUTH, why));
    }
    let has = |file: &str, auto: &str| values.given(file).is_some() || values.is_set(auto);
    let (clients, peers) = (has("cert-file", "auto-tls"), has("peer-cert-file", "peer-auto-tls"));
    for flag in
        ["listen-client-urls", "listen-client-http-urls", "advertise-client-urls", "listen-metrics-urls"]
    {
        if !clients && urls(values, flag)?.iter().any(|url| url.has_tls) {
            return Err(values.error(flag, "https:// needs --cert-file and --key-file, or --auto-tls"));
        }
    }
    for flag in ["listen-peer-urls", "initial-advertise-peer-urls"] {
        let urls = urls(values, flag)?;
        if !peers && urls.iter().any(|url| url.has_tls) {
            let why = "https:// needs --peer-cert-file, --peer-key-file and --peer-trusted-ca-file, or --peer-auto-tls";
            return Err(values.error(flag, why));
        }
        if peers && urls.iter().any(|url| !url.has_tls) {
            let why = "with --peer-cert-file or --peer-auto-tls it must be https://. While a cluster changes to TLS, the variable \
                       KV_PEER_TLS_MODE=optional lets members without TLS connect, too";
            return Err(values.error(flag, why));
        }
    }
    Ok(())
}

/// Listeners without TLS beside others with TLS, which is noted.
fn plain_listeners(values: &mut Values, clients: &[Url], health: &[Url]) -> Vec<Endpoint> {
    if values.given("cert-file").is_none() && !values.is_set("auto-tls") {
        return Vec::new();
    }
    let plain = |urls: &[Url]| -> Vec<Endpoint> {
        urls.iter().filter(|url| !url.has_tls).map(|url| url.endpoint.clone()).collect()
    };
    let mut listeners = plain(clients);
    for endpoint in &listeners {
        values
            .notes
            .push(format!("clients at http://{endpoint} use no TLS, although there is a certificate"));
    }
    listeners.extend(plain(health));
    listeners
}

/// Names stand in the configuration of the cluster and in a file of the data directory.
fn check_text(values: &Values, flag: &str, text: &str) -> Result<(), ConfigError> {
    let is_valid = !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.chars().any(char::is_control);
    if is_valid {
        return Ok(());
    }
    let why = format!("it must have 1 to {NAME_BYTES_MAX} bytes and no control characters");
    Err(values.error(flag, why))
}

const PEER_CERT_AUTH: &str = "peer-client-cert-auth";
const ONE_PEER_URL: &str = "a member has one peer URL";
const NAME_BYTES_MAX: usize = 256;
