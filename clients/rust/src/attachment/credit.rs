//! What the program takes of what was delivered, and the credit that comes back for it.

use std::time::{Duration, Instant};

use super::taking::ACK_AT_ONCE;
use super::{Attachment, Phase, CREDIT_BYTES};
use crate::message::Message;
use crate::outbox::{Question, Wire};
use crate::wire::{key, kind, Frame, Header};

const WINDOW_MOST: u64 = 16_384;
const PACE_AIM: Duration = Duration::from_millis(500); // as much as the program works off in that time is kept ready

impl Attachment {
    /// Hand out up to `most` messages that came together; none where nothing waits, or the broker has to know first.
    pub fn next(&mut self, most: usize, wire: &mut Wire, now: Instant) -> Option<Vec<Message>> {
        let most = most.min(self.ready(wire, now)?);
        let delivery = self.queue.front_mut()?;
        let taken: Vec<Message> = delivery.messages.drain(..most.clamp(1, delivery.messages.len())).collect();
        self.hand_over(taken.len() as u64, taken.last().map(|last| last.offset), wire, now);
        Some(taken)
    }

    /// Hand out one message.
    pub fn next_one(&mut self, wire: &mut Wire, now: Instant) -> Option<Message> {
        self.ready(wire, now)?;
        let message = self.queue.front_mut()?.messages.pop_front();
        self.hand_over(1, message.as_ref().map(|each| each.offset), wire, now);
        message
    }

    /// How many messages may be handed out now.
    fn ready(&mut self, wire: &mut Wire, now: Instant) -> Option<usize> {
        self.taking.asked(now);
        if std::mem::take(&mut self.taking.recalled) {
            self.give_back(wire);
        }
        let Some(delivery) = self.queue.front() else {
            self.starve(wire, now);
            return None;
        };
        let singly = delivery.singly;
        if !self.taking.tells || !(singly || self.taking.after_singly) {
            return Some(usize::MAX);
        }
        if !std::mem::take(&mut self.taking.leave) {
            if self.taking.asking.is_none() && self.phase == Phase::Open {
                self.flush(false, wire); // what became of the one before, first
                let question = wire.expect(Question::Leave(self.number));
                self.taking.asking = Some(question);
                self.say_credit(true, Some(self.taking.handed + 1), Some(question), wire);
            }
            return None;
        }
        self.taking.after_singly = singly;
        Some(1)
    }

    /// The broker says that it knows who gets the next message.
    pub fn on_leave(&mut self, header: &Header) {
        if self.taking.answered(header.uint(key::REF), header.kind == kind::DONE) {
            self.changed.broadcast();
        }
    }

    /// So many messages go to the program: the broker is told first, and gets credit back with it.
    fn hand_over(&mut self, count: u64, last: Option<u64>, wire: &mut Wire, now: Instant) {
        let singly = self.taking.singly > 0;
        if self.queue.front().is_some_and(|delivery| delivery.messages.is_empty()) {
            if let Some(done) = self.queue.pop_front() {
                self.used_bytes += done.bytes;
                self.taking.singly -= usize::from(done.singly);
            }
        }
        self.used += count;
        if let (Some(last), Some(_)) = (last, self.reached) {
            self.reached = Some(last + 1);
        }
        let due = self.pace(wire, now);
        let taken = self.taking.hand_over(count, singly, now);
        if taken.is_some() && self.taking.at_once() <= ACK_AT_ONCE {
            self.flush(false, wire); // what is done is not in its hands any more
        }
        if due || taken.is_some() {
            self.say_credit(due, taken, None, wire);
        }
    }

    /// The program has nothing to do: all credit goes back, and there may be more of it.
    fn starve(&mut self, wire: &mut Wire, now: Instant) {
        if self.used == 0 {
            return;
        }
        if self.used >= self.window / 2 && now.duration_since(self.used_since) < PACE_AIM {
            self.grow(wire);
        }
        self.give_back(wire);
        self.used_since = now;
    }

    fn grow(&mut self, wire: &Wire) {
        let wider = (2 * self.window).min(WINDOW_MOST).min(wire.limits.credit_messages_max);
        if self.target.credit_messages.is_none() && wider > self.window {
            self.used += wider - self.window;
            self.window = wider;
        }
    }

    /// Whether credit is to be given back, which is when half of it is used; and follow the program: as much as it works
    /// off in a moment.
    fn pace(&mut self, wire: &Wire, now: Instant) -> bool {
        let half = self.used >= self.window.div_ceil(2);
        if !half && self.used_bytes < CREDIT_BYTES / 2 {
            return false;
        }
        if half && self.target.credit_messages.is_none() {
            let took = now.duration_since(self.used_since);
            if took < PACE_AIM / 4 {
                self.grow(wire);
            } else if took > PACE_AIM && self.window > 2 {
                let less = self.window / 2;
                self.used = self.used.saturating_sub(self.window - less);
                self.window = less;
            }
        }
        self.used_since = now;
        true
    }

    pub(super) fn give_back(&mut self, wire: &mut Wire) {
        self.say_credit(true, None, None, wire);
    }

    /// Give credit back, and say how many messages the program may have taken; with a question, DONE is asked for.
    fn say_credit(&mut self, back: bool, taken: Option<u64>, question: Option<u64>, wire: &mut Wire) {
        let (messages, bytes) = if back { (self.used, self.used_bytes) } else { (0, 0) };
        if self.phase != Phase::Open || (messages == 0 && bytes == 0 && taken.is_none()) {
            return;
        }
        let frame = Frame::new(kind::CREDIT)
            .uint(key::HANDLE, self.number)
            .uint(key::MESSAGES, messages)
            .uint(key::BYTES, bytes)
            .uint_if(key::TAKEN, taken)
            .uint_if(key::REF, question);
        wire.emit(frame, &[]);
        (self.used, self.used_bytes) = (self.used - messages, self.used_bytes - bytes);
    }
}
