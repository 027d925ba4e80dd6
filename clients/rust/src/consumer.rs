use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::attachment::{Attachment, Start, SubscriptionType, Target, READER};
use crate::cbor::Value;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::message::Message;
use crate::outbox::Wire;
use crate::receiver::{forgotten, Reader, Receiver};
use crate::signal::random;
use crate::waiting::Keep;

/// What a consumer is to be like.
#[derive(Clone)]
pub(crate) struct Plan {
    pub topic: Arc<str>,
    pub subscription: String,
    pub kind: Option<SubscriptionType>,
    pub start: Option<Start>,
    pub priority: u64,
    pub force: bool,
    pub credit_messages: Option<u64>,
    pub options: Vec<(Value, Value)>,
    pub patient: bool,
}

impl Plan {
    fn target(&self) -> Target {
        let usual = if self.force { SubscriptionType::Exclusive } else { SubscriptionType::Shared };
        Target {
            topic: Arc::clone(&self.topic),
            subscription: self.subscription.clone(),
            kind: self.kind.unwrap_or(usual).as_str(),
            start: self.start,
            priority: self.priority,
            force: self.force,
            arguments: self.options.clone(),
            patient: self.patient,
            credit_messages: self.credit_messages,
        }
    }

    pub async fn open(&self, client: &Client) -> Result<Consumer> {
        let receiver = Receiver::open(Arc::clone(client.shared()), None, self.target(), None).await?;
        Ok(Consumer { receiver, client: client.clone() })
    }
}

/// How a [`Consumer`] is to be opened.
#[must_use]
pub struct ConsumerBuilder<'a> {
    pub(crate) client: &'a Client,
    pub(crate) plan: Plan,
    wait: Option<Duration>,
}

impl ConsumerBuilder<'_> {
    /// How the subscription gives its messages out (Shared).
    pub fn kind(mut self, kind: SubscriptionType) -> Self {
        self.plan.kind = Some(kind);
        self
    }

    /// Where a new subscription begins (behind the last message).
    pub fn start(mut self, start: Start) -> Self {
        self.plan.start = Some(start);
        self
    }

    /// Of a Failover consumer: lower is preferred (0).
    pub fn priority(mut self, priority: u64) -> Self {
        self.plan.priority = priority;
        self
    }

    /// Take an Exclusive subscription over from whoever has it.
    pub fn force(mut self) -> Self {
        self.plan.force = true;
        self
    }

    /// A fixed number of messages that may wait here. Without it, it follows the program's pace: as much as it works
    /// off in half a second.
    pub fn credit_messages(mut self, messages: u64) -> Self {
        self.plan.credit_messages = Some(messages.max(1));
        self
    }

    /// An option of a new subscription, like `max_deliveries`; section 10 of PROTOCOL.md has them.
    pub fn option(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.plan.options.push((Value::Text(name.into()), value.into()));
        self
    }

    /// Wait so long for an Exclusive subscription that somebody has, instead of being refused at once.
    pub fn wait_for_place(mut self, limit: Duration) -> Self {
        self.wait = Some(limit);
        self.plan.patient = true;
        self
    }

    /// Open it; a subscription that does not exist is created.
    pub async fn open(self) -> Result<Consumer> {
        let shared = Arc::clone(self.client.shared());
        let receiver = Receiver::open(shared, None, self.plan.target(), self.wait).await?;
        Ok(Consumer { receiver, client: self.client.clone() })
    }
}

/// How a [`Reader`] is to be opened.
#[must_use]
pub struct ReaderBuilder<'a> {
    client: &'a Client,
    topic: Arc<str>,
    start: Start,
    credit_messages: Option<u64>,
}

impl ReaderBuilder<'_> {
    /// Where it begins (at the first message that is kept).
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// A fixed number of messages that may wait here.
    pub fn credit_messages(mut self, messages: u64) -> Self {
        self.credit_messages = Some(messages.max(1));
        self
    }

    /// Open it.
    pub async fn open(self) -> Result<Reader> {
        let owner = Some(self.client.keep());
        self.open_by(owner).await
    }

    /// Open it, so that it does not keep the client alive.
    pub(crate) async fn open_inside(self) -> Result<Reader> {
        self.open_by(None).await
    }

    async fn open_by(self, owner: Option<Keep>) -> Result<Reader> {
        let target = Target {
            topic: self.topic,
            subscription: format!("reader-{:016x}", random()),
            kind: READER,
            start: Some(self.start),
            priority: 0,
            force: false,
            arguments: Vec::new(),
            patient: false,
            credit_messages: self.credit_messages,
        };
        let receiver = Receiver::open(Arc::clone(self.client.shared()), owner, target, None).await?;
        Ok(Reader { receiver })
    }
}

impl Client {
    /// Say how a consumer of a subscription is to be opened.
    pub fn consumer(&self, topic: impl Into<Arc<str>>, subscription: impl Into<String>) -> ConsumerBuilder<'_> {
        let plan = Plan {
            topic: topic.into(),
            subscription: subscription.into(),
            kind: None,
            start: None,
            priority: 0,
            force: false,
            credit_messages: None,
            options: Vec::new(),
            patient: false,
        };
        ConsumerBuilder { client: self, plan, wait: None }
    }

    /// Say how a reader of a topic is to be opened: it reads without a subscription, and leaves nothing.
    pub fn reader(&self, topic: impl Into<Arc<str>>) -> ReaderBuilder<'_> {
        ReaderBuilder { client: self, topic: topic.into(), start: Start::Earliest, credit_messages: None }
    }
}

