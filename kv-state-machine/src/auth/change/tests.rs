use super::*;
use crate::{Caller, PasswordHash, PermissionKind};

fn keys(key: &str, end: Option<&str>) -> KeyRange {
    KeyRange { key: key.to_owned().into(), range_end: end.map(|end| end.to_owned().into()) }
}

fn hash(text: &str) -> Password {
    Password::Hash(text.to_owned())
}

fn enable() -> AuthOperation {
    AuthOperation::Enable { secret: AuthSecret(vec![7; 32].into()) }
}

fn add_user(user: &str) -> AuthOperation {
    AuthOperation::AddUser { user: user.to_owned(), password: hash("h") }
}

fn grant_role(user: &str, role: &str) -> AuthOperation {
    AuthOperation::GrantRole { user: user.to_owned(), role: role.to_owned() }
}

fn grant(role: &str, kind: PermissionKind, keys: KeyRange) -> AuthOperation {
    AuthOperation::GrantPermission { role: role.to_owned(), permission: Permission { kind, keys } }
}

/// The user `ann` with the role `r`, and the user and role `root`; enabled.
fn state() -> AuthState {
    let mut state = AuthState::default();
    let operations = [
        add_user("root"),
        grant_role("root", "root"),
        add_user("ann"),
        AuthOperation::AddRole { role: "r".to_owned() },
        grant_role("ann", "r"),
        enable(),
    ];
    for operation in operations {
        state.execute(&operation).unwrap();
    }
    state
}

#[test]
fn enabling_without_root_is_refused() {
    let mut state = AuthState::default();
    assert_eq!(state.execute(&enable()), Err(AuthRejection::NoRootUser));
    state.execute(&add_user("root")).unwrap();
    assert_eq!(state.execute(&enable()), Err(AuthRejection::NoRootRole));
    state.execute(&grant_role("root", "root")).unwrap();
    state.execute(&enable()).unwrap();
    assert!(state.is_enabled());
}

#[test]
fn root_cannot_be_removed_while_enabled() {
    let mut state = state();
    let root = || ROOT.to_owned();
    let removals = [
        AuthOperation::DeleteUser { user: root() },
        AuthOperation::RevokeRole { user: root(), role: root() },
        AuthOperation::DeleteRole { role: root() },
    ];
    for removal in &removals {
        assert_eq!(state.execute(removal), Err(AuthRejection::InvalidChange), "{removal:?}");
    }
    state.execute(&AuthOperation::Disable).unwrap();
    state.execute(&removals[0]).unwrap();
}

#[test]
fn each_change_adds_one_to_the_revision_and_enabling_none() {
    let mut state = state();
    assert_eq!(state.revision(), 6);
    state.execute(&enable()).unwrap();
    state.execute(&grant_role("ann", "r")).unwrap();
    assert_eq!(state.revision(), 6, "what changes nothing does not count");
    state.execute(&grant("r", PermissionKind::Read, keys("a", None))).unwrap();
    state.execute(&AuthOperation::Disable).unwrap();
    assert_eq!(state.revision(), 8);
}

#[test]
fn another_kind_on_the_same_range_replaces_the_first() {
    let mut state = state();
    let ann = Caller::user("ann", state.revision());
    let range = keys("a", Some("m"));
    state.execute(&grant("r", PermissionKind::Read, range.clone())).unwrap();
    assert_eq!(state.check_read(&ann, &range), Ok(()));
    state.execute(&grant("r", PermissionKind::Write, range.clone())).unwrap();
    assert_eq!(state.check_read(&ann, &range), Err(AuthRejection::PermissionDenied));
    assert_eq!(state.permissions("r").unwrap().len(), 1);
}

#[test]
fn ranges_of_several_roles_count_as_one() {
    let mut state = state();
    let ann = Caller::user("ann", state.revision());
    state.execute(&AuthOperation::AddRole { role: "s".to_owned() }).unwrap();
    state.execute(&grant_role("ann", "s")).unwrap();
    state.execute(&grant("r", PermissionKind::Read, keys("a", Some("m")))).unwrap();
    state.execute(&grant("s", PermissionKind::ReadWrite, keys("m", Some("z")))).unwrap();
    assert_eq!(state.check_read(&ann, &keys("a", Some("z"))), Ok(()));
    state.execute(&AuthOperation::DeleteRole { role: "s".to_owned() }).unwrap();
    assert_eq!(state.check_read(&ann, &keys("a", Some("z"))), Err(AuthRejection::PermissionDenied));
}

