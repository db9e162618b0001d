//! Texts of all formats through the parser, and grammars of tools through a model.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use proptest::prelude::*;
use serde_json::{Value, json};
use sparamx_cpu::Cpu;
use sparamx_engine::{
    Event, GenerateParams, GrammarCompiler, GrammarSpec, Host, HostOptions, LogitsProcessor,
    Request, SamplingParams,
};
use sparamx_kernels::Runtime;

use super::*;

fn tools() -> Vec<ToolDefinition> {
    let tool = |name: &str, parameters| ToolDefinition {
        name: name.to_owned(),
        parameters: Some(parameters),
        ..ToolDefinition::default()
    };
    let weather = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 8},
            "unit": {"enum": ["C", "F"], "type": "string"},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "warm": {"type": "boolean"},
            "spots": {"type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/spot"}}
        },
        "required": ["city", "days"],
        "additionalProperties": false,
        "$defs": {"spot": {"type": "object", "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}},
                           "required": ["x"], "additionalProperties": false}}
    });
    vec![
        tool("get_weather", weather),
        ToolDefinition {
            name: "now".to_owned(),
            ..ToolDefinition::default()
        },
    ]
}

fn config(format: Option<ToolFormat>) -> ParserConfig {
    ParserConfig {
        format,
        tools: tools().into(),
        ..ParserConfig::default()
    }
}

/// What a text is split into: content, reasoning, calls with their arguments.
#[derive(Debug, Default, PartialEq)]
struct Split {
    content: String,
    reasoning: String,
    calls: Vec<(String, String)>,
    ids: Vec<String>,
}

impl Split {
    fn add(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            match piece {
                Piece::Content(text) => self.content += &text,
                Piece::Reasoning(text) => self.reasoning += &text,
                Piece::CallStart { name, id } => {
                    self.calls.push((name, String::new()));
                    self.ids.push(id);
                }
                Piece::CallArguments(text) => self.calls.last_mut().unwrap().1 += &text,
            }
        }
    }
}

/// The text cut into pieces of so many characters.
fn split(config: &ParserConfig, text: &str, cuts: impl Iterator<Item = usize>) -> Split {
    let mut parser = OutputParser::new(config.clone());
    let mut split = Split::default();
    let characters: Vec<char> = text.chars().collect();
    let mut rest = characters.as_slice();
    for cut in cuts {
        let (piece, after) = rest.split_at(cut.min(rest.len()));
        split.add(parser.push(&piece.iter().collect::<String>()));
        rest = after;
    }
    split.add(parser.push(&rest.iter().collect::<String>()));
    split.add(parser.finish());
    assert_eq!(parser.has_calls(), !split.calls.is_empty());
    split
}

#[track_caller]
fn assert_splits(config: &ParserConfig, text: &str, content: &str, calls: &[(&str, &str)]) {
    let got = split(config, text, std::iter::empty());
    let calls: Vec<(String, String)> = calls
        .iter()
        .map(|&(name, arguments)| (name.to_owned(), arguments.to_owned()))
        .collect();
    assert_eq!(
        (got.content.as_str(), &got.calls),
        (content, &calls),
        "{text}"
    );
    let mut slow = split(config, text, std::iter::repeat_n(1, text.len()));
    slow.ids = got.ids.clone();
    assert_eq!(slow, got, "{text}");
}

