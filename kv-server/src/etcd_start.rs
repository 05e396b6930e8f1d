//! `kv-server etcd`: a member that is started with etcd's own flags, `ETCD_` variables and configuration file.
//!
//! ```text
//! command line ─┐
//! ETCD_ variables ─┼─▶ values ─▶ member (who is started, where) ─┐
//! file ─────────┘          └──▶ settings of the same meaning ────┼─▶ Settings of a node
//! MEMBER in the data directory, or the other members ─▶ id ──────┘
//! ```
//! [`flags`] has a row for each flag of etcd, from which parsing, messages, `--help` and docs/etcd-flags.md follow. The result is
//! what the native flags and file come to, so nothing behind [`Settings`] knows how the node was started, but for what it
//! [publishes](Publication).

mod command_line;
mod duration;
mod existing;
mod file;
mod flags;
mod forced;
mod identity;
pub(crate) mod logging;
mod member;
#[cfg(test)]
mod page;
#[cfg(test)]
mod tests;
mod urls;
mod values;

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, time::Duration};

use consensus_core::NodeId;

pub(crate) use self::identity::IdentityError;
use self::{
    existing::{JoinError, find_own_id},
    flags::{Effect, Flag, Kind},
    forced::ForceError,
    identity::Identity,
    logging::Logging,
    member::{Initial, Member, State},
    values::{Given, Values},
};
use crate::{
    config::{ConfigError, Given as Setting, NodeEntry, Publication, Settings},
    tls::{Security, SecurityError},
};

/// A start in place of etcd, checked as far as that is possible without looking at the data directory.
#[derive(Debug)]
pub(crate) struct EtcdStart {
    values: Values,
    member: Member,
    logging: Logging,
    /// Variables of kv-server, for settings that etcd has no flag for.
    environment: BTreeMap<String, OsString>,
}

/// Why a member is not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EtcdStartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Security(#[from] SecurityError),
    #[error(transparent)]
    Force(#[from] ForceError),
}

impl EtcdStart {
    /// Reads the flags, and the variables or the file. `arguments` are those after the program's name.
    pub(crate) fn load(
        arguments: Vec<OsString>,
        environment: impl Iterator<Item = (OsString, OsString)>,
        read: impl Fn(&str) -> Result<String, ConfigError>,
    ) -> Result<Self, ConfigError> {
        let (mut of_etcd, mut own) = (BTreeMap::new(), BTreeMap::new());
        for (name, value) in environment {
            match (name.into_string(), value) {
                (Ok(name), value) if name.starts_with("ETCD_") => {
                    of_etcd.insert(name, value.to_string_lossy().into_owned());
                }
                (Ok(name), value) if name.starts_with("KV_") => drop(own.insert(name, value)),
                _ => {}
            }
        }
        own.retain(|name, _| !TRANSLATED.contains(&name.as_str()));
        let mut values = Values::load(arguments, &of_etcd, read)?;
        check_features(&values)?;
        let member = Member::of(&mut values)?;
        let logging = Logging::of(&values)?;
        let start = Self { values, member, logging, environment: own };
        // An invalid setting is reported before anything else is done.
        start.settings_of(NodeId(0), "", vec![start.member.entry(NodeId(0))], true)?;
        Ok(start)
    }

    pub(crate) fn logging(&self) -> &Logging {
        &self.logging
    }

    /// Messages about the flags for the log.
    pub(crate) fn notes(&self) -> &[String] {
        &self.values.notes
    }

    /// The flag that makes the member the only one of its cluster, with its place; `None` if it is not set.
    fn force_flag(&self) -> Option<String> {
        let given = self.values.given(FORCE).filter(|_| self.values.is_set(FORCE))?;
        Some(format!("{} ({})", given.name(), given.place))
    }

    /// Makes the member the only one of its cluster, if the flag is set and that was not done before.
    pub(crate) fn force_new_cluster(&self, settings: &Settings) -> Result<(), EtcdStartError> {
        match self.force_flag() {
            Some(flag) => Ok(forced::force_new_cluster(settings, &flag)?),
            None => Ok(()),
        }
    }

