//! The sockets of a client, and the thread that alone uses them. What frames mean is in `session.rs`.
//!
//! Invariants
//! - a socket that has lost its peer is closed, and never left to reconnect: it would lose messages in silence
//! - frames are sent and received without the client's lock, and understood under it

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::network::{Core, Link, FAREWELL};
use crate::session::{Phase, Session};
use crate::signal::random;

const LONG: Duration = Duration::from_secs(3600);
const TAKEN_AT_ONCE: usize = 1000; // messages, before what they brought about is sent
const BYTES_AT_ONCE: usize = 8 << 20;

/// The numbers of events of a socket's monitor. The binding's own reader panics at numbers that are new to it.
mod event {
    pub const CONNECT_RETRIED: u16 = 0x0004;
    pub const DISCONNECTED: u16 = 0x0200;
    pub const HANDSHAKE_FAILED: [u16; 3] = [0x0800, 0x2000, 0x4000];
    pub const WANTED: i32 = 0x0004 | 0x0200 | 0x0800 | 0x2000 | 0x4000;
}

/// What programs' calls and the thread share.
pub(crate) struct Shared {
    core: Mutex<Core>,
    wake: Mutex<Option<zmq::Socket>>, // none once the thread has ended
}

/// The client's state; the thread is woken, where there is something for it, when this is dropped.
pub(crate) struct Locked<'a> {
    core: MutexGuard<'a, Core>,
    shared: &'a Shared,
}

impl std::ops::Deref for Locked<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        &mut self.core
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.core.sleeping.is_some() && self.core.wants_service() {
            self.core.sleeping = None;
            if let Some(wake) = &*self.shared.wake.lock().unwrap_or_else(PoisonError::into_inner) {
                // It fails where there is no room for another one: then the thread is woken anyway.
                let _ = wake.send(&b"!"[..], zmq::DONTWAIT);
            }
        }
    }
}

impl Shared {
    /// Start the thread.
    pub fn start(core: Core) -> Result<Arc<Shared>> {
        let context = zmq::Context::new();
        let (woken, wake) = pair(&context).map_err(|error| failed("cannot make a socket", error))?;
        let shared = Arc::new(Shared { core: Mutex::new(core), wake: Mutex::new(Some(wake)) });
        let thread = Thread { shared: Arc::clone(&shared), context, woken, sockets: HashMap::new() };
        std::thread::Builder::new()
            .name("ister".into())
            .spawn(move || thread.run())
            .map_err(|error| Error::Socket(format!("cannot start a thread: {error}").into()))?;
        Ok(shared)
    }

    pub fn lock(&self) -> Locked<'_> {
        Locked { core: self.core.lock().unwrap_or_else(PoisonError::into_inner), shared: self }
    }
}

fn failed(what: &str, error: zmq::Error) -> Error {
    Error::Socket(format!("{what}: {error}").into())
}

/// Two ends of a pipe within the process.
fn pair(context: &zmq::Context) -> std::result::Result<(zmq::Socket, zmq::Socket), zmq::Error> {
    let address = format!("inproc://ister-{:016x}", random());
    let ends = (context.socket(zmq::PAIR)?, context.socket(zmq::PAIR)?);
    for end in [&ends.0, &ends.1] {
        end.set_linger(0)?;
    }
    ends.0.bind(&address)?;
    ends.1.connect(&address)?;
    Ok(ends)
}

/// Which event a monitor tells of.
fn number_of(frames: &[Vec<u8>]) -> u16 {
    let two = frames.first().and_then(|frame| frame.first_chunk());
    two.map_or(0, |two| u16::from_ne_bytes(*two)) // in the order of the machine, unlike everything else
}

struct Sockets {
    socket: zmq::Socket,
    monitor: zmq::Socket,
}

impl Drop for Sockets {
    /// Have the socket tell nobody any more, before its monitor goes. The binding cannot say that; another monitor that
    /// wants nothing is the same.
    fn drop(&mut self) {
        // It fails only where the context ends, and then there is nobody to wait.
        let _ = self.socket.monitor(&format!("inproc://ister-{:016x}", random()), 0);
    }
}

