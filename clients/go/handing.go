package ister

import (
	"cmp"
	"sync"
	"time"
)

// What one consumer has for its program, and the credit for more: deliveries that wait, and the one in hand. It decides
// how many messages go to the program at a time, and what the broker is told of that: credit, and how many messages the
// program has, or may have by now (TAKEN, section 9.6 of PROTOCOL.md).
//
// Invariants
//   - what waits never exceeds the credit that was given (in bytes: by one delivery)
//   - credit is given back for messages that the program was given, and for no others
//   - what the program takes without the client's lock is what the broker was told of
//   - the lock here is taken after the client's, and never before it

const (
	creditBytes     = 8 << 20
	creditBack      = 256       // messages: so much used credit is given back of a small one, a sixteenth of a large one
	creditBackBytes = 256 << 10 // the same in bytes
	ackAtOnce       = 64        // a program that takes no more at a time has its acknowledgments sent before what is next
	slabMost        = 128       // messages that are allocated together
)

type handing struct {
	queue    []*delivery
	sharing  uint64 // how many consumers the program takes from in turn
	reached  uint64 // a reader's first offset that was not handed out; where it began before it handed out any
	moved    bool   // reached counts
	tells    bool   // the broker wants to be told what the program takes
	window   uint64 // messages of credit
	bytes    uint64 // bytes of credit
	used     int64  // of them, since credit was given back
	usedSize int64
	handed   uint64 // messages since OPENED that are the program's, or that it may take without the lock
	told     uint64 // these may be handed out
	came     uint64 // messages since OPENED
	paced    bool   // the credit follows the program's pace
	most     uint64 // if it does
	pace     pace
	now      time.Time // when the program asked last

	old         bool   // what is in hand came before the open: its credit is none of this one's
	recalled    bool   // the credit is withheld until the program asks for something
	singly      int    // deliveries in the queue that are handed out one by one
	asking      uint64 // the REF of the question whether the next one may be handed out; 0: there is none
	leave       bool   // it may
	afterSingly bool   // the last one was handed out alone: its acknowledgment may be on the way

	mu     sync.Mutex // of what the program takes without the client's lock
	inHand *delivery
	stop   int // its messages up to here are the program's
	slab   []Message
	run    run
}

// run is what the program acknowledges in order: it grows without the client's lock.
type run struct {
	of         *delivery
	first, end uint64
}

// quick returns a message that the program may take without the client's lock; nil where it has to ask.
func (g *handing) quick() *Message {
	g.mu.Lock()
	defer g.mu.Unlock()
	if d := g.inHand; d != nil && d.at < g.stop {
		return g.fresh(d)
	}
	return nil
}

func (g *handing) fresh(d *delivery) *Message {
	if len(g.slab) == 0 {
		g.slab = make([]Message, min(g.stop-d.at, slabMost))
	}
	m := &g.slab[0]
	g.slab = g.slab[1:]
	d.fill(m)
	return m
}

// quickAck acknowledges the message behind the one that was acknowledged last, if both came together.
func (g *handing) quickAck(m *Message) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m.delivery == g.run.of && m.Offset == g.run.end && g.run.of != nil {
		g.run.end++
		return true
	}
	return false
}

// takeRun ends the run, and returns it; an empty one where nothing is acknowledged.
func (g *handing) takeRun() span {
	g.mu.Lock()
	defer g.mu.Unlock()
	found := span{g.run.first, g.run.end}
	g.run = run{}
	return found
}

func (g *handing) beginRun(m *Message) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.run = run{m.delivery, m.Offset, m.Offset + 1}
}

// hasRun says whether something is acknowledged that was not sent.
func (g *handing) hasRun() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.run.of != nil
}

// withhold hands out nothing more of what is in hand.
func (g *handing) withhold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inHand, g.stop, g.slab = nil, 0, nil
}

// unseen returns how many messages the program may still take without asking.
func (g *handing) unseen() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inHand == nil {
		return 0
	}
	return g.stop - g.inHand.at
}

// ---- what comes (the rest has the client's lock)

