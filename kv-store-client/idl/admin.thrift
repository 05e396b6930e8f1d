/**
 * The calls of operators. They use the port of the service Kv, the framed transport and the binary protocol.
 */
namespace rs admin

/** Kind of a member. */
enum MemberKind {
  /** A member that votes and has the data. */
  VOTER = 1,
  /** A member that receives all entries, but does not vote and is not counted in a quorum. */
  LEARNER = 2,
  /**
   * A learner that becomes a voter automatically when it has caught up. Refused for a node that is a voter
   * already.
   */
  JOINING = 3,
  /** A member that votes, but keeps no data. */
  WITNESS = 4,
  /** The current kind, for a change of endpoints or priority. Refused for a node that is not a member. */
  AS_IS = 5
}

/** A change of one member. */
struct MemberChange {
  1: required i64 node_id
  /** New kind of the member. Not set: the member is removed. */
  2: optional MemberKind kind
  /**
   * Endpoint at which the other nodes reach the member, as host:port. Not set: unchanged. A node that is
   * added needs both endpoints.
   */
  3: optional string consensus_endpoint
  /** Endpoint at which clients reach the member, as host:port. Not set: unchanged. */
  4: optional string client_endpoint
  /**
   * Priority for leadership: a member with a higher priority gets leadership when it has caught up. Not set:
   * unchanged, or 0 for a new member.
   */
  5: optional i32 priority
  /**
   * Expected membership. false: refused if the node is a member. true: refused if it is not. Not set: no
   * check.
   */
  6: optional bool is_member
}

/** Reason of a refusal. */
enum RefusedReason {
  /**
   * The request is invalid, or impossible in the present state of the cluster. The message says what to do.
   */
  REJECTED = 1,
  /**
   * This node is not the leader, and may not forward the call. The caller repeats it at leader_endpoint, if
   * that is set.
   */
  NOT_LEADER = 2,
  /**
   * Another change of members or transfer of leadership is in progress. The caller repeats the call when it
   * has ended.
   */
  BUSY = 3,
  /** This node knows no leader, cannot reach the leader, or is stopping. Another node may serve the call. */
  UNAVAILABLE = 4,
  /** The call was accepted, and its outcome is unknown. */
  UNKNOWN = 5
}

/** Kind of an alarm. */
enum AlarmKind {
  /** The node's store exceeds its quota. Requests that add data are refused. */
  NO_SPACE = 1,
  /** The node's state differs from that of the other nodes. All requests on keys and leases are refused. */
  CORRUPT = 2
}

/** A condition in which the store refuses requests. */
struct Alarm {
  1: required AlarmKind kind
  /** Id of the node whose store the alarm concerns. Not set: no single node. */
  2: optional i64 node_id
}

/** What a permission allows. */
enum PermissionKind {
  READ = 1,
  WRITE = 2,
  READ_WRITE = 3
}

/** A permission on a key, or on the keys in [key, range_end). A range_end of one zero byte means all keys from key on. */
struct KeyPermission {
  1: required PermissionKind kind
  2: required binary key
  3: optional binary range_end
}

/** A change of users and roles; the fields of AuthChange that each one uses are in parentheses. */
enum AuthAction {
  /** Enables authentication. There must be a user root with the role root. */
  ENABLE = 1,
  DISABLE = 2,
  /** Adds a user without roles (user, password). Without a password it can authenticate itself by a certificate only. */
  ADD_USER = 3,
  /** (user) */
  DELETE_USER = 4,
  /** Sets another password, which ends all logins of the user (user, password). */
  CHANGE_PASSWORD = 5,
  /** (user, role) */
  GRANT_ROLE = 6,
  /** (user, role) */
  REVOKE_ROLE = 7,
  /** (role) */
  ADD_ROLE = 8,
  /** (role) */
  DELETE_ROLE = 9,
  /** Adds a permission, or changes its kind if there is one on exactly these keys (role, permission). */
  GRANT_PERMISSION = 10,
  /** Removes the permission on exactly these keys, whatever its kind (role, permission). */
  REVOKE_PERMISSION = 11
}

