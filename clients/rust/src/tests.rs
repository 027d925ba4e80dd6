//! The protocol without a socket: what is said, and what comes of what is heard.

mod taking;

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::attachment::{Attachment, Start, Target, READER};
use crate::batch::{Content, Packing};
use crate::cbor::{encode, Value};
use crate::error::{Action, Error};
use crate::message::Message;
use crate::network::Core;
use crate::outbox::Wire;
use crate::publication::{Publication, Settings, Shipment};
use crate::session::{Handle, Phase, Session};
use crate::wire::{key, kind, Frame, Header, OFFSET_UNKNOWN, RANGES_MAX};

const HEARTBEAT: Duration = Duration::from_millis(1000);

/// A session without a socket: look at what was said, and answer.
struct Talk {
    session: Session,
    now: Instant,
}

fn content(payload: &[u8]) -> Content<'_> {
    Content { payload: payload.into(), key: (&[][..]).into(), attributes: Vec::new(), deliver_at: 0 }
}

fn welcome(resumed: bool) -> Bytes {
    let limits = [(1, 1000), (2, 4000), (3, 2), (4, 300), (7, 1000), (8, 1 << 20), (99, 5)];
    let limits = limits.iter().map(|&(key, limit): &(u64, u64)| (key.into(), limit.into())).collect();
    let frame = Frame::new(kind::WELCOME)
        .uint(key::VERSION, 1)
        .bytes(key::SESSION, &[7; 16])
        .uint(key::BOOT, u64::MAX)
        .uint(key::HEARTBEAT, HEARTBEAT.as_millis() as u64)
        .value(key::LIMITS, &Value::Map(limits));
    if resumed { frame.flag(key::RESUMED) } else { frame }.done()
}

fn said(session: &mut Session) -> Vec<Header> {
    session.wire.outbox.drain(..).map(|frames| Header::decode(&frames[0]).unwrap()).collect()
}

fn kinds(said: &[Header]) -> Vec<u64> {
    said.iter().map(|header| header.kind).collect()
}

impl Talk {
    fn new() -> Talk {
        let now = Instant::now();
        let mut talk = Talk { session: Session::new("test", 1, now), now };
        talk.connect(false);
        talk
    }

    fn connect(&mut self, resumed: bool) {
        self.session.connect(self.now);
        let hello = self.said();
        assert_eq!(kinds(&hello), [kind::HELLO]);
        self.session.receive(&[welcome(resumed)], self.now);
        assert_eq!(self.session.phase, Phase::Ready);
    }

    fn lose(&mut self) {
        self.session.lose(Error::lost("a test"));
    }

    fn said(&mut self) -> Vec<Header> {
        said(&mut self.session)
    }

    fn hear(&mut self, frame: Frame) {
        self.session.receive(&[frame.done()], self.now);
    }

    fn producer(&mut self) -> u64 {
        let settings = Settings {
            topic: "orders".into(),
            id: 7,
            batch_bytes: 1000,
            linger: Duration::from_millis(1),
            window_bytes: None,
        };
        let publication = Publication::new(1, settings, self.now);
        self.session.attach(1, Handle::Producer(publication), true, self.now);
        1
    }

    fn consumer(&mut self, kind: &'static str, credit_messages: Option<u64>) -> u64 {
        let target = Target {
            topic: "orders".into(),
            subscription: "all".into(),
            kind,
            start: Some(Start::Latest),
            priority: 0,
            force: false,
            arguments: Vec::new(),
            patient: false,
            credit_messages,
        };
        let attachment = Attachment::new(2, target, self.now);
        self.session.attach(2, Handle::Consumer(attachment), true, self.now);
        2
    }

    fn publication(&mut self) -> (&mut Publication, &mut Wire) {
        match self.session.handles.get_mut(&1) {
            Some(Handle::Producer(each)) => (each, &mut self.session.wire),
            _ => panic!("there is no producer"),
        }
    }

    fn attachment(&mut self) -> (&mut Attachment, &mut Wire) {
        match self.session.handles.get_mut(&2) {
            Some(Handle::Consumer(each)) => (each, &mut self.session.wire),
            _ => panic!("there is no consumer"),
        }
    }

    /// Answer the open that was said last.
    fn opened(&mut self, more: impl Fn(Frame) -> Frame) -> Header {
        let mut said = self.said();
        let at = said.iter().rposition(|each| matches!(each.kind, kind::OPEN_PRODUCER | kind::OPEN_CONSUMER));
        let open = said.remove(at.expect("something is being opened"));
        let answer = Frame::new(kind::OPENED)
            .uint(key::REF, open.uint(key::REF))
            .uint(key::HANDLE, open.uint(key::HANDLE))
            .text(key::STRATEGY, "reliable");
        self.hear(more(answer));
        open
    }

