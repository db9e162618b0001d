//! The form that a text must have.

use std::fs::File;

use anyhow::{Context, Result};
use clap::Args;
use sparamx_engine::{Grammar, GrammarCompiler, GrammarSpec, Tokenizer};

use crate::args::UsageError;
use crate::texts;

/// The longest file that is read for a schema, in bytes: more than a grammar takes.
const MAX_SCHEMA_BYTES: u64 = 1 << 20;

/// Options of the form.
#[derive(Debug, Args)]
pub(super) struct FormArgs {
    /// The text is JSON that this schema describes: a file, or the schema itself
    #[arg(long, value_name = "FILE|JSON", conflicts_with = "regex")]
    json_schema: Option<String>,
    /// All of the text matches this regular expression
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true)]
    regex: Option<String>,
}

impl FormArgs {
    /// The grammar of the form, if there is one.
    ///
    /// # Errors
    /// A file that cannot be read; no JSON; a form that cannot be kept.
    pub fn grammar(&self, tokenizer: &Tokenizer) -> Result<Option<Grammar>> {
        let spec = match (&self.json_schema, &self.regex) {
            (Some(schema), _) => GrammarSpec::JsonSchema(read(schema)?),
            (None, Some(regex)) => GrammarSpec::Regex(regex.clone()),
            (None, None) => return Ok(None),
        };
        Ok(Some(GrammarCompiler::new(tokenizer)?.compile(&spec)?))
    }
}

/// The schema that an argument is or names.
fn read(schema: &str) -> Result<serde_json::Value> {
    let bytes = if schema.trim_start().starts_with('{') {
        schema.as_bytes().to_vec()
    } else {
        let file = File::open(schema).with_context(|| format!("--json-schema: {schema}"))?;
        texts::limited(file, MAX_SCHEMA_BYTES)
            .with_context(|| format!("--json-schema: {schema}"))?
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| UsageError(format!("--json-schema: not JSON: {error}")).into())
}
