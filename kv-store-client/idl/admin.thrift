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

service Admin {
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
