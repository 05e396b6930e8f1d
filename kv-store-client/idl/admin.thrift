/**
 * What operators say to a kv-server, on the same port as the service Kv: framed transport, binary protocol.
 */
namespace rs admin

enum MemberKind {
  VOTER = 1,
  /** Receives everything, and neither votes nor counts. */
  LEARNER = 2,
  /** Becomes a voter by itself when it has caught up. */
  JOINING = 3,
  /** Votes, and keeps no data. */
  WITNESS = 4
}

struct MemberChange {
  1: required i64 node_id
  /** Not set: removed. */
  2: optional MemberKind kind
  /** host:port; not set: as they are. Who is added needs both. */
  3: optional string consensus_endpoint
  4: optional string client_endpoint
  /** Who has a higher one gets the lead when it has caught up; not set: as it is, or 0. */
  5: optional i32 priority
}

/** Not done, or not known to be done. */
exception Refused {
  1: required string message
  /** It may have been done. */
  2: required bool maybe_done
}

service Admin {
  /** All in one step; returns when the new configuration is committed. */
  void change_members(1: list<MemberChange> changes) throws (1: Refused refused),
  /** Gives the lead to a node, or to whichever is fit (-1); returns who leads. */
  i64 transfer_leader(1: i64 node_id) throws (1: Refused refused),
  /**
   * What comes over this connection is not to be forwarded; its caller wants to be told who leads. Servers say it to each
   * other, so that a forwarded call is never forwarded again.
   */
  void no_forwarding(),
}
