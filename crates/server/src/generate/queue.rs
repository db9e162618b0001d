//! Events on their way from the engine's thread to the HTTP request that they are for.
//!
//! To wake a network thread takes the engine's core away for tens of microseconds, which is a good part of a small model's step. So
//! a request that has just had tokens gets the next ones together, a moment later; what begins or ends a text never waits.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use sparamx_engine::Event;
use tokio::time::{Instant, Sleep, sleep_until};

/// Between two deliveries of tokens. A screen shows a picture for longer; most models take longer for a token.
const MOMENT: Duration = Duration::from_millis(10);

/// An event, and the index of its text.
pub type Indexed = (usize, Event);

/// A queue without bound. It ends when all its senders are gone.
pub fn queue() -> (Sender, Receiver) {
    let shared = Arc::new(Mutex::new(Shared {
        senders: 1,
        ..Shared::default()
    }));
    let receiver = Receiver {
        shared: Arc::clone(&shared),
        moment: None,
    };
    (Sender(shared), receiver)
}

#[derive(Default)]
struct Shared {
    events: Vec<Indexed>,
    /// The receiver's, if it waits.
    waker: Option<Waker>,
    /// It waits for its moment: only what is urgent wakes it.
    waits: bool,
    /// There is something that begins or ends a text.
    urgent: bool,
    senders: usize,
    /// The receiver is gone.
    closed: bool,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wakes the receiver, if it waits and it is time, once it can have the lock.
fn wake(mut shared: MutexGuard<'_, Shared>) {
    let later = shared.waits && !shared.urgent;
    let waker = if later { None } else { shared.waker.take() };
    drop(shared);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The engine's end.
pub struct Sender(Arc<Mutex<Shared>>);

impl Sender {
    /// Puts an event in. One that is `urgent` is delivered at once, with all that came before it.
    pub fn send(&self, event: Indexed, urgent: bool) {
        let mut shared = lock(&self.0);
        // Nobody reads the events of a client that is gone.
        if shared.closed {
            return;
        }
        shared.events.push(event);
        shared.urgent |= urgent;
        wake(shared);
    }
}

impl Clone for Sender {
    fn clone(&self) -> Self {
        lock(&self.0).senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let mut shared = lock(&self.0);
        shared.senders -= 1;
        shared.urgent |= shared.senders == 0;
        wake(shared);
    }
}

/// The request's end.
pub struct Receiver {
    shared: Arc<Mutex<Shared>>,
    /// When the next tokens may be delivered; none: at once.
    moment: Option<Pin<Box<Sleep>>>,
}

impl Receiver {
    /// All events that are there, once there are any and it is time; none of them at the end.
    pub fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Vec<Indexed>> {
        let mut shared = lock(&self.shared);
        let moment = self.moment.as_mut();
        shared.waits = !shared.urgent && moment.is_some_and(|m| m.as_mut().poll(cx).is_pending());
        let ended = shared.senders == 0;
        if shared.waits || (shared.events.is_empty() && !ended) {
            shared.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        shared.urgent = ended;
        let events = std::mem::take(&mut shared.events);
        drop(shared);
        let next = Instant::now() + MOMENT;
        match &mut self.moment {
            Some(moment) => moment.as_mut().reset(next),
            None => self.moment = Some(Box::pin(sleep_until(next))),
        }
        Poll::Ready(events)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        shared.closed = true;
        shared.events = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use sparamx_engine::Usage;
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// An event that the queue looks at no closer.
    fn event() -> Event {
        Event::Finished {
            text: String::new(),
            result: Ok(sparamx_engine::FinishReason::Stop),
            stopped_by: None,
            ending: None,
            usage: Usage::default(),
        }
    }

    async fn take(receiver: &mut Receiver) -> Vec<usize> {
        let events = timeout(PATIENCE, poll_fn(|cx| receiver.poll_take(cx))).await;
        events
            .unwrap()
            .into_iter()
            .map(|(index, _)| index)
            .collect()
    }

    #[tokio::test]
    async fn what_follows_closely_comes_together() {
        let (sender, mut receiver) = queue();
        sender.send((0, event()), false);
        let begin = Instant::now();
        assert_eq!(take(&mut receiver).await, [0]);
        let sending = tokio::task::spawn_blocking(move || {
            for index in 1..4 {
                sender.send((index, event()), false);
            }
            sender
        });
        let sender = sending.await.unwrap();
        assert_eq!(take(&mut receiver).await, [1, 2, 3]);
        assert!(begin.elapsed() >= MOMENT);
        drop(sender);
        assert!(take(&mut receiver).await.is_empty());
    }

    #[tokio::test]
    async fn what_is_urgent_does_not_wait() {
        let (sender, mut receiver) = queue();
        sender.send((0, event()), true);
        assert_eq!(take(&mut receiver).await, [0]);
        // A moment that does not end: only the urgent event can end the wait for it.
        receiver.moment = Some(Box::pin(sleep_until(Instant::now() + 10 * PATIENCE)));
        let sending = tokio::task::spawn_blocking(move || {
            sender.send((1, event()), false);
            std::thread::sleep(Duration::from_millis(20));
            sender.send((2, event()), true);
            sender
        });
        assert_eq!(take(&mut receiver).await, [1, 2]);
        receiver.moment = Some(Box::pin(sleep_until(Instant::now() + 10 * PATIENCE)));
        drop(sending.await.unwrap());
        // The end is urgent, too, and stays the end.
        assert!(take(&mut receiver).await.is_empty());
        assert!(take(&mut receiver).await.is_empty());
    }

    #[tokio::test]
    async fn events_for_nobody_are_not_kept() {
        let (sender, receiver) = queue();
        drop(receiver);
        sender.send((0, event()), true);
        assert!(lock(&sender.0).events.is_empty());
    }
}