    fn producer_opened(&mut self, sequence: u64, window: u64) -> Header {
        self.opened(|frame| frame.uint(key::SEQUENCE, sequence).uint(key::BYTES, window))
    }

    fn consumer_opened(&mut self, offset: u64) -> Header {
        self.opened(|frame| frame.uint(key::OFFSET, offset))
    }

    fn send(&mut self, payload: &[u8]) -> Arc<Shipment> {
        let now = self.now;
        let (publication, wire) = self.publication();
        publication.take(&content(payload), wire, now).expect("it is taken").0
    }

    fn seal(&mut self) {
        let (publication, wire) = self.publication();
        assert!(publication.seal(wire));
    }

    fn published(&mut self) -> Vec<u64> {
        let said = self.said();
        said.iter().filter(|each| each.kind == kind::PUBLISH).map(|each| each.uint(key::SEQUENCE)).collect()
    }

    fn receipt(&mut self, pairs: &[u64]) {
        self.hear(Frame::new(kind::RECEIPT).uint(key::HANDLE, 1).uints(key::RECEIPTS, pairs));
    }

    fn refuse(&mut self, code: &str, action: Action, more: impl Fn(Frame) -> Frame) {
        let frame = Frame::new(kind::ERROR);
        let frame = frame.text(key::CODE, code).text(key::TEXT, code).text(key::ACTION, action.as_str());
        self.hear(more(frame));
    }

    fn deliver(&mut self, first: u64, payloads: &[&[u8]]) {
        self.deliver_as(first, payloads, |frame| frame);
    }

    fn deliver_as(&mut self, first: u64, payloads: &[&[u8]], more: impl Fn(Frame) -> Frame) {
        let mut packing = Packing::default();
        payloads.iter().for_each(|payload| packing.push(&content(payload)));
        let (_, body) = packing.done();
        let count = payloads.len() as u64;
        let header = Frame::new(kind::DELIVER)
            .uint(key::HANDLE, 2)
            .uint(key::OFFSET, first)
            .uint(key::COUNT, count)
            .uints(key::TIMESTAMPS, &[count, 5]);
        self.session.receive(&[&[more(header).done()][..], &body].concat(), self.now);
    }

    fn take(&mut self, most: usize) -> Vec<Message> {
        let now = self.now;
        let (attachment, wire) = self.attachment();
        attachment.next(most, wire, now).unwrap_or_default()
    }

    fn ack(&mut self, messages: &[Message], confirm: bool) {
        let now = self.now;
        let (attachment, wire) = self.attachment();
        attachment.ack(messages, now);
        attachment.flush(confirm, wire);
    }
}

// ---- producers

#[test]
fn what_has_no_receipt_is_sent_again_in_order() {
    let mut talk = Talk::new();
    talk.producer();
    talk.producer_opened(0, 1000);
    let first = talk.send(b"one");
    talk.send(b"two");
    talk.seal();
    assert_eq!(talk.published(), [0, 1]);
    talk.receipt(&[0, 40]);
    assert_eq!(first.answer(), Some(Ok(40)));
    talk.lose();
    talk.connect(true);
    assert_eq!(talk.producer_opened(1, 1000).uint(key::SEQUENCE), 1);
    assert_eq!(talk.published(), [1]);
    talk.receipt(&[1, 41, 0, 99]);
    assert!(talk.publication().0.is_answered());
    assert_eq!(first.answer(), Some(Ok(40)), "a second receipt changed the first");
}

#[test]
fn a_batch_is_sent_again_byte_for_byte() {
    let mut talk = Talk::new();
    talk.producer();
    talk.producer_opened(0, 1000);
    talk.send(b"one");
    talk.send(b"two");
    talk.send(b"three");
    talk.seal();
    let before: Vec<_> = talk.session.wire.outbox.drain(..).collect();
    talk.lose();
    talk.connect(false);
    talk.producer_opened(0, 1000);
    let again: Vec<_> = talk.session.wire.outbox.drain(..).collect();
    assert_eq!(again, before);
}

