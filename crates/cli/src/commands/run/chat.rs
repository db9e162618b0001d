//! A conversation on the terminal.

use std::io::ErrorKind;

use anyhow::{Context, Result};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use sparamx_engine::{EngineError, FinishReason, Message};

use super::talk::{Talk, say};
use crate::{interrupt, output, sampling, terminal};

const HELP: &str = "\
/system TEXT      set the system prompt; without TEXT there is none
/regenerate       another answer to the last message
/clear            forget the conversation
/set NAME VALUE   temperature, top_k, top_p, min_p, repetition_penalty, seed or max_tokens; without them show the values
/help             this list
/exit             end the chat, as Ctrl-D does
//text            send /text to the model
Ctrl-C ends the answer.";

/// Takes turns with the user until the input ends. What goes wrong in one turn does not end the chat.
///
/// # Errors
/// The terminal cannot be read, or standard output cannot be written.
pub(super) fn run(mut talk: Talk) -> Result<()> {
    let mut editor = DefaultEditor::new().context("cannot read from the terminal")?;
    say(&mut talk.about);
    if !talk.common.quiet {
        output::complain("/help lists the commands, Ctrl-C ends an answer, Ctrl-D the chat.");
    }
    let mut chat = Chat {
        talk,
        messages: Vec::new(),
    };
    loop {
        let line = match editor.readline("> ") {
            Ok(line) if line.trim().is_empty() => continue,
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                output::complain("Ctrl-D or /exit ends the chat.");
                continue;
            }
            Err(ReadlineError::Eof) => return Ok(()),
            Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
                output::complain("error: what was typed is not UTF-8; type it again");
                continue;
            }
            Err(error) => return Err(error).context("cannot read from the terminal"),
        };
        // Without a history the chat goes on.
        let _ = editor.add_history_entry(&line);
        match chat.take(Line::read(&line)) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) if output::is_broken_pipe(&error) => return Err(error),
            Err(error) => output::complain(&format!("error: {}", output::describe(&error))),
        }
        // Ctrl-C ends the answer, anything else the chat.
        interrupt::clear();
        interrupt::check()?;
    }
}

