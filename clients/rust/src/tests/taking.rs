//! What the broker is told of what the program takes: section 9.6 of PROTOCOL.md.

use super::*;

fn teller(credit_messages: u64) -> Talk {
    let mut talk = Talk::new();
    talk.consumer("shared", Some(credit_messages));
    let open = talk.opened(|frame| frame.uint(key::OFFSET, 0).uint(key::TAKEN, 0));
    assert_eq!(open.find(key::TAKEN), Some(0));
    talk
}

/// What was said of TAKEN, and with which REF.
fn told(talk: &mut Talk) -> Vec<(u64, Option<u64>)> {
    talk.said().iter().filter_map(|each| Some((each.find(key::TAKEN)?, each.find(key::REF)))).collect()
}

fn taken(talk: &mut Talk) -> Vec<u64> {
    told(talk).iter().map(|(taken, _)| *taken).collect()
}

fn event(talk: &mut Talk, code: &str) {
    talk.hear(Frame::new(kind::EVENT).uint(key::HANDLE, 2).text(key::CODE, code));
}

#[test]
fn a_slow_program_has_one_message_in_hand_and_a_fast_one_costs_few_reports() {
    let mut talk = teller(1000);
    talk.deliver(0, &[&b"x"[..]; 200]);
    for count in 1..=5 {
        assert_eq!(talk.take(1).len(), 1);
        assert_eq!(taken(&mut talk), [count]);
        talk.now += Duration::from_millis(10);
    }
    let (mut reports, mut so_far) = (0, 5);
    for count in 6..=200 {
        talk.take(1);
        for said in taken(&mut talk) {
            assert!(said > so_far, "TAKEN never decreases");
            (reports, so_far) = (reports + 1, said);
        }
        assert!(so_far >= count, "the broker is told first");
        talk.now += Duration::from_micros(50); // 80 a moment
    }
    assert!(reports < 12, "{reports} reports");
    assert!(so_far <= 200 + 80, "{so_far} of 200");
}

#[test]
fn a_broker_that_does_not_ask_is_not_told() {
    let mut talk = Talk::new();
    talk.consumer("shared", Some(4));
    talk.consumer_opened(0);
    talk.deliver_as(0, &[b"a", b"b", b"c", b"d"], |frame| frame.flag(key::SINGLY));
    assert_eq!(talk.take(4).len(), 4);
    assert!(taken(&mut talk).is_empty());
}

#[test]
fn a_message_that_may_not_fail_again_waits_for_the_brokers_word_and_so_does_the_first_behind() {
    let mut talk = teller(100);
    talk.deliver_as(0, &[b"a", b"b"], |frame| frame.flag(key::SINGLY));
    talk.deliver(2, &[b"c", b"d"]);
    for count in 1..=3 {
        assert!(talk.take(9).is_empty() && talk.take(9).is_empty());
        let said = talk.said();
        let asked = said.last().expect("it is asked for");
        let before = if count > 1 { vec![kind::ACK, kind::CREDIT] } else { vec![kind::CREDIT] };
        assert_eq!(kinds(&said), before, "what became of the one before is said first");
        assert_eq!(asked.find(key::TAKEN), Some(count));
        let question = asked.find(key::REF).expect("and an answer is asked for");
        talk.hear(Frame::new(kind::DONE).uint(key::REF, question + 100));
        assert!(talk.take(9).is_empty());
        talk.hear(Frame::new(kind::DONE).uint(key::REF, question));
        let [message] = &talk.take(9)[..] else { panic!("they come one by one") };
        let now = talk.now;
        talk.attachment().0.ack(std::slice::from_ref(message), now);
        assert!(taken(&mut talk).is_empty(), "it is known already");
        talk.now += Duration::from_millis(10);
    }
    assert_eq!(talk.take(9).len(), 1);
    assert_eq!(told(&mut talk), [(4, None)]);
}

#[test]
fn a_leave_is_void_once_the_connection_is_lost() {
    let mut talk = teller(100);
    talk.deliver_as(0, &[b"a"], |frame| frame.flag(key::SINGLY));
    assert!(talk.take(1).is_empty());
    let question = told(&mut talk)[0].1.expect("a REF");
    talk.hear(Frame::new(kind::DONE).uint(key::REF, question));
    talk.lose();
    talk.connect(true);
    talk.opened(|frame| frame.uint(key::OFFSET, 0).uint(key::TAKEN, 0));
    talk.deliver_as(0, &[b"a"], |frame| frame.flag(key::SINGLY));
    assert!(talk.take(1).is_empty());
    assert_eq!(taken(&mut talk), [1]);
}

#[test]
fn what_was_recalled_is_not_handed_out_and_counts() {
    let mut talk = teller(10);
    talk.deliver(0, &[&b"x"[..]; 6]);
    assert_eq!(talk.take(1).len(), 1);
    talk.said();
    talk.now += Duration::from_millis(10);
    event(&mut talk, "recalled");
    assert!(talk.said().is_empty(), "credit is given when the program asks");
    assert!(talk.take(1).is_empty());
    assert_eq!(talk.said()[0].uint(key::MESSAGES), 10);
    talk.deliver(1, &[b"x"]);
    assert_eq!(talk.take(1).len(), 1);
    assert_eq!(taken(&mut talk), [7]);
    talk.now += Duration::from_millis(10);
    event(&mut talk, "sought");
    talk.deliver(1, &[b"x"]);
    assert_eq!(talk.take(1).len(), 1);
    assert_eq!(taken(&mut talk), [8]);
}

#[test]
fn a_program_that_fails_says_so_of_all_that_it_has_in_hand() {
    let mut talk = teller(10);
    talk.deliver(0, &[b"a", b"b", b"c"]);
    let messages = talk.take(2);
    let now = talk.now;
    talk.said();
    let (attachment, wire) = talk.attachment();
    attachment.ack(&messages[..1], now);
    attachment.blame("it fell", wire);
    let said = talk.said();
    assert_eq!(kinds(&said), [kind::ACK, kind::NACK]);
    assert_eq!((said[1].find(key::TAKEN), said[1].text(key::REASON)), (Some(2), "it fell"));
    assert!(said[1].has(key::RANGES) && said[1].pairs(key::RANGES).count() == 0);
}

#[test]
fn errors_about_an_acknowledgment_and_about_the_consumer_are_told_apart() {
    let mut talk = teller(10);
    talk.refuse("not-active", Action::Retry, |frame| frame.uint(key::HANDLE, 2));
    assert!(talk.attachment().0.complaint.is_none() && talk.attachment().0.is_open());
    talk.refuse("ack-unknown", Action::Fix, |frame| frame.uint(key::HANDLE, 2));
    assert_eq!(talk.attachment().0.complaint.take().unwrap().code(), "ack-unknown");
    assert!(talk.attachment().0.is_open());
    talk.refuse("unavailable", Action::Retry, |frame| frame.uint(key::HANDLE, 2));
    assert!(talk.attachment().0.complaint.is_none() && !talk.attachment().0.is_open());
    talk.now += Duration::from_secs(1);
    let now = talk.now;
    talk.session.tick(now);
    talk.consumer_opened(0);
    assert!(talk.attachment().0.is_open(), "it is opened again");
}
