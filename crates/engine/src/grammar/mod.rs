//! Texts that follow a grammar: JSON by a schema, regular expressions, choices, context-free grammars.
//!
//! A [`GrammarCompiler`] makes a [`Grammar`] of a [`GrammarSpec`]; each sequence takes a processor of its own from it, which
//! allows only those tokens that the text may go on with, and those that end a text where it may end. What a grammar may cost is
//! bounded, to compile and for each token: it comes from a client.

mod clock;
mod closed;
mod matcher;
mod spec;
mod vocabulary;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{CancellationHandle, Matcher, ParserFactory};

use self::matcher::Masking;
use crate::{EngineError, LogitsProcessor, Tokenizer, apart};

pub use spec::GrammarSpec;

/// Grammars that are kept for the next request with the same one.
const CACHED: usize = 32;
/// Time to compile a grammar. Real ones take milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Grammars that are compiled at a time, with those that nobody waits for any more.
const COMPILING: usize = 4;
/// What is passed on of a message, which quotes the grammar.
const MAX_ERROR_CHARACTERS: usize = 300;

/// What a grammar may cost: about half of the engine's defaults, which are for trusted clients. A mask then takes at most some
/// ten milliseconds.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 1_000,
        initial_lexer_fuel: 500_000,
        step_lexer_fuel: 100_000,
        step_max_items: 25_000,
        max_lexer_states: 20_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// Makes grammars for a model. Copies share what they hold.
#[derive(Clone)]
pub struct GrammarCompiler(Arc<Inner>);

struct Inner {
    /// None if the tokenizer has no id that ends a text.
    factory: Option<ParserFactory>,
    /// The last one used at the end.
    cache: Mutex<VecDeque<(String, Grammar)>>,
    running: Mutex<usize>,
    ended: Condvar,
}

/// A grammar for a model.
#[derive(Clone)]
pub struct Grammar(Arc<Mutex<Matcher>>);

impl Grammar {
    /// What keeps one text to the grammar.
    pub fn processor(&self) -> Box<dyn LogitsProcessor> {
        // A copy that shares nothing: no text makes that of another fail.
        Box::new(Masking::new(lock(&self.0).deep_clone()))
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

impl GrammarCompiler {
    /// A compiler for the tokens of a model. Takes about a second for 150,000 of them.
    ///
    /// # Errors
    /// The grammar engine does not take the tokens.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, EngineError> {
        let slices = SlicedBiasComputer::general_slices();
        let factory = vocabulary::tokens(tokenizer).map(|tokens| {
            let capabilities = InferenceCapabilities::default();
            let mut factory = ParserFactory::new(&tokens, capabilities, &slices)
                .map_err(|error| failed(&error.to_string()))?;
            factory.quiet();
            *factory.limits_mut() = limits();
            Ok::<_, EngineError>(factory)
        });
        let factory = factory.transpose()?;
        Ok(Self(Arc::new(Inner {
            factory,
            cache: Mutex::new(VecDeque::new()),
            running: Mutex::new(0),
            ended: Condvar::new(),
        })))
    }

    /// Compiles a grammar, or finds it among the last ones. It may take seconds, and waits.
    ///
    /// # Errors
    /// [`EngineError::Grammar`]: a syntax error; what cannot be kept, by its keyword; more than the limits.
    /// [`EngineError::Overload`]: it takes too long, or others do.
    pub fn compile(&self, spec: &GrammarSpec) -> Result<Grammar, EngineError> {
        let key = spec.key();
        if let Some(grammar) = self.cached(&key) {
            return Ok(grammar);
        }
        let text = spec
            .grammar()
            .map_err(|error| EngineError::Grammar { error })?;
        let permit = self.permit()?;
        let inner = Arc::clone(&self.0);
        let stop = Stop::default();
        let theirs = stop.clone();
        let work = move || {
            let _permit = permit;
            inner.matcher(text, &theirs)
        };
        let matcher = apart::run("grammar compiler", PATIENCE, work)
            .map_err(|failure| {
                stop.stop();
                failure.into_error(|error| EngineError::Grammar { error })
            })?
            .map_err(|error| failed(&error))?;
        let grammar = Grammar(Arc::new(Mutex::new(matcher)));
        let mut cache = lock(&self.0.cache);
        if cache.len() == CACHED {
            cache.pop_front();
        }
        cache.push_back((key, grammar.clone()));
        Ok(grammar)
    }

    /// A grammar that is kept, which becomes the last one used.
    fn cached(&self, key: &str) -> Option<Grammar> {
        let mut cache = lock(&self.0.cache);
        let index = cache.iter().position(|(kept, _)| kept == key)?;
        let entry = cache.remove(index)?;
        let grammar = entry.1.clone();
        cache.push_back(entry);
        Some(grammar)
    }

    /// Waits until few grammars are compiled.
    fn permit(&self) -> Result<Permit, EngineError> {
        let running = lock(&self.0.running);
        let full = |running: &mut usize| *running >= COMPILING;
        let waited = self.0.ended.wait_timeout_while(running, PATIENCE, full);
        let (mut running, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            let error = format!("{COMPILING} grammars are compiled, which is as many as at a time");
            return Err(EngineError::Overload { error });
        }
        *running += 1;
        Ok(Permit(Arc::clone(&self.0)))
    }
}

impl Inner {
    /// The grammar at its beginning, where a token is possible.
    fn matcher(&self, grammar: TopLevelGrammar, stop: &Stop) -> Result<Matcher, String> {
        let factory = self.factory.as_ref();
        let factory = factory.ok_or("the model has no token that ends a text")?;
        let parser = factory.create_parser(grammar);
        let mut parser = parser.map_err(|error| error.to_string())?;
        stop.begins(parser.enable_cancellation());
        let mut matcher = Matcher::new(Ok(parser));
        let mask = matcher.compute_mask_or_eos();
        mask.map(|_| matcher).map_err(|error| error.to_string())
    }
}

/// Ends the work on a grammar that nobody waits for any more, so that others get its place.
#[derive(Clone, Default)]
struct Stop(Arc<Mutex<(bool, Option<CancellationHandle>)>>);

impl Stop {
    /// The work can be ended from now on.
    fn begins(&self, handle: CancellationHandle) {
        let mut state = lock(&self.0);
        if state.0 {
            handle.cancel();
        }
        state.1 = Some(handle);
    }

    fn stop(&self) {
        let mut state = lock(&self.0);
        state.0 = true;
        if let Some(handle) = &state.1 {
            handle.cancel();
        }
    }
}

/// One of the grammars that may be compiled at a time.
struct Permit(Arc<Inner>);

impl Drop for Permit {
    fn drop(&mut self) {
        *lock(&self.0.running) -= 1;
        self.0.ended.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(error: &str) -> EngineError {
    EngineError::Grammar {
        error: clean(error),
    }
}

/// What the grammar engine says, on a line, without its state and without much of what the client sent.
fn clean(error: &str) -> String {
    let end = ["<state>", "<non-verbose/>", "<backtrace>"]
        .iter()
        .filter_map(|mark| error.find(mark))
        .min();
    let words: Vec<&str> = error[..end.unwrap_or(error.len())]
        .split_whitespace()
        .collect();
    let text = words.join(" ");
    if text.contains("oneOf constraints are not supported") {
        return "oneOf is kept only where its alternatives exclude each other: use anyOf"
            .to_owned();
    }
    if text.starts_with("NoExtension") {
        return "no token of the model goes on with it".to_owned();
    }
    match text.char_indices().nth(MAX_ERROR_CHARACTERS) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text,
    }
}
