//! A consumer's or reader's side of the conversation, section 9 of PROTOCOL.md. It knows no socket, no clock and no
//! thread.
//!
//! Invariants
//! - the broker is never given more credit than the window: what was delivered and not taken, and what may still come
//! - what was delivered before the broker forgot about it, or moved the subscription, is never acknowledged
//! - acknowledgments stay here until a DONE covers them, and are sent again over a resumed session

mod acknowledging;
mod credit;
mod delivery;
mod taking;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::acknowledging::Span;
use self::delivery::{offsets_of, times_of};
use self::taking::Taking;
use crate::batch::{size_of, unpack};
use crate::cbor::Value;
use crate::error::{Action, Error, Result};
use crate::message::{time_of, Message, Origin};
use crate::outbox::{Question, Wire};
use crate::signal::{back_off, Signal, BACK_OFF_MAX, BACK_OFF_MIN};
use crate::wire::{key, kind, Frame, Header};

const WINDOW_FIRST: u64 = 16; // messages of credit for a program whose pace is not known yet
const CREDIT_BYTES: u64 = 8 << 20;
const PLACE_RETRY: Duration = Duration::from_millis(500);
const EVENTS_KEPT: usize = 256;
const BUSY: &str = "subscription-busy";
const NOT_ACTIVE: &str = "not-active";

/// What the broker tells a consumer besides messages; section 9.7 of PROTOCOL.md lists the codes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// The code, like `active`, `trimmed` or `sought`.
    pub code: String,
    /// How many messages it is about.
    pub count: u64,
    /// From where on.
    pub offset: Option<u64>,
    /// For people.
    pub text: String,
    /// The topic.
    pub topic: Arc<str>,
}

/// How a subscription gives its messages out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscriptionType {
    /// One consumer; another is refused.
    Exclusive,
    /// Any consumer that has credit; no order.
    Shared,
    /// One consumer is active, the others stand by.
    Failover,
    /// A key belongs to one consumer at a time, and its messages come in order.
    KeyShared,
}

impl SubscriptionType {
    /// The word of the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            SubscriptionType::Exclusive => "exclusive",
            SubscriptionType::Shared => "shared",
            SubscriptionType::Failover => "failover",
            SubscriptionType::KeyShared => "key-shared",
        }
    }
}

/// Where a new subscription, or a reader, begins; or where a subscription is moved to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the first message that is kept.
    Earliest,
    /// Behind the last message.
    Latest,
    /// At one message.
    Offset(u64),
    /// At the first message taken in at or after a time.
    Time(std::time::SystemTime),
}

