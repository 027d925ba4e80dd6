use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::cbor::Value;
use crate::error::{Error, Result};
use crate::exchange::Exchange;
use crate::io::Shared;
use crate::network::{ConnectionEvent, Core};
use crate::session::Phase;
use crate::waiting::Keep;

const NAME_LETTERS_MAX: usize = 100;
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// What the client calls itself.
pub const CLIENT_TEXT: &str = concat!("ister-rust/", env!("CARGO_PKG_VERSION"));

/// A connection to a broker; cloning it gives another hold of the same one.
///
/// Its calls may be made from any task and any thread. A future that is dropped takes its call back: a message that
/// was not taken, or not received, is as it was. A lost connection is made again for as long as the client lives, and
/// everything goes on where it was.
///
/// [`close`](Client::close) ends it in an orderly way. When the last client, producer and consumer is dropped instead,
/// the same is done in the background, for as long as the program lives.
#[derive(Clone)]
pub struct Client {
    pub(crate) owner: Arc<Owner>,
}

pub(crate) struct Owner {
    pub shared: Arc<Shared>,
    pub exchange: Exchange,
    close_within: Duration,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.lock().end(self.close_within, Instant::now());
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// How a [`Client`] is to be made.
#[derive(Debug, Clone)]
#[must_use]
pub struct ClientBuilder {
    endpoints: Vec<String>,
    name: String,
    timeout: Option<Duration>,
    close_within: Duration,
}

impl ClientBuilder {
    /// Another endpoint where a worker may be, like `tcp://127.0.0.1:5555`: the first one that answers is taken.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoints.push(endpoint.into());
        self
    }

    /// A name, for people who look at the broker.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How long [`connect`](ClientBuilder::connect) may take; for ever without it.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long the end of the client may take: receipts and acknowledgments that are outstanding (5 s).
    pub fn close_within(mut self, limit: Duration) -> Self {
        self.close_within = limit;
        self
    }

    /// Connect; ready when there is a session.
    pub async fn connect(self) -> Result<Client> {
        if self.endpoints.is_empty() {
            return Err(Error::invalid("an endpoint is needed, like tcp://127.0.0.1:5555"));
        }
        if let Some(wrong) = self.endpoints.iter().find(|endpoint| !is_endpoint(endpoint)) {
            return Err(Error::invalid(format!("{wrong:?} is no endpoint: it needs a form like tcp://127.0.0.1:5555")));
        }
        let text = match self.name.as_str() {
            "" => CLIENT_TEXT.to_owned(),
            name => format!("{} {CLIENT_TEXT}", name.chars().take(NAME_LETTERS_MAX).collect::<String>()),
        };
        let core = Core::new(text, self.endpoints, Instant::now());
        let shared = Shared::start(core)?;
        let owner = Owner { shared, exchange: Exchange::default(), close_within: self.close_within };
        let client = Client { owner: Arc::new(owner) };
        let greeted = client.shared().until(|core, waker| {
            core.changed.wait(waker);
            let session = &core.home().session;
            match session.phase {
                Phase::Ready => Some(Ok(())),
                Phase::Ended => Some(Err(session.trouble.clone().unwrap_or_else(|| Error::closed("the client")))),
                _ => None,
            }
        });
        match self.timeout {
            Some(timeout) => client.within(timeout, greeted).await?,
            None => greeted.await?,
        }
        Ok(client)
    }
}

/// Whether ZeroMQ could make something of it: a transport, and an address behind it.
fn is_endpoint(text: &str) -> bool {
    match text.split_once("://") {
        Some(("tcp", address)) => {
            address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        }
        Some((transport, address)) => !transport.is_empty() && !address.is_empty(),
        None => false,
    }
}

impl Client {
    /// Say how a client is to be made.
    pub fn builder() -> ClientBuilder {
        ClientBuilder { endpoints: Vec::new(), name: String::new(), timeout: None, close_within: CLOSE_WITHIN }
    }

    /// Connect to a broker at an endpoint, like `tcp://127.0.0.1:5555`.
    pub async fn connect(endpoint: impl Into<String>) -> Result<Client> {
        Client::builder().endpoint(endpoint).connect().await
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.owner.shared
    }

    /// What keeps the client alive.
    pub(crate) fn keep(&self) -> Keep {
        Arc::clone(&self.owner) as Keep
    }

    /// Give a call a time: when it is over, the call is dropped, and the answer is [`Error::Timeout`].
    ///
    /// It needs no runtime. With one, its own time-outs do as well.
    pub async fn within<T>(&self, limit: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.shared().within(limit, call).await
    }

    /// What became of the connections since the last call, oldest first; at most the last 256.
    pub fn events(&self) -> Vec<ConnectionEvent> {
        self.shared().lock().events.drain(..).collect()
    }

    /// End the session, once what is outstanding is answered: every producer's receipts, every consumer's
    /// acknowledgments. What is not answered within the time of [`close_within`](ClientBuilder::close_within) is lost,
    /// and the answer [`Error::Timeout`]. Closing again does nothing.
    pub async fn close(&self) -> Result<()> {
        self.owner.exchange.forget();
        self.shared().lock().end(self.owner.close_within, Instant::now());
        let limit = self.owner.close_within;
        self.shared()
            .until(|core, waker| {
                core.changed.wait(waker);
                let late = || Error::timeout(format!("not everything was answered within {limit:?}"));
                core.ended.then(|| if core.unfinished { Err(late()) } else { Ok(()) })
            })
            .await
    }

    /// Cut every connection without a word, as a broken network would; for tests. They are made again at once.
    #[doc(hidden)]
    pub fn drop_connections(&self) {
        let mut core = self.shared().lock();
        for link in core.links.values_mut() {
            link.session.lose(Error::lost("the program cut it"));
        }
        core.poke = true;
    }

    /// Ask the broker something; with the answer comes whether it may have been asked twice.
    pub(crate) async fn ask(&self, operation: &str, arguments: Vec<(Value, Value)>) -> (Result<Bytes>, bool) {
        let shared = self.shared();
        let number = {
            let mut core = shared.lock();
            if let Err(error) = core.check() {
                return (Err(error), false);
            }
            core.home().session.ask(operation, Value::Map(arguments), Instant::now())
        };
        let _withdrawn = Asking { shared, number };
        let answered = shared.until(|core, waker| core.home().session.asked(number, waker).map(Ok)).await;
        answered.unwrap_or_else(|error| (Err(error), false))
    }
}

struct Asking<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.shared.lock().home().session.withdraw(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_on;

    #[test]
    fn what_is_no_endpoint_is_refused_at_once() {
        for wrong in ["", "127.0.0.1:5555", "tcp://", "tcp://127.0.0.1", "tcp://:5555", "tcp://127.0.0.1:port"] {
            let refused = block_on(Client::connect(wrong)).unwrap_err();
            assert_eq!((refused.code(), refused.action()), ("invalid-argument", crate::Action::Fix), "{wrong:?}");
        }
        assert!(is_endpoint("tcp://[::1]:5555") && is_endpoint("ipc:///tmp/broker"));
    }

    #[test]
    fn a_time_that_is_over_ends_a_call_without_a_runtime() {
        let nobody = Client::builder().endpoint("tcp://127.0.0.1:9").timeout(Duration::from_millis(50));
        assert_eq!(block_on(nobody.connect()).unwrap_err().code(), "timeout");
    }
}
