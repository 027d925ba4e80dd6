//! All of a client's connections: where producers and consumers are, MOVED, back-off, and the end. It knows no socket
//! and no thread: `io.rs` does what this says.
//!
//! Invariants
//! - a handle is in one session at a time
//! - who is moved in circles waits
//! - a session that nothing lives in any more is ended, unless it is that of the first endpoints

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::attachment::Attachment;
use crate::error::{Error, Result};
use crate::outbox::Wire;
use crate::publication::Publication;
use crate::session::{Handle, Phase, Session};
use crate::signal::{back_off, random, Signal, BACK_OFF_MAX, BACK_OFF_MIN};

const MOVES_MAX: u32 = 8;
const MOVES_WITHIN: Duration = Duration::from_secs(1);
const REHOME_FAILURES: u32 = 3;
const EVENTS_KEPT: usize = 256;
pub(crate) const FAREWELL: Duration = Duration::from_millis(500);

/// What became of a connection; it is made again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionEvent {
    /// True: there is a session (again). False: the connection was lost.
    pub connected: bool,
    /// Where.
    pub endpoint: String,
    /// Why it was lost.
    pub text: String,
}

/// One worker, and how to reach it.
pub(crate) struct Link {
    endpoints: Vec<String>,
    at: usize,
    pub session: Session,
    due: Instant,
    failures: u32,
    up: bool,
    /// It is over: what is in the outbox is the last.
    pub over: bool,
}

impl Link {
    pub fn endpoint(&self) -> &str {
        &self.endpoints[self.at]
    }

    /// Whether a socket is wanted now.
    pub fn wants_socket(&self, now: Instant) -> bool {
        self.session.phase == Phase::Idle && now >= self.due && !self.over
    }

    fn deadline(&self) -> Option<Instant> {
        match self.session.phase {
            Phase::Idle => Some(self.due),
            _ => self.session.deadline(),
        }
    }
}

struct Trail {
    moves: u32,
    last: Instant,
}

/// Everything a client has, but its sockets.
pub(crate) struct Core {
    text: String,
    pub links: BTreeMap<u64, Link>,
    home: u64,
    next_link: u64,
    next_handle: u64,
    secrets: HashMap<String, [u8; 16]>,
    trails: HashMap<u64, Trail>,
    waiting: Vec<(Instant, u64)>, // handles that were moved in circles
    pub events: VecDeque<ConnectionEvent>,
    /// Sessions: greetings, losses, the end.
    pub changed: Signal,
    /// No more calls; what is left is done until then.
    leaving: Option<Instant>,
    /// Something was left undone then.
    pub unfinished: bool,
    /// There are no sockets any more.
    pub ended: bool,
    timers: BTreeMap<(Instant, u64), Waker>,
    next_timer: u64,
    /// Whoever does the I/O sleeps until then.
    pub sleeping: Option<Instant>,
    /// It is to look.
    pub poke: bool,
}

impl Core {
    pub fn new(text: String, endpoints: Vec<String>, now: Instant) -> Core {
        let mut core = Core {
            text,
            links: BTreeMap::new(),
            home: 1,
            next_link: 0,
            next_handle: 0,
            secrets: HashMap::new(),
            trails: HashMap::new(),
            waiting: Vec::new(),
            events: VecDeque::new(),
            changed: Signal::default(),
            leaving: None,
            unfinished: false,
            ended: false,
            timers: BTreeMap::new(),
            next_timer: 0,
            sleeping: None,
            poke: false,
        };
        core.home = core.add_link(endpoints, now);
        core
    }

    fn add_link(&mut self, endpoints: Vec<String>, now: Instant) -> u64 {
        self.next_link += 1;
        let mut session = Session::new(&self.text, self.next_link, now);
        session.wire.secret = self.secrets.get(&endpoints[0]).copied();
        let link = Link { endpoints, at: 0, session, due: now, failures: 0, up: false, over: false };
        self.links.insert(self.next_link, link);
        self.poke = true;
        self.next_link
    }