#[test]
fn many_blanks_cost_no_more_than_other_characters() {
    let config = |format, reasoning| ParserConfig {
        reasoning,
        ..config(Some(format))
    };
    let blanks = " \n".repeat(250_000);
    let call = "<tool_call>{\"name\": \"now\", \"arguments\": {}}";
    let xml = "<tool_call>\n<function=get_weather>";
    let value = "<parameter=city>\na\n</parameter>";
    // Each would take minutes if every blank cost as much as there are before it.
    for (format, reasoning, before, after, calls) in [
        (ToolFormat::Hermes, Reasoning::Off, call, "</tool_call>", 1),
        (ToolFormat::Hermes, Reasoning::Off, "", "x", 0),
        (ToolFormat::Hermes, Reasoning::Possible, "", "<think>x", 0),
        (ToolFormat::Hermes, Reasoning::Opened, "a", "</think>x", 0),
        (ToolFormat::Pythonic, Reasoning::Off, "", "[now()]", 0),
        (
            ToolFormat::Qwen3Coder,
            Reasoning::Off,
            "<tool_call>",
            "<function=now>",
            1,
        ),
        (
            ToolFormat::Qwen3Coder,
            Reasoning::Off,
            xml,
            "<parameter=city>\na",
            1,
        ),
        (
            ToolFormat::Qwen3Coder,
            Reasoning::Off,
            &format!("{xml}{value}"),
            "b",
            1,
        ),
        (
            ToolFormat::Qwen3Coder,
            Reasoning::Off,
            &format!("{xml}{value}</function>"),
            "b",
            1,
        ),
    ] {
        let text = format!("{before}{blanks}{after}");
        let config = config(format, reasoning);
        let got = split(&config, &text, std::iter::empty());
        assert_eq!(got.calls.len(), calls, "{format:?} {before} {after}");
        let mut slow = split(&config, &text, std::iter::repeat_n(1, text.len()));
        slow.ids = got.ids.clone();
        assert!(slow == got, "{format:?} {before} {after}");
    }
    let few = " ".repeat(64);
    let thought = config(ToolFormat::Hermes, Reasoning::Possible);
    let got = split(
        &thought,
        &format!("{few}<think>a</think>b"),
        std::iter::empty(),
    );
    assert_eq!((got.reasoning.as_str(), got.content.as_str()), ("a", "b"));
}

#[test]
fn hermes() {
    let config = config(Some(ToolFormat::Hermes));
    let call = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln }\\\"\", \"days\": 1}}\n</tool_call>";
    let arguments = "{\"city\": \"Köln }\\\"\", \"days\": 1}";
    assert_splits(&config, call, "", &[("get_weather", arguments)]);
    let two = format!("I look. <b>\n{call}\n{call}\n");
    let calls = [("get_weather", arguments), ("get_weather", arguments)];
    assert_splits(&config, &two, "I look. <b>", &calls);
    assert_splits(
        &config,
        &format!("{call} Well? x  y "),
        "Well? x  y",
        &calls[..1],
    );
    for (text, content, calls) in [
        ("no call, <tool_", "no call, <tool_", &[][..]),
        (" \n", " \n", &[]),
        (
            "<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"f\"}</tool_call>",
            "",
            &[("f", "{\"a\": 1}")],
        ),
        (
            "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>",
            "",
            &[("f", "{\"a\": 1}")],
        ),
        (
            "<tool_call>{\"name\": \"f\"}</tool_call>",
            "",
            &[("f", "{}")],
        ),
        (
            "<tool_call>{\"name\": \"f\", \"arguments\": null}</tool_call>",
            "",
            &[("f", "{}")],
        ),
        (
            "<tool_call>{\"name\": \"f\", \"id\": 7 , \"arguments\": {}}</tool_call>",
            "",
            &[("f", "{}")],
        ),
        // What is no call is content.
        (
            "a <tool_call>none</tool_call>",
            "a <tool_call>none</tool_call>",
            &[],
        ),
        (
            "<tool_call>{\"name\": 5}</tool_call>",
            "<tool_call>{\"name\": 5}</tool_call>",
            &[],
        ),
        ("<tool_call>\n{\"na", "<tool_call>\n{\"na", &[]),
        // What breaks off keeps what is there.
        (
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"b",
            "",
            &[("f", "{\"a\": \"b")],
        ),
        (
            "<tool_call>{\"name\": \"f\", \"arguments\": {}}",
            "",
            &[("f", "{}")],
        ),
        (
            "<tool_call>{\"name\": \"f\", \"arguments\": {}}<tool_call>{\"name\": \"g\"}",
            "",
            &[("f", "{}"), ("g", "{}")],
        ),
    ] {
        assert_splits(&config, text, content, calls);
    }
}

