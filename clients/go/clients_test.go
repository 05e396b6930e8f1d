// Package clients has what users of etcd's Go client rely on. It runs against any server at localhost:2379.
package clients

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/ordering"
)

func connect(t *testing.T) (*clientv3.Client, context.Context) {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(func() {
		cancel()
		client.Close()
	})
	return client, ctx
}

func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func expect[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

func put(t *testing.T, kv clientv3.KV, ctx context.Context, key, value string, options ...clientv3.OpOption) *clientv3.PutResponse {
	t.Helper()
	return must[*clientv3.PutResponse](t)(kv.Put(ctx, key, value, options...))
}

func get(t *testing.T, kv clientv3.KV, ctx context.Context, key string, options ...clientv3.OpOption) *clientv3.GetResponse {
	t.Helper()
	return must[*clientv3.GetResponse](t)(kv.Get(ctx, key, options...))
}

func keys(response *clientv3.GetResponse) string {
	var all bytes.Buffer
	for _, kv := range response.Kvs {
		fmt.Fprintf(&all, "%s ", kv.Key)
	}
	return all.String()
}

func TestPutGetDelete(t *testing.T) {
	client, ctx := connect(t)
	first := put(t, client, ctx, "pgd/a", "1")
	second := put(t, client, ctx, "pgd/a", "2", clientv3.WithPrevKV())
	expect(t, "previous value", string(second.PrevKv.Value), "1")
	found := get(t, client, ctx, "pgd/a")
	expect(t, "version", found.Kvs[0].Version, 2)
	expect(t, "create revision", found.Kvs[0].CreateRevision, first.Header.Revision)
	expect(t, "mod revision", found.Kvs[0].ModRevision, second.Header.Revision)
	old := get(t, client, ctx, "pgd/a", clientv3.WithRev(first.Header.Revision))
	expect(t, "old value", string(old.Kvs[0].Value), "1")
	deleted := must[*clientv3.DeleteResponse](t)(client.Delete(ctx, "pgd/", clientv3.WithPrefix(), clientv3.WithPrevKV()))
	expect(t, "deleted", deleted.Deleted, 1)
	expect(t, "deleted value", string(deleted.PrevKvs[0].Value), "2")
	expect(t, "count", get(t, client, ctx, "pgd/a").Count, 0)
}

func TestRangeOptions(t *testing.T) {
	client, ctx := connect(t)
	for n, key := range []string{"ro/c", "ro/a", "ro/b", "ro/d"} {
		put(t, client, ctx, key, fmt.Sprint(9-n))
	}
	prefix := clientv3.WithPrefix()
	page := get(t, client, ctx, "ro/", prefix, clientv3.WithLimit(3))
	expect(t, "page", keys(page), "ro/a ro/b ro/c ")
	expect(t, "more", page.More, true)
	expect(t, "count", page.Count, 4)
	byCreation := get(t, client, ctx, "ro/", prefix, clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortDescend))
	expect(t, "newest first", keys(byCreation), "ro/d ro/b ro/a ro/c ")
	byValue := get(t, client, ctx, "ro/", prefix, clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend))
	expect(t, "by value", keys(byValue), "ro/d ro/b ro/a ro/c ")
	expect(t, "last key", keys(get(t, client, ctx, "ro/", clientv3.WithLastKey()...)), "ro/d ")
	expect(t, "last revision", keys(get(t, client, ctx, "ro/", clientv3.WithLastRev()...)), "ro/d ")
	since := get(t, client, ctx, "ro/", prefix, clientv3.WithMinCreateRev(byCreation.Kvs[1].CreateRevision))
	expect(t, "created since", keys(since), "ro/b ro/d ")
	counted := get(t, client, ctx, "ro/", prefix, clientv3.WithCountOnly())
	expect(t, "count only", fmt.Sprint(counted.Count, len(counted.Kvs)), "4 0")
	from := get(t, client, ctx, "ro/c", clientv3.WithRange("ro/z"), clientv3.WithKeysOnly(), clientv3.WithSerializable())
	expect(t, "from key", keys(from), "ro/c ro/d ")
	expect(t, "no value", len(from.Kvs[0].Value), 0)
}

