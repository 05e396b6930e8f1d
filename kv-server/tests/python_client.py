"""Every call of kv.thrift, and refusals of admin.thrift, which is beside it, from a stock Thrift client.

Usage: python_client.py kv.thrift STANDALONE_PORT FOLLOWER_PORT LEADER_ENDPOINT LONELY_PORT

FOLLOWER_PORT: a follower with routing = "redirect", whose leader is at LEADER_ENDPOINT. LONELY_PORT: a node without
a quorum.
"""
import os
import struct
import sys

import thriftpy2
from thriftpy2.protocol import TBinaryProtocolFactory
from thriftpy2.rpc import make_client
from thriftpy2.thrift import TApplicationException
from thriftpy2.transport import TFramedTransportFactory

kv = thriftpy2.load(sys.argv[1], module_name="kv_thrift")
admin = thriftpy2.load(os.path.join(os.path.dirname(sys.argv[1]), "admin.thrift"), module_name="admin_thrift")


def connect(port, service=kv.Kv):
    return make_client(service, "127.0.0.1", int(port), proto_factory=TBinaryProtocolFactory(),
                       trans_factory=TFramedTransportFactory(), timeout=30_000)


def raises(exception, call, *args):
    try:
        result = call(*args)
    except exception as error:
        return error
    raise AssertionError(f"expected {exception.__name__}, got {result}")


def put(key, value, **more):
    return kv.PutRequest(key=key, value=value, **more)


def values(response):
    return [(pair.key, pair.value) for pair in response.kvs]


