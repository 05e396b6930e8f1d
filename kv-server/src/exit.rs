//! Exit codes, by which a service manager decides whether to start the program again.

use std::{fmt, process::ExitCode};

use consensus_core::StorageError;
use consensus_engine_raft::{StartError, recover::RecoverError};
use kv_state_machine::KvStartError;

use crate::{mode::ModeError, node::NodeError};

/// Why a node does not run.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) why: String,
    pub(crate) exit: Exit,
}

/// Cause of a failure, as the exit code tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Another start may succeed.
    Failed,
    /// The settings are wrong, or the files that they name: every start fails until an operator changes them.
    Settings,
    /// The data directory is not that of this node, or damaged, or the cluster refuses the node: every start fails until an operator
    /// decides what to do with the data.
    Data,
}

impl Exit {
    /// The exit code. `RestartPreventExitStatus` in `packaging/kv-server.service` has those that no restart cures.
    pub(crate) fn code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed => 1,
            Self::Settings => 2,
            Self::Data => 3,
        })
    }

    fn of_storage(error: &StorageError) -> Self {
        match error {
            StorageError::ForeignDirectory { .. }
            | StorageError::NewerFormat { .. }
            | StorageError::Corrupt { .. }
            | StorageError::Missing { .. } => Self::Data,
            _ => Self::Failed,
        }
    }

    fn of_node(error: &NodeError) -> Self {
        match error {
            NodeError::Storage(error)
            | NodeError::Database(KvStartError::Storage(error))
            | NodeError::Mode(ModeError::Storage(error))
            | NodeError::Recover(RecoverError::Storage(error))
            | NodeError::Engine(StartError::Storage(error)) => Self::of_storage(error),
            NodeError::Engine(StartError::Config(_))
            | NodeError::Security(_)
            | NodeError::Descriptors(_)
            | NodeError::Audit(_) => Self::Settings,
            NodeError::Engine(
                StartError::Mismatch { .. } | StartError::OtherHistory { .. } | StartError::OtherKind { .. },
            )
            | NodeError::Founding(_)
            | NodeError::Mode(_)
            | NodeError::NoLog { .. }
            | NodeError::NoWitness { .. }
            | NodeError::OtherCluster { .. }
            | NodeError::Recover(_)
            | NodeError::Removed { .. } => Self::Data,
            NodeError::Transport(_) | NodeError::Engine(_) | NodeError::Database(_) | NodeError::Io(_) => {
                Self::Failed
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Self {
        Self { why: error.to_string(), exit: Exit::of_node(&error) }
    }
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self { why, exit: Exit::Failed }
    }
}