/** A change of users and roles. */
struct AuthChange {
  1: required AuthAction action
  2: optional string user
  3: optional string role
  4: optional string password
  5: optional KeyPermission permission
}

/** A user. */
struct UserStatus {
  1: required string name
  2: required list<string> roles
  3: required bool has_password
}

/** A role. */
struct RoleStatus {
  1: required string name
  2: required list<KeyPermission> permissions
}

/** Users and roles. */
struct AuthStatus {
  /** Whether authentication is enabled. */
  1: required bool enabled
  /** Number of changes of users and roles, plus one. */
  2: required i64 revision
  3: required list<UserStatus> users
  4: required list<RoleStatus> roles
}

/** A server and the cluster to which it belongs. */
struct NodeIdentity {
  1: required i64 node_id
  /**
   * Identity of the cluster: 16 hexadecimal digits, or "none" before its first leader has drawn it. Not set
   * on a standalone server.
   */
  2: optional string cluster_id
}

/** The call was not done, or it is not known to be done. */
exception Refused {
  1: required string message
  /** Whether the call may have been done, or may be done later. */
  2: required bool maybe_done
  3: optional RefusedReason reason
  /** Id of the leader, if this node knows one. */
  4: optional i64 leader_id
  /** Endpoint at which clients reach the leader, if this node knows it. */
  5: optional string leader_endpoint
}

/** See kv.thrift. */
struct LoginRequest {
  1: optional string user
  2: optional string password
  3: optional string token
}

/** See kv.thrift, where it has more fields. */
struct LoginResponse {
  2: required string token
}

/** See kv.thrift. The values of `reason` are those of its DeniedReason. */
exception LoginDenied {
  1: required string message
  2: required i32 reason
}

/** See Unavailable in kv.thrift. */
exception LoginUnavailable {
  1: required string message
}

service Admin {
  /**
   * Gives the connection a user, as login of the service Kv does: most generated clients have one service for each
   * connection.
   */
  LoginResponse login(1: LoginRequest request) throws (2: LoginUnavailable unavailable, 11: LoginDenied denied),
  /** Applies all changes in one step. It returns when the new configuration is committed. */
  void change_members(1: list<MemberChange> changes) throws (1: Refused refused),
  /**
   * Transfers leadership to a node, or to the most up-to-date voter if node_id is -1. Returns the new
   * leader's id.
   */
  i64 transfer_leader(1: i64 node_id) throws (1: Refused refused),
  /** Returns the alarms that are raised. The result is as current as a linearizable read. */
  list<Alarm> alarms() throws (1: Refused refused),
  /**
   * Disarms an alarm. Returns whether it was raised. NO_SPACE is raised again if the store still exceeds its
   * quota.
   */
  bool disarm_alarm(1: Alarm alarm) throws (1: Refused refused),
  /** Changes users and roles. While authentication is enabled, only users with the role root may do so. */
  void change_auth(1: AuthChange change) throws (1: Refused refused),
  /** Returns users and roles. While authentication is enabled, only users with the role root may see them. */
  AuthStatus auth() throws (1: Refused refused),
  /**
   * Changes what this server logs, until it restarts: a level such as "debug", or directives for single parts such as
   * "info,kv_server=debug". An empty text restores the setting `log`. Returns the directives that are in effect. While
   * authentication is enabled, only users with the role root may do so.
   */
  string set_log_level(1: string directives) throws (1: Refused refused),
  /**
   * Disables forwarding for later calls on this connection: their caller gets the leader's endpoint instead.
   * Servers call it on each other, so that a forwarded call is never forwarded again. The caller names the
   * node and the cluster that it expects. A server with another identity refuses. Returns the identity of
   * the server.
   */
  NodeIdentity no_forwarding(1: NodeIdentity expected) throws (1: Refused refused),
  /**
   * Sends a request from one server to another of the same cluster and version, in an internal format, and
   * returns the response. Not for clients.
   */
  binary between_nodes(1: binary request) throws (1: Refused refused),
}
