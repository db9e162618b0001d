//! The tools of a request.

use serde_json::{Value, json};

/// A tool that the model may call.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ToolDefinition {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// A JSON schema of its arguments, an object. None: it has none.
    pub parameters: Option<Value>,
    /// Whether the schema must be kept.
    pub strict: bool,
}

impl ToolDefinition {
    /// The schema of the arguments.
    pub fn schema(&self) -> Value {
        let none = || json!({"type": "object", "properties": {}, "additionalProperties": false});
        self.parameters.clone().unwrap_or_else(none)
    }

    /// The schema of one argument.
    pub fn property(&self, name: &str) -> Option<&Value> {
        self.parameters.as_ref()?.get("properties")?.get(name)
    }
}

/// Whether the model calls tools.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolMode {
    /// It does not.
    #[default]
    None,
    /// As it likes.
    Auto,
    /// It must.
    Required,
    /// It must call this one.
    Named(String),
}

impl ToolMode {
    /// Whether there must be a call.
    pub fn forces(&self) -> bool {
        matches!(self, Self::Required | Self::Named(_))
    }

    /// The tools that may be called.
    pub fn allowed<'a>(&self, tools: &'a [ToolDefinition]) -> Vec<&'a ToolDefinition> {
        let allowed = |tool: &&ToolDefinition| match self {
            Self::None => false,
            Self::Auto | Self::Required => true,
            Self::Named(name) => tool.name == *name,
        };
        tools.iter().filter(allowed).collect()
    }
}
