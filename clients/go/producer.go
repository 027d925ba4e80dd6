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

	delivery *delivery
	broken   *Error
}

// AttributesError says why Attributes are missing: what was published as such is none. Nil where they are right.
func (m *Message) AttributesError() error {
	if m.broken == nil {
		return nil
	}
	return m.broken
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
	if len(o.Attributes) > 0 {
		made.encoded = encode(o.Attributes)
	}
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
			return Published{}, whyEnded(ctx, "no receipt from topic "+r.shipment.topic)
		}
	}
	if r.shipment.err != nil {
		r.shipment.observed.Store(true)
		return Published{}, r.shipment.err
	}
	told := Published{r.shipment.topic, offsetMissing, r.count, r.shipment.duplicate}
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

func (p *Producer) strategy() string {
	p.client.mu.Lock()
	defer p.client.mu.Unlock()
	return p.p.strategy
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

// fits refuses what is over a limit: a batch of so many messages, of which the largest payload has so many bytes, all
// payloads together so many, and all frames so many.
func (p *Producer) fits(count int, largest, payloads, size uint64) *Error {
	session := p.p.session
	if session == nil {
		return nil
	}
	limits := session.limits
	if largest > limits.messageBytesMax {
		return usage("message-too-large", "message of %d bytes is over message_bytes_max (%d) of topic %q",
			largest, limits.messageBytesMax, p.p.topic)
	}
	beside := min(max(limits.batchBytesMax/16, 64), 65536)
	if size > limits.batchBytesMax && (count > 1 || size-payloads > beside) {
		return usage("batch-too-large", "batch of %d bytes is over batch_bytes_max (%d) of topic %q",
			size, limits.batchBytesMax, p.p.topic)
	}
	return nil
}

func (p *Producer) delays(any bool) *Error {
	if any && p.p.strategy == "non-reliable" {
		return usage("invalid-argument", "topic %q is non-reliable: it can delay no message", p.p.topic)
	}
	return nil
}

// Send has one message taken and returns the promise of an answer. It waits only while the window is full; when the
// context ends first, the message was not taken.
func (p *Producer) Send(ctx context.Context, message Outgoing) (*Receipt, error) {
	if message.Key == nil && message.Attributes == nil && message.Sequence == nil && message.DeliverAt.IsZero() {
		p.client.mu.Lock()
		receipt := p.p.more(message.Payload)
		p.client.mu.Unlock()
		if receipt != nil {
			return receipt, nil
		}
	}
	made := message.content()
	p.client.mu.Lock()
	receipt, err := p.send(&made, message.Sequence)
	p.client.mu.Unlock()
	if receipt != nil {
		return receipt, nil
	}
	if err != nil {
		return nil, err
	}
	why := p.client.until(ctx, p.changed, "the window of the producer for topic "+p.p.topic+" is full",
		func() (bool, *Error) {
			receipt, err = p.send(&made, message.Sequence)
			return receipt != nil, err
		})
	return receipt, why
}

// send has a message taken, if there is room; nil where it must wait (lock held).
func (p *Producer) send(made *content, number *uint64) (*Receipt, *Error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	payload := uint64(len(made.payload))
	if err := p.fits(1, payload, payload, sizeOf(made)); err != nil {
		return nil, err
	}
	if err := p.delays(made.deliverAt > 0); err != nil {
		return nil, err
	}
	if number != nil {
		switch sequence := *number; {
		case sequence < p.p.next:
			into, index := p.p.before(sequence)
			return into.receipt(index), nil
		case sequence > p.p.next:
			if !p.p.answered() {
				p.p.seal()
				p.client.connectionOf(p.p).wake()
				return nil, nil
			}
			p.p.skipTo(sequence)
		}
	}
	sent := len(p.p.batches)
	into, index, ok := p.p.take(made, time.Now)
	if !ok {
		return nil, nil
	}
	if len(p.p.batches) > sent || p.p.gathered.count == 1 { // the others linger already
		p.client.connectionOf(p.p).wake()
	}
	return into.receipt(index), nil
}

// SendBatch has many messages taken at once: one receipt, consecutive offsets.
func (p *Producer) SendBatch(ctx context.Context, messages []Outgoing) (*Receipt, error) {
	if len(messages) == 0 {
		return nil, usage("invalid-argument", "a batch holds at least one message")
	}
	payloads, largest := 0, 0
	for i := range messages {
		payloads, largest = payloads+len(messages[i].Payload), max(largest, len(messages[i].Payload))
	}
	together := newGathering(len(messages), payloads)
	for i := range messages {
		made := messages[i].content()
		together.add(&made, together.wouldBe(&made))
	}
	size := together.size
	return p.sendTogether(ctx, len(messages), largest, payloads, size, &together)
}

// SendPayloads is SendBatch of messages that are payloads and nothing else.
func (p *Producer) SendPayloads(ctx context.Context, messages [][]byte) (*Receipt, error) {
	if len(messages) == 0 {
		return nil, usage("invalid-argument", "a batch holds at least one message")
	}
	payloads, largest := 0, 0
	for _, payload := range messages {
		payloads, largest = payloads+len(payload), max(largest, len(payload))
	}
	together := newGathering(len(messages), payloads)
	for _, payload := range messages {
		together.payloads.add(payload)
	}
	together.count = len(messages)
	return p.sendTogether(ctx, len(messages), largest, payloads, uint64(payloads+lengthBytes*len(messages)), &together)
}

func (p *Producer) sendTogether(
	ctx context.Context, count, largest, payloads int, size uint64, together *gathering,
) (*Receipt, error) {
	columns, body := together.seal()
	if len(body) == 1 { // a batch has its lengths, of one message too
		body = [][]byte{lengthOf(body[0]), body[0]}
	}
	var receipt *Receipt
	err := p.client.until(ctx, p.changed, "the window of the producer for topic "+p.p.topic+" is full",
		func() (bool, *Error) {
			if err := p.check(); err != nil {
				return false, err
			}
			if err := p.fits(count, uint64(largest), uint64(payloads), size); err != nil {
				return false, err
			}
			if err := p.delays(columns&columnTimes != 0); err != nil {
				return false, err
			}
			into, ok := p.p.takeBatch(uint64(count), columns, body)
			if ok {
				receipt = &Receipt{into, 0, count}
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
