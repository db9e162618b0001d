//! Tokenizers and chat templates against what other programs make of them: the tokenizer that ships, and real ones of ../shared,
//! which are skipped loudly without it.

mod common;

use std::sync::Arc;

use std::path::Path;

use common::{difference, pieces, pieces_after, vectors};
use serde_json::{Value, json};
use sparamx_engine::{ChatTemplate, Conversation, EngineError, Message, Tokenizer};
use sparamx_testkit::shared;

fn load(folder: &str) -> Option<Arc<Tokenizer>> {
    let dir = shared(&format!("tokenizers/{folder}"))?;
    Some(Arc::new(Tokenizer::from_dir(&dir, 200_000).unwrap()))
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

/// What the Python package `tokenizers` makes of texts with the tokenizer that ships.
#[test]
fn the_shipped_tokenizer_gives_the_ids_of_the_python_package() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-5m");
    let tokenizer = Arc::new(Tokenizer::from_dir(&dir, 4096).unwrap());
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), &[0][..]));
    assert_eq!(tokenizer.encode_prompt("").unwrap(), [1]);
    let cases: [(&str, &[u32]); 8] = [
        ("Once upon a time", &[409, 436, 260, 384]),
        (
            "Lily's mom said, \"No!\"",
            &[676, 389, 370, 338, 13, 346, 1285, 468],
        ),
        (
            "  two  spaces\n\nand lines ",
            &[222, 832, 222, 2947, 84, 200, 200, 840, 277, 3228, 222],
        ),
        (
            "naïve café – 3½",
            &[
                743, 129, 109, 335, 491, 71, 129, 104, 222, 754, 243, 1734, 128, 123,
            ],
        ),
        (
            "日本語 🦀 test",
            &[
                164, 247, 100, 164, 252, 107, 166, 105, 254, 222, 174, 255, 101, 224, 2492,
            ],
        ),
        ("<|endoftext|>a", &[0, 66]),
        ("1234567890", &[18, 19, 20, 21, 22, 23, 24, 25, 26, 17]),
        ("don't they'll I'm", &[3796, 431, 368, 1578, 350, 920]),
    ];
    for (text, ids) in cases {
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{text:?}");
        let shown = text.replace("<|endoftext|>", "");
        assert_eq!(tokenizer.decode(ids).unwrap(), shown);
        assert_eq!(pieces(&tokenizer, ids).concat(), shown);
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

/// `fixtures/chat/expected.json` was rendered by Jinja2; `generate.py` beside it says how.
#[test]
fn chat_templates_render_as_in_jinja2() {
    let expected: Value =
        serde_json::from_str(include_str!("fixtures/chat/expected.json")).unwrap();
    let want = expected["rendered"].as_object().unwrap();
    let mut rendered = 0;
    for (name, template) in templates() {
        for (about, messages) in expected["conversations"].as_object().unwrap() {
            let messages: Vec<Message> = messages.as_array().unwrap().iter().map(message).collect();
            for prompt in [false, true] {
                let case = format!("{name} {about} prompt={prompt}").to_lowercase();
                assert_case(&case, &want[&case], || template.render(&messages, prompt));
                rendered += 1;
            }
        }
    }
    assert!(
        rendered == want.len() || rendered == 0,
        "{rendered} of {}",
        want.len()
    );
}

/// `fixtures/chat/tools.json` was rendered by Jinja2: a conversation with a call, for the templates that take tools.
#[test]
fn calls_render_as_in_jinja2() {
    let expected: Value = serde_json::from_str(include_str!("fixtures/chat/tools.json")).unwrap();
    let conversation = Conversation {
        messages: expected["messages"].as_array().unwrap().clone(),
        tools: Some(expected["tools"].clone()),
        add_generation_prompt: true,
        ..Conversation::default()
    };
    let want = expected["rendered"].as_object().unwrap();
    let mut rendered = 0;
    for (name, template) in templates() {
        if let Some(want) = want.get(&name) {
            // Jinja2 escapes for HTML what is added to a text that is marked `safe`, which two templates do and no model was
            // trained on; here it is left as it is.
            let want = Value::from(want.as_str().unwrap().replace("&#34;", "\""));
            assert_case(&name, &want, || template.render_conversation(&conversation));
            rendered += 1;
        }
    }
    assert!(rendered == want.len() || rendered == 0, "{rendered}");
}

/// A prompt that goes on with the last message ends with its text, whatever the template puts after it.
#[test]
fn a_final_message_is_continued_in_real_templates() {
    for (name, template) in templates() {
        let conversation = |last: &str| Conversation {
            messages: vec![
                json!({"role": "user", "content": "How many legs has a spider?"}),
                json!({"role": "assistant", "content": last}),
            ],
            continue_final_message: true,
            ..Conversation::default()
        };
        let prompt = |last| template.render_conversation(&conversation(last));
        let text = prompt("Eight, or").unwrap();
        assert!(text.ends_with("Eight, or"), "{name}: {text}");
        assert_eq!(text.matches("Eight").count(), 1, "{name}: {text}");
        assert!(!text.contains("CONTINUE"), "{name}: {text}");
        let text = prompt("Eight, or ").unwrap();
        assert!(text.trim_end().ends_with("Eight, or"), "{name}: {text}");
        let error = prompt(" ").unwrap_err().to_string();
        assert!(error.contains("continue_final_message"), "{error}");
    }
}

/// The templates of real models: files, and fields of `tokenizer_config.json`.
fn templates() -> Vec<(String, ChatTemplate)> {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let mut found = Vec::new();
    for folder in ["chat-templates", "mistral", "phi-3", "qwen2.5", "qwen3"] {
        let Some(dir) = shared(&format!("tokenizers/{folder}")) else {
            return Vec::new();
        };
        let files = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        for path in files {
            let source = match path.file_name().unwrap().to_str().unwrap() {
                name if name.ends_with(".jinja") => std::fs::read_to_string(&path).unwrap(),
                "tokenizer_config.json" => {
                    let config = std::fs::read_to_string(&path).unwrap();
                    let config: Value = serde_json::from_str(&config).unwrap();
                    config["chat_template"].as_str().unwrap().to_owned()
                }
                _ => continue,
            };
            let name = match path.extension().is_some_and(|e| e == "json") {
                true => folder.to_owned(),
                false => path.file_name().unwrap().to_str().unwrap().to_owned(),
            };
            found.push((name, ChatTemplate::new(&path, &source, tokens).unwrap()));
        }
    }
    found
}

fn message(json: &Value) -> Message {
    Message::new(
        json["role"].as_str().unwrap(),
        json["content"].as_str().unwrap(),
    )
}

fn assert_case(case: &str, expected: &Value, render: impl FnOnce() -> Result<String, EngineError>) {
    // Some templates write the date. It may change while the test runs.
    let today = || {
        let date = ChatTemplate::new(
            Path::new("date"),
            "{{ strftime_now('%d %b %Y') }}",
            [("", "")],
        );
        date.unwrap().render(&[], false).unwrap()
    };
    let before = today();
    let result = render();
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
