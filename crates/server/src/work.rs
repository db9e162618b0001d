//! Work that takes its time, away from the threads of the network.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::error::ApiError;

/// Does some of it at a time. A clone is the same.
#[derive(Debug, Clone)]
pub struct Work(Arc<Semaphore>);

impl Work {
    /// Does `most` pieces of work at a time.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }

    /// Does a piece of work once it is its turn. One that nobody waits for any more is left out, or goes on to its end if it
    /// has begun.
    ///
    /// # Errors
    /// 500: it panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = Arc::clone(&self.0).acquire_owned().await;
        let permit = permit.map_err(|_| ApiError::fault())?;
        let work = spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        work.await.map_err(|_| ApiError::fault())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// Longer than nothing takes.
    const MOMENT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn it_waits_for_its_turn_and_not_for_those_that_are_gone() {
        let work = Work::new(1);
        let (end, ended) = mpsc::channel::<()>();
        let first = tokio::spawn({
            let work = work.clone();
            async move { work.run(move || ended.recv().is_err()).await }
        });
        while work.0.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let (began, begun) = mpsc::channel();
        let gone = work.run(move || began.send(()));
        assert!(timeout(MOMENT, gone).await.is_err(), "it has no turn");
        drop(end);
        assert_eq!(first.await.unwrap(), Ok(true));
        assert_eq!(work.run(|| 7).await, Ok(7));
        assert!(begun.try_recv().is_err(), "nobody waited for it");
    }

    #[tokio::test]
    async fn one_that_has_begun_keeps_its_place() {
        let work = Work::new(1);
        let (end, ended) = mpsc::channel::<()>();
        let left = work.run(move || ended.recv().is_err());
        assert!(timeout(MOMENT, left).await.is_err());
        assert!(timeout(MOMENT, work.run(|| 7)).await.is_err());
        drop(end);
        assert_eq!(work.run(|| 7).await, Ok(7));
        let panics = work.run(|| panic!("on purpose")).await;
        assert_eq!(panics.map(|(): ()| ()).unwrap_err().status, 500);
        assert_eq!(work.run(|| 7).await, Ok(7));
    }
}
