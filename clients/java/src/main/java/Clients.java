import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.Txn;
import io.etcd.jetcd.Watch;
import io.etcd.jetcd.lease.LeaseKeepAliveResponse;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.LeaseOption;
import io.etcd.jetcd.options.PutOption;
import io.etcd.jetcd.options.WatchOption;
import io.etcd.jetcd.watch.WatchEvent;
import io.etcd.jetcd.watch.WatchResponse;
import io.grpc.stub.StreamObserver;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/** What users of jetcd rely on, against the server at localhost:2379. Prints "ok NAME" or "not ok NAME" for each. */
public final class Clients {
  interface Case {
    void run(Client client) throws Exception;
  }

  private static boolean failed;

  static ByteSequence bytes(String text) {
    return ByteSequence.from(text, StandardCharsets.UTF_8);
  }

  static <T> T done(CompletableFuture<T> future) throws Exception {
    return future.get(15, TimeUnit.SECONDS);
  }

  static void expect(Object got, Object want) {
    if (!want.equals(got)) {
      throw new AssertionError("got " + got + ", want " + want);
    }
  }

  static void check(String name, Case body) {
    try (Client client = Client.builder().endpoints("http://localhost:2379").build()) {
      body.run(client);
      System.out.println("ok " + name);
    } catch (Throwable error) {
      failed = true;
      System.out.println("not ok " + name);
      System.out.println("# " + error);
    }
  }

  static WatchEvent next(BlockingQueue<WatchResponse> events) throws Exception {
    WatchResponse response = events.poll(10, TimeUnit.SECONDS);
    if (response == null) {
      throw new AssertionError("no event");
    }
    return response.getEvents().get(0);
  }

  public static void main(String[] args) {
    check("put-get-delete", client -> {
      var kv = client.getKVClient();
      done(kv.put(bytes("j/a"), bytes("1")));
      var put = done(kv.put(bytes("j/a"), bytes("2"), PutOption.builder().withPrevKV().build()));
      expect(put.getPrevKv().getValue().toString(), "1");
      var prefix = GetOption.builder().isPrefix(true).withSortField(GetOption.SortTarget.CREATE)
          .withSortOrder(GetOption.SortOrder.DESCEND).build();
      done(kv.put(bytes("j/b"), bytes("3")));
      var found = done(kv.get(bytes("j/"), prefix));
      expect(found.getCount(), 2L);
      expect(found.getKvs().get(0).getKey().toString(), "j/b");
      var deleted = done(kv.delete(bytes("j/"), DeleteOption.builder().isPrefix(true).withPrevKV(true).build()));
      expect(deleted.getDeleted(), 2L);
      expect(deleted.getPrevKvs().size(), 2);
    });
    check("txn", client -> {
      Txn txn = client.getKVClient().txn();
      var absent = new Cmp(bytes("t/a"), Cmp.Op.EQUAL, CmpTarget.version(0));
      var answer = done(txn.If(absent).Then(Op.put(bytes("t/a"), bytes("1"), PutOption.DEFAULT))
          .Else(Op.get(bytes("t/a"), GetOption.DEFAULT)).commit());
      expect(answer.isSucceeded(), true);
      expect(answer.getPutResponses().size(), 1);
    });
    check("compaction", client -> {
      var kv = client.getKVClient();
      long revision = done(kv.put(bytes("c"), bytes("1"))).getHeader().getRevision();
      done(kv.put(bytes("c"), bytes("2")));
      done(kv.compact(revision + 1));
      try {
        done(kv.get(bytes("c"), GetOption.builder().withRevision(revision).build()));
      } catch (Exception error) {
        expect(error.getMessage().contains("required revision has been compacted"), true);
        return;
      }
      throw new AssertionError("it was read");
    });
    check("watch", client -> {
      var events = new LinkedBlockingQueue<WatchResponse>();
      var kv = client.getKVClient();
      long revision = done(kv.put(bytes("w/a"), bytes("1"))).getHeader().getRevision();
      try (var watcher = client.getWatchClient().watch(bytes("w/"),
          WatchOption.builder().isPrefix(true).withRevision(revision).withPrevKV(true).build(),
          Watch.listener(events::add))) {
        expect(next(events).getKeyValue().getValue().toString(), "1");
        done(kv.put(bytes("w/a"), bytes("2")));
        expect(next(events).getPrevKV().getValue().toString(), "1");
        done(kv.delete(bytes("w/a")));
        expect(next(events).getEventType(), WatchEvent.EventType.DELETE);
      }
    });
    check("lease", client -> {
      var leases = client.getLeaseClient();
      long id = done(leases.grant(30)).getID();
      done(client.getKVClient().put(bytes("l/a"), bytes("1"), PutOption.builder().withLeaseId(id).build()));
      expect(done(leases.keepAliveOnce(id)).getTTL(), 30L);
      var left = done(leases.timeToLive(id, LeaseOption.builder().withAttachedKeys().build()));
      expect(left.getKeys().get(0).toString(StandardCharsets.UTF_8), "l/a");
      var renewed = new CountDownLatch(2);
      try (var alive = leases.keepAlive(id, new StreamObserver<LeaseKeepAliveResponse>() {
        @Override public void onNext(LeaseKeepAliveResponse response) { renewed.countDown(); }
        @Override public void onError(Throwable error) { }
        @Override public void onCompleted() { }
      })) {
        expect(renewed.await(25, TimeUnit.SECONDS), true);
      }
      done(leases.revoke(id));
      expect(done(client.getKVClient().get(bytes("l/a"))).getCount(), 0L);
    });
    check("lock", client -> {
      var locks = client.getLockClient();
      long first = done(client.getLeaseClient().grant(30)).getID();
      long second = done(client.getLeaseClient().grant(30)).getID();
      var held = done(locks.lock(bytes("m"), first));
      var waiting = locks.lock(bytes("m"), second);
      Thread.sleep(300);
      expect(waiting.isDone(), false);
      done(locks.unlock(held.getKey()));
      done(locks.unlock(done(waiting).getKey()));
    });
    check("election", client -> {
      var elections = client.getElectionClient();
      long lease = done(client.getLeaseClient().grant(30)).getID();
      var won = done(elections.campaign(bytes("e"), lease, bytes("one")));
      expect(done(elections.leader(bytes("e"))).getKv().getValue().toString(), "one");
      done(elections.proclaim(won.getLeader(), bytes("two")));
      expect(done(elections.leader(bytes("e"))).getKv().getValue().toString(), "two");
      done(elections.resign(won.getLeader()));
    });
    check("cluster", client -> {
      var members = done(client.getClusterClient().listMember()).getMembers();
      expect(members.size(), 1);
      expect(members.get(0).getClientURIs().isEmpty(), false);
    });
    check("maintenance", client -> {
      var maintenance = client.getMaintenanceClient();
      var status = done(maintenance.statusMember("http://localhost:2379"));
      expect(status.getLeader(), status.getHeader().getMemberId());
      done(maintenance.listAlarms());
      done(maintenance.hashKV("http://localhost:2379", 0));
      done(maintenance.defragmentMember("http://localhost:2379"));
    });
    check("snapshot", client -> {
      var stream = new java.io.ByteArrayOutputStream();
      expect(done(client.getMaintenanceClient().snapshot(stream)) > 0, true);
    });
    System.exit(failed ? 1 : 0);
  }
}