#[test]
fn llama3_json() {
    let config = config(Some(ToolFormat::Llama3Json));
    let call = "{\"name\": \"now\", \"parameters\": {\"a\": [1, {}]}}";
    let arguments = "{\"a\": [1, {}]}";
    assert_splits(&config, call, "", &[("now", arguments)]);
    let two = [("now", arguments), ("now", arguments)];
    assert_splits(&config, &format!("\n{call}; {call}"), "", &two);
    assert_splits(&config, &format!("<|python_tag|>{call}"), "", &two[..1]);
    for content in [
        "{\"name\": \"Ann\", \"age\": 3}",
        "{\"name\": \"now\", \"age\": 3} and more",
        "The call is {\"name\": \"now\", \"parameters\": {}}",
        "  {broken",
        "<|python_tag|>print(1)",
    ] {
        assert_splits(&config, content, content, &[]);
    }
}

#[test]
fn mistral() {
    let config = config(Some(ToolFormat::Mistral));
    let old = "[TOOL_CALLS] [{\"name\": \"now\", \"arguments\": {\"a\": \"]\"}, \"id\": \"123456789\"}, \
               {\"name\": \"x\", \"arguments\": {}}]";
    assert_splits(&config, old, "", &[("now", "{\"a\": \"]\"}"), ("x", "{}")]);
    let new = "So: [TOOL_CALLS]now[ARGS]{\"a\": {}}[TOOL_CALLS]x[CALL_ID]123456789[ARGS]{}";
    assert_splits(&config, new, "So:", &[("now", "{\"a\": {}}"), ("x", "{}")]);
    assert_splits(
        &config,
        "[TOOL_CALLS]now {\"a\": 1}",
        "",
        &[("now", "{\"a\": 1}")],
    );
    assert_splits(
        &config,
        "[TOOL_CALLS]{\"name\": \"now\", \"arguments\": {}}",
        "",
        &[("now", "{}")],
    );
    let cut = "[TOOL_CALLS][{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"x";
    assert_splits(&config, cut, "", &[("now", "{}")]);
    for content in [
        "[1] [TOOL_CALL",
        "[TOOL_CALLS]of the usual kind",
        "[TOOL_CALLS][7]",
    ] {
        assert_splits(&config, content, content, &[]);
    }
    for id in split(&config, old, std::iter::empty()).ids {
        assert!(
            id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric()),
            "{id}"
        );
    }
}

#[test]
fn qwen3_coder() {
    let config = config(Some(ToolFormat::Qwen3Coder));
    let call = "<tool_call>\n<function=get_weather>\n<parameter=city>\n\"Köln\"\n</parameter>\n<parameter=days>\n3\n</parameter>\n\
                <parameter=warm>\nTrue\n</parameter>\n<parameter=spots>\n[{\"x\": 1}]\n</parameter>\n</function>\n</tool_call>";
    let arguments =
        "{\"city\": \"\\\"Köln\\\"\", \"days\": 3, \"warm\": true, \"spots\": [{\"x\":1}]}";
    assert_splits(&config, call, "", &[("get_weather", arguments)]);
    let two = [("get_weather", arguments), ("now", "{}")];
    let now = "<tool_call>\n<function=now>\n</function>\n</tool_call>";
    assert_splits(&config, &format!("First\n\n{call}\n{now}"), "First", &two);
    assert_splits(&config, "<function=now></function> done", "done", &two[1..]);
    // What a value holds may look like its end.
    let code = "<tool_call><function=write><parameter=code>\na\n</parameter>\nb\n\n</parameter>\n</function></tool_call>";
    let arguments = "{\"code\": \"a\\n</parameter>\\nb\\n\"}";
    assert_splits(&config, code, "", &[("write", arguments)]);
    let whole = "<tool_call><function=get_weather><parameter=days>\n</parameter>4\n</parameter></function></tool_call>";
    assert_splits(
        &config,
        whole,
        "",
        &[("get_weather", "{\"days\": \"</parameter>4\"}")],
    );
    // What breaks off is closed.
    let cut = "<tool_call><function=write><parameter=code>\nab";
    assert_splits(&config, cut, "", &[("write", "{\"code\": \"ab\"}")]);
    let cut = "<tool_call><function=get_weather><parameter=days>\n5";
    assert_splits(&config, cut, "", &[("get_weather", "{\"days\": 5}")]);
    assert_splits(
        &config,
        "<tool_call><function=now><para",
        "",
        &[("now", "{}")],
    );
    for content in [
        "<tool_call>none",
        "a <function=",
        "<tool_call>\n<function=now",
    ] {
        assert_splits(&config, content, content, &[]);
    }
}

