package ister

import (
	"fmt"
	"time"
)

// A consumer's or reader's side of the conversation, section 9 of PROTOCOL.md. It knows no socket, no clock and no
// goroutine.
//
// Invariants
//   - the broker is never given more credit than the window: what was delivered and not taken, and what may still come
//   - what was delivered before the broker forgot about it, or moved the subscription, is never acknowledged
//   - acknowledgments stay here until a DONE covers them, and are sent again over a resumed session

const (
	ackDelay      = 3 * time.Millisecond
	confirmRanges = 1000 // unconfirmed ranges, beyond which the broker is asked what is written
	windowFirst   = 16   // messages of credit for a program whose pace is not known yet
	windowMost    = 16384
	paceAim       = 500 * time.Millisecond // as much as the program works off in that time is kept ready
	creditBytes   = 8 << 20
	placeRetry    = 500 * time.Millisecond
	eventsKept    = 256
	busy          = "subscription-busy"
	otherOptions  = "subscription-options"
)

type span struct{ first, end uint64 }

// delivery is one DELIVER, cut into messages.
type delivery struct {
	messages []*Message
	at       int
	bytes    uint64
}

type attachment struct {
	handle       uint64
	topic        string
	subscription string
	kind         string
	start        any
	priority     uint64
	force        bool
	arguments    map[string]any
	patient      bool // waits for the place of an exclusive subscription
	fixed        uint64

	phase     pubPhase
	opened    bool
	session   *session
	openRef   uint64 // of the last open
	instance  string // which of all the subscriptions of this name it is, as the broker said last
	err       *Error
	complaint *Error
	trouble   *Error
	forgotten bool
	position  uint64
	active    *bool
	events    []Event

	epoch     int // messages of an earlier one are not acknowledged any more
	queue     []*delivery
	reached   uint64 // a reader's first offset that was not handed out; where it began before it handed out any
	moved     bool   // reached counts
	sought    uint64 // the moves of the subscription of which the broker has told, where it counts them
	window    uint64
	used      uint64 // messages taken since credit was given back
	usedBytes uint64
	usedSince time.Time

	pending     []span // acknowledgments that are not sent yet
	unconfirmed []span
	until       *uint64 // everything up to here as well; not confirmed yet
	ackDue      time.Time
	confirming  bool

	due      time.Time
	failures int
	changed  func()
}

func (a *attachment) number() uint64 { return a.handle }
func (a *attachment) reader() bool   { return a.kind == "reader" }

func (a *attachment) onReady(s *session, resumed bool, now time.Time) {
	a.session = s
	if !resumed {
		a.forget()
	} else if a.phase == pubIdle && a.opened {
		a.repeatAcks() // so that what they are about is not delivered again
	}
	if a.phase == pubIdle || (a.phase == pubWaiting && !a.due.After(now)) {
		a.open()
	}
}

// forget drops acknowledgments: the broker knows no more what they are about.
func (a *attachment) forget() {
	if !a.settled() {
		a.forgotten = true
	}
	a.epoch++
	a.pending, a.unconfirmed, a.until, a.confirming = nil, nil, nil, false
	a.ackDue = time.Time{}
	a.changed()
}

func (a *attachment) open() {
	if a.window == 0 {
		a.window = windowFirst
		if a.fixed > 0 {
			a.window = a.fixed
		}
	}
	a.window = max(1, min(a.window, a.session.limits.creditMessagesMax))
	a.phase, a.queue, a.used, a.usedBytes = pubOpening, nil, 0, 0
	a.openRef = a.session.expect(a.onOpenAnswer)
	h := header{
		kType: tOpenConsumer, kRef: a.openRef, kHandle: a.handle, kTopic: a.topic,
		kSubscription: a.subscription, kSubscriptionType: a.kind, kMessages: a.window, kBytes: uint64(creditBytes),
		kSparse: true, kInstance: a.instance, kSought: 0,
	}
	if a.reader() && a.moved {
		h[kStart] = a.reached
	} else if a.start != nil {
		h[kStart] = a.start
	}
	if a.kind == "failover" {
		h[kPriority] = a.priority
	}
	if a.force && !a.opened {
		h[kForce] = true
	}
	if len(a.arguments) > 0 {
		h[kArguments] = a.arguments
	}
	a.session.emit(h)
}