func TestGetStream(t *testing.T) {
	client, ctx := connect(t)
	for n := range 50 {
		put(t, client, ctx, fmt.Sprintf("gs/%02d", n), "v")
	}
	stream := must[clientv3.GetStreamChan](t)(client.GetStream(ctx, "gs/", clientv3.WithPrefix()))
	total := 0
	for response := range stream {
		if response.Err() != nil {
			t.Fatal(response.Err())
		}
		total += len(response.RangeResponse.GetKvs())
	}
	expect(t, "keys", total, 50)
}

func TestTransaction(t *testing.T) {
	client, ctx := connect(t)
	created := func() *clientv3.TxnResponse {
		absent := clientv3.Compare(clientv3.CreateRevision("tx/a"), "=", 0)
		return must[*clientv3.TxnResponse](t)(client.Txn(ctx).If(absent).
			Then(clientv3.OpPut("tx/a", "1"), clientv3.OpGet("tx/a")).
			Else(clientv3.OpGet("tx/a"), clientv3.OpDelete("tx/none")).Commit())
	}
	first := created()
	expect(t, "succeeded", first.Succeeded, true)
	expect(t, "sees its own put", string(first.Responses[1].GetResponseRange().Kvs[0].Value), "1")
	second := created()
	expect(t, "succeeded again", second.Succeeded, false)
	expect(t, "deleted", second.Responses[1].GetResponseDeleteRange().Deleted, 0)
	expect(t, "revision of a failed one", second.Header.Revision, first.Header.Revision)
	nested := clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.Value("tx/a"), "=", "1")},
		[]clientv3.Op{clientv3.OpPut("tx/b", "2")}, nil)
	outer := must[*clientv3.TxnResponse](t)(client.Txn(ctx).Then(nested, clientv3.OpPut("tx/c", "3")).Commit())
	expect(t, "nested", outer.Responses[0].GetResponseTxn().Succeeded, true)
	expect(t, "one revision", get(t, client, ctx, "tx/b").Kvs[0].ModRevision, get(t, client, ctx, "tx/c").Kvs[0].ModRevision)
	_, err := client.Txn(ctx).Then(clientv3.OpPut("tx/d", "1"), clientv3.OpPut("tx/d", "2")).Commit()
	expect(t, "a key put twice", errors.Is(err, rpctypes.ErrDuplicateKey), true)
}

func TestErrors(t *testing.T) {
	client, ctx := connect(t)
	_, err := client.Put(ctx, "", "v")
	expect(t, "empty key", errors.Is(err, rpctypes.ErrEmptyKey), true)
	_, err = client.Put(ctx, "er/a", "v", clientv3.WithLease(4242))
	expect(t, "unknown lease", errors.Is(err, rpctypes.ErrLeaseNotFound), true)
	_, err = client.Get(ctx, "er/a", clientv3.WithRev(1<<40))
	expect(t, "future revision", errors.Is(err, rpctypes.ErrFutureRev), true)
	_, err = client.Put(ctx, "er/none", "", clientv3.WithIgnoreValue())
	expect(t, "no value to keep", errors.Is(err, rpctypes.ErrKeyNotFound), true)
	_, err = client.MemberRemove(ctx, 4242)
	expect(t, "unknown member", errors.Is(err, rpctypes.ErrMemberNotFound), true)
}

func next(t *testing.T, events clientv3.WatchChan) clientv3.WatchResponse {
	t.Helper()
	select {
	case response, ok := <-events:
		if !ok {
			t.Fatal("the watch has ended")
		}
		return response
	case <-time.After(10 * time.Second):
		t.Fatal("no event")
	}
	panic("unreachable")
}

