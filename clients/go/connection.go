package ister

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"time"

	zmq "github.com/pebbe/zmq4"
)

// One worker's socket, its back-off, and the goroutine that alone uses it. What frames mean is in session.go.
//
// Invariants
//   - a socket that has lost its peer is closed, and never left to reconnect: it would lose messages in silence
//   - everything but polling happens under the client's lock

const (
	farewellLinger = 500 * time.Millisecond
	rehomeFailures = 3
	monitored      = zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_CLOSED |
		zmq.Event(0x0800) | zmq.Event(0x2000) | zmq.Event(0x4000) // handshakes that failed
)

var monitors atomic.Int64

type connection struct {
	client    *Client
	endpoints []string
	at        int
	home      bool
	session   *session
	socket    *zmq.Socket
	monitor   *zmq.Socket
	wakeIn    *zmq.Socket
	wakeOut   *zmq.Socket
	due       time.Time
	failures  int
	up        bool
	over      bool
	bye       bool
	ended     chan struct{}
}

func newConnection(client *Client, endpoints []string, home bool) (*connection, error) {
	c := &connection{client: client, endpoints: endpoints, home: home, ended: make(chan struct{})}
	c.session = newSession(client.text, &client.refs)
	c.session.onMoved = func(h handle, endpoint string) { client.move(c, h, endpoint) }
	c.session.onWelcome = func() { client.changed.broadcast() }
	c.session.identity = client.identities[endpoints[0]]
	var err error
	address := fmt.Sprintf("inproc://ister-wake-%d", monitors.Add(1))
	if c.wakeIn, err = client.context.NewSocket(zmq.PAIR); err != nil {
		return nil, err
	}
	if c.wakeOut, err = client.context.NewSocket(zmq.PAIR); err != nil {
		return nil, err
	}
	if err = c.wakeIn.Bind(address); err == nil {
		err = c.wakeOut.Connect(address)
	}
	if err != nil {
		return nil, err
	}
	go c.run()
	return c, nil
}

func (c *connection) endpoint() string { return c.endpoints[c.at] }

// wake has the goroutine look (client's lock held).
func (c *connection) wake() {
	if !c.over {
		_, _ = c.wakeOut.SendBytes([]byte{1}, zmq.DONTWAIT)
	}
}

func (c *connection) run() {
	defer close(c.ended)
	client := c.client
	for {
		client.mu.Lock()
		now := time.Now()
		if c.over {
			c.farewell()
			client.mu.Unlock()
			return
		}
		c.service(now)
		due := c.due
		if c.session.phase != idle {
			due = c.session.deadline(now)
		}
		poller := zmq.NewPoller()
		poller.Add(c.wakeIn, zmq.POLLIN)
		if c.socket != nil {
			poller.Add(c.socket, zmq.POLLIN)
			poller.Add(c.monitor, zmq.POLLIN)
		}
		client.mu.Unlock()
		_, _ = poller.Poll(min(max(0, time.Until(due))+time.Millisecond, time.Hour))
		for {
			if _, err := c.wakeIn.RecvBytes(zmq.DONTWAIT); err != nil {
				break
			}
		}
	}
}

// service does everything that is due (lock held).
func (c *connection) service(now time.Time) {
	if c.session.phase == ended {
		if c.socket != nil {
			c.hangUp(now)
		}
		c.due = now.Add(never)
		return
	}
	if c.socket == nil {
		if now.Before(c.due) {
			return
		}
		if err := c.connect(now); err != nil {
			c.session.trouble = lost("cannot connect to %s: %v", c.endpoint(), err)
			c.hangUp(now)
			return
		}
	}
	c.pump(now)
	if c.socket != nil {
		c.readMonitor()
	}
	c.session.tick(now)
	if c.session.phase == ready && c.failures > 0 {
		c.failures = 0
	}
	if c.session.phase == idle {
		c.hangUp(now)
		return
	}
	c.sendAll(now)
}

func (c *connection) pump(now time.Time) {
	c.sendAll(now)
	for c.session.phase == greeting || c.session.phase == ready {
		frames, err := c.socket.RecvMessageBytes(zmq.DONTWAIT)
		if err != nil {
			if zmq.AsErrno(err) != zmq.Errno(syscall.EAGAIN) {
				c.session.lost(lost("the socket to %s: %v", c.endpoint(), err))
			}
			break
		}
		c.session.receive(frames, now)
	}
	if c.session.phase == ready && !c.up {
		c.up = true
		c.client.tell(BrokerEvent{"connected", c.endpoint(), ""})
	}
}

