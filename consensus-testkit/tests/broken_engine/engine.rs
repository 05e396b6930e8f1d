//! The engine of one node of the cluster.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use consensus_core::{
    ChangeError, Committed, ConsensusEngine, EngineStatus, Health, InvalidMembership, LogId, LogIndex,
    Member, MemberChange, MemberKind, Membership, NodeId, ProposeError, ReadConsistency, ReadError,
    ShutdownError, SnapshotError, StateMachine, TransferError,
};
use tokio::{sync::watch, time::sleep};

use crate::cluster::{COMMIT_TIME, Cluster, Defect, FOLLOW_TIME, lock};

pub(crate) struct Engine {
    pub(crate) node: usize,
    pub(crate) cluster: Arc<Mutex<Cluster>>,
}

/// A proposal whose caller waits; dropped early if the caller drops its future.
struct Waiting<'a> {
    engine: &'a Engine,
    command: Bytes,
    completed: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut cluster = lock(&self.engine.cluster);
        if self.completed {
            return;
        }
        match cluster.defect {
            Defect::ProposesDroppedCommandAgain => drop(cluster.append(self.command.clone())),
            Defect::StopsAtDroppedProposal => cluster.nodes[self.engine.node].health = Health::ShutDown,
            _ => {}
        }
    }
}

impl Engine {
    fn health(&self) -> Health {
        lock(&self.cluster).nodes[self.node].health.clone()
    }

    fn not_running(&self) -> Option<String> {
        match self.health() {
            Health::Running => None,
            Health::ShutDown => Some("the engine is shut down".to_owned()),
            Health::Fatal(why) => Some(why),
        }
    }

    /// Appends the command and returns its position, or refuses it.
    fn accept(&self, command: &Bytes) -> Result<LogId, ProposeError> {
        let mut cluster = lock(&self.cluster);
        let leader = cluster.leader_id();
        match (&cluster.nodes[self.node].health, cluster.defect) {
            (Health::ShutDown, Defect::AcceptsProposalsAfterShutdown) => {
                return Err(ProposeError::Unknown { why: "the engine is shut down" });
            }
            (Health::ShutDown, _) => return Err(ProposeError::ShutDown),
            (Health::Fatal(_), Defect::HidesPanic) => return Err(ProposeError::ShutDown),
            (Health::Fatal(why), _) => return Err(ProposeError::Fatal { why: why.clone() }),
            (Health::Running, _) => {}
        }
        if !cluster.is_leader(self.node) {
            return match cluster.defect {
                Defect::NamesNoLeader => Err(ProposeError::NotLeader { leader: None }),
                Defect::AcknowledgesWithoutForwarding => Ok(LogId::ZERO),
                Defect::RefusesAndProposes => {
                    cluster.append(command.clone());
                    Err(ProposeError::NotLeader { leader })
                }
                _ => Err(ProposeError::NotLeader { leader }),
            };
        }
        if cluster.defect == Defect::RefusesEmptyCommands && command.is_empty() {
            return Err(ProposeError::TooLarge { bytes: 0, limit: 0 });
        }
        if cluster.defect == Defect::AppliesTwice && command == "7" {
            cluster.append(command.clone());
        }
        Ok(cluster.append(command.clone()))
    }

