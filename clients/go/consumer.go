package ister

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"time"
	"unicode/utf8"
)

// delayMost is the longest delay that a broker takes.
const delayMost = 24 * time.Hour

// Event is what a broker tells a consumer besides messages; Offset is -1 where it says none. PROTOCOL.md, section 9,
// lists the codes.
type Event struct {
	Code   string
	Count  uint64
	Text   string
	Offset int64
	Topic  string
}

// Start is where a new subscription, or a reader, begins.
type Start struct{ value any }

// Earliest is the first message that is kept.
func Earliest() Start { return Start{"earliest"} }

// Latest is behind the last message.
func Latest() Start { return Start{"latest"} }

// AtOffset is one message.
func AtOffset(offset uint64) Start { return Start{offset} }

// AtTime is the first message taken in at or after a time.
func AtTime(when time.Time) Start { return Start{fmt.Sprintf("time:%d", when.UnixMilli())} }

// ConsumerOptions are what [Client.Consumer] may be told.
type ConsumerOptions struct {
	Type           string         // "shared" (the default), "exclusive", "failover", "key-shared"
	Start          Start          // of a new subscription; Latest by default
	Priority       int            // of a failover consumer: lower is preferred
	Force          bool           // takes an exclusive subscription over
	CreditMessages int            // a fixed number of messages that may wait here; by default it follows the program's pace
	CreditBytes    int            // so many bytes of messages may wait here (8 MiB), or one delivery
	WaitForPlace   bool           // of an exclusive subscription that somebody has
	Options        map[string]any // of a new subscription: PROTOCOL.md, section 10
}

// Receiver is what consumers and readers have in common.
type Receiver struct {
	client  *Client
	a       *attachment
	changed *signal
}

// Consumer receives the messages of one subscription.
type Consumer struct{ Receiver }

// Reader reads a topic, without a subscription and without acknowledgments.
type Reader struct{ Receiver }

// Consumer opens a consumer; a subscription that does not exist is created.
func (c *Client) Consumer(ctx context.Context, topic, subscription string, options *ConsumerOptions) (*Consumer, error) {
	if options == nil {
		options = &ConsumerOptions{}
	}
	made := newAttachment(topic, subscription, options)
	receiver, err := c.openReceiver(ctx, made)
	if err != nil {
		return nil, err
	}
	return &Consumer{*receiver}, nil
}

func newAttachment(topic, subscription string, options *ConsumerOptions) *attachment {
	made := &attachment{
		topic: topic, subscription: subscription, kind: options.Type, start: options.Start.value,
		priority: uint64(max(0, options.Priority)), force: options.Force, arguments: options.Options,
		fixed: uint64(max(0, options.CreditMessages)), patient: options.WaitForPlace,
	}
	made.handing.bytes = uint64(max(0, options.CreditBytes))
	if made.kind == "" {
		made.kind = "shared"
		if options.Force {
			made.kind = "exclusive"
		}
	}
	return made
}

// Reader opens a reader.
func (c *Client) Reader(ctx context.Context, topic string, start Start, creditMessages int) (*Reader, error) {
	if start.value == nil {
		start = Earliest()
	}
	receiver, err := c.openReceiver(ctx, &attachment{
		topic: topic, subscription: fmt.Sprintf("reader-%016x", rand.Uint64()), kind: "reader", start: start.value,
		fixed: uint64(max(0, creditMessages)),
	})
	if err != nil {
		return nil, err
	}
	return &Reader{*receiver}, nil
}

func (c *Client) openReceiver(ctx context.Context, a *attachment) (*Receiver, error) {
	made := &Receiver{client: c, a: a, changed: newSignal()}
	a.changed = made.changed.broadcast
	c.mu.Lock()
	_, refused := c.attach(func(number uint64) handle {
		a.handle = number
		return a
	})
	c.mu.Unlock()
	if refused != nil {
		return nil, refused
	}
	err := c.until(ctx, made.changed, fmt.Sprintf("the %s of %q was not opened", what(a), a.topic),
		func() (bool, *Error) { return a.opened, a.err })
	if err != nil {
		c.mu.Lock()
		trouble := a.trouble
		c.mu.Unlock()
		made.abandon()
		if trouble != nil && trouble.Code == busy {
			return nil, trouble
		}
		return nil, err
	}
	return made, nil
}

func what(a *attachment) string {
	if a.reader() {
		return "reader"
	}
	return "consumer " + a.subscription
}

// Topic is where it receives from.
func (r *Receiver) Topic() string { return r.a.topic }

