//! A model that writes, for one prompt or many.

use std::io::{self, Write};
use std::ops::ControlFlow;

use anyhow::{Context, Result, bail};
use sparamx_engine::{
    ChatTemplate, EngineError, Event, FinishReason, GenerateParams, Grammar, Host, Message, Outcome,
};

use crate::args::{Common, UsageError};
use crate::{interrupt, output, panics};

/// What it takes to answer.
pub(super) struct Talk {
    pub host: Host,
    pub template: Option<ChatTemplate>,
    pub system: Option<String>,
    pub params: GenerateParams,
    /// What each answer must look like.
    pub grammar: Option<Grammar>,
    pub common: Common,
    /// Which model it is, to be said once.
    pub about: Option<String>,
}

impl Talk {
    /// Answers or continues one prompt.
    pub fn once(&mut self, prompt: &str) -> Result<()> {
        let ids = self.prompt_ids(&[Message::new("user", prompt)], prompt)?;
        if self.common.json {
            let mut about = self.about.take();
            let _watch = interrupt::watch();
            let outcome = self.generate(&ids, &mut |_| {
                say(&mut about);
                flow()
            })?;
            self.summarize(&outcome);
            return output::json(&outcome);
        }
        // A text and its continuation read as one.
        let before = if self.template.is_none() { prompt } else { "" };
        let outcome = self.stream(&ids, before)?;
        self.summarize(&outcome);
        Ok(())
    }

    /// Ids of the conversation, the system prompt before it; of the text for a model without a chat template.
    pub fn prompt_ids(&self, messages: &[Message], text: &str) -> Result<Vec<u32>> {
        let tokenizer = &self.host.loaded().tokenizer;
        let context = self.host.context();
        let Some(template) = &self.template else {
            tokenizer.check_room(text, context)?;
            return Ok(tokenizer.encode_prompt(text)?);
        };
        let system = self.system.iter().map(|text| Message::new("system", text));
        let messages: Vec<Message> = system.chain(messages.iter().cloned()).collect();
        let text = template.render(&messages, true)?;
        tokenizer.check_room(&text, context)?;
        Ok(tokenizer.encode(&text, false)?)
    }

    /// Whether the model hears the system prompt: a warning if it does not, an error if it has no roles at all.
    pub fn check_system(&self) -> Result<()> {
        let Some(system) = &self.system else {
            return Ok(());
        };
        let Some(template) = &self.template else {
            bail!(UsageError(
                "the model has no chat template, so there is no place for a system prompt: put its text before the prompt"
                    .to_owned()
            ));
        };
        let user = Message::new("user", "Hi");
        let with = template
            .render(&[Message::new("system", system), user.clone()], true)
            .context("the chat template takes no system prompt; put its text into the prompt")?;
        // It may refuse a conversation without one.
        let ignored = template
            .render(&[user], true)
            .is_ok_and(|without| without == with);
        if ignored && !self.common.quiet {
            output::complain(
                "warning: the chat template of this model leaves the system prompt out",
            );
        }
        Ok(())
    }

    /// Generates with the parameters of the talk.
    fn generate(
        &self,
        ids: &[u32],
        on_event: &mut dyn FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<Outcome> {
        let processor = self.grammar.as_ref().map(Grammar::processor);
        match self
            .host
            .generate_with(ids, &self.params, processor, on_event)
        {
            // It was caught on the engine's thread, and goes on here.
            Err(EngineError::Panicked { message }) => panics::resume(message),
            outcome => Ok(outcome?),
        }
    }

    /// Generates, and writes the text to standard output as it comes, after `before`.
    pub fn stream(&mut self, ids: &[u32], before: &str) -> Result<Outcome> {
        let mut out = io::stdout().lock();
        let (mut before, mut about) = (Some(before), self.about.take());
        let mut written = Ok(());
        let _watch = interrupt::watch();
        let outcome = self.generate(ids, &mut |event| {
            // Only now is it certain that the prompt can be run: an error is one line.
            say(&mut about);
            let text = before.take().unwrap_or_default();
            let more = match event {
                Event::Token { text, .. } | Event::Finished { text, .. } => text,
                Event::Prompt { .. } => "",
            };
            written = write!(out, "{text}{more}").and_then(|()| out.flush());
            if written.is_err() {
                ControlFlow::Break(())
            } else {
                flow()
            }
        })?;
        written
            .and_then(|()| writeln!(out))
            .context(output::CANNOT_WRITE)?;
        Ok(outcome)
    }

    /// The last line on standard error: how much, how fast, and why it ended; with `--verbose` also with what.
    pub fn summarize(&self, outcome: &Outcome) {
        if self.common.quiet {
            return;
        }
        output::complain(&format!(
            "{} tokens at {:.1} tokens/s ({})",
            outcome.ids.len(),
            outcome.decode_tokens_per_s,
            why(outcome.finish_reason),
        ));
        if self.common.verbose {
            self.details(outcome);
        }
    }

    fn details(&self, outcome: &Outcome) {
        let loaded = self.host.loaded();
        let runtime = &loaded.runtime;
        let format = loaded.model.weight_format();
        let kernel = runtime.kernel(format, 1);
        output::complain(&format!(
            "{} prompt tokens ({} cached) at {:.1} tokens/s, {} of {} draft tokens accepted; {} threads, {}, {}",
            outcome.prompt_ids.len(),
            outcome.cached_tokens,
            outcome.prefill_tokens_per_s,
            outcome.accepted_tokens,
            outcome.drafted_tokens,
            runtime.threads(),
            runtime.cpu().isa(),
            kernel.name
        ));
    }
}

/// Says once which model it is.
pub(super) fn say(about: &mut Option<String>) {
    if let Some(line) = about.take() {
        output::complain(&line);
    }
}

/// Goes on unless Ctrl-C was pressed.
fn flow() -> ControlFlow<()> {
    if interrupt::asked() {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}

fn why(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "end of text",
        FinishReason::Length => "--max-tokens reached",
        FinishReason::Context => "context full",
        FinishReason::Cancelled => "interrupted",
    }
}
