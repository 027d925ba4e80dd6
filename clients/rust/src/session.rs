//! The client's side of a session with one worker: messages in, messages out. It knows no socket, no clock and no
//! thread; whoever uses it holds the client's lock. Sections 6, 7 and 10 of PROTOCOL.md.
//!
//! Invariants
//! - nothing but HELLO goes out before WELCOME
//! - no REF is used twice, over all sessions of a client
//! - a handle that was opened is closed at the worker before it is forgotten here, where the worker still knows it

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::attachment::Attachment;
use crate::cbor::Value;
use crate::error::{Action, Error, Result};
use crate::outbox::{Limits, Question, Wire};
use crate::publication::Publication;
use crate::signal::{back_off, Signal, BACK_OFF_MIN};
use crate::wire::{key, kind, Frame, Header, RESULT_BYTES_MAX};

/// A worker that has too much to do answers late: who left each time before it did would never be welcomed.
const GREETING_TIMES: [Duration; 3] = [Duration::from_secs(3), Duration::from_secs(6), Duration::from_secs(12)];
const REQUEST_BACK_OFF_MAX: Duration = Duration::from_secs(1);
const SILENCE: u32 = 3; // heartbeats without a word, and the connection is lost
const HEARTBEAT_MS_MAX: u64 = 3_600_000; // what no clock overflows with
const REFS_PER_SESSION: u32 = 40; // bits

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Idle,
    Greeting,
    Ready,
    Ended,
}

/// A producer or a consumer.
pub(crate) enum Handle {
    Producer(Publication),
    Consumer(Attachment),
}

macro_rules! both {
    ($handle:expr, $each:ident => $what:expr) => {
        match $handle {
            Handle::Producer($each) => $what,
            Handle::Consumer($each) => $what,
        }
    };
}

impl Handle {
    pub fn on_ready(&mut self, wire: &mut Wire, resumed: bool, now: Instant) {
        both!(self, each => each.on_ready(wire, resumed, now));
    }

    pub fn on_lost(&mut self, reason: &Error) {
        both!(self, each => each.on_lost(reason));
    }

    pub fn fail(&mut self, error: Error) {
        both!(self, each => each.fail(error));
    }

    pub fn tick(&mut self, wire: &mut Wire, now: Instant) {
        both!(self, each => each.tick(wire, now));
    }

    fn deadline(&self) -> Option<Instant> {
        both!(self, each => each.deadline())
    }

    pub fn is_over(&self) -> bool {
        both!(self, each => each.is_over())
    }

    /// Whether nothing would be lost if the session ended now.
    pub fn is_quiet(&self) -> bool {
        match self {
            Handle::Producer(each) => each.is_closed() || each.is_answered(),
            Handle::Consumer(each) => each.is_closed() || each.is_settled(),
        }
    }

    /// Nobody uses it any more: it does what is left to do, and goes.
    pub fn abandon(&mut self, wire: &mut Wire) {
        both!(self, each => each.abandon(wire));
    }
}

/// A request that waits to be sent, or for its answer.
struct Request {
    operation: String,
    arguments: Value,
    resent: bool,
    due: Option<Instant>, // asked again then
    asked: Option<u64>,   // the REF under which it is on its way
    tries: u32,
    answer: Option<Result<Bytes>>,
    signal: Signal,
}

impl Request {
    fn finish(&mut self, answer: Result<Bytes>) {
        self.answer.get_or_insert(answer);
        self.signal.broadcast();
    }
}

pub(crate) struct Session {
    pub phase: Phase,
    pub wire: Wire,
    pub handles: BTreeMap<u64, Handle>,
    pub trouble: Option<Error>,
    /// Handles that are to be opened elsewhere; whoever knows the other workers takes them from here.
    pub moves: Vec<(u64, String)>,
    /// The last BOOT; another one means that the worker was started again.
    pub boot: u64,
    text: String,
    heartbeat: Duration,
    requests: BTreeMap<u64, Request>,
    next_request: u64,
    greeted: Instant,
    unanswered: usize, // so many HELLOs in a row
    spoke: Instant,
    heard: Instant,
    pinged: Option<Instant>,
}