#[test]
fn the_window_is_kept() {
    let mut talk = Talk::new();
    talk.producer();
    talk.producer_opened(0, 100);
    let now = talk.now;
    let mut taken = 0;
    let (publication, wire) = talk.publication();
    while publication.take(&content(&[0; 30]), wire, now).is_some() {
        taken += 1;
        assert!(taken < 100, "the window is never full");
        publication.seal(wire);
        assert!(publication.outstanding().0 <= 100 && publication.outstanding().1 <= 2);
    }
}

#[test]
fn a_refused_batch_is_left_out_once_it_is_the_oldest() {
    let mut talk = Talk::new();
    talk.producer();
    talk.producer_opened(0, 1000);
    let bad = talk.send(b"bad");
    let good = talk.send(b"good");
    talk.seal();
    talk.said();
    talk.refuse("invalid-argument", Action::Fix, |frame| frame.uint(key::HANDLE, 1).uint(key::SEQUENCE, 0));
    talk.refuse("sequence-gap", Action::Retry, |frame| frame.uint(key::HANDLE, 1).uint(key::SEQUENCE, 1));
    assert_eq!(bad.answer().unwrap().unwrap_err().code(), "invalid-argument");
    assert_eq!(good.answer(), None);
    assert_eq!(talk.producer_opened(1, 1000).uint(key::SEQUENCE), 1);
    assert_eq!(talk.published(), [1]);
}

#[test]
fn what_is_refused_for_now_is_sent_again_later() {
    for (code, action) in [("disk-full", Action::Retry), ("unknown-handle", Action::Fix)] {
        let mut talk = Talk::new();
        talk.producer();
        talk.producer_opened(0, 1000);
        let one = talk.send(b"one");
        talk.said();
        talk.refuse(code, action, |frame| frame.uint(key::HANDLE, 1).uint(key::SEQUENCE, 0));
        assert!(talk.said().is_empty(), "{code}");
        talk.now += Duration::from_millis(900);
        talk.session.tick(talk.now);
        talk.producer_opened(0, 1000);
        assert_eq!(talk.published(), [0], "{code}");
        assert_eq!(one.answer(), None, "{code}");
    }
}

#[test]
fn an_answer_to_an_open_that_another_one_replaced_ends_nothing() {
    let mut talk = Talk::new();
    talk.producer();
    let first = talk.said()[0].uint(key::REF);
    talk.lose();
    talk.connect(true);
    talk.refuse("closed", Action::Stop, |frame| frame.uint(key::REF, first).uint(key::HANDLE, 1));
    talk.producer_opened(0, 1000);
    assert!(talk.publication().0.error.is_none());
}

#[test]
fn a_duplicate_whose_place_is_forgotten_is_a_duplicate() {
    let mut talk = Talk::new();
    talk.producer();
    talk.producer_opened(0, 1000);
    let one = talk.send(b"one");
    talk.receipt(&[0, OFFSET_UNKNOWN]);
    assert_eq!(one.answer(), Some(Ok(OFFSET_UNKNOWN)));
}

#[test]
fn a_producer_that_nobody_has_any_more_sends_what_it_took_and_closes() {
    let mut talk = Talk::new();
    talk.producer();
    talk.producer_opened(0, 1000);
    talk.send(b"one");
    let two = talk.send(b"two");
    let (publication, wire) = talk.publication();
    publication.abandon(wire);
    assert_eq!(talk.published(), [0, 1]);
    talk.receipt(&[0, 5]);
    assert!(talk.said().is_empty());
    talk.receipt(&[1, 6]);
    assert_eq!(two.answer(), Some(Ok(6)));
    let close = talk.said();
    assert_eq!(kinds(&close), [kind::CLOSE]);
    talk.hear(Frame::new(kind::DONE).uint(key::REF, close[0].uint(key::REF)));
    assert!(talk.publication().0.is_over());
}

#[test]
fn sizes_are_compared_with_the_limits_before_anything_is_sent() {
    let mut talk = Talk::new();
    talk.producer();
    talk.producer_opened(0, 1000);
    let (publication, _) = talk.publication();
    assert!(publication.check_size(&[content(&[0; 1000])]).is_ok());
    assert_eq!(publication.check_size(&[content(&[0; 1001])]).unwrap_err().code(), "message-too-large");
    let many: Vec<_> = (0..5).map(|_| content(&[0; 900])).collect();
    assert_eq!(publication.check_size(&many).unwrap_err().code(), "batch-too-large");
    let around = Content { attributes: vec![0; 4000], ..content(b"") };
    assert_eq!(publication.check_size(&[around]).unwrap_err().code(), "batch-too-large");
}

// ---- consumers

