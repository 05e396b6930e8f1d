//! `Debug` of the messages that hold passwords or tokens, without them: a message may be logged.

use std::fmt::{Debug, Formatter, Result};

use crate::etcdserverpb::{
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthenticateRequest, AuthenticateResponse,
};

impl Debug for AuthenticateRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { name, password: _ } = self;
        f.debug_struct("AuthenticateRequest").field("name", name).finish_non_exhaustive()
    }
}

impl Debug for AuthenticateResponse {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { header, token: _ } = self;
        f.debug_struct("AuthenticateResponse").field("header", header).finish_non_exhaustive()
    }
}

impl Debug for AuthUserAddRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { name, password: _, options, hashed_password: _ } = self;
        let mut shown = f.debug_struct("AuthUserAddRequest");
        shown.field("name", name).field("options", options).finish_non_exhaustive()
    }
}

impl Debug for AuthUserChangePasswordRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { name, password: _, hashed_password: _ } = self;
        f.debug_struct("AuthUserChangePasswordRequest").field("name", name).finish_non_exhaustive()
    }
}
