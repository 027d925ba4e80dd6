//! The consumer of a pattern: one consumer for each topic that matches, presented as one.
//!
//! Invariants
//! - topics take turns, one delivery each: none starves another
//! - an acknowledgment goes to the consumer that its message came from; that of a deleted topic's is passed over
//! - whoever receives follows topics as well: nothing runs in the background

use std::collections::BTreeMap;
use std::future::{poll_fn, Future};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::admin::Info;
use crate::attachment::{Event, Start};
use crate::cbor::Value;
use crate::client::Client;
use crate::consumer::{Consumer, ConsumerBuilder, Nack, Plan};
use crate::error::{Error, Result};
use crate::message::Message;

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Receives the messages of every topic that a pattern stands for; made by
/// [`open_pattern`](crate::ConsumerBuilder::open_pattern). Topics that are created later are received from their first
/// message on, those that are deleted are left.
pub struct PatternConsumer {
    client: Client,
    plan: Plan,
    state: Mutex<State>,
}

struct State {
    watch: Boxed<Result<Info>>,
    /// The broker does not know the argument `subscription`.
    plain: bool,
    version: Option<u64>,
    members: BTreeMap<String, Member>,
    /// The topic that was received from last.
    turn: String,
}

struct Member {
    created: u64,
    place: Place,
}

enum Place {
    Opening(Boxed<Result<Consumer>>),
    Open(Arc<Consumer>),
    Over,
}

fn is_gone(error: &Error) -> bool {
    matches!(error.code(), "topic-deleted" | "unknown-topic" | "subscription-deleted")
}

fn watch(client: &Client, plan: &Plan, plain: bool, version: Option<u64>) -> Boxed<Result<Info>> {
    let client = client.clone();
    let mut asked: Vec<(Value, Value)> = vec![("pattern".into(), (&*plan.topic).into())];
    if !plain {
        asked.push(("subscription".into(), plan.subscription.as_str().into()));
    }
    if let Some(version) = version {
        asked.push(("version".into(), version.into()));
    }
    Box::pin(async move { client.info("topic.watch", asked).await })
}

impl ConsumerBuilder<'_> {
    /// Open one for every topic that matches, now or later, where the topic's name is a pattern: `*` stands for one
    /// part of a name, `>` at the end for one or more. Fixed credit is each topic's. An Exclusive subscription that
    /// somebody has is waited for, topic by topic.
    pub async fn open_pattern(mut self) -> Result<PatternConsumer> {
        self.plan.patient = true;
        PatternConsumer::open(self.client.clone(), self.plan).await
    }
}