// Position is where it stood when it was opened last.
func (r *Receiver) Position() uint64 {
	r.client.mu.Lock()
	defer r.client.mu.Unlock()
	return r.a.position
}

// Events returns what the broker told besides messages since the last call, oldest first; at most the last 256.
func (r *Receiver) Events() []Event {
	r.client.mu.Lock()
	defer r.client.mu.Unlock()
	events := r.a.events
	r.a.events = nil
	return events
}

func (r *Receiver) check() *Error {
	switch {
	case r.a.err != nil:
		return r.a.err
	case r.a.complaint != nil:
		complaint := r.a.complaint
		r.a.complaint = nil
		return complaint
	case r.a.phase == pubClosing || r.a.phase == pubClosed:
		return closedError("the " + what(r.a))
	}
	return nil
}

// Receive returns the next message, and waits for it.
func (r *Receiver) Receive(ctx context.Context) (*Message, error) {
	if message := r.a.quick(); message != nil {
		return message, nil
	}
	var taken *Message
	err := r.client.until(ctx, r.changed, "no message from "+r.a.topic, func() (bool, *Error) {
		taken = r.a.nextOne(time.Now())
		r.said()
		if taken != nil {
			return true, nil
		}
		return false, r.why()
	})
	return taken, err
}

// ReceiveBatch returns messages that came together, at least one and at most so many.
func (r *Receiver) ReceiveBatch(ctx context.Context, most int) ([]*Message, error) {
	var taken []*Message
	err := r.client.until(ctx, r.changed, "no message from "+r.a.topic, func() (bool, *Error) {
		taken = r.a.next(max(1, most), time.Now())
		r.said()
		if taken != nil {
			return true, nil
		}
		return false, r.why()
	})
	return taken, err
}

// why returns the error because of which nothing comes; nil where something may come yet.
func (r *Receiver) why() *Error {
	if err := r.check(); err != nil {
		return err
	}
	return r.a.harm()
}

// said has what was said to the broker sent (lock held).
func (r *Receiver) said() {
	if at := r.client.connectionOf(r.a); len(at.session.outbox) > 0 {
		at.wake()
	}
}

// All yields messages for ever, until the context ends or something fails; the last pair has the error. Where the loop
// is left by a panic, the messages in hand have failed, as if the program had been killed: see [Consumer.Fail].
func (r *Receiver) All(ctx context.Context) iter.Seq2[*Message, error] {
	return forever(ctx, r.Receive, r.fail)
}

func forever(
	ctx context.Context, receive func(context.Context) (*Message, error), fail func(reason string),
) iter.Seq2[*Message, error] {
	return func(yield func(*Message, error) bool) {
		orderly := false
		defer func() {
			if !orderly {
				fail("the program panicked")
			}
		}()
		for {
			message, err := receive(ctx)
			if !yield(message, err) || err != nil {
				orderly = true
				return
			}
		}
	}
}

func (r *Receiver) fail(reason string) {
	r.client.mu.Lock()
	defer r.client.mu.Unlock()
	r.a.fails(reason)
	r.said()
}

// Dropped is how many messages a non-reliable topic has dropped here, because this program was too slow.
func (r *Receiver) Dropped() uint64 {
	r.client.mu.Lock()
	defer r.client.mu.Unlock()
	return r.a.dropped
}

// Close sends the acknowledgments made so far and leaves. Closing again does nothing.
func (r *Receiver) Close(ctx context.Context) error {
	r.client.mu.Lock()
	if r.a.phase == pubClosed || r.client.closed {
		r.client.mu.Unlock()
		return nil
	}
	r.a.close()
	r.client.connectionOf(r.a).wake()
	r.client.mu.Unlock()
	err := r.client.until(ctx, r.changed, "the broker did not confirm the close of the "+what(r.a), func() (bool, *Error) {
		return r.a.phase == pubClosed, nil
	})
	r.abandon()
	return err
}

func (r *Receiver) abandon() {
	r.client.mu.Lock()
	defer r.client.mu.Unlock()
	r.a.close()
	r.client.connectionOf(r.a).wake()
	r.a.fail(closedError("the " + what(r.a)))
	r.client.let(r.a)
}

var errForgotten = lost("the broker forgot what some acknowledgments were about; it delivers those messages again")
var errElsewhere = usage("invalid-argument", "this message came from another consumer: acknowledge it there")

func (c *Consumer) with(messages []*Message, do func(now time.Time)) error {
	for _, message := range messages {
		if message.delivery == nil || message.delivery.owner != c.a {
			return errElsewhere
		}
	}
	return c.do(do)
}

