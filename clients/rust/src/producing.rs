//! How a producer is opened.

use std::sync::Arc;
use std::time::Duration;

use crate::batch::producer_id;
use crate::client::Client;
use crate::error::Result;
use crate::io::Shared;
use crate::producer::Producer;
use crate::publication::Settings;
use crate::signal::random;
use crate::waiting::Keep;

const BATCH_BYTES: u64 = 64 << 10;
const LINGER: Duration = Duration::from_millis(1);

/// How a [`Producer`] is to be opened.
#[must_use]
pub struct ProducerBuilder<'a> {
    client: &'a Client,
    topic: Arc<str>,
    name: Option<String>,
    batch_bytes: u64,
    linger: Duration,
    window_bytes: Option<u64>,
}

impl ProducerBuilder<'_> {
    /// The same producer over restarts of the program; a second one of that name fences the first.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Messages gather until there are so many bytes (64 KiB), or the linger is over, or the batch before is answered.
    pub fn batch_bytes(mut self, bytes: u64) -> Self {
        self.batch_bytes = bytes.max(1);
        self
    }

    /// Messages gather for so long at most (1 ms).
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// At most so many bytes are without a receipt (what the broker allows).
    pub fn window_bytes(mut self, bytes: u64) -> Self {
        self.window_bytes = Some(bytes);
        self
    }

    /// Open it.
    pub async fn open(self) -> Result<Producer> {
        let (shared, owner) = (Arc::clone(self.client.shared()), Some(self.client.keep()));
        self.open_by(shared, owner).await
    }

    /// Open it, so that it does not keep the client alive.
    pub(crate) async fn open_inside(self) -> Result<Producer> {
        let shared = Arc::clone(self.client.shared());
        self.open_by(shared, None).await
    }

    async fn open_by(self, shared: Arc<Shared>, owner: Option<Keep>) -> Result<Producer> {
        let id = match &self.name {
            Some(name) => producer_id(&self.topic, name),
            None => random() >> 11 | 1, // 53 bits, which every language has
        };
        let settings = Settings {
            topic: self.topic,
            id,
            batch_bytes: self.batch_bytes,
            linger: self.linger,
            window_bytes: self.window_bytes,
        };
        Producer::open(shared, owner, settings).await
    }
}

impl Client {
    /// Say how a producer of a topic is to be opened.
    pub fn producer(&self, topic: impl Into<Arc<str>>) -> ProducerBuilder<'_> {
        ProducerBuilder {
            client: self,
            topic: topic.into(),
            name: None,
            batch_bytes: BATCH_BYTES,
            linger: LINGER,
            window_bytes: None,
        }
    }
}
