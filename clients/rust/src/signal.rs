//! Waking whoever waits for something to change; used under the client's lock.

use std::task::Waker;
use std::time::Duration;

#[derive(Default)]
pub(crate) struct Signal(Vec<Waker>);

impl Signal {
    pub fn wait(&mut self, waker: &Waker) {
        if !self.0.iter().any(|each| each.will_wake(waker)) {
            self.0.push(waker.clone());
        }
    }

    pub fn broadcast(&mut self) {
        self.0.drain(..).for_each(Waker::wake);
    }
}

/// The wait before another try: doubling from `least` to `most`.
pub(crate) fn back_off(failures: u32, least: Duration, most: Duration) -> Duration {
    least.saturating_mul(1 << failures.min(16)).min(most)
}

pub(crate) const BACK_OFF_MIN: Duration = Duration::from_millis(50);
pub(crate) const BACK_OFF_MAX: Duration = Duration::from_secs(2);

/// A random number.
pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without the system's random numbers two producers could take one id: there is nothing to go on with.
    getrandom::fill(&mut bytes).expect("the system has random numbers");
    u64::from_ne_bytes(bytes)
}
