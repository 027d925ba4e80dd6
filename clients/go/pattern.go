package ister

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// The consumer of a pattern: one consumer for each topic that matches, presented as one. Which topics there are is asked
// of the broker (`topic.watch`); following.go decides which of them are wanted.
//
// Invariants
//   - topics take turns: none starves another
//   - an acknowledgment goes to the topic of its message; that of a deleted topic's is passed over
//   - whoever receives follows topics as well: nothing runs in the background
//   - the topics share the credit, so that memory is bounded however many they are

// PatternConsumer receives the messages of every topic that matches a pattern; made by [Client.PatternConsumer].
type PatternConsumer struct {
	client       *Client
	pattern      string
	subscription string
	options      ConsumerOptions
	changed      *signal

	// with the client's lock
	members  map[string]*member
	turns    []*member // those that have something, in order
	followed following
	watch    *request
	plain    bool // the broker does not say which topics were created meanwhile
	first    bool // the answer that is awaited is the first
	events   []Event
	dropped  uint64             // by topics that are gone
	suspects map[string]*member // whose subscription was deleted, perhaps with the topic
	over     bool

	current atomic.Pointer[attachment] // what was received from last
}

type member struct {
	a       *attachment
	created uint64
	waits   bool // in turns
}

// PatternConsumer opens a consumer of every topic that matches a pattern: `*` is one part of a name, `>` at the end one
// part or more, as in "orders/*". Each of the topics has a subscription of that name. Topics that are created later are
// consumed from their beginning, also those that were created while no such consumer was connected. Dead-letter topics,
// and names that end in ".dlq", are left out.
func (c *Client) PatternConsumer(
	ctx context.Context, pattern, subscription string, options *ConsumerOptions,
) (*PatternConsumer, error) {
	if err := checkPattern(pattern); err != nil {
		return nil, err
	}
	p := &PatternConsumer{
		client: c, pattern: pattern, subscription: subscription, changed: newSignal(), first: true,
		members: map[string]*member{}, suspects: map[string]*member{},
	}
	if options != nil {
		p.options = *options
	}
	letters, _ := p.options.Options["dead_letter_topic"].(string)
	p.followed = newFollowing(letters)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, closedError("the client")
	}
	p.look()
	c.mu.Unlock()
	err := c.until(ctx, p.changed, "the consumer of "+pattern+" was not opened", func() (bool, *Error) {
		if err := p.follow(); err != nil {
			return false, err
		}
		if p.first {
			return false, nil
		}
		for topic, each := range p.members {
			switch {
			case each.a.err != nil && !isGone(each.a.err):
				return false, ofTopic(topic, each.a.err)
			case each.a.err == nil && !each.a.opened:
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		c.mu.Lock()
		for topic, each := range p.members {
			if trouble := each.a.trouble; trouble != nil && trouble.Code == busy {
				err = ofTopic(topic, trouble)
			}
		}
		p.end()
		c.mu.Unlock()
		return nil, err
	}
	return p, nil
}

func isGone(err *Error) bool { return err.Code == "topic-deleted" || err.Code == "unknown-topic" }

func ofTopic(topic string, err *Error) *Error {
	return &Error{err.Code, err.Action, fmt.Sprintf("topic %q: %s", topic, err.Text)}
}

// ---- which topics there are (lock held)

// look asks for all topics that match, and which were created while nobody was here.
func (p *PatternConsumer) look() {
	arguments := map[string]any{"pattern": p.pattern}
	if !p.plain {
		arguments["subscription"] = p.subscription
	}
	p.ask(arguments)
}

func (p *PatternConsumer) ask(arguments map[string]any) {
	c := p.client
	if p.watch != nil {
		c.home.session.withdraw(p.watch)
	}
	p.watch = &request{operation: "topic.watch", arguments: arguments, done: make(chan struct{}), told: p.changed.broadcast}
	c.home.session.ask(p.watch, time.Now())
	c.home.wake()
}

// follow does what the broker's answer asks for, if there is one.
func (p *PatternConsumer) follow() *Error {
	for p.watch != nil && p.watch.over {
		answered := p.watch
		p.watch = nil
		if err := answered.err; err != nil {
			if err.Code == "closed" {
				return err
			}
			known := !p.plain && err.Code == "invalid-argument"
			p.plain = p.plain || known
			p.look()
			if known {
				continue
			}
			return err
		}
		told := Info{}
		if err := decodeResult(answered.result, (*map[string]any)(&told)); err != nil {
			p.look()
			return err
		}
		if err := p.take(told); err != nil {
			return err
		}
	}
	return nil
}

func (p *PatternConsumer) take(told Info) *Error {
	listed, meanwhile := map[string]uint64{}, map[string]bool{}
	topics, _ := told["topics"].([]any)
	for _, each := range topics {
		members, _ := each.(map[any]any)
		topic, _ := members["topic"].(string)
		listed[topic] = number(members["created_ms"])
		meanwhile[topic], _ = members["later"].(bool)
	}
	var refused *Error
	for topic, each := range p.suspects { // is the topic there, and only its subscription gone?
		if created, there := listed[topic]; there && created == each.created {
			p.followed.refuse(topic, created)
			refused = ofTopic(topic, each.a.err)
		}
	}
	clear(p.suspects)
	present := map[string]uint64{}
	for topic, each := range p.members {
		present[topic] = each.created
	}
	come, gone := p.followed.changes(listed, present)
	for _, topic := range gone {
		p.leave(p.members[topic])
	}
	if len(come)+len(gone) > 0 {
		messages, size := p.shares(len(p.members) + len(come))
		for _, each := range p.members {
			each.a.share(messages, size)
			p.send(each.a)
		}
		for _, topic := range come {
			p.join(topic, listed[topic], meanwhile[topic] || !p.first, messages, size)
		}
	}
	p.first = false
	p.ask(map[string]any{"pattern": p.pattern, "version": told["version"]})
	return refused
}

func (p *PatternConsumer) shares(topics int) (messages, size uint64) {
	messages = cmp.Or(uint64(max(0, p.options.CreditMessages)), windowMost)
	size = cmp.Or(uint64(max(0, p.options.CreditBytes)), creditBytes)
	return max(1, messages/uint64(topics)), max(min(1024, size), size/uint64(topics))
}

func (p *PatternConsumer) join(topic string, created uint64, later bool, messages, size uint64) {
	options := p.options
	if later {
		options.Start = Earliest()
	}
	a := newAttachment(topic, p.subscription, &options)
	a.group, a.most = p, messages
	if a.fixed > 0 {
		a.fixed = messages
	}
	a.handing.bytes = size
	made := &member{a: a, created: created}
	a.changed = func() {
		p.line(made)
		p.changed.broadcast()
	}
	a.onEvent = func(told Event) {
		if p.events = append(p.events, told); len(p.events) > eventsKept {
			p.events = p.events[1:]
		}
	}
	p.members[topic] = made
	if _, err := p.client.attach(func(number uint64) handle { a.handle = number; return a }); err != nil {
		a.fail(err)
	}
}

// line has a topic wait for its turn.
func (p *PatternConsumer) line(m *member) {
	if !m.waits {
		m.waits = true
		p.turns = append(p.turns, m)
	}
}

func (p *PatternConsumer) leave(m *member) {
	if p.members[m.a.topic] == m {
		delete(p.members, m.a.topic)
	}
	p.dropped += m.a.dropped
	m.a.close()
	p.client.let(m.a)
	m.a.fail(closedError("the " + what(m.a)))
}

// lost is for a topic whose consumer the broker has closed: an error, unless the topic is gone.
func (p *PatternConsumer) lost(m *member) *Error {
	if p.members[m.a.topic] != m {
		return nil
	}
	err := m.a.err
	p.leave(m)
	switch {
	case isGone(err):
		p.look()
		return nil
	case err.Code == "subscription-deleted":
		p.suspects[m.a.topic] = m
		p.look()
		return nil
	}
	p.followed.refuse(m.a.topic, m.created)
	return ofTopic(m.a.topic, err)
}

// end leaves every topic.
func (p *PatternConsumer) end() {
	p.over = true
	if p.watch != nil {
		p.client.home.session.withdraw(p.watch)
	}
	for _, each := range p.members {
		p.leave(each)
	}
	p.changed.broadcast()
}

func (p *PatternConsumer) send(a *attachment) {
	if at := p.client.connectionOf(a); len(at.session.outbox) > 0 {
		at.wake()
	}
}

func (p *PatternConsumer) check() *Error {
	switch {
	case p.client.closed:
		return closedError("the client")
	case p.over:
		return closedError("the consumer of " + p.pattern)
	}
	return nil
}

// ---- receiving

// turn lets the topics take turns until one hands something out (lock held).
func (p *PatternConsumer) turn(take func(a *attachment) bool) (bool, *Error) {
	if err := p.check(); err != nil {
		return false, err
	}
	if err := p.follow(); err != nil {
		return false, err
	}
	for len(p.turns) > 0 {
		m := p.turns[0]
		p.turns[0] = nil
		p.turns, m.waits = p.turns[1:], false
		if p.members[m.a.topic] != m {
			continue
		}
		m.a.sharing = uint64(len(p.turns) + 1)
		taken := take(m.a)
		if m.a.hasSome() {
			p.line(m)
		}
		p.send(m.a)
		if taken {
			p.current.Store(m.a)
			return true, nil
		}
		if complaint := m.a.complaint; complaint != nil {
			m.a.complaint = nil
			return false, ofTopic(m.a.topic, complaint)
		}
		if damage := m.a.harm(); damage != nil {
			return false, ofTopic(m.a.topic, damage)
		}
		if m.a.err != nil {
			if err := p.lost(m); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

// Receive returns the next message of any of the topics, and waits for it.
func (p *PatternConsumer) Receive(ctx context.Context) (*Message, error) {
	if a := p.current.Load(); a != nil {
		if message := a.quick(); message != nil {
			return message, nil
		}
	}
	var taken *Message
	err := p.client.until(ctx, p.changed, "no message from "+p.pattern, func() (bool, *Error) {
		return p.turn(func(a *attachment) bool {
			taken = a.nextOne(time.Now())
			return taken != nil
		})
	})
	return taken, err
}

// ReceiveBatch returns messages of one topic that came together, at least one and at most so many.
func (p *PatternConsumer) ReceiveBatch(ctx context.Context, most int) ([]*Message, error) {
	var taken []*Message
	err := p.client.until(ctx, p.changed, "no message from "+p.pattern, func() (bool, *Error) {
		return p.turn(func(a *attachment) bool {
			taken = a.next(max(1, most), time.Now())
			return taken != nil
		})
	})
	return taken, err
}

// All yields messages for ever, until the context ends or something fails; the last pair has the error.
func (p *PatternConsumer) All(ctx context.Context) iter.Seq2[*Message, error] {
	return forever(ctx, p.Receive, p.Fail)
}

// Topics returns the topics that it receives from at present, by name.
func (p *PatternConsumer) Topics() []string {
	p.client.mu.Lock()
	defer p.client.mu.Unlock()
	return slices.Sorted(maps.Keys(p.members))
}

// Events returns what the broker told besides messages since the last call, of all topics, oldest first; at most the
// last 256.
func (p *PatternConsumer) Events() []Event {
	p.client.mu.Lock()
	defer p.client.mu.Unlock()
	events := p.events
	p.events = nil
	return events
}

// Dropped is how many messages non-reliable topics have dropped here, because this program was too slow.
func (p *PatternConsumer) Dropped() uint64 {
	p.client.mu.Lock()
	defer p.client.mu.Unlock()
	sum := p.dropped
	for _, each := range p.members {
		sum += each.a.dropped
	}
	return sum
}

// ---- acknowledging

// of calls a function for the messages of each topic; those of deleted topics are passed over.
func (p *PatternConsumer) of(messages []*Message, do func(a *attachment, messages []*Message, now time.Time)) error {
	parts := map[*attachment][]*Message{}
	for _, message := range messages {
		if message.delivery == nil || message.delivery.owner.group != p {
			return errElsewhere
		}
		parts[message.delivery.owner] = append(parts[message.delivery.owner], message)
	}
	p.client.mu.Lock()
	defer p.client.mu.Unlock()
	if err := p.check(); err != nil {
		return err
	}
	for a, part := range parts {
		if a.phase != pubClosed && a.phase != pubClosing {
			p.client.speak(a, func(now time.Time) { do(a, part, now) })
		}
	}
	return nil
}

// Ack acknowledges messages: they are not delivered to this subscription of their topic again.
func (p *PatternConsumer) Ack(messages ...*Message) error {
	if len(messages) == 1 && messages[0].delivery != nil {
		if owner := messages[0].delivery.owner; owner.group == p && owner.quickAck(messages[0]) {
			return nil
		}
	}
	return p.of(messages, func(a *attachment, messages []*Message, now time.Time) { a.ack(messages, now) })
}

// AckUntil acknowledges everything of the message's topic up to and including it.
func (p *PatternConsumer) AckUntil(message *Message) error {
	return p.of([]*Message{message}, func(a *attachment, _ []*Message, now time.Time) { a.ackUntil(message, now) })
}

// Nack gives messages back, to be delivered again after the subscription's back-off. The reason is for people.
func (p *PatternConsumer) Nack(reason string, messages ...*Message) error {
	return p.nack(nil, reason, messages)
}

// NackAfter gives messages back, to be delivered again after a delay of at most a day; 0 means at once.
func (p *PatternConsumer) NackAfter(delay time.Duration, reason string, messages ...*Message) error {
	return p.nack(&delay, reason, messages)
}

func (p *PatternConsumer) nack(delay *time.Duration, reason string, messages []*Message) error {
	if err := checkNack(delay, reason); err != nil {
		return err
	}
	return p.of(messages, func(a *attachment, messages []*Message, _ time.Time) { a.nack(messages, delay, reason) })
}

// Extend says that messages are still being worked on: their acknowledgment timeout begins anew.
func (p *PatternConsumer) Extend(messages ...*Message) error {
	return p.of(messages, func(a *attachment, messages []*Message, _ time.Time) { a.extend(messages) })
}

// Fail has every message fail that this program has in hand; see [Consumer.Fail].
func (p *PatternConsumer) Fail(reason string) {
	p.client.mu.Lock()
	defer p.client.mu.Unlock()
	for _, each := range p.members {
		each.a.fails(reason)
		p.send(each.a)
	}
}

// Flush waits until the broker has written every acknowledgment made so far; see [Consumer.Flush].
func (p *PatternConsumer) Flush(ctx context.Context) error {
	return p.client.until(ctx, p.changed, "acknowledgments were not confirmed", func() (bool, *Error) {
		if err := p.check(); err != nil {
			return false, err
		}
		written, forgotten := true, false
		for topic, each := range p.members {
			a := each.a
			if a.phase == pubClosed || a.phase == pubClosing {
				continue
			}
			if complaint := a.complaint; complaint != nil {
				a.complaint = nil
				return false, ofTopic(topic, complaint)
			}
			if !a.settled() {
				written = false
				a.flush(true)
				p.send(a)
			}
		}
		if !written {
			return false, nil
		}
		for _, each := range p.members {
			forgotten = forgotten || each.a.forgotten
			each.a.forgotten = false
		}
		if forgotten {
			return false, errForgotten
		}
		return true, nil
	})
}

// Close sends the acknowledgments made so far and leaves every topic. Closing again does nothing.
func (p *PatternConsumer) Close(ctx context.Context) error {
	c := p.client
	c.mu.Lock()
	if p.over || c.closed {
		c.mu.Unlock()
		return nil
	}
	p.over = true
	if p.watch != nil {
		c.home.session.withdraw(p.watch)
	}
	members := slices.Collect(maps.Values(p.members))
	for _, each := range members {
		each.a.close()
		p.send(each.a)
	}
	p.changed.broadcast()
	c.mu.Unlock()
	err := c.until(ctx, p.changed, "the broker did not confirm the close of the consumer of "+p.pattern,
		func() (bool, *Error) {
			for _, each := range members {
				if each.a.phase != pubClosed {
					return false, nil
				}
			}
			return true, nil
		})
	c.mu.Lock()
	p.end()
	c.mu.Unlock()
	return err
}

// ---- patterns

const nameMost = 200

func checkPattern(pattern string) *Error {
	wrong := func(format string, args ...any) *Error {
		return usage("invalid-name", "pattern %.60q "+format, append([]any{pattern}, args...)...)
	}
	if len(pattern) == 0 || len(pattern) > nameMost {
		return wrong("has %d characters: 1 to %d are allowed", len(pattern), nameMost)
	}
	for i := range len(pattern) {
		if letter := pattern[i]; !('a' <= letter && letter <= 'z' || 'A' <= letter && letter <= 'Z' ||
			'0' <= letter && letter <= '9' || strings.IndexByte("._-/*>", letter) >= 0) {
			return wrong("has %q at position %d: letters, digits, '.', '_', '-', '/', '*' and '>' are allowed", letter, i)
		}
	}
	parts := strings.Split(pattern, "/")
	for i, part := range parts {
		switch {
		case part == "" || part == "." || part == "..":
			return wrong("has the part %q, which no topic has", part)
		case part == "*" || (part == ">" && i == len(parts)-1):
		case strings.ContainsAny(part, "*>"):
			return wrong("has the part %q: '*' is a whole part, and '>' the whole last one", part)
		}
	}
	return nil
}