func TestWatch(t *testing.T) {
	client, ctx := connect(t)
	first := put(t, client, ctx, "wa/a", "1")
	events := client.Watch(ctx, "wa/", clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(first.Header.Revision))
	expect(t, "created", next(t, events).Events[0].IsCreate(), true)
	put(t, client, ctx, "wa/a", "2")
	modified := next(t, events).Events[0]
	expect(t, "modified", modified.IsModify(), true)
	expect(t, "previous", string(modified.PrevKv.Value), "1")
	must[*clientv3.DeleteResponse](t)(client.Delete(ctx, "wa/a"))
	expect(t, "deleted", next(t, events).Events[0].Type, clientv3.EventTypeDelete)
	deletes := client.Watch(ctx, "wa/f", clientv3.WithFilterPut())
	put(t, client, ctx, "wa/f", "1")
	must[*clientv3.DeleteResponse](t)(client.Delete(ctx, "wa/f"))
	expect(t, "filtered", next(t, deletes).Events[0].Type, clientv3.EventTypeDelete)
}

func TestWatchProgressAndCompaction(t *testing.T) {
	client, ctx := connect(t)
	events := client.Watch(ctx, "wp/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	expect(t, "created", next(t, events).Created, true)
	last := put(t, client, ctx, "wp/a", "1").Header.Revision
	next(t, events)
	last = put(t, client, ctx, "elsewhere", "1").Header.Revision
	if err := client.RequestProgress(ctx); err != nil {
		t.Fatal(err)
	}
	progress := next(t, events)
	expect(t, "progress", progress.IsProgressNotify(), true)
	expect(t, "progress revision", progress.Header.Revision >= last, true)
	put(t, client, ctx, "wp/a", "2")
	must[*clientv3.CompactResponse](t)(client.Compact(ctx, last, clientv3.WithCompactPhysical()))
	old := next(t, client.Watch(ctx, "wp/a", clientv3.WithRev(last-1)))
	expect(t, "canceled", old.Canceled, true)
	expect(t, "compacted", errors.Is(old.Err(), rpctypes.ErrCompacted), true)
	expect(t, "compact revision", old.CompactRevision, last)
}

func TestLease(t *testing.T) {
	client, ctx := connect(t)
	lease := must[*clientv3.LeaseGrantResponse](t)(client.Grant(ctx, 60))
	put(t, client, ctx, "le/a", "1", clientv3.WithLease(lease.ID))
	left := must[*clientv3.LeaseTimeToLiveResponse](t)(client.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys()))
	expect(t, "granted", left.GrantedTTL, 60)
	expect(t, "attached", string(left.Keys[0]), "le/a")
	expect(t, "ttl", must[*clientv3.LeaseKeepAliveResponse](t)(client.KeepAliveOnce(ctx, lease.ID)).TTL, 60)
	all := must[*clientv3.LeaseLeasesResponse](t)(client.Leases(ctx))
	expect(t, "listed", len(all.Leases) > 0, true)
	must[*clientv3.LeaseRevokeResponse](t)(client.Revoke(ctx, lease.ID))
	expect(t, "keys", get(t, client, ctx, "le/a").Count, 0)
	gone := must[*clientv3.LeaseTimeToLiveResponse](t)(client.TimeToLive(ctx, lease.ID))
	expect(t, "ttl of none", gone.TTL, -1)
	_, err := client.KeepAliveOnce(ctx, lease.ID)
	expect(t, "keep-alive of none", errors.Is(err, rpctypes.ErrLeaseNotFound), true)
}

