package ister

import (
	"bytes"
	"fmt"
	"time"
)

// A consumer's or reader's side of the conversation, section 9 of PROTOCOL.md: opening, opening again, what comes, and
// closing. What is on its way to the program, and credit for more, is in handing.go; what the program says of it in
// acknowledgments.go. It knows no socket, no clock and no goroutine.
//
// Invariants
//   - what was delivered before the broker forgot about it, or moved the subscription, is void before anything more is
//     said about it

const (
	placeRetry   = 500 * time.Millisecond
	eventsKept   = 256
	busy         = "subscription-busy"
	otherOptions = "subscription-options"
	damaged      = "log-damaged"
)

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
	complaint *Error // about an acknowledgment
	damage    *Error // that the subscription has come upon: told when nothing from before it is left
	trouble   *Error
	forgotten bool
	position  uint64
	active    *bool
	dropped   uint64 // messages of a non-reliable topic
	events    []Event
	onEvent   func(Event)      // instead of keeping them
	group     *PatternConsumer // that it is one topic of

	handing
	acknowledgments
	epoch       int    // messages of an earlier one are not acknowledged any more
	moves       uint64 // of the subscription, of which the broker has told, where it counts them
	deliveredIn []byte // the session that knows what was delivered
	words       []header

	due      time.Time
	failures int
	changed  func()
}

func (a *attachment) number() uint64 { return a.handle }
func (a *attachment) reader() bool   { return a.kind == "reader" }

func (a *attachment) onReady(s *session, resumed bool, now time.Time) {
	a.session = s
	if !resumed || (a.opened && !bytes.Equal(a.deliveredIn, s.secret)) {
		a.forget()
	} else if a.phase == pubIdle && a.opened {
		a.repeatAcks() // so that what they are about is not delivered again
	}
	if a.phase == pubIdle || (a.phase == pubWaiting && !a.due.After(now)) {
		a.open()
	}
}

func (a *attachment) open() {
	a.restart()
	a.phase = pubOpening
	a.openRef = a.session.expect(a.onOpenAnswer)
	h := header{
		kType: tOpenConsumer, kRef: a.openRef, kHandle: a.handle, kTopic: a.topic,
		kSubscription: a.subscription, kSubscriptionType: a.kind, kMessages: a.window, kBytes: a.handing.bytes,
		kSparse: true, kTaken: 0, kInstance: a.instance, kSought: 0,
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
		a.moves = h.uint(kSought)
		a.tells = h.has(kTaken)
		a.silent = a.reader() || h.text(kStrategy) == "non-reliable"
		a.deliveredIn = a.session.secret
		if a.reader() && !a.moved && h.text(kStrategy) == "reliable" {
			a.reached, a.moved = a.position, true
		}
		a.repeatAcks() // a broker that had not finished an earlier open ignored them before
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
		a.session.sayClose(a.handle, nil, func() {})
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
	again := err.Action == Retry || (err.Code == "unknown-handle" && a.opened)
	if !again || (err.Code == busy && !a.opened && !a.patient) {
		a.fail(err)
		return
	}
	wait := backOff(a.failures, backOffMin, backOffMax)
	if err.Code == busy {
		wait = placeRetry
	}
	a.failures++
	a.phase, a.trouble, a.due = pubWaiting, err, now.Add(wait)
	a.forget() // the worker that answers then may not know what was delivered before
	a.dropUnseen()
}

func (a *attachment) fail(err *Error) {
	if a.phase == pubClosed {
		return
	}
	a.phase, a.err = pubClosed, err
	a.dropUnseen()
	a.withhold()
	a.changed()
}

func (a *attachment) onLost(reason *Error) {
	a.trouble = reason
	switch a.phase {
	case pubOpening, pubOpen, pubWaiting:
		a.phase = pubIdle
		a.dropUnseen()
		a.confirming, a.covered = false, 0
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
		if a.phase != pubOpen {
			return nil
		}
		came, err := newDelivery(h, body)
		if err != nil {
			return err
		}
		came.owner, came.epoch, came.came = a, a.epoch, now
		a.add(came)
		a.changed()
	case tEvent:
		a.event(h)
	case tError:
		err := h.error()
		alive := a.phase == pubOpen || a.phase == pubOpening || a.phase == pubWaiting
		switch {
		case h.flag(kClosed):
			if alive {
				a.refused(err, now)
			}
		case err.Code == "not-active": // too late: the consumer that is active now gets the messages
		case err.Action == Retry || err.Code == "unknown-handle":
			if alive {
				a.refused(err, now)
			}
		default:
			a.complaint = err
		}
		a.changed()
	}
	return nil
}

func (a *attachment) event(h header) {
	told := Event{Code: h.text(kCode), Count: h.uint(kCount), Text: h.text(kText), Offset: -1, Topic: a.topic}
	if h.has(kOffset) {
		told.Offset = int64(h.uint(kOffset))
	}
	a.moves = max(a.moves, h.uint(kSought))
	switch told.Code {
	case "active", "standby":
		active := told.Code == "active"
		a.active = &active
	case "dropped":
		a.dropped = told.Count
	case damaged: // nothing comes until an operator decides: the program must hear of that
		a.damage = &Error{damaged, Stop, told.Text}
	case "sought":
		a.damage = nil
		a.voidAcks()
		a.epoch++
		a.soughtAt = a.epoch
		a.dropWaiting()
		a.giveBack(0, 0, true)
	case "recalled":
		a.dropWaiting()
		a.recalled = true
		a.used, a.usedSize = int64(a.window), int64(a.handing.bytes)
	}
	if a.onEvent != nil {
		a.onEvent(told)
	} else if a.events = append(a.events, told); len(a.events) > eventsKept {
		a.events = a.events[1:]
	}
	a.changed()
}

// fails has everything in hand fail, for a program that ends by an error of its own; only the broker knows all of it.
func (a *attachment) fails(reason string) {
	if a.phase == pubOpen && a.session != nil && a.tells {
		a.flush(false)
		a.session.emit(a.about(header{
			kType: tNack, kHandle: a.handle, kRanges: []uint64{}, kTaken: a.handed, kReason: shortened(reason),
		}))
	}
}

// close sends what is acknowledged and says CLOSE.
func (a *attachment) close() {
	a.flush(false)
	switch {
	case a.phase == pubClosed || a.phase == pubClosing:
	case (a.phase == pubOpen || a.phase == pubOpening || a.phase == pubWaiting) && a.session != nil:
		a.phase = pubClosing
		a.dropUnseen()
		a.withhold()
		a.session.sayClose(a.handle, a.unwritten(), func() { a.fail(closedError("the consumer")) })
	default:
		if a.phase == pubIdle {
			a.words = a.unwritten()
		}
		a.fail(closedError("the consumer"))
	}
}
