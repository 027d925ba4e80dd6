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