#[test]
fn credit_comes_back_as_the_program_takes() {
    let mut talk = Talk::new();
    talk.consumer("shared", Some(4));
    assert_eq!(talk.consumer_opened(0).uint(key::MESSAGES), 4);
    talk.deliver(0, &[b"a", b"b", b"c", b"d"]);
    assert!(talk.said().is_empty(), "credit for nothing");
    let mut given = 0;
    for taken in 1..=4 {
        assert_eq!(talk.take(1).len(), 1);
        given += talk.said().iter().map(|each| each.uint(key::MESSAGES)).sum::<u64>();
        assert!(given <= taken);
    }
    assert!(given >= 2, "no credit comes back");
}

#[test]
fn acknowledgments_are_repeated_in_a_resumed_session_and_forgotten_in_a_new_one() {
    for resumed in [true, false] {
        let mut talk = Talk::new();
        talk.consumer("shared", Some(10));
        talk.consumer_opened(0);
        talk.deliver(0, &[b"a", b"b"]);
        let messages = talk.take(2);
        talk.ack(&messages, true);
        talk.lose();
        talk.connect(resumed);
        let said = kinds(&talk.said());
        if resumed {
            assert_eq!(said, [kind::ACK, kind::OPEN_CONSUMER]);
        } else {
            assert_eq!(said, [kind::OPEN_CONSUMER]);
        }
        assert_eq!(talk.attachment().0.forgotten, !resumed);
        talk.ack(&messages, false); // by now they may be about other deliveries
        assert_eq!(talk.attachment().0.forgotten, !resumed);
    }
}

#[test]
fn many_ranges_are_split_and_the_last_frame_asks() {
    let mut talk = Talk::new();
    talk.consumer("shared", Some(5000));
    talk.consumer_opened(0);
    for number in 0..1001 {
        talk.deliver(2 * number, &[b"x"]);
    }
    let messages: Vec<Message> = (0..1001).flat_map(|_| talk.take(1)).collect();
    talk.said();
    talk.ack(&messages, true);
    let said = talk.said();
    assert_eq!(kinds(&said), [kind::ACK; 3]);
    assert!(said.iter().all(|each| each.pairs(key::RANGES).count() <= RANGES_MAX));
    assert_eq!(said.iter().map(|each| each.has(key::REF)).collect::<Vec<_>>(), [false, false, true]);
    talk.hear(Frame::new(kind::DONE).uint(key::REF, said[2].uint(key::REF)));
    assert!(talk.attachment().0.is_settled());
}

#[test]
fn a_consumer_that_is_closed_without_a_connection_is_closed_over_the_next_one() {
    let mut talk = Talk::new();
    talk.consumer("exclusive", Some(10));
    talk.consumer_opened(0);
    talk.lose();
    let (attachment, wire) = talk.attachment();
    attachment.close(wire);
    assert!(!attachment.is_closed());
    talk.connect(true);
    let said = talk.said();
    assert_eq!(kinds(&said), [kind::CLOSE]);
    talk.hear(Frame::new(kind::DONE).uint(key::REF, said[0].uint(key::REF)));
    assert!(talk.attachment().0.is_closed());
}

#[test]
fn what_was_acknowledged_before_a_close_without_a_connection_is_said_first() {
    let mut talk = Talk::new();
    talk.consumer("exclusive", Some(10));
    talk.consumer_opened(0);
    talk.deliver(0, &[b"a"]);
    let messages = talk.take(1);
    talk.lose();
    let now = talk.now;
    let (attachment, wire) = talk.attachment();
    attachment.ack(&messages, now);
    attachment.close(wire);
    talk.connect(true);
    talk.consumer_opened(0);
    assert_eq!(kinds(&talk.said()), [kind::ACK, kind::CLOSE]);
}

#[test]
fn another_subscription_of_the_same_name_gets_no_acknowledgments_of_this_one() {
    let mut talk = Talk::new();
    talk.consumer("shared", Some(10));
    let open = talk.opened(|frame| frame.uint(key::OFFSET, 0).text(key::INSTANCE, "first"));
    assert_eq!(open.find_text(key::INSTANCE), Some(""));
    talk.deliver(0, &[b"a"]);
    let messages = talk.take(1);
    talk.ack(&messages, false);
    talk.lose();
    talk.connect(true);
    let open = talk.opened(|frame| frame.uint(key::OFFSET, 0).text(key::INSTANCE, "second"));
    assert_eq!(open.text(key::INSTANCE), "first");
    assert!(talk.said().is_empty());
    assert!(talk.attachment().0.forgotten);
}

