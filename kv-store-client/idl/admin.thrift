/**
 * The calls of operators, on the same port as the service Kv: framed transport, binary protocol.
 */
namespace rs admin

enum MemberKind {
  VOTER = 1,
  /** Receives everything; neither votes nor counts. */
  LEARNER = 2,
  /** A learner that becomes a voter by itself when it has caught up. Refused for a node that votes already. */
  JOINING = 3,
  /** Votes, and keeps no data. */
  WITNESS = 4,
  /** As it is, for a change of endpoints or priority; refused for a node that is no member. */
  AS_IS = 5
}

struct MemberChange {
  1: required i64 node_id
  /** Not set: the member is removed. */
  2: optional MemberKind kind
  /** host:port; not set: as it is. A node that is added needs both endpoints. */
  3: optional string consensus_endpoint
  4: optional string client_endpoint
  /** A member with a higher priority gets leadership when it has caught up; not set: as it is, or 0. */
  5: optional i32 priority
  /** false: refused if the node is a member. true: refused if it is none. Not set: not checked. */
  6: optional bool is_member
}

enum RefusedReason {
  /** The request is wrong, or not possible in the state of the cluster; the message says what to do. */
  REJECTED = 1,
  /** This node does not lead and was not to forward the call; leader_endpoint, if set, is where to ask. */
  NOT_LEADER = 2,
  /** Another change of members or transfer of leadership is under way; ask again when it has ended. */
  BUSY = 3,
  /** This node knows no leader, cannot reach it, or is stopping. Another node may do better. */
  UNAVAILABLE = 4,
  /** The call was taken on, and nobody knows what became of it. */
  UNKNOWN = 5
}

enum AlarmKind {
  /** The node's store exceeds its quota: requests that add data are refused. */
  NO_SPACE = 1,
  /** The node's state differs from that of the others: all requests on keys and leases are refused. */
  CORRUPT = 2
}

/** An alarm. */
struct Alarm {
  1: required AlarmKind kind
  /** Node whose store it concerns; not set: no single one. */
  2: optional i64 node_id
}

/** A server, and the cluster that it is in. */
struct NodeIdentity {
  1: required i64 node_id
  /**
   * Identity of its cluster: 16 hexadecimal digits, or "none" before the first leader of the cluster has drawn it. Not set: the
   * server stands alone.
   */
  2: optional string cluster_id
}

/** Not done, or not known to be done. */
exception Refused {
  1: required string message
  /** It may have been done, or may be done later. */
  2: required bool maybe_done
  3: optional RefusedReason reason
  /** The leader, if this node knows one: its id, and where it serves clients. */
  4: optional i64 leader_id
  5: optional string leader_endpoint
}

service Admin {
  /** Makes all changes in one step; returns when the new configuration is committed. */
  void change_members(1: list<MemberChange> changes) throws (1: Refused refused),
  /** Transfers leadership to a node, or to the most up-to-date voter (-1); returns the new leader. */
  i64 transfer_leader(1: i64 node_id) throws (1: Refused refused),
  /** The alarms that are raised, as current as a linearizable read. */
  list<Alarm> alarms() throws (1: Refused refused),
  /** Disarms an alarm; whether it was raised. NO_SPACE is raised again while the store still exceeds its quota. */
  bool disarm_alarm(1: Alarm alarm) throws (1: Refused refused),
  /**
   * Calls that come later over this connection are not forwarded; their caller is told who leads. Servers say it to each
   * other, so that a forwarded call is never forwarded again. The caller names the node that it expects here, with its cluster;
   * a server that is another one refuses. It returns who it is.
   */
  NodeIdentity no_forwarding(1: NodeIdentity expected) throws (1: Refused refused),
  /**
   * A request of one server to another of the same cluster and version, in a form of their own, and its answer. Not for
   * clients.
   */
  binary between_nodes(1: binary request) throws (1: Refused refused),
}
