//! Starting a server, and ending it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use sparamx_engine::Host;
use sparamx_server::{Listen, Served, Server, ServerOptions, StartError};

use super::ServeArgs;
use super::log::Writer;
use crate::args::{Common, UsageError};
use crate::{interrupt, loading, output, panics, runtime, source, units};

/// How often it is looked whether the server is to end.
const LOOK: Duration = Duration::from_millis(50);

/// Serves until a signal comes.
///
/// # Errors
/// The address cannot be had, or the model cannot be used; a fault of the engine.
pub fn run(args: &ServeArgs, common: Common) -> Result<()> {
    args.kv.warn_of_useless(common);
    let log = (!common.quiet).then(Writer::start).transpose()?;
    let options = args.server_options(log.as_ref().map(Writer::log))?;
    raise_file_limit();
    let directory = match &args.model {
        Some(model) => source::resolve(model, common)?,
        None => source::shipped()?,
    };
    let name = source::name(args.model.as_deref().unwrap_or(source::SHIPPED), &directory);
    let names = match args.names() {
        [] => vec![name],
        names => names.to_vec(),
    };
    // Threads that start later inherit what the runtime asks the system for.
    let runtime = runtime::start(args.threads.count(), common)?;
    let runtime = Arc::new(runtime.batch_invariant(args.batch_invariant()));
    // Before the model: an address that is taken is said at once, and whoever looks sees that it is loading.
    let server = Server::start(options.clone()).map_err(wrong_use)?;
    let host = Host::open(
        &directory,
        runtime,
        args.host_options(options.keys.len()),
        &mut loading::report(common),
    )?;
    loading::details(&directory, host.loaded(), common);
    let root = args
        .model
        .clone()
        .unwrap_or_else(|| directory.display().to_string());
    let served = Served::new(Arc::new(host), names, root, &options);
    // Until here a signal ends the process at once.
    let watch = interrupt::watch();
    server.ready(served);
    // Whoever reads where the server is may ask it at once.
    if let Some(served) = server.app().model().filter(|_| !common.quiet) {
        introduce(served, &server, &options, &directory);
    }
    let fault = watch_over(&server, common);
    let cut = server.wait();
    drop(watch);
    if let Some(message) = fault {
        panics::resume(message);
    }
    if cut > 0 {
        bail!(
            "{cut} connections were cut off: their requests had not ended after --shutdown-timeout"
        );
    }
    Ok(())
}

/// What is wrong with the options is told apart from what is wrong with the machine.
fn wrong_use(error: StartError) -> anyhow::Error {
    match error {
        StartError::Open(_) => UsageError(error.to_string()).into(),
        error => error.into(),
    }
}

/// Waits for the end. Gives the message of a fault that ended the engine.
fn watch_over(server: &Server, common: Common) -> Option<String> {
    let mut fault = None;
    while !server.has_ended() {
        std::thread::sleep(LOOK);
        if fault.is_none() {
            fault = server.app().fault();
            if fault.is_some() {
                server.shutdown();
            }
        }
        if interrupt::asked() && !server.app().is_draining() {
            if !common.quiet {
                output::complain(
                    "running requests end, new ones are refused; a second signal ends them",
                );
            }
            server.shutdown();
        }
    }
    fault
}

/// Three lines: what is served, where, and by which means.
fn introduce(served: &Served, server: &Server, options: &ServerOptions, directory: &Path) {
    let meta = &served.meta;
    let template = match served.host.loaded().template {
        Some(_) => "",
        None => "; no chat template: chats are joined and continued",
    };
    output::complain(&format!(
        "serving {} from {}: {} parameters, {}, {} zeros, {} tokens of context{template}",
        served.names.join(", "),
        directory.display(),
        units::count(meta.parameters),
        meta.weights,
        units::percent(meta.sparsity),
        units::count(served.host.context() as u64),
    ));
    let scheme = if options.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let place = match (server.address(), &options.listen) {
        (Some(address), _) => format!("{scheme}://{address}"),
        (None, Listen::Unix(path)) => format!("the socket {}", path.display()),
        (None, listen) => listen.to_string(),
    };
    let key = if options.keys.is_empty() {
        "no key needed"
    } else {
        "a key needed"
    };
    output::complain(&format!(
        "at {place}, {key}; the API is below /v1, Ctrl-C ends"
    ));
    output::complain(&format!(
        "kernel {} on {} threads; the KV cache holds {} tokens",
        meta.kernel,
        meta.threads,
        units::count(served.host.cache_tokens()),
    ));
}

/// Lets the process open as many files as it may: each connection is one, and the usual limit is 1024.
#[cfg(unix)]
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // With fewer files there are fewer connections.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

#[cfg(not(unix))]
fn raise_file_limit() {}
