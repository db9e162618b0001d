//! Snippets of templates against what Jinja makes of them, set up as Transformers does.

use std::path::Path;

use serde_json::Value;

use super::{ChatTemplate, Message};

/// `snippets.json` was rendered by Jinja2; `generate.py` beside it says how. What Jinja2 refuses is null.
#[test]
fn snippets_render_as_in_jinja() {
    let fixture = include_str!("../../tests/fixtures/chat/snippets.json");
    let fixture: Value = serde_json::from_str(fixture).unwrap();
    let messages = fixture["messages"].as_array().unwrap().iter();
    let text = |message: &Value, field: &str| message[field].as_str().unwrap().to_owned();
    let messages: Vec<Message> = messages
        .map(|message| Message::new(text(message, "role"), text(message, "content")))
        .collect();
    let render = |source: &str| {
        let none: [(&str, &str); 0] = [];
        ChatTemplate::new(Path::new("snippet"), source, none)?
            .with_variables(fixture["variables"].as_object().unwrap().clone())
            .render(&messages, true)
    };
    let differing = |list: &str| {
        let mut differ = Vec::new();
        for snippet in fixture[list].as_array().unwrap() {
            let (source, want) = (snippet[0].as_str().unwrap(), &snippet[1]);
            let got = render(source);
            if got.as_ref().ok().map(String::as_str) != want.as_str() {
                differ.push(format!("{source}\n  got  {got:?}\n  want {want}"));
            }
        }
        differ
    };
    let differ = differing("snippets");
    assert!(
        differ.is_empty(),
        "{} differ:\n{}",
        differ.len(),
        differ.join("\n")
    );
    assert!(fixture["snippets"].as_array().unwrap().len() > 600);
    // What no longer differs belongs to the others.
    assert_eq!(
        differing("known").len(),
        fixture["known"].as_array().unwrap().len()
    );
}
