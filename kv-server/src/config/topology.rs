//! The nodes of a cluster, from `replica_endpoints` or `[[nodes]]`.

use std::collections::{BTreeMap, BTreeSet};

use consensus_core::{Endpoint, NodeId};

use super::{
    Arguments, ConfigError,
    faults::Faults,
    file::{NODES, NodeEntry},
    layers::Merged,
};

/// The nodes of a cluster as the settings list them.
#[derive(Clone, Debug)]
pub(crate) struct Topology {
    /// All nodes, this one included.
    pub(crate) nodes: BTreeMap<NodeId, NodeEndpoints>,
    /// Nodes that vote and keep no data.
    pub(crate) witnesses: BTreeSet<NodeId>,
    /// Nodes that need not answer before the first start of the cluster.
    pub(crate) founding_peers_missing: BTreeSet<NodeId>,
    /// Where this node listens for other nodes.
    pub(crate) consensus_listen: Endpoint,
}

/// Endpoints of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeEndpoints {
    /// Where clients reach the node. `None` for another node of which this is not known: it tells the leader when it starts.
    pub(crate) client: Option<Endpoint>,
    /// Where other nodes reach the node.
    pub(crate) consensus: Endpoint,
    /// Name for people; `None` if it has none.
    pub(crate) name: Option<String>,
}

/// Sources of the endpoints of this node.
pub(crate) struct Resolver<'a> {
    /// The settings.
    pub(crate) arguments: &'a Arguments,
    /// Where each setting was given.
    pub(crate) merged: &'a Merged<'a>,
    /// `[[nodes]]` of the file.
    pub(crate) entries: &'a [NodeEntry],
    /// The file, for errors of what several settings say together.
    pub(crate) place: &'a str,
}