func (a *attachment) onOpenAnswer(h header, _ [][]byte, now time.Time) *Error {
	if a.phase != pubOpening || h.uint(kRef) != a.openRef { // of an open that another one replaced
		return nil
	}
	switch h.uint(kType) {
	case tMoved:
		a.session.onMoved(a, h.text(kEndpoint))
	case tError:
		a.refused(h.error(), now)
	case tOpened:
		if !a.isTheSame(h.text(kInstance)) {
			return nil
		}
		a.phase, a.opened, a.failures, a.trouble = pubOpen, true, 0, nil
		a.position = h.uint(kOffset)
		a.sought = h.uint(kSought)
		if a.reader() && !a.moved && h.text(kStrategy) == "reliable" {
			a.reached, a.moved = a.position, true
		}
		a.usedSince = now
		a.repeatAcks() // a broker that had not finished an earlier open ignored them before
		a.confirming = false
		a.changed()
	default:
		return malformed("a frame of type %d answered OPEN_CONSUMER", h.uint(kType))
	}
	return nil
}

// isTheSame notes which subscription is open. If it is another than before, acknowledgments of that one are void, and a
// reader, whose place was in the other topic, ends.
func (a *attachment) isTheSame(instance string) bool {
	before := a.instance
	if instance == "" || instance == before {
		return true
	}
	a.instance = instance
	if before == "" {
		return true
	}
	if a.reader() && a.moved {
		a.session.sayClose(a.handle, func() {})
		a.fail(&Error{"topic-deleted", Stop, fmt.Sprintf("topic %q was deleted, and created again since", a.topic)})
		return false
	}
	a.forget()
	return true
}

func (a *attachment) refused(err *Error, now time.Time) {
	if err.Code == otherOptions && a.opened && len(a.arguments) > 0 {
		a.arguments = nil // somebody changed them meanwhile
		err = &Error{err.Code, Retry, err.Text}
	}
	if err.Action != Retry || (err.Code == busy && !a.opened && !a.patient) {
		a.fail(err)
		return
	}
	wait := backOff(a.failures, backOffMin, backOffMax)
	if err.Code == busy {
		wait = placeRetry
	}
	a.failures++
	a.phase, a.trouble, a.due, a.queue = pubWaiting, err, now.Add(wait), nil
	a.forget()
}

func (a *attachment) fail(err *Error) {
	if a.phase == pubClosed {
		return
	}
	a.phase, a.err, a.queue = pubClosed, err, nil
	a.changed()
}

func (a *attachment) onLost(reason *Error) {
	a.trouble = reason
	switch a.phase {
	case pubOpening, pubOpen, pubWaiting:
		a.phase, a.queue = pubIdle, nil
		a.confirming = false
	case pubClosing:
		a.fail(closedError("the consumer"))
	}
	a.session = nil
}

func (a *attachment) tick(now time.Time) {
	if a.phase == pubWaiting && !a.due.After(now) && a.session != nil {
		a.open()
	}
	if !a.ackDue.IsZero() && !a.ackDue.After(now) {
		a.flush(false)
	}
}

func (a *attachment) deadline() time.Time {
	if a.phase == pubWaiting {
		return a.due
	}
	if a.phase == pubOpen {
		return a.ackDue
	}
	return time.Time{}
}

// ---- what comes

func (a *attachment) onFrame(h header, body [][]byte, now time.Time) *Error {
	switch h.uint(kType) {
	case tDeliver:
		if a.phase == pubOpen {
			return a.deliver(h, body)
		}
	case tEvent:
		a.event(h)
	case tError:
		err := h.error()
		if h.flag(kClosed) {
			if a.phase == pubOpen || a.phase == pubOpening || a.phase == pubWaiting {
				a.refused(err, now)
			}
		} else {
			a.complaint = err
		}
		a.changed()
	}
	return nil
}

func (a *attachment) deliver(h header, body [][]byte) *Error {
	first, count := h.uint(kOffset), h.uint(kCount)
	if count == 0 || len(body) < 2 || uint64(len(body[0])) != 4*count {
		return malformed("a delivery does not hold the %d messages it says", count)
	}
	contents, err := cutBatch(h.uint(kColumns), int(count), body)
	if err != nil {
		return err
	}
	offsets := make([]uint64, 0, count)
	if h.has(kRanges) {
		last, flat := uint64(0), h.uints(kRanges)
		for i := 0; i+1 < len(flat); i += 2 {
			if flat[i] >= flat[i+1] || (i > 0 && flat[i] <= last) || uint64(len(offsets))+flat[i+1]-flat[i] > count {
				return malformed("the ranges of a delivery do not hold the %d messages it says", count)
			}
			for last = flat[i]; last < flat[i+1]; last++ {
				offsets = append(offsets, last)
			}
		}
		if uint64(len(offsets)) != count || offsets[0] != first {
			return malformed("the ranges of a delivery do not hold the %d messages it says", count)
		}
	} else {
		for i := uint64(0); i < count; i++ {
			offsets = append(offsets, first+i)
		}
	}
	attempt := uint64(1)
	if h.has(kAttempt) {
		attempt = h.uint(kAttempt)
	}
	came := &delivery{messages: make([]*Message, 0, count), bytes: sizeOfBody(body)}
	room := make([]Message, len(contents)) // one allocation: they share the frames that came anyway
	pairs, at := h.uints(kTimestamps), 0
	for i := 0; i+1 < len(pairs); i += 2 {
		for n := uint64(0); n < pairs[i]; n++ {
			if at >= len(contents) {
				return malformed("a delivery has times for more than its %d messages", count)
			}
			each := contents[at]
			room[at] = Message{
				Topic: a.topic, Offset: offsets[at], Payload: each.payload, Key: each.key, Attributes: each.attributes,
				Timestamp: time.UnixMilli(int64(pairs[i+1])), DeliverAt: timeOf(each.deliverAt), Attempt: int(attempt),
				owner: a, epoch: a.epoch,
			}
			came.messages = append(came.messages, &room[at])
			at++
		}
	}
	if at != len(contents) {
		return malformed("a delivery has times for %d of its %d messages", at, count)
	}
	a.queue = append(a.queue, came)
	a.changed()
	return nil
}