func (c *connection) sendAll(now time.Time) {
	session := c.session
	for len(session.outbox) > 0 && c.socket != nil {
		parts := make([]any, len(session.outbox[0]))
		for i, frame := range session.outbox[0] {
			parts[i] = frame
		}
		if _, err := c.socket.SendMessageDontwait(parts...); err != nil {
			if zmq.AsErrno(err) != zmq.Errno(syscall.EAGAIN) {
				session.lost(lost("the socket to %s: %v", c.endpoint(), err))
			}
			return
		}
		session.outbox = session.outbox[1:]
		session.spoke = now
	}
}

func (c *connection) connect(now time.Time) error {
	socket, err := c.client.context.NewSocket(zmq.DEALER)
	if err != nil {
		return err
	}
	c.socket = socket
	for _, err := range []error{
		socket.SetLinger(0), socket.SetSndhwm(0), socket.SetRcvhwm(0), socket.SetIpv6(true),
		socket.SetReconnectIvl(50 * time.Millisecond), socket.SetReconnectIvlMax(time.Second),
		socket.SetHeartbeatIvl(5 * time.Second), socket.SetHeartbeatTimeout(15 * time.Second),
	} {
		if err != nil {
			return err
		}
	}
	address := fmt.Sprintf("inproc://ister-monitor-%d", monitors.Add(1))
	if err := socket.Monitor(address, monitored); err != nil {
		return err
	}
	if c.monitor, err = c.client.context.NewSocket(zmq.PAIR); err != nil {
		return err
	}
	if err := c.monitor.Connect(address); err != nil {
		return err
	}
	if err := socket.Connect(c.endpoint()); err != nil {
		return err
	}
	c.session.connect(now)
	return nil
}

func (c *connection) readMonitor() {
	for {
		event, _, _, err := c.monitor.RecvEvent(zmq.DONTWAIT)
		if err != nil {
			return
		}
		switch event {
		case zmq.EVENT_CONNECT_RETRIED:
			if c.session.phase == greeting {
				c.session.lost(lost("nobody listens at %s", c.endpoint()))
			}
		case zmq.EVENT_CLOSED: // of an attempt before the one that succeeded
		default:
			c.session.lost(lost("the connection to %s broke", c.endpoint()))
		}
	}
}

// hangUp closes the socket and chooses when, and where, to try again.
func (c *connection) hangUp(now time.Time) {
	if c.up {
		c.up = false
		why := ""
		if c.session.trouble != nil {
			why = c.session.trouble.Text
		}
		c.client.tell(BrokerEvent{"lost", c.endpoint(), why})
	}
	c.closeSocket(0)
	if c.session.secret != nil {
		c.client.identities[c.endpoint()] = c.session.identity
	}
	wait := backOff(c.failures, backOffMin, backOffMax)
	c.due = now.Add(wait/2 + time.Duration(rand.Int64N(int64(wait))))
	if c.failures > 0 && len(c.endpoints) > 1 {
		c.at = (c.at + 1) % len(c.endpoints)
		c.session.identity = c.client.identities[c.endpoint()]
	}
	c.failures++
	if !c.home && c.failures > rehomeFailures {
		c.client.rehome(c)
	}
	c.client.changed.broadcast()
}

func (c *connection) closeSocket(linger time.Duration) {
	if c.socket != nil {
		_ = c.socket.Monitor("", 0)
		_ = c.socket.SetLinger(linger)
		_ = c.socket.Close()
	}
	if c.monitor != nil {
		_ = c.monitor.SetLinger(0)
		_ = c.monitor.Close()
	}
	c.socket, c.monitor = nil, nil
}

func (c *connection) farewell() {
	c.sendAll(time.Now())
	linger := time.Duration(0)
	if c.bye {
		linger = farewellLinger
	}
	c.closeSocket(linger)
	_ = c.wakeIn.SetLinger(0)
	_ = c.wakeOut.SetLinger(0)
	_ = c.wakeIn.Close()
	_ = c.wakeOut.Close()
}

// leave ends the connection; the goroutine closes the socket (lock held).
func (c *connection) leave(reason *Error) {
	if c.over {
		return
	}
	c.bye = c.session.phase == ready
	c.session.end(reason, true)
	c.wake()
	c.over = true
}

func logger() *slog.Logger { return slog.Default().With("library", "ister") }