#[test]
fn a_reader_opens_again_at_the_first_offset_it_has_not_handed_out() {
    let mut talk = Talk::new();
    talk.consumer(READER, Some(10));
    assert_eq!(talk.consumer_opened(7).find_text(key::START), Some("latest"));
    talk.lose();
    talk.connect(false);
    assert_eq!(talk.consumer_opened(7).find(key::START), Some(7), "what came while it was away");
    talk.deliver(7, &[b"a", b"b"]);
    talk.take(1);
    talk.lose();
    talk.connect(false);
    assert_eq!(talk.consumer_opened(7).find(key::START), Some(8), "and not what it had and did not hand out");
}

#[test]
fn moving_a_subscription_drops_what_waits_and_gives_its_credit_back() {
    let mut talk = Talk::new();
    talk.consumer("shared", Some(4));
    talk.consumer_opened(0);
    talk.deliver(0, &[b"a", b"b", b"c"]);
    let messages = talk.take(1);
    talk.hear(Frame::new(kind::EVENT).uint(key::HANDLE, 2).text(key::CODE, "sought").uint(key::OFFSET, 9));
    let said = talk.said();
    assert_eq!((kinds(&said), said[0].uint(key::MESSAGES)), (vec![kind::CREDIT], 3));
    assert!(talk.take(1).is_empty());
    talk.ack(&messages, false);
    assert!(talk.said().is_empty(), "it is about what was before the move");
    assert!(!talk.attachment().0.forgotten, "it was not meant to come again");
}

#[test]
fn acknowledgments_say_of_which_moves_the_client_has_heard() {
    for (counted, said_first, said_then) in [(Some(0), None, Some(1)), (Some(3), Some(3), Some(4)), (None, None, None)]
    {
        let mut talk = Talk::new();
        talk.consumer("shared", Some(10));
        let open = talk.opened(|frame| frame.uint(key::OFFSET, 0).uint_if(key::SOUGHT, counted));
        assert_eq!(open.find(key::SOUGHT), Some(0));
        talk.deliver(0, &[b"a", b"b"]);
        let messages = talk.take(2);
        talk.said();
        talk.ack(&messages[..1], false);
        let now = talk.now;
        let (attachment, wire) = talk.attachment();
        attachment.ack_until(&messages[1], wire, now);
        attachment.nack(&messages[1..], None, "", wire);
        attachment.extend(&messages, wire);
        let said = talk.said();
        assert_eq!(kinds(&said), [kind::ACK, kind::ACK_UNTIL, kind::ACK, kind::NACK, kind::EXTEND]);
        assert!(said.iter().all(|each| each.find(key::SOUGHT) == said_first), "{counted:?}");
        let sought = Frame::new(kind::EVENT).uint(key::HANDLE, 2).text(key::CODE, "sought");
        talk.hear(sought.uint_if(key::SOUGHT, counted.map(|moves| moves + 1)));
        talk.deliver(0, &[b"a"]);
        let messages = talk.take(1);
        talk.said();
        talk.ack(&messages, false);
        assert_eq!(talk.said()[0].find(key::SOUGHT), said_then, "{counted:?}");
    }
}

#[test]
fn a_place_that_somebody_has_is_waited_for_only_by_who_had_it_or_asks() {
    let busy = |talk: &mut Talk| {
        let open = talk.said().pop().unwrap();
        talk.refuse("subscription-busy", Action::Retry, |frame| {
            frame.uint(key::REF, open.uint(key::REF)).uint(key::HANDLE, 2)
        });
        talk.attachment().0.error.clone().map(|error| error.code().to_owned())
    };
    let mut talk = Talk::new();
    talk.consumer("exclusive", None);
    assert_eq!(busy(&mut talk).as_deref(), Some("subscription-busy"));

    let mut talk = Talk::new();
    talk.consumer("exclusive", None);
    talk.consumer_opened(0);
    talk.lose();
    talk.connect(false);
    assert_eq!(busy(&mut talk), None);
    talk.now += Duration::from_millis(600);
    talk.session.tick(talk.now);
    talk.consumer_opened(0);
}