    /// Applies the entry, a little later also on the followers, and returns the result.
    fn commit(&self, log_id: LogId) -> Result<Committed, ProposeError> {
        let mut cluster = lock(&self.cluster);
        let index = log_id.index.0;
        for node in (0..cluster.nodes.len()).filter(|node| *node != self.node) {
            let cluster = self.cluster.clone();
            tokio::spawn(async move {
                sleep(FOLLOW_TIME).await;
                lock(&cluster).apply(node, index);
            });
        }
        if cluster.nodes[self.node].health == Health::ShutDown {
            return match cluster.defect {
                Defect::RefusesAppliedCommands => Err(ProposeError::ShutDown),
                _ => Err(ProposeError::Unknown { why: "the engine was shut down" }),
            };
        }
        cluster.apply(self.node, index);
        let response = cluster.responses.get(&index).cloned().unwrap_or_default();
        match (&cluster.nodes[self.node].health, cluster.defect) {
            (Health::Fatal(why), _) => Err(ProposeError::Fatal { why: why.clone() }),
            (_, Defect::ReturnsWrongResponse) => Ok(Committed { log_id, response: "1".into() }),
            (_, Defect::ReturnsWrongPosition) => {
                let index = log_id.index.prev();
                Ok(Committed { log_id: LogId { index, ..log_id }, response })
            }
            _ => Ok(Committed { log_id, response }),
        }
    }
}

#[async_trait]
impl ConsensusEngine for Engine {
    async fn propose(&self, command: Bytes) -> Result<Committed, ProposeError> {
        let log_id = self.accept(&command)?;
        if log_id == LogId::ZERO {
            return Ok(Committed { log_id, response: Bytes::new() });
        }
        let mut waiting = Waiting { engine: self, command, completed: false };
        sleep(COMMIT_TIME).await;
        waiting.completed = true;
        let shut_down = self.health() == Health::ShutDown;
        if shut_down && lock(&self.cluster).defect == Defect::LeavesProposalsPending {
            std::future::pending::<()>().await;
        }
        self.commit(log_id)
    }

    async fn read_barrier(&self, consistency: ReadConsistency) -> Result<LogIndex, ReadError> {
        let (mut status, target, defect, leader) = {
            let cluster = lock(&self.cluster);
            let part = &cluster.nodes[self.node];
            let stale = consistency == ReadConsistency::Stale;
            match &part.health {
                Health::ShutDown if stale && cluster.defect == Defect::ServesStaleReadsAfterShutdown => {}
                Health::ShutDown => return Err(ReadError::ShutDown),
                Health::Fatal(why) => return Err(ReadError::Fatal { why: why.clone() }),
                Health::Running => {}
            }
            let commit = cluster.leader.map_or(0, |leader| cluster.nodes[leader].applied);
            let follows = !cluster.is_leader(self.node);
            match cluster.defect {
                Defect::StaleReadsAtCommit if stale => return Ok(LogIndex(commit)),
                Defect::FollowersRefuseStaleReads if stale && follows => {
                    return Err(ReadError::NotLeader { leader: cluster.leader_id() });
                }
                Defect::FollowersReadWithoutWaiting if follows => return Ok(LogIndex(commit)),
                _ if stale => return Ok(LogIndex(part.applied)),
                _ => {}
            }
            (part.status.subscribe(), LogIndex(commit), cluster.defect, cluster.leader_id())
        };
        if defect == Defect::BarriersAtZero {
            return Ok(LogIndex::ZERO);
        }
        if defect == Defect::StatusNeverChanges {
            sleep(2 * FOLLOW_TIME).await;
            return Ok(target);
        }
        let applied = status.wait_for(|status| status.applied >= target).await;
        applied.map(|status| status.applied).map_err(|_| ReadError::NotLeader { leader })
    }

    fn status(&self) -> watch::Receiver<Arc<EngineStatus>> {
        lock(&self.cluster).nodes[self.node].status.subscribe()
    }

