use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// What to do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The same again, after a while.
    Retry,
    /// Something in the call is wrong; the same again gives the same error.
    Fix,
    /// Trying again will not help.
    Stop,
}

impl Action {
    /// The word of the protocol: `retry`, `fix` or `stop`.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Retry => "retry",
            Action::Fix => "fix",
            Action::Stop => "stop",
        }
    }

    pub(crate) fn of(text: &str) -> Action {
        match text {
            "retry" => Action::Retry,
            "fix" => Action::Fix,
            _ => Action::Stop,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a broker answered, or what happened on this side.
///
/// [`code`](Error::code) is stable: programs may compare it. [`action`](Error::action) says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The broker refused something; the codes are in section 11 of PROTOCOL.md.
    Broker {
        /// The stable code, like `unknown-topic`.
        code: Arc<str>,
        /// What the broker says is to be done.
        action: Action,
        /// For people; may change.
        text: Arc<str>,
    },
    /// The broker cannot be reached, or lost what this was about, and the client gives up.
    ConnectionLost(Arc<str>),
    /// The time that a call was given is over. What it waited for goes on.
    Timeout(Arc<str>),
    /// The client, producer or consumer was closed here.
    Closed(Arc<str>),
    /// The client refuses the call without asking the broker.
    Refused {
        /// `invalid-argument`, `message-too-large` or `batch-too-large`.
        code: &'static str,
        /// For people; names the value and the limit.
        text: Arc<str>,
    },
    /// What came from the broker is not what PROTOCOL.md says.
    Malformed {
        /// `malformed`, `lengths-mismatch` or `unknown-operation`.
        code: &'static str,
        /// For people.
        text: Arc<str>,
    },
    /// ZeroMQ could not make or use a socket.
    Socket(Arc<str>),
}

impl Error {
    /// The stable code: the broker's, or `connection-lost`, `timeout`, `closed`, `invalid-argument`,
    /// `message-too-large`, `batch-too-large`, `malformed`, `lengths-mismatch`, `unknown-operation`, `socket-failed`.
    pub fn code(&self) -> &str {
        match self {
            Error::Broker { code, .. } => code,
            Error::ConnectionLost(_) => "connection-lost",
            Error::Timeout(_) => "timeout",
            Error::Closed(_) => "closed",
            Error::Refused { code, .. } | Error::Malformed { code, .. } => code,
            Error::Socket(_) => "socket-failed",
        }
    }

    /// What to do about it.
    pub fn action(&self) -> Action {
        match self {
            Error::Broker { action, .. } => *action,
            Error::ConnectionLost(_) | Error::Timeout(_) | Error::Socket(_) => Action::Retry,
            Error::Closed(_) | Error::Malformed { .. } => Action::Stop,
            Error::Refused { .. } => Action::Fix,
        }
    }

    /// A sentence for people.
    pub fn text(&self) -> &str {
        match self {
            Error::Broker { text, .. }
            | Error::ConnectionLost(text)
            | Error::Timeout(text)
            | Error::Closed(text)
            | Error::Refused { text, .. }
            | Error::Malformed { text, .. }
            | Error::Socket(text) => text,
        }
    }

    pub(crate) fn refused<'a>(code: &'static str, text: impl Into<Cow<'a, str>>) -> Error {
        Error::Refused { code, text: arc(text) }
    }

    pub(crate) fn invalid<'a>(text: impl Into<Cow<'a, str>>) -> Error {
        Error::refused("invalid-argument", text)
    }

    pub(crate) fn lost<'a>(text: impl Into<Cow<'a, str>>) -> Error {
        Error::ConnectionLost(arc(text))
    }

    pub(crate) fn malformed<'a>(text: impl Into<Cow<'a, str>>) -> Error {
        Error::Malformed { code: "malformed", text: arc(text) }
    }

    pub(crate) fn mismatch(what: &str) -> Error {
        Error::Malformed { code: "lengths-mismatch", text: arc(format!("the lengths of {what} do not add up")) }
    }

    pub(crate) fn closed(what: &str) -> Error {
        Error::Closed(arc(format!("{what} is closed")))
    }

    pub(crate) fn timeout<'a>(text: impl Into<Cow<'a, str>>) -> Error {
        Error::Timeout(arc(text))
    }
}

fn arc<'a>(text: impl Into<Cow<'a, str>>) -> Arc<str> {
    Arc::from(text.into().as_ref())
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code(), self.text())
    }
}

impl std::error::Error for Error {}

/// What most functions here return.
pub type Result<T> = std::result::Result<T, Error>;
