package ister

import (
	"testing"
	"time"
)

// talk is a session without a socket: look at what was said, and answer.
type talk struct {
	*testing.T
	s   *session
	now time.Time
}

func newTalk(t *testing.T) *talk {
	return &talk{t, newSession("test", new(uint64)), time.Unix(1000, 0)}
}

func (t *talk) time() time.Time { return t.now }

func (t *talk) said() []header {
	t.Helper()
	var found []header
	for _, frames := range t.s.outbox {
		h, err := decodeHeader(frames[0])
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, h)
	}
	t.s.outbox = nil
	return found
}

func (t *talk) hear(h header, body ...[]byte) {
	t.s.receive(append([][]byte{encode(map[uint64]any(h))}, body...), t.now)
}

func (t *talk) welcome(resumed bool) {
	t.s.connect(t.now)
	t.said()
	t.hear(header{
		kType: tWelcome, kVersion: 1, kSession: make([]byte, 16), kBoot: 1, kHeartbeat: 1000, kResumed: resumed,
		kLimits: map[uint64]uint64{1: 1000, 2: 4000, 3: 2, 4: 300, 7: 1000, 8: 1 << 20},
	})
}

func (t *talk) producer() *publication {
	p := &publication{handle: 1, topic: "orders", id: 7, batchBytes: 1000, linger: time.Millisecond, changed: func() {}}
	t.s.attach(p, t.now)
	return p
}

func (t *talk) opened(more header) {
	t.Helper()
	said := t.said()
	for i := len(said) - 1; i >= 0; i-- {
		if kind := said[i].uint(kType); kind == tOpenProducer || kind == tOpenConsumer {
			h := header{kType: tOpened, kRef: said[i].uint(kRef), kHandle: said[i].uint(kHandle), kStrategy: "reliable"}
			for key, value := range more {
				h[key] = value
			}
			t.hear(h)
			return
		}
	}
	t.Fatalf("nothing is being opened: %v", said)
}

func (t *talk) refuse(code string, action Action, more header) {
	h := header{kType: tError, kCode: code, kText: code, kAction: string(action)}
	for key, value := range more {
		h[key] = value
	}
	t.hear(h)
}

func publishes(said []header) (found []uint64) {
	for _, h := range said {
		if h.uint(kType) == tPublish {
			found = append(found, h.uint(kSequence))
		}
	}
	return found
}

func (t *talk) send(p *publication, payload string) *shipment {
	t.Helper()
	into, _, ok := p.take(&content{payload: []byte(payload)}, t.time)
	if !ok {
		t.Fatalf("%q was not taken", payload)
	}
	return into
}

func same(one, other []uint64) bool {
	if len(one) != len(other) {
		return false
	}
	for i := range one {
		if one[i] != other[i] {
			return false
		}
	}
	return true
}

func TestWhatHasNoReceiptIsSentAgainInOrder(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	p := t.producer()
	t.opened(header{kSequence: 0, kBytes: 1000})
	first := t.send(p, "one")
	t.send(p, "two")
	p.seal()
	if sent := publishes(t.said()); !same(sent, []uint64{0, 1}) {
		t.Fatal(sent)
	}
	t.hear(header{kType: tReceipt, kHandle: 1, kReceipts: []uint64{0, 40}})
	if !first.over || first.first != 40 {
		t.Fatal("no receipt")
	}
	t.s.lost(lost("a test"))
	t.welcome(true)
	said := t.said()
	if said[0].uint(kType) != tOpenProducer || said[0].uint(kSequence) != 1 {
		t.Fatal(said)
	}
	t.hear(header{kType: tOpened, kRef: said[0].uint(kRef), kHandle: 1, kSequence: 1, kBytes: 1000})
	if sent := publishes(t.said()); !same(sent, []uint64{1}) {
		t.Fatal(sent)
	}
	t.hear(header{kType: tReceipt, kHandle: 1, kReceipts: []uint64{1, 41, 0, 99}})
	if !p.answered() || first.first != 40 {
		t.Fatal("a second receipt changed the first")
	}
}

func TestTheWindowIsKept(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	p := t.producer()
	t.opened(header{kSequence: 0, kBytes: 100})
	taken := 0
	for taken < 100 {
		if _, _, ok := p.take(&content{payload: make([]byte, 30)}, t.time); !ok {
			break
		}
		taken++
		p.seal()
		if p.bytes > 100 || len(p.batches) > 2 {
			t.Fatalf("%d bytes in %d batches", p.bytes, len(p.batches))
		}
	}
	if taken == 100 {
		t.Fatal("the window is never full")
	}
}

func TestARefusedBatchIsLeftOutOnceItIsTheOldest(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	p := t.producer()
	t.opened(header{kSequence: 0, kBytes: 1000})
	bad := t.send(p, "bad")
	good := t.send(p, "good")
	p.seal()
	t.said()
	t.refuse("invalid-argument", Fix, header{kHandle: uint64(1), kSequence: uint64(0)})
	t.refuse("sequence-gap", Retry, header{kHandle: uint64(1), kSequence: uint64(1)})
	if !bad.over || bad.err.Code != "invalid-argument" || good.over {
		t.Fatal("wrongly resolved")
	}
	t.opened(header{kSequence: 1, kBytes: 1000})
	if sent := publishes(t.said()); !same(sent, []uint64{1}) {
		t.Fatal(sent)
	}
}