#[test]
fn admission_ends_with_the_password_and_the_user_but_not_with_roles() {
    let mut state = state();
    let range = keys("a", None);
    state.execute(&grant("r", PermissionKind::Read, range.clone())).unwrap();
    let ann = Caller::user("ann", state.revision());
    state.execute(&AuthOperation::AddRole { role: "other".to_owned() }).unwrap();
    state.execute(&grant_role("ann", "other")).unwrap();
    assert_eq!(state.check_read(&ann, &range), Ok(()));
    let change =
        AuthOperation::ChangePassword { user: "ann".to_owned(), hash: PasswordHash("new".to_owned()) };
    assert!(!format!("{change:?}").contains("new"), "{change:?}");
    state.execute(&change).unwrap();
    assert_eq!(state.check_read(&ann, &range), Err(AuthRejection::OutdatedAdmission));
    let ann = Caller::user("ann", state.revision());
    assert_eq!(state.check_read(&ann, &range), Ok(()));
    state.execute(&AuthOperation::DeleteUser { user: "ann".to_owned() }).unwrap();
    assert_eq!(state.check_read(&ann, &range), Err(AuthRejection::PermissionDenied));
    for operation in [add_user("ann"), grant_role("ann", "r")] {
        state.execute(&operation).unwrap();
    }
    assert_eq!(state.check_read(&ann, &range), Err(AuthRejection::OutdatedAdmission));
}

#[test]
fn empty_range_and_empty_key_are_no_permission() {
    let mut state = state();
    for range in [keys("b", Some("a")), keys("b", Some("b")), keys("", None)] {
        let refused = state.execute(&grant("r", PermissionKind::Read, range.clone()));
        assert_eq!(refused, Err(AuthRejection::InvalidChange), "{range:?}");
    }
    let absent = AuthOperation::RevokePermission { role: "r".to_owned(), keys: keys("a", None) };
    assert_eq!(state.execute(&absent), Err(AuthRejection::PermissionNotGranted));
}

/// Executes changes until one is refused. Returns how many were executed, and why the next one was not.
fn fill(
    state: &mut AuthState,
    change: impl Fn(usize) -> Vec<AuthOperation>,
) -> (usize, Option<AuthRejection>) {
    for done in 0..20_000 {
        for change in change(done) {
            if let Err(rejection) = state.execute(&change) {
                return (done, Some(rejection));
            }
        }
    }
    (20_000, None)
}

#[test]
fn users_and_roles_have_maximums_and_room_again_after_a_deletion() {
    let mut state = state();
    let user = |n| vec![add_user(&format!("u{n}"))];
    assert_eq!(fill(&mut state, user), (USERS_MAX - 2, Some(AuthRejection::TooManyUsers)));
    assert_eq!(state.execute(&add_user("ann")), Err(AuthRejection::UserExists));
    state.execute(&AuthOperation::DeleteUser { user: "u0".to_owned() }).unwrap();
    state.execute(&add_user("u0")).unwrap();
    let mut state = self::state();
    let role = |n| vec![AuthOperation::AddRole { role: format!("r{n}") }];
    assert_eq!(fill(&mut state, role), (ROLES_MAX - 1, Some(AuthRejection::TooManyRoles)));
    state.execute(&AuthOperation::DeleteRole { role: "r0".to_owned() }).unwrap();
    state.execute(&AuthOperation::AddRole { role: "r0".to_owned() }).unwrap();
}

#[test]
fn roles_of_a_user_and_permissions_of_a_role_have_maximums() {
    let mut state = state();
    let role = |n| {
        let role = format!("r{n}");
        vec![AuthOperation::AddRole { role: role.clone() }, grant_role("ann", &role)]
    };
    let (roles, refused) = fill(&mut state, role);
    assert_eq!((roles, refused), (ROLES_OF_USER_MAX - 1, Some(AuthRejection::TooManyRolesOfUser)));
    state.execute(&grant_role("ann", "r0")).unwrap();
    assert_eq!(state.user("ann").unwrap().roles().count(), ROLES_OF_USER_MAX);
    let permission = |n| vec![grant("r", PermissionKind::Read, keys(&format!("k{n}"), None))];
    let (permissions, refused) = fill(&mut state, permission);
    assert_eq!((permissions, refused), (PERMISSIONS_MAX, Some(AuthRejection::TooManyPermissions)));
    state.execute(&grant("r", PermissionKind::Write, keys("k0", None))).unwrap();
    assert!(refused.unwrap().to_string().contains("the role has 1000 permissions"));
    assert_eq!(state.permissions("r").unwrap().len(), PERMISSIONS_MAX);
}