impl Resolver<'_> {
    fn error(&self, setting: String, why: impl Into<String>) -> ConfigError {
        ConfigError::Setting { place: self.place.to_owned(), setting, why: why.into() }
    }

    /// Where to listen: at the configured host, else at `host`.
    pub(crate) fn listen(&self, host: &str, port: u16) -> Result<Endpoint, ConfigError> {
        let configured = self.arguments.deployment.listen_host.as_deref();
        Endpoint::new(configured.unwrap_or(host), port)
            .map_err(|error| self.merged.error("listen_host", error.to_string()))
    }

    /// The nodes, and where this one listens for clients; `None` after the errors were added.
    pub(crate) fn topology(&self, faults: &mut Faults) -> Option<(Endpoint, Topology)> {
        if !faults.are_known(&["replica_endpoints", NODES]) {
            return None;
        }
        let (nodes, node) = (self.nodes(faults)?, NodeId(self.arguments.deployment.node_id));
        let witnesses = faults.note(self.witnesses(&nodes));
        let founding_peers_missing = faults.note(self.founding_peers_missing(node, &nodes));
        let (client_listen, consensus_listen) = self.own_endpoints(node, &nodes, faults)?;
        let topology = Topology {
            nodes,
            witnesses: witnesses?,
            founding_peers_missing: founding_peers_missing?,
            consensus_listen,
        };
        Some((client_listen, topology))
    }

    /// Where this node listens for clients and for other nodes.
    fn own_endpoints(
        &self,
        node: NodeId,
        nodes: &BTreeMap<NodeId, NodeEndpoints>,
        faults: &mut Faults,
    ) -> Option<(Endpoint, Endpoint)> {
        if !faults.are_known(&["node_id", "port", "listen_host"]) {
            return None;
        }
        let Some(own) = nodes.get(&node) else {
            let known: Vec<String> = nodes.keys().map(NodeId::to_string).collect();
            let why = format!("the nodes of this cluster ({}) are {}", self.place, known.join(", "));
            faults.add(self.merged.error("node_id", why));
            return None;
        };
        let Some(client) = &own.client else {
            let why = "the node that is started needs a client_endpoint; only other nodes can be without";
            faults.add(self.error(format!("nodes.id = {node}"), why));
            return None;
        };
        if self.arguments.program.port.is_some_and(|port| port != client.port()) {
            let why = format!(
                "the other nodes look for node {node} at {client}, as the list of nodes says ({})",
                self.place
            );
            faults.add(self.merged.error("port", why));
        }
        let client_listen = faults.note(self.listen(client.host(), client.port()))?;
        let consensus_listen = faults.note(self.listen(own.consensus.host(), own.consensus.port()))?;
        Some((client_listen, consensus_listen))
    }

    fn witnesses(&self, nodes: &BTreeMap<NodeId, NodeEndpoints>) -> Result<BTreeSet<NodeId>, ConfigError> {
        let deployment = &self.arguments.deployment;
        let witnesses: BTreeSet<NodeId> = deployment.witnesses.iter().copied().map(NodeId).collect();
        if let Some(unknown) = witnesses.iter().find(|id| !nodes.contains_key(id)) {
            return Err(self
                .merged
                .error("witnesses", format!("{unknown} is not one of the nodes of this cluster")));
        }
        if !deployment.join && nodes.keys().all(|id| witnesses.contains(id)) {
            let why = "at least one node must keep data, or none could be the leader";
            return Err(self.merged.error("witnesses", why));
        }
        Ok(witnesses)
    }

    fn founding_peers_missing(
        &self,
        node: NodeId,
        nodes: &BTreeMap<NodeId, NodeEndpoints>,
    ) -> Result<BTreeSet<NodeId>, ConfigError> {
        let missing = self.arguments.once.founding_peers_missing.iter().copied().map(NodeId);
        let missing: BTreeSet<NodeId> = missing.collect();
        match missing.iter().find(|id| **id == node || !nodes.contains_key(id)) {
            Some(wrong) => Err(ConfigError::Setting {
                place: "command line".to_owned(),
                setting: format!("--founding-peers-missing={wrong}"),
                why: "it is not one of the other nodes of this cluster".to_owned(),
            }),
            None => Ok(missing),
        }
    }

    /// All nodes: `[[nodes]]`, or `replica_endpoints` numbered from 0. `[[nodes]]` replace the list. `None` after the errors were
    /// added.
    fn nodes(&self, faults: &mut Faults) -> Option<BTreeMap<NodeId, NodeEndpoints>> {
        let nodes = match self.entries.is_empty() {
            true => self.listed(faults)?,
            false => self.entries(faults)?,
        };
        if nodes.is_empty() {
            let why = "a replicated deployment lists its nodes in replica_endpoints or in [[nodes]]";
            faults.add(self.error("replica_endpoints = []".to_owned(), why));
            return None;
        }
        let mut places: Vec<&Endpoint> =
            nodes.values().flat_map(|node| node.client.iter().chain([&node.consensus])).collect();
        places.sort();
        if let Some(twice) = places.windows(2).find(|pair| pair[0] == pair[1]) {
            let why = "two nodes, or the client side and the consensus side of a node, cannot listen at the same place (the \
                       consensus port is the client port + 1000 unless [[nodes]] has a consensus_endpoint)";
            faults.add(self.error(format!("endpoint = {}", twice[0]), why));
        }
        Some(nodes)
    }

    /// The nodes of `replica_endpoints`.
    fn listed(&self, faults: &mut Faults) -> Option<BTreeMap<NodeId, NodeEndpoints>> {
        let listed = &self.arguments.deployment.replica_endpoints;
        let endpoints = |(id, client): (NodeId, &Endpoint)| {
            let consensus = faults.note(self.consensus_endpoint(client))?;
            Some((id, NodeEndpoints { client: Some(client.clone()), consensus, name: None }))
        };
        let nodes: Vec<Option<_>> = (0..).map(NodeId).zip(listed).map(endpoints).collect();
        nodes.into_iter().collect()
    }

    /// The nodes of `[[nodes]]`.
    fn entries(&self, faults: &mut Faults) -> Option<BTreeMap<NodeId, NodeEndpoints>> {
        let mut nodes = BTreeMap::new();
        let mut is_whole = true;
        for entry in self.entries {
            let client = entry.client_endpoint.clone();
            let consensus = match (&entry.consensus_endpoint, &client) {
                (Some(endpoint), _) => Ok(endpoint.clone()),
                (None, Some(client)) => self.consensus_endpoint(client),
                (None, None) => {
                    let why = "it needs a client_endpoint or a consensus_endpoint";
                    Err(self.error(format!("nodes.id = {}", entry.id), why))
                }
            };
            let Some(consensus) = faults.note(consensus) else {
                is_whole = false;
                continue;
            };
            let endpoints = NodeEndpoints { client, consensus, name: entry.name.clone() };
            if nodes.insert(NodeId(entry.id), endpoints).is_some() {
                faults.add(self.error(format!("nodes.id = {}", entry.id), "two [[nodes]] have this id"));
            }
        }
        is_whole.then_some(nodes)
    }

    fn consensus_endpoint(&self, client: &Endpoint) -> Result<Endpoint, ConfigError> {
        let port = client.port().checked_add(CONSENSUS_PORT_OFFSET);
        let endpoint = port.and_then(|port| Endpoint::new(client.host(), port).ok());
        endpoint.ok_or_else(|| {
            let why = "the consensus port is this port + 1000, which must not exceed 65535; set consensus_endpoint in \
                       [[nodes]]";
            self.error(format!("client endpoint = {client}"), why)
        })
    }
}

const CONSENSUS_PORT_OFFSET: u16 = 1000;
