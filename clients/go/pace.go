package ister

import "time"

// How many messages are kept ready for a program: as many as it works off in half a second. A program's pace is what it
// takes in a round, divided by the time it was busy: from when it was handed something until it asked for more, and
// while messages waited for it. Time spent waiting for messages does not count.
//
// Invariants
//   - a window is from 1 to `most`, and grows at most fourfold in a round
//   - a program that takes long over a message has only that one in hand, and no more ready than its pace

const (
	windowShared   = 2   // one to work on, and one that is ready: the rest is for other consumers
	windowAlone    = 100 // there are no others
	windowMost     = 65_536
	paceAim        = 500 * time.Millisecond
	atOnceAim      = 4 * time.Millisecond // the broker is told of so much work at a time
	atOnceMost     = 16_384
	growthMost     = 4
	roundMost      = 1024 // messages of a round, however large the window
	batchesBetter  = 1.3  // larger batches that improve the pace by so much are worth a larger window
	batchesWorse   = 0.75
	batchesLarger  = 1.5
	batchesSmaller = 0.67
)

type pace struct {
	most, window uint64
	atOnce       int // how many messages are handed out at a time

	began      time.Time // since when the program is busy with what it was handed; zero: it is not
	done       time.Time // when it last asked for more
	busy       time.Duration
	taken      uint64
	last       int
	fits       float64 // how many of the last messages would have taken a moment
	batches    uint64
	before     float64
	sizeBefore float64
}

func newPace(first uint64) pace { return pace{most: windowMost, window: first, atOnce: 1} }

// asked notes that the program asks for more: it is done with what it was handed.
func (p *pace) asked(now time.Time) {
	if !p.began.IsZero() {
		took := max(now.Sub(p.began), time.Microsecond)
		p.busy += took
		p.began = time.Time{}
		before := p.fits
		p.fits = float64(p.last) * float64(atOnceAim) / float64(took)
		if p.fits >= float64(p.atOnce) {
			p.atOnce = int(min(p.fits, float64(growthMost*p.atOnce), atOnceMost))
		} else if before < float64(p.atOnce) { // a single pause of the machine does not count
			p.atOnce = max(1, int(p.fits))
		}
	}
	p.done = now
	if p.taken > 0 && (p.taken >= min(p.window, roundMost) || p.busy >= paceAim) {
		p.endRound()
	}
}

// handed notes that the program was handed messages that came at some time; together: by one call.
func (p *pace) handed(count int, came, now time.Time, together bool) {
	since := p.began
	if since.IsZero() {
		if since = came; p.done.After(came) {
			since = p.done
		}
	}
	p.busy += max(0, now.Sub(since))
	p.taken += uint64(count)
	p.last = count
	p.began = now
	if together {
		p.batches++
	} else {
		p.batches += uint64(count)
	}
}

func (p *pace) endRound() {
	rate := float64(p.taken) / max(p.busy.Seconds(), 1e-6)
	window := rate * paceAim.Seconds()
	size := float64(p.taken) / float64(p.batches)
	if window < float64(p.taken) && p.taken > p.batches {
		// The program may spend its time on each batch, and not on each message.
		paid := size > batchesLarger*p.sizeBefore && rate > batchesBetter*p.before
		missed := size < batchesSmaller*p.sizeBefore && rate < batchesWorse*p.before
		if paid || missed {
			window = 2 * float64(p.window)
		} else {
			window = max(window, float64(p.window)/2)
		}
	}
	p.window = max(1, min(uint64(min(window, growthMost*float64(p.window))), p.most))
	p.before, p.sizeBefore = rate, size
	p.busy, p.taken, p.batches = 0, 0, 0
}