impl Sockets {
    fn connect(context: &zmq::Context, endpoint: &str) -> std::result::Result<Sockets, zmq::Error> {
        let socket = context.socket(zmq::DEALER)?;
        socket.set_linger(0)?;
        socket.set_sndhwm(0)?;
        socket.set_rcvhwm(0)?;
        socket.set_ipv6(true)?;
        socket.set_reconnect_ivl(50)?;
        socket.set_reconnect_ivl_max(1000)?;
        socket.set_heartbeat_ivl(5000)?;
        socket.set_heartbeat_timeout(15_000)?;
        let address = format!("inproc://ister-{:016x}", random());
        socket.monitor(&address, event::WANTED)?;
        let monitor = context.socket(zmq::PAIR)?;
        monitor.set_linger(0)?;
        monitor.connect(&address)?;
        socket.connect(endpoint)?;
        Ok(Sockets { socket, monitor })
    }

    /// Send what was in an outbox, as far as ZeroMQ takes it.
    fn send(&self, outbox: &mut VecDeque<Vec<Bytes>>) -> std::result::Result<(), zmq::Error> {
        while let Some(frames) = outbox.front() {
            match self.socket.send_multipart(frames.iter().map(|frame| &frame[..]), zmq::DONTWAIT) {
                Ok(()) => drop(outbox.pop_front()),
                Err(zmq::Error::EAGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Take in what has come, not everything at once; true where there may be more.
    fn receive(&self) -> std::result::Result<(Vec<Vec<Bytes>>, bool), zmq::Error> {
        let mut came = Vec::new();
        let mut bytes = 0;
        while came.len() < TAKEN_AT_ONCE && bytes < BYTES_AT_ONCE {
            match self.socket.recv_multipart(zmq::DONTWAIT) {
                Ok(frames) => {
                    bytes += frames.iter().map(Vec::len).sum::<usize>();
                    came.push(frames.into_iter().map(Bytes::from).collect());
                }
                Err(zmq::Error::EAGAIN) => return Ok((came, false)),
                Err(error) => return Err(error),
            }
        }
        Ok((came, true))
    }

    fn look_at_monitor(&self, session: &mut Session, endpoint: &str) {
        while let Ok(frames) = self.monitor.recv_multipart(zmq::DONTWAIT) {
            match number_of(&frames) {
                event::CONNECT_RETRIED if session.phase == Phase::Greeting => {
                    session.lose(Error::lost(format!("nobody listens at {endpoint}")));
                }
                event::DISCONNECTED => session.lose(Error::lost(format!("the connection to {endpoint} broke"))),
                number if event::HANDSHAKE_FAILED.contains(&number) => {
                    session.lose(Error::lost(format!("who listens at {endpoint} does not speak ZeroMQ as needed")));
                }
                // What newer libraries tell, and nobody asked for.
                _ => {}
            }
        }
    }

    /// Close both: the socket with what is still to be said.
    fn close(self, linger: Duration) {
        // Errors do not matter any more: the socket goes.
        let _ = self.socket.set_linger(i32::try_from(linger.as_millis()).unwrap_or(0));
    }
}

/// What goes out over a socket, and what has come over it: without the client's lock.
#[derive(Default)]
struct Parcel {
    outbox: VecDeque<Vec<Bytes>>,
    spoke: bool,
    came: Vec<Vec<Bytes>>,
    /// There may be more of it.
    more: bool,
    failed: Option<zmq::Error>,
    /// Nothing will be said after this.
    last: bool,
}

impl Parcel {
    fn exchange(&mut self, sockets: &Sockets) {
        match sockets.send(&mut self.outbox).and_then(|()| sockets.receive()) {
            Ok((came, more)) => (self.came, self.more) = (came, more),
            Err(error) => self.failed = Some(error),
        }
    }
}

struct Thread {
    shared: Arc<Shared>,
    context: zmq::Context,
    woken: zmq::Socket,
    sockets: HashMap<u64, Sockets>,
}

/// However the thread ends, nobody waits for it any more.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.core.lock().unwrap_or_else(PoisonError::into_inner).on_ended();
    }
}

impl Thread {
    fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let _ending = Ending(Arc::clone(&shared));
        let lock = || shared.core.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut parcels = self.prepare(&mut lock(), Instant::now());
            for (number, parcel) in &mut parcels {
                if let Some(sockets) = self.sockets.get(number) {
                    parcel.exchange(sockets);
                }
            }
            let mut core = lock();
            let now = Instant::now();
            let more = self.settle(&mut core, parcels, now);
            if core.is_over() && self.sockets.is_empty() {
                break;
            }
            let due = core.deadline().unwrap_or(now + LONG).min(now + LONG);
            core.sleeping = if more || core.wants_service() { None } else { Some(due) };
            let sleep = if core.sleeping.is_some() { due.saturating_duration_since(now) } else { Duration::ZERO };
            drop(core);
            self.wait(sleep);
        }
        let Thread { context, woken, .. } = self;
        drop(woken);
        drop(shared.wake.lock().unwrap_or_else(PoisonError::into_inner).take());
        drop(context); // waits until what was said last is on its way
    }