/// What a line asks for.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    Say(&'a str),
    System(&'a str),
    Set(&'a str),
    Regenerate,
    Clear,
    Help,
    Exit,
    Unknown(&'a str),
}

impl<'a> Line<'a> {
    fn read(line: &'a str) -> Self {
        let Some(command) = line.trim_start().strip_prefix('/') else {
            return Line::Say(line);
        };
        if command.starts_with('/') {
            return Line::Say(command);
        }
        let (name, rest) = command
            .split_once(char::is_whitespace)
            .unwrap_or((command, ""));
        match (name, rest.trim()) {
            ("system", text) => Line::System(text),
            ("set", text) => Line::Set(text),
            ("regenerate" | "regen", "") => Line::Regenerate,
            ("clear", "") => Line::Clear,
            ("help" | "?", "") => Line::Help,
            ("exit" | "quit" | "bye", "") => Line::Exit,
            _ => Line::Unknown(name),
        }
    }
}

/// The conversation so far.
struct Chat {
    talk: Talk,
    messages: Vec<Message>,
}

impl Chat {
    /// Does what a line asks for; false at the end of the chat.
    fn take(&mut self, line: Line<'_>) -> Result<bool> {
        match line {
            Line::Say(text) => {
                self.messages.push(Message::new("user", text));
                self.answer()?;
            }
            Line::System(text) => self.system(text)?,
            Line::Set(text) => self.set(text),
            Line::Regenerate => {
                if self
                    .messages
                    .last()
                    .is_some_and(|last| last.role == "assistant")
                {
                    self.messages.pop();
                    self.answer()?;
                } else {
                    output::complain("there is no answer yet");
                }
            }
            Line::Clear => {
                self.messages.clear();
                output::complain("the conversation is forgotten");
            }
            Line::Help => output::complain(HELP),
            Line::Exit => return Ok(false),
            Line::Unknown(name) => output::complain(&format!(
                "no command /{name} of this form (see /help); //{name} sends it to the model"
            )),
        }
        Ok(true)
    }

    /// Answers the last message. If that fails, it was never said.
    fn answer(&mut self) -> Result<()> {
        // The same message twice shall not get the same answer.
        let sampling = &mut self.talk.params.sampling;
        sampling.seed = sampling.seed.wrapping_add(1);
        let result = self.try_answer();
        if result.is_err() {
            self.messages.pop();
        }
        result
    }

    fn try_answer(&mut self) -> Result<()> {
        let ids = self.fit()?;
        let last = self.messages.last().map_or("", |message| &message.content);
        let before = match self.talk.template {
            Some(_) => String::new(),
            // A text and its continuation read as one.
            None => last.to_owned(),
        };
        let hushed = terminal::hush();
        let outcome = self.talk.stream(&ids, &before);
        drop(hushed);
        let outcome = outcome?;
        self.after(&outcome);
        self.messages.push(Message::new("assistant", outcome.text));
        Ok(())
    }

    /// Ids of the conversation. The oldest turns are left out while it leaves too little room for an answer.
    fn fit(&mut self) -> Result<Vec<u32>> {
        let context = self.talk.host.context();
        let answer = self.talk.params.max_tokens.min(context / 4);
        let mut left_out = 0;
        loop {
            let last = self.messages.last().map_or("", |message| &message.content);
            let ids = self.talk.prompt_ids(&self.messages, last);
            let too_long = match &ids {
                Ok(ids) => ids.len() + answer > context,
                Err(error) => matches!(error.downcast_ref(), Some(EngineError::TextTooLong { .. })),
            };
            if !too_long || self.messages.len() < 3 {
                if left_out > 0 {
                    output::complain(&format!(
                        "note: the context of {context} tokens is full: oldest turns left out: {left_out}"
                    ));
                }
                return ids;
            }
            // A message and its answer.
            self.messages.drain(..2);
            left_out += 1;
        }
    }

    /// Says how the answer ended where that is not plain.
    fn after(&self, outcome: &sparamx_engine::Outcome) {
        if self.talk.common.verbose {
            return self.talk.summarize(outcome);
        }
        match outcome.finish_reason {
            FinishReason::Length if !self.talk.common.quiet => output::complain(&format!(
                "note: the answer ends after {} tokens; /set max_tokens N allows more",
                self.talk.params.max_tokens
            )),
            FinishReason::Context if !self.talk.common.quiet => {
                output::complain("note: the answer ends because the context is full");
            }
            _ => {}
        }
    }

    fn system(&mut self, text: &str) -> Result<()> {
        let new = (!text.is_empty()).then(|| text.to_owned());
        let old = std::mem::replace(&mut self.talk.system, new);
        if let Err(error) = self.talk.check_system() {
            self.talk.system = old;
            return Err(error);
        }
        output::complain(match text {
            "" => "there is no system prompt",
            _ => "the system prompt is set",
        });
        Ok(())
    }

    fn set(&mut self, text: &str) {
        let params = &mut self.talk.params;
        let words: Vec<&str> = text.split_whitespace().collect();
        let done = match words[..] {
            [] => Ok(()),
            [name, value] => sampling::set(params, name, value),
            _ => Err("/set takes a name and a value".to_owned()),
        };
        output::complain(&done.map_or_else(|error| error, |()| sampling::show(params)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_command_or_a_message() {
        for (line, want) in [
            ("Hello", Line::Say("Hello")),
            (" a / b", Line::Say(" a / b")),
            ("//etc", Line::Say("/etc")),
            ("/system Be brief. ", Line::System("Be brief.")),
            ("/system", Line::System("")),
            ("/set top_k 5", Line::Set("top_k 5")),
            ("  /exit ", Line::Exit),
            ("/exit now", Line::Unknown("exit")),
            ("/etc/passwd", Line::Unknown("etc/passwd")),
            ("/", Line::Unknown("")),
        ] {
            assert_eq!(Line::read(line), want, "{line}");
        }
    }
}
