//! The memory that the bodies of all requests take together, from their first bytes until the engine has the requests.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;

/// Bytes of a body that does not count, so that short requests are served whatever others hold.
pub const FREE_BYTES: usize = 64 << 10;
/// The unit of what is counted, in bytes.
const UNIT: usize = 1 << 10;

/// What all requests may hold. A clone is the same.
#[derive(Debug, Clone)]
pub struct Bodies {
    left: Arc<Semaphore>,
    bytes: usize,
}

/// What one request holds. A clone is the same.
#[derive(Debug, Clone, Default)]
pub struct Held(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Bodies {
    /// Bodies of `bytes` together.
    pub fn new(bytes: usize) -> Self {
        Self {
            left: Arc::new(Semaphore::new(bytes / UNIT)),
            bytes,
        }
    }

    /// The body of a request has come to `bytes`.
    ///
    /// # Errors
    /// 503: others hold too much.
    pub fn grow(&self, held: &Held, bytes: usize) -> Result<(), ApiError> {
        if bytes <= FREE_BYTES {
            return Ok(());
        }
        let mut permit = held.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has = permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = bytes.div_ceil(UNIT).saturating_sub(has);
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let Ok(more) = Arc::clone(&self.left).try_acquire_many_owned(more) else {
            return Err(ApiError::unavailable(format!(
                "the bodies of all requests would take more than {} bytes: try again later",
                self.bytes
            )));
        };
        match &mut *permit {
            Some(permit) => permit.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

impl Held {
    /// Lets go of it: the body is no more.
    pub fn release(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpStream;
    use std::time::{Duration, Instant};

    use serde_json::json;
    use sparamx_engine::HostOptions;

    use super::*;
    use crate::options::{Limits, ServerOptions};
    use crate::testing::{TestServer, server_with};

    #[test]
    fn what_is_let_go_can_be_held_again() {
        let bodies = Bodies::new(1 << 20);
        let (first, second) = (Held::default(), Held::default());
        for bytes in [FREE_BYTES, FREE_BYTES + 1, 1 << 19, 3 << 18, 3 << 18] {
            bodies.grow(&first, bytes).unwrap();
        }
        bodies.grow(&second, FREE_BYTES).unwrap();
        bodies.grow(&second, 1 << 18).unwrap();
        let error = bodies.grow(&second, (1 << 18) + 1).unwrap_err();
        assert_eq!((error.status.as_u16(), error.retry_after), (503, Some(1)));
        first.release();
        bodies.grow(&second, 1 << 20).unwrap();
        drop(second);
        bodies.grow(&first, 1 << 20).unwrap();
    }

    /// Asks until the status is this one.
    fn asked(server: &TestServer, text: &str, status: u16) {
        let begun = Instant::now();
        loop {
            let answer = server.post("/tokenize", &json!({"prompt": text}));
            if answer.status == status {
                assert_eq!(answer.header("retry-after").is_some(), status == 503);
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{answer:?}");
        }
    }

    #[test]
    fn bodies_that_others_hold_back_leave_room_for_short_requests() {
        let limits = Limits {
            body_bytes: 1 << 20,
            ..Limits::default()
        };
        let options = ServerOptions {
            limits,
            ..ServerOptions::default()
        };
        let server = server_with(options, HostOptions::default());
        let head = format!(
            "POST /tokenize HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            server.address,
            1 << 20
        );
        let slow: Vec<TcpStream> = (0..4)
            .map(|_| {
                let mut stream = server.connect();
                stream.write_all(head.as_bytes()).unwrap();
                stream.write_all(&vec![b' '; (1 << 20) - 1]).unwrap();
                stream
            })
            .collect();
        // Until then a long request could take what one of them needs.
        let begun = Instant::now();
        while server.server.app().bodies().left.available_permits() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "not all is held");
            std::thread::sleep(Duration::from_millis(1));
        }
        let long = "a ".repeat(100_000);
        asked(&server, &long, 503);
        asked(&server, "a", 200);
        drop(slow);
        asked(&server, &long, 200);
    }
}
