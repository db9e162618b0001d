//! The engine's thread.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Sink;
use super::shared::{Shared, Work};
use crate::EngineError;
use crate::batch::{BatchEngine, Engine, Event, RequestId, Usage};
use crate::foreign::panic_message;

/// Who gets the events of a request that the engine has.
struct Client {
    number: u64,
    tenant: u64,
    sink: Sink,
    /// Others wait until its prompt is in the cache.
    leads: bool,
}

/// All of them, by the engine's name of the request and by the host's.
#[derive(Default)]
struct Clients {
    by_id: BTreeMap<RequestId, Client>,
    ids: HashMap<u64, RequestId>,
}

/// Runs the engine until the host is gone. A panic ends it, and all requests.
pub(super) fn run(mut engine: BatchEngine, shared: &Shared) {
    let mut clients = Clients::default();
    let work = AssertUnwindSafe(|| serve(&mut engine, &mut clients, shared));
    if let Err(payload) = catch_unwind(work) {
        let message = panic_message(&*payload);
        let waiting = shared.fail(message.clone());
        let sinks = waiting.into_iter().map(|entry| entry.sink);
        let running = clients.by_id.into_values().map(|client| client.sink);
        for mut sink in running.chain(sinks) {
            // It may have been the sink that failed.
            let _ = catch_unwind(AssertUnwindSafe(|| sink(panicked(message.clone()))));
        }
    }
}

/// The last event of a request when the engine is no more.
fn panicked(message: String) -> Event {
    Event::Finished {
        text: String::new(),
        result: Err(EngineError::Panicked { message }),
        stopped_by: None,
        ending: None,
        usage: Usage::default(),
    }
}

fn serve(engine: &mut BatchEngine, clients: &mut Clients, shared: &Shared) {
    loop {
        match shared.work(clients.by_id.is_empty()) {
            Work::Step { cancelled } => {
                let ids = cancelled
                    .iter()
                    .filter_map(|number| clients.ids.get(number));
                ids.for_each(|&id| engine.cancel(id));
            }
            Work::Close(waiting) => {
                waiting.into_iter().for_each(|entry| entry.cancel());
                if clients.by_id.is_empty() {
                    return;
                }
                clients.by_id.keys().for_each(|&id| engine.cancel(id));
            }
        }
        admit(engine, clients, shared);
        let mut events = Vec::new();
        engine.step(&mut |id, event| events.push((id, event)));
        shared.step_ended(engine.stats(), engine.last_step());
        for (id, event) in events {
            clients.deliver(id, event, shared);
        }
    }
}

/// Gives the engine as many requests as it can run. One that it cannot run yet is the last it gets, so that the order of all
/// others is still open.
fn admit(engine: &mut BatchEngine, clients: &mut Clients, shared: &Shared) {
    while engine.has_room()
        && let Some((number, entry)) = shared.next()
    {
        let client = Client {
            number,
            tenant: entry.request.tenant(),
            sink: entry.sink,
            leads: entry.leads,
        };
        let id = engine.enqueue(entry.request);
        clients.by_id.insert(id, client);
        clients.ids.insert(number, id);
        engine.admit();
    }
}

impl Clients {
    /// Passes an event on.
    fn deliver(&mut self, id: RequestId, event: Event, shared: &Shared) {
        let Some(client) = self.by_id.get_mut(&id) else {
            return;
        };
        let cached = match event {
            Event::Prompt { done, total, .. } => done == total,
            _ => true,
        };
        if cached && std::mem::take(&mut client.leads) {
            shared.release(client.number);
        }
        if !matches!(event, Event::Finished { .. }) {
            (client.sink)(event);
        } else if let Some(mut client) = self.by_id.remove(&id) {
            self.ids.remove(&client.number);
            // Who sees the last event may submit another request at once.
            shared.leave(client.tenant);
            (client.sink)(event);
        }
    }
}
