/**
 * What the nodes of a cluster say to each other: framed transport, strict binary protocol. Unsigned numbers travel in the
 * i64 of the same bits.
 */
namespace rs consensus

/** Identity of a log entry. */
struct LogId {
  1: required i64 term
  2: required i64 index
}

enum MemberKind { VOTER = 1, LEARNER = 2, JOINING = 3, WITNESS = 4 }

struct Member {
  1: required i64 node_id
  2: required MemberKind kind
  /** host:port */
  3: optional string endpoint
  /** host:port */
  4: optional string client_endpoint
  /** Identity of its log storage, where it is known. */
  5: optional i64 storage
  6: required i32 priority
  /** For people. */
  7: optional string name
}

/** A node led from this entry on. */
struct Leadership {
  1: required LogId first
  /** A random number. */
  2: required i64 id
}

struct Membership {
  1: required list<Member> members
  /** In a joint configuration the voters as they were. */
  2: required list<Member> outgoing
  /** Identity of the cluster; 0 until its first leader has drawn one. */
  3: required i64 cluster
  /** The latest ones, in the order of the log. */
  4: required list<Leadership> leaderships
}

/** Neither a command nor a membership, and nothing withheld: a blank entry. */
struct Entry {
  1: required LogId id
  2: optional binary command
  3: optional Membership membership
  /** There is a command, which a witness is not told. */
  4: optional bool withheld
}

enum VoteKind { PRE_VOTE = 1, VOTE = 2, TRANSFER = 3 }

struct VoteRequest {
  1: required VoteKind kind
  2: required i64 term
  3: required LogId last_log
  4: required i64 storage
  /** What the candidate's configuration knows of the receiver's storage. */
  5: optional i64 voter_storage
}

struct VoteResponse {
  1: required VoteKind kind
  2: required i64 term
  3: required bool granted
  4: required i64 storage
}

struct AppendEntries {
  1: required i64 term
  2: required LogId prev
  3: required list<Entry> entries
  4: required i64 commit
  5: required i64 round
  /** The leadership to which `prev` belongs; 0 if it is not known. */
  6: required i64 prev_leadership
}

struct Rejection {
  1: required i64 prev
  2: required LogId hint
}

union AppendOutcome {
  /** Index up to which the logs agree. */
  1: i64 matched
  2: Rejection rejected
}

struct AppendResponse {
  1: required i64 term
  2: required i64 round
  3: required AppendOutcome outcome
  4: required i64 storage
  /** The sender's log still lacks what was committed when it joined. */
  5: required bool joining
}

struct TimeoutNow {
  1: required i64 term
}

struct ReadIndexRequest {
  1: required i64 term
  2: required i64 id
}

struct ReadIndexResponse {
  1: required i64 term
  2: required i64 id
  /** Not set by a node that does not lead. */
  3: optional i64 index
}

struct CommitNotification {
  1: required i64 term
  2: required i64 commit
}

union Message {
  1: VoteRequest vote_request
  2: VoteResponse vote_response
  3: AppendEntries append_entries
  4: AppendResponse append_response
  5: CommitNotification commit_notification
  6: binary extension
  7: TimeoutNow timeout_now
  8: ReadIndexRequest read_index_request
  9: ReadIndexResponse read_index_response
}

struct SnapshotChunk {
  1: required i64 term
  2: required i64 transfer
  3: required LogId last
  4: required Membership membership
  5: required i64 offset
  6: required binary data
  /** CRC-32C of the whole stream, in the last chunk. */
  7: optional i64 checksum
}

enum SnapshotOutcome { CONTINUE = 1, INSTALLED = 2, REFUSED = 3 }

struct SnapshotAck {
  1: required i64 term
  2: required SnapshotOutcome outcome
  /** For CONTINUE. */
  3: optional i64 offset
}

/** Who a node is. These fields stay as they are in all versions of the format. */
struct Identity {
  /** Versions of this vocabulary that the node speaks, first and last. */
  1: required i32 format_min
  2: required i32 format_max
  3: required string cluster_name
  /** Identity of the node's cluster; 0 if it knows none yet. */
  4: required i64 cluster
  5: required i64 node_id
  /** Identity of its log storage; 0 if it does not say. */
  6: required i64 storage
  /** Drawn when the process started, so that two processes on copies of one storage are told apart. */
  7: optional i64 process
}

/** The first call on a connection for messages or snapshots. */
struct Hello {
  1: required Identity caller
  /** Whom it means to call. */
  2: required i64 callee
  /** Where the caller is called back, host:port, if the callee does not know. */
  3: optional string endpoint
  /** The callee shall say what it has received at most this often, in milliseconds. */
  4: required i32 receipt_interval_ms
}

enum NodeState {
  /** Its log is empty. */
  EMPTY = 1,
  /** Its log has the first configuration and no identity of a cluster. */
  FOUNDING = 2,
  /** It belongs to a cluster with a history. */
  MEMBER = 3
}

/** A voter of a first configuration. */
struct Founder {
  1: required i64 node_id
  2: required bool witness
}

/** What a node knows of another one. */
struct KnownNode {
  /** Identity of its log storage, where it is known. */
  1: optional i64 storage
}

/** The member of the callee's cluster that has a certain endpoint. */
struct MemberAtEndpoint {
  1: required i64 node_id
  /** Identity of its log storage, where it is known. */
  2: optional i64 storage
}

/** What a node says of itself to one that asks. */
struct Description {
  1: required Identity callee
  2: required NodeState state
  /** EMPTY: with whom it will begin a cluster, nobody if it waits to be added. FOUNDING: with whom it did. */
  3: required list<Founder> founders
  /** What it knows of a node with the asker's id; not set if nothing. */
  4: optional KnownNode asker
  /** The member at the endpoint that the asker named; not set if there is none. */
  5: optional MemberAtEndpoint member_at_endpoint
}

/** The callee does not want the connection and closes it. */
exception Refused {
  1: required string message
}

service Consensus {
  /**
   * Identity of the callee. Any process may ask, on a connection of its own. The answer says
   * which member is at `endpoint` (host:port), unless it is empty.
   */
  Description describe(1: Identity asker, 2: string endpoint),
  /** Begins a connection; answered with who the callee is. */
  Identity hello(1: Hello hello) throws (1: Refused refused),
  /** `cluster`: the identity of the sender's cluster, 0 if it knows none. */
  oneway void deliver(1: Message message, 2: i64 cluster),
  SnapshotAck snapshot_chunk(1: SnapshotChunk chunk, 2: i64 cluster),
  /**
   * Said by the callee to the caller: bytes that it has received on this connection, lengths of frames included, and the identity
   * of its cluster. A caller with bytes under way that hears nothing for a while makes a new connection.
   */
  oneway void received(1: i64 bytes, 2: i64 cluster),
}
