//! How families of models write calls of tools.

/// How a model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToolFormat {
    /// `<tool_call>` `{"name": …, "arguments": {…}}` `</tool_call>`: Qwen 2.5 and 3, Hermes, SmolLM3.
    Hermes,
    /// The whole answer is `{"name": …, "parameters": {…}}`: Llama 3.1 to 3.3.
    Llama3Json,
    /// `[TOOL_CALLS]` and a list of objects, or a name and an object: Mistral, Ministral.
    Mistral,
    /// `<tool_call>` `<function=name>` `<parameter=key>` value …: Qwen3-Coder, Qwen3.5.
    Qwen3Coder,
    /// The whole answer is `[name(key=value), …]`: Llama 4, some of Llama 3.2.
    Pythonic,
}

impl ToolFormat {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Hermes,
        Self::Llama3Json,
        Self::Mistral,
        Self::Qwen3Coder,
        Self::Pythonic,
    ];

    /// The name, which is that of vLLM's parser.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hermes => "hermes",
            Self::Llama3Json => "llama3_json",
            Self::Mistral => "mistral",
            Self::Qwen3Coder => "qwen3_coder",
            Self::Pythonic => "pythonic",
        }
    }

    /// The format with a name, also by other names that vLLM has for the same syntax.
    pub fn parse_name(name: &str) -> Option<Self> {
        match name {
            "llama4_json" => Some(Self::Llama3Json),
            "llama4_pythonic" => Some(Self::Pythonic),
            "qwen3_xml" => Some(Self::Qwen3Coder),
            _ => Self::ALL.into_iter().find(|format| format.name() == name),
        }
    }

    /// The format that a chat template asks the model for, by what it says.
    pub fn detect(template: &str) -> Option<Self> {
        let has = |mark: &str| template.contains(mark);
        if !has("tools") {
            None
        } else if has("<function=") {
            Some(Self::Qwen3Coder)
        } else if has("<tool_call>") {
            Some(Self::Hermes)
        } else if has("[TOOL_CALLS]") {
            Some(Self::Mistral)
        } else if has("[func_name1(") || has("<|python_start|>") {
            Some(Self::Pythonic)
        } else if has("\"parameters\": ") || has("<|python_tag|>") {
            Some(Self::Llama3Json)
        } else {
            None
        }
    }

    /// What a call begins with, where it begins with something of its own.
    pub(super) fn starts(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>"],
            Self::Llama3Json => &["<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]"],
            Self::Qwen3Coder => &["<tool_call>", "<function="],
            Self::Pythonic => &["<|python_start|>"],
        }
    }

    /// Whether a mark says where a call begins, so that only calls are held to a grammar, and the text around them is free.
    pub fn is_marked(self) -> bool {
        !matches!(self, Self::Llama3Json | Self::Pythonic)
    }

    /// Marks of the syntax. One that is a special token of the model must be shown in the text.
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Hermes | Self::Qwen3Coder => &["<tool_call>", "</tool_call>"],
            Self::Llama3Json => &["<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]", "[ARGS]"],
            Self::Pythonic => &["<|python_start|>", "<|python_end|>"],
        }
    }

    /// Whether templates want the ids of calls in nine letters and digits.
    pub(super) fn has_short_ids(self) -> bool {
        self == Self::Mistral
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_vllm() {
        for format in ToolFormat::ALL {
            assert_eq!(ToolFormat::parse_name(format.name()), Some(format));
        }
        assert_eq!(
            ToolFormat::parse_name("qwen3_xml"),
            Some(ToolFormat::Qwen3Coder)
        );
        assert_eq!(ToolFormat::parse_name("klingon"), None);
    }

    #[test]
    fn templates_say_their_format() {
        for (template, format) in [
            (
                "{% if tools %}<tool_call>{}</tool_call>",
                Some(ToolFormat::Hermes),
            ),
            (
                "{% if tools %}<tool_call><function=a>",
                Some(ToolFormat::Qwen3Coder),
            ),
            ("{{ tools }}[TOOL_CALLS][", Some(ToolFormat::Mistral)),
            (
                "{{ tools }}'\"parameters\": '",
                Some(ToolFormat::Llama3Json),
            ),
            ("{{ tools }}[func_name1(a=1)]", Some(ToolFormat::Pythonic)),
            ("{{ tools }}", None),
            ("<tool_call>", None),
            ("{{ messages }}", None),
        ] {
            assert_eq!(ToolFormat::detect(template), format, "{template}");
        }
    }
}