impl PatternConsumer {
    pub(crate) async fn open(client: Client, plan: Plan) -> Result<PatternConsumer> {
        let watch = watch(&client, &plan, false, None);
        let state = State { watch, plain: false, version: None, members: BTreeMap::new(), turn: String::new() };
        let consumer = PatternConsumer { client, plan, state: Mutex::new(state) };
        poll_fn(|context| {
            let mut state = consumer.state();
            if let Err(error) = consumer.follow(&mut state, context) {
                return Poll::Ready(Err(error));
            }
            let opened = state.members.values().all(|member| !matches!(member.place, Place::Opening(_)));
            if state.version.is_some() && opened {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            }
        })
        .await?;
        Ok(consumer)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See which topics there are, and open what is new.
    fn follow(&self, state: &mut State, context: &mut Context<'_>) -> Result<()> {
        while let Poll::Ready(told) = state.watch.as_mut().poll(context) {
            let outdated = |error: &Error| error.code() == "invalid-argument" && !state.plain;
            let told = match told {
                Err(error) if outdated(&error) => {
                    state.plain = true;
                    Ok(None)
                }
                told => told.map(Some),
            };
            let taken = told.map(|told| told.map(|told| self.take_note(state, &told)));
            state.watch = watch(&self.client, &self.plan, state.plain, state.version);
            taken?;
        }
        for member in state.members.values_mut() {
            let Place::Opening(opening) = &mut member.place else { continue };
            let Poll::Ready(opened) = opening.as_mut().poll(context) else { continue };
            member.place = Place::Over;
            match opened {
                Ok(consumer) => member.place = Place::Open(Arc::new(consumer)),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take_note(&self, state: &mut State, told: &Info) {
        let at_first = state.version.is_none();
        let version = told.number("version");
        let mut found = BTreeMap::new();
        for topic in told.get("topics").and_then(Value::as_list).unwrap_or(&[]) {
            let name = topic.get("topic").and_then(Value::as_str).unwrap_or("");
            if name.is_empty() || name.ends_with(".dlq") {
                continue;
            }
            let created = topic.get("created_ms").and_then(Value::as_u64).unwrap_or(0);
            let later = topic.get("later").and_then(Value::as_bool).unwrap_or(false);
            let known = state.members.remove(name).filter(|member| member.created == created);
            let member = known.unwrap_or_else(|| {
                let mut plan = Plan { topic: name.into(), ..self.plan.clone() };
                if later || !at_first {
                    plan.start = Some(Start::Earliest);
                }
                let client = self.client.clone();
                Member { created, place: Place::Opening(Box::pin(async move { plan.open(&client).await })) }
            });
            found.insert(name.to_owned(), member);
        }
        (state.version, state.members) = (version.or(state.version), found);
    }

    fn poll_next(&self, context: &mut Context<'_>, most: usize) -> Poll<Result<Vec<Message>>> {
        let state = &mut *self.state();
        if let Err(error) = self.follow(state, context) {
            return Poll::Ready(Err(error));
        }
        // Behind the one that was received from last, and around.
        let after = state
            .members
            .range_mut::<String, _>((std::ops::Bound::Excluded(state.turn.clone()), std::ops::Bound::Unbounded));
        let names: Vec<String> = after.map(|(name, _)| name.clone()).collect();
        let names = names.into_iter().chain(state.members.range(..=state.turn.clone()).map(|(name, _)| name.clone()));
        for name in names.collect::<Vec<_>>() {
            let Some(member) = state.members.get_mut(&name) else { continue };
            let Place::Open(consumer) = &member.place else { continue };
            match consumer.poll_batch(context, most) {
                Poll::Ready(Ok(messages)) => {
                    state.turn = name;
                    return Poll::Ready(Ok(messages));
                }
                Poll::Ready(Err(error)) => {
                    if consumer.is_over() {
                        member.place = Place::Over;
                    }
                    if !is_gone(&error) {
                        return Poll::Ready(Err(error));
                    }
                }
                Poll::Pending => {}
            }
        }
        Poll::Pending
    }

    /// The next message of any topic, once there is one. A future that is dropped before has taken none.
    pub async fn receive(&self) -> Result<Message> {
        let mut messages = poll_fn(|context| self.poll_next(context, 1)).await?;
        messages.pop().ok_or_else(|| Error::malformed("a delivery without messages"))
    }

    /// The next message, or none where none comes within a time.
    pub async fn receive_within(&self, limit: Duration) -> Result<Option<Message>> {
        match self.client.within(limit, self.receive()).await {
            Ok(message) => Ok(Some(message)),
            Err(Error::Timeout(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Messages that came together, of one topic, at least one and at most so many.
    pub async fn receive_batch(&self, most: usize) -> Result<Vec<Message>> {
        poll_fn(|context| self.poll_next(context, most)).await
    }

    /// The topics that it receives from at present, by name.
    pub fn topics(&self) -> Vec<String> {
        self.state().members.keys().cloned().collect()
    }

    fn consumers(&self) -> Vec<Arc<Consumer>> {
        let open = |member: &Member| match &member.place {
            Place::Open(consumer) => Some(Arc::clone(consumer)),
            _ => None,
        };
        self.state().members.values().filter_map(open).collect()
    }

    /// What the broker told besides messages since the last call, topic by topic.
    pub fn events(&self) -> Vec<Event> {
        self.consumers().iter().flat_map(|consumer| consumer.events()).collect()
    }

    fn each(&self, messages: &[Message], call: impl Fn(&Consumer, &[Message]) -> Result<()>) -> Result<()> {
        let consumers = self.consumers();
        for some in messages.chunk_by(|one, other| one.origin.handle == other.origin.handle) {
            if let Some(consumer) = consumers.iter().find(|each| each.number() == some[0].origin.handle) {
                match call(consumer, some) {
                    Err(error) if !is_gone(&error) => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Acknowledge a message.
    pub fn ack(&self, message: &Message) -> Result<()> {
        self.ack_all(std::slice::from_ref(message))
    }

    /// Acknowledge messages.
    pub fn ack_all(&self, messages: &[Message]) -> Result<()> {
        self.each(messages, |consumer, messages| consumer.ack_all(messages))
    }

    /// Acknowledge everything of the message's topic up to and including it.
    pub fn ack_until(&self, message: &Message) -> Result<()> {
        self.each(std::slice::from_ref(message), |consumer, _| consumer.ack_until(message))
    }

    /// Give messages back, to be delivered again.
    pub fn nack_all(&self, messages: &[Message], how: &Nack) -> Result<()> {
        self.each(messages, |consumer, messages| consumer.nack_all(messages, how.clone()))
    }

    /// Give a message back, to be delivered again.
    pub fn nack(&self, message: &Message, how: &Nack) -> Result<()> {
        self.nack_all(std::slice::from_ref(message), how)
    }

    /// Say that messages are still being worked on.
    pub fn extend_all(&self, messages: &[Message]) -> Result<()> {
        self.each(messages, |consumer, messages| consumer.extend_all(messages))
    }

    /// Say that the program failed at what it has in hand; see [`Consumer::blame`].
    pub fn blame(&self, reason: &str) -> Result<()> {
        for consumer in self.consumers() {
            match consumer.blame(reason) {
                Err(error) if !is_gone(&error) && error.code() != "closed" => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Wait until the broker has written every acknowledgment made so far.
    pub async fn flush(&self) -> Result<()> {
        for consumer in self.consumers() {
            match consumer.flush().await {
                Err(error) if !is_gone(&error) && error.code() != "closed" => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Send the acknowledgments made so far, and leave. The first error is told, once all have left.
    pub async fn close(self) -> Result<()> {
        let mut first = Ok(());
        for consumer in self.consumers() {
            first = first.and(consumer.close().await);
        }
        first
    }
}

impl std::fmt::Debug for PatternConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PatternConsumer").field("topics", &self.topics()).finish_non_exhaustive()
    }
}