    /// The settings of the node. A member that has data goes by it; another one by the initial cluster, or, when it joins a cluster, by
    /// what the other members say.
    pub(crate) async fn settings(&self) -> Result<Settings, EtcdStartError> {
        let member = &self.member;
        let identity = Identity::load(&member.data_dir)?;
        if self.force_flag().is_some() {
            forced::require_log(&member.data_dir)?;
        }
        if let Some(Identity { node, cluster_name }) = identity {
            return Ok(self.settings_of(node, &cluster_name, vec![member.entry(node)], true)?);
        }
        let initial = member.initial(&self.values)?;
        let cluster_name = initial.cluster_name();
        let Initial { members, state, token: _ } = initial;
        if state == State::New {
            let entry = |(id, (name, endpoint)): (u64, (&String, &_))| {
                if *name == member.name {
                    member.entry(NodeId(id))
                } else {
                    Member::other(id, name, endpoint)
                }
            };
            let node = members.keys().take_while(|name| **name != member.name).count();
            let entries = (0..).zip(&members).map(entry).collect();
            return Ok(self.settings_of(NodeId(node as u64), &cluster_name, entries, false)?);
        }
        let others = members.into_iter().filter(|(name, _)| *name != member.name);
        let others: Vec<_> = others.map(|(_, endpoint)| endpoint).collect();
        // Which member it is does not matter to TLS.
        let settings = self.settings_of(NodeId(0), "", vec![member.entry(NodeId(0))], true)?;
        let security = Security::load(&settings)?;
        let identity = find_own_id(&member.name, &member.peer, &others, &security).await?;
        identity.store(&member.data_dir)?;
        Ok(self.settings_of(
            identity.node,
            &identity.cluster_name,
            vec![member.entry(identity.node)],
            true,
        )?)
    }

    /// Records in the data directory which member it is of; from then on that counts in place of the initial cluster. After a start
    /// without `--force-new-cluster` a later start may force a new cluster again.
    pub(crate) fn record_start(&self, settings: &Settings) -> Result<(), EtcdStartError> {
        let cluster_name = settings.deployment.cluster_name.clone();
        Identity { node: settings.node, cluster_name }.store(&self.member.data_dir)?;
        if self.force_flag().is_none() {
            forced::clear_mark(&self.member.data_dir).map_err(ForceError::from)?;
        }
        Ok(())
    }

    fn settings_of(
        &self,
        node: NodeId,
        cluster_name: &str,
        nodes: Vec<NodeEntry>,
        join: bool,
    ) -> Result<Settings, ConfigError> {
        let derived = |flag: &str, value: OsString| {
            let given = self.values.given(flag);
            let place = given.map_or_else(|| "default".to_owned(), |given| given.place.clone());
            let written = given.map_or_else(|| format!("--{flag}"), |given| given.written.clone());
            Setting { place, written, values: vec![value] }
        };
        let mut settings = vec![
            ("node_id", derived("initial-cluster", node.to_string().into())),
            ("data_dir", derived("data-dir", self.member.data_dir.clone().into())),
            ("cluster_name", derived("initial-cluster-token", cluster_name.into())),
            ("join", derived("initial-cluster-state", join.to_string().into())),
            ("log", derived("log-level", self.logging.filter.clone().into())),
            ("quota_size", derived("quota-backend-bytes", self.quota()?.into())),
        ];
        settings.extend(self.same_settings());
        self.check_variables()?;
        if self.values.is_set(CLIENT_CERT_AUTH) {
            settings.push(("tls_client_certificates", derived(CLIENT_CERT_AUTH, "required".into())));
        }
        let environment = |name: &str| self.environment.get(name).cloned();
        let mut settings = Settings::of_node(settings, environment, nodes)?;
        let (listen, also) = self.member.listen_clients.split_first().ok_or_else(|| {
            self.values.error("listen-client-urls", "the member must listen somewhere for clients")
        })?;
        settings.client_listen = listen.clone();
        settings.client_listen_also = also.to_vec();
        settings.health_listen.clone_from(&self.member.listen_health);
        settings.plain_listeners.clone_from(&self.member.plain_listeners);
        settings.advertises_plain = self.member.advertises_plain && settings.tls.has_client_tls();
        settings.publication = Publication::Always;
        if let Some(topology) = &mut settings.topology {
            topology.consensus_listen = self.member.listen_peer.clone();
        }
        Ok(settings)
    }

    /// Checks that no variable of kv-server chooses the certificates: the schemes of the URLs are checked by the flags alone.
    fn check_variables(&self) -> Result<(), ConfigError> {
        for flag in ["cert-file", "auto-tls", "peer-cert-file", "peer-auto-tls"] {
            let Some(Effect::Sets(name)) = flags::all().find(|row| row.name == flag).map(|row| row.effect)
            else {
                continue;
            };
            let variable = format!("KV_{}", name.to_uppercase());
            if self.environment.get(&variable).is_some_and(|value| !value.is_empty()) {
                let why = format!("the URLs of a member would contradict it; use --{flag}");
                let place = "environment".to_owned();
                return Err(ConfigError::Setting { place, setting: variable, why });
            }
        }
        Ok(())
    }