impl Session {
    /// `number` tells it from the other sessions of the client.
    pub fn new(text: &str, number: u64, now: Instant) -> Session {
        Session {
            phase: Phase::Idle,
            wire: Wire {
                secret: None,
                outbox: VecDeque::new(),
                limits: Limits::default(),
                next_ref: number << REFS_PER_SESSION,
                questions: HashMap::new(),
            },
            handles: BTreeMap::new(),
            trouble: None,
            moves: Vec::new(),
            boot: 0,
            text: text.into(),
            heartbeat: Duration::from_secs(1),
            requests: BTreeMap::new(),
            next_request: 0,
            greeted: now,
            unanswered: 0,
            spoke: now,
            heard: now,
            pinged: None,
        }
    }

    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Something was sent.
    pub fn on_spoken(&mut self, now: Instant) {
        self.spoke = now;
    }

    pub fn attach(&mut self, number: u64, mut handle: Handle, resumed: bool, now: Instant) {
        match self.phase {
            Phase::Ready => handle.on_ready(&mut self.wire, resumed, now),
            Phase::Ended => handle.fail(self.trouble.clone().unwrap_or_else(|| Error::closed("the client"))),
            _ => {}
        }
        self.handles.insert(number, handle);
    }

    /// There is a new socket: say HELLO.
    pub fn connect(&mut self, now: Instant) {
        if self.phase != Phase::Idle {
            return;
        }
        self.phase = Phase::Greeting;
        self.wire.outbox.clear();
        (self.greeted, self.spoke, self.heard, self.pinged) = (now, now, now, None);
        let mut hello = Frame::new(kind::HELLO).uints(key::VERSION, &[1]).text(key::CLIENT, &self.text);
        if let Some(secret) = &self.wire.secret {
            hello = hello.bytes(key::SESSION, secret);
        }
        self.wire.emit(hello, &[]);
    }

    /// The socket is gone, or as good as gone.
    pub fn lose(&mut self, reason: Error) {
        if !matches!(self.phase, Phase::Greeting | Phase::Ready) {
            return;
        }
        self.phase = Phase::Idle;
        self.wire.outbox.clear();
        self.wire.questions.clear();
        for request in self.requests.values_mut() {
            if request.asked.take().is_some() {
                (request.resent, request.due) = (true, None);
            }
        }
        for handle in self.handles.values_mut() {
            handle.on_lost(&reason);
        }
        self.trouble = Some(reason);
    }

    /// Fail everything for good.
    pub fn end(&mut self, reason: Error) {
        if self.phase == Phase::Ready {
            self.wire.emit(Frame::new(kind::BYE), &[]);
        }
        self.phase = Phase::Ended;
        for request in self.requests.values_mut() {
            request.finish(Err(reason.clone()));
        }
        for handle in self.handles.values_mut() {
            handle.fail(reason.clone());
        }
        self.trouble = Some(reason);
    }

    // ---- requests

    pub fn ask(&mut self, operation: &str, arguments: Value, now: Instant) -> u64 {
        self.next_request += 1;
        let mut request = Request {
            operation: operation.into(),
            arguments,
            resent: false,
            due: None,
            asked: None,
            tries: 0,
            answer: None,
            signal: Signal::default(),
        };
        if self.phase == Phase::Ended {
            request.finish(Err(self.trouble.clone().unwrap_or_else(|| Error::closed("the client"))));
        }
        self.requests.insert(self.next_request, request);
        self.send_requests(now);
        self.next_request
    }

    /// Look at a request. An answer is given once, and with it whether the request may have been carried out twice.
    pub fn asked(&mut self, number: u64, waker: &std::task::Waker) -> Option<(Result<Bytes>, bool)> {
        let Some(request) = self.requests.get_mut(&number) else {
            return Some((Err(Error::closed("the request")), false));
        };
        let Some(answer) = request.answer.take() else {
            request.signal.wait(waker);
            return None;
        };
        let resent = request.resent;
        self.requests.remove(&number);
        Some((answer, resent))
    }

    /// Nobody waits for the answer any more.
    pub fn withdraw(&mut self, number: u64) {
        if let Some(Request { asked: Some(question), .. }) = self.requests.remove(&number) {
            self.wire.questions.remove(&question);
        }
    }

