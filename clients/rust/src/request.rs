//! Request and reply, section 10.6 of PROTOCOL.md: a convention between clients, over an ephemeral inbox topic.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::admin::Options;
use crate::attachment::Start;
use crate::client::Client;
use crate::consumer::Reader;
use crate::error::{Error, Result};
use crate::message::{Message, Outgoing, Receipt};
use crate::producer::Producer;
use crate::signal::{random, Signal};

const REPLY_TO: &str = "ister.reply_to";
const CORRELATION_ID: &str = "ister.correlation_id";
const OUTLETS_MAX: usize = 64;
const REPLIES_MAX: u64 = 1024; // that wait in the inbox

/// Where replies come in, and where questions and replies go out. None of it keeps the client alive.
#[derive(Default)]
pub(crate) struct Exchange {
    state: Mutex<State>,
    opening: Mutex<Opening>,
}

#[derive(Default)]
struct State {
    inbox: Option<Arc<Inbox>>,
    outlets: HashMap<Arc<str>, Arc<Producer>>,
}

#[derive(Default)]
struct Opening {
    busy: bool,
    signal: Signal,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Exchange {
    pub fn forget(&self) {
        *locked(&self.state) = State::default();
    }

    fn forget_outlet(&self, topic: &str) {
        let outlet = locked(&self.state).outlets.remove(topic);
        drop(outlet); // not under the lock
    }
}

/// Only one task at a time makes an inbox.
struct Turn<'a>(&'a Exchange);

impl<'a> Turn<'a> {
    async fn take(exchange: &'a Exchange) -> Turn<'a> {
        poll_fn(|context| {
            let mut opening = locked(&exchange.opening);
            if opening.busy {
                opening.signal.wait(context.waker());
                return Poll::Pending;
            }
            opening.busy = true;
            Poll::Ready(())
        })
        .await;
        Turn(exchange)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut opening = locked(&self.0.opening);
        opening.busy = false;
        opening.signal.broadcast();
    }
}

struct Inbox {
    topic: String,
    reader: Reader,
    slots: Mutex<HashMap<String, Slot>>,
}

#[derive(Default)]
struct Slot {
    reply: Option<Message>,
    waker: Option<Waker>,
}

impl Inbox {
    /// Whoever waits takes in what has come, for all; a reply that nobody waits for is passed over.
    fn poll_reply(&self, id: &str, context: &mut Context<'_>) -> Poll<Result<Message>> {
        let mut slots = locked(&self.slots);
        loop {
            if let Some(slot) = slots.get_mut(id) {
                if let Some(reply) = slot.reply.take() {
                    return Poll::Ready(Ok(reply));
                }
                slot.waker = Some(context.waker().clone());
            }
            match self.reader.poll_one(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(message)) => {
                    let slot = message.attribute(CORRELATION_ID).and_then(|of| slots.get_mut(of));
                    if let Some(slot) = slot {
                        slot.reply.get_or_insert(message);
                        if let Some(waker) = slot.waker.take() {
                            waker.wake();
                        }
                    }
                }
            }
        }
    }
}

/// Somebody waits for a reply.
struct Waiting<'a> {
    inbox: &'a Inbox,
    id: String,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut slots = locked(&self.inbox.slots);
        slots.remove(&self.id);
        // Who has just been told that something came may have been this one: the others look too.
        slots.values_mut().filter_map(|slot| slot.waker.take()).for_each(Waker::wake);
    }
}

