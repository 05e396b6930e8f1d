//! `Debug` of the types that hold passwords or tokens, without them: a value may be logged.

use std::fmt;

use crate::{
    admin::{self, AuthChange},
    idl::{LoginRequest, LoginResponse},
};

impl fmt::Debug for LoginRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, password, token } = self;
        f.debug_struct("LoginRequest")
            .field("user", user)
            .field("password", &hidden(password))
            .field("token", &hidden(token))
            .finish()
    }
}

impl fmt::Debug for LoginResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { header, token: _ } = self;
        f.debug_struct("LoginResponse").field("header", header).finish_non_exhaustive()
    }
}

impl fmt::Debug for admin::LoginRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, password: _, token: _ } = self;
        f.debug_struct("LoginRequest").field("user", user).finish_non_exhaustive()
    }
}

impl fmt::Debug for admin::LoginResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginResponse").finish_non_exhaustive()
    }
}

impl fmt::Debug for AuthChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { action, user, role, password, permission } = self;
        f.debug_struct("AuthChange")
            .field("action", action)
            .field("user", user)
            .field("role", role)
            .field("password", &hidden(password))
            .field("permission", permission)
            .finish()
    }
}

/// Shows whether there is a secret.
fn hidden(secret: &Option<String>) -> Option<fmt::Arguments<'static>> {
    secret.as_ref().map(|_| format_args!(".."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin::AuthAction,
        idl::ResponseHeader,
        protocol::{Call, Reply},
    };

    #[test]
    fn passwords_and_tokens_are_not_shown() {
        let secret = || Some("Secret".to_owned());
        let login = LoginRequest { user: Some("ann".to_owned()), password: secret(), token: None };
        let shown = format!("{:?}", Call::Login(login.clone()));
        assert_eq!(shown, r#"Login(LoginRequest { user: Some("ann"), password: Some(..), token: None })"#);
        let change = AuthChange::new(AuthAction::ADD_USER, Some("ann".to_owned()), None, secret(), None);
        let response = LoginResponse::new(ResponseHeader::new(1, 2, 3, 4), "Secret".to_owned());
        for shown in [
            format!("{:?}", Call::Login(LoginRequest { password: None, token: secret(), ..login })),
            format!("{:?}", Call::ChangeAuth(change)),
            format!("{:?}", Reply::Login(response)),
        ] {
            assert!(!shown.contains("Secret"), "{shown}");
        }
    }
}