impl Start {
    pub(crate) fn value(self) -> Value {
        match self {
            Start::Earliest => "earliest".into(),
            Start::Latest => "latest".into(),
            Start::Offset(offset) => offset.into(),
            Start::Time(when) => format!("time:{}", crate::message::unix_ms(when)).into(),
        }
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

/// One DELIVER, cut into messages.
struct Delivery {
    messages: VecDeque<Message>,
    bytes: u64,
    /// They are handed out one by one.
    singly: bool,
}

pub(crate) struct Target {
    pub topic: Arc<str>,
    pub subscription: String,
    /// A type of subscription, or `reader`.
    pub kind: &'static str,
    pub start: Option<Start>,
    pub priority: u64,
    pub force: bool,
    pub arguments: Vec<(Value, Value)>,
    /// Waits for the place of an Exclusive subscription.
    pub patient: bool,
    /// A fixed number of messages of credit.
    pub credit_messages: Option<u64>,
}

pub(crate) const READER: &str = "reader";

pub(crate) struct Attachment {
    number: u64,
    pub target: Target,
    phase: Phase,
    abandoned: bool,
    /// It closes as soon as it is open again, and its acknowledgments are said.
    leaving: bool,
    /// The broker may have heard of it.
    known: bool,
    pub opened: bool,
    pub error: Option<Error>,
    pub complaint: Option<Error>,
    pub trouble: Option<Error>,
    /// Acknowledgments were dropped, and the program was not told yet.
    pub forgotten: bool,
    pub position: u64,
    pub active: Option<bool>,
    pub events: VecDeque<Event>,
    pub changed: Signal,

    /// Messages of an earlier one are not acknowledged any more.
    pub epoch: u64,
    /// The first epoch since the subscription was moved: what is older was not meant to come again.
    sought: u64,
    instance: String,
    /// How often the subscription was moved, where the broker counts; 0 is not said.
    moves: Option<u64>,
    delivered_in: Option<[u8; 16]>,
    queue: VecDeque<Delivery>,
    reached: Option<u64>, // of a reader: the first offset that was not handed out

    window: u64,
    used: u64, // messages taken since credit was given back
    used_bytes: u64,
    used_since: Instant,
    taking: Taking,

    pending: Vec<Span>, // acknowledgments that are not sent yet
    unconfirmed: Vec<Span>,
    until: Option<u64>, // everything up to here as well; not confirmed yet
    ack_due: Option<Instant>,
    confirming: bool,

    due: Instant,
    failures: u32,
}

impl Attachment {
    pub fn new(number: u64, target: Target, now: Instant) -> Attachment {
        let window = target.credit_messages.unwrap_or(WINDOW_FIRST).max(1);
        Attachment {
            number,
            target,
            phase: Phase::Idle,
            abandoned: false,
            leaving: false,
            known: false,
            opened: false,
            error: None,
            complaint: None,
            trouble: None,
            forgotten: false,
            position: 0,
            active: None,
            events: VecDeque::new(),
            changed: Signal::default(),
            epoch: 0,
            sought: 0,
            instance: String::new(),
            moves: None,
            delivered_in: None,
            queue: VecDeque::new(),
            reached: None,
            window,
            used: 0,
            used_bytes: 0,
            used_since: now,
            taking: Taking::default(),
            pending: Vec::new(),
            unconfirmed: Vec::new(),
            until: None,
            ack_due: None,
            confirming: false,
            due: now,
            failures: 0,
        }
    }

    fn is_reader(&self) -> bool {
        self.target.kind == READER
    }

    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    pub fn is_over(&self) -> bool {
        self.abandoned && self.is_closed()
    }

    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Nothing is handed out, or acknowledged, any more.
    pub fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Closing | Phase::Closed) || self.leaving
    }

    /// Whether everything that was acknowledged is known to be written, or forgotten.
    pub fn is_settled(&self) -> bool {
        self.pending.is_empty() && self.unconfirmed.is_empty() && self.until.is_none()
    }

    fn what(&self) -> String {
        if self.is_reader() {
            format!("the reader of topic {:?}", self.target.topic)
        } else {
            format!("the consumer of subscription {:?} of topic {:?}", self.target.subscription, self.target.topic)
        }
    }

    pub fn closed_error(&self) -> Error {
        Error::closed(&self.what())
    }

    // ---- opening

    pub fn on_ready(&mut self, wire: &mut Wire, resumed: bool, now: Instant) {
        let same = resumed && (self.delivered_in.is_none() || self.delivered_in == wire.secret);
        if !same {
            self.forget();
        } else if self.phase == Phase::Idle && self.opened || self.phase == Phase::Closing {
            self.repeat_acks(wire); // so that what they are about is not delivered again
        }
        match self.phase {
            Phase::Idle => self.open(wire),
            Phase::Waiting if self.due <= now => self.open(wire),
            Phase::Closing if resumed => wire.close(self.number),
            Phase::Closing => self.fail(self.closed_error()),
            _ => {}
        }
    }

    fn open(&mut self, wire: &mut Wire) {
        self.window = self.window.clamp(1, wire.limits.credit_messages_max);
        (self.phase, self.known) = (Phase::Opening, true);
        self.queue.clear();
        (self.used, self.used_bytes) = (0, 0);
        self.taking.restart();
        let question = wire.expect(Question::Open(self.number));
        let mut frame = Frame::new(kind::OPEN_CONSUMER)
            .uint(key::REF, question)
            .uint(key::HANDLE, self.number)
            .text(key::TOPIC, &self.target.topic)
            .text(key::SUBSCRIPTION, &self.target.subscription)
            .text(key::SUBSCRIPTION_TYPE, self.target.kind)
            .uint(key::MESSAGES, self.window)
            .uint(key::BYTES, CREDIT_BYTES)
            .flag(key::SPARSE)
            .uint(key::TAKEN, 0)
            .text(key::INSTANCE, &self.instance)
            .uint(key::SOUGHT, 0);
        if let Some(start) = self.reached.map(Start::Offset).or(self.target.start) {
            frame = frame.value(key::START, &start.value());
        }
        if self.target.kind == SubscriptionType::Failover.as_str() {
            frame = frame.uint(key::PRIORITY, self.target.priority);
        }
        if self.target.force && !self.opened {
            frame = frame.flag(key::FORCE); // afterwards two that both want it would displace each other forever
        }
        if !self.target.arguments.is_empty() {
            frame = frame.value(key::ARGUMENTS, &Value::Map(self.target.arguments.clone()));
        }
        wire.emit(frame, &[]);
    }