    fn send_requests(&mut self, now: Instant) {
        if !self.is_ready() {
            return;
        }
        for (&number, request) in &mut self.requests {
            if request.answer.is_some() || request.asked.is_some() || request.due.is_some_and(|due| due > now) {
                continue;
            }
            let question = self.wire.expect(Question::Request(number));
            request.asked = Some(question);
            let mut frame = Frame::new(kind::REQUEST).uint(key::REF, question).text(key::OPERATION, &request.operation);
            if !matches!(&request.arguments, Value::Map(members) if members.is_empty()) {
                frame = frame.value(key::ARGUMENTS, &request.arguments);
            }
            self.wire.emit(frame, &[]);
        }
    }

    fn on_result(&mut self, number: u64, header: &Header, body: &[Bytes], now: Instant) -> Result<()> {
        let Some(request) = self.requests.get_mut(&number) else { return Ok(()) };
        request.asked = None;
        match (header.kind, body) {
            (kind::ERROR, _) => {
                let error = header.error();
                if error.action() == Action::Retry {
                    request.due = Some(now + back_off(request.tries, BACK_OFF_MIN, REQUEST_BACK_OFF_MAX));
                    request.tries += 1;
                    self.trouble = Some(error); // told if the time runs out
                } else {
                    request.finish(Err(error));
                }
                Ok(())
            }
            (kind::RESULT, [result]) if result.len() <= RESULT_BYTES_MAX => {
                request.finish(Ok(result.clone()));
                Ok(())
            }
            _ => Err(Error::malformed(format!("a frame of type {} answered a request", header.kind))),
        }
    }

    // ---- what comes

    /// Take in one message; what breaks the protocol costs the connection.
    pub fn receive(&mut self, frames: &[Bytes], now: Instant) {
        self.heard = now;
        let taken = match frames.split_first() {
            Some((header, body)) => Header::decode(header).and_then(|header| self.dispatch(&header, body, now)),
            None => Err(Error::malformed("a message without frames")),
        };
        if let Err(reason) = taken {
            self.lose(reason);
        }
    }

    fn dispatch(&mut self, header: &Header, body: &[Bytes], now: Instant) -> Result<()> {
        if header.kind < kind::WELCOME {
            return Err(Error::malformed(format!("a broker does not send frames of type {}", header.kind)));
        }
        if header.kind == kind::WELCOME {
            return self.welcome(header, now);
        }
        if self.phase == Phase::Greeting {
            return self.on_unwelcome(header);
        }
        if self.phase != Phase::Ready {
            return Ok(());
        }
        if header.kind == kind::ERROR && matches!(header.text(key::CODE), "hello-required" | "session-expired") {
            return Err(self.without_session(header));
        }
        if let Some(question) = header.find(key::REF).and_then(|number| self.wire.questions.remove(&number)) {
            return self.on_answer(question, header, body, now);
        }
        if header.has(key::REF) {
            return Ok(()); // an answer that nobody waits for, to an open that another one replaced for example
        }
        if let Some(number) = header.find(key::HANDLE) {
            return match self.handles.get_mut(&number) {
                Some(Handle::Producer(each)) => {
                    each.on_frame(header, &mut self.wire, now);
                    Ok(())
                }
                Some(Handle::Consumer(each)) => each.on_frame(header, body, &mut self.wire, now),
                None => Ok(()),
            };
        }
        if header.kind == kind::ERROR {
            return Err(header.error()); // about the whole connection: everything is asked anew over the next
        }
        Ok(())
    }

    fn without_session(&mut self, header: &Header) -> Error {
        if header.text(key::CODE) == "session-expired" {
            self.wire.secret = None;
        }
        header.error()
    }

    /// Something else than WELCOME came first: an answer to HELLO, or something for an earlier socket.
    fn on_unwelcome(&mut self, header: &Header) -> Result<()> {
        if header.kind != kind::ERROR {
            return Ok(());
        }
        let error = self.without_session(header);
        if error.action() == Action::Retry {
            return Err(error);
        }
        self.end(error);
        Ok(())
    }

