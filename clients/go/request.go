package ister

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
)

// Request and reply, section 10: a convention between clients, over an ephemeral inbox topic.

const (
	replyTo       = "ister.reply_to"
	correlationID = "ister.correlation_id"
	outletsMax    = 64
)

type inbox struct {
	topic   string
	reader  *Reader
	mu      sync.Mutex
	waiting map[string]chan *Message
	gone    chan struct{}
	stop    context.CancelFunc
}

// Request sends a message and returns the reply that some consumer of the topic gives it with [Client.Reply]. When the
// session is lost on the way the error is "connection-lost": the request may have been carried out.
func (c *Client) Request(ctx context.Context, topic string, message Outgoing) (*Message, error) {
	in, err := c.openInbox(ctx)
	if err != nil {
		return nil, err
	}
	id := fmt.Sprintf("%016x", rand.Uint64())
	reply := make(chan *Message, 1)
	in.mu.Lock()
	in.waiting[id] = reply
	in.mu.Unlock()
	defer func() {
		in.mu.Lock()
		delete(in.waiting, id)
		in.mu.Unlock()
	}()
	attributes := map[string]string{replyTo: in.topic, correlationID: id}
	for name, value := range message.Attributes {
		attributes[name] = value
	}
	message.Attributes = attributes
	receipt, err := c.sendBy(ctx, topic, message)
	if err != nil {
		return nil, err
	}
	answered := receipt.Done()
	for {
		select {
		case came := <-reply:
			return came, nil
		case <-answered:
			if _, err := receipt.Wait(ctx); err != nil {
				return nil, err
			}
			answered = nil
		case <-in.gone:
			return nil, lost("the session was lost, and with it the reply to a request to %q", topic)
		case <-ctx.Done():
			return nil, whyEnded(ctx, "nobody has answered a request to "+topic)
		}
	}
}

// Reply answers a message that came from Request. Whoever asked may be gone: then nobody hears it.
func (c *Client) Reply(ctx context.Context, to *Message, message Outgoing) error {
	topic, ok := to.Attributes[replyTo]
	if !ok {
		return usage("invalid-argument", "this message asks for no reply")
	}
	attributes := map[string]string{correlationID: to.Attributes[correlationID]}
	for name, value := range message.Attributes {
		attributes[name] = value
	}
	message.Attributes = attributes
	_, err := c.sendBy(ctx, topic, message)
	if code := Code(err); code == "unknown-topic" || code == "topic-deleted" {
		c.forgetOutlet(topic)
		return nil
	}
	return err
}

// sendBy sends with a producer that is kept for the next message to the topic.
func (c *Client) sendBy(ctx context.Context, topic string, message Outgoing) (*Receipt, error) {
	c.inboxMu.Lock()
	producer := c.outlets[topic]
	c.inboxMu.Unlock()
	if producer == nil {
		made, err := c.Producer(ctx, topic, nil)
		if err != nil {
			return nil, err
		}
		c.inboxMu.Lock()
		for name, other := range c.outlets {
			if len(c.outlets) < outletsMax {
				break
			}
			delete(c.outlets, name)
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), hurry)
				defer cancel()
				_ = other.Close(ctx)
			}()
		}
		c.outlets[topic], producer = made, made
		c.inboxMu.Unlock()
	}
	receipt, err := producer.Send(ctx, message)
	if err != nil && ctx.Err() == nil {
		c.forgetOutlet(topic)
	}
	return receipt, err
}

func (c *Client) forgetOutlet(topic string) {
	c.inboxMu.Lock()
	producer := c.outlets[topic]
	delete(c.outlets, topic)
	c.inboxMu.Unlock()
	if producer != nil {
		producer.abandon()
	}
}

func (c *Client) openInbox(ctx context.Context) (*inbox, error) {
	c.inboxMu.Lock()
	defer c.inboxMu.Unlock()
	if c.inbox != nil {
		select {
		case <-c.inbox.gone:
		default:
			return c.inbox, nil
		}
	}
	topic := fmt.Sprintf("_inbox/%016x%016x", rand.Uint64(), rand.Uint64())
	if _, err := c.CreateTopic(ctx, topic, map[string]any{"dispatch": "non-reliable", "ephemeral": 1}); err != nil {
		return nil, err
	}
	reader, err := c.Reader(ctx, topic, Latest(), 1024)
	if err != nil {
		return nil, err
	}
	reading, stop := context.WithCancel(context.Background())
	made := &inbox{topic: topic, reader: reader, waiting: map[string]chan *Message{}, gone: make(chan struct{}), stop: stop}
	go made.read(reading)
	c.inbox = made
	return made, nil
}

func (in *inbox) read(ctx context.Context) {
	defer close(in.gone)
	for message, err := range in.reader.All(ctx) {
		if err != nil {
			return
		}
		in.mu.Lock()
		if reply := in.waiting[message.Attributes[correlationID]]; reply != nil {
			select {
			case reply <- message:
			default:
			}
		}
		in.mu.Unlock()
	}
}

// closeInbox sends the replies that were just given, and ends the inbox.
func (c *Client) closeInbox() {
	c.inboxMu.Lock()
	in, outlets := c.inbox, c.outlets
	c.inbox, c.outlets = nil, map[string]*Producer{}
	c.inboxMu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), hurry)
	defer cancel()
	for _, producer := range outlets {
		_ = producer.Flush(ctx)
	}
	if in != nil {
		in.stop()
		<-in.gone
	}
}
