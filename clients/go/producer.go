package ister

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Message is one message as it was delivered.
type Message struct {
	Topic      string
	Offset     uint64
	Payload    []byte
	Key        []byte // nil for none
	Attributes map[string]string
	Timestamp  time.Time // when the broker took it
	DeliverAt  time.Time // zero for at once
	Attempt    int       // 1 for the first delivery

	owner *attachment
	epoch int
}

// Outgoing is a message to be sent. Only Payload is needed.
type Outgoing struct {
	Payload    []byte
	Key        []byte
	Attributes map[string]string
	DeliverAt  time.Time
	// Sequence is the message's number, for a producer with a name: one that was stored before is not stored again.
	// Without it numbers follow each other; they may be left out, at the price of a round trip.
	Sequence *uint64
}

func (o *Outgoing) content() content {
	made := content{payload: o.Payload, key: o.Key, attributes: o.Attributes}
	if !o.DeliverAt.IsZero() {
		made.deliverAt = uint64(o.DeliverAt.UnixMilli())
	}
	return made
}

// Published says where messages are. Offset is -1 for a duplicate so old that the broker has forgotten where it is.
type Published struct {
	Topic     string
	Offset    int64
	Count     int
	Duplicate bool
}

// Receipt is the promise of an answer for what was sent with one call.
type Receipt struct {
	topic    string
	shipment *shipment
	index    uint64
	count    int
}

// Done is closed when the broker has answered.
func (r *Receipt) Done() <-chan struct{} { return r.shipment.done }

// Wait returns where the messages are once they are stored as the topic promises, or why they were refused.
func (r *Receipt) Wait(ctx context.Context) (Published, error) {
	select {
	case <-r.shipment.done:
	default:
		select {
		case <-r.shipment.done:
		case <-ctx.Done():
			return Published{}, whyEnded(ctx, "no receipt from topic "+r.topic)
		}
	}
	if r.shipment.err != nil {
		r.shipment.observed.Store(true)
		return Published{}, r.shipment.err
	}
	told := Published{r.topic, offsetMissing, r.count, r.shipment.duplicate}
	if r.shipment.first != offsetUnknown {
		told.Offset = int64(r.shipment.first + r.index)
	}
	return told, nil
}

// ProducerOptions are what [Client.Producer] may be told.
type ProducerOptions struct {
	Name        string        // the same producer over restarts of the program; a second one of that name fences the first
	BatchBytes  int           // messages gather until there are so many (64 KiB)
	Linger      time.Duration // or so long (1 ms), or until the batch before them is answered
	WindowBytes int           // at most so many are without a receipt (what the broker allows)
}

// Producer sends messages to one topic.
type Producer struct {
	client  *Client
	p       *publication
	changed *signal
}

// Producer opens a producer.
func (c *Client) Producer(ctx context.Context, topic string, options *ProducerOptions) (*Producer, error) {
	if options == nil {
		options = &ProducerOptions{}
	}
	made := &Producer{client: c, changed: newSignal()}
	id := randomID()
	if options.Name != "" {
		id = ProducerID(topic, options.Name)
	}
	c.mu.Lock()
	_, refused := c.attach(func(number uint64) handle {
		made.p = &publication{
			handle: number, topic: topic, id: id, batchBytes: uint64(options.BatchBytes), linger: options.Linger,
			ownWindow: uint64(options.WindowBytes), changed: func() { made.changed.broadcast() },
		}
		if made.p.batchBytes == 0 {
			made.p.batchBytes = 64 << 10
		}
		if made.p.linger == 0 {
			made.p.linger = time.Millisecond
		}
		return made.p
	})
	c.mu.Unlock()
	if refused != nil {
		return nil, refused
	}
	err := c.until(ctx, made.changed, "the producer for topic "+topic+" was not opened", func() (bool, *Error) {
		return made.p.opened, made.p.err
	})
	if err != nil {
		made.abandon()
		return nil, err
	}
	return made, nil
}

// NextSequence is the number of the next message; at first, for a name, the one to go on with.
func (p *Producer) NextSequence() uint64 {
	p.client.mu.Lock()
	defer p.client.mu.Unlock()
	return p.p.next
}

// Topic is where it sends to.
func (p *Producer) Topic() string { return p.p.topic }

func (p *Producer) check() *Error {
	switch {
	case p.p.err != nil:
		return p.p.err
	case p.p.phase == pubClosing || p.p.phase == pubClosed:
		return closedError("the producer for topic " + p.p.topic)
	}
	return nil
}

