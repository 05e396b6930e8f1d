//! Users, roles, and the permissions of callers.

use std::sync::Arc;

use consensus_core::ReadConsistency;
use tokio::sync::watch;

use super::{ConsensusKvDatabase, KvError, blocking, read_error, witness};
use crate::{
    AuthRejection, AuthState, Caller, KeyRange, KvOperation, KvRejection, KvStoreExecutor,
    auth::{AccessKind, Demand},
    lease_checks::{LeaseChecks, STEPS_MAX},
};

impl ConsensusKvDatabase {
    /// Whether authentication is enabled in the state that this node has applied; `false` on a witness, which has none.
    #[must_use]
    pub fn is_auth_enabled(&self) -> bool {
        self.executor.as_ref().is_some_and(|executor| executor.store().auth().is_enabled())
    }

    /// Users and roles in the state that this node has applied; none on a witness.
    #[must_use]
    pub fn auth(&self) -> Arc<AuthState> {
        self.executor.as_ref().map_or_else(Arc::default, KvStoreExecutor::auth)
    }

    /// Users and roles, as of a linearizable read.
    ///
    /// # Errors
    /// See [`KvError`]; a witness has none.
    pub async fn current_auth(&self) -> Result<Arc<AuthState>, KvError> {
        let executor = self.executor.as_ref().ok_or_else(witness)?;
        self.engine.read_barrier(ReadConsistency::Linearizable).await.map_err(read_error)?;
        Ok(executor.auth())
    }

    /// Is notified when users or roles change in the state that this node has applied; `None` on a witness.
    #[must_use]
    pub fn auth_changes(&self) -> Option<watch::Receiver<u64>> {
        self.executor.as_ref().map(|executor| executor.store().auth().changes())
    }

    /// Checks that a caller is a user, if authentication is enabled. Uses the state that this node has applied.
    ///
    /// # Errors
    /// The reason why it is none.
    pub fn check_user(&self, caller: &Caller) -> Result<(), AuthRejection> {
        self.check_demand(caller, Demand::AnyUser)
    }

    /// Checks that a caller has the role `root`, if authentication is enabled. Uses the state that this node has applied.
    ///
    /// # Errors
    /// The reason why it does not.
    pub fn check_root(&self, caller: &Caller) -> Result<(), AuthRejection> {
        self.check_demand(caller, Demand::Root)
    }

    /// Checks that a caller may read a range, if authentication is enabled. Uses the state that this node has applied.
    ///
    /// # Errors
    /// The reason why it may not.
    pub fn check_read(&self, caller: &Caller, keys: &KeyRange) -> Result<(), AuthRejection> {
        match self.enabled_auth() {
            Some(auth) => auth.check_read(caller, keys),
            None => Ok(()),
        }
    }

    fn check_demand(&self, caller: &Caller, demand: Demand) -> Result<(), AuthRejection> {
        match self.enabled_auth() {
            Some(auth) => auth.check(caller, demand),
            None => Ok(()),
        }
    }

    fn enabled_auth(&self) -> Option<Arc<AuthState>> {
        self.executor.as_ref()?.store().auth().enabled()
    }

    /// Refuses a command before it is proposed if its caller may not execute it. It is checked again when it is applied.
    pub(super) async fn check_permission(
        &self,
        caller: &Caller,
        operation: &KvOperation,
    ) -> Result<(), KvError> {
        if *caller == Caller::Server || !self.is_auth_enabled() {
            return Ok(());
        }
        let Err(_) = self.permission(caller, operation).await? else { return Ok(()) };
        // A command that this node has not applied yet may have given the permission.
        self.engine.read_barrier(ReadConsistency::Linearizable).await.map_err(read_error)?;
        Ok(self.permission(caller, operation).await?.map_err(KvRejection::from)?)
    }

    async fn permission(
        &self,
        caller: &Caller,
        operation: &KvOperation,
    ) -> Result<Result<(), AuthRejection>, KvError> {
        let (Some(executor), Some(auth)) = (self.executor.clone(), self.enabled_auth()) else {
            return Ok(Ok(()));
        };
        if !operation.names_leases() {
            return auth.check_operation(caller, operation, &|_, _| Ok(true)).map_err(super::failure);
        }
        let (caller, operation) = (caller.clone(), operation.clone());
        blocking(move || {
            let checks = LeaseChecks::unbounded();
            auth.check_operation(&caller, &operation, &|lease, keys| {
                executor.are_attached_keys_in(&checks, lease, keys)
            })
        })
        .await
    }

    /// Checks that a caller may access all keys that are attached to a lease, or to all leases. Looks at a bounded number of
    /// attachments.
    pub(super) async fn check_leases(
        &self,
        caller: &Caller,
        kind: AccessKind,
        leases: LeasesOf,
    ) -> Result<(), KvError> {
        let (Some(executor), Some(auth)) = (self.executor.clone(), self.enabled_auth()) else {
            return Ok(());
        };
        if auth.accessible(caller, kind).map_err(KvRejection::from)?.is_none() {
            return Ok(());
        }
        let caller = caller.clone();
        let permitted = blocking(move || {
            let Ok(Some(keys)) = auth.accessible(&caller, kind) else { return Ok((false, false)) };
            let checks = LeaseChecks::bounded();
            let is_permitted = match leases {
                LeasesOf::Lease(id) => executor.are_attached_keys_in(&checks, id, keys)?,
                LeasesOf::All => executor.are_keys_of_all_leases_in(&checks, keys)?,
            };
            Ok((is_permitted, checks.is_exhausted()))
        });
        match permitted.await? {
            (true, _) => Ok(()),
            (false, true) => Err(KvRejection::invalid(format!(
                "more than {STEPS_MAX} keys attached to leases would have to be compared with the permissions of the user; \
                 a user with a permission for all keys can do this"
            ))
            .into()),
            (false, false) => Err(KvRejection::from(AuthRejection::PermissionDenied).into()),
        }
    }
}

/// Leases whose keys are checked.
#[derive(Clone, Copy, Debug)]
pub(super) enum LeasesOf {
    Lease(i64),
    /// All that have not ended.
    All,
}

impl KvOperation {
    /// Whether the permission for the operation depends on the keys attached to a lease.
    fn names_leases(&self) -> bool {
        match self {
            Self::Put(put) => put.lease_id != 0,
            Self::RevokeLease { .. } => true,
            Self::Txn(txn) => txn.success.iter().chain(&txn.failure).any(Self::names_leases),
            _ => false,
        }
    }
}
