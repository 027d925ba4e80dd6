// Package ister is a client of the Ister message broker.
//
// Connect gives a [Client]; it opens producers, consumers and readers, and asks the broker about topics and
// subscriptions. Every method may be called from any goroutine. Those that wait take a context: when it ends, they
// return its error, and whatever they waited for goes on as if they had not been called. A lost connection is made
// again for as long as the client lives, and everything goes on where it was.
package ister

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	zmq "github.com/pebbe/zmq4"
	"golang.org/x/crypto/blake2b"
)

// Version is this client's.
const Version = "0.1.0"

const (
	movesMax      = 8
	movesWithin   = time.Second
	brokerEvents  = 256
	clientName    = "ister-go/" + Version
	hurry         = time.Second
	offsetMissing = -1
)

func blake2b8(data []byte) [8]byte {
	hash, err := blake2b.New(8, nil)
	if err != nil {
		panic(err) // 8 is a size it has
	}
	_, _ = hash.Write(data)
	return [8]byte(hash.Sum(nil))
}

// signal wakes whoever waits for something to change; used under the client's lock.
type signal struct{ ch chan struct{} }

func newSignal() *signal { return &signal{make(chan struct{})} }

func (s *signal) broadcast() {
	close(s.ch)
	s.ch = make(chan struct{})
}

// BrokerEvent says what became of a connection: "connected" (also: again), or "lost", and why; it is made again then.
type BrokerEvent struct {
	Code     string
	Endpoint string
	Text     string
}

// Client is a connection to a broker.
type Client struct {
	mu         sync.Mutex
	text       string
	context    *zmq.Context
	home       *connection
	elsewhere  map[string]*connection
	identities map[string]identity // of the sessions, by endpoint
	nextHandle uint64
	refs       uint64 // the last REF, of all sessions
	moves      map[uint64]hops
	changed    *signal // sessions: greetings, losses
	events     []BrokerEvent
	closed     bool
	left       []*connection

	inboxMu sync.Mutex
	inbox   *inbox
	outlets map[string]*Producer
}

type hops struct {
	count int
	since time.Time
}

// ClientOptions are what [Connect] may be told.
type ClientOptions struct {
	Name string // for people who look at the broker
}

// Connect connects to a broker at the first of some endpoints that answers, like "tcp://127.0.0.1:5555". It returns
// when there is a session.
func Connect(ctx context.Context, options *ClientOptions, endpoints ...string) (*Client, error) {
	if len(endpoints) == 0 {
		return nil, usage("invalid-argument", "an endpoint is needed, like tcp://127.0.0.1:5555")
	}
	zctx, err := zmq.NewContext()
	if err != nil {
		return nil, err
	}
	c := &Client{
		text: clientName, context: zctx, elsewhere: map[string]*connection{}, identities: map[string]identity{},
		moves: map[uint64]hops{}, changed: newSignal(), outlets: map[string]*Producer{},
	}
	if options != nil && options.Name != "" {
		c.text = options.Name[:min(len(options.Name), 100)] + " " + clientName
	}
	c.mu.Lock()
	c.home, err = newConnection(c, endpoints, true)
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	err = c.until(ctx, c.changed, "no broker at "+fmt.Sprint(endpoints), func() (bool, *Error) {
		switch c.home.session.phase {
		case ready:
			return true, nil
		case ended:
			return true, c.home.session.trouble
		}
		return false, nil
	})
	if err != nil {
		c.mu.Lock()
		trouble := c.home.session.trouble
		c.mu.Unlock()
		_ = c.Close()
		if errors.Is(err, context.DeadlineExceeded) && trouble != nil {
			return nil, fmt.Errorf("%w (%s)", err, trouble.Text)
		}
		return nil, err
	}
	return c, nil
}

// until waits until a condition holds, which is looked at under the lock whenever the signal comes.
func (c *Client) until(ctx context.Context, on *signal, what string, condition func() (bool, *Error)) error {
	for {
		c.mu.Lock()
		ok, err := condition()
		ch := on.ch
		c.mu.Unlock()
		if err != nil {
			return err
		}
		if ok {
			return nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return whyEnded(ctx, what)
		}
	}
}

func whyEnded(ctx context.Context, what string) error {
	return fmt.Errorf("ister: %s: %w", what, ctx.Err())
}

func (c *Client) tell(event BrokerEvent) {
	if c.events = append(c.events, event); len(c.events) > brokerEvents {
		c.events = c.events[1:]
	}
	if event.Code == "lost" && !c.closed {
		logger().Warn("the connection was lost, and is made again", "endpoint", event.Endpoint, "why", event.Text)
	}
	c.changed.broadcast()
}

// Events returns what became of the connections since the last call, oldest first; at most the last 256.
func (c *Client) Events() []BrokerEvent {
	c.mu.Lock()
	defer c.mu.Unlock()
	events := c.events
	c.events = nil
	return events
}

// ---- where producers and consumers are (lock held)

