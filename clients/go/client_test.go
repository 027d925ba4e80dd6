package ister

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	zmq "github.com/pebbe/zmq4"
)

// worker is a broker's worker with one topic and one consumer, in a goroutine: it delivers what is published, as far as
// there is credit, and notes what is acknowledged.
type worker struct {
	t        *testing.T
	socket   *zmq.Socket
	peer     []byte
	consumer uint64
	producer uint64
	credit   uint64
	stored   [][]byte
	sent     int
	taken    uint64
	acked    map[uint64]bool
	end      chan struct{}
	ended    chan struct{}
}

func newWorker(t *testing.T) (*worker, string) {
	t.Helper()
	socket, err := zmq.NewSocket(zmq.ROUTER)
	if err != nil {
		t.Fatal(err)
	}
	_ = socket.SetLinger(0)
	_ = socket.SetRcvtimeo(20 * time.Millisecond)
	if err := socket.Bind("tcp://127.0.0.1:*"); err != nil {
		t.Fatal(err)
	}
	endpoint, _ := socket.GetLastEndpoint()
	w := &worker{t: t, socket: socket, acked: map[uint64]bool{}, end: make(chan struct{}), ended: make(chan struct{})}
	go w.run()
	return w, endpoint
}

func (w *worker) stop() {
	close(w.end)
	<-w.ended
}

func (w *worker) run() {
	defer close(w.ended)
	defer func() { _ = w.socket.Close() }()
	for {
		select {
		case <-w.end:
			return
		default:
		}
		parts, err := w.socket.RecvMessageBytes(0)
		if err != nil {
			continue
		}
		w.peer = parts[0]
		h, wrong := decodeHeader(parts[1])
		if wrong != nil {
			w.t.Errorf("the client says %x: %v", parts[1], wrong)
			return
		}
		w.hear(h, parts[2:])
		w.deliver()
	}
}

func (w *worker) say(h header, body ...[]byte) {
	parts := []any{w.peer, encode(map[uint64]any(h))}
	for _, frame := range body {
		parts = append(parts, frame)
	}
	_, _ = w.socket.SendMessage(parts...)
}

func (w *worker) hear(h header, body [][]byte) {
	done := func() {
		if h.has(kRef) {
			w.say(header{kType: tDone, kRef: h.uint(kRef)})
		}
	}
	switch h.uint(kType) {
	case tHello:
		w.say(header{
			kType: tWelcome, kVersion: 1, kSession: make([]byte, 16), kBoot: 1, kHeartbeat: 5000,
			kLimits: map[uint64]uint64{1: 1 << 20, 2: 1 << 20, 3: 64, 4: 1 << 20, 7: 1 << 20, 8: 1 << 30},
		})
	case tPing:
		w.say(header{kType: tPong})
	case tOpenProducer:
		w.producer = h.uint(kHandle)
		w.say(header{
			kType: tOpened, kRef: h.uint(kRef), kHandle: w.producer, kSequence: 0, kBytes: 1 << 20, kStrategy: "reliable",
		})
	case tOpenConsumer:
		w.consumer, w.credit = h.uint(kHandle), h.uint(kMessages)
		w.say(header{
			kType: tOpened, kRef: h.uint(kRef), kHandle: w.consumer, kOffset: 0, kStrategy: "reliable", kTaken: 0,
		})
	case tPublish:
		first := len(w.stored)
		if len(body) == 1 {
			w.stored = append(w.stored, body[0])
		} else {
			at := 0
			for table := body[0]; len(table) > 0; table = table[4:] {
				size := int(binary.LittleEndian.Uint32(table))
				w.stored = append(w.stored, body[1][at:at+size])
				at += size
			}
		}
		w.say(header{kType: tReceipt, kHandle: w.producer, kReceipts: []uint64{h.uint(kSequence), uint64(first)}})
	case tCredit:
		w.credit += h.uint(kMessages)
		if taken := h.uint(kTaken); h.has(kTaken) && taken < w.taken {
			w.t.Errorf("TAKEN fell from %d to %d", w.taken, taken)
		} else {
			w.taken = max(w.taken, taken)
		}
		done()
	case tAck:
		ranges := h.uints(kRanges)
		for i := 0; i+1 < len(ranges); i += 2 {
			for offset := ranges[i]; offset < ranges[i+1]; offset++ {
				if offset >= uint64(w.sent) {
					w.t.Errorf("%d was acknowledged, and not delivered", offset)
				}
				w.acked[offset] = true
			}
		}
		done()
	case tClose:
		done()
	}
}