#[test]
fn pythonic() {
    let config = config(Some(ToolFormat::Pythonic));
    let call = "[get_weather(city='Kö, (ln', days=3, warm=True, spots=[{'x': 1}]), now()]";
    let arguments = "{\"city\": \"Kö, (ln\", \"days\": 3, \"warm\": true, \"spots\": [{\"x\":1}]}";
    let calls = [("get_weather", arguments), ("now", "{}")];
    assert_splits(&config, call, "", &calls);
    assert_splits(
        &config,
        &format!("<|python_start|>{call}<|python_end|>"),
        "",
        &calls,
    );
    assert_splits(&config, "[now()] So.", "So.", &[("now", "{}")]);
    assert_splits(
        &config,
        "[now(), now( )]",
        "",
        &[("now", "{}"), ("now", "{}")],
    );
    assert_splits(
        &config,
        "[now(a = \"b\\\"\", c=f(x))]",
        "",
        &[("now", "{\"a\": \"b\\\"\", \"c\": \"f(x)\"}")],
    );
    assert_splits(&config, "[now(a=1, b=[1,", "", &[("now", "{\"a\": 1}")]);
    for content in ["[1, 2]", "[see(this)]", "[", "Call [now()]", "now()"] {
        assert_splits(&config, content, content, &[]);
    }
}

#[test]
fn forced_calls_without_a_format() {
    let mut config = config(None);
    let call = "{\"name\": \"now\", \"arguments\": {\"a\": 1}}";
    assert_splits(&config, call, call, &[]);
    config.forced = true;
    assert_splits(&config, call, "", &[("now", "{\"a\": 1}")]);
    let two = [("now", "{\"a\": 1}"), ("now", "{\"a\": 1}")];
    assert_splits(&config, &format!("[{call}, {call}]"), "", &two);
    let id = &split(&config, call, std::iter::empty()).ids[0];
    assert!(id.starts_with("call_") && id.len() == 29, "{id}");
}

#[test]
fn reasoning_is_split_off() {
    let with = |reasoning| ParserConfig {
        reasoning,
        ..config(Some(ToolFormat::Hermes))
    };
    let call = "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>";
    for (reasoning, text, thought, content, calls) in [
        (
            Reasoning::Opened,
            "\nHm. \n</think>\n\nYes. ",
            "Hm.",
            "Yes. ",
            0,
        ),
        (
            Reasoning::Possible,
            "\n<think>\nHm.\n\nSo\n</think>\n\nYes.",
            "Hm.\n\nSo",
            "Yes.",
            0,
        ),
        (Reasoning::Possible, "<th is all", "", "<th is all", 0),
        (
            Reasoning::Possible,
            " plain </think> text",
            "",
            " plain </think> text",
            0,
        ),
        (
            Reasoning::Off,
            "<think>a</think>",
            "",
            "<think>a</think>",
            0,
        ),
        (
            Reasoning::Opened,
            "never closed </thin",
            "never closed </thin",
            "",
            0,
        ),
        (Reasoning::Possible, "<think>", "", "", 0),
        // A call while thinking is none.
        (
            Reasoning::Opened,
            "<tool_call>? no</think>",
            "<tool_call>? no",
            "",
            0,
        ),
    ] {
        let got = split(&with(reasoning), text, std::iter::empty());
        assert_eq!(
            (
                got.reasoning.as_str(),
                got.content.as_str(),
                got.calls.len()
            ),
            (thought, content, calls),
            "{text}"
        );
        let slow = split(&with(reasoning), text, std::iter::repeat_n(1, text.len()));
        assert_eq!(slow, got, "{text}");
    }
    let text = format!("Hm</think>\n\n{call}");
    let got = split(&with(Reasoning::Opened), &text, std::iter::empty());
    assert_eq!(
        (
            got.reasoning.as_str(),
            got.content.as_str(),
            got.calls.len()
        ),
        ("Hm", "", 1)
    );
}