impl Client {
    /// Send a message and return the reply that some consumer of the topic gives it with [`reply`](Client::reply).
    ///
    /// When the session is lost on the way the error is [`Error::ConnectionLost`]: the request may have been carried
    /// out.
    pub async fn request(&self, topic: &str, message: impl Into<Outgoing<'_>>) -> Result<Message> {
        let inbox = self.inbox().await?;
        let id = format!("{:016x}", random());
        locked(&inbox.slots).insert(id.clone(), Slot::default());
        let waiting = Waiting { inbox: &inbox, id };
        let mut message = message.into();
        message.attributes.insert(REPLY_TO.into(), inbox.topic.clone());
        message.attributes.insert(CORRELATION_ID.into(), waiting.id.clone());
        let mut receipt = Some(self.send_by(topic, message).await?);
        let reply = poll_fn(|context| {
            if let Some(sent) = &receipt {
                match sent.poll_refusal(context) {
                    Poll::Ready(Some(refusal)) => return Poll::Ready(Err(refusal)),
                    Poll::Ready(None) => receipt = None,
                    Poll::Pending => {}
                }
            }
            inbox.poll_reply(&waiting.id, context).map_err(|error| {
                self.forget_inbox(&inbox);
                Error::lost(format!("the inbox was lost, and with it the reply to a request to {topic:?}: {error}"))
            })
        });
        reply.await
    }

    /// Answer a message that came from [`request`](Client::request). Whoever asked may be gone: then nobody hears it.
    pub async fn reply(&self, to: &Message, message: impl Into<Outgoing<'_>>) -> Result<()> {
        let Some(topic) = to.attribute(REPLY_TO) else {
            return Err(Error::invalid("this message asks for no reply"));
        };
        let mut message = message.into();
        if let Some(id) = to.attribute(CORRELATION_ID) {
            message.attributes.insert(CORRELATION_ID.into(), id.into());
        }
        match self.send_by(topic, message).await {
            Err(error) if matches!(error.code(), "unknown-topic" | "topic-deleted") => Ok(()),
            sent => sent.map(drop),
        }
    }

    /// Send with a producer that is kept for the next message to the topic.
    async fn send_by(&self, topic: &str, message: Outgoing<'_>) -> Result<Receipt> {
        let exchange = &self.owner.exchange;
        let kept = locked(&exchange.state).outlets.get(topic).cloned();
        if let Some(producer) = kept {
            match producer.send(message.clone()).await {
                // Its topic was made anew, for example: a new one may do.
                Err(error) if !matches!(error.action(), crate::Action::Fix) => exchange.forget_outlet(topic),
                sent => return sent,
            }
        }
        let producer = Arc::new(self.producer(topic).open_inside().await?);
        let receipt = producer.send(message).await?;
        let mut state = locked(&exchange.state);
        let surplus = match state.outlets.len() {
            OUTLETS_MAX.. => state.outlets.keys().next().cloned(),
            _ => None,
        };
        let gone = surplus.and_then(|surplus| state.outlets.remove(&surplus));
        let other = state.outlets.insert(topic.into(), producer);
        drop(state);
        drop((gone, other)); // they send what they have, not under the lock
        Ok(receipt)
    }

    fn forget_inbox(&self, inbox: &Arc<Inbox>) {
        let mut state = locked(&self.owner.exchange.state);
        if state.inbox.as_ref().is_some_and(|present| Arc::ptr_eq(present, inbox)) {
            state.inbox = None;
        }
    }

    async fn inbox(&self) -> Result<Arc<Inbox>> {
        let exchange = &self.owner.exchange;
        let _turn = Turn::take(exchange).await;
        if let Some(inbox) = locked(&exchange.state).inbox.clone() {
            if !inbox.reader.is_over() {
                return Ok(inbox);
            }
        }
        let topic = format!("_inbox/{:016x}{:016x}", random(), random());
        let settings = Options::new().set("dispatch", "non-reliable").set("ephemeral", 1);
        self.create_topic(&topic, settings).await?;
        let builder = self.reader(topic.as_str()).start(Start::Latest).credit_messages(REPLIES_MAX);
        let reader = builder.open_inside().await?;
        let inbox = Arc::new(Inbox { topic, reader, slots: Mutex::default() });
        locked(&exchange.state).inbox = Some(Arc::clone(&inbox));
        Ok(inbox)
    }
}
