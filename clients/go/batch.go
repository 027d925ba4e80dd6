package ister

import (
	"context"
	"encoding/binary"
	"iter"
	"time"
)

// Batch is messages that came together, as they came: each is made when the program looks at it. It is the fastest way to
// receive. Acknowledge it with [Consumer.AckBatch], or its messages one by one.
type Batch struct {
	part *delivery
	at   int // of the first; the part's count is behind the last
}

// Len is how many messages it has.
func (b *Batch) Len() int { return b.part.count - b.at }

// Payloads yields the payloads in order.
func (b *Batch) Payloads() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		from := b.part.payloadAt
		for i := b.at; i < b.part.count; i++ {
			end := from + int(binary.LittleEndian.Uint32(b.part.lengths[lengthBytes*i:]))
			if !yield(b.part.payloads[from:end:end]) {
				return
			}
			from = end
		}
	}
}

// Messages returns the messages in order.
func (b *Batch) Messages() []*Message {
	cursor := *b.part
	room, found := make([]Message, b.Len()), make([]*Message, b.Len())
	for i := range found {
		cursor.fill(&room[i])
		room[i].delivery = b.part
		found[i] = &room[i]
	}
	return found
}

// spans returns the offsets.
func (b *Batch) spans() []span {
	left, first, found := uint64(b.Len()), b.part.offset, make([]span, 0, 1)
	for ranges := b.part.ranges; ; ranges = ranges[2:] {
		end := min(ranges[1], first+left)
		found = append(found, span{first, end})
		if left -= end - first; left == 0 {
			return found
		}
		first = ranges[2]
	}
}

// split takes the next messages off a delivery.
func (d *delivery) split(count int) *delivery {
	part := *d
	part.count = d.at + count
	if part.count == d.count {
		d.at = d.count
		return &part
	}
	var passed Message
	for range count {
		d.fill(&passed)
	}
	return &part
}

// nextBatch hands out up to most messages that came together, as they came.
func (a *attachment) nextBatch(most int, now time.Time) *Batch {
	g := &a.handing
	count := a.regain(most, now)
	if count == 0 {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	at := g.inHand.at
	return &Batch{g.inHand.split(count), at}
}

// ReceiveTogether returns messages that came together, at least one and at most so many, without making a [Message] of
// each.
func (r *Receiver) ReceiveTogether(ctx context.Context, most int) (*Batch, error) {
	var taken *Batch
	err := r.client.until(ctx, r.changed, "no message from "+r.a.topic, func() (bool, *Error) {
		taken = r.a.nextBatch(max(1, most), time.Now())
		r.said()
		if taken != nil {
			return true, nil
		}
		return false, r.why()
	})
	return taken, err
}

// AckBatch acknowledges all messages of a batch.
func (c *Consumer) AckBatch(batch *Batch) error {
	if batch.part.owner != c.a {
		return errElsewhere
	}
	return c.do(func(now time.Time) { c.a.ackSpans(batch.part, batch.spans(), now) })
}
