//! The service `Auth`.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use kv_etcd_api::{
    authpb::{Permission as PbPermission, permission::Type},
    etcdserverpb::{
        AuthDisableRequest, AuthDisableResponse, AuthEnableRequest, AuthEnableResponse, AuthRoleAddRequest,
        AuthRoleAddResponse, AuthRoleDeleteRequest, AuthRoleDeleteResponse, AuthRoleGetRequest,
        AuthRoleGetResponse, AuthRoleGrantPermissionRequest, AuthRoleGrantPermissionResponse,
        AuthRoleListRequest, AuthRoleListResponse, AuthRoleRevokePermissionRequest,
        AuthRoleRevokePermissionResponse, AuthStatusRequest, AuthStatusResponse, AuthUserAddRequest,
        AuthUserAddResponse, AuthUserChangePasswordRequest, AuthUserChangePasswordResponse,
        AuthUserDeleteRequest, AuthUserDeleteResponse, AuthUserGetRequest, AuthUserGetResponse,
        AuthUserGrantRoleRequest, AuthUserGrantRoleResponse, AuthUserListRequest, AuthUserListResponse,
        AuthUserRevokeRoleRequest, AuthUserRevokeRoleResponse, AuthenticateRequest, AuthenticateResponse,
        ResponseHeader, auth_server::Auth,
    },
};
use kv_state_machine::{
    AuthOperation, AuthRejection, AuthState, KeyRange, KvOperation, Password, PasswordHash, Permission,
    PermissionKind, ROOT,
};
use tonic::{Request, Response, Status};

use super::{Etcd, error};
use crate::{auth, call_log};