func (c *Client) all() []*connection {
	found := []*connection{c.home}
	for _, each := range c.elsewhere {
		found = append(found, each)
	}
	return found
}

func (c *Client) connectionOf(h handle) *connection {
	for _, each := range c.elsewhere {
		if each.session.handles[h.number()] == h {
			return each
		}
	}
	return c.home
}

func (c *Client) move(from *connection, h handle, endpoint string) {
	now := time.Now()
	trail := c.moves[h.number()]
	if now.Sub(trail.since) >= movesWithin {
		trail.count = 0
	}
	trail = hops{trail.count + 1, now}
	c.moves[h.number()] = trail
	if trail.count > movesMax {
		err := lost("moved %d times in a row, lastly to %s", movesMax, endpoint)
		h.onLost(err)
		time.AfterFunc(movesWithin, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if from.session.phase == ready && from.session.handles[h.number()] == h {
				h.onReady(from.session, true, time.Now())
				from.wake()
			}
		})
		return
	}
	target := c.home
	if endpoint != c.home.endpoint() {
		var err error
		if target = c.elsewhere[endpoint]; target == nil {
			if target, err = newConnection(c, []string{endpoint}, false); err != nil {
				h.fail(lost("cannot open a socket to %s: %v", endpoint, err))
				return
			}
			c.elsewhere[endpoint] = target
		}
	}
	c.put(from, target, h, lost("moved to %s", endpoint))
}

func (c *Client) put(from, target *connection, h handle, why *Error) {
	from.session.detach(h)
	h.onLost(why)
	target.session.adopt(h)
	if target.session.phase == ready {
		h.onReady(target.session, false, time.Now())
	}
	target.wake()
	if from != c.home && len(from.session.handles) == 0 {
		c.drop(from)
	}
}

// drop leaves a connection that nothing lives at any more.
func (c *Client) drop(from *connection) {
	if from.session.secret != nil {
		c.identities[from.endpoint()] = from.session.identity
	}
	delete(c.elsewhere, from.endpoint())
	c.left = append(c.left, from)
	from.leave(lost("nothing lives there any more"))
}

// rehome asks the first endpoints again: the one that things were moved to does not come back.
func (c *Client) rehome(from *connection) {
	for _, h := range from.session.handles {
		from.session.detach(h)
		h.onLost(lost("%s does not come back", from.endpoint()))
		c.home.session.adopt(h)
		if c.home.session.phase == ready {
			h.onReady(c.home.session, false, time.Now())
		}
	}
	c.home.wake()
	c.drop(from)
}

func (c *Client) attach(make func(number uint64) handle) (handle, *Error) {
	if c.closed {
		return nil, closedError("the client")
	}
	c.nextHandle++
	h := make(c.nextHandle)
	c.home.session.attach(h, time.Now())
	c.home.wake()
	return h, nil
}

func (c *Client) let(h handle) {
	at := c.connectionOf(h)
	at.session.detach(h)
	delete(c.moves, h.number())
	at.wake()
}

// ---- asking

// ask sends a request and returns the body of the answer.
func (c *Client) ask(ctx context.Context, operation string, arguments map[string]any) ([]byte, *request, error) {
	r := &request{operation: operation, arguments: arguments, done: make(chan struct{})}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, r, closedError("the client")
	}
	c.home.session.ask(r, time.Now())
	c.home.wake()
	c.mu.Unlock()
	select {
	case <-r.done:
		if r.err != nil {
			return nil, r, r.err
		}
		return r.result, r, nil
	case <-ctx.Done():
		c.mu.Lock()
		c.home.session.withdraw(r)
		trouble := r.err
		c.mu.Unlock()
		if trouble != nil {
			return nil, r, fmt.Errorf("ister: %s was not answered (%s): %w", operation, trouble.Text, ctx.Err())
		}
		return nil, r, whyEnded(ctx, operation+" was not answered")
	}
}

func decodeResult(body []byte, into any) *Error {
	if err := decoder.Unmarshal(body, into); err != nil {
		return malformed("a result is not what PROTOCOL.md says: %v", err)
	}
	return nil
}

// Close ends the session. Producers that were not closed lose what has no receipt; acknowledgments made so far are
// sent. Closing again does nothing.
func (c *Client) Close() error {
	c.closeInbox()
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	connections := append(c.all(), c.left...)
	for _, each := range c.all() {
		for _, h := range each.session.handles {
			if consumer, ok := h.(*attachment); ok {
				consumer.flush(false)
			}
		}
		each.leave(closedError("the client"))
	}
	c.changed.broadcast()
	c.mu.Unlock()
	for _, each := range connections {
		<-each.ended
	}
	return c.context.Term() // waits until what was said last is on its way
}

// Drop cuts every connection without a word, as a broken network would; for tests. They are made again at once.
func (c *Client) Drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, each := range c.all() {
		each.session.lost(lost("the program cut it"))
		each.wake()
	}
}

func randomID() uint64 { return rand.Uint64()>>1 | 1 }