#[test]
fn offsets_and_times_that_do_not_fit_a_delivery_cost_the_connection() {
    for (what, ranges, times) in [
        ("too few offsets", Some(&[5, 6][..]), &[2, 1][..]),
        ("too many offsets", Some(&[5, 8]), &[2, 1]),
        ("not from the first on", Some(&[6, 8]), &[2, 1]),
        ("touching", Some(&[5, 6, 6, 7]), &[2, 1]),
        ("as many as a computer has not", Some(&[5, u64::MAX]), &[2, 1]),
        ("times of too few", None, &[1, 1]),
        ("times of too many", None, &[u64::MAX, 1]),
    ] {
        let mut talk = Talk::new();
        talk.consumer("shared", None);
        talk.consumer_opened(0);
        let mut frame = Frame::new(kind::DELIVER).uint(key::HANDLE, 2).uint(key::OFFSET, 5).uint(key::COUNT, 2);
        frame = frame.uints(key::TIMESTAMPS, times);
        if let Some(ranges) = ranges {
            frame = frame.uints(key::RANGES, ranges);
        }
        let body = [Bytes::from(vec![0; 8]), Bytes::new()];
        talk.session.receive(&[&[frame.done()][..], &body].concat(), talk.now);
        assert_eq!(talk.session.phase, Phase::Idle, "{what}");
    }
}

// ---- sessions

#[test]
fn one_ping_a_heartbeat_and_after_three_silent_ones_the_connection_is_lost() {
    let mut talk = Talk::new();
    let (mut pings, mut waited) = (0, Duration::ZERO);
    while talk.session.is_ready() {
        waited += Duration::from_millis(100);
        talk.now += Duration::from_millis(100);
        talk.session.tick(talk.now);
        let said = talk.said();
        if !said.is_empty() {
            talk.session.on_spoken(talk.now);
            pings += said.len();
        }
    }
    assert_eq!((pings, waited), (2, 3 * HEARTBEAT));
}

#[test]
fn any_frame_shows_that_the_broker_lives() {
    let mut talk = Talk::new();
    for _ in 0..50 {
        talk.now += HEARTBEAT / 2;
        talk.hear(Frame::new(kind::PONG));
        talk.session.tick(talk.now);
        assert!(talk.session.is_ready());
    }
}

#[test]
fn numbers_that_no_clock_and_no_counter_holds_stop_nothing() {
    let now = Instant::now();
    let mut talk = Talk { session: Session::new("test", 1, now), now };
    talk.session.connect(now);
    let welcome = Frame::new(kind::WELCOME)
        .uint(key::VERSION, 1)
        .bytes(key::SESSION, &[7; 16])
        .uint(key::BOOT, 1)
        .uint(key::HEARTBEAT, u64::MAX)
        .value(key::LIMITS, &Value::Map(vec![(1u8.into(), u64::MAX.into()), (2u8.into(), u64::MAX.into())]));
    talk.hear(welcome);
    assert!(talk.session.deadline().is_some());
    talk.producer();
    talk.producer_opened(u64::MAX, u64::MAX);
    talk.send(b"one");
    talk.send(b"two");
    talk.receipt(&[u64::MAX, u64::MAX]);
    talk.consumer("shared", None);
    talk.consumer_opened(u64::MAX);
    talk.deliver(u64::MAX - 1, &[b"last"]);
    let messages = talk.take(1);
    talk.ack(&messages, true);
    talk.session.tick(now + Duration::from_secs(1));
    assert!(talk.session.is_ready());
    talk.deliver(u64::MAX, &[b"behind the last"]);
    assert!(!talk.session.is_ready());
}

#[test]
fn garbage_costs_the_connection() {
    for frame in [&b""[..], &[0xff], &[0xa1, 0, 1], &[0xa1, 0, 0x18, 63], &[0xbf, 0, 0x18, 41, 0xff]] {
        let mut talk = Talk::new();
        talk.session.receive(&[Bytes::copy_from_slice(frame)], talk.now);
        assert_eq!(talk.session.phase, Phase::Idle, "{frame:x?}");
    }
}

#[test]
fn an_error_about_the_connection_has_everything_asked_anew() {
    let mut talk = Talk::new();
    let request = talk.session.ask("status", Value::Map(Vec::new()), talk.now);
    let first = talk.said().pop().unwrap().uint(key::REF);
    talk.refuse("malformed", Action::Fix, |frame| frame);
    assert_eq!(talk.session.phase, Phase::Idle);
    talk.connect(true);
    let again = talk.said().pop().unwrap().uint(key::REF);
    assert_ne!(again, first);
    let result = Frame::new(kind::RESULT).uint(key::REF, again).done();
    talk.session.receive(&[result, encode(&Value::Map(Vec::new())).into()], talk.now);
    let (answer, twice) = talk.session.asked(request, Waker::noop()).unwrap();
    assert!(answer.is_ok() && twice);
}

