//! The engine's thread.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};

use super::{Handle, Shared, Ticket};
use crate::batch::{Active, BatchEngine, Engine, Event, RequestId};
use crate::foreign::message;

/// A request on its way to the engine.
pub(super) struct Submission {
    pub request: Active,
    pub client: Client,
}

/// Who gets the events of a request.
pub(super) struct Client {
    events: Sender<Event>,
    cancelled: Arc<AtomicBool>,
    ticket: Ticket,
}

impl Client {
    pub fn new(ticket: Ticket, shared: &Arc<Shared>) -> (Self, Handle) {
        let (events, receiver) = mpsc::channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let handle = Handle::new(receiver, Arc::clone(&cancelled), Arc::clone(shared));
        let client = Self {
            events,
            cancelled,
            ticket,
        };
        (client, handle)
    }
}

type Clients = BTreeMap<RequestId, Client>;

/// Runs the engine until the host is gone. A panic ends it, and all requests.
pub(super) fn run(
    mut engine: BatchEngine,
    submissions: &Receiver<Box<Submission>>,
    shared: &Shared,
) {
    let mut clients = Clients::new();
    let work = AssertUnwindSafe(|| serve(&mut engine, submissions, &mut clients, shared));
    if let Err(payload) = catch_unwind(work) {
        // Before the clients go: their handles then look here. Nobody else sets it.
        let _ = shared.panic.set(message(&*payload));
    }
}

fn serve(
    engine: &mut BatchEngine,
    submissions: &Receiver<Box<Submission>>,
    clients: &mut Clients,
    shared: &Shared,
) {
    loop {
        let mut next = if clients.is_empty() {
            submissions.recv().map_err(|_| TryRecvError::Disconnected)
        } else {
            submissions.try_recv()
        };
        while let Ok(submission) = next {
            let Submission { request, client } = *submission;
            clients.insert(engine.enqueue(request), client);
            next = submissions.try_recv();
        }
        let closed = matches!(next, Err(TryRecvError::Disconnected));
        if closed && clients.is_empty() {
            return;
        }
        for (&id, client) in clients.iter() {
            if closed || client.cancelled.load(Ordering::Relaxed) {
                engine.cancel(id);
            }
        }
        let mut events = Vec::new();
        engine.step(&mut |id, event| events.push((id, event)));
        *shared.stats() = engine.stats();
        for (id, event) in events {
            deliver(clients, id, event);
        }
    }
}

/// Passes an event on. A client whose handle is gone no longer cares.
fn deliver(clients: &mut Clients, id: RequestId, event: Event) {
    if !matches!(event, Event::Finished { .. }) {
        if let Some(client) = clients.get(&id) {
            let _ = client.events.send(event);
        }
    } else if let Some(Client { events, ticket, .. }) = clients.remove(&id) {
        // Who sees the last event may submit another request at once.
        drop(ticket);
        let _ = events.send(event);
    }
}