func (p *Producer) fits(messages []content) *Error {
	session := p.p.session
	if session == nil {
		return nil
	}
	limits, total, around := session.limits, uint64(0), uint64(0)
	for i := range messages {
		size := uint64(len(messages[i].payload))
		if size > limits.messageBytesMax {
			return usage("message-too-large", "message of %d bytes is over message_bytes_max (%d) of topic %q",
				size, limits.messageBytesMax, p.p.topic)
		}
		total += size
		around += sizeOf(&messages[i]) - size
	}
	beside := min(max(limits.batchBytesMax/16, 64), 65536)
	if total+around > limits.batchBytesMax && (len(messages) > 1 || around > beside) {
		return usage("batch-too-large", "batch of %d bytes is over batch_bytes_max (%d) of topic %q",
			total+around, limits.batchBytesMax, p.p.topic)
	}
	return nil
}

// Send has one message taken and returns the promise of an answer. It waits only while the window is full; when the
// context ends first, the message was not taken.
func (p *Producer) Send(ctx context.Context, message Outgoing) (*Receipt, error) {
	made := message.content()
	var receipt *Receipt
	err := p.client.until(ctx, p.changed, "the window of the producer for topic "+p.p.topic+" is full",
		func() (bool, *Error) {
			if err := p.check(); err != nil {
				return false, err
			}
			if err := p.fits([]content{made}); err != nil {
				return false, err
			}
			if made.deliverAt > 0 && p.p.strategy == "non-reliable" {
				return false, usage("invalid-argument", "topic %q is non-reliable: it can delay no message", p.p.topic)
			}
			if message.Sequence != nil {
				switch sequence := *message.Sequence; {
				case sequence < p.p.next:
					into, index := p.p.before(sequence)
					receipt = &Receipt{p.p.topic, into, index, 1}
					return true, nil
				case sequence > p.p.next:
					if !p.p.answered() {
						p.p.seal()
						p.client.connectionOf(p.p).wake()
						return false, nil
					}
					p.p.skipTo(sequence)
				}
			}
			into, index, ok := p.p.take(made, time.Now())
			if ok {
				receipt = &Receipt{p.p.topic, into, index, 1}
				if len(p.p.gathered) <= 1 { // sent, or the first that lingers: the others are waited for already
					p.client.connectionOf(p.p).wake()
				}
			}
			return ok, nil
		})
	return receipt, err
}

// SendBatch has many messages taken at once: one receipt, consecutive offsets.
func (p *Producer) SendBatch(ctx context.Context, messages []Outgoing) (*Receipt, error) {
	if len(messages) == 0 {
		return nil, usage("invalid-argument", "a batch holds at least one message")
	}
	made := make([]content, len(messages))
	for i := range messages {
		made[i] = messages[i].content()
	}
	columns, body := packBatch(made)
	var receipt *Receipt
	err := p.client.until(ctx, p.changed, "the window of the producer for topic "+p.p.topic+" is full",
		func() (bool, *Error) {
			if err := p.check(); err != nil {
				return false, err
			}
			if err := p.fits(made); err != nil {
				return false, err
			}
			into, ok := p.p.takeBatch(made, columns, body)
			if ok {
				receipt = &Receipt{p.p.topic, into, 0, len(made)}
			}
			p.client.connectionOf(p.p).wake()
			return ok, nil
		})
	return receipt, err
}

// Flush waits until everything taken so far is answered. It returns the error of a refused message whose receipt
// nobody has looked at.
func (p *Producer) Flush(ctx context.Context) error {
	return p.client.until(ctx, p.changed, "no receipts from topic "+p.p.topic, func() (bool, *Error) {
		p.p.seal()
		p.client.connectionOf(p.p).wake()
		if !p.p.answered() {
			return false, p.p.err
		}
		refused := p.p.refused
		p.p.refused = nil
		if refused != nil && !refused.observed.Load() {
			return true, refused.err
		}
		return true, nil
	})
}

// Close flushes, and tells the broker that this producer is done. Closing again does nothing.
func (p *Producer) Close(ctx context.Context) error {
	p.client.mu.Lock()
	over := p.p.phase == pubClosed || p.client.closed
	p.client.mu.Unlock()
	if over {
		return nil
	}
	err := p.Flush(ctx)
	p.client.mu.Lock()
	p.p.close()
	p.client.connectionOf(p.p).wake()
	p.client.mu.Unlock()
	if err == nil {
		err = p.client.until(ctx, p.changed, "the broker did not confirm the close of a producer", func() (bool, *Error) {
			return p.p.phase == pubClosed, nil
		})
	}
	p.abandon()
	return err
}

func (p *Producer) abandon() {
	p.client.mu.Lock()
	defer p.client.mu.Unlock()
	p.p.close()
	p.client.connectionOf(p.p).wake()
	p.p.fail(closedError("the producer for topic " + p.p.topic))
	p.client.let(p.p)
}

// Code returns the stable code of an error: the broker's, or "timeout" and "cancelled" for those of a context.
func Code(err error) string {
	var told *Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &told):
		return told.Code
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "cancelled"
	}
	return fmt.Sprintf("%T", err)
}
