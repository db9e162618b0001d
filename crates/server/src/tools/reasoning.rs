//! What a model thinks before it answers, between `<think>` and `</think>`.

/// What reasoning begins with.
pub(super) const OPEN: &str = "<think>";
/// What it ends with.
pub(super) const CLOSE: &str = "</think>";

/// Whether an answer begins with reasoning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reasoning {
    /// It does not, or nobody looks for it.
    #[default]
    Off,
    /// It does if the model opens it.
    Possible,
    /// It does: the prompt has opened it.
    Opened,
}

impl Reasoning {
    /// Marks of reasoning. One that is a special token of the model must be shown in the text.
    pub const MARKS: [&str; 2] = [OPEN, CLOSE];

    /// Whether a chat template knows of reasoning.
    pub fn is_marked(template: &str) -> bool {
        template.contains(CLOSE)
    }

    /// By a chat template and the prompt it made.
    pub fn detect(template: &str, prompt: &str) -> Self {
        let end = prompt.trim_end();
        if !Self::is_marked(template) || end.ends_with(CLOSE) {
            Self::Off
        } else if end.ends_with(OPEN) {
            Self::Opened
        } else {
            Self::Possible
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_says_whether_reasoning_is_open() {
        let template = "{{ '<think>' }}…{{ '</think>' }}";
        for (prompt, reasoning) in [
            ("<|assistant|>\n", Reasoning::Possible),
            ("<|assistant|>\n<think>\n", Reasoning::Opened),
            ("<|assistant|>\n<think>\n\n</think>\n\n", Reasoning::Off),
        ] {
            assert_eq!(Reasoning::detect(template, prompt), reasoning, "{prompt}");
        }
        assert_eq!(
            Reasoning::detect("{{ messages }}", "<think>"),
            Reasoning::Off
        );
    }
}
