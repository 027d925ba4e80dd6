use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_core::stream::{FusedStream, Stream};

use crate::attachment::{Attachment, Event, Start, SubscriptionType, Target, READER};
use crate::cbor::Value;
use crate::client::{Client, Owner};
use crate::error::{Error, Result};
use crate::io::Shared;
use crate::message::Message;
use crate::pattern::PatternConsumer;
use crate::session::{Handle, Wire};
use crate::signal::random;

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
    client: &'a Client,
    plan: Plan,
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

    /// Open one for every topic that matches, now or later, where the topic's name is a pattern: `*` stands for one
    /// part of a name, `>` at the end for one or more. Fixed credit is each topic's. An Exclusive subscription that
    /// somebody has is waited for, topic by topic.
    pub async fn open_pattern(mut self) -> Result<PatternConsumer> {
        self.plan.patient = true;
        PatternConsumer::open(self.client.clone(), self.plan).await
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
        let owner = Some(Arc::clone(&self.client.owner));
        self.open_by(owner).await
    }

    /// Open it, so that it does not keep the client alive.
    pub(crate) async fn open_inside(self) -> Result<Reader> {
        self.open_by(None).await
    }

    async fn open_by(self, owner: Option<Arc<Owner>>) -> Result<Reader> {
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

/// What consumers and readers have in common: both can be used as one.
pub struct Receiver {
    shared: Arc<Shared>,
    number: u64,
    topic: Arc<str>,
    _owner: Option<Arc<Owner>>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut core = self.shared.lock();
        if std::thread::panicking() {
            if let Some((attachment, wire)) = core.consumer(self.number) {
                attachment.blame("a panic ended its consumer", wire);
            }
        }
        core.abandon(self.number);
    }
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Receiver {
    async fn open(
        shared: Arc<Shared>,
        owner: Option<Arc<Owner>>,
        target: Target,
        wait: Option<Duration>,
    ) -> Result<Receiver> {
        let topic = Arc::clone(&target.topic);
        let now = Instant::now();
        let number = shared.lock().attach(now, |number| Handle::Consumer(Attachment::new(number, target, now)))?;
        let receiver = Receiver { shared, number, topic, _owner: owner };
        let opened = receiver.shared.until(|core, waker| {
            let Some((attachment, _)) = core.consumer(number) else { return Some(Err(receiver.closed())) };
            attachment.changed.wait(waker);
            match (&attachment.error, attachment.opened) {
                (Some(error), _) => Some(Err(error.clone())),
                (None, true) => Some(Ok(())),
                (None, false) => None,
            }
        });
        let Some(wait) = wait else {
            opened.await?;
            return Ok(receiver);
        };
        match receiver.shared.within(wait, opened).await {
            Err(Error::Timeout(text)) => {
                let trouble = receiver.with(|attachment, _| attachment.trouble.clone());
                let busy = trouble.filter(|error| error.code() == "subscription-busy");
                Err(busy.unwrap_or(Error::Timeout(text)))
            }
            opened => opened.map(|()| receiver),
        }
    }

    fn closed(&self) -> Error {
        Error::closed(&format!("the consumer or reader of topic {:?}", self.topic))
    }

    /// Look at the attachment, where there is one.
    fn with<T: Default>(&self, look: impl FnOnce(&mut Attachment, &mut Wire) -> T) -> T {
        match self.shared.lock().consumer(self.number) {
            Some((attachment, wire)) => look(attachment, wire),
            None => T::default(),
        }
    }

    fn check(attachment: &mut Attachment) -> Result<()> {
        if let Some(complaint) = attachment.complaint.take() {
            return Err(complaint);
        }
        match &attachment.error {
            Some(error) => Err(error.clone()),
            None if attachment.is_ending() => Err(attachment.closed_error()),
            None => Ok(()),
        }
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Where it stood when it was opened last: up to where the subscription had delivered.
    pub fn position(&self) -> u64 {
        self.with(|attachment, _| attachment.position)
    }

    /// What the broker told besides messages since the last call, oldest first; at most the last 256.
    pub fn events(&self) -> Vec<Event> {
        self.with(|attachment, _| attachment.events.drain(..).collect())
    }

    fn poll_next<T>(
        &self,
        context: &mut Context<'_>,
        next: impl FnOnce(&mut Attachment, &mut Wire, Instant) -> Option<T>,
    ) -> Poll<Result<T>> {
        let mut core = self.shared.lock();
        let Some((attachment, wire)) = core.consumer(self.number) else { return Poll::Ready(Err(self.closed())) };
        if let Some(taken) = next(attachment, wire, Instant::now()) {
            return Poll::Ready(Ok(taken));
        }
        attachment.changed.wait(context.waker());
        match Receiver::check(attachment) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    pub(crate) fn poll_one(&self, context: &mut Context<'_>) -> Poll<Result<Message>> {
        self.poll_next(context, Attachment::next_one)
    }

    pub(crate) fn poll_batch(&self, context: &mut Context<'_>, most: usize) -> Poll<Result<Vec<Message>>> {
        self.poll_next(context, |attachment, wire, now| attachment.next(most, wire, now))
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn is_over(&self) -> bool {
        self.with(|attachment, _| Some(attachment.is_ending())).unwrap_or(true)
    }

    /// The next message, once there is one. A future that is dropped before has taken none.
    pub async fn receive(&self) -> Result<Message> {
        std::future::poll_fn(|context| self.poll_one(context)).await
    }

    /// The next message, or none where none comes within a time.
    pub async fn receive_within(&self, limit: Duration) -> Result<Option<Message>> {
        match self.shared.within(limit, self.receive()).await {
            Ok(message) => Ok(Some(message)),
            Err(Error::Timeout(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Messages that came together, at least one and at most so many.
    pub async fn receive_batch(&self, most: usize) -> Result<Vec<Message>> {
        std::future::poll_fn(|context| self.poll_batch(context, most)).await
    }

    /// A stream of messages. It ends behind the error that ended the consumer; what the broker complains of besides is
    /// an error in its place, and the stream goes on.
    pub fn messages(&self) -> Messages<'_> {
        Messages { receiver: self, ended: false }
    }

    /// Send the acknowledgments made so far, and leave; ready when the broker has applied them. Where it forgot what
    /// they are about, because it was started again meanwhile, the error is [`Error::ConnectionLost`], and those
    /// messages are delivered again. Closing again does nothing.
    pub async fn close(&self) -> Result<()> {
        let settled = self.with(|attachment, wire| {
            attachment.forgotten &= !attachment.is_settled();
            attachment.close(wire);
            attachment.is_settled()
        });
        self.shared
            .until(|core, waker| {
                let connected = core.is_connected(self.number);
                let Some((attachment, _)) = core.consumer(self.number) else { return Some(Ok(())) };
                attachment.changed.wait(waker);
                if !attachment.is_closed() && (connected || !attachment.is_settled()) {
                    return None;
                }
                let lost = !settled && std::mem::take(&mut attachment.forgotten);
                Some(if lost { Err(forgotten()) } else { Ok(()) })
            })
            .await
    }
}

fn forgotten() -> Error {
    Error::lost("the broker forgot what some acknowledgments were about; it delivers those messages again")
}

/// A stream of messages; made by [`Receiver::messages`].
#[derive(Debug)]
pub struct Messages<'a> {
    receiver: &'a Receiver,
    ended: bool,
}

impl Stream for Messages<'_> {
    type Item = Result<Message>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = self.receiver.poll_one(context);
        if let Poll::Ready(Err(_)) = &next {
            self.ended = self.receiver.is_over();
        }
        next.map(Some)
    }
}

impl FusedStream for Messages<'_> {
    fn is_terminated(&self) -> bool {
        self.ended
    }
}

/// Reads a topic, without a subscription and without acknowledgments.
#[derive(Debug)]
pub struct Reader {
    receiver: Receiver,
}

impl Deref for Reader {
    type Target = Receiver;

    fn deref(&self) -> &Receiver {
        &self.receiver
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