// restart is for an open: nothing has come yet, and no credit is used.
func (a *attachment) restart() {
	g := &a.handing
	if g.window == 0 {
		g.window, g.bytes, g.sharing = a.fixed, cmp.Or(g.bytes, creditBytes), max(1, g.sharing)
		if g.paced = a.fixed == 0; g.paced {
			first := uint64(windowAlone)
			if a.kind == "shared" || a.kind == "key-shared" {
				first = windowShared
			}
			g.pace, g.window, g.most = newPace(first), first, cmp.Or(g.most, windowMost)
		} else {
			g.pace = newPace(a.fixed)
		}
	}
	limits := a.session.limits
	g.window = max(1, min(g.window, limits.creditMessagesMax))
	g.bytes = max(1, min(g.bytes, limits.creditBytesMax))
	a.dropUnseen()
	g.used, g.usedSize = 0, 0
	g.came, g.handed, g.told, g.singly = 0, 0, 0, 0
	g.tells, g.leave, g.recalled, g.afterSingly, g.asking = false, false, false, false, 0
}

// dropUnseen drops what was not handed out: it comes again, where the broker keeps it. What is in hand of a delivery that
// needs no acknowledgments may be taken to its end.
func (a *attachment) dropUnseen() {
	g := &a.handing
	g.queue, g.singly = nil, 0
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inHand == nil {
		return
	}
	if a.silent {
		g.inHand.count, g.old = g.stop, true
	} else {
		g.inHand, g.stop, g.slab = nil, 0, nil
	}
}

func (g *handing) add(d *delivery) {
	g.came += uint64(d.count)
	if d.singly {
		g.singly++
	}
	g.queue = append(g.queue, d)
}

// dropWaiting drops what the program was not given: the broker has taken it back.
func (g *handing) dropWaiting() {
	for _, d := range g.queue {
		g.used += int64(d.count)
		g.usedSize += int64(d.bytes)
	}
	g.mu.Lock()
	if g.inHand != nil {
		g.used += int64(g.inHand.count - g.stop)
		g.inHand, g.stop, g.slab = nil, 0, nil
	}
	g.mu.Unlock()
	g.queue, g.singly, g.asking, g.leave = nil, 0, 0, false
	g.handed = g.came // what comes later counts behind it
}

// ---- what the program takes