func (c *Consumer) do(what func(now time.Time)) error {
	c.client.mu.Lock()
	defer c.client.mu.Unlock()
	if err := c.check(); err != nil {
		return err
	}
	c.client.speak(c.a, what)
	return nil
}

// speak says something about a consumer's messages (lock held).
func (c *Client) speak(a *attachment, what func(now time.Time)) {
	waited := !a.ackDue.IsZero()
	what(time.Now())
	at := c.connectionOf(a)
	if (!waited && !a.ackDue.IsZero()) || len(at.session.outbox) > 0 { // else it looks by itself when they are due
		at.wake()
	}
}

// Ack acknowledges messages: they are not delivered to this subscription again. Acknowledgments are sent within a few
// milliseconds; Flush waits until they are written.
func (c *Consumer) Ack(messages ...*Message) error {
	if len(messages) == 1 && c.a.quickAck(messages[0]) {
		return nil
	}
	return c.with(messages, func(now time.Time) { c.a.ack(messages, now) })
}

// Fail has every message fail that this program has in hand, as if it had been killed: for a program that is about to end
// by an error of its own, and that a message may have to do with. Otherwise a message that ends its program would come
// again for ever.
func (c *Consumer) Fail(reason string) { c.fail(reason) }

// Active says whether a consumer of a failover subscription is the active one; false, false where the broker has not
// said.
func (c *Consumer) Active() (active, known bool) {
	c.client.mu.Lock()
	defer c.client.mu.Unlock()
	if c.a.active == nil {
		return false, false
	}
	return *c.a.active, true
}

// AckUntil acknowledges everything up to and including a message: of the whole subscription (exclusive, failover), or
// of what this consumer was given.
func (c *Consumer) AckUntil(message *Message) error {
	return c.with([]*Message{message}, func(now time.Time) { c.a.ackUntil(message, now) })
}

// Nack gives messages back, to be delivered again after the subscription's back-off. The reason is for people.
func (c *Consumer) Nack(reason string, messages ...*Message) error {
	return c.nack(nil, reason, messages)
}

// NackAfter gives messages back, to be delivered again after a delay of at most a day; 0 means at once.
func (c *Consumer) NackAfter(delay time.Duration, reason string, messages ...*Message) error {
	return c.nack(&delay, reason, messages)
}

func (c *Consumer) nack(delay *time.Duration, reason string, messages []*Message) error {
	if err := checkNack(delay, reason); err != nil {
		return err
	}
	return c.with(messages, func(time.Time) { c.a.nack(messages, delay, reason) })
}

func checkNack(delay *time.Duration, reason string) error {
	if delay != nil && (*delay < 0 || *delay > delayMost) {
		return usage("invalid-argument", "a delay of %s is not from 0 to %s: publish the message again, with a time",
			*delay, delayMost)
	}
	if utf8.RuneCountInString(reason) > reasonMost {
		return usage("invalid-argument", "a reason has at most %d characters", reasonMost)
	}
	return nil
}

// Extend says that messages are still being worked on: their acknowledgment timeout begins anew.
func (c *Consumer) Extend(messages ...*Message) error {
	return c.with(messages, func(time.Time) { c.a.extend(messages) })
}

// Flush waits until the broker has written every acknowledgment made so far. The error "connection-lost" says that the
// broker forgot what it had delivered: those messages are delivered again.
func (c *Consumer) Flush(ctx context.Context) error {
	return c.client.until(ctx, c.changed, "acknowledgments were not confirmed", func() (bool, *Error) {
		if err := c.check(); err != nil {
			return false, err
		}
		if !c.a.settled() {
			c.a.flush(true)
			c.client.connectionOf(c.a).wake()
			return false, nil
		}
		if c.a.forgotten {
			c.a.forgotten = false
			return false, errForgotten
		}
		return true, nil
	})
}

// Seek moves the whole subscription and returns the offset of the next message.
func (c *Consumer) Seek(ctx context.Context, to Start) (uint64, error) {
	c.client.mu.Lock()
	epoch := c.a.epoch
	c.a.flush(false)
	c.client.connectionOf(c.a).wake()
	c.client.mu.Unlock()
	position, err := c.client.Seek(ctx, c.a.topic, c.a.subscription, to)
	if err != nil {
		return 0, err
	}
	err = c.client.until(ctx, c.changed, "the news of the move has not come", func() (bool, *Error) {
		standby := c.a.active != nil && !*c.a.active
		return c.a.epoch != epoch || c.a.phase != pubOpen || standby, c.a.err
	})
	return position, err
}