func TestLeaseEndsAfterItsTime(t *testing.T) {
	client, ctx := connect(t)
	lease := must[*clientv3.LeaseGrantResponse](t)(client.Grant(ctx, 2))
	put(t, client, ctx, "lt/a", "1", clientv3.WithLease(lease.ID))
	events := client.Watch(ctx, "lt/a")
	alive := must[<-chan *clientv3.LeaseKeepAliveResponse](t)(client.KeepAlive(ctx, lease.ID))
	for range 3 {
		<-alive
	}
	expect(t, "kept alive", get(t, client, ctx, "lt/a").Count, 1)
	other := must[*clientv3.LeaseGrantResponse](t)(client.Grant(ctx, 2))
	put(t, client, ctx, "lt/b", "1", clientv3.WithLease(other.ID))
	ends := next(t, client.Watch(ctx, "lt/b"))
	expect(t, "ended", ends.Events[0].Type, clientv3.EventTypeDelete)
	select {
	case event := <-events:
		t.Fatalf("the kept one has ended: %v", event)
	default:
	}
}

func TestMutex(t *testing.T) {
	client, ctx := connect(t)
	var inside, total int
	var guard sync.Mutex
	var all sync.WaitGroup
	for range 5 {
		all.Add(1)
		go func() {
			defer all.Done()
			session, err := concurrency.NewSession(client, concurrency.WithTTL(10))
			if err != nil {
				t.Error(err)
				return
			}
			defer session.Close()
			lock := concurrency.NewMutex(session, "mu/lock")
			if err := lock.Lock(ctx); err != nil {
				t.Error(err)
				return
			}
			guard.Lock()
			inside++
			if inside != 1 {
				t.Errorf("%d hold the lock", inside)
			}
			guard.Unlock()
			time.Sleep(20 * time.Millisecond)
			guard.Lock()
			inside--
			total++
			guard.Unlock()
			if err := lock.Unlock(ctx); err != nil {
				t.Error(err)
			}
		}()
	}
	all.Wait()
	expect(t, "held", total, 5)
	session := must[*concurrency.Session](t)(concurrency.NewSession(client))
	defer session.Close()
	other := must[*concurrency.Session](t)(concurrency.NewSession(client))
	defer other.Close()
	if err := concurrency.NewMutex(session, "mu/try").TryLock(ctx); err != nil {
		t.Fatal(err)
	}
	err := concurrency.NewMutex(other, "mu/try").TryLock(ctx)
	expect(t, "taken", errors.Is(err, concurrency.ErrLocked), true)
}

func TestElection(t *testing.T) {
	client, ctx := connect(t)
	session := must[*concurrency.Session](t)(concurrency.NewSession(client))
	defer session.Close()
	election := concurrency.NewElection(session, "el")
	if err := election.Campaign(ctx, "first"); err != nil {
		t.Fatal(err)
	}
	seen := election.Observe(ctx)
	expect(t, "leader", string((<-seen).Kvs[0].Value), "first")
	if err := election.Proclaim(ctx, "again"); err != nil {
		t.Fatal(err)
	}
	expect(t, "proclaimed", string((<-seen).Kvs[0].Value), "again")
	if err := election.Resign(ctx); err != nil {
		t.Fatal(err)
	}
	_, err := election.Leader(ctx)
	expect(t, "nobody leads", errors.Is(err, concurrency.ErrElectionNoLeader), true)
}

