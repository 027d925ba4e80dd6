//! What the program takes of what was delivered, and the credit that comes back for it.

use std::time::{Duration, Instant};

use super::{Attachment, Phase, CREDIT_BYTES};
use crate::message::Message;
use crate::session::Wire;
use crate::wire::{key, kind, Frame};

const WINDOW_MOST: u64 = 16_384;
const PACE_AIM: Duration = Duration::from_millis(500); // as much as the program works off in that time is kept ready

impl Attachment {
    /// Hand out up to `most` messages that came together; none where nothing waits.
    pub fn next(&mut self, most: usize, wire: &mut Wire, now: Instant) -> Option<Vec<Message>> {
        let Some(delivery) = self.queue.front_mut() else {
            self.starve(wire, now);
            return None;
        };
        let taken: Vec<Message> = delivery.messages.drain(..most.clamp(1, delivery.messages.len())).collect();
        if delivery.messages.is_empty() {
            self.used_bytes += delivery.bytes;
            self.queue.pop_front();
        }
        self.take_note(taken.len(), taken.last().map(|last| last.offset), wire, now);
        Some(taken)
    }

    /// Hand out one message.
    pub fn next_one(&mut self, wire: &mut Wire, now: Instant) -> Option<Message> {
        let Some(delivery) = self.queue.front_mut() else {
            self.starve(wire, now);
            return None;
        };
        let message = delivery.messages.pop_front();
        if delivery.messages.is_empty() {
            self.used_bytes += delivery.bytes;
            self.queue.pop_front();
        }
        self.take_note(1, message.as_ref().map(|each| each.offset), wire, now);
        message
    }

    fn take_note(&mut self, count: usize, last: Option<u64>, wire: &mut Wire, now: Instant) {
        self.used += count as u64;
        if let (Some(last), Some(_)) = (last, self.reached) {
            self.reached = Some(last + 1);
        }
        self.pace(wire, now);
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

    /// Give credit back when half of it is used, and follow the program: as much as it works off in a moment.
    fn pace(&mut self, wire: &mut Wire, now: Instant) {
        let half = self.used >= self.window.div_ceil(2);
        if !half && self.used_bytes < CREDIT_BYTES / 2 {
            return;
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
        self.give_back(wire);
        self.used_since = now;
    }

    pub(super) fn give_back(&mut self, wire: &mut Wire) {
        if self.phase == Phase::Open && (self.used > 0 || self.used_bytes > 0) {
            let frame = Frame::new(kind::CREDIT)
                .uint(key::HANDLE, self.number)
                .uint(key::MESSAGES, self.used)
                .uint(key::BYTES, self.used_bytes);
            wire.emit(frame, &[]);
            (self.used, self.used_bytes) = (0, 0);
        }
    }
}