def standalone(port):
    client = connect(port)
    # status, hash
    status = client.status()
    assert status.role == "standalone" and status.leader_id == 0 and status.members == [], status
    empty = client.hash()
    assert empty.header.revision == 1, empty
    # put: revisions, previous, bytes of all kinds
    first = client.put(put(b"a", b"\x00\xff"))
    assert first.header.revision == 2 and first.previous is None, first
    second = client.put(put(b"a", b"2", return_previous=True))
    assert (second.previous.value, second.previous.version, second.previous.create_revision) == (b"\x00\xff", 1, 2), second
    assert client.hash().hash != empty.hash
    # versionstamps: 8 bytes of revision, 2 of order
    stamp = struct.pack(">qh", 4, 0)
    assert client.put(put(b"log/", b"x", versionstamp=kv.Versionstamp.KEY_SUFFIX)).stamped == b"log/" + stamp
    stamp = struct.pack(">qh", 5, 0)
    assert client.put(put(b"at", b"", versionstamp=kv.Versionstamp.VALUE_SUFFIX)).stamped == stamp
    # range: one key, range, limit, order, past revision, keys only, count only, consistency
    for key in (b"r1", b"r2", b"r3"):
        client.put(put(key, key.upper()))
    ask = lambda **more: client.range(kv.RangeRequest(key=b"r", range_end=b"s", **more))
    assert values(ask()) == [(b"r1", b"R1"), (b"r2", b"R2"), (b"r3", b"R3")]
    page = ask(limit=2, descending=True)
    assert values(page) == [(b"r3", b"R3"), (b"r2", b"R2")] and page.more and page.count == 3, page
    assert values(ask(keys_only=True, limit=1)) == [(b"r1", b"")]
    assert (ask(count_only=True).count, ask(count_only=True).kvs) == (3, [])
    assert values(client.range(kv.RangeRequest(key=b"a", revision=2))) == [(b"a", b"\x00\xff")]
    for consistency in (kv.Consistency.LINEARIZABLE, kv.Consistency.LEASE, kv.Consistency.STALE):
        assert values(client.range(kv.RangeRequest(key=b"a", consistency=consistency))) == [(b"a", b"2")]
    assert client.range(kv.RangeRequest(key=b"\x00", range_end=b"\x00", count_only=True)).count == 6
    # delete_range
    gone = client.delete_range(kv.DeleteRequest(key=b"r2", return_previous=True))
    assert gone.deleted == 1 and gone.previous[0].value == b"R2", gone
    assert client.delete_range(kv.DeleteRequest(key=b"r2")).deleted == 0
    # txn: compare/then/else, every kind of operation
    equal = lambda key, value: kv.Compare(key=key, target=kv.CompareTarget.VALUE, result=kv.CompareResult.EQUAL, value=value)
    done = client.txn(kv.TxnRequest(
        compare=[equal(b"a", b"2"),
                 kv.Compare(key=b"r1", target=kv.CompareTarget.VERSION, result=kv.CompareResult.GREATER, number=0)],
        success=[kv.Operation(put=put(b"t", b"1")), kv.Operation(range=kv.RangeRequest(key=b"t")),
                 kv.Operation(delete_range=kv.DeleteRequest(key=b"r3"))],
        failure=[]))
    assert done.succeeded and done.responses[0].put is not None, done
    assert values(done.responses[1].range) == [(b"t", b"1")] and done.responses[2].delete_range.deleted == 1, done
    other = client.txn(kv.TxnRequest(compare=[equal(b"a", b"no")], success=[],
                                     failure=[kv.Operation(range=kv.RangeRequest(key=b"a"))]))
    assert not other.succeeded and values(other.responses[0].range) == [(b"a", b"2")], other
    # txn, optimistic: a conflict by a write, a delete, a new key; then none
    read = client.range(kv.RangeRequest(key=b"r", range_end=b"s"))
    optimistic = lambda revision: kv.TxnRequest(compare=[], success=[kv.Operation(put=put(b"o", b"1"))], failure=[],
                                                read_revision=revision, read_ranges=[kv.KeyRange(key=b"r", range_end=b"s")])
    client.put(put(b"r9", b"phantom"))
    conflict = raises(kv.Conflict, client.txn, optimistic(read.header.revision))
    assert conflict.key == b"r9" and conflict.mod_revision == read.header.revision + 1, conflict
    client.delete_range(kv.DeleteRequest(key=b"r9"))
    assert raises(kv.Conflict, client.txn, optimistic(read.header.revision + 1)).key == b"r9"
    assert client.txn(optimistic(read.header.revision + 2)).succeeded
    # open_session: the same number is the same write
    session = kv.Session(client_id=client.open_session(), sequence=1)
    once = client.put(put(b"s", b"1", session=session))
    again = client.put(put(b"s", b"1", session=session))
    assert again.header.revision == once.header.revision
    assert client.range(kv.RangeRequest(key=b"s")).kvs[0].version == 1
    # compact, and what is gone
    header = client.compact(once.header.revision)
    assert header.revision == once.header.revision, header
    assert raises(kv.Compacted, client.range, kv.RangeRequest(key=b"a", revision=2)).compacted_revision == once.header.revision
    raises(kv.Compacted, client.compact, 3)
    raises(kv.Compacted, client.txn, optimistic(3))
    # InvalidRequest, from every call that has it
    assert "empty" in raises(kv.InvalidRequest, client.put, put(b"", b"x")).message
    assert raises(kv.NoLease, client.put, put(b"x", b"x", lease_id=7)).lease_id == 7
    assert "cannot keep" in raises(kv.InvalidRequest, client.put, put(b"x", b"", ignore_value=True)).message
    raises(kv.InvalidRequest, client.put, put(b"x", b"x" * (2 << 20) + b"x"))
    raises(kv.InvalidRequest, client.delete_range, kv.DeleteRequest(key=b""))
    assert "future" in raises(kv.InvalidRequest, client.range, kv.RangeRequest(key=b"a", revision=10_000)).message
    assert "negative" in raises(kv.InvalidRequest, client.range, kv.RangeRequest(key=b"a", limit=-1)).message
    bad = kv.Compare(key=b"a", target=kv.CompareTarget.VERSION, result=kv.CompareResult.EQUAL)
    assert "number" in raises(kv.InvalidRequest, client.txn, kv.TxnRequest(compare=[bad], success=[], failure=[])).message
    raises(kv.InvalidRequest, client.compact, 10_000)
    assert "counts from 1" in raises(
        kv.InvalidRequest, client.put, put(b"x", b"x", session=kv.Session(client_id=1, sequence=0))).message
    sessions(client)
    leases(client)
    watch(client, connect(port))
    users(client, port)
    assert client.status().role == "standalone"