func timeOf(ms uint64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(ms))
}

func (a *attachment) event(h header) {
	told := Event{Code: h.text(kCode), Count: h.uint(kCount), Text: h.text(kText), Offset: -1, Topic: a.topic}
	if h.has(kOffset) {
		told.Offset = int64(h.uint(kOffset))
	}
	a.sought = max(a.sought, h.uint(kSought))
	switch told.Code {
	case "active", "standby":
		active := told.Code == "active"
		a.active = &active
	case "sought":
		for _, each := range a.queue {
			a.used += uint64(len(each.messages) - each.at)
			a.usedBytes += each.bytes
		}
		a.queue, a.pending, a.unconfirmed, a.until, a.confirming = nil, nil, nil, nil, false
		a.ackDue = time.Time{}
		a.epoch++
		a.giveBack(true)
	}
	if a.events = append(a.events, told); len(a.events) > eventsKept {
		a.events = a.events[1:]
	}
	a.changed()
}

// ---- what the program takes

// next hands out up to most messages that came together; the program asks at now.
func (a *attachment) next(most int, now time.Time) []*Message {
	if len(a.queue) == 0 {
		a.starve(now)
		return nil
	}
	came := a.queue[0]
	end := min(len(came.messages), came.at+most)
	taken := came.messages[came.at:end]
	came.at = end
	if end == len(came.messages) {
		a.queue = a.queue[1:]
		a.usedBytes += came.bytes
	}
	a.used += uint64(len(taken))
	a.reached, a.moved = taken[len(taken)-1].Offset+1, true
	a.pace(now)
	return taken
}

// starve notes that the program has nothing to do: all credit goes back, and there may be more of it.
func (a *attachment) starve(now time.Time) {
	if a.fixed == 0 && a.used > 0 && a.used >= a.window/2 && now.Sub(a.usedSince) < paceAim {
		a.grow()
	}
	if a.used > 0 {
		a.giveBack(false)
		a.usedSince = now
	}
}

func (a *attachment) grow() {
	most := uint64(windowMost)
	if a.session != nil {
		most = min(most, a.session.limits.creditMessagesMax)
	}
	if wider := min(2*a.window, most); wider > a.window {
		a.used += wider - a.window
		a.window = wider
	}
}

// pace gives credit back when half of it is used, and follows the program: as much as it works off in a moment.
func (a *attachment) pace(now time.Time) {
	if a.used < (a.window+1)/2 && a.usedBytes < creditBytes/2 {
		return
	}
	if a.fixed == 0 && a.used >= (a.window+1)/2 {
		took := now.Sub(a.usedSince)
		if took < paceAim/4 {
			a.grow()
		} else if took > paceAim && a.window > 2 {
			less := a.window / 2
			a.used -= min(a.used, a.window-less)
			a.window = less
		}
	}
	a.giveBack(false)
	a.usedSince = now
}

func (a *attachment) giveBack(always bool) {
	if a.phase != pubOpen || a.session == nil || (a.used == 0 && a.usedBytes == 0 && !always) {
		return
	}
	a.session.emit(header{kType: tCredit, kHandle: a.handle, kMessages: a.used, kBytes: a.usedBytes})
	a.used, a.usedBytes = 0, 0
}

// ---- acknowledging

func (a *attachment) ack(messages []*Message, now time.Time) {
	for _, message := range messages {
		if message.epoch != a.epoch {
			a.forgotten = true
			continue
		}
		if n := len(a.pending); n > 0 && a.pending[n-1].end == message.Offset {
			a.pending[n-1].end++
		} else {
			a.pending = append(a.pending, span{message.Offset, message.Offset + 1})
		}
	}
	if a.ackDue.IsZero() && len(a.pending) > 0 {
		a.ackDue = now.Add(ackDelay)
	}
}

