//! A producer's side of the conversation, section 8 of PROTOCOL.md. It knows no socket, no clock and no thread.
//!
//! Invariants
//! - a sealed batch is never cut again: what is sent once is sent again byte for byte
//! - what has no receipt fits the window and BATCHES_IN_FLIGHT_MAX, or is one batch alone
//! - a receipt is resolved once

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::batch::{size_of, Content, Packing, COLUMNS_COST};
use crate::error::{Action, Error, Result};
use crate::outbox::{Limits, Question, Wire};
use crate::signal::{back_off, Signal, BACK_OFF_MAX, BACK_OFF_MIN};
use crate::wire::{key, kind, Frame, Header, OFFSET_UNKNOWN};

/// What becomes of one batch; every receipt of its messages points here.
#[derive(Default)]
pub(crate) struct Shipment {
    state: Mutex<State>,
    /// Somebody has seen its error.
    pub observed: AtomicBool,
}

#[derive(Default)]
struct State {
    answer: Option<Result<u64>>,
    signal: Signal,
}

impl Shipment {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn resolve(&self, answer: Result<u64>) {
        let mut state = self.state();
        if state.answer.is_none() {
            state.answer = Some(answer);
            state.signal.broadcast();
        }
    }

    pub fn poll(&self, waker: &Waker) -> Poll<Result<u64>> {
        let mut state = self.state();
        match &state.answer {
            Some(answer) => Poll::Ready(answer.clone()),
            None => {
                state.signal.wait(waker);
                Poll::Pending
            }
        }
    }

    pub fn answer(&self) -> Option<Result<u64>> {
        self.state().answer.clone()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Opening,
    Open,
    Waiting,
    Closing,
    Closed,
}

struct Batch {
    sequence: u64,
    count: u64,
    columns: u64,
    body: Vec<Bytes>,
    size: u64,
    shipment: Arc<Shipment>,
    refused: Option<Error>,
}

/// Messages that are not a batch yet.
struct Gathered {
    packing: Packing,
    bytes: u64,
    since: Instant,
    shipment: Arc<Shipment>,
}

pub(crate) struct Settings {
    pub topic: Arc<str>,
    pub id: u64,
    pub batch_bytes: u64,
    pub linger: Duration,
    pub window_bytes: Option<u64>,
}

pub(crate) struct Publication {
    number: u64,
    settings: Settings,
    phase: Phase,
    abandoned: bool,
    /// The broker may have heard of it.
    known: bool,
    /// It was opened at least once: `next` and the limits are known.
    pub opened: bool,
    pub strategy: String,
    pub error: Option<Error>,
    pub trouble: Option<Error>,
    /// The first refused batch, for who looks at no receipts.
    pub refused: Option<Arc<Shipment>>,
    pub limits: Limits,
    pub changed: Signal,

    /// The number of the next message.
    pub next: u64,
    window: u64,
    batches: VecDeque<Batch>,
    bytes: u64,
    sent: usize,
    gathered: Option<Gathered>,

    due: Instant,
    failures: u32,
}

impl Publication {
    pub fn new(number: u64, settings: Settings, now: Instant) -> Publication {
        Publication {
            number,
            settings,
            phase: Phase::Idle,
            abandoned: false,
            known: false,
            opened: false,
            strategy: String::new(),
            error: None,
            trouble: None,
            refused: None,
            limits: Limits::default(),
            changed: Signal::default(),
            next: 0,
            window: 0,
            batches: VecDeque::new(),
            bytes: 0,
            sent: 0,
            gathered: None,
            due: now,
            failures: 0,
        }
    }