def users(nobody, port):
    operator = connect(port, admin.Admin)
    not_enabled = raises(kv.Denied, nobody.login, kv.LoginRequest(user="root", password="x"))
    assert not_enabled.reason == kv.DeniedReason.NOT_ENABLED, not_enabled
    change = lambda action, **more: operator.change_auth(admin.AuthChange(action=action, **more))
    actions = admin.AuthAction
    refused = raises(admin.Refused, change, actions.ENABLE)
    assert "no user root" in refused.message and refused.reason == admin.RefusedReason.REJECTED, refused
    change(actions.ADD_USER, user="root", password="secret")
    change(actions.GRANT_ROLE, user="root", role="root")
    change(actions.ADD_USER, user="ann", password="word")
    change(actions.ADD_ROLE, role="r")
    keys = admin.KeyPermission(kind=admin.PermissionKind.READ_WRITE, key=b"u/", range_end=b"u0")
    change(actions.GRANT_PERMISSION, role="r", permission=keys)
    change(actions.GRANT_ROLE, user="ann", role="r")
    change(actions.ENABLE)
    raises(admin.Refused, operator.auth)
    assert raises(kv.Denied, nobody.put, put(b"u/1", b"x")).reason == kv.DeniedReason.NO_USER
    ann = connect(port)
    for wrong in ["", "Word"]:
        assert raises(kv.Denied, ann.login, kv.LoginRequest(user="ann", password=wrong)).reason == kv.DeniedReason.LOGIN_FAILED
    token = ann.login(kv.LoginRequest(user="ann", password="word")).token
    again = connect(port)
    again.login(kv.LoginRequest(token=token))
    for client in [ann, again]:
        client.put(put(b"u/1", b"x"))
        denied = [raises(kv.Denied, call, *arguments) for call, *arguments in [
            (client.put, put(b"v", b"x")), (client.delete_range, kv.DeleteRequest(key=b"v")),
            (client.range, kv.RangeRequest(key=b"v")), (client.watch, kv.WatchRequest(key=b"v")), (client.compact, 3),
            (client.hash,), (client.txn, kv.TxnRequest(
                compare=[], success=[], failure=[kv.Operation(put=put(b"v", b"x"))]))]]
        assert all(one.reason == kv.DeniedReason.PERMISSION for one in denied), denied
    raises(admin.LoginDenied, operator.login, admin.LoginRequest(user="root", password="wrong"))
    operator.login(admin.LoginRequest(user="root", password="secret"))
    status = operator.auth()
    assert status.enabled and [user.name for user in status.users] == ["ann", "root"], status
    assert status.roles[0].permissions == [keys], status
    change(actions.DISABLE)
    nobody.put(put(b"v", b"x"))


def sessions(client):
    """What the IDL says of Session: repetitions, gaps, numbers that are used up, sessions that are not known."""
    client_id = client.open_session()
    session = lambda sequence: kv.Session(client_id=client_id, sequence=sequence)
    nothing = lambda **more: kv.TxnRequest(compare=[], success=[], failure=[], **more)
    first = client.put(put(b"n", b"1", session=session(1)))
    gap = client.put(put(b"n", b"5", session=session(5)))
    assert gap.header.revision == first.header.revision + 1, gap
    # An earlier number, whether it was used or left out: every method that takes a session says so alike.
    for call, request in [(client.put, put(b"n", b"1", session=session(1))),
                          (client.delete_range, kv.DeleteRequest(key=b"n", session=session(4))),
                          (client.txn, nothing(session=session(1)))]:
        over = raises(kv.SequenceOver, call, request)
        assert (over.client_id, over.sequence, over.last_sequence) == (client_id, request.session.sequence, 5), over
    # A conflict uses its number up: its repetition has the same answer, another request is refused, the next number goes.
    stale = nothing(session=session(6), read_revision=first.header.revision, read_ranges=[kv.KeyRange(key=b"n")])
    conflict, again = raises(kv.Conflict, client.txn, stale), raises(kv.Conflict, client.txn, stale)
    assert (again.key, again.mod_revision) == (conflict.key, conflict.mod_revision) == (b"n", gap.header.revision), again
    assert "used for another request" in raises(kv.InvalidRequest, client.put, put(b"n", b"6", session=session(6))).message
    assert client.range(kv.RangeRequest(key=b"n")).kvs[0].value == b"5"
    client.put(put(b"n", b"7", session=session(7)))
    # A session that nobody opened.
    for call, request in [(client.put, put(b"x", b"x", session=kv.Session(client_id=999, sequence=1))),
                          (client.delete_range, kv.DeleteRequest(key=b"x", session=kv.Session(client_id=999, sequence=1))),
                          (client.txn, nothing(session=kv.Session(client_id=999, sequence=1)))]:
        assert raises(kv.NoSession, call, request).client_id == 999