// flush sends what is acknowledged; with confirm, DONE is asked for.
func (a *attachment) flush(confirm bool) {
	if a.phase != pubOpen || a.session == nil {
		return
	}
	a.ackDue = time.Time{}
	fresh := a.pending
	a.pending = nil
	a.unconfirmed = append(a.unconfirmed, fresh...)
	confirm = (confirm || len(a.unconfirmed) > confirmRanges) && !a.confirming && len(a.unconfirmed) > 0
	if !confirm {
		a.sendAcks(fresh, 0)
		return
	}
	if len(fresh) == 0 {
		fresh = a.unconfirmed[len(a.unconfirmed)-1:]
	}
	covered, until := len(a.unconfirmed), a.until
	a.confirming = true
	epoch := a.epoch
	ref := a.session.expect(func(h header, _ [][]byte, _ time.Time) *Error {
		if a.epoch != epoch {
			return nil
		}
		a.confirming = false
		if h.uint(kType) == tError {
			err := h.error()
			if err.Code != "closed" {
				a.complaint = err
			}
			covered = len(a.unconfirmed)
		}
		if a.until == until {
			a.until = nil
		}
		a.unconfirmed = append([]span(nil), a.unconfirmed[min(covered, len(a.unconfirmed)):]...)
		a.changed()
		return nil
	})
	a.sendAcks(fresh, ref)
}

// repeatAcks sends what is not known to be written again.
func (a *attachment) repeatAcks() {
	a.sendAcks(a.unconfirmed, 0)
	a.sendUntil()
}

func (a *attachment) sendUntil() {
	if a.until != nil && a.session != nil && a.phase != pubClosing && a.phase != pubClosed {
		a.session.emit(a.about(header{kType: tAckUntil, kHandle: a.handle, kOffset: *a.until}))
	}
}

func (a *attachment) sendAcks(spans []span, ref uint64) {
	a.sendRanges(header{kType: tAck}, spans, ref)
}

// sendRanges splits ranges over several frames; a REF is on the last, whose DONE covers all.
func (a *attachment) sendRanges(h header, spans []span, ref uint64) {
	for len(spans) > 0 {
		some := spans[:min(len(spans), rangesMax)]
		spans = spans[len(some):]
		flat := make([]uint64, 0, 2*len(some))
		for _, each := range some {
			flat = append(flat, each.first, each.end)
		}
		frame := a.about(header{kHandle: a.handle, kRanges: flat})
		for key, value := range h {
			frame[key] = value
		}
		if len(spans) == 0 && ref != 0 {
			frame[kRef] = ref
		}
		a.session.emit(frame)
	}
}

// about adds to a frame about messages of which moves of the subscription this client has heard.
func (a *attachment) about(h header) header {
	if a.sought > 0 {
		h[kSought] = a.sought
	}
	return h
}

func (a *attachment) settled() bool {
	return len(a.pending) == 0 && len(a.unconfirmed) == 0 && a.until == nil
}

func spansOf(messages []*Message, epoch int) []span {
	var found []span
	for _, message := range messages {
		if message.epoch != epoch {
			continue
		}
		if n := len(found); n > 0 && found[n-1].end == message.Offset {
			found[n-1].end++
		} else {
			found = append(found, span{message.Offset, message.Offset + 1})
		}
	}
	return found
}

func (a *attachment) nack(messages []*Message, delay *time.Duration, reason string) {
	a.flush(false)
	h := header{kType: tNack}
	if delay != nil {
		h[kDelay] = uint64(delay.Milliseconds())
	}
	if reason != "" {
		h[kReason] = reason
	}
	if a.phase == pubOpen && a.session != nil {
		a.sendRanges(h, spansOf(messages, a.epoch), 0)
	}
}

func (a *attachment) extend(messages []*Message) {
	if a.phase == pubOpen && a.session != nil {
		a.sendRanges(header{kType: tExtend}, spansOf(messages, a.epoch), 0)
	}
}

func (a *attachment) ackUntil(message *Message, now time.Time) {
	if message.epoch != a.epoch {
		a.forgotten = true
		return
	}
	a.flush(false)
	until := message.Offset
	a.until = &until
	a.sendUntil()
	// the message itself as well: what the next confirmation is about
	a.ack([]*Message{message}, now)
}

// close sends what is acknowledged and says CLOSE.
func (a *attachment) close() {
	a.flush(false)
	switch {
	case a.phase == pubClosed || a.phase == pubClosing:
	case (a.phase == pubOpen || a.phase == pubOpening || a.phase == pubWaiting) && a.session != nil:
		a.phase, a.queue = pubClosing, nil
		a.session.sayClose(a.handle, func() { a.fail(closedError("the consumer")) })
	default:
		a.fail(closedError("the consumer"))
	}
}