#[test]
fn a_request_that_cannot_be_answered_yet_is_asked_again() {
    let mut talk = Talk::new();
    talk.session.ask("status", Value::Map(Vec::new()), talk.now);
    let first = talk.said().pop().unwrap().uint(key::REF);
    talk.refuse("unavailable", Action::Retry, |frame| frame.uint(key::REF, first));
    assert!(talk.said().is_empty());
    talk.now += Duration::from_millis(100);
    talk.session.tick(talk.now);
    assert_eq!(kinds(&talk.said()), [kind::REQUEST]);
}

#[test]
fn a_worker_that_answers_late_is_waited_for_longer_each_time() {
    let now = Instant::now();
    let mut talk = Talk { session: Session::new("test", 1, now), now };
    for seconds in [3, 6, 12, 12] {
        talk.session.connect(talk.now);
        assert_eq!(talk.session.deadline(), Some(talk.now + Duration::from_secs(seconds)));
        talk.now += Duration::from_secs(seconds);
        talk.session.tick(talk.now);
        assert_eq!(talk.session.phase, Phase::Idle);
    }
    talk.session.connect(talk.now);
    talk.session.receive(&[welcome(false)], talk.now);
    talk.lose();
    talk.session.connect(talk.now);
    assert_eq!(talk.session.deadline(), Some(talk.now + Duration::from_secs(3)));
}

#[test]
fn a_secret_that_expired_is_not_said_again() {
    for (code, kept) in [("hello-required", true), ("session-expired", false)] {
        let mut talk = Talk::new();
        talk.refuse(code, Action::Retry, |frame| frame);
        assert_eq!(talk.session.phase, Phase::Idle);
        assert_eq!(talk.session.wire.secret.is_some(), kept, "{code}");
    }
}

#[test]
fn a_broker_that_speaks_no_version_of_ours_is_not_asked_again() {
    let now = Instant::now();
    let mut talk = Talk { session: Session::new("test", 1, now), now };
    talk.session.connect(now);
    talk.refuse("unsupported-version", Action::Stop, |frame| frame);
    assert_eq!(talk.session.phase, Phase::Ended);
}

// ---- all connections

struct Worker<'a>(&'a mut Core, u64, Instant);

impl Worker<'_> {
    /// Connect and be welcomed.
    fn greet(&mut self) {
        let session = &mut self.0.links.get_mut(&self.1).unwrap().session;
        session.connect(self.2);
        said(session);
        session.receive(&[welcome(false)], self.2);
        self.0.look(self.1);
    }

    /// Say that what is being opened is elsewhere.
    fn move_to(&mut self, endpoint: &str) -> bool {
        let session = &mut self.0.links.get_mut(&self.1).unwrap().session;
        let Some(open) = said(session).into_iter().find(|each| each.kind == kind::OPEN_PRODUCER) else { return false };
        let moved = Frame::new(kind::MOVED)
            .uint(key::REF, open.uint(key::REF))
            .uint(key::HANDLE, open.uint(key::HANDLE))
            .text(key::ENDPOINT, endpoint);
        session.receive(&[moved.done()], self.2);
        self.0.follow(self.1, self.2);
        true
    }
}

const HERE: &str = "tcp://here:1";
const THERE: &str = "tcp://there:1";

fn with_producer(now: Instant) -> Core {
    let mut core = Core::new("test".into(), vec![HERE.into()], now);
    let settings =
        Settings { topic: "orders".into(), id: 7, batch_bytes: 1000, linger: Duration::ZERO, window_bytes: None };
    core.attach(now, |number| Handle::Producer(Publication::new(number, settings, now))).unwrap();
    Worker(&mut core, 1, now).greet();
    core
}

#[test]
fn who_is_moved_in_circles_waits() {
    let now = Instant::now();
    let mut core = with_producer(now);
    assert!(Worker(&mut core, 1, now).move_to(THERE));
    Worker(&mut core, 2, now).greet();
    let mut moves = 1;
    while Worker(&mut core, 2 - moves % 2, now).move_to(if moves % 2 == 1 { HERE } else { THERE })
        || Worker(&mut core, 1 + moves % 2, now).move_to(if moves % 2 == 1 { HERE } else { THERE })
    {
        moves += 1;
        assert!(moves < 50, "it is moved for ever");
    }
    assert_eq!(moves, 9);
    let later = now + Duration::from_secs(2);
    core.tidy(later);
    assert!(core.links.values().any(|link| !link.session.wire.outbox.is_empty()), "it tries again later");
}

