//! What a client keeps for requests and replies: its inbox, and a producer for each topic that it sends to.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::error::Result;
use crate::message::Message;
use crate::producer::Producer;
use crate::receiver::Reader;
use crate::signal::Signal;

pub(crate) const CORRELATION_ID: &str = "ister.correlation_id";

/// Where replies come in, and where questions and replies go out. None of it keeps the client alive.
#[derive(Default)]
pub(crate) struct Exchange {
    pub state: Mutex<State>,
    opening: Mutex<Opening>,
}

#[derive(Default)]
pub(crate) struct State {
    pub inbox: Option<Arc<Inbox>>,
    pub outlets: HashMap<Arc<str>, Arc<Producer>>,
}

#[derive(Default)]
struct Opening {
    busy: bool,
    signal: Signal,
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Exchange {
    pub fn forget(&self) {
        *locked(&self.state) = State::default();
    }

    pub fn forget_outlet(&self, topic: &str) {
        let outlet = locked(&self.state).outlets.remove(topic);
        drop(outlet); // not under the lock
    }
}

/// Only one task at a time makes an inbox.
pub(crate) struct Turn<'a>(&'a Exchange);

impl<'a> Turn<'a> {
    pub async fn take(exchange: &'a Exchange) -> Turn<'a> {
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

pub(crate) struct Inbox {
    pub topic: String,
    pub reader: Reader,
    pub slots: Mutex<HashMap<String, Slot>>,
}

#[derive(Default)]
pub(crate) struct Slot {
    reply: Option<Message>,
    waker: Option<Waker>,
}

impl Inbox {
    /// Whoever waits takes in what has come, for all; a reply that nobody waits for is passed over.
    pub fn poll_reply(&self, id: &str, context: &mut Context<'_>) -> Poll<Result<Message>> {
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
pub(crate) struct Waiting<'a> {
    pub inbox: &'a Inbox,
    pub id: String,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut slots = locked(&self.inbox.slots);
        slots.remove(&self.id);
        // Who has just been told that something came may have been this one: the others look too.
        slots.values_mut().filter_map(|slot| slot.waker.take()).for_each(Waker::wake);
    }
}
