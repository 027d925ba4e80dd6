package ister

import (
	"cmp"
	"slices"
	"time"
	"unicode/utf8"
)

// What one consumer has acknowledged: gathered into ranges, sent, and kept until the broker has written it.
//
// Invariants
//   - what was delivered before the broker forgot about it, or moved the subscription, is never acknowledged
//   - acknowledgments stay here until a DONE covers them, and are sent again over a resumed session

const (
	ackDelay      = 5 * time.Millisecond
	ackRanges     = 256  // scattered acknowledgments that are sent without waiting longer
	confirmRanges = 1000 // unconfirmed ranges, beyond which the broker is asked what is written
	reasonMost    = 200  // characters
)

type span struct{ first, end uint64 }

type acknowledgments struct {
	silent      bool   // the broker wants none, of a reader or on a non-reliable topic
	soughtAt    int    // the epoch since the subscription was moved: what is older was to come again
	forgotten   bool   // some were lost, and the program was not told
	pending     []span // not sent yet, beside the run in handing.go
	unconfirmed []span
	covered     int     // so many of them are covered by the answer that is awaited
	until       *uint64 // everything up to here as well; not confirmed yet
	ackDue      time.Time
	confirming  bool
}

// forget drops acknowledgments: the broker knows no more what they are about.
func (a *attachment) forget() {
	if !a.settled() {
		a.forgotten = true
	}
	a.epoch++
	a.voidAcks()
	a.changed()
}

func (a *attachment) voidAcks() {
	a.takeRun()
	a.pending, a.unconfirmed, a.until, a.confirming, a.covered = nil, nil, nil, false, 0
	a.ackDue = time.Time{}
}

// isVoid says whether nothing is to be said of a delivery any more.
func (a *attachment) isVoid(d *delivery) bool {
	if d.epoch == a.epoch {
		return false
	}
	if d.epoch >= a.soughtAt { // else it was asked for again
		a.forgotten = true
	}
	return true
}

// ack acknowledges messages, soon.
func (a *attachment) ack(messages []*Message, now time.Time) {
	g := &a.handing
	for _, message := range messages {
		if !a.silent && a.isVoid(message.delivery) {
			continue
		}
		if g.quickAck(message) {
			continue
		}
		a.endRun()
		g.beginRun(message)
	}
	a.soon(now)
}

// ackSpans acknowledges what came with one delivery, soon.
func (a *attachment) ackSpans(d *delivery, spans []span, now time.Time) {
	if a.silent || a.isVoid(d) {
		return
	}
	a.endRun()
	a.pending = append(a.pending, spans...)
	a.soon(now)
}

func (a *attachment) soon(now time.Time) {
	if a.silent {
		return
	}
	if a.ackDue.IsZero() && (len(a.pending) > 0 || a.hasRun()) {
		a.ackDue = now.Add(ackDelay)
	}
	if len(a.pending) >= ackRanges {
		a.flush(false)
	}
}

func (a *attachment) endRun() {
	if run := a.takeRun(); run.first < run.end && !a.silent {
		a.pending = append(a.pending, run)
	}
}

// flush sends what is acknowledged; with confirm, DONE is asked for.
func (a *attachment) flush(confirm bool) {
	if a.phase != pubOpen || a.session == nil || a.silent {
		return
	}
	a.ackDue = time.Time{}
	a.endRun()
	fresh := joined(a.pending)
	a.pending = nil
	if n := len(a.unconfirmed); n > a.covered && len(fresh) > 0 && a.unconfirmed[n-1].end == fresh[0].first {
		a.unconfirmed[n-1].end = fresh[0].end
		a.unconfirmed = append(a.unconfirmed, fresh[1:]...)
	} else {
		a.unconfirmed = append(a.unconfirmed, fresh...)
	}
	confirm = (confirm || len(a.unconfirmed) > confirmRanges) && !a.confirming && len(a.unconfirmed) > 0
	if !confirm {
		a.sendAcks(fresh, 0)
		return
	}
	if len(fresh) == 0 { // acknowledging again is harmless, and the answer covers the earlier ones
		fresh = a.unconfirmed[len(a.unconfirmed)-1:]
	}
	a.covered, a.confirming = len(a.unconfirmed), true
	until, epoch := a.until, a.epoch
	a.sendAcks(fresh, a.session.expect(func(h header, _ [][]byte, _ time.Time) *Error {
		if a.epoch != epoch || !a.confirming {
			return nil
		}
		a.confirming = false
		if h.uint(kType) == tError {
			if err := h.error(); err.Code != "closed" && err.Code != "not-active" {
				a.complaint = err
			}
			a.covered = len(a.unconfirmed)
		}
		if a.until == until {
			a.until = nil
		}
		a.unconfirmed = slices.Clone(a.unconfirmed[min(a.covered, len(a.unconfirmed)):])
		a.covered = 0
		a.changed()
		return nil
	}))
}

