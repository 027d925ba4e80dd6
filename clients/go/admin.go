package ister

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const verifyPause = 200 * time.Millisecond // between two questions for the progress of a verification

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
	if err := decodeResult(body, (*map[string]any)(&told)); err != nil {
		return nil, r, err
	}
	return told, r, nil
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

// EnsureTopic is CreateTopic that takes an existing topic too, if it has the options that are asked for.
func (c *Client) EnsureTopic(ctx context.Context, topic string, options map[string]any) (Info, error) {
	told, err := c.CreateTopic(ctx, topic, options)
	if errors.Is(err, &Error{Code: "topic-exists"}) {
		if told, err = c.Topic(ctx, topic); err == nil {
			asked := with(map[string]any{"dispatch": "reliable"}, options)
			err = sameAs(fmt.Sprintf("topic %q", topic), "topic", asked, told, "settings")
		}
	}
	return told, err
}

// ForgetTopic deletes this broker's part of a topic that another broker has taken over; the store is left alone.
func (c *Client) ForgetTopic(ctx context.Context, topic string) error {
	return c.remove(ctx, "topic.forget", map[string]any{"topic": topic}, "unknown-topic")
}

// TakeOverTopic claims a topic that is in the store for this broker, and goes on where its history ends there. What this
// broker has of it is forgotten first; the broker that had it is fenced.
func (c *Client) TakeOverTopic(ctx context.Context, topic string) (Info, error) {
	if err := c.ForgetTopic(ctx, topic); err != nil && !isUnknown(err) {
		return nil, err
	}
	about := map[string]any{"topic": topic}
	return c.create(ctx, "topic.takeover", "topic-exists", "topic.show", about, about)
}

// VerifyTopic has the broker check every byte of a topic's log, and returns its report: messages, bytes, segments, and
// damaged, a list. Progress may be nil.
func (c *Client) VerifyTopic(ctx context.Context, topic string, progress func(bytes, total uint64)) (Info, error) {
	asked := map[string]any{"topic": topic, "verification": uint64(0)}
	for {
		told, _, err := c.info(ctx, "topic.verify", asked)
		if err != nil {
			return nil, err
		}
		asked = map[string]any{"topic": topic, "verification": number(told["verification"])}
		if total, said := told["bytes_total"]; said && progress != nil {
			progress(number(told["bytes"]), number(total))
		}
		if done, _ := told["done"].(bool); done {
			report := Info{}
			members, _ := told["report"].(map[any]any)
			for name, value := range members {
				if text, ok := name.(string); ok {
					report[text] = value
				}
			}
			return report, nil
		}
		select {
		case <-time.After(verifyPause):
		case <-ctx.Done():
			return nil, whyEnded(ctx, "topic "+topic+" was not verified")
		}
	}
}

// RepairTopic has every subscription of a topic go on behind damaged messages, and returns what is skipped.
func (c *Client) RepairTopic(ctx context.Context, topic string, skipDamaged bool) (Info, error) {
	told, _, err := c.info(ctx, "topic.repair", map[string]any{"topic": topic, "skip_damaged": skipDamaged})
	return told, err
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

// EnsureSubscription is CreateSubscription that takes an existing one too, if it has the type and the options that are
// asked for.
func (c *Client) EnsureSubscription(
	ctx context.Context, topic, subscription, kind string, start Start, options map[string]any,
) (Info, error) {
	told, err := c.CreateSubscription(ctx, topic, subscription, kind, start, options)
	if errors.Is(err, &Error{Code: "subscription-exists"}) {
		if told, err = c.Subscription(ctx, topic, subscription); err == nil {
			asked := with(options, map[string]any{"type": kind})
			err = sameAs(fmt.Sprintf("subscription %q", subscription), "subscription", asked, told, "options")
		}
	}
	return told, err
}

// sameAs is nil if what is there has what was asked for; options that were not asked for may be any.
func sameAs(name, what string, asked map[string]any, told Info, options string) error {
	for key, shown := range map[string]string{"dispatch": "strategy", "durability": "durability", "type": "type"} {
		wanted, ok := asked[key].(string)
		if !ok || wanted == "" || wanted == told.Text(shown) || (key == "durability" && told.Text("strategy") != "reliable") {
			continue
		}
		return &Error{what + "-exists", Fix, fmt.Sprintf(
			"%s already exists, and its %s is %s, not %s; it cannot be changed: leave it out, or use another name",
			name, key, told.Text(shown), wanted)}
	}
	has, _ := told[options].(map[any]any)
	for key, wanted := range asked {
		if key == "dispatch" || key == "durability" || key == "type" || key == "ephemeral" || has == nil {
			continue
		}
		if fmt.Sprint(plain(has[key])) != fmt.Sprint(plain(wanted)) {
			return &Error{what + "-options", Fix, fmt.Sprintf(
				"%s already exists with %s %v, not %.100v: leave the option out, or change it",
				name, key, plain(has[key]), wanted)}
		}
	}
	return nil
}

// plain has flags and what is missing compare as numbers.
func plain(value any) any {
	switch value {
	case nil, false:
		return 0
	case true:
		return 1
	}
	return value
}

// Pause stops deliveries of a subscription until Resume; its consumers stay.
func (c *Client) Pause(ctx context.Context, topic, subscription string) error {
	_, err := c.UpdateSubscription(ctx, topic, subscription, map[string]any{"paused": 1})
	return err
}

// Resume has a paused subscription go on.
func (c *Client) Resume(ctx context.Context, topic, subscription string) error {
	_, err := c.UpdateSubscription(ctx, topic, subscription, map[string]any{"paused": 0})
	return err
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
