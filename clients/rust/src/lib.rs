//! A client of the Ister message broker.
//!
//! [`Client::connect`] gives a client; it opens producers, consumers and readers, and asks the broker about topics and
//! subscriptions. Futures of this crate need no particular runtime: tokio's does, another one, or [`block_on`]. One
//! thread of the crate's own does the input and output of each client.
//!
//! ```no_run
//! # async fn program() -> ister::Result<()> {
//! let client = ister::Client::connect("tcp://127.0.0.1:5555").await?;
//! let producer = client.producer("greetings").open().await?;
//! let published = producer.send("hello").await?.await?;
//! println!("stored at {:?}", published.offset);
//! client.close().await
//! # }
//! ```

mod admin;
mod attachment;
mod batch;
mod cbor;
mod client;
#[doc(hidden)]
pub mod codec;
mod consumer;
mod deadletters;
mod error;
mod exchange;
mod io;
mod message;
mod network;
mod outbox;
mod pattern;
mod producer;
mod producing;
mod publication;
mod receiver;
mod request;
mod session;
mod signal;
#[cfg(test)]
mod tests;
mod waiting;
mod wire;

pub use admin::{Explanation, Info, Options, SubscriptionInfo, TopicInfo};
pub use attachment::{Event, Start, SubscriptionType};
pub use cbor::Value;
pub use client::{Client, ClientBuilder};
pub use consumer::{Consumer, ConsumerBuilder, Nack, ReaderBuilder};
pub use deadletters::{DeadLetter, DeadLetters, Redrive};
pub use error::{Action, Error, Result};
pub use message::{Message, Outgoing, Published, Receipt};
pub use network::ConnectionEvent;
pub use pattern::PatternConsumer;
pub use producer::Producer;
pub use producing::ProducerBuilder;
pub use receiver::{Messages, Reader, Receiver};
pub use waiting::block_on;
