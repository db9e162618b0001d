//! Other APIs over chat: requests become requests for chat, its events become theirs. No HTTP, no state between requests.

pub mod messages;
pub mod responses;

use crate::error::ApiError;

/// Gives the field of an error the name it has in another API: the first of `names` whose left side begins it.
pub(crate) fn rename(mut error: ApiError, names: &[(&str, &str)]) -> ApiError {
    if let Some(param) = &error.param
        && let Some((ours, theirs)) = names.iter().find(|(ours, _)| begins(param, ours))
    {
        error.param = Some(format!("{theirs}{}", &param[ours.len()..]));
    }
    error
}

/// Whether a path is that of a field, or of something in it.
fn begins(path: &str, field: &str) -> bool {
    path.strip_prefix(field)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_renamed_with_what_is_in_it() {
        let names = [
            ("response_format", "text.format"),
            ("stop", "stop_sequences"),
        ];
        let renamed = |param: &str| rename(ApiError::invalid(param, ""), &names).param.unwrap();
        assert_eq!(
            renamed("response_format.json_schema"),
            "text.format.json_schema"
        );
        assert_eq!(renamed("stop[3]"), "stop_sequences[3]");
        assert_eq!(renamed("stop_token_ids"), "stop_token_ids");
        assert_eq!(renamed("seed"), "seed");
    }
}
