package ister

import (
	"testing"
	"time"
)

// How much is done for a message of 100 B, without a socket: go test -run none -bench . -benchmem

func BenchmarkReceiveAndAcknowledgeOneByOne(b *testing.B) {
	now := time.Unix(1000, 0)
	s := newSession("test", new(uint64))
	s.phase, s.limits = ready, limits{1 << 20, 1 << 20, 128, 1 << 23, 1 << 20, 1 << 30}
	a := &attachment{handle: 2, topic: "orders", subscription: "all", kind: "exclusive", changed: func() {}}
	a.session = s
	a.open()
	a.phase = pubOpen
	a.window, a.handing.bytes = 1<<20, 1<<40
	items := make([]content, 600)
	for i := range items {
		items[i].payload = make([]byte, 100)
	}
	_, body := packBatch(items)
	b.ReportAllocs()
	offset := uint64(0)
	consumer := &Consumer{Receiver{a: a, client: &Client{home: &connection{session: s, over: true}}}}
	for done := 0; done < b.N; done += len(items) {
		frames := [][]byte{append([]byte(nil), body[0]...), append([]byte(nil), body[1]...)}
		h := header{
			kType: uint64(tDeliver), kOffset: offset, kCount: uint64(len(items)),
			kTimestamps: []uint64{uint64(len(items)), 5},
		}
		if err := a.onFrame(h, frames, now); err != nil {
			b.Fatal(err)
		}
		for {
			message := a.quick()
			if message == nil {
				if message = a.nextOne(now); message == nil {
					break
				}
			}
			if err := consumer.Ack(message); err != nil {
				b.Fatal(err)
			}
		}
		offset += uint64(len(items))
		s.outbox, a.unconfirmed, a.pending = nil, nil, nil
	}
}

func BenchmarkSendOneByOne(b *testing.B) {
	s := newSession("test", new(uint64))
	s.phase, s.limits = ready, limits{1 << 20, 1 << 20, 128, 1 << 23, 1 << 20, 1 << 30}
	p := &publication{
		handle: 1, topic: "orders", id: 7, batchBytes: 64 << 10, linger: time.Millisecond, changed: func() {},
		phase: pubOpen, opened: true, session: s, window: 1 << 30, inFlight: 1 << 30,
	}
	payload := make([]byte, 100)
	producer := &Producer{client: &Client{home: &connection{session: s, over: true}}, p: p, changed: newSignal()}
	b.ReportAllocs()
	for range b.N {
		if _, err := producer.Send(b.Context(), Outgoing{Payload: payload}); err != nil {
			b.Fatal(err)
		}
		if len(p.batches) > 4 {
			s.outbox = nil
			for len(p.batches) > 1 {
				p.resolve(p.batches[0].sequence, 1)
			}
		}
	}
}
