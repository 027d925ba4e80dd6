//! What the broker is told of what the program takes, section 9.6 of PROTOCOL.md, and how much that is at a time.
//!
//! Invariants
//! - a message goes to the program after the broker was told so; one that was delivered SINGLY, and the first behind
//!   such a one, after the broker has answered that it knows
//! - what is told never decreases between two opens

use std::time::{Duration, Instant};

/// So much work is told at a time: a fast program costs a report for thousands of messages, and one that takes longer
/// over a message has that one alone in hand.
const AT_ONCE: Duration = Duration::from_millis(4);
const AT_ONCE_MOST: u64 = 16_384;
const AT_ONCE_GROWTH: u64 = 4;
/// A program that takes no more at a time has its acknowledgments sent before the next report.
pub(super) const ACK_AT_ONCE: u64 = 64;

/// Counts are of messages since OPENED.
#[derive(Default)]
pub(super) struct Taking {
    /// The broker wants to be told.
    pub tells: bool,
    pub came: u64,
    pub handed: u64,
    /// So many may be the program's.
    told: u64,
    /// Deliveries in the queue that are handed out one by one.
    pub singly: usize,
    /// The REF of the question whether the next one may be handed out.
    pub asking: Option<u64>,
    /// It may.
    pub leave: bool,
    /// The last one was handed out alone, and what became of it may be on its way.
    pub after_singly: bool,
    /// All credit is void until the program asks for something.
    pub recalled: bool,
    moment: Moment,
}

impl Taking {
    /// It is opened, perhaps again.
    pub fn restart(&mut self) {
        *self = Taking { moment: std::mem::take(&mut self.moment), ..Taking::default() };
    }

    /// What waits was dropped, and what follows is counted behind it.
    pub fn drop_waiting(&mut self) {
        self.handed = self.came;
        self.singly = 0;
        self.asking = None;
        self.leave = false;
    }

    /// The program asks for more: it is done with what it had.
    pub fn asked(&mut self, now: Instant) {
        self.moment.ended(now);
    }

    pub fn at_once(&self) -> u64 {
        self.moment.messages
    }

    /// So many go to the program; returns what the broker is to be told first.
    pub fn hand_over(&mut self, count: u64, singly: bool, now: Instant) -> Option<u64> {
        self.handed += count;
        self.moment.began(count, now);
        if !self.tells || self.handed <= self.told {
            return None;
        }
        let ahead = if singly { 0 } else { self.handed - count + self.moment.messages };
        self.told = ahead.max(self.handed);
        Some(self.told)
    }

    /// The broker has answered; returns whether that is news.
    pub fn answered(&mut self, question: u64, given: bool) -> bool {
        if self.asking != Some(question) {
            return false;
        }
        self.asking = None;
        if given {
            self.leave = true;
            self.told = self.told.max(self.handed + 1);
        }
        true
    }
}

/// How many messages are a moment's work for the program.
struct Moment {
    messages: u64,
    last: u64,
    since: Option<Instant>,
    /// So many would have been one, by those before.
    fits: f64,
}

impl Default for Moment {
    fn default() -> Moment {
        Moment { messages: 1, last: 0, since: None, fits: 0.0 }
    }
}

impl Moment {
    fn began(&mut self, count: u64, now: Instant) {
        (self.last, self.since) = (count, Some(now));
    }

    /// A single pause of the machine does not count.
    fn ended(&mut self, now: Instant) {
        let Some(since) = self.since.take() else { return };
        let took = now.duration_since(since).max(Duration::from_nanos(100));
        let before = self.fits;
        self.fits = self.last as f64 * AT_ONCE.as_secs_f64() / took.as_secs_f64();
        if self.fits >= self.messages as f64 {
            self.messages = (self.fits as u64).min(AT_ONCE_GROWTH * self.messages).min(AT_ONCE_MOST);
        } else if before < self.messages as f64 {
            self.messages = (self.fits as u64).max(1);
        }
    }
}
