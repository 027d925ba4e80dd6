package ister

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"testing"
)

func TestTheSizeOfABatchIsWhatItsFramesHave(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	some := func(most int) []byte { return bytes.Repeat([]byte{'x'}, random.IntN(most)) }
	var made gathering
	for range 300 {
		var messages []content
		for range 1 + random.IntN(20) {
			each := content{payload: some(50)}
			if random.IntN(6) == 0 {
				each.key = some(9)
			}
			if random.IntN(6) == 0 {
				each.encoded = encode(map[string]string{string(some(9)): "v"})
			}
			if random.IntN(6) == 0 {
				each.deliverAt = uint64(random.IntN(3))
			}
			messages = append(messages, each)
			made.add(&each, made.wouldBe(&each))
		}
		count, size := made.count, made.size
		columns, body := made.seal()
		if count == 1 && columns == 0 {
			body = append([][]byte{lengthOf(body[0])}, body...)
		}
		if count != len(messages) || size != sizeOfBody(body) {
			t.Fatalf("%d messages of %d bytes, and %d were said", count, sizeOfBody(body), size)
		}
		found, err := cutBatch(columns, count, body)
		if err != nil {
			t.Fatal(err)
		}
		for i, each := range messages {
			if len(each.key) == 0 {
				each.key = nil
			}
			var wanted map[string]string
			if len(each.encoded) > 0 {
				wanted, _ = attributesOf(each.encoded)
			}
			got := found[i]
			if !bytes.Equal(got.payload, each.payload) || !bytes.Equal(got.key, each.key) ||
				got.deliverAt != each.deliverAt || !reflect.DeepEqual(got.attributes, wanted) {
				t.Fatalf("%v became %v", each, got)
			}
		}
		made.giveBack(body)
	}
}

// ISTER-8.3-6
func TestTheFramesOfABatchAreNotUsedAgainBeforeTheyCannotBeSentAnyMore(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	p := t.producer()
	p.batchBytes = 20_000
	t.s.limits.batchBytesMax, t.s.limits.batchesInFlightMax = 20_000, 100
	t.opened(header{kSequence: 0, kBytes: 1_000_000})
	payload := bytes.Repeat([]byte("a"), 3000)
	take := func(letter byte) {
		for range 3 {
			made := content{payload: bytes.Repeat([]byte{letter}, len(payload))}
			p.take(&made, t.time)
		}
		p.seal()
	}
	take('a')
	kept := p.batches[len(p.batches)-1]
	if t.s.outbox == nil {
		t.Fatal("nothing is to be sent")
	}
	t.hear(header{kType: tReceipt, kHandle: 1, kReceipts: []uint64{kept.sequence, 1}}) // and it is still to be sent
	take('b')
	for _, frames := range t.s.outbox {
		for _, frame := range frames[1:] {
			if bytes.Contains(frame, []byte("b")) && bytes.Contains(frame, []byte("a")) {
				t.Fatal("a frame that was to be sent was written over")
			}
		}
	}
	if bytes.Contains(kept.body[1], []byte("b")) {
		t.Fatal("a frame that was to be sent was written over")
	}
}

func TestANumberThatWasRefusedIsRefusedAgainAndIsNoDuplicate(test *testing.T) {
	t := newTalk(test)
	t.welcome(false)
	p := t.producer()
	t.opened(header{kSequence: 0, kBytes: 1000})
	t.send(p, "bad")
	t.said()
	t.refuse("message-too-large", Fix, header{kHandle: uint64(1), kSequence: uint64(0)})
	t.opened(header{kSequence: 1, kBytes: 1000})
	if into, _ := p.before(0); !into.over || into.duplicate || into.err == nil || into.err.Code != "message-too-large" {
		t.Fatal(into.over, into.duplicate, into.err)
	}
}

func TestAPayloadThatIsAddedQuicklyIsTheSameAsOneThatWasLookedAt(t *testing.T) {
	made := func(quickly bool) [][]byte {
		t := newTalk(t)
		t.welcome(false)
		p := t.producer()
		t.opened(header{kSequence: 0, kBytes: 1000})
		t.send(p, "first") // is sent at once
		for i := range 200 {
			payload := bytes.Repeat([]byte{'x'}, i%7)
			if quickly && p.gathered.count > 0 {
				if receipt := p.more(payload); receipt != nil {
					if receipt.index != uint64(p.gathered.count-1) || receipt.shipment != p.shipment {
						t.Fatal(receipt)
					}
					continue
				}
			}
			if _, _, ok := p.take(&content{payload: payload}, t.time); !ok {
				t.hear(header{kType: tReceipt, kHandle: 1, kReceipts: []uint64{p.batches[0].sequence, 5}})
				if _, _, ok = p.take(&content{payload: payload}, t.time); !ok {
					t.Fatal("no room")
				}
			}
		}
		var all [][]byte
		for _, frames := range t.s.outbox {
			all = append(all, frames[1:]...) // headers have their keys in any order
		}
		return append(all, p.gathered.payloads.table, p.gathered.payloads.joined)
	}
	if !reflect.DeepEqual(made(true), made(false)) {
		t.Fatal("other bytes were sent")
	}
}

func TestNothingIsAddedQuicklyThatNeedsALook(t *testing.T) {
	fresh := func() (*talk, *publication) {
		t := newTalk(t)
		t.welcome(false)
		p := t.producer()
		t.opened(header{kSequence: 0, kBytes: 1000})
		t.send(p, "sent")
		t.send(p, "gathered")
		return t, p
	}
	for name, change := range map[string]func(t *talk, p *publication){
		"nothing gathered": func(_ *talk, p *publication) { p.seal() },
		"a column":         func(t *talk, p *publication) { p.take(&content{key: []byte("k")}, t.time) },
		"a full batch":     func(_ *talk, p *publication) { p.batchBytes = p.gathered.size + lengthBytes + 1 },
		"a large message":  func(t *talk, _ *publication) { t.s.limits.messageBytesMax = 0 },
		"a lost session":   func(t *talk, _ *publication) { t.s.lost(lost("a test")) },
		"the end":          func(_ *talk, p *publication) { p.close() },
		"an error":         func(t *talk, p *publication) { p.fail(closedError("it")) },
	} {
		t, p := fresh()
		change(t, p)
		if p.more([]byte("x")) != nil {
			t.Errorf("%s: added", name)
		}
	}
	if _, p := fresh(); p.more([]byte("x")) == nil {
		t.Error("never added")
	}
}