#[test]
fn text_is_held_back_no_longer_than_it_must_be() {
    let mut parser = OutputParser::new(config(Some(ToolFormat::Hermes)));
    let content = |text: &str| vec![Piece::Content(text.to_owned())];
    assert_eq!(parser.push("a"), content("a"));
    assert_eq!(parser.push(" <"), []);
    assert_eq!(parser.push("b <tool_cal"), content(" <b"));
    assert_eq!(parser.push("m"), content(" <tool_calm"));
    let pieces = parser.push("<tool_call>{\"name\": \"now\", \"arguments\": {\"a");
    assert!(matches!(&pieces[0], Piece::CallStart { name, .. } if name == "now"));
    assert_eq!(pieces[1..], [Piece::CallArguments("{\"a".to_owned())]);
    let more = Piece::CallArguments("\": 1".to_owned());
    assert_eq!(parser.push("\": 1"), [more]);
}

/// Beginnings of texts in all formats, ends of them, and what is between.
fn soup() -> impl Strategy<Value = String> {
    let parts = [
        "<tool_call>",
        "</tool_call>",
        "\n",
        " ",
        "{\"name\": \"now\", ",
        "\"arguments\": ",
        "\"parameters\": ",
        "{\"a\": \"é}\"}",
        "}",
        "{",
        "[TOOL_CALLS]",
        "[ARGS]",
        "now",
        "[",
        "]",
        ", ",
        ";",
        "<function=get_weather>",
        "<parameter=city>",
        "<parameter=days>",
        "</parameter>",
        "</function>",
        "12",
        "[now(",
        "get_weather(city='x', ",
        "a=",
        ")",
        "'",
        "\"",
        "\\",
        "<|python_tag|>",
        "<think>",
        "</think>",
        "🦀",
        "text",
    ];
    let words = prop::collection::vec(prop::sample::select(parts.to_vec()), 0..25);
    words.prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn any_cut_of_a_text_gives_the_same(
        text in soup(),
        cuts in prop::collection::vec(0usize..6, 0..60),
        format in prop::sample::select(ToolFormat::ALL.map(Some).into_iter().chain([None]).collect::<Vec<_>>()),
        reasoning in prop::sample::select(vec![Reasoning::Off, Reasoning::Possible, Reasoning::Opened]),
        forced: bool,
    ) {
        let config = ParserConfig { forced, reasoning, ..config(format) };
        let whole = split(&config, &text, std::iter::empty());
        let mut parts = split(&config, &text, cuts.into_iter());
        prop_assert_eq!(parts.ids.len(), whole.ids.len());
        parts.ids.clone_from(&whole.ids);
        prop_assert_eq!(parts, whole);
    }

    #[test]
    fn text_without_marks_is_all_content(text in "[^<\\[{]{0,60}") {
        for format in ToolFormat::ALL {
            let got = split(&config(Some(format)), &text, std::iter::repeat_n(1, text.len()));
            prop_assert_eq!(&got.content, &text);
        }
    }
}

/// The model that ships, run by one thread for all tests.
fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| {
        let path = Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../models/stories-5m-50"
        ));
        let runtime = Arc::new(Runtime::new(Cpu::detect().unwrap(), 1).unwrap());
        let options = HostOptions {
            pin: false,
            ..HostOptions::default()
        };
        Host::open(path, runtime, options, &mut |_| ()).unwrap()
    })
}

fn compile(spec: &GrammarSpec) -> Box<dyn LogitsProcessor> {
    static COMPILER: OnceLock<GrammarCompiler> = OnceLock::new();
    let compiler =
        COMPILER.get_or_init(|| GrammarCompiler::new(&host().loaded().tokenizer).unwrap());
    compiler.compile(spec).unwrap().processor()
}