#[test]
fn a_worker_that_does_not_come_back_sends_everything_home() {
    let now = Instant::now();
    let mut core = with_producer(now);
    assert!(Worker(&mut core, 1, now).move_to(THERE));
    for _ in 0..4 {
        core.hang_up(2, now);
    }
    assert!(core.links[&2].over);
    assert_eq!(kinds(&said(&mut core.links.get_mut(&1).unwrap().session)), [kind::OPEN_PRODUCER]);
}

#[test]
fn no_reference_is_used_by_two_sessions() {
    let now = Instant::now();
    let mut references: Vec<u64> = (1..4)
        .flat_map(|number| {
            let mut session = Session::new("test", number, now);
            session.connect(now);
            session.receive(&[welcome(true)], now);
            session.ask("status", Value::Map(Vec::new()), now);
            said(&mut session).into_iter().filter_map(|each| each.find(key::REF)).collect::<Vec<_>>()
        })
        .collect();
    references.dedup();
    assert_eq!(references.len(), 3);
}

#[test]
fn a_client_that_ends_waits_for_what_is_outstanding_and_no_longer() {
    for answered in [true, false] {
        let now = Instant::now();
        let mut core = with_producer(now);
        let open = said(&mut core.home().session).pop().unwrap();
        let opened = Frame::new(kind::OPENED)
            .uint(key::REF, open.uint(key::REF))
            .uint(key::HANDLE, 1)
            .uint(key::SEQUENCE, 0)
            .uint(key::BYTES, 1000)
            .text(key::STRATEGY, "reliable")
            .done();
        core.home().session.receive(&[opened], now);
        let (publication, wire) = core.producer(1).unwrap();
        publication.take(&content(b"one"), wire, now).unwrap();
        core.end(Duration::from_secs(5), now);
        core.tidy(now);
        assert!(!core.is_over());
        if answered {
            let receipt = Frame::new(kind::RECEIPT).uint(key::HANDLE, 1).uints(key::RECEIPTS, &[0, 0]).done();
            core.home().session.receive(&[receipt], now);
            core.tidy(now);
        } else {
            core.tidy(now + Duration::from_secs(5));
        }
        assert!(core.is_over());
        assert_eq!(core.unfinished, !answered);
        assert_eq!(said(&mut core.home().session).pop().unwrap().kind, kind::BYE);
    }
}

#[test]
fn when_the_thread_of_a_client_has_ended_nobody_waits_for_it() {
    let now = Instant::now();
    let mut core = with_producer(now);
    let request = core.home().session.ask("status", Value::Map(Vec::new()), now);
    core.on_ended();
    assert!(core.check().is_err());
    assert!(core.producer(1).unwrap().0.is_closed());
    let (answer, _) = core.home().session.asked(request, Waker::noop()).unwrap();
    assert_eq!(answer.unwrap_err().code(), "closed");
}

// ---- vectors

/// What every client decodes the same; a checkout has the vectors, a crate alone has not.
fn vectors(name: &str) -> Vec<serde_json::Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/").to_owned() + name;
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).unwrap(),
        Err(error) => {
            eprintln!("SKIPPED: no test vectors here: {error}");
            Vec::new()
        }
    }
}

fn unhex(text: &str) -> Bytes {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn headers_of_a_broker_are_read_or_refused_as_the_vectors_say() {
    for vector in vectors("headers-to-client.json") {
        let read = Header::decode(&unhex(vector["frames"][0].as_str().unwrap()));
        if read.as_ref().is_ok_and(|header| header.kind < kind::WELCOME) {
            continue; // right in itself, and refused by the session
        }
        assert_eq!(read.is_err(), vector.get("error").is_some(), "{}: {read:?}", vector["name"]);
    }
}

#[test]
fn names_make_the_ids_that_the_vectors_say() {
    for vector in vectors("producer-ids.json") {
        let id = crate::batch::producer_id(vector["topic"].as_str().unwrap(), vector["producer"].as_str().unwrap());
        assert_eq!(id.to_string(), vector["id"].as_str().unwrap());
    }
}

/// What this client says is what a broker reads: no habit of an encoder that section 2.2 refuses.
#[test]
fn everything_that_is_said_is_read_strictly() {
    let mut talk = Talk::new();
    talk.producer();
    talk.consumer("failover", None);
    talk.session.ask("topic.create", Value::Map(vec![("topic".into(), "größe".into())]), talk.now);
    let said = kinds(&talk.said()); // `said` decodes strictly
    assert_eq!(said, [kind::OPEN_PRODUCER, kind::OPEN_CONSUMER, kind::REQUEST]);
}
