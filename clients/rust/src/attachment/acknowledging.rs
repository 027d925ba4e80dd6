//! What the program says of messages: gathered, sent, repeated over a resumed session, and forgotten with what it was
//! about.

use std::time::{Duration, Instant};

use super::{Attachment, Phase, NOT_ACTIVE};
use crate::error::Action;
use crate::message::Message;
use crate::outbox::{Confirmation, Question, Wire};
use crate::wire::{key, kind, Frame, Header, RANGES_MAX, REASON_LETTERS_MAX};

const ACK_DELAY: Duration = Duration::from_millis(3);
const CONFIRM_RANGES: usize = 1000; // unconfirmed ranges, beyond which the broker is asked what is written

/// Half-open: first and end.
pub(super) type Span = (u64, u64);

impl Attachment {
    /// Drop acknowledgments: the broker knows no more what they are about.
    pub(super) fn forget(&mut self) {
        if !self.is_settled() {
            self.forgotten = true;
        }
        self.epoch += 1;
        self.drop_acks();
        self.changed.broadcast();
    }

    pub(super) fn drop_acks(&mut self) {
        self.pending.clear();
        self.unconfirmed.clear();
        (self.until, self.ack_due, self.confirming) = (None, None, false);
    }

    /// Whether a message may still be acknowledged; the program is told of one that may not.
    fn counts(&mut self, message: &Message) -> bool {
        let counts = message.origin.epoch == self.epoch;
        if !counts && message.origin.epoch >= self.sought {
            self.forgotten = true;
        }
        counts
    }

    /// Acknowledge; true where that is to be sent at a time that was not known before.
    pub fn ack(&mut self, messages: &[Message], now: Instant) -> bool {
        for message in messages {
            if self.counts(message) {
                push_span(&mut self.pending, message.offset);
            }
        }
        if self.ack_due.is_some() || self.pending.is_empty() {
            return false;
        }
        self.ack_due = Some(now + ACK_DELAY);
        true
    }

    /// Send what is acknowledged; with `confirm`, ask for DONE.
    pub fn flush(&mut self, confirm: bool, wire: &mut Wire) {
        if self.phase != Phase::Open {
            return;
        }
        self.ack_due = None;
        let mut fresh = std::mem::take(&mut self.pending);
        self.unconfirmed.extend_from_slice(&fresh);
        let ask = (confirm || self.unconfirmed.len() > CONFIRM_RANGES) && !self.confirming;
        let Some(&last) = self.unconfirmed.last().filter(|_| ask) else {
            self.send_acks(&fresh, None, wire);
            return;
        };
        if fresh.is_empty() {
            fresh.push(last);
        }
        self.confirming = true;
        let what = Confirmation { epoch: self.epoch, covered: self.unconfirmed.len(), until: self.until };
        let question = wire.expect(Question::Confirm(self.number, what));
        self.send_acks(&fresh, Some(question), wire);
    }

    pub fn on_confirmed(&mut self, what: Confirmation, header: &Header) {
        if what.epoch != self.epoch {
            return;
        }
        self.confirming = false;
        let covered = what.covered.min(self.unconfirmed.len());
        if header.kind == kind::ERROR {
            let error = header.error();
            let again = error.action() == Action::Retry && error.code() != NOT_ACTIVE;
            if error.code() != "closed" && error.code() != NOT_ACTIVE {
                self.complaint = Some(error);
            }
            if again {
                let mut all = std::mem::take(&mut self.unconfirmed);
                all.append(&mut self.pending);
                self.pending = all; // the next flush says them again
                self.changed.broadcast();
                return;
            }
        }
        if self.until == what.until {
            self.until = None;
        }
        self.unconfirmed.drain(..covered);
        self.changed.broadcast();
    }

    pub fn on_closed(&mut self) {
        self.drop_acks();
        self.fail(self.closed_error());
    }

    /// Send again what is not known to be written.
    pub(super) fn repeat_acks(&mut self, wire: &mut Wire) {
        let unconfirmed = std::mem::take(&mut self.unconfirmed);
        self.send_acks(&unconfirmed, None, wire);
        self.unconfirmed = unconfirmed;
        self.send_until(wire);
    }