func (w *worker) deliver() {
	for w.consumer != 0 && w.credit > 0 && w.sent < len(w.stored) {
		count := min(len(w.stored)-w.sent, int(w.credit), 37)
		items := make([]content, count)
		for i := range items {
			items[i].payload = w.stored[w.sent+i]
		}
		_, body := packBatch(items)
		w.say(header{
			kType: tDeliver, kHandle: w.consumer, kOffset: uint64(w.sent), kCount: uint64(count),
			kTimestamps: []uint64{uint64(count), 5},
		}, body...)
		w.sent += count
		w.credit -= uint64(count)
	}
}

func TestManyGoroutinesSendReceiveAndAcknowledge(t *testing.T) {
	const goroutines, each = 4, 1500
	w, endpoint := newWorker(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client, err := Connect(ctx, nil, endpoint)
	if err != nil {
		t.Fatal(err)
	}
	producer, err := client.Producer(ctx, "orders", nil)
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := client.Consumer(ctx, "orders", "all", nil)
	if err != nil {
		t.Fatal(err)
	}
	var sending, receiving sync.WaitGroup
	var mu sync.Mutex
	seen, places := map[string]int{}, map[string]int64{}
	for g := range goroutines {
		sending.Go(func() {
			for i := range each {
				payload := fmt.Sprintf("%d/%d", g, i)
				receipt, err := producer.Send(ctx, Outgoing{Payload: []byte(payload)})
				if err != nil {
					t.Error(err)
					return
				}
				if i%100 == 0 {
					published, err := receipt.Wait(ctx)
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					places[payload] = published.Offset
					mu.Unlock()
				}
			}
		})
		receiving.Go(func() {
			note := func(messages ...*Message) (all int) {
				mu.Lock()
				defer mu.Unlock()
				for _, message := range messages {
					seen[string(message.Payload)]++
					if want, known := places[string(message.Payload)]; known && want != int64(message.Offset) {
						t.Errorf("%s came at %d, and its receipt says %d", message.Payload, message.Offset, want)
					}
				}
				return len(seen)
			}
			for round := 0; ; round++ {
				soon, stop := context.WithTimeout(ctx, 200*time.Millisecond)
				var err error
				all := 0
				switch (round + g) % 3 {
				case 0:
					var came []*Message
					if came, err = consumer.ReceiveBatch(soon, 5); err == nil {
						all = note(came...)
						err = consumer.Ack(came...)
					}
				case 1:
					var came *Batch
					if came, err = consumer.ReceiveTogether(soon, 7); err == nil {
						all = note(came.Messages()...)
						err = consumer.AckBatch(came)
					}
				default:
					var came *Message
					if came, err = consumer.Receive(soon); err == nil {
						all = note(came)
						err = consumer.Ack(came)
					}
				}
				stop()
				if err != nil && Code(err) != "timeout" {
					t.Error(err)
					return
				}
				if err != nil {
					all = note()
				}
				if all == goroutines*each || ctx.Err() != nil {
					return
				}
			}
		})
	}
	sending.Wait()
	if err := producer.Flush(ctx); err != nil {
		t.Error(err)
	}
	receiving.Wait()
	if err := consumer.Flush(ctx); err != nil {
		t.Error(err)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	w.stop()
	for payload, times := range seen {
		if times != 1 {
			t.Errorf("%s came %d times", payload, times)
		}
	}
	if len(seen) != goroutines*each || len(w.acked) != goroutines*each || w.taken < goroutines*each {
		t.Fatalf("%d came, %d were acknowledged, %d told", len(seen), len(w.acked), w.taken)
	}
}
