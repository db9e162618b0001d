//! Real tokenizers and chat templates against vectors made by other programs. Needs ../shared; skips loudly without.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{difference, pieces, pieces_after, shared, vectors};
use serde_json::Value;
use sparamx_engine::{ChatTemplate, EngineError, Message, Tokenizer};

fn load(folder: &str) -> Option<Tokenizer> {
    let dir = shared(&format!("tokenizers/{folder}"))?;
    Some(Tokenizer::from_dir(&dir, 200_000).unwrap())
}

/// llama.cpp's vectors: texts between separators, a line of ids for each, without BOS.
#[test]
fn llama_cpp_vectors() {
    for (folder, name) in [
        ("llama2", "llama-spm"),
        ("llama3", "llama-bpe"),
        ("phi-3", "phi-3"),
        ("qwen2.5", "qwen2"),
    ] {
        let Some(tokenizer) = load(folder) else {
            return;
        };
        for (text, want) in vectors(name) {
            assert_eq!(
                tokenizer.encode(&text, false).unwrap(),
                want,
                "{name}: {text:?}"
            );
            assert_eq!(
                pieces(&tokenizer, &want).concat(),
                tokenizer.decode(&want).unwrap()
            );
            for start in (0..=want.len()).step_by(1 + want.len() / 8) {
                assert_eq!(
                    pieces_after(&tokenizer, &want[..start], &want[start..]).concat(),
                    difference(&tokenizer, &want, start),
                    "{name}: {text:?} from {start}"
                );
            }
            assert!(tokenizer.check_room(&text, want.len() + 1).is_ok());
        }
        assert!(
            tokenizer
                .check_room(&"word ".repeat(1 << 20), 4096)
                .is_err()
        );
    }
}

/// What Transformers makes of texts in many scripts.
#[test]
fn transformers_baselines() {
    for (folder, file) in [
        ("qwen2.5", "Qwen__Qwen2.5-0.5B"),
        ("llama2", "TinyLlama__TinyLlama-1.1B-Chat-v1.0"),
        ("qwen2.5", "qwen2_5_multilingual"),
        ("llama2", "tinyllama_multilingual"),
    ] {
        let Some(tokenizer) = load(folder) else {
            return;
        };
        let path = shared(&format!("tokenizers/conformance/{file}.json")).unwrap();
        let baseline: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let entries: Vec<&Value> = match &baseline["entries"] {
            Value::Array(list) => list.iter().collect(),
            named => named.as_object().unwrap().values().collect(),
        };
        assert!(entries.len() >= 30);
        for entry in entries {
            let ids: Vec<u32> = serde_json::from_value(entry["input_ids"].clone()).unwrap();
            let text = entry["decoded_skip_special"].as_str().unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{file}");
            assert_eq!(pieces(&tokenizer, &ids).concat(), text, "{file}");
            assert_eq!(
                tokenizer.encode(text, true).unwrap(),
                ids,
                "{file}: {text:?}"
            );
        }
    }
}

#[test]
fn start_and_end_of_real_tokenizers() {
    for (folder, bos, eos) in [
        ("llama2", Some(1), &[2][..]),
        ("phi-3", Some(1), &[32000]),
        ("qwen2.5", None, &[151_645]),
    ] {
        let Some(tokenizer) = load(folder) else {
            return;
        };
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (bos, eos), "{folder}");
        assert_eq!(
            tokenizer.encode_prompt("").ok(),
            bos.map(|bos| vec![bos]),
            "{folder}"
        );
    }
}

fn conversation(system: bool) -> Vec<Message> {
    let mut messages = vec![
        Message::new("user", "How many legs has a spider?"),
        Message::new("assistant", "Eight. <b>Insects & co.</b> have six 🐛."),
        Message::new("user", " And a café's chair?\n"),
    ];
    if system {
        messages.insert(0, Message::new("system", "Answer in one line."));
    }
    messages
}

/// `fixtures/chat/expected.json` was rendered by Jinja2; `generate.py` beside it says how.
#[test]
fn chat_templates_render_as_in_jinja2() {
    let expected = include_str!("fixtures/chat/expected.json");
    let expected: BTreeMap<String, Value> = serde_json::from_str(expected).unwrap();
    let mut rendered = 0;
    for folder in ["tokenizers/chat-templates", "tokenizers/mistral"] {
        let Some(dir) = shared(folder) else { return };
        let files = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        for path in files.filter(|path| path.extension().is_some_and(|e| e == "jinja")) {
            for (system, prompt) in [(false, false), (false, true), (true, false), (true, true)] {
                let name = path.file_name().unwrap().to_str().unwrap();
                let case = format!("{name} system={system} prompt={prompt}").to_lowercase();
                assert_case(
                    &case,
                    &path,
                    &conversation(system),
                    prompt,
                    &expected[&case],
                );
                rendered += 1;
            }
        }
    }
    assert_eq!(rendered, expected.len());
}

fn assert_case(case: &str, path: &Path, messages: &[Message], prompt: bool, expected: &Value) {
    let source = std::fs::read_to_string(path).unwrap();
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let template = ChatTemplate::new(path, &source, tokens).unwrap();
    // Some templates write the date. It may change while the test runs.
    let today = || {
        let date = ChatTemplate::new(path, "{{ strftime_now('%d %b %Y') }}", tokens).unwrap();
        date.render(&[], false).unwrap()
    };
    let before = today();
    let result = template.render(messages, prompt);
    let Some(want) = expected.as_str() else {
        let refused = expected["refused"].as_str().unwrap();
        let error = result.unwrap_err();
        assert!(
            matches!(&error, EngineError::Template { line: Some(_), .. }),
            "{case}: {error:?}"
        );
        return assert!(error.to_string().ends_with(refused), "{case}: {error}");
    };
    let text = result.unwrap();
    let dated = |date: &str| want.replace("@%d %b %Y@", date);
    assert!(
        text == dated(&before) || text == dated(&today()),
        "{case}:\n{text}\nwant:\n{want}"
    );
}
