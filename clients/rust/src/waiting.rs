//! Waiting for something to be so, for a time, and without a runtime.

use std::any::Any;
use std::future::{poll_fn, Future};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::io::Shared;
use crate::network::Core;

/// What producers and consumers hold, so that their client lives as long as they do.
pub(crate) type Keep = Arc<dyn Any + Send + Sync>;

impl Shared {
    /// Wait until something is so; who looks and finds it is not has been told to wake the waker when that may change.
    pub(crate) fn until<'a, T>(
        &'a self,
        mut look: impl FnMut(&mut Core, &Waker) -> Option<Result<T>> + 'a,
    ) -> impl Future<Output = Result<T>> + 'a {
        poll_fn(move |context: &mut Context<'_>| match look(&mut self.lock(), context.waker()) {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        })
    }

    pub(crate) async fn within<T>(&self, limit: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
        let due = Instant::now().checked_add(limit);
        let mut timer = Timer { shared: self, set: None };
        let mut call = pin!(call);
        poll_fn(|context| {
            if let Poll::Ready(answer) = call.as_mut().poll(context) {
                return Poll::Ready(answer);
            }
            let Some(due) = due else { return Poll::Pending };
            timer.clear();
            let mut core = self.lock();
            if core.ended {
                return Poll::Ready(Err(Error::closed("the client")));
            }
            if Instant::now() >= due {
                let trouble = core.home().session.trouble.as_ref().map(|error| format!(" ({error})"));
                let text = format!("not done within {limit:?}{}", trouble.unwrap_or_default());
                return Poll::Ready(Err(Error::timeout(text)));
            }
            timer.set = Some(core.set_timer(due, context.waker()));
            Poll::Pending
        })
        .await
    }
}

struct Timer<'a> {
    shared: &'a Shared,
    set: Option<(Instant, u64)>,
}

impl Timer<'_> {
    fn clear(&mut self) {
        if let Some(set) = self.set.take() {
            self.shared.lock().clear_timer(set);
        }
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Wait for a future in a program, or a thread, without a runtime.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Parked(Thread);
    impl Wake for Parked {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Parked(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}