func TestSoftwareTransactionalMemory(t *testing.T) {
	client, ctx := connect(t)
	put(t, client, ctx, "stm/a", "0")
	var all sync.WaitGroup
	for range 4 {
		all.Add(1)
		go func() {
			defer all.Done()
			for range 10 {
				_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
					var n int
					fmt.Sscan(stm.Get("stm/a"), &n)
					stm.Put("stm/a", fmt.Sprint(n+1))
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		}()
	}
	all.Wait()
	expect(t, "sum", string(get(t, client, ctx, "stm/a").Kvs[0].Value), "40")
}

func TestWrappers(t *testing.T) {
	client, ctx := connect(t)
	spaced := namespace.NewKV(client, "ns/")
	put(t, spaced, ctx, "a", "1")
	expect(t, "namespace", string(get(t, client, ctx, "ns/a").Kvs[0].Value), "1")
	cached, closeCache, err := leasing.NewKV(client, "leasing/")
	if err != nil {
		t.Fatal(err)
	}
	defer closeCache()
	put(t, cached, ctx, "ls/a", "1")
	expect(t, "leasing", string(get(t, cached, ctx, "ls/a").Kvs[0].Value), "1")
	ordered := ordering.NewKV(client, ordering.NewOrderViolationSwitchEndpointClosure(client))
	expect(t, "ordering", get(t, ordered, ctx, "ns/a").Count, 1)
	syncer := mirror.NewSyncer(client, "ns/", 0)
	gets, errs := syncer.SyncBase(ctx)
	for response := range gets {
		expect(t, "mirror", len(response.Kvs), 1)
	}
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
}

func TestServiceDiscovery(t *testing.T) {
	client, ctx := connect(t)
	manager := must[endpoints.Manager](t)(endpoints.NewManager(client, "svc"))
	updates := must[endpoints.WatchChannel](t)(manager.NewWatchChannel(ctx))
	if err := manager.AddEndpoint(ctx, "svc/one", endpoints.Endpoint{Addr: "localhost:1"}); err != nil {
		t.Fatal(err)
	}
	expect(t, "added", (<-updates)[0].Endpoint.Addr, "localhost:1")
	expect(t, "listed", len(must[endpoints.Key2EndpointMap](t)(manager.List(ctx))), 1)
}

func TestMaintenance(t *testing.T) {
	client, ctx := connect(t)
	status := must[*clientv3.StatusResponse](t)(client.Status(ctx, "localhost:2379"))
	expect(t, "leader", status.Leader, status.Header.MemberId)
	must[*clientv3.DefragmentResponse](t)(client.Defragment(ctx, "localhost:2379"))
	hash := must[*clientv3.HashKVResponse](t)(client.HashKV(ctx, "localhost:2379", 0))
	again := must[*clientv3.HashKVResponse](t)(client.HashKV(ctx, "localhost:2379", hash.HashRevision))
	expect(t, "hash", again.Hash, hash.Hash)
	must[*clientv3.AlarmResponse](t)(client.AlarmList(ctx))
	must[*clientv3.AuthStatusResponse](t)(client.AuthStatus(ctx))
	members := must[*clientv3.MemberListResponse](t)(client.MemberList(ctx))
	expect(t, "members", len(members.Members), 1)
	expect(t, "member", members.Members[0].ID, status.Header.MemberId)
	if err := client.Sync(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestSnapshot(t *testing.T) {
	client, ctx := connect(t)
	stream := must[io.ReadCloser](t)(client.Snapshot(ctx))
	defer stream.Close()
	bytes := must[int64](t)(io.Copy(io.Discard, stream))
	expect(t, "has a checksum after whole sectors", bytes%512, 32)
}

func TestLargeRange(t *testing.T) {
	client, ctx := connect(t)
	value := string(bytes.Repeat([]byte("x"), 1000))
	for from := 0; from < 6000; from += 100 {
		var all []clientv3.Op
		for n := from; n < from+100; n++ {
			all = append(all, clientv3.OpPut(fmt.Sprintf("lr/%05d", n), value))
		}
		must[*clientv3.TxnResponse](t)(client.Txn(ctx).Then(all...).Commit())
	}
	whole := get(t, client, ctx, "lr/", clientv3.WithPrefix())
	expect(t, "keys", len(whole.Kvs), 6000)
	expect(t, "in order", sort.SliceIsSorted(whole.Kvs, func(a, b int) bool {
		return bytes.Compare(whole.Kvs[a].Key, whole.Kvs[b].Key) < 0
	}), true)
	deleted := must[*clientv3.DeleteResponse](t)(client.Delete(ctx, "lr/", clientv3.WithPrefix()))
	expect(t, "deleted", deleted.Deleted, 6000)
}