    /// The connection to the first endpoints.
    pub fn home(&mut self) -> &mut Link {
        // It is there until the end of the client.
        self.links.get_mut(&self.home).expect("the first connection is kept")
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// Refuse calls of a client that was closed.
    pub fn check(&self) -> Result<()> {
        if self.is_leaving() {
            Err(Error::closed("the client"))
        } else {
            Ok(())
        }
    }

    // ---- handles

    pub fn attach(&mut self, now: Instant, make: impl FnOnce(u64) -> Handle) -> Result<u64> {
        self.check()?;
        self.next_handle += 1;
        let number = self.next_handle;
        self.home().session.attach(number, make(number), true, now);
        self.poke = true;
        Ok(number)
    }

    fn find(&mut self, number: u64) -> Option<(&mut Handle, &mut Wire)> {
        self.links.values_mut().find_map(|link| {
            let Session { handles, wire, .. } = &mut link.session;
            handles.get_mut(&number).map(|handle| (handle, wire))
        })
    }

    pub fn producer(&mut self, number: u64) -> Option<(&mut Publication, &mut Wire)> {
        match self.find(number) {
            Some((Handle::Producer(each), wire)) => Some((each, wire)),
            _ => None,
        }
    }

    pub fn consumer(&mut self, number: u64) -> Option<(&mut Attachment, &mut Wire)> {
        match self.find(number) {
            Some((Handle::Consumer(each), wire)) => Some((each, wire)),
            _ => None,
        }
    }

    /// Whether the handle's session has a connection.
    pub fn is_connected(&self, number: u64) -> bool {
        self.links.values().any(|link| link.session.is_ready() && link.session.handles.contains_key(&number))
    }

    /// Nobody uses a handle any more.
    pub fn abandon(&mut self, number: u64) {
        if let Some((handle, wire)) = self.find(number) {
            handle.abandon(wire);
        }
        self.trails.remove(&number);
        self.poke = true;
    }

    // ---- where they are

    /// Take handles to where a session was told they are to be opened.
    pub fn follow(&mut self, from: u64, now: Instant) {
        let Some(link) = self.links.get_mut(&from) else { return };
        for (number, endpoint) in std::mem::take(&mut link.session.moves) {
            let trail = self.trails.entry(number).or_insert(Trail { moves: 0, last: now });
            if now.duration_since(trail.last) >= MOVES_WITHIN {
                trail.moves = 0;
            }
            (trail.moves, trail.last) = (trail.moves + 1, now);
            if trail.moves > MOVES_MAX {
                let reason = Error::lost(format!("moved {MOVES_MAX} times in a row, lastly to {endpoint}"));
                if let Some((handle, _)) = self.find(number) {
                    handle.on_lost(&reason);
                }
                self.waiting.push((now + MOVES_WITHIN, number));
                continue;
            }
            let target = match self.links.iter().find(|(_, link)| link.endpoint() == endpoint && !link.over) {
                Some((&target, _)) => target,
                None => self.add_link(vec![endpoint], now),
            };
            self.put(from, target, number, now);
        }
    }

    fn put(&mut self, from: u64, target: u64, number: u64, now: Instant) {
        let Some(mut handle) = self.links.get_mut(&from).and_then(|link| link.session.handles.remove(&number)) else {
            return;
        };
        let Some(link) = self.links.get_mut(&target) else { return };
        handle.on_lost(&Error::lost(format!("moved to {}", link.endpoint())));
        link.session.attach(number, handle, false, now);
        self.poke = true;
    }

    /// End a session that nothing lives in any more.
    fn leave(&mut self, number: u64, reason: Error) {
        if let Some(link) = self.links.get_mut(&number) {
            if let Some(secret) = link.session.wire.secret {
                // What was opened there has left; but who is sent back uses the session it had.
                self.secrets.insert(link.endpoint().into(), secret);
            }
            link.session.end(reason);
            link.over = true;
            self.poke = true;
        }
    }

    /// Ask the first endpoints again: the one that things were moved to does not come back.
    fn rehome(&mut self, from: u64, now: Instant) {
        let Some(link) = self.links.get(&from) else { return };
        let numbers: Vec<u64> = link.session.handles.keys().copied().collect();
        for number in numbers {
            self.put(from, self.home, number, now);
        }
        self.leave(from, Error::lost("the worker does not come back"));
    }

    // ---- what whoever does the I/O says

    /// A socket could not be made, or a session was lost: choose when, and where, to try again.
    pub fn hang_up(&mut self, number: u64, now: Instant) {
        let is_home = number == self.home;
        let Some(link) = self.links.get_mut(&number) else { return };
        let endpoint = link.endpoint().to_owned();
        let trouble = link.session.trouble.clone();
        if let Some(secret) = link.session.wire.secret {
            self.secrets.insert(endpoint.clone(), secret);
        }
        if let Some(trouble) = &trouble {
            log::debug!("{endpoint} was given up for now: {trouble}");
        }
        let wait = back_off(link.failures, BACK_OFF_MIN, BACK_OFF_MAX);
        let jitter = random() % u64::try_from(wait.as_millis()).unwrap_or(1).max(1);
        link.due = now + wait / 2 + Duration::from_millis(jitter);
        if link.failures > 0 && link.endpoints.len() > 1 {
            link.at = (link.at + 1) % link.endpoints.len();
            link.session.wire.secret = self.secrets.get(link.endpoint()).copied();
        }
        link.failures += 1;
        let gone = !is_home && link.failures > REHOME_FAILURES;
        if std::mem::take(&mut link.up) {
            self.tell(false, endpoint, trouble.map(|error| error.to_string()).unwrap_or_default());
        }
        if gone {
            self.rehome(number, now);
        }
        self.changed.broadcast();
    }

    /// There may be a session.
    pub fn look(&mut self, number: u64) {
        let Some(link) = self.links.get_mut(&number) else { return };
        if link.session.is_ready() && !link.up {
            (link.up, link.failures) = (true, 0);
            let endpoint = link.endpoint().to_owned();
            self.tell(true, endpoint, String::new());
        } else if link.session.phase == Phase::Ended {
            self.changed.broadcast();
        }
    }

    fn tell(&mut self, connected: bool, endpoint: String, text: String) {
        if connected {
            log::info!("there is a session with {endpoint}");
        } else if !self.is_leaving() {
            log::warn!("the connection to {endpoint} was lost, and is made again: {text}");
        }
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
        }
        self.events.push_back(ConnectionEvent { connected, endpoint, text });
        self.changed.broadcast();
    }

