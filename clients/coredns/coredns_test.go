// Package coredns has what CoreDNS answers from the records that its etcd plugin reads at localhost:2379.
package coredns

import (
	"context"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/etcd"
	"github.com/miekg/dns"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const corefile = `example.test:5300 10.in-addr.arpa:5300 {
	errors
	etcd {
		path /skydns
		endpoint http://localhost:2379
	}
}`

var client *clientv3.Client

func TestMain(m *testing.M) {
	dnsserver.Directives = []string{"errors", "etcd"}
	dnsserver.Quiet = true
	server, err := caddy.Start(caddy.CaddyfileInput{Contents: []byte(corefile), ServerTypeName: "dns"})
	if err != nil {
		panic(err)
	}
	client, err = clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}, DialTimeout: 5 * time.Second})
	if err != nil {
		panic(err)
	}
	code := m.Run()
	client.Close()
	if err := server.Stop(); err != nil {
		panic(err)
	}
	os.Exit(code)
}

func put(t *testing.T, key, record string, options ...clientv3.OpOption) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := client.Put(ctx, "/skydns/"+key, record, options...); err != nil {
		t.Fatal(err)
	}
}

func ask(t *testing.T, name string, kind uint16) *dns.Msg {
	t.Helper()
	question := new(dns.Msg)
	question.SetQuestion(name, kind)
	answer, err := dns.Exchange(question, net.JoinHostPort("127.0.0.1", "5300"))
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// answers are the records of the answer in order, without their time to live.
func answers(answer *dns.Msg) []string {
	var records []string
	for _, record := range answer.Answer {
		header := record.Header()
		text := strings.TrimPrefix(record.String(), header.String())
		records = append(records, dns.TypeToString[header.Rrtype]+" "+text)
	}
	slices.Sort(records)
	return records
}

func expect(t *testing.T, name string, kind uint16, want ...string) {
	t.Helper()
	if got := answers(ask(t, name, kind)); !slices.Equal(got, want) {
		t.Fatalf("%s: got %q, want %q", name, got, want)
	}
}

func TestAddresses(t *testing.T) {
	put(t, "test/example/www/1", `{"host":"10.0.0.1"}`)
	put(t, "test/example/www/2", `{"host":"10.0.0.2"}`)
	put(t, "test/example/www/3", `{"host":"2001:db8::1"}`)
	expect(t, "www.example.test.", dns.TypeA, "A 10.0.0.1", "A 10.0.0.2")
	expect(t, "www.example.test.", dns.TypeAAAA, "AAAA 2001:db8::1")
	expect(t, "2.www.example.test.", dns.TypeA, "A 10.0.0.2")
}

func TestNamesOfServices(t *testing.T) {
	put(t, "test/example/db/a", `{"host":"10.0.1.1","port":5432,"priority":10,"weight":20}`)
	expect(t, "db.example.test.", dns.TypeSRV, "SRV 10 100 5432 a.db.example.test.")
}

func TestText(t *testing.T) {
	put(t, "test/example/note", `{"text":"hello"}`)
	expect(t, "note.example.test.", dns.TypeTXT, `TXT "hello"`)
}

func TestAlias(t *testing.T) {
	put(t, "test/example/real", `{"host":"10.0.2.1"}`)
	put(t, "test/example/alias", `{"host":"real.example.test"}`)
	expect(t, "alias.example.test.", dns.TypeA, "A 10.0.2.1", "CNAME real.example.test.")
}

func TestReverse(t *testing.T) {
	put(t, "arpa/in-addr/10/0/3/1", `{"host":"back.example.test"}`)
	expect(t, "1.3.0.10.in-addr.arpa.", dns.TypePTR, "PTR back.example.test.")
}

func TestWildcard(t *testing.T) {
	put(t, "test/example/pool/one/x", `{"host":"10.0.4.1"}`)
	put(t, "test/example/pool/two/x", `{"host":"10.0.4.2"}`)
	expect(t, "x.*.pool.example.test.", dns.TypeA, "A 10.0.4.1", "A 10.0.4.2")
}

func TestAbsentNameIsNXDOMAIN(t *testing.T) {
	if code := ask(t, "nothing.example.test.", dns.TypeA).Rcode; code != dns.RcodeNameError {
		t.Fatalf("got %s", dns.RcodeToString[code])
	}
}

func TestChangesAreSeenAtOnce(t *testing.T) {
	put(t, "test/example/moves", `{"host":"10.0.5.1"}`)
	expect(t, "moves.example.test.", dns.TypeA, "A 10.0.5.1")
	put(t, "test/example/moves", `{"host":"10.0.5.2"}`)
	expect(t, "moves.example.test.", dns.TypeA, "A 10.0.5.2")
	if _, err := client.Delete(context.Background(), "/skydns/test/example/moves"); err != nil {
		t.Fatal(err)
	}
	expect(t, "moves.example.test.", dns.TypeA)
}

func TestRecordOfALeaseLivesNoLonger(t *testing.T) {
	lease, err := client.Grant(context.Background(), 100)
	if err != nil {
		t.Fatal(err)
	}
	put(t, "test/example/leased", `{"host":"10.0.6.1","ttl":3000}`, clientv3.WithLease(lease.ID))
	answer := ask(t, "leased.example.test.", dns.TypeA)
	if len(answer.Answer) != 1 || answer.Answer[0].Header().Ttl > 100 || answer.Answer[0].Header().Ttl < 90 {
		t.Fatal(answer)
	}
}