    /// The settings that have the value of a flag.
    fn same_settings(&self) -> Vec<(&'static str, Setting)> {
        let mut settings = Vec::new();
        for flag in flags::all() {
            let (name, by_default) = match flag.effect {
                Effect::Sets(name) => (name, None),
                Effect::SetsAlways(name) => (name, Some(flag.default)),
                _ => continue,
            };
            let given = self.values.given(flag.name).cloned();
            let given = given.or_else(|| {
                let value = by_default?.to_owned();
                let written = format!("--{}={value}", flag.name);
                Some(Given { value, place: "default".to_owned(), written })
            });
            if let Some(given) = given.filter(|given| !stands_for_default(flag, &given.value)) {
                let Given { value, place, written } = given;
                settings
                    .push((name, Setting { place, written, values: vec![native(flag.kind, &value).into()] }));
            }
        }
        settings
    }

    fn quota(&self) -> Result<String, ConfigError> {
        let bytes = self.values.text("quota-backend-bytes").parse::<i64>();
        let bytes =
            bytes.map_err(|_| self.values.error("quota-backend-bytes", "it must be a whole number"))?;
        Ok(match bytes {
            0 => QUOTA_BY_DEFAULT.to_owned(),
            bytes => format!("{}B", bytes.max(0)),
        })
    }
}

/// Whether a value stands for the default of a flag that is not given.
fn stands_for_default(flag: &Flag, value: &str) -> bool {
    value == "0" && ["snapshot-count", "snapshot-catchup-entries"].contains(&flag.name)
}

/// A value of etcd as kv-server writes it.
fn native(kind: Kind, value: &str) -> String {
    match kind {
        Kind::Milliseconds => format!("{value}ms"),
        Kind::Bytes => format!("{value}B"),
        Kind::Bool => (flags::boolean(value) == Some(true)).to_string(),
        Kind::Retention if value.parse::<u64>().is_ok() => value.to_owned(),
        Kind::Duration | Kind::Retention => match duration::parse_duration(value) {
            Ok(Duration::ZERO) => "0".to_owned(),
            Ok(time) => format!("{}ns", time.as_nanos()),
            Err(_) => value.to_owned(),
        },
        _ => value.to_owned(),
    }
}

/// Refuses features that are not there.
fn check_features(values: &Values) -> Result<(), ConfigError> {
    let gates = values.text("feature-gates").split(',').map(str::trim).filter(|gate| !gate.is_empty());
    for gate in gates {
        let (name, value) = gate.split_once('=').unwrap_or((gate, ""));
        let wrong = |why: &str| values.error("feature-gates", format!("{gate}: {why}"));
        match flags::boolean(value) {
            None => return Err(wrong("it must be NAME=true or NAME=false")),
            Some(true) if ABSENT_FEATURES.contains(&name) => {
                return Err(wrong("kv-server does not have this; `kvctl hash` compares the nodes"));
            }
            Some(_) if FEATURES.contains(&name) || ABSENT_FEATURES.contains(&name) => {}
            Some(_) => return Err(wrong("etcd 3.7 has no such feature")),
        }
    }
    Ok(())
}

/// Data of etcd in a data directory, if there is any.
fn data_of_etcd(data_dir: &std::path::Path) -> Option<PathBuf> {
    Some(data_dir.join("member")).filter(|path| path.exists())
}

const ABSENT_FEATURES: [&str; 3] = ["CompactHashCheck", "InitialCorruptCheck", "AllAlpha"];
const FEATURES: [&str; 8] = [
    "AllBeta",
    "FastLeaseKeepAlive",
    "LeaseCheckpoint",
    "LeaseCheckpointPersist",
    "PriorityRequest",
    "SetMemberLocalAddr",
    "StopGRPCServiceOnDefrag",
    "TxnModeWriteWithSharedBuffer",
];
const CLIENT_CERT_AUTH: &str = "client-cert-auth";
const FORCE: &str = "force-new-cluster";
/// As in etcd.
const QUOTA_BY_DEFAULT: &str = "2GiB";
/// Variables of settings that etcd's flags determine.
const TRANSLATED: [&str; 14] = [
    "KV_CONFIG",
    "KV_PORT",
    "KV_LOG",
    "KV_LOG_FORMAT",
    "KV_MODE",
    "KV_NODE_ID",
    "KV_INSTANCE_ID",
    "KV_REPLICA_ENDPOINTS",
    "KV_DATA_DIR",
    "KV_LISTEN_HOST",
    "KV_CLUSTER_NAME",
    "KV_JOIN",
    "KV_WITNESSES",
    "KV_QUOTA_SIZE",
];
