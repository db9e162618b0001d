//! What `run` makes of its arguments: which is the model, what is the prompt, and what the chat template gets.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use common::{fails, json, model, output, run, sparamx, stdout, text};
use tempfile::TempDir;

/// A model whose template writes the first letter of each role, and a mark for a variable.
fn with_template(template: &str) -> TempDir {
    let root = model::made();
    fs::write(root.path().join("chat_template.jinja"), template).expect("a file");
    root
}

const ROLES: &str = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}";

/// Ids of the model are bytes plus two.
#[track_caller]
fn assert_prompt(done: &Output, want: &str) {
    let answer = json(done);
    let ids = answer["prompt_ids"].as_array().expect("a list").iter();
    let ids = ids.map(|id| id.as_u64().expect("an id"));
    let bytes: Vec<u8> = ids.filter(|&id| id > 1).map(|id| (id - 2) as u8).collect();
    assert_eq!(String::from_utf8_lossy(&bytes), want);
}

fn ask(directory: &Path, args: &[&str]) -> Output {
    let fixed = ["run", text(directory), "-n", "1", "--json"];
    output(sparamx().args(fixed).args(args))
}

fn stderr(done: &Output) -> String {
    String::from_utf8_lossy(&done.stderr).into_owned()
}

#[test]
fn a_system_prompt_comes_first() {
    let root = with_template(ROLES);
    assert_prompt(
        &ask(root.path(), &["Hi", "--system", "Be brief"]),
        "s:Be brief;u:Hi;",
    );
    assert_prompt(&ask(root.path(), &["Hi"]), "u:Hi;");
    // A base model has no place for it.
    fails(
        &ask(&model::directory(), &["Hi", "--system", "x"]),
        2,
        &["chat template", "system"],
    );
    let deaf =
        with_template("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}");
    let done = ask(deaf.path(), &["Hi", "--system", "x"]);
    assert!(
        stderr(&done)
            .contains("warning: the chat template of this model leaves the system prompt out")
    );
    assert_prompt(&done, "Hi");
    let strict = with_template(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x",
    );
    fails(
        &ask(strict.path(), &["Hi", "--system", "x"]),
        1,
        &["takes no system prompt", "no system"],
    );
}

#[test]
fn templates_have_variables() {
    let root = with_template("{{ messages[0].content }}{% if thinking is false %}-off{% endif %}");
    let with = |variables| ask(root.path(), &["Hi", "--chat-template-kwargs", variables]);
    assert_prompt(&with(r#"{"thinking": false}"#), "Hi-off");
    assert_prompt(&with(r#"{"thinking": true}"#), "Hi");
    let misspelt = with(r#"{"thinkin_": false}"#);
    assert!(stderr(&misspelt).contains("does not mention 'thinkin_'"));
    for (bad, word) in [
        ("[1]", "an object is needed"),
        ("{", "not JSON"),
        (r#"{"messages": []}"#, "the conversation itself"),
    ] {
        fails(&with(bad), 2, &["--chat-template-kwargs", word]);
    }
    let none = ask(&model::directory(), &["Hi", "--chat-template-kwargs", "{}"]);
    fails(&none, 2, &["no chat template", "--chat-template"]);
}

#[test]
fn a_template_comes_from_a_file() {
    let root = TempDir::new().expect("a directory");
    let file = root.path().join("own.jinja");
    fs::write(&file, "{{ bos_token }}own {{ messages[0].content }}").expect("a file");
    assert_prompt(
        &ask(&model::directory(), &["Hi", "--chat-template", text(&file)]),
        "own Hi",
    );
    let absent = ask(
        &model::directory(),
        &["Hi", "--chat-template", "./absent.jinja"],
    );
    fails(&absent, 1, &["./absent.jinja"]);
}

#[test]
fn a_prompt_may_look_like_an_option() {
    let directory = model::directory();
    assert_prompt(&ask(&directory, &["-5 degrees are"]), "-5 degrees are");
    assert_prompt(&ask(&directory, &["--prompt", "-v"]), "-v");
    assert_prompt(&ask(&directory, &["-p", "word"]), "word");
    // What is no text is a mistake.
    fails(
        &ask(&directory, &["--jsno"]),
        2,
        &["'--jsno'", "no such option", "--prompt"],
    );
    fails(
        &ask(&directory, &["a text", "-p", "another"]),
        2,
        &["cannot be used with"],
    );
}

#[test]
fn a_mistyped_model_is_no_prompt() {
    fails(
        &run(&["run", "llama-50"]),
        2,
        &["'llama-50' is no directory", "--prompt 'llama-50'"],
    );
    fails(&run(&["run", ""]), 2, &["no directory"]);
    let done = output(sparamx().args(["run", "-p", "Hello", "-n", "1"]));
    assert!(stdout(&done).starts_with("Hello"));
    assert!(stderr(&done).starts_with("model: ") && stderr(&done).contains("stories-5m-50"));
}

#[test]
fn an_address_is_a_model_or_says_what_to_type() {
    let file = "https://huggingface.co/org/name/resolve/main/model.safetensors";
    fails(&run(&["run", file, "Hi"]), 1, &["org/name@revision"]);
    fails(
        &run(&["run", "https://example.com/org/name", "Hi"]),
        1,
        &["org/name", "HF_ENDPOINT"],
    );
    // It gets as far as the hub, which no test reaches.
    let error = fails(
        &run(&["run", "https://huggingface.co/org/name", "Hi"]),
        1,
        &["org/name"],
    );
    assert!(
        !error.contains("https://huggingface.co/org/name:"),
        "{error}"
    );
}
