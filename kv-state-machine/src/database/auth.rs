//! Users, roles, and the permissions of callers.

use std::sync::Arc;

use consensus_core::ReadConsistency;
use tokio::sync::watch;

use super::{ConsensusKvDatabase, KvError, blocking, read_error, witness};
use crate::{
    AuthRejection, AuthState, Caller, KeyRange, KvOperation, KvRejection, KvStoreExecutor,
    auth::{AccessKind, Demand},
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
            auth.check_operation(&caller, &operation, &|lease, keys| {
                executor.are_attached_keys_in(lease, keys)
            })
        })
        .await
    }

    /// Checks that a caller may access all keys that are attached to leases.
    pub(super) async fn check_leases(
        &self,
        caller: &Caller,
        kind: AccessKind,
        ids: Vec<i64>,
    ) -> Result<(), KvError> {
        let (Some(executor), Some(auth)) = (self.executor.clone(), self.enabled_auth()) else {
            return Ok(());
        };
        if auth.accessible(caller, kind).map_err(KvRejection::from)?.is_none() {
            return Ok(());
        }
        let caller = caller.clone();
        let permitted = blocking(move || {
            let Ok(Some(keys)) = auth.accessible(&caller, kind) else { return Ok(false) };
            for id in ids {
                if !executor.are_attached_keys_in(id, keys)? {
                    return Ok(false);
                }
            }
            Ok(true)
        });
        let refused = || KvRejection::from(AuthRejection::PermissionDenied);
        if permitted.await? { Ok(()) } else { Err(refused().into()) }
    }
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