// hasSome says whether the program should ask: there is a message for it, or something to say to the broker.
func (g *handing) hasSome() bool {
	switch {
	case g.recalled:
		return true
	case g.asking != 0:
		return g.unseen() > 0
	}
	if len(g.queue) > 0 {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.inHand != nil && g.inHand.at < g.inHand.count
}

// harm returns the damage that the subscription has come upon, once, when nothing from before it is left.
func (a *attachment) harm() *Error {
	if a.damage == nil || a.asking != 0 || a.hasSome() {
		return nil
	}
	damage := a.damage
	a.damage = nil
	return damage
}

// asked notes that the program asks for more: it is done with what it had. Its credit follows.
func (a *attachment) asked(now time.Time) {
	g := &a.handing
	g.now = now
	if g.unseen() == 0 {
		g.pace.asked(now)
		if window := a.wanted(); g.paced && window != g.window {
			a.setCredit(window)
		}
	}
	if g.recalled {
		g.recalled = false
		a.giveBack(0, 0, true)
	}
}

// wanted is how many messages should be ready, by the program's pace.
func (a *attachment) wanted() uint64 {
	g := &a.handing
	most := g.most
	if a.session != nil {
		most = min(most, a.session.limits.creditMessagesMax)
	}
	return max(1, min(g.pace.window/g.sharing, most))
}

// setCredit gives a larger credit at once; a smaller one is reached as messages are handed out.
func (a *attachment) setCredit(window uint64) {
	g := &a.handing
	g.used += int64(window) - int64(g.window)
	g.window = window
	if g.used > 0 || g.usedSize > 0 {
		a.giveBack(0, 0, true)
	}
}

// share sets how much of the credit is this consumer's, where many share it.
func (a *attachment) share(most, size uint64) {
	g := &a.handing
	g.most = most
	if a.fixed > 0 {
		a.fixed = most
	}
	if g.window == 0 { // it is not open yet
		g.bytes = size
		return
	}
	g.usedSize += int64(size) - int64(g.bytes)
	g.bytes = size
	window := most
	if g.paced {
		window = a.wanted()
	}
	a.setCredit(window)
}

// next hands out up to most messages that came together; the program asks at now.
func (a *attachment) next(most int, now time.Time) []*Message {
	g := &a.handing
	count := a.regain(most, now)
	if count == 0 {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	room, taken := make([]Message, count), make([]*Message, count)
	for i := range taken {
		g.inHand.fill(&room[i])
		taken[i] = &room[i]
	}
	return taken
}

// regain makes up to most messages the program's by one call; what it might have taken singly is among them.
func (a *attachment) regain(most int, now time.Time) int {
	g := &a.handing
	a.asked(now)
	g.mu.Lock()
	left := 0
	if g.inHand != nil {
		left = g.stop - g.inHand.at
	}
	if g.old && left > 0 {
		g.mu.Unlock()
		return min(most, left)
	}
	g.stop -= left
	g.mu.Unlock()
	g.handed -= uint64(left)
	g.used -= int64(left)
	return a.cut(most, true)
}

// nextOne hands out one message, and lets the program take those that follow without asking.
func (a *attachment) nextOne(now time.Time) *Message {
	g := &a.handing
	if m := g.quick(); m != nil { // another goroutine asked meanwhile
		return m
	}
	a.asked(now)
	most := windowMost
	if g.tells {
		most = g.pace.atOnce
	}
	if a.cut(most, false) == 0 {
		return nil
	}
	return g.quick()
}

// cut makes messages of the next delivery the program's, at most so many, and returns how many.
func (a *attachment) cut(most int, together bool) int {
	g := &a.handing
	d := g.inHand
	if d == nil || g.stop >= d.count {
		if len(g.queue) == 0 {
			return 0
		}
		d = g.queue[0]
		g.queue[0] = nil
		g.queue = g.queue[1:]
		if d.singly {
			g.singly--
		}
		g.usedSize += int64(d.bytes)
		g.mu.Lock()
		g.inHand, g.stop, g.slab, g.old = d, 0, nil, false
		g.mu.Unlock()
	}
	first := g.stop
	stop := min(d.count, first+most)
	if g.tells && (d.singly || g.afterSingly) {
		if !a.mayHaveOne() {
			return 0
		}
		g.afterSingly = d.singly
		stop = first + 1
	}
	if a.reader() {
		g.reached, g.moved = d.behind(stop-first), true
	}
	g.handed += uint64(stop - first)
	g.used += int64(stop - first)
	a.tell(d, stop-first, together)
	g.mu.Lock()
	if g.inHand == d {
		g.stop = stop
	}
	g.mu.Unlock()
	return stop - first
}

// tell says what the program is given, before it is given it, and gives credit back once that is a good part of all.
func (a *attachment) tell(d *delivery, count int, together bool) {
	g := &a.handing
	g.pace.handed(count, d.came, g.now, together)
	due := g.used >= int64(partOf(g.window, creditBack)) || g.usedSize >= int64(partOf(g.bytes, creditBackBytes))
	if !g.tells || !(due || g.handed > g.told) {
		if due {
			a.giveBack(0, 0, true)
		}
		return
	}
	g.told = max(g.told, g.handed)
	if g.singly == 0 && !d.singly {
		g.told = max(g.told, g.handed-uint64(count)+uint64(g.pace.atOnce))
	}
	if g.pace.atOnce <= ackAtOnce {
		a.flush(false) // what is done is not in the program's hands any more
	}
	a.giveBack(g.told, 0, due || 2*g.used >= int64(g.window)) // one frame for both
}

func partOf(credit, least uint64) uint64 { return max(credit/16, min((credit+1)/2, least)) }

// mayHaveOne says whether the broker knows that the program gets the next message, which may kill it; else it is asked.
func (a *attachment) mayHaveOne() bool {
	g := &a.handing
	if g.leave {
		g.leave = false
		return true
	}
	if g.asking == 0 && a.phase == pubOpen && a.session != nil {
		ref := a.session.expect(func(h header, _ [][]byte, _ time.Time) *Error {
			if h.uint(kRef) != g.asking { // what it was about was taken back
				return nil
			}
			g.asking = 0
			if h.uint(kType) == tDone {
				g.leave = true
				g.told = max(g.told, g.handed+1)
			}
			a.changed()
			return nil
		})
		g.asking = ref
		a.flush(false)
		a.giveBack(g.handed+1, ref, true)
	}
	return false
}

// giveBack gives the used credit back, and says how many messages the program may have taken (0: nothing is said).
func (a *attachment) giveBack(taken, ref uint64, back bool) {
	g := &a.handing
	messages, size := uint64(0), uint64(0)
	if back {
		messages, size = uint64(max(0, g.used)), uint64(max(0, g.usedSize))
	}
	if a.phase != pubOpen || a.session == nil || (messages == 0 && size == 0 && taken == 0) {
		return
	}
	h := header{kType: tCredit, kHandle: a.handle, kMessages: messages, kBytes: size}
	if taken > 0 {
		h[kTaken] = taken
	}
	if ref != 0 {
		h[kRef] = ref
	}
	a.session.emit(h)
	g.used -= int64(messages)
	g.usedSize -= int64(size)
}