/// What the model writes in a grammar, piece by piece, with as many log probabilities as tokens.
fn generate(spec: &GrammarSpec, seed: u64) -> (Vec<String>, bool) {
    let request = Request {
        prompt: host()
            .loaded()
            .tokenizer
            .encode_prompt("Tom asked for the weather:")
            .unwrap(),
        params: GenerateParams {
            max_tokens: 380,
            sampling: SamplingParams {
                temperature: 1.0,
                seed,
                ..SamplingParams::default()
            },
            ..GenerateParams::default()
        },
        logprobs: Some(3),
        processor: Some(compile(spec)),
        ..Request::default()
    };
    let mut texts = Vec::new();
    for event in host().submit(request).unwrap() {
        match event {
            Event::Token { text, logprob, .. } => {
                assert!(logprob.unwrap().logprob <= 0.0);
                texts.push(text);
            }
            Event::Finished { text, result, .. } => {
                texts.push(text);
                let ended = result.unwrap() == sparamx_engine::FinishReason::Stop;
                return (texts, ended);
            }
            Event::Prompt { .. } => {}
        }
    }
    panic!("no last event")
}

/// Checks a call against [`tools`], by hand.
fn check(name: &str, arguments: &str) {
    let value: Value =
        serde_json::from_str(arguments).unwrap_or_else(|e| panic!("{e}: {arguments}"));
    let object = value.as_object().unwrap();
    if name == "now" {
        return assert!(object.is_empty(), "{arguments}");
    }
    assert_eq!(name, "get_weather");
    let city = value["city"].as_str().unwrap();
    assert!(city.chars().count() <= 8, "{city}");
    assert!(
        (1..=9).contains(&value["days"].as_i64().unwrap()),
        "{arguments}"
    );
    for (key, value) in object {
        match key.as_str() {
            "city" | "days" => {}
            "unit" => assert!(value == "C" || value == "F", "{arguments}"),
            "warm" => assert!(value.is_boolean(), "{arguments}"),
            "spots" => {
                let spots = value.as_array().unwrap();
                assert!(
                    spots.len() <= 2 && spots.iter().all(|spot| spot["x"].as_u64().unwrap() < 100)
                );
            }
            other => panic!("{other}: {arguments}"),
        }
    }
}

fn forcing<'a>(
    format: Option<ToolFormat>,
    tools: &'a [ToolDefinition],
    mode: &'a ToolMode,
) -> Forcing<'a> {
    Forcing {
        format,
        tools,
        mode,
        parallel: true,
        reasoning: Reasoning::Off,
        loose: false,
        special: &|_| None,
    }
}

#[test]
fn a_forced_call_parses_and_follows_its_schema() {
    let tools = tools();
    let mut several = 0;
    for format in ToolFormat::ALL.map(Some).into_iter().chain([None]) {
        for (mode, parallel) in [
            (ToolMode::Named("get_weather".to_owned()), true),
            (ToolMode::Required, false),
            (ToolMode::Required, true),
        ] {
            let spec = forced_grammar(&Forcing {
                parallel,
                ..forcing(format, &tools, &mode)
            })
            .unwrap();
            let config = ParserConfig {
                forced: true,
                ..config(format)
            };
            for seed in 0..2 {
                let (texts, ended) = generate(&spec, seed);
                let text = texts.concat();
                let whole = split(&config, &text, std::iter::empty());
                let mut streamed = Split::default();
                let mut parser = OutputParser::new(config.clone());
                texts
                    .iter()
                    .for_each(|text| streamed.add(parser.push(text)));
                streamed.add(parser.finish());
                streamed.ids.clone_from(&whole.ids);
                assert_eq!(streamed, whole, "{text}");
                assert_eq!(whole.content, "", "{format:?}: {text}");
                assert!(!whole.calls.is_empty(), "{format:?}: {text}");
                several += usize::from(whole.calls.len() > 1);
                if !parallel || mode != ToolMode::Required {
                    assert!(ended && whole.calls.len() == 1, "{format:?}: {text}");
                    assert!(mode == ToolMode::Required || whole.calls[0].0 == "get_weather");
                }
                let complete = whole.calls.len() - usize::from(!ended);
                for (name, arguments) in &whole.calls[..complete] {
                    check(name, arguments);
                }
            }
        }
    }
    assert!(several > 0);
}