func TestARefusalToBeTriedAgainIsTriedAgainLater(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	p := t.producer()
	t.opened(header{kSequence: 0, kBytes: 1000})
	t.send(p, "one")
	t.said()
	t.refuse("disk-full", Retry, header{kHandle: uint64(1), kSequence: uint64(0)})
	if said := t.said(); len(said) != 0 {
		t.Fatal(said)
	}
	t.now = t.now.Add(time.Second)
	t.s.tick(t.now)
	t.opened(header{kSequence: 0, kBytes: 1000})
	if sent := publishes(t.said()); !same(sent, []uint64{0}) {
		t.Fatal(sent)
	}
}

func (t *talk) consumer(fixed uint64) *attachment {
	a := &attachment{handle: 2, topic: "orders", subscription: "all", kind: "shared", fixed: fixed, changed: func() {}}
	t.s.attach(a, t.now)
	return a
}

func (t *talk) deliver(first uint64, payloads ...string) {
	items := make([]content, len(payloads))
	for i, payload := range payloads {
		items[i].payload = []byte(payload)
	}
	_, body := packBatch(items)
	t.hear(header{
		kType: tDeliver, kHandle: 2, kOffset: first, kCount: len(payloads), kTimestamps: []uint64{uint64(len(payloads)), 5},
	}, body...)
}

func TestCreditComesBackAsTheProgramTakes(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(4)
	t.opened(header{kOffset: 0})
	t.deliver(0, "a", "b", "c", "d")
	if said := t.said(); len(said) != 0 {
		t.Fatalf("credit for nothing: %v", said)
	}
	given := uint64(0)
	for taken := uint64(1); taken <= 4; taken++ {
		a.next(1, t.now)
		for _, h := range t.said() {
			given += h.uint(kMessages)
		}
		if given > taken {
			t.Fatalf("%d of credit for %d messages", given, taken)
		}
	}
	if given < 2 {
		t.Fatal("no credit comes back")
	}
}

func TestAcknowledgmentsAreRepeatedInAResumedSessionAndForgottenInANewOne(test *testing.T) {
	for _, resumed := range []bool{true, false} {
		t := newTalk(test)
		t.welcome(false)
		a := t.consumer(10)
		t.opened(header{kOffset: 0})
		t.deliver(0, "a", "b")
		a.ack(a.next(2, t.now), t.now)
		a.flush(true)
		t.s.lost(lost("a test"))
		t.welcome(resumed)
		acks := 0
		for _, h := range t.said() {
			if h.uint(kType) == tAck {
				acks++
			}
		}
		if (acks > 0) != resumed || a.forgotten == resumed {
			t.Fatalf("resumed %v: %d acknowledgments, forgotten %v", resumed, acks, a.forgotten)
		}
	}
}

func TestAcknowledgmentsSayOfWhichMovesTheClientHasHeard(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(10)
	t.opened(header{kSought: 0})
	ack := func(first uint64) any {
		t.deliver(first, "x")
		t.said()
		a.ack(a.next(1, t.now), t.now)
		a.flush(false)
		for _, h := range t.said() {
			if h.uint(kType) == tAck {
				return h[kSought]
			}
		}
		t.Fatal("nothing is acknowledged")
		return nil
	}
	if got := ack(0); got != nil {
		t.Fatalf("%v before any move", got)
	}
	t.hear(header{kType: tEvent, kHandle: 2, kCode: "sought", kOffset: 0, kSought: 2})
	if got := ack(0); got != uint64(2) {
		t.Fatalf("%v after the second move", got)
	}
}

func TestManyRangesAreSplit(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	a := t.consumer(10)
	t.opened(header{kOffset: 0})
	var spans []span
	for i := uint64(0); i < 1001; i++ {
		spans = append(spans, span{2 * i, 2*i + 1})
	}
	a.sendAcks(spans, 5)
	said := t.said()
	if len(said) != 3 || said[0].has(kRef) || said[1].has(kRef) || said[2].uint(kRef) != 5 {
		t.Fatal(said)
	}
	for _, h := range said {
		if len(h.uints(kRanges)) > 2*rangesMax {
			t.Fatal("too many ranges")
		}
	}
}

func TestOnePingAHeartbeatAndThenTheConnectionIsLost(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	pings := 0
	for range 60 {
		t.now = t.now.Add(100 * time.Millisecond)
		t.s.tick(t.now)
		if t.s.phase != ready {
			break
		}
		pings += len(t.said())
	}
	if pings != 1 || t.s.phase != idle {
		t.Fatalf("%d pings, phase %v", pings, t.s.phase)
	}
}

func TestGarbageCostsTheConnection(test *testing.T) {
	for _, frame := range [][]byte{{}, {0xff}, {0xa1, 0, 1}, {0xa1, 0, 0x18, 63}, {0xbf, 0, 0x18, 41, 0xff}} {
		t := newTalk(test)
		t.welcome(false)
		t.s.receive([][]byte{frame}, t.now)
		if t.s.phase != idle {
			t.Errorf("%x was taken", frame)
		}
	}
}