    pub fn on_open_answer(&mut self, header: &Header, wire: &mut Wire, now: Instant) {
        if self.phase != Phase::Opening {
            return;
        }
        if header.kind == kind::ERROR {
            self.refuse(header.error(), now);
            return;
        }
        if !self.is_the_same(header.text(key::INSTANCE)) {
            wire.close(self.number);
            self.fail(Error::Broker {
                code: "topic-deleted".into(),
                action: Action::Stop,
                text: format!("topic {:?} was deleted, and made anew since", self.target.topic).into(),
            });
            return;
        }
        self.moves = header.find(key::SOUGHT);
        self.taking.tells = header.has(key::TAKEN);
        (self.phase, self.opened, self.failures, self.trouble) = (Phase::Open, true, 0, None);
        self.position = header.uint(key::OFFSET);
        if self.is_reader() && self.reached.is_none() && header.text(key::STRATEGY) == "reliable" {
            self.reached = Some(self.position);
        }
        self.delivered_in = wire.secret;
        self.used_since = now;
        self.confirming = false;
        self.repeat_acks(wire); // a broker that had not finished an earlier open ignored them before
        if self.leaving {
            self.close(wire);
        }
        self.changed.broadcast();
    }

    /// Note which of all subscriptions of this name is open; false where a reader's place is one in another topic.
    fn is_the_same(&mut self, instance: &str) -> bool {
        if instance.is_empty() || instance == self.instance {
            return true;
        }
        let before = std::mem::replace(&mut self.instance, instance.into());
        if before.is_empty() {
            return true;
        }
        if self.is_reader() && self.reached.is_some() {
            return false;
        }
        self.forget();
        true
    }

    fn refuse(&mut self, error: Error, now: Instant) {
        let mut again = error.action() == Action::Retry || (error.code() == "unknown-handle" && self.opened);
        if error.code() == "subscription-options" && self.opened && !self.target.arguments.is_empty() {
            self.target.arguments.clear(); // somebody changed them meanwhile
            again = true;
        }
        let busy = error.code() == BUSY;
        if !again || (busy && !self.opened && !self.target.patient) {
            self.fail(error);
            return;
        }
        let wait = if busy { PLACE_RETRY } else { back_off(self.failures, BACK_OFF_MIN, BACK_OFF_MAX) };
        self.failures += 1;
        (self.phase, self.due, self.trouble) = (Phase::Waiting, now + wait, Some(error));
        self.queue.clear();
        self.forget();
        if self.leaving {
            self.fail(self.closed_error());
        }
    }

    pub fn fail(&mut self, error: Error) {
        if self.phase == Phase::Closed {
            return;
        }
        (self.phase, self.error) = (Phase::Closed, Some(error));
        self.queue.clear();
        self.changed.broadcast();
    }

    pub fn on_lost(&mut self, reason: &Error) {
        self.trouble = Some(reason.clone());
        self.confirming = false;
        if matches!(self.phase, Phase::Opening | Phase::Open | Phase::Waiting) {
            self.phase = Phase::Idle;
            self.queue.clear();
        }
    }

    // ---- time

    pub fn tick(&mut self, wire: &mut Wire, now: Instant) {
        if self.phase == Phase::Waiting && self.due <= now {
            self.open(wire);
        }
        if self.ack_due.is_some_and(|due| due <= now) {
            self.flush(false, wire);
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Waiting => Some(self.due),
            Phase::Open => self.ack_due,
            _ => None,
        }
    }

    // ---- what comes