type Result<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl Auth for Etcd {
    async fn auth_enable(&self, _: Request<AuthEnableRequest>) -> Result<AuthEnableResponse> {
        let secret = auth::new_secret().map_err(|error| {
            Status::unavailable(format!("etcdserver: the operating system has no random numbers: {error}"))
        })?;
        let header = self.change_auth(AuthOperation::Enable { secret }).await?;
        Ok(Response::new(AuthEnableResponse { header }))
    }

    async fn auth_disable(&self, _: Request<AuthDisableRequest>) -> Result<AuthDisableResponse> {
        let header = self.change_auth(AuthOperation::Disable).await?;
        Ok(Response::new(AuthDisableResponse { header }))
    }

    async fn auth_status(&self, _: Request<AuthStatusRequest>) -> Result<AuthStatusResponse> {
        let (auth, header) = self.auth_now().await?;
        let (enabled, auth_revision) = (auth.is_enabled(), auth.revision());
        Ok(Response::new(AuthStatusResponse { header, enabled, auth_revision }))
    }

    /// Clients with a name and a password call this first. If authentication is not enabled, they continue without a token.
    async fn authenticate(&self, request: Request<AuthenticateRequest>) -> Result<AuthenticateResponse> {
        let AuthenticateRequest { name, password } = request.into_inner();
        call_log::note_login(&name);
        let (auth, header) = self.auth_now().await?;
        let login = auth::login(self.router.passwords(), &auth, self.origin, &name, password).await;
        let caller = login.map_err(error::of_login)?;
        call_log::note_caller(&caller);
        let token = auth::token_for(&auth, &caller).unwrap_or_default();
        Ok(Response::new(AuthenticateResponse { header, token }))
    }

    async fn user_add(&self, request: Request<AuthUserAddRequest>) -> Result<AuthUserAddResponse> {
        let AuthUserAddRequest { name, password, options, hashed_password } = request.into_inner();
        let password = if options.is_some_and(|options| options.no_password) {
            Password::None
        } else {
            Password::Hash(self.hash(password, &hashed_password).await?)
        };
        let header = self.change_auth(AuthOperation::AddUser { user: name, password }).await?;
        Ok(Response::new(AuthUserAddResponse { header }))
    }

    /// A user without the role `root` may get its own entry only.
    async fn user_get(&self, request: Request<AuthUserGetRequest>) -> Result<AuthUserGetResponse> {
        let name = request.into_inner().name;
        let (auth, header) = self.auth_now().await?;
        self.check_root_unless(|caller| caller == name)?;
        let user = auth.user(&name).ok_or(AuthRejection::UserNotFound).map_err(error::of_auth)?;
        let roles = user.roles().map(str::to_owned).collect();
        Ok(Response::new(AuthUserGetResponse { header, roles }))
    }

    async fn user_list(&self, _: Request<AuthUserListRequest>) -> Result<AuthUserListResponse> {
        let (auth, header) = self.auth_now().await?;
        self.check_root_unless(|_| false)?;
        let users = auth.users().map(str::to_owned).collect();
        Ok(Response::new(AuthUserListResponse { header, users }))
    }

    async fn user_delete(&self, request: Request<AuthUserDeleteRequest>) -> Result<AuthUserDeleteResponse> {
        let user = request.into_inner().name;
        let header = self.change_auth(AuthOperation::DeleteUser { user }).await?;
        Ok(Response::new(AuthUserDeleteResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<AuthUserChangePasswordRequest>,
    ) -> Result<AuthUserChangePasswordResponse> {
        let AuthUserChangePasswordRequest { name, password, hashed_password } = request.into_inner();
        let hash = self.hash(password, &hashed_password).await?;
        let change = AuthOperation::ChangePassword { user: name, hash: PasswordHash(hash) };
        let header = self.change_auth(change).await?;
        Ok(Response::new(AuthUserChangePasswordResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<AuthUserGrantRoleRequest>,
    ) -> Result<AuthUserGrantRoleResponse> {
        let AuthUserGrantRoleRequest { user, role } = request.into_inner();
        let header = self.change_auth(AuthOperation::GrantRole { user, role }).await?;
        Ok(Response::new(AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<AuthUserRevokeRoleRequest>,
    ) -> Result<AuthUserRevokeRoleResponse> {
        let AuthUserRevokeRoleRequest { name, role } = request.into_inner();
        let header = self.change_auth(AuthOperation::RevokeRole { user: name, role }).await?;
        Ok(Response::new(AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(&self, request: Request<AuthRoleAddRequest>) -> Result<AuthRoleAddResponse> {
        let role = request.into_inner().name;
        let header = self.change_auth(AuthOperation::AddRole { role }).await?;
        Ok(Response::new(AuthRoleAddResponse { header }))
    }

    /// A user without the role `root` may get its own roles only.
    async fn role_get(&self, request: Request<AuthRoleGetRequest>) -> Result<AuthRoleGetResponse> {
        let role = request.into_inner().role;
        let (auth, header) = self.auth_now().await?;
        let has_role =
            |caller: &str| auth.user(caller).is_some_and(|user| user.roles().any(|own| own == role));
        self.check_root_unless(has_role)?;
        let permissions =
            auth.permissions(&role).ok_or(AuthRejection::RoleNotFound).map_err(error::of_auth)?;
        let perm = if role == ROOT {
            let everything = Bytes::from_static(&[0]);
            vec![PbPermission { perm_type: Type::Readwrite.into(), key: Bytes::new(), range_end: everything }]
        } else {
            permissions.into_iter().map(permission).collect()
        };
        Ok(Response::new(AuthRoleGetResponse { header, perm }))
    }

    async fn role_list(&self, _: Request<AuthRoleListRequest>) -> Result<AuthRoleListResponse> {
        let (auth, header) = self.auth_now().await?;
        self.check_root_unless(|_| false)?;
        let roles = auth.roles().map(str::to_owned).collect();
        Ok(Response::new(AuthRoleListResponse { header, roles }))
    }

    async fn role_delete(&self, request: Request<AuthRoleDeleteRequest>) -> Result<AuthRoleDeleteResponse> {
        let role = request.into_inner().role;
        let header = self.change_auth(AuthOperation::DeleteRole { role }).await?;
        Ok(Response::new(AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<AuthRoleGrantPermissionRequest>,
    ) -> Result<AuthRoleGrantPermissionResponse> {
        let AuthRoleGrantPermissionRequest { name, perm } = request.into_inner();
        let perm = perm.ok_or_else(error::permission_not_given)?;
        let kind = match Type::try_from(perm.perm_type) {
            Ok(Type::Read) => PermissionKind::Read,
            Ok(Type::Write) => PermissionKind::Write,
            Ok(Type::Readwrite) => PermissionKind::ReadWrite,
            Err(_) => return Err(error::unknown_number("permission type", perm.perm_type)),
        };
        let permission = Permission { kind, keys: keys(perm.key, perm.range_end) };
        let header = self.change_auth(AuthOperation::GrantPermission { role: name, permission }).await?;
        Ok(Response::new(AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<AuthRoleRevokePermissionRequest>,
    ) -> Result<AuthRoleRevokePermissionResponse> {
        let AuthRoleRevokePermissionRequest { role, key, range_end } = request.into_inner();
        let keys = keys(key, range_end);
        let header = self.change_auth(AuthOperation::RevokePermission { role, keys }).await?;
        Ok(Response::new(AuthRoleRevokePermissionResponse { header }))
    }
}

impl Etcd {
    async fn change_auth(
        &self,
        change: AuthOperation,
    ) -> std::result::Result<Option<ResponseHeader>, Status> {
        let answer = self.write(KvOperation::Auth(change)).await?;
        Ok(Some(self.header(answer.revision)))
    }

    /// Users and roles as of now, and the header of a response about them.
    async fn auth_now(
        &self,
    ) -> std::result::Result<(std::sync::Arc<AuthState>, Option<ResponseHeader>), Status> {
        let database = self.data()?;
        let auth = self.when_led(|| database.current_auth()).await?;
        Ok((auth, Some(self.header_now()?)))
    }

    /// Checks that the caller has the role `root`, or that `is_permitted` is true of its name.
    fn check_root_unless(&self, is_permitted: impl Fn(&str) -> bool) -> std::result::Result<(), Status> {
        match self.database().check_root(&self.caller) {
            Err(AuthRejection::PermissionDenied) if self.caller.name().is_some_and(is_permitted) => Ok(()),
            checked => checked.map_err(error::of_auth),
        }
    }

    /// The hash of a password, or a hash that a client gives instead of one: bcrypt, in base64.
    async fn hash(&self, password: String, hashed: &str) -> std::result::Result<String, Status> {
        if password.is_empty() && !hashed.is_empty() {
            let hash = STANDARD.decode(hashed).ok().and_then(|hash| String::from_utf8(hash).ok());
            return hash.filter(|hash| auth::is_bcrypt(hash)).ok_or_else(error::not_a_hash);
        }
        let hash =
            self.router.passwords().hash(self.origin, password).await.ok_or_else(error::too_many_requests)?;
        hash.map_err(|error| Status::internal(format!("etcdserver: the password cannot be hashed: {error}")))
    }
}

fn keys(key: Bytes, range_end: Bytes) -> KeyRange {
    KeyRange { key, range_end: Some(range_end).filter(|end| !end.is_empty()) }
}

fn permission(permission: Permission) -> PbPermission {
    let perm_type = match permission.kind {
        PermissionKind::Read => Type::Read,
        PermissionKind::Write => Type::Write,
        PermissionKind::ReadWrite => Type::Readwrite,
    };
    let KeyRange { key, range_end } = permission.keys;
    PbPermission { perm_type: perm_type.into(), key, range_end: range_end.unwrap_or_default() }
}