    async fn change_membership(&self, changes: Vec<MemberChange>) -> Result<Arc<Membership>, ChangeError> {
        if let Some(why) = self.not_running() {
            return Err(ChangeError::NotRunning { why });
        }
        let mut cluster = lock(&self.cluster);
        if !cluster.is_leader(self.node) && cluster.defect != Defect::FollowersChangeMembers {
            return Err(ChangeError::NotLeader { leader: cluster.leader_id() });
        }
        let changed = match cluster.defect {
            Defect::ChangesOneOfTwo if changes.len() == 2 => cluster.membership.with_changes(&changes[..1]),
            Defect::LearnersVote => {
                cluster.membership.with_changes(&changes.iter().map(voting).collect::<Vec<_>>())
            }
            _ => cluster.membership.with_changes(&changes),
        };
        if let (Defect::ChangesPartially, Err(InvalidMembership::NotAMember(_))) = (cluster.defect, &changed)
        {
            cluster.membership = Arc::new(cluster.membership.with_changes(&changes[..1])?);
            cluster.publish(self.node);
        }
        cluster.membership = Arc::new(changed?);
        (0..cluster.nodes.len()).for_each(|node| cluster.publish(node));
        Ok(cluster.membership.clone())
    }

    async fn transfer_leadership(&self, to: Option<NodeId>) -> Result<NodeId, TransferError> {
        if let Some(why) = self.not_running() {
            return Err(TransferError::NotRunning { why });
        }
        let mut cluster = lock(&self.cluster);
        if !cluster.is_leader(self.node) && cluster.defect != Defect::FollowersTransfer {
            return Err(TransferError::NotLeader { leader: cluster.leader_id() });
        }
        match to {
            Some(to) if cluster.defect == Defect::TransfersToAnyNode => return Ok(to),
            Some(to) if cluster.leader_id() == Some(to) || to.0 >= cluster.nodes.len() as u64 => {
                return Err(TransferError::CannotLead(to));
            }
            _ => {}
        }
        let successor = to.map(|to| to.0 as usize).or_else(|| cluster.successor(self.node));
        let successor = successor.ok_or(TransferError::NoSuccessor)?;
        match cluster.defect {
            Defect::TransfersToItself => return Ok(NodeId(self.node as u64)),
            Defect::NamesSuccessorThatIsNotLeader => {}
            _ => cluster.lead(successor),
        }
        Ok(NodeId(successor as u64))
    }

    async fn compact_log(&self) -> Result<LogIndex, SnapshotError> {
        if let Some(why) = self.not_running() {
            return Err(SnapshotError::NotRunning(why));
        }
        let mut cluster = lock(&self.cluster);
        let defect = cluster.defect;
        let part = &mut cluster.nodes[self.node];
        part.machine.flush().expect("a journal flushes");
        let purged = if defect == Defect::CompactsLess { part.applied / 2 } else { part.applied };
        part.first = purged + 1;
        if defect == Defect::LosesCompactedState {
            part.machine.restore(&mut &emptied(part.machine.applied())[..]).expect("a journal restores");
        }
        cluster.publish(self.node);
        Ok(LogIndex(purged))
    }

    async fn shutdown(&self) -> Result<(), ShutdownError> {
        let mut cluster = lock(&self.cluster);
        let (defect, is_leader) = (cluster.defect, cluster.is_leader(self.node));
        let part = &mut cluster.nodes[self.node];
        match &part.health {
            Health::ShutDown => return Ok(()),
            Health::Fatal(why) => return Err(ShutdownError(why.clone())),
            Health::Running => {}
        }
        if defect != Defect::ShutsDownWithoutFlush {
            part.machine.flush().expect("a journal flushes");
        }
        part.health = Health::ShutDown;
        cluster.publish(self.node);
        if is_leader
            && let Some(successor) = cluster.successor(self.node)
            && defect != Defect::KeepsLeadershipAfterShutdown
        {
            cluster.lead(successor);
        }
        Ok(())
    }
}

fn voting(change: &MemberChange) -> MemberChange {
    match change {
        MemberChange::Set(node, _) | MemberChange::Add(node, _) => {
            MemberChange::Set(*node, Member::new(MemberKind::Voter))
        }
        MemberChange::Remove(node) => MemberChange::Remove(*node),
    }
}

/// Snapshot of a journal at position `applied` without commands.
fn emptied(applied: LogId) -> Vec<u8> {
    consensus_core::codec::encode(1, &(applied, Vec::<(LogId, Bytes)>::new()))
}
