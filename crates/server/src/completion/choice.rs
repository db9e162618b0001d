//! One text of a completion: what is new in it, with log probabilities in OpenAI's old form.

use sparamx_engine::{TokenLogprob, Tokenizer};

use super::prompts::Start;
use crate::generate::logprobs::{TokenWriter, finite};
use crate::wire::openai::completions::{CompletionLogprobs, TopTokens};

/// Writes log probabilities for one text after the other.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    /// Makes texts of tokens.
    pub tokenizer: &'a Tokenizer,
    /// How it writes them.
    pub names: TokenWriter,
    /// Special tokens are part of the text.
    pub show_special: bool,
}

/// A text in the making.
#[derive(Debug, Default)]
pub struct Choice {
    /// The prompt, until it is echoed.
    echo: Option<Start>,
    /// Where the next token begins.
    place: Place,
    /// What has not gone out yet.
    text: String,
    /// The same, of log probabilities; none if they are not asked for.
    logprobs: Option<CompletionLogprobs>,
    /// Log probabilities of tokens of the prompt, from the second on.
    prompt: Vec<TokenLogprob>,
    /// Log probabilities of new tokens whose text is still to come.
    held: Vec<TokenLogprob>,
}

/// A place in a text that is made of the bytes of tokens.
#[derive(Debug, Default, Clone, Copy)]
struct Place {
    /// Characters that begin before it.
    chars: usize,
}

impl Place {
    /// Goes on by a token, and says where it begins: a token that goes on with a character begins with that one.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        let continues = |byte: &u8| byte & 0xC0 == 0x80;
        let start = match bytes.first().is_some_and(continues) {
            true => self.chars.saturating_sub(1),
            false => self.chars,
        };
        self.chars += bytes.iter().filter(|byte| !continues(byte)).count();
        start
    }
}

impl Choice {
    /// A text after a prompt that is echoed, if there is one; with log probabilities or without.
    pub fn new(echo: Option<Start>, logprobs: bool) -> Self {
        Self {
            echo,
            logprobs: logprobs.then(CompletionLogprobs::default),
            ..Self::default()
        }
    }

    /// More log probabilities of the prompt.
    pub fn add_prompt(&mut self, logprobs: Vec<TokenLogprob>) {
        self.prompt.extend(logprobs);
    }

    /// A new token, and text that has become certain.
    pub fn add(&mut self, writer: Writer<'_>, logprob: Option<TokenLogprob>, text: &str) {
        self.put_prompt(writer);
        self.held.extend(logprob);
        if !text.is_empty() {
            self.text.push_str(text);
            self.release(writer);
        }
    }

    /// The end of the text: the last of it, and the token that ended it, if one did.
    pub fn end(&mut self, writer: Writer<'_>, ending: Option<TokenLogprob>, text: &str) {
        self.add(writer, ending, text);
        self.release(writer);
    }

    /// Whether something has not gone out.
    pub fn has_news(&self) -> bool {
        !self.text.is_empty()
            || self
                .logprobs
                .as_ref()
                .is_some_and(|logprobs| !logprobs.tokens.is_empty())
    }

    /// Takes what has not gone out.
    pub fn take(&mut self) -> (String, Option<CompletionLogprobs>) {
        (
            std::mem::take(&mut self.text),
            self.logprobs.as_mut().map(std::mem::take),
        )
    }

    /// Puts the prompt in front.
    fn put_prompt(&mut self, writer: Writer<'_>) {
        let Some(start) = self.echo.take() else {
            return;
        };
        let text = start.text.unwrap_or_default();
        if self.logprobs.is_some() {
            let prompt = std::mem::take(&mut self.prompt);
            self.put_prompt_tokens(writer, &start.ids, &text, prompt);
        }
        self.place.chars = text.chars().count();
        self.text.push_str(&text);
    }

    fn put_prompt_tokens(
        &mut self,
        writer: Writer<'_>,
        ids: &[u32],
        text: &str,
        prompt: Vec<TokenLogprob>,
    ) {
        let shown: usize = ids.iter().map(|&id| writer.shown(id).len()).sum();
        // Some tokenizers write a space before the first word, which is none of its text.
        let mut dropped = shown.saturating_sub(text.len());
        let mut logprobs = prompt.into_iter();
        for (index, &id) in ids.iter().enumerate() {
            let bytes = writer.shown(id);
            let cut = dropped.min(bytes.len());
            dropped -= cut;
            let logprob = if index == 0 { None } else { logprobs.next() };
            self.put(writer, id, &bytes[cut..], logprob);
        }
    }

    /// Lets the log probabilities of held tokens go out with the text.
    fn release(&mut self, writer: Writer<'_>) {
        for logprob in std::mem::take(&mut self.held) {
            self.put(writer, logprob.id, &writer.shown(logprob.id), Some(logprob));
        }
    }

    /// Adds a token, which has these bytes in the text.
    fn put(&mut self, writer: Writer<'_>, id: u32, bytes: &[u8], logprob: Option<TokenLogprob>) {
        let Some(list) = &mut self.logprobs else {
            return;
        };
        list.text_offset.push(self.place.pass(bytes));
        list.tokens.push(writer.name(id));
        list.token_logprobs
            .push(logprob.as_ref().map(|logprob| finite(logprob.logprob)));
        list.top_logprobs
            .push(logprob.map(|logprob| writer.top(&logprob)));
    }
}

impl Writer<'_> {
    fn name(self, id: u32) -> String {
        self.names.name(self.tokenizer, id)
    }

    /// Bytes of a token in the text.
    fn shown(self, id: u32) -> Vec<u8> {
        if self.show_special || self.tokenizer.special(id).is_none() {
            self.tokenizer.token_bytes(id)
        } else {
            Vec::new()
        }
    }

    /// The most probable tokens, and the token itself.
    fn top(self, of: &TokenLogprob) -> TopTokens {
        let mut top = TopTokens::default();
        for &(id, logprob) in &of.top {
            top.add(self.name(id), finite(logprob));
        }
        top.add(self.name(of.id), finite(of.logprob));
        top
    }
}