#[test]
fn reasoning_comes_before_what_is_forced() {
    let tools = tools();
    let mode = ToolMode::Named("now".to_owned());
    for reasoning in [Reasoning::Opened, Reasoning::Possible] {
        let call = forced_grammar(&Forcing {
            reasoning,
            ..forcing(Some(ToolFormat::Hermes), &tools, &mode)
        });
        let answer = after_reasoning(
            GrammarSpec::Choice(vec!["yes".to_owned()]),
            reasoning,
            &|_| None,
        )
        .unwrap();
        for (spec, text) in [
            (
                call.unwrap(),
                "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
            ),
            (answer, "yes"),
        ] {
            let open = if reasoning == Reasoning::Possible {
                "<think>"
            } else {
                ""
            };
            let whole = format!("{open}\nHm, so.\n</think>\n\n{text}");
            assert!(accepts(&spec, &whole), "{reasoning:?} {text}");
            assert!(
                !accepts(&spec, &format!("{open}Hm</think>Hm{text}")),
                "{reasoning:?} {text}"
            );
            assert_eq!(
                accepts(&spec, text),
                reasoning == Reasoning::Possible,
                "{reasoning:?} {text}"
            );
        }
    }
    let spec = GrammarSpec::JsonObject;
    assert_eq!(
        after_reasoning(spec.clone(), Reasoning::Off, &|_| None).unwrap(),
        spec
    );
}

#[test]
fn choices_after_reasoning_are_checked_as_others_are() {
    let after = |choices: &[&str]| {
        let choices = choices.iter().map(|&text| text.to_owned()).collect();
        after_reasoning(GrammarSpec::Choice(choices), Reasoning::Opened, &|_| None)
    };
    let spec = after(&["", "yes"]).unwrap();
    for (text, is_choice) in [("", true), ("yes", true), ("no", false)] {
        assert_eq!(
            accepts(&spec, &format!("Hm</think>{text}")),
            is_choice,
            "{text}"
        );
    }
    for choices in [&[][..], &[""], &["x".repeat(40_000).as_str()]] {
        assert!(after(choices).is_err());
    }
}

/// Whether a text follows a grammar, and may end there.
fn accepts(spec: &GrammarSpec, text: &str) -> bool {
    let tokenizer = &host().loaded().tokenizer;
    let mut processor = compile(spec);
    let mut allows = |id: u32| {
        let mut row = vec![0.0; tokenizer.vocab_size()];
        processor.process(&mut row);
        let allowed = processor.failure().is_none() && row[id as usize].is_finite();
        if allowed {
            processor.accept(id);
        }
        allowed
    };
    let ids = tokenizer.encode(text, false).unwrap();
    ids.into_iter().all(&mut allows) && allows(tokenizer.eos()[0])
}