    /// Make the sockets that are wanted, and take what is to be sent.
    fn prepare(&mut self, core: &mut Core, now: Instant) -> Vec<(u64, Parcel)> {
        core.poke = false;
        core.tidy(now);
        let wanting: Vec<u64> = core.links.iter().filter(|(_, link)| link.wants_socket(now)).map(|(&n, _)| n).collect();
        for number in wanting {
            let Some(link) = core.links.get_mut(&number).filter(|_| !self.sockets.contains_key(&number)) else {
                continue;
            };
            match Sockets::connect(&self.context, link.endpoint()) {
                Ok(sockets) => {
                    link.session.connect(now);
                    self.sockets.insert(number, sockets);
                }
                Err(error) => {
                    let what = format!("cannot connect to {}", link.endpoint());
                    link.session.trouble = Some(failed(&what, error));
                    core.hang_up(number, now);
                }
            }
        }
        let parcel = |(&number, link): (&u64, &mut Link)| {
            let outbox = std::mem::take(&mut link.session.wire.outbox);
            (number, Parcel { last: link.over, spoke: !outbox.is_empty(), outbox, ..Parcel::default() })
        };
        core.links.iter_mut().map(parcel).collect()
    }

    /// Take in what came, and do everything that is due; true where more may have come.
    fn settle(&mut self, core: &mut Core, parcels: Vec<(u64, Parcel)>, now: Instant) -> bool {
        let mut more = false;
        for (number, mut parcel) in parcels {
            let Some(link) = core.links.get_mut(&number) else { continue };
            let endpoint = link.endpoint().to_owned();
            let session = &mut link.session;
            if let Some(sockets) = self.sockets.get(&number) {
                if parcel.spoke {
                    session.on_spoken(now);
                }
                parcel.outbox.append(&mut session.wire.outbox); // what was not taken goes before what came since
                session.wire.outbox = parcel.outbox;
                more |= parcel.more;
                for frames in &parcel.came {
                    session.receive(frames, now);
                }
                if let Some(error) = parcel.failed {
                    session.lose(Error::lost(format!("the socket to {endpoint} failed: {error}")));
                }
                sockets.look_at_monitor(session, &endpoint);
                session.tick(now);
            }
            core.follow(number, now);
            core.look(number);
            self.hang_up(core, number, parcel.last, now);
        }
        core.tidy(now);
        more
    }

    /// Close the socket of a session that was lost, or that has said its last.
    fn hang_up(&mut self, core: &mut Core, number: u64, last: bool, now: Instant) {
        let Some(link) = core.links.get(&number) else { return };
        if last {
            if let Some(sockets) = self.sockets.remove(&number) {
                sockets.close(FAREWELL);
            }
            core.forget(number);
        } else if matches!(link.session.phase, Phase::Idle | Phase::Ended) && !link.over {
            let idle = link.session.phase == Phase::Idle;
            if let Some(sockets) = self.sockets.remove(&number) {
                sockets.close(Duration::ZERO);
                if idle {
                    core.hang_up(number, now);
                }
            }
        }
    }