def leases(client):
    """Grant, keep alive, time to live, list, revoke; keys that go with a lease."""
    granted = client.lease_grant(kv.LeaseGrantRequest(ttl_seconds=100))
    lease_id = granted.lease_id
    assert lease_id > 0 and granted.ttl_seconds == 100, granted
    for key in (b"lease/1", b"lease/2"):
        client.put(put(key, b"x", lease_id=lease_id))
    client.put(put(b"lease/1", b"y", ignore_lease=True))
    client.put(put(b"lease/1", b"", ignore_value=True, lease_id=lease_id))
    pair, = client.range(kv.RangeRequest(key=b"lease/1")).kvs
    assert (pair.value, pair.lease_id, pair.version) == (b"y", lease_id, 3), pair
    assert client.lease_keep_alive(kv.LeaseKeepAliveRequest(lease_id=lease_id)).ttl_seconds == 100
    state = client.lease_time_to_live(kv.LeaseTimeToLiveRequest(lease_id=lease_id, keys=True))
    assert state.granted_ttl_seconds == 100 and 90_000 < state.remaining_ms <= 100_000, state
    assert state.keys == [b"lease/1", b"lease/2"] and state.more is False, state
    # With a session and an id the grant happens once.
    session = kv.Session(client_id=client.open_session(), sequence=1)
    once = kv.LeaseGrantRequest(ttl_seconds=50, lease_id=77, session=session)
    assert client.lease_grant(once).header.revision == client.lease_grant(once).header.revision
    assert raises(kv.LeaseExists, client.lease_grant, kv.LeaseGrantRequest(ttl_seconds=50, lease_id=77)).lease_id == 77
    listed = client.lease_list(kv.LeaseListRequest())
    assert listed.lease_ids == sorted([77, lease_id]) and not listed.more, listed
    part = client.lease_list(kv.LeaseListRequest(after=77, limit=1))
    assert part.lease_ids == [lease_id] and not part.more, part
    # All keys go at one revision.
    revoked = client.lease_revoke(kv.LeaseRevokeRequest(lease_id=lease_id))
    assert client.range(kv.RangeRequest(key=b"lease/", range_end=b"lease0", count_only=True)).count == 0
    assert client.range(kv.RangeRequest(key=b"lease/1", revision=revoked.header.revision - 1)).kvs[0].value == b"y"
    for call, request in [(client.lease_revoke, kv.LeaseRevokeRequest(lease_id=lease_id)),
                          (client.lease_keep_alive, kv.LeaseKeepAliveRequest(lease_id=lease_id)),
                          (client.lease_time_to_live, kv.LeaseTimeToLiveRequest(lease_id=lease_id))]:
        assert raises(kv.NoLease, call, request).lease_id == lease_id
    assert "9000000000" in raises(kv.InvalidRequest, client.lease_grant, kv.LeaseGrantRequest(ttl_seconds=9_000_000_001)).message
    raises(kv.InvalidRequest, client.lease_grant, kv.LeaseGrantRequest(ttl_seconds=0))


def watch(client, other):
    """A watch is a loop of polls; one that waits is answered when something happens."""
    import threading
    first = client.put(put(b"w/a", b"1")).header.revision
    client.txn(kv.TxnRequest(compare=[], failure=[], success=[
        kv.Operation(put=put(b"w/a", b"2")), kv.Operation(put=put(b"w/b", b"3")), kv.Operation(put=put(b"x", b"4"))]))
    poll = lambda **more: client.watch(kv.WatchRequest(key=b"w/", range_end=b"w0", **more))
    told = poll(start_revision=first, return_previous=True)
    assert [(event.kv.key, event.kv.value, event.kv.mod_revision) for event in told.events] == [
        (b"w/a", b"1", first), (b"w/a", b"2", first + 1), (b"w/b", b"3", first + 1)], told
    assert [event.previous and event.previous.value for event in told.events] == [None, b"1", None], told
    assert (told.next_revision, told.next_event) == (first + 2, 0), told
    # Nothing happened: the answer comes when the time is over, or at once.
    assert poll(start_revision=told.next_revision).events == []
    assert poll(start_revision=told.next_revision, wait_ms=100).events == []
    timer = threading.Timer(0.2, lambda: other.delete_range(kv.DeleteRequest(key=b"w/a")))
    timer.start()
    deleted = poll(start_revision=told.next_revision, wait_ms=20_000)
    timer.join()
    assert [(event.deleted, event.kv.key, event.kv.mod_revision) for event in deleted.events] == [
        (True, b"w/a", first + 2)], deleted
    assert poll(start_revision=first, without_puts=True).events == deleted.events
    assert len(poll(start_revision=first, without_deletes=True).events) == 3
    client.compact(first + 2)
    assert raises(kv.Compacted, lambda: poll(start_revision=first)).compacted_revision == first + 2
    assert "key" in raises(kv.InvalidRequest, client.watch, kv.WatchRequest(key=b"")).message
    assert "negative" in raises(kv.InvalidRequest, lambda: poll(wait_ms=-1)).message