    pub fn is_over(&self) -> bool {
        self.abandoned && self.is_closed()
    }

    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Nothing more is taken.
    pub fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Closing | Phase::Closed) || self.abandoned
    }

    fn is_connected(&self) -> bool {
        matches!(self.phase, Phase::Opening | Phase::Open | Phase::Waiting)
    }

    // ---- opening

    pub fn on_ready(&mut self, wire: &mut Wire, resumed: bool, now: Instant) {
        match self.phase {
            Phase::Idle => self.open(wire),
            Phase::Waiting if self.due <= now => self.open(wire),
            Phase::Closing if resumed => wire.close(self.number),
            Phase::Closing => self.fail(Error::closed("the producer")),
            _ => {}
        }
    }

    fn lowest(&self) -> u64 {
        match self.batches.front() {
            Some(batch) => batch.sequence,
            None => self.next.saturating_sub(self.gathered_count()),
        }
    }

    fn gathered_count(&self) -> u64 {
        self.gathered.as_ref().map_or(0, |gathered| gathered.packing.len() as u64)
    }

    fn open(&mut self, wire: &mut Wire) {
        (self.phase, self.sent, self.known) = (Phase::Opening, 0, true);
        for batch in &mut self.batches {
            batch.refused = None;
        }
        let question = wire.expect(Question::Open(self.number));
        let frame = Frame::new(kind::OPEN_PRODUCER)
            .uint(key::REF, question)
            .uint(key::HANDLE, self.number)
            .text(key::TOPIC, &self.settings.topic)
            .uint(key::PRODUCER, self.settings.id)
            .uint(key::SEQUENCE, self.lowest());
        wire.emit(frame, &[]);
    }

    pub fn on_open_answer(&mut self, header: &Header, wire: &mut Wire, now: Instant) {
        if self.phase != Phase::Opening {
            return;
        }
        if header.kind == kind::ERROR {
            self.refuse_whole(header.error(), now);
            return;
        }
        (self.phase, self.failures, self.trouble) = (Phase::Open, 0, None);
        self.limits = wire.limits;
        self.window = header.find(key::BYTES).unwrap_or(self.limits.window_bytes);
        self.window = self.settings.window_bytes.map_or(self.window, |own| own.min(self.window));
        self.strategy = header.text(key::STRATEGY).into();
        if !self.opened {
            self.opened = true;
            self.next = self.next.max(header.uint(key::SEQUENCE));
        }
        self.send(wire);
        self.go_on(wire);
    }

    /// Something about the whole producer: it is opened again later, or it is over.
    fn refuse_whole(&mut self, error: Error, now: Instant) {
        if error.action() == Action::Retry || (error.code() == "unknown-handle" && self.opened) {
            self.phase = Phase::Waiting;
            self.due = now + back_off(self.failures, BACK_OFF_MIN, BACK_OFF_MAX);
            self.failures += 1;
            self.trouble = Some(error);
        } else {
            self.fail(error);
        }
    }

    pub fn fail(&mut self, error: Error) {
        if self.phase == Phase::Closed {
            return;
        }
        self.phase = Phase::Closed;
        for batch in self.batches.drain(..) {
            batch.shipment.resolve(Err(error.clone()));
        }
        if let Some(gathered) = self.gathered.take() {
            gathered.shipment.resolve(Err(error.clone()));
        }
        self.bytes = 0;
        self.error = Some(error);
        self.changed.broadcast();
    }

    pub fn on_lost(&mut self, reason: &Error) {
        self.trouble = Some(reason.clone());
        if self.is_connected() {
            (self.phase, self.sent) = (Phase::Idle, 0);
        }
    }

    // ---- time

    pub fn tick(&mut self, wire: &mut Wire, now: Instant) {
        if self.phase == Phase::Waiting && self.due <= now {
            self.open(wire);
        }
        if self.gathered.as_ref().is_some_and(|gathered| gathered.since + self.settings.linger <= now) {
            self.seal(wire);
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        let again = (self.phase == Phase::Waiting).then_some(self.due);
        let linger = self
            .gathered
            .as_ref()
            .filter(|gathered| self.has_room(gathered.bytes))
            .map(|gathered| gathered.since + self.settings.linger);
        again.into_iter().chain(linger).min()
    }

    // ---- answers

    pub fn on_frame(&mut self, header: &Header, wire: &mut Wire, now: Instant) {
        match header.kind {
            kind::RECEIPT => {
                for (sequence, offset) in header.pairs(key::RECEIPTS) {
                    self.resolve(sequence, offset);
                }
                self.go_on(wire);
            }
            kind::ERROR => {
                let error = header.error();
                match header.find(key::SEQUENCE) {
                    Some(sequence) if !header.flag(key::CLOSED) => self.refuse(sequence, error, wire, now),
                    _ if self.is_connected() => self.refuse_whole(error, now),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn resolve(&mut self, sequence: u64, offset: u64) {
        // Receipts come in order: it is nearly always the first.
        if let Some(at) = self.batches.iter().position(|batch| batch.sequence == sequence) {
            self.batches[at].shipment.resolve(Ok(offset));
            self.remove(at);
        }
    }

    fn remove(&mut self, at: usize) {
        if let Some(batch) = self.batches.remove(at) {
            self.bytes -= batch.size;
        }
        if at < self.sent {
            self.sent -= 1;
        }
    }

    fn refuse(&mut self, sequence: u64, error: Error, wire: &mut Wire, now: Instant) {
        if self.phase != Phase::Open {
            return;
        }
        let Some(at) = self.batches.iter().position(|batch| batch.sequence == sequence) else { return };
        if self.batches.iter().take(at).any(|batch| batch.refused.is_some()) {
            return; // what follows a refused one is a gap, and is sent again behind it
        }
        if error.action() == Action::Retry || error.code() == "unknown-handle" {
            self.refuse_whole(error, now);
            return;
        }
        self.batches[at].refused = Some(error);
        self.go_on(wire);
    }

    /// Something was answered.
    fn go_on(&mut self, wire: &mut Wire) {
        if self.phase == Phase::Open {
            if let Some(Batch { refused: Some(error), shipment, .. }) = self.batches.front() {
                shipment.resolve(Err(error.clone()));
                if self.refused.is_none() {
                    self.refused = Some(Arc::clone(shipment));
                }
                self.remove(0);
                self.open(wire); // behind it; what follows is sent again
            }
        }
        if self.batches.is_empty() {
            self.seal(wire);
        }
        if self.abandoned && self.is_answered() {
            self.close(wire);
        }
        self.changed.broadcast();
    }

    // ---- taking messages

    /// Say whether the broker would refuse these for their size: it would close the connection without a word.
    pub fn check_size(&self, messages: &[Content<'_>]) -> Result<()> {
        let limits = &self.limits;
        let (mut payloads, mut around) = (0, 0);
        for message in messages {
            let size = message.payload.len() as u64;
            if size > limits.message_bytes_max {
                return Err(Error::refused(
                    "message-too-large",
                    format!(
                        "message of {size} bytes is over message_bytes_max ({}) of topic {:?}",
                        limits.message_bytes_max, self.settings.topic
                    ),
                ));
            }
            payloads += size;
            around += message.around();
        }
        let beside = (limits.batch_bytes_max / 16).clamp(64, 65_536);
        if payloads + around > limits.batch_bytes_max && (messages.len() > 1 || around > beside) {
            return Err(Error::refused(
                "batch-too-large",
                format!(
                    "batch of {} bytes is over batch_bytes_max ({}) of topic {:?}",
                    payloads + around,
                    limits.batch_bytes_max,
                    self.settings.topic
                ),
            ));
        }
        Ok(())
    }

    fn has_room(&self, size: u64) -> bool {
        self.opened
            && !matches!(self.phase, Phase::Closing | Phase::Closed)
            && (self.bytes == 0 || self.bytes + size <= self.window)
            && (self.batches.len() as u64) < self.limits.batches_in_flight_max
    }

    fn batch_limit(&self) -> u64 {
        self.settings.batch_bytes.min(self.window).min(self.limits.batch_bytes_max)
    }

    /// Add a message to what is gathered; `None` where it must wait for room. Returns its place in its batch.
    pub fn take(&mut self, message: &Content<'_>, wire: &mut Wire, now: Instant) -> Option<(Arc<Shipment>, u64)> {
        let (size, limit) = (message.size() + COLUMNS_COST, self.batch_limit());
        if self.gathered.as_ref().is_some_and(|gathered| gathered.bytes + size > limit) && !self.seal(wire) {
            return None;
        }
        if self.gathered.is_none() && self.bytes > 0 && size > limit && !self.has_room(size) {
            return None;
        }
        let gathered = self.gathered.get_or_insert_with(|| Gathered {
            packing: Packing::default(),
            bytes: 0,
            since: now,
            shipment: Arc::default(),
        });
        let place = (Arc::clone(&gathered.shipment), gathered.packing.len() as u64);
        gathered.packing.push(message);
        gathered.bytes += size;
        let full = gathered.bytes >= limit;
        self.next = self.next.saturating_add(1);
        if full || self.batches.is_empty() {
            self.seal(wire);
        }
        Some(place)
    }

    /// Whether something was begun that has to be sent within the linger.
    pub fn lingers_anew(&self) -> bool {
        self.gathered_count() == 1
    }

    /// Send messages as a batch of their own; `None` where it must wait for room.
    pub fn take_batch(&mut self, count: u64, columns: u64, body: &[Bytes], wire: &mut Wire) -> Option<Arc<Shipment>> {
        if !self.seal(wire) || !self.has_room(size_of(body)) {
            return None;
        }
        let shipment = Arc::default();
        self.enqueue(count, columns, body.to_vec(), Arc::clone(&shipment), self.next, wire);
        self.next = self.next.saturating_add(count);
        Some(shipment)
    }

    /// Make a batch of what is gathered, if there is room for it.
    pub fn seal(&mut self, wire: &mut Wire) -> bool {
        let Some(gathered) = self.gathered.take() else { return true };
        if !self.has_room(gathered.bytes) {
            self.gathered = Some(gathered);
            return false;
        }
        let count = gathered.packing.len() as u64;
        let (columns, mut body) = gathered.packing.done();
        if count == 1 && columns == 0 {
            body.remove(0); // one message needs no lengths
        }
        self.enqueue(count, columns, body, gathered.shipment, self.next.saturating_sub(count), wire);
        true
    }

    fn enqueue(
        &mut self,
        count: u64,
        columns: u64,
        body: Vec<Bytes>,
        shipment: Arc<Shipment>,
        sequence: u64,
        wire: &mut Wire,
    ) {
        let size = size_of(&body);
        self.bytes += size;
        self.batches.push_back(Batch { sequence, count, columns, body, size, shipment, refused: None });
        self.send(wire);
    }

    fn send(&mut self, wire: &mut Wire) {
        if self.phase != Phase::Open {
            return;
        }
        for batch in self.batches.iter().skip(self.sent) {
            let columns = (batch.columns != 0).then_some(batch.columns);
            let frame = Frame::new(kind::PUBLISH)
                .uint(key::HANDLE, self.number)
                .uint(key::SEQUENCE, batch.sequence)
                .uint_if(key::COLUMNS, columns);
            wire.emit(frame, &batch.body);
        }
        self.sent = self.batches.len();
    }

    pub fn is_answered(&self) -> bool {
        self.gathered.is_none() && self.batches.is_empty()
    }

    /// Bytes and batches without an answer.
    #[cfg(test)]
    pub fn outstanding(&self) -> (u64, usize) {
        (self.bytes, self.batches.len())
    }

    /// Leave numbers out; only when everything is answered.
    pub fn skip_to(&mut self, sequence: u64, wire: &mut Wire) {
        self.next = sequence;
        if self.phase == Phase::Open {
            self.open(wire);
        }
    }

    /// The batch of a number that was used in this run, or one that says: stored before.
    pub fn before(&self, sequence: u64) -> (Arc<Shipment>, u64) {
        for batch in &self.batches {
            if (batch.sequence..batch.sequence.saturating_add(batch.count)).contains(&sequence) {
                return (Arc::clone(&batch.shipment), sequence - batch.sequence);
            }
        }
        if let Some(gathered) = &self.gathered {
            let first = self.next.saturating_sub(gathered.packing.len() as u64);
            if sequence >= first {
                return (Arc::clone(&gathered.shipment), sequence - first);
            }
        }
        let known = Shipment::default();
        known.resolve(Ok(OFFSET_UNKNOWN));
        (Arc::new(known), 0)
    }

    // ---- the end

    /// Say CLOSE; everything must be answered, or it is given up.
    pub fn close(&mut self, wire: &mut Wire) {
        match self.phase {
            Phase::Closed | Phase::Closing => {}
            Phase::Idle if !self.known => self.fail(Error::closed("the producer")),
            Phase::Idle => self.end(), // the next WELCOME says whether there is something to close
            _ => {
                self.end();
                wire.close(self.number);
            }
        }
    }

    fn end(&mut self) {
        self.phase = Phase::Closing;
        let error = Error::closed("the producer");
        for batch in self.batches.drain(..) {
            batch.shipment.resolve(Err(error.clone()));
        }
        if let Some(gathered) = self.gathered.take() {
            gathered.shipment.resolve(Err(error));
        }
        self.bytes = 0;
    }

    /// Nobody sends any more: what was taken is still sent, and then comes CLOSE.
    pub fn abandon(&mut self, wire: &mut Wire) {
        self.abandoned = true;
        self.seal(wire);
        if self.is_answered() || !self.opened {
            self.close(wire);
        }
    }
}