    pub fn on_frame(&mut self, header: &Header, body: &[Bytes], wire: &mut Wire, now: Instant) -> Result<()> {
        match header.kind {
            kind::DELIVER if self.phase == Phase::Open => self.deliver(header, body)?,
            kind::EVENT => self.on_event(header, wire),
            kind::ERROR => {
                let error = header.error();
                // Of what was acknowledged too late nothing is told: whoever is active now gets it again.
                let again = error.code() == "unknown-handle" || error.action() == Action::Retry;
                if error.code() == NOT_ACTIVE {
                } else if !again && !header.flag(key::CLOSED) {
                    self.complaint = Some(error);
                } else if matches!(self.phase, Phase::Opening | Phase::Open | Phase::Waiting) {
                    self.refuse(error, now);
                } else if self.phase == Phase::Closing && header.flag(key::CLOSED) {
                    self.fail(self.closed_error());
                }
                self.changed.broadcast();
            }
            _ => {}
        }
        Ok(())
    }

    fn deliver(&mut self, header: &Header, body: &[Bytes]) -> Result<()> {
        let count = header.uint(key::COUNT);
        let pieces = unpack(header.uint(key::COLUMNS), count, body)?;
        let offsets = offsets_of(header, pieces.len())?;
        let times = times_of(header, pieces.len())?;
        let attempt = u32::try_from(header.find(key::ATTEMPT).unwrap_or(1)).unwrap_or(u32::MAX);
        let origin = Origin { handle: self.number, epoch: self.epoch };
        let messages = pieces.into_iter().zip(offsets).zip(times).map(|((piece, offset), time)| Message {
            topic: Arc::clone(&self.target.topic),
            offset,
            payload: piece.payload,
            key: piece.key,
            timestamp: time_of(time),
            deliver_at: (piece.deliver_at > 0).then(|| time_of(piece.deliver_at)),
            attempt,
            attributes: match piece.attributes {
                Ok(attributes) if attributes.is_empty() => None,
                attributes => Some(Arc::new(attributes)),
            },
            origin,
        });
        let singly = header.flag(key::SINGLY);
        self.taking.came += count;
        self.taking.singly += usize::from(singly);
        self.queue.push_back(Delivery { messages: messages.collect(), bytes: size_of(body), singly });
        self.changed.broadcast();
        Ok(())
    }

    fn on_event(&mut self, header: &Header, wire: &mut Wire) {
        let event = Event {
            code: header.text(key::CODE).into(),
            count: header.uint(key::COUNT),
            offset: header.find(key::OFFSET),
            text: header.text(key::TEXT).into(),
            topic: Arc::clone(&self.target.topic),
        };
        match event.code.as_str() {
            "active" | "standby" => self.active = Some(event.code == "active"),
            "sought" => {
                self.drop_queue();
                self.drop_acks();
                self.epoch += 1;
                self.sought = self.epoch;
                if let Some(moves) = self.moves {
                    self.moves = Some(moves.max(header.uint(key::SOUGHT)));
                }
                self.give_back(wire);
            }
            "recalled" => {
                // All credit is void: what was not handed out goes elsewhere, and the program's next call gives anew.
                self.drop_queue();
                self.taking.recalled = true;
                (self.used, self.used_bytes) = (self.window, CREDIT_BYTES);
            }
            // Nothing more comes until an operator decides: the program must hear that.
            "log-damaged" => {
                self.complaint = Some(Error::Broker {
                    code: event.code.as_str().into(),
                    action: Action::Stop,
                    text: event.text.as_str().into(),
                });
            }
            _ => {}
        }
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event);
        self.changed.broadcast();
    }

    fn drop_queue(&mut self) {
        for delivery in self.queue.drain(..) {
            self.used += delivery.messages.len() as u64;
            self.used_bytes += delivery.bytes;
        }
        self.taking.drop_waiting();
    }

    // ---- the end

    /// Send what is acknowledged and say CLOSE.
    pub fn close(&mut self, wire: &mut Wire) {
        self.queue.clear();
        match self.phase {
            Phase::Closed | Phase::Closing => {}
            Phase::Open => {
                self.flush(false, wire);
                self.phase = Phase::Closing;
                wire.close(self.number);
            }
            _ if !self.is_settled() => self.leaving = true, // once it is open again
            Phase::Opening => {
                self.phase = Phase::Closing;
                wire.close(self.number);
            }
            Phase::Idle if self.known => self.phase = Phase::Closing, // the next WELCOME says whether it is there
            Phase::Idle | Phase::Waiting => self.fail(self.closed_error()),
        }
    }

    /// Nobody receives any more.
    pub fn abandon(&mut self, wire: &mut Wire) {
        self.abandoned = true;
        self.close(wire);
    }
}