    fn on_answer(&mut self, question: Question, header: &Header, body: &[Bytes], now: Instant) -> Result<()> {
        match question {
            Question::Request(number) => return self.on_result(number, header, body, now),
            Question::Open(number) => {
                if header.kind == kind::MOVED {
                    self.moves.push((number, header.text(key::ENDPOINT).into()));
                    return Ok(());
                }
                if !matches!(header.kind, kind::OPENED | kind::ERROR) {
                    return Err(Error::malformed(format!("a frame of type {} answered an open", header.kind)));
                }
                match self.handles.get_mut(&number) {
                    Some(Handle::Producer(each)) => each.on_open_answer(header, &mut self.wire, now),
                    Some(Handle::Consumer(each)) => each.on_open_answer(header, &mut self.wire, now),
                    None => {}
                }
            }
            Question::Close(number) => match self.handles.get_mut(&number) {
                Some(Handle::Producer(each)) => each.fail(Error::closed("the producer")),
                Some(Handle::Consumer(each)) => each.on_closed(),
                None => {}
            },
            Question::Confirm(number, what) => {
                if let Some(Handle::Consumer(each)) = self.handles.get_mut(&number) {
                    each.on_confirmed(what, header);
                }
            }
            Question::Leave(number) => {
                if let Some(Handle::Consumer(each)) = self.handles.get_mut(&number) {
                    each.on_leave(header);
                }
            }
        }
        Ok(())
    }

    fn welcome(&mut self, header: &Header, now: Instant) -> Result<()> {
        if self.phase != Phase::Greeting {
            return Err(Error::malformed("a WELCOME that nobody asked for"));
        }
        if header.find(key::VERSION) != Some(1) {
            return Err(Error::malformed("the broker welcomes in a version that was not offered"));
        }
        let usual = Limits::default();
        self.wire.limits = Limits {
            message_bytes_max: header.limit(1).unwrap_or(usual.message_bytes_max),
            batch_bytes_max: header.limit(2).unwrap_or(usual.batch_bytes_max),
            batches_in_flight_max: header.limit(3).unwrap_or(usual.batches_in_flight_max).max(1),
            window_bytes: header.limit(4).unwrap_or(usual.window_bytes),
            credit_messages_max: header.limit(7).unwrap_or(usual.credit_messages_max).max(1),
            credit_bytes_max: header.limit(8).unwrap_or(usual.credit_bytes_max).max(1),
        };
        self.phase = Phase::Ready;
        self.trouble = None;
        self.unanswered = 0;
        self.wire.secret = header.secret();
        self.boot = header.uint(key::BOOT);
        self.heartbeat = Duration::from_millis(header.uint(key::HEARTBEAT).clamp(1, HEARTBEAT_MS_MAX));
        let resumed = header.flag(key::RESUMED);
        for handle in self.handles.values_mut() {
            handle.on_ready(&mut self.wire, resumed, now);
        }
        self.send_requests(now);
        Ok(())
    }

    // ---- time

    /// Do what is due.
    pub fn tick(&mut self, now: Instant) {
        match self.phase {
            Phase::Greeting if now >= self.greeted + self.greeting_time() => {
                let waited = self.greeting_time();
                self.unanswered += 1;
                self.lose(Error::lost(format!("no WELCOME within {waited:?}")));
            }
            Phase::Ready => {
                if now >= self.heard + self.heartbeat * SILENCE {
                    let silent = now.duration_since(self.heard);
                    self.lose(Error::lost(format!("the broker has been silent for {silent:.1?}")));
                    return;
                }
                if now >= self.ping_due() {
                    self.wire.emit(Frame::new(kind::PING), &[]);
                    self.pinged = Some(now);
                }
                self.send_requests(now);
                for handle in self.handles.values_mut() {
                    handle.tick(&mut self.wire, now);
                }
            }
            _ => {}
        }
    }

    fn greeting_time(&self) -> Duration {
        GREETING_TIMES[self.unanswered.min(GREETING_TIMES.len() - 1)]
    }

    /// One heartbeat after nothing was sent, or nothing received, and never two PINGs in one.
    fn ping_due(&self) -> Instant {
        let due = self.spoke.min(self.heard) + self.heartbeat;
        self.pinged.map_or(due, |pinged| due.max(pinged + self.heartbeat))
    }

    /// When `tick` is wanted next; `None`: not before something comes.
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Greeting => Some(self.greeted + self.greeting_time()),
            Phase::Ready => {
                let requests = self.requests.values().filter(|each| each.asked.is_none()).filter_map(|each| each.due);
                let handles = self.handles.values().filter_map(Handle::deadline);
                let silence = self.heard + self.heartbeat * SILENCE;
                requests.chain(handles).chain([silence, self.ping_due()]).min()
            }
            _ => None,
        }
    }
}