def unknown_method(port):
    """By hand: thriftpy2 does not call what the IDL does not have."""
    import socket
    name = b"drop_everything"
    message = struct.pack(">Ii", 0x80010001, len(name)) + name + struct.pack(">i", 5) + b"\x00"
    with socket.create_connection(("127.0.0.1", int(port)), timeout=30) as connection:
        connection.sendall(struct.pack(">i", len(message)) + message)
        length, = struct.unpack(">i", connection.recv(4, socket.MSG_WAITALL))
        answer = connection.recv(length, socket.MSG_WAITALL)
    assert answer[:4] == b"\x80\x01\x00\x03" and b"drop_everything" in answer, answer


def follower(port, leader_endpoint):
    client = connect(port)
    for call, argument in [(client.put, put(b"k", b"v")), (client.delete_range, kv.DeleteRequest(key=b"k")),
                           (client.range, kv.RangeRequest(key=b"k")), (client.compact, 1),
                           (client.txn, kv.TxnRequest(compare=[], success=[kv.Operation(put=put(b"k", b"v"))], failure=[]))]:
        error = raises(kv.NotLeader, call, argument)
        assert error.leader_endpoint == leader_endpoint, error
    raises(kv.NotLeader, client.open_session)
    for call, request in [(client.lease_grant, kv.LeaseGrantRequest(ttl_seconds=10)),
                          (client.lease_revoke, kv.LeaseRevokeRequest(lease_id=7)),
                          (client.lease_keep_alive, kv.LeaseKeepAliveRequest(lease_id=7)),
                          (client.lease_time_to_live, kv.LeaseTimeToLiveRequest(lease_id=7)),
                          (client.lease_list, kv.LeaseListRequest())]:
        assert raises(kv.NotLeader, call, request).leader_endpoint == leader_endpoint
    # Every node serves watches.
    assert client.watch(kv.WatchRequest(key=b"k")).events == []
    assert client.range(kv.RangeRequest(key=b"k", consistency=kv.Consistency.STALE)).kvs == []
    status = client.status()
    assert status.role == "follower" and len(status.members) == 3, status
    assert {member.kind for member in status.members} == {"voter"} and all(member.healthy for member in status.members), status
    # An operator's call is refused with the leader in fields, and the leader does it.
    remove_nobody = [admin.MemberChange(node_id=77)]
    alarm = admin.Alarm(kind=admin.AlarmKind.NO_SPACE, node_id=0)
    for call, argument in [("transfer_leader", -1), ("change_members", remove_nobody), ("disarm_alarm", alarm)]:
        refused = raises(admin.Refused, getattr(connect(port, admin.Admin), call), argument)
        assert refused.reason == admin.RefusedReason.NOT_LEADER and refused.maybe_done is False, refused
        assert (refused.leader_id, refused.leader_endpoint) == (status.leader_id, leader_endpoint), refused
    operator = connect(leader_endpoint.split(":")[1], admin.Admin)
    for call, argument, words in [("transfer_leader", -5, "no node -5"), ("change_members", remove_nobody, "not a member")]:
        refused = raises(admin.Refused, getattr(operator, call), argument)
        assert refused.reason == admin.RefusedReason.REJECTED and words in refused.message, refused
    assert operator.alarms() == [] and operator.disarm_alarm(alarm) is False
    leader = connect(leader_endpoint.split(":")[1])
    assert leader.put(put(b"k", b"v")).header.node_id == status.leader_id


def lonely(port):
    client = connect(port)
    for call, *arguments in [(client.put, put(b"k", b"v")), (client.range, kv.RangeRequest(key=b"k")), (client.open_session,)]:
        error = raises(kv.Unavailable, call, *arguments)
        assert error.maybe_applied is False and error.retry_after_ms > 0 and "majority" in error.message, error
    error = raises(kv.Unavailable, client.watch, kv.WatchRequest(key=b"k", wait_ms=30_000))
    assert error.maybe_applied is False and "no leader" in error.message, error
    assert client.status().leader_id is None
    refused = raises(admin.Refused, connect(port, admin.Admin).transfer_leader, -1)
    assert refused.reason == admin.RefusedReason.UNAVAILABLE and "majority" in refused.message, refused


standalone(sys.argv[2])
unknown_method(sys.argv[2])
follower(sys.argv[3], sys.argv[4])
lonely(sys.argv[5])
print("every call of the IDL answered as it says")