#[test]
fn free_texts_may_hold_calls_that_follow_their_schema() {
    let tools = tools();
    let mode = ToolMode::Auto;
    let good = |format: ToolFormat| match format {
        ToolFormat::Hermes => "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
        ToolFormat::Qwen3Coder => "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        _ => "[TOOL_CALLS][{\"name\": \"now\", \"arguments\": {}}]",
    };
    for format in [
        ToolFormat::Hermes,
        ToolFormat::Qwen3Coder,
        ToolFormat::Mistral,
    ] {
        let spec = |parallel| {
            forced_grammar(&Forcing {
                parallel,
                ..forcing(Some(format), &tools, &mode)
            })
            .unwrap()
        };
        let call = good(format);
        let bad = call.replace("now", "never");
        for (text, many, one) in [
            ("No call. <tool", true, true),
            ("", true, true),
            (&format!("Well,\n{call}"), true, true),
            (&format!("{call}\n{call} and so on"), true, false),
            (&format!("Well,\n{bad}"), false, false),
        ] {
            assert_eq!(accepts(&spec(true), text), many, "{format:?} {text}");
            assert_eq!(accepts(&spec(false), text), one, "{format:?} {text}");
        }
    }
    for format in [
        None,
        Some(ToolFormat::Llama3Json),
        Some(ToolFormat::Pythonic),
    ] {
        assert_eq!(forced_grammar(&forcing(format, &tools, &mode)), None);
    }
    assert_eq!(
        forced_grammar(&forcing(None, &[], &ToolMode::Required)),
        None
    );
    assert_eq!(
        forced_grammar(&forcing(None, &tools, &ToolMode::None)),
        None
    );
}

#[test]
fn schemas_that_are_refused_can_be_loose() {
    let odd = ToolDefinition {
        name: "f".to_owned(),
        parameters: Some(
            json!({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": true}}}),
        ),
        ..ToolDefinition::default()
    };
    let compiler = GrammarCompiler::new(&host().loaded().tokenizer).unwrap();
    for format in ToolFormat::ALL.map(Some).into_iter().chain([None]) {
        let spec = |loose, strict| {
            let tools = [ToolDefinition {
                strict,
                ..odd.clone()
            }];
            let forcing = Forcing {
                loose,
                ..forcing(format, &tools, &ToolMode::Required)
            };
            compiler.compile(&forced_grammar(&forcing).unwrap())
        };
        let error = spec(false, false).unwrap_err().to_string();
        assert!(error.contains("uniqueItems"), "{format:?}: {error}");
        spec(true, false).unwrap();
        assert!(spec(true, true).is_err(), "{format:?}");
    }
}

#[test]
fn texts_of_qwen3_coder_keep_what_their_schemas_say() {
    let strict = |schema: &Value, strict| ToolDefinition {
        name: "f".to_owned(),
        parameters: Some(json!({"type": "object", "properties": {"a": schema}, "required": ["a"]})),
        strict,
        ..ToolDefinition::default()
    };
    for (schema, loose, kept, broken) in [
        (json!({"enum": [1, 2]}), false, &["2"][..], &["3", "x"][..]),
        (
            json!({"enum": ["a", 1]}),
            false,
            &["\"a\"", "1"],
            &["2", "a"],
        ),
        (json!({"enum": ["a", null]}), false, &["a", "null"], &["b"]),
        (
            json!({"type": "string", "minLength": 2}),
            false,
            &["ab", "abc"],
            &["a"],
        ),
        (
            json!({"type": "string", "maxLength": 2}),
            false,
            &["ab", ""],
            &["abc"],
        ),
        (
            json!({"type": "string", "enum": ["a"]}),
            true,
            &["a", "b"],
            &[],
        ),
        (
            json!({"type": "string", "maxLength": 2}),
            true,
            &["abc"],
            &[],
        ),
    ] {
        let tools = [strict(&schema, false)];
        let forcing = Forcing {
            loose,
            ..forcing(Some(ToolFormat::Qwen3Coder), &tools, &ToolMode::Required)
        };
        let spec = forced_grammar(&forcing).unwrap();
        let call = |value: &str| {
            format!(
                "<tool_call>\n<function=f>\n<parameter=a>\n{value}\n</parameter>\n</function>\n</tool_call>"
            )
        };
        for value in kept {
            assert!(accepts(&spec, &call(value)), "{schema} {value}");
        }
        for value in broken {
            assert!(!accepts(&spec, &call(value)), "{schema} {value}");
        }
    }
    let pattern = json!({"type": "string", "pattern": "^a$"});
    for (is_strict, format, is_kept) in [
        (true, ToolFormat::Qwen3Coder, false),
        (false, ToolFormat::Qwen3Coder, true),
        (true, ToolFormat::Hermes, true),
    ] {
        let tools = [strict(&pattern, is_strict)];
        let checked = check_kept(&forcing(Some(format), &tools, &ToolMode::Required));
        assert_eq!(checked.is_ok(), is_kept, "{format:?}: {checked:?}");
    }
}

#[test]
fn special_tokens_mark_calls_by_their_ids() {
    let tools = tools();
    let mode = ToolMode::Required;
    let special = |text: &str| match text {
        "[TOOL_CALLS]" => Some(0),
        "[ARGS]" => Some(1),
        _ => None,
    };
    let forcing = Forcing {
        special: &special,
        ..forcing(Some(ToolFormat::Mistral), &tools, &mode)
    };
    let Some(GrammarSpec::Composed { lark, .. }) = forced_grammar(&forcing) else {
        panic!("no grammar");
    };
    assert!(lark.contains("start: <[0]> call (<[0]> call)*"), "{lark}");
    assert!(
        lark.contains("call_1: \"now\" <[1]> @arguments_1"),
        "{lark}"
    );
}
