//! The member that is started, and the members that a new cluster has.

use std::{collections::BTreeMap, path::PathBuf};

use consensus_core::{Endpoint, NodeId};
use sha2::{Digest, Sha256};

use super::{
    flags::is_of_no_use_elsewhere,
    urls::{endpoint, endpoints, listen_endpoints},
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
        let mut listen_clients = listen_endpoints(values, "listen-client-urls")?;
        for http in listen_endpoints(values, "listen-client-http-urls")? {
            if !listen_clients.contains(&http) {
                listen_clients.push(http);
            }
        }
        let peers = endpoints(values, "initial-advertise-peer-urls")?;
        let peer = peers.first().cloned();
        let peer = peer.ok_or_else(|| values.error("initial-advertise-peer-urls", "there must be one"))?;
        let data_dir = values.given("data-dir").map(|given| PathBuf::from(&given.value));
        let member = Self {
            data_dir: data_dir.unwrap_or_else(|| PathBuf::from(format!("{name}.etcd"))),
            client: client_endpoint(values, &listen_clients, &peer)?,
            listen_peer: listen_peer(values)?,
            listen_health: listen_endpoints(values, "listen-metrics-urls")?,
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
        let (name, url) =
            part.split_once('=').ok_or_else(|| format!("{part:?} must be NAME=http://HOST:PORT"))?;
        if members.insert(name.to_owned(), endpoint(url)?).is_some() {
            return Err(format!("{name} is there twice; {ONE_PEER_URL}"));
        }
    }
    Ok(members)
}

/// Where clients and other members reach the member: what it advertises, unless that is of use on its own machine alone.
fn client_endpoint(values: &Values, listen: &[Endpoint], peer: &Endpoint) -> Result<Endpoint, ConfigError> {
    let advertised = endpoints(values, "advertise-client-urls")?;
    if let Some(usable) = advertised.iter().find(|endpoint| !is_of_no_use_elsewhere(endpoint.host())) {
        return Ok(usable.clone());
    }
    let first = advertised.first();
    let first = first.ok_or_else(|| values.error("advertise-client-urls", "there must be one"))?;
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
    Ok(at_peer_host.unwrap_or_else(|| first.clone()))
}

/// Where the member listens for other members.
fn listen_peer(values: &Values) -> Result<Endpoint, ConfigError> {
    let listen = listen_endpoints(values, "listen-peer-urls")?;
    let is_unspecified = |endpoint: &&Endpoint| endpoint.host() == "0.0.0.0" || endpoint.host() == "::";
    match &listen[..] {
        [one] => Ok(one.clone()),
        several => several.iter().find(is_unspecified).cloned().ok_or_else(|| {
            let why = "there must be one URL for peers; http://0.0.0.0:PORT listens at all addresses";
            values.error("listen-peer-urls", why)
        }),
    }
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

const ONE_PEER_URL: &str = "a member has one peer URL";
const NAME_BYTES_MAX: usize = 256;