    /// Forget what is over, try again what waited, and see whether the end has come.
    pub fn tidy(&mut self, now: Instant) {
        let (due, waiting): (Vec<_>, Vec<_>) = self.waiting.drain(..).partition(|&(due, _)| due <= now);
        self.waiting = waiting;
        for (_, number) in due {
            for Link { session, .. } in self.links.values_mut().filter(|link| link.session.is_ready()) {
                if let Some(handle) = session.handles.get_mut(&number) {
                    handle.on_ready(&mut session.wire, true, now);
                }
            }
        }
        let home = self.home;
        let mut empty = Vec::new();
        for (&number, link) in &mut self.links {
            let before = link.session.handles.len();
            link.session.handles.retain(|_, handle| !handle.is_over());
            if number != home && before > 0 && link.session.handles.is_empty() && !link.over {
                empty.push(number);
            }
        }
        for number in empty {
            self.leave(number, Error::lost("nothing lives there any more"));
        }
        if let Some(until) = self.leaving {
            let quiet = self.links.values().all(|link| link.session.handles.values().all(Handle::is_quiet));
            if (quiet || now >= until) && self.links.values().any(|link| !link.over) {
                self.unfinished = !quiet;
                let numbers: Vec<u64> = self.links.keys().copied().collect();
                for number in numbers {
                    self.leave(number, Error::closed("the client"));
                }
            }
        }
        while let Some(timer) = self.timers.first_entry() {
            if timer.key().0 > now {
                break;
            }
            timer.remove().wake();
        }
    }

    /// A connection is gone for good, and its socket closed.
    pub fn forget(&mut self, number: u64) {
        if number != self.home {
            self.links.remove(&number);
        }
    }

    /// Whether all that is left is to say goodbye.
    pub fn is_over(&self) -> bool {
        self.links.values().all(|link| link.over)
    }

    /// When something is due next.
    pub fn deadline(&self) -> Option<Instant> {
        let links = self.links.values().filter(|link| !link.over).filter_map(Link::deadline);
        let waiting = self.waiting.iter().map(|&(due, _)| due);
        let timers = self.timers.keys().next().map(|&(due, _)| due);
        links.chain(waiting).chain(timers).chain(self.leaving).min()
    }

    /// Whether whoever does the I/O has something to do before it would look by itself.
    pub fn wants_service(&self) -> bool {
        self.poke || self.links.values().any(|link| !link.session.wire.outbox.is_empty())
    }

    // ---- the end

    /// Take no more calls, do what is left within a time, and say goodbye.
    pub fn end(&mut self, within: Duration, now: Instant) {
        if self.leaving.is_some() {
            return;
        }
        self.leaving = Some(now + within);
        for link in self.links.values_mut() {
            let Session { handles, wire, .. } = &mut link.session;
            for handle in handles.values_mut() {
                handle.abandon(wire);
            }
        }
        self.poke = true;
        self.changed.broadcast();
    }

    /// The sockets are closed: whatever is left has failed.
    pub fn on_ended(&mut self) {
        for link in self.links.values_mut().filter(|link| link.session.phase != Phase::Ended) {
            link.session.end(Error::closed("the client"));
        }
        self.ended = true;
        self.leaving.get_or_insert_with(Instant::now);
        self.changed.broadcast();
        std::mem::take(&mut self.timers).into_values().for_each(Waker::wake);
    }

    // ---- timers

    pub fn set_timer(&mut self, due: Instant, waker: &Waker) -> (Instant, u64) {
        self.next_timer += 1;
        self.timers.insert((due, self.next_timer), waker.clone());
        if self.sleeping.is_some_and(|until| due < until) {
            self.poke = true;
        }
        (due, self.next_timer)
    }

    pub fn clear_timer(&mut self, timer: (Instant, u64)) {
        self.timers.remove(&timer);
    }
}