    fn wait(&self, sleep: Duration) {
        let mut items = vec![self.woken.as_poll_item(zmq::POLLIN)];
        for sockets in self.sockets.values() {
            items.push(sockets.socket.as_poll_item(zmq::POLLIN));
            items.push(sockets.monitor.as_poll_item(zmq::POLLIN));
        }
        // Rounded up: to wake too early would be to turn around in circles.
        let milliseconds = i64::try_from(sleep.as_micros().div_ceil(1000)).unwrap_or(i64::MAX);
        // An interrupted wait is one that ended early.
        let _ = zmq::poll(&mut items, milliseconds);
        while self.woken.recv_bytes(zmq::DONTWAIT).is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_a_monitor_that_nobody_knows_is_passed_over() {
        // What the binding makes of one, up to zmq 0.10.0 and zmq2 0.5.0.
        assert!(std::panic::catch_unwind(|| zmq::SocketEvent::from_raw(0x8001)).is_err());
        let told = |number: u16| vec![[&number.to_ne_bytes()[..], &[0; 4]].concat(), b"tcp://127.0.0.1:1".to_vec()];
        assert_eq!(number_of(&told(event::DISCONNECTED)), event::DISCONNECTED);
        assert_eq!(number_of(&told(0x8000)), 0x8000);
        assert_eq!(number_of(&[vec![1]]), 0);
        assert_eq!(number_of(&[]), 0);
    }

    /// libzmq's own thread waits for ever where it has something to tell a monitor that nobody holds any more: then no
    /// socket of the context connects, sends or receives again.
    #[test]
    fn sockets_that_are_closed_while_things_happen_to_them_stop_no_other() {
        let context = zmq::Context::new();
        let rude = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("tcp://{}", rude.local_addr().unwrap());
        std::thread::spawn(move || rude.incoming().for_each(drop)); // hangs up on everybody
        for round in 0..400 {
            let sockets = Sockets::connect(&context, &endpoint).unwrap();
            std::thread::sleep(Duration::from_micros(round % 20 * 100));
            sockets.close(Duration::ZERO);
        }
        let broker = context.socket(zmq::ROUTER).unwrap();
        broker.set_linger(0).unwrap();
        broker.set_rcvtimeo(30_000).unwrap();
        broker.bind("tcp://127.0.0.1:*").unwrap();
        let endpoint = broker.get_last_endpoint().unwrap().unwrap();
        let sockets = Sockets::connect(&context, &endpoint).unwrap();
        sockets.send(&mut VecDeque::from([vec![Bytes::from_static(b"still there")]])).unwrap();
        let heard = broker.recv_multipart(0);
        if heard.is_err() {
            std::process::abort(); // the context cannot be ended: this test would never be
        }
        sockets.close(Duration::ZERO);
    }

    #[test]
    fn a_socket_loses_its_connection_in_one_that_is_closed_and_says_so() {
        let context = zmq::Context::new();
        let broker = context.socket(zmq::ROUTER).unwrap();
        broker.set_linger(0).unwrap();
        broker.bind("tcp://127.0.0.1:*").unwrap();
        let endpoint = broker.get_last_endpoint().unwrap().unwrap();
        let sockets = Sockets::connect(&context, &endpoint).unwrap();
        let mut session = Session::new("test", 1, Instant::now());
        session.connect(Instant::now());
        sockets.send(&mut session.wire.outbox).unwrap();
        assert_eq!(broker.recv_multipart(0).unwrap().len(), 2); // whose it is, and HELLO without an empty frame
        drop(broker);
        let until = Instant::now() + Duration::from_secs(30);
        while session.phase != Phase::Idle {
            assert!(Instant::now() < until, "nobody tells of the lost connection");
            let mut items = [sockets.monitor.as_poll_item(zmq::POLLIN)];
            zmq::poll(&mut items, 100).unwrap();
            sockets.look_at_monitor(&mut session, &endpoint);
        }
        sockets.close(Duration::ZERO);
    }
}
