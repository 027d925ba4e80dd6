package ister

import (
	"context"
	"errors"
)

// Info is what a broker knows of a topic or a subscription; PROTOCOL.md, section 10, names the members. Numbers are
// int64 or uint64, as they fit.
type Info map[string]any

// Text returns a member that is text.
func (i Info) Text(name string) string { text, _ := i[name].(string); return text }

func (c *Client) info(ctx context.Context, operation string, arguments map[string]any) (Info, *request, error) {
	body, r, err := c.ask(ctx, operation, arguments)
	if err != nil {
		return nil, r, err
	}
	told := Info{}
	return told, r, decodeResult(body, (*map[string]any)(&told))
}

func with(options map[string]any, more map[string]any) map[string]any {
	all := map[string]any{}
	for name, value := range options {
		all[name] = value
	}
	for name, value := range more {
		all[name] = value
	}
	return all
}

// create makes something; a request that was sent twice may have made it the first time.
func (c *Client) create(ctx context.Context, operation, exists, show string, about, arguments map[string]any) (Info, error) {
	told, r, err := c.info(ctx, operation, arguments)
	if err != nil && r.resent && errors.Is(err, &Error{Code: exists}) {
		told, _, err = c.info(ctx, show, about)
	}
	return told, err
}

func (c *Client) remove(ctx context.Context, operation string, about map[string]any, gone ...string) error {
	_, r, err := c.ask(ctx, operation, about)
	for _, code := range gone {
		if err != nil && r.resent && errors.Is(err, &Error{Code: code}) {
			return nil
		}
	}
	return err
}

// CreateTopic creates a topic. Options are the arguments of topic.create: dispatch ("reliable" by default),
// durability, retention_ms, ...
func (c *Client) CreateTopic(ctx context.Context, topic string, options map[string]any) (Info, error) {
	about := map[string]any{"topic": topic}
	return c.create(ctx, "topic.create", "topic-exists", "topic.show", about,
		with(map[string]any{"dispatch": "reliable"}, with(options, about)))
}

// UpdateTopic changes what a reliable topic keeps.
func (c *Client) UpdateTopic(ctx context.Context, topic string, options map[string]any) (Info, error) {
	told, _, err := c.info(ctx, "topic.update", with(options, map[string]any{"topic": topic}))
	return told, err
}

// Topic returns what the broker knows of a topic.
func (c *Client) Topic(ctx context.Context, topic string) (Info, error) {
	told, _, err := c.info(ctx, "topic.show", map[string]any{"topic": topic})
	return told, err
}

// Topics returns every topic, by name.
func (c *Client) Topics(ctx context.Context) ([]Info, error) {
	return c.list(ctx, "topic.list", "topics", "topic", nil)
}

// DeleteTopic deletes a topic, its messages and its subscriptions.
func (c *Client) DeleteTopic(ctx context.Context, topic string) error {
	return c.remove(ctx, "topic.delete", map[string]any{"topic": topic}, "unknown-topic")
}

func about(topic, subscription string) map[string]any {
	return map[string]any{"topic": topic, "subscription": subscription}
}

// CreateSubscription creates a subscription without attaching to it. Options are the arguments of
// subscription.create: max_deliveries, ack_timeout_ms, ...
func (c *Client) CreateSubscription(
	ctx context.Context, topic, subscription, kind string, start Start, options map[string]any,
) (Info, error) {
	which := about(topic, subscription)
	arguments := with(options, with(which, map[string]any{"type": kind}))
	if start.value != nil {
		arguments["start"] = start.value
	}
	return c.create(ctx, "subscription.create", "subscription-exists", "subscription.show", which, arguments)
}

// UpdateSubscription changes options of a subscription, for its present consumers too.
func (c *Client) UpdateSubscription(ctx context.Context, topic, subscription string, options map[string]any) (Info, error) {
	told, _, err := c.info(ctx, "subscription.update", with(options, about(topic, subscription)))
	return told, err
}

// Subscription returns what the broker knows of a subscription.
func (c *Client) Subscription(ctx context.Context, topic, subscription string) (Info, error) {
	told, _, err := c.info(ctx, "subscription.show", about(topic, subscription))
	return told, err
}

// Subscriptions returns every subscription of a topic, by name.
func (c *Client) Subscriptions(ctx context.Context, topic string) ([]Info, error) {
	return c.list(ctx, "subscription.list", "subscriptions", "subscription", map[string]any{"topic": topic})
}

// Explain says why messages of a subscription flow, or why they do not.
func (c *Client) Explain(ctx context.Context, topic, subscription string) (Info, error) {
	told, _, err := c.info(ctx, "subscription.explain", about(topic, subscription))
	return told, err
}

// Unblock decides what becomes of messages that block a subscription ("retry", "drop", "dead-letter"), and returns how
// many they were.
func (c *Client) Unblock(ctx context.Context, topic, subscription, action string) (uint64, error) {
	told, _, err := c.info(ctx, "subscription.unblock", with(about(topic, subscription), map[string]any{"action": action}))
	return number(told["messages"]), err
}

// Seek moves a subscription and returns the offset of the next message; its consumers are told.
func (c *Client) Seek(ctx context.Context, topic, subscription string, to Start) (uint64, error) {
	told, _, err := c.info(ctx, "subscription.seek", with(about(topic, subscription), map[string]any{"to": to.value}))
	return number(told["position"]), err
}

// DeleteSubscription deletes a subscription and its cursor.
func (c *Client) DeleteSubscription(ctx context.Context, topic, subscription string) error {
	return c.remove(ctx, "subscription.delete", about(topic, subscription), "unknown-subscription", "unknown-topic")
}

// Status returns how the broker and its processes are doing.
func (c *Client) Status(ctx context.Context) (Info, error) {
	told, _, err := c.info(ctx, "status", map[string]any{})
	return told, err
}

func (c *Client) list(ctx context.Context, operation, many, one string, arguments map[string]any) ([]Info, error) {
	found := []Info{}
	for after := ""; ; {
		asked := with(arguments, nil)
		if after != "" {
			asked["after"] = after
		}
		page, _, err := c.info(ctx, operation, asked)
		if err != nil {
			return nil, err
		}
		entries, _ := page[many].([]any)
		for _, entry := range entries {
			told := Info{}
			if members, ok := entry.(map[any]any); ok {
				for name, value := range members {
					if text, ok := name.(string); ok {
						told[text] = value
					}
				}
			}
			found, after = append(found, told), told.Text(one)
		}
		if more, _ := page["more"].(bool); !more || len(entries) == 0 {
			return found, nil
		}
	}
}

func number(value any) uint64 {
	switch number := value.(type) {
	case uint64:
		return number
	case int64:
		return uint64(max(0, number))
	}
	return 0
}
