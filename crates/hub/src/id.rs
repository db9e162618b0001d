//! Names of models.

const DEFAULT_REVISION: &str = "main";

/// The name of a model on a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    /// `org/name`.
    pub name: String,
    /// A branch, tag or commit.
    pub revision: String,
}

impl HubId {
    /// Reads `org/name` or `org/name@revision`; `None` for anything that cannot be one.
    pub fn parse(text: &str) -> Option<HubId> {
        let (name, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
        let (org, model) = name.split_once('/')?;
        let word = |word: &str| {
            !word.is_empty()
                && !word.starts_with(['.', '-'])
                && !word.contains("..")
                && word
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let revision_fits = !revision.is_empty() && revision.split('/').all(word);
        (word(org) && word(model) && revision_fits).then(|| HubId {
            name: name.to_owned(),
            revision: revision.to_owned(),
        })
    }

    /// The folder of the cache that holds it.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}", self.name.replace('/', "--"))
    }

    /// As a user would write it.
    pub(crate) fn label(&self) -> String {
        if self.revision == DEFAULT_REVISION {
            self.name.clone()
        } else {
            format!("{}@{}", self.name, self.revision)
        }
    }

    /// Whether the revision is a commit, which no reference is kept for.
    pub(crate) fn is_commit(&self) -> bool {
        self.revision.len() == 40 && self.revision.bytes().all(|b| b.is_ascii_hexdigit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models_are_recognized() {
        let id = HubId::parse("meta-llama/Llama-3.1-8B").expect("a name");
        assert_eq!(
            (id.name.as_str(), id.revision.as_str()),
            ("meta-llama/Llama-3.1-8B", "main")
        );
        assert_eq!(id.folder(), "models--meta-llama--Llama-3.1-8B");
        let id = HubId::parse("a/b@refs/pr/1").expect("a name with a revision");
        assert_eq!(
            (id.name.as_str(), id.revision.as_str()),
            ("a/b", "refs/pr/1")
        );
        for text in [
            "gpt2", "./a/b", "../a", "/a/b", "a/b/c", "a/", "a/b@", "a/b@../c", "a b/c", "~/a",
            "a/b?c",
        ] {
            assert_eq!(HubId::parse(text), None, "{text}");
        }
    }
}