    /// Of which moves it has heard, for the broker to tell what an acknowledgment is about.
    fn moves_said(&self) -> Option<u64> {
        self.moves.filter(|&moves| moves > 0)
    }

    fn send_until(&self, wire: &mut Wire) {
        if let Some(until) = self.until {
            let frame = Frame::new(kind::ACK_UNTIL)
                .uint(key::HANDLE, self.number)
                .uint(key::OFFSET, until)
                .uint_if(key::SOUGHT, self.moves_said());
            wire.emit(frame, &[]);
        }
    }

    fn send_acks(&self, spans: &[Span], question: Option<u64>, wire: &mut Wire) {
        self.send_ranges(|| Frame::new(kind::ACK), spans, question, wire);
    }

    /// Split ranges over several frames; a REF is on the last, whose DONE covers all.
    fn send_ranges(&self, frame: impl Fn() -> Frame, spans: &[Span], question: Option<u64>, wire: &mut Wire) {
        let pieces = spans.len().div_ceil(RANGES_MAX);
        for (index, some) in spans.chunks(RANGES_MAX).enumerate() {
            let flat: Vec<u64> = some.iter().flat_map(|&(first, end)| [first, end]).collect();
            let question = question.filter(|_| index + 1 == pieces);
            let frame = frame()
                .uint(key::HANDLE, self.number)
                .uints(key::RANGES, &flat)
                .uint_if(key::REF, question)
                .uint_if(key::SOUGHT, self.moves_said());
            wire.emit(frame, &[]);
        }
    }

    fn spans_of(&self, messages: &[Message]) -> Vec<Span> {
        let mut spans = Vec::new();
        for message in messages.iter().filter(|message| message.origin.epoch == self.epoch) {
            push_span(&mut spans, message.offset);
        }
        spans
    }

    pub fn nack(&mut self, messages: &[Message], delay: Option<Duration>, reason: &str, wire: &mut Wire) {
        self.flush(false, wire);
        if self.phase != Phase::Open {
            return; // they come again anyway
        }
        let reason: String = reason.chars().take(REASON_LETTERS_MAX).collect();
        let delay = delay.map(|delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        let frame = || {
            let frame = Frame::new(kind::NACK).uint_if(key::DELAY, delay);
            if reason.is_empty() {
                frame
            } else {
                frame.text(key::REASON, &reason)
            }
        };
        self.send_ranges(frame, &self.spans_of(messages), None, wire);
    }

    /// The program failed, and with it all that it has in hand: only the broker knows what that is.
    pub fn blame(&mut self, reason: &str, wire: &mut Wire) {
        if self.phase != Phase::Open || !self.taking.tells {
            return;
        }
        self.flush(false, wire);
        let reason: String = reason.chars().take(REASON_LETTERS_MAX).collect();
        let frame = Frame::new(kind::NACK)
            .uint(key::HANDLE, self.number)
            .uints(key::RANGES, &[])
            .uint(key::TAKEN, self.taking.handed)
            .uint_if(key::SOUGHT, self.moves_said())
            .text(key::REASON, &reason);
        wire.emit(frame, &[]);
    }

    pub fn extend(&mut self, messages: &[Message], wire: &mut Wire) {
        if self.phase == Phase::Open {
            self.send_ranges(|| Frame::new(kind::EXTEND), &self.spans_of(messages), None, wire);
        }
    }

    pub fn ack_until(&mut self, message: &Message, wire: &mut Wire, now: Instant) {
        if !self.counts(message) {
            return;
        }
        self.flush(false, wire);
        self.until = self.until.max(Some(message.offset));
        if self.phase == Phase::Open {
            self.send_until(wire);
        }
        // The message itself as well: what the next confirmation is about.
        self.ack(std::slice::from_ref(message), now);
    }
}

fn push_span(spans: &mut Vec<Span>, offset: u64) {
    match spans.last_mut() {
        Some((_, end)) if *end == offset => *end += 1,
        _ => spans.push((offset, offset + 1)),
    }
}
