//! A field that is a text or a list.

use std::fmt;
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use utoipa::ToSchema;

/// A text, or a list of parts. Errors within the list keep their path, which an untagged enum would lose.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum TextOr<T> {
    /// A text.
    Text(String),
    /// Parts.
    List(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = TextOr<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(TextOr::Text(text.to_owned()))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Self::Value, E> {
                Ok(TextOr::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(TextOr::List)
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms() {
        let read = |json| serde_json::from_str::<TextOr<u8>>(json);
        assert_eq!(read("\"a\"").unwrap(), TextOr::Text("a".to_owned()));
        assert_eq!(read("[1,2]").unwrap(), TextOr::List(vec![1, 2]));
        let error = read("{}").unwrap_err().to_string();
        assert!(error.contains("a string or a list"), "{error}");
    }

    #[test]
    fn an_error_in_the_list_keeps_its_path() {
        let mut json = serde_json::Deserializer::from_str("[1, \"x\"]");
        let error = serde_path_to_error::deserialize::<_, TextOr<u8>>(&mut json).unwrap_err();
        assert_eq!(error.path().to_string(), "[1]");
    }
}