// joined sorts ranges, and joins those that touch.
func joined(spans []span) []span {
	if len(spans) < 2 {
		return spans
	}
	slices.SortFunc(spans, func(one, other span) int { return cmp.Compare(one.first, other.first) })
	whole := spans[:1]
	for _, each := range spans[1:] {
		if last := &whole[len(whole)-1]; each.first <= last.end {
			last.end = max(last.end, each.end)
		} else {
			whole = append(whole, each)
		}
	}
	return whole
}

// repeatAcks sends what is not known to be written again, and what was gathered meanwhile for the first time.
func (a *attachment) repeatAcks() {
	if a.silent {
		return
	}
	a.endRun()
	a.confirming, a.covered = false, 0
	a.unconfirmed = joined(append(a.unconfirmed, a.pending...))
	a.pending, a.ackDue = nil, time.Time{}
	a.sendAcks(a.unconfirmed, 0)
	a.sendUntil()
}

// unwritten returns the frames about everything that is not known to be written.
func (a *attachment) unwritten() (frames []header) {
	if a.silent {
		return nil
	}
	a.endRun()
	frames = a.framesOf(header{kType: tAck}, joined(slices.Concat(a.unconfirmed, a.pending)), 0)
	if a.until != nil {
		frames = append(frames, a.about(header{kType: tAckUntil, kHandle: a.handle, kOffset: *a.until}))
	}
	return frames
}

func (a *attachment) lastWords() []header { return a.words }

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
	for _, frame := range a.framesOf(h, spans, ref) {
		a.session.emit(frame)
	}
}

func (a *attachment) framesOf(h header, spans []span, ref uint64) (frames []header) {
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
		frames = append(frames, frame)
	}
	return frames
}

// about adds to a frame about messages of which moves of the subscription this client has heard.
func (a *attachment) about(h header) header {
	if a.moves > 0 {
		h[kSought] = a.moves
	}
	return h
}

func (a *attachment) settled() bool {
	return a.silent || (len(a.pending) == 0 && len(a.unconfirmed) == 0 && a.until == nil && !a.hasRun())
}

func (a *attachment) spansOf(messages []*Message) []span {
	found := make([]span, 0, 1)
	for _, message := range messages {
		if a.isVoid(message.delivery) {
			continue
		}
		if n := len(found); n > 0 && found[n-1].end == message.Offset {
			found[n-1].end++
		} else {
			found = append(found, span{message.Offset, message.Offset + 1})
		}
	}
	return joined(found)
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
	if a.phase == pubOpen && a.session != nil && !a.silent { // else what is not acknowledged comes again anyway
		a.sendRanges(h, a.spansOf(messages), 0)
	}
}

func (a *attachment) extend(messages []*Message) {
	if a.phase == pubOpen && a.session != nil && !a.silent {
		a.sendRanges(header{kType: tExtend}, a.spansOf(messages), 0)
	}
}

func (a *attachment) ackUntil(message *Message, now time.Time) {
	if a.silent || a.isVoid(message.delivery) {
		return
	}
	a.flush(false)
	until := message.Offset
	if a.until == nil || *a.until < until {
		a.until = &until
	}
	if a.phase == pubOpen {
		a.sendUntil()
	}
	a.ack([]*Message{message}, now) // the message itself as well: what the next confirmation is about
}

// shortened is a reason as it fits its key.
func shortened(reason string) string {
	if utf8.RuneCountInString(reason) <= reasonMost {
		return reason
	}
	return string([]rune(reason)[:reasonMost])
}