/// Receives the messages of one subscription.
///
/// One that is dropped sends the acknowledgments made so far and leaves, in the background;
/// [`close`](Receiver::close) waits for that.
#[derive(Debug)]
pub struct Consumer {
    receiver: Receiver,
    client: Client, // which lives as long as it does
}

impl Deref for Consumer {
    type Target = Receiver;

    fn deref(&self) -> &Receiver {
        &self.receiver
    }
}

/// How messages are given back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nack {
    delay: Option<Duration>,
    reason: String,
}

impl Nack {
    /// To be delivered again after the subscription's back-off.
    pub fn new() -> Nack {
        Nack::default()
    }

    /// To be delivered again after a delay; zero means at once.
    pub fn after(delay: Duration) -> Nack {
        Nack { delay: Some(delay), ..Nack::default() }
    }

    /// Why, for people: at most 200 letters of it are sent.
    pub fn reason(mut self, reason: impl Into<String>) -> Nack {
        self.reason = reason.into();
        self
    }
}

impl Consumer {
    fn acknowledge<T>(
        &self,
        messages: &[Message],
        call: impl FnOnce(&mut Attachment, &mut Wire, Instant) -> T,
    ) -> Result<T> {
        if messages.iter().any(|message| message.origin.handle != self.receiver.number) {
            return Err(Error::invalid("this message came from another consumer: acknowledge it there"));
        }
        let mut core = self.receiver.shared.lock();
        let Some((attachment, wire)) = core.consumer(self.receiver.number) else { return Err(self.receiver.closed()) };
        Receiver::check(attachment)?;
        Ok(call(attachment, wire, Instant::now()))
    }

    /// Acknowledge a message: it is not delivered to this subscription again. Acknowledgments are sent within a few
    /// milliseconds; [`flush`](Consumer::flush) waits until they are written.
    pub fn ack(&self, message: &Message) -> Result<()> {
        self.ack_all(std::slice::from_ref(message))
    }

    /// Acknowledge messages.
    pub fn ack_all(&self, messages: &[Message]) -> Result<()> {
        if self.acknowledge(messages, |attachment, _, now| attachment.ack(messages, now))? {
            self.receiver.shared.lock().poke = true; // there is a time at which they are sent
        }
        Ok(())
    }

    /// Acknowledge everything up to and including a message: of the whole subscription (Exclusive, Failover), or of
    /// what this consumer was given (Shared, Key-Shared).
    pub fn ack_until(&self, message: &Message) -> Result<()> {
        let one = std::slice::from_ref(message);
        self.acknowledge(one, |attachment, wire, now| attachment.ack_until(message, wire, now))
    }

    /// Give a message back, to be delivered again.
    pub fn nack(&self, message: &Message, how: Nack) -> Result<()> {
        self.nack_all(std::slice::from_ref(message), how)
    }

    /// Give messages back, to be delivered again.
    pub fn nack_all(&self, messages: &[Message], how: Nack) -> Result<()> {
        self.acknowledge(messages, |attachment, wire, _| {
            attachment.nack(messages, how.delay, &how.reason, wire);
        })
    }

    /// Say that a message is still being worked on: its acknowledgment timeout begins anew.
    pub fn extend(&self, message: &Message) -> Result<()> {
        self.extend_all(std::slice::from_ref(message))
    }

    /// Say that messages are still being worked on.
    pub fn extend_all(&self, messages: &[Message]) -> Result<()> {
        self.acknowledge(messages, |attachment, wire, _| attachment.extend(messages, wire))
    }

    /// Say that the program failed at what it has in hand (of a reliable topic), and will leave: each of those messages
    /// has failed once more, so that one which ends program after program becomes a dead letter. A consumer that is
    /// dropped by a panic says so by itself.
    pub fn blame(&self, reason: &str) -> Result<()> {
        self.acknowledge(&[], |attachment, wire, _| attachment.blame(reason, wire))
    }

    /// Wait until the broker has written every acknowledgment made so far. The error [`Error::ConnectionLost`] says
    /// that it forgot what it had delivered: those messages are delivered again.
    pub async fn flush(&self) -> Result<()> {
        let receiver = &self.receiver;
        receiver
            .shared
            .until(|core, waker| {
                let Some((attachment, wire)) = core.consumer(receiver.number) else {
                    return Some(Err(receiver.closed()));
                };
                if let Err(error) = Receiver::check(attachment) {
                    return Some(Err(error));
                }
                if !attachment.is_settled() {
                    attachment.flush(true, wire);
                    attachment.changed.wait(waker);
                    return None;
                }
                Some(if std::mem::take(&mut attachment.forgotten) { Err(forgotten()) } else { Ok(()) })
            })
            .await
    }

    /// Move the whole subscription; returns the offset of the next message. What was received before and is
    /// acknowledged afterwards is passed over.
    pub async fn seek(&self, to: Start) -> Result<u64> {
        let receiver = &self.receiver;
        let (epoch, subscription) = receiver.with(|attachment, wire| {
            attachment.flush(false, wire);
            (attachment.epoch, attachment.target.subscription.clone())
        });
        let position = self.client.seek(&receiver.topic, &subscription, to).await?;
        receiver
            .shared
            .until(|core, waker| {
                let Some((attachment, _)) = core.consumer(receiver.number) else {
                    return Some(Err(receiver.closed()));
                };
                if let Some(error) = &attachment.error {
                    return Some(Err(error.clone()));
                }
                attachment.changed.wait(waker);
                // A standby is not told; who is not connected learns it when it opens again.
                let told = attachment.epoch != epoch || !attachment.is_open() || attachment.active == Some(false);
                told.then_some(Ok(position))
            })
            .await
    }
}
