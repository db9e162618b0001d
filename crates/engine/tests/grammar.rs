//! Grammars over real tokenizers: whatever the logits are, the text follows the grammar.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sparamx_engine::{
    EngineError, EngineOptions, Event, FinishReason, GenerateParams, Grammar, GrammarCompiler,
    GrammarSpec, LogitsProcessor, Request, Sampler, SamplingParams, Speculation, Tokenizer,
};

use common::{BYTE_FALLBACK_IDS, BYTE_LEVEL_IDS, byte_fallback, byte_level, host, load, runtime};

/// The model that ships.
const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/stories-5m-50");

fn shipped() -> Tokenizer {
    let config = std::fs::read_to_string(format!("{SHIPPED}/config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let ids = usize::try_from(config["vocab_size"].as_u64().unwrap()).unwrap();
    Tokenizer::from_dir(Path::new(SHIPPED), ids).unwrap()
}

/// Random logits that make the ends of strings, lists and texts likely, so that texts end.
struct Noise {
    state: u64,
    closing: Vec<bool>,
}

impl Noise {
    fn new(tokenizer: &Tokenizer, seed: u64) -> Self {
        let closes = |id: u32| {
            let bytes = tokenizer.token_bytes(id);
            tokenizer.eos().contains(&id) || bytes.iter().all(|b| b"\"]} ".contains(b))
        };
        let ids = u32::try_from(tokenizer.vocab_size()).unwrap();
        Self {
            state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            closing: (0..ids).map(closes).collect(),
        }
    }

    fn row(&mut self) -> Vec<f32> {
        let mut next = || {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            (self.state >> 40) as f32 / (1 << 24) as f32
        };
        let logit = |&closing: &bool| next() * 4.0 + if closing { 3.0 } else { 0.0 };
        self.closing.iter().map(logit).collect()
    }
}

/// A text of random logits, and whether it came to its end.
fn random_text(tokenizer: &Tokenizer, grammar: &Grammar, seed: u64) -> (String, bool) {
    let params = SamplingParams {
        temperature: 1.0,
        top_p: 1.0,
        seed,
        ..SamplingParams::default()
    };
    let mut sampler = Sampler::new(&params, &[])
        .unwrap()
        .with_processor(Some(grammar.processor()));
    let mut noise = Noise::new(tokenizer, seed + 1);
    let mut bytes = Vec::new();
    for _ in 0..3000 {
        let id = sampler.sample(&noise.row()).unwrap();
        if tokenizer.eos().contains(&id) {
            return (String::from_utf8(bytes).unwrap(), true);
        }
        bytes.extend(tokenizer.token_bytes(id));
    }
    (String::from_utf8_lossy(&bytes).into_owned(), false)
}

/// Some texts of a grammar, all of which ended.
#[track_caller]
fn texts(tokenizer: &Tokenizer, spec: &GrammarSpec) -> Vec<String> {
    let compiler = GrammarCompiler::new(tokenizer).unwrap();
    let grammar = compiler.compile(spec).unwrap();
    let texts = (0..20).map(|seed| random_text(tokenizer, &grammar, seed));
    let ended: Vec<String> = texts
        .filter_map(|(text, ended)| ended.then_some(text))
        .collect();
    assert!(ended.len() >= 15, "only {} ended", ended.len());
    ended
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "kind": {"enum": ["cat", "dog", "späť"]},
            "age": {"type": "integer", "minimum": 3, "maximum": 17},
            "weight": {"type": "number", "exclusiveMinimum": 0, "maximum": 1.5},
            "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
            "name": {"type": "string", "maxLength": 12},
            "friends": {"type": "array", "minItems": 1, "maxItems": 3, "items": {
                "type": "object",
                "properties": {"name": {"type": "string", "maxLength": 5}, "near": {"type": ["boolean", "null"]}},
                "required": ["name"],
                "additionalProperties": false
            }}
        },
        "required": ["kind", "age", "weight", "code", "friends"],
        "additionalProperties": false
    })
}

/// Checks a value against [`schema`], by hand.
fn check(value: &Value) {
    let object = value.as_object().unwrap();
    let keys: Vec<&str> = object.keys().map(String::as_str).collect();
    let order = ["kind", "age", "weight", "code", "name", "friends"];
    let with_name = object.contains_key("name");
    let want: Vec<&str> = order
        .into_iter()
        .filter(|&k| k != "name" || with_name)
        .collect();
    assert_eq!(keys, want);
    assert!(["cat", "dog", "späť"].contains(&value["kind"].as_str().unwrap()));
    assert!(
        (3..=17).contains(&value["age"].as_i64().unwrap()),
        "{value}"
    );
    let weight = value["weight"].as_f64().unwrap();
    assert!(weight > 0.0 && weight <= 1.5, "{weight}");
    let code = value["code"].as_str().unwrap().as_bytes();
    let (letters, digits) = (&code[..2], &code[3..]);
    assert!(letters.iter().all(u8::is_ascii_uppercase) && code[2] == b'-' && code.len() == 6);
    assert!(digits.iter().all(u8::is_ascii_digit));
    if let Some(name) = object.get("name") {
        assert!(name.as_str().unwrap().chars().count() <= 12);
    }
    let friends = value["friends"].as_array().unwrap();
    assert!((1..=3).contains(&friends.len()));
    for friend in friends {
        assert!(friend["name"].as_str().unwrap().chars().count() <= 5);
        assert!(friend["near"].is_null() || friend["near"].is_boolean());
        assert!(
            friend
                .as_object()
                .unwrap()
                .keys()
                .all(|k| k == "name" || k == "near")
        );
    }
}

#[test]
fn json_follows_its_schema() {
    let tokenizer = shipped();
    for text in texts(&tokenizer, &GrammarSpec::JsonSchema(schema())) {
        check(&serde_json::from_str(&text).unwrap());
        assert!(!text.contains('\n'), "{text}");
    }
}

#[test]
fn any_object_is_json() {
    let tokenizer = shipped();
    let mut keys = 0;
    for text in texts(&tokenizer, &GrammarSpec::JsonObject) {
        let value: Value = serde_json::from_str(&text).unwrap();
        keys += value.as_object().unwrap().len();
    }
    assert!(keys > 0);
}

#[test]
fn regular_expressions_choices_and_lark_are_kept() {
    let tokenizer = shipped();
    for text in texts(
        &tokenizer,
        &GrammarSpec::Regex(r"^(ab|č/\d){2,4}$".to_owned()),
    ) {
        let rest = text.replace("ab", "").replace("č/", "");
        assert!(rest.chars().all(|c| c.is_numeric()), "{text}");
        let parts = text.matches("ab").count() + text.matches("č/").count();
        assert!((2..=4).contains(&parts), "{text}");
    }
    let choices = ["yes", "no, \"sure\"\n", "né\\x41", "🐛"].map(str::to_owned);
    let chosen = texts(&tokenizer, &GrammarSpec::Choice(choices.to_vec()));
    assert!(
        chosen.iter().all(|text| choices.contains(text)),
        "{chosen:?}"
    );
    assert!(
        choices.iter().all(|text| chosen.contains(text)),
        "{chosen:?}"
    );
    let lark = "start: sum\nsum: NUMBER (\"+\" NUMBER)*\nNUMBER: /[0-9]{1,3}/";
    for text in texts(&tokenizer, &GrammarSpec::Lark(lark.to_owned())) {
        assert!(
            text.split('+').all(|n| n.parse::<u32>().unwrap() < 1000),
            "{text}"
        );
    }
}

#[test]
fn characters_of_several_tokens_stay_whole() {
    // None of these vocabularies has a token for a crab; the fallback bytes of one are no letters.
    let files = [
        (byte_level(), BYTE_LEVEL_IDS),
        (byte_fallback(), BYTE_FALLBACK_IDS),
    ];
    for (mut file, ids) in files {
        let end = file["added_tokens"][0]["content"].clone();
        let config = json!({"eos_token": end});
        file["decoder"]["note"] = Value::Null;
        file["decoder"].as_object_mut().unwrap().remove("note");
        let tokenizer = common::tokenizer(
            &[("tokenizer.json", file), ("tokenizer_config.json", config)],
            ids,
        );
        let choices = ["🦀", "ü🦀", "a", "to the"].map(str::to_owned);
        let chosen = texts(&tokenizer, &GrammarSpec::Choice(choices.to_vec()));
        assert!(
            choices.iter().all(|text| chosen.contains(text)),
            "{chosen:?}"
        );
    }
}

#[test]
fn special_tokens_are_named_by_id_and_never_text() {
    let tokenizer = shipped();
    let start = tokenizer.special_id("<s>").unwrap();
    let lark = format!("start: <[{start}]> TEXT\nTEXT: /[<>s|a-c]{{1,8}}/");
    let compiler = GrammarCompiler::new(&tokenizer).unwrap();
    let grammar = compiler.compile(&GrammarSpec::Lark(lark)).unwrap();
    for seed in 0..10 {
        let mut processor = grammar.processor();
        let mut noise = Noise::new(&tokenizer, seed);
        assert_eq!(allowed(&mut *processor, &mut noise), [start]);
        processor.accept(start);
        assert!(!allowed(&mut *processor, &mut noise).contains(&start));
    }
}

/// The ids that a processor allows.
fn allowed(processor: &mut dyn LogitsProcessor, noise: &mut Noise) -> Vec<u32> {
    let mut row = noise.row();
    processor.process(&mut row);
    let ids = (0..).zip(&row);
    ids.filter(|(_, logit)| logit.is_finite())
        .map(|(id, _)| id)
        .collect()
}

#[test]
fn at_its_end_only_the_ends_of_a_text_are_allowed() {
    let tokenizer = shipped();
    let compiler = GrammarCompiler::new(&tokenizer).unwrap();
    let grammar = compiler
        .compile(&GrammarSpec::Choice(vec!["a".to_owned()]))
        .unwrap();
    let mut processor = grammar.processor();
    let mut noise = Noise::new(&tokenizer, 1);
    let [a] = allowed(&mut *processor, &mut noise)[..] else {
        panic!("more than one token");
    };
    processor.accept(a);
    assert_eq!(allowed(&mut *processor, &mut noise), tokenizer.eos());
    processor.accept(tokenizer.eos()[0]);
    // Who goes on all the same gets more ends.
    assert_eq!(allowed(&mut *processor, &mut noise), tokenizer.eos());
    assert!(processor.failure().is_none());
}

#[test]
fn a_token_out_of_the_grammar_ends_the_request_with_an_error() {
    let tokenizer = shipped();
    let compiler = GrammarCompiler::new(&tokenizer).unwrap();
    let grammar = compiler.compile(&GrammarSpec::JsonObject).unwrap();
    let mut processor = grammar.processor();
    let other = tokenizer.encode("x", false).unwrap()[0];
    processor.accept(other);
    let mut sampler = Sampler::new(&SamplingParams::greedy(), &[])
        .unwrap()
        .with_processor(Some(processor));
    let error = sampler
        .sample(&vec![0.0; tokenizer.vocab_size()])
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("the grammar: no token is possible any more"),
        "{text}"
    );
    // Other texts of the grammar are none the worse.
    assert!(random_text(&tokenizer, &grammar, 3).0.starts_with('{'));
}

#[test]
fn what_cannot_be_kept_is_named() {
    let tokenizer = shipped();
    let compiler = GrammarCompiler::new(&tokenizer).unwrap();
    let fails = |spec: GrammarSpec| match compiler.compile(&spec) {
        Err(EngineError::Grammar { error }) => error,
        other => panic!("{other:?}"),
    };
    let schema = |value| GrammarSpec::JsonSchema(value);
    for (spec, names) in [
        (
            schema(json!({"type": "array", "uniqueItems": true})),
            "uniqueItems",
        ),
        (schema(json!({"not": {"type": "null"}})), "not"),
        (
            schema(json!({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]})),
            "oneOf",
        ),
        (
            schema(json!({"type": "string", "pattern": "(?=a)b"})),
            "look-around",
        ),
        (
            schema(json!({"type": "string", "format": "klingon"})),
            "klingon",
        ),
        (
            schema(json!({"$ref": "https://example.com/schema"})),
            "example.com",
        ),
        (schema(json!({"$ref": "file:///etc/passwd"})), "passwd"),
        (
            schema(json!({"type": "integer", "minimum": 5, "maximum": 4})),
            "minimum",
        ),
        (schema(json!({"type": "strange"})), "strange"),
        (GrammarSpec::Regex("(a".to_owned()), "unclosed group"),
        (GrammarSpec::Regex(r"(a)\1".to_owned()), "backreferences"),
        (GrammarSpec::Regex("(?<!a)b".to_owned()), "look-around"),
        (GrammarSpec::Lark("root ::= \"a\"".to_owned()), "1"),
        (GrammarSpec::Lark("start: missing".to_owned()), "missing"),
        (GrammarSpec::Choice(Vec::new()), "choices"),
    ] {
        let error = fails(spec);
        assert!(error.contains(names), "{error}");
        assert!(error.len() < 400 && !error.contains('\n'), "{error}");
    }
    // The client has no say in which keywords are dropped.
    let lenient = json!({"type": "array", "uniqueItems": true, "x-guidance": {"lenient": true}});
    assert!(fails(schema(lenient)).contains("uniqueItems"));
}

/// Each ends in time, with an error or with a grammar whose masks are made in time.
#[test]
fn hostile_grammars_end() {
    let tokenizer = shipped();
    let compiler = GrammarCompiler::new(&tokenizer).unwrap();
    let nested = |n: usize| (0..n).fold(json!({}), |inner, _| json!({"items": inner}));
    let wide: Vec<Value> = (0..4000)
        .map(|n| json!({"const": format!("{n}x")}))
        .collect();
    let chain: String = (0..5000).map(|n| format!("A{n}: A{}\n", n + 1)).collect();
    let rules: String = (0..5000).map(|n| format!("a{n}: a{}\n", n + 1)).collect();
    let doubling: String = (0..40)
        .map(|n| format!("a{n}: a{} a{}\n", n + 1, n + 1))
        .collect();
    let hostile = [
        GrammarSpec::JsonSchema(nested(60)),
        GrammarSpec::JsonSchema(nested(3000)),
        GrammarSpec::JsonSchema(json!({"anyOf": wide})),
        GrammarSpec::JsonSchema(json!({"$ref": "#"})),
        GrammarSpec::JsonSchema(json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]})),
        GrammarSpec::JsonSchema(json!({"allOf": [{"$ref": "#/$defs/a"}],
            "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#"}], "type": "object"}}})),
        GrammarSpec::JsonSchema(json!({"type": "array", "items": {"$ref": "#"}})),
        GrammarSpec::JsonSchema(json!({"type": "string", "pattern": "(a{1,1000}){1,1000}b"})),
        GrammarSpec::JsonSchema(json!({"type": "string", "minLength": 10_000_000})),
        GrammarSpec::JsonSchema(json!({"type": "array", "minItems": 10_000_000})),
        GrammarSpec::JsonSchema(
            json!({"type": "integer", "multipleOf": 7, "minimum": 1e18, "maximum": 9e18}),
        ),
        GrammarSpec::JsonSchema(json!({"type": "number", "multipleOf": 0.000_000_1})),
        GrammarSpec::Regex("(a|aa)*(a|aa)*(a|aa)*b".to_owned()),
        GrammarSpec::Regex("(x+x+)+y".to_owned()),
        GrammarSpec::Regex("(.*a){30}".to_owned()),
        GrammarSpec::Regex("(a|b)*a(a|b){60}".to_owned()),
        GrammarSpec::Regex(format!("{}a{}", "(".repeat(200), ")?".repeat(200))),
        GrammarSpec::Regex(format!("{}a{}", "(".repeat(20_000), ")".repeat(20_000))),
        GrammarSpec::Regex(r"\p{L}{1,500}\w{1,500}".to_owned()),
        GrammarSpec::Regex("((a{0,100}){0,100}){0,100}".to_owned()),
        GrammarSpec::Lark(format!(
            "start: {}\"a\"{}",
            "(".repeat(30_000),
            ")".repeat(30_000)
        )),
        GrammarSpec::Lark(format!("start: A\nA: {}\"a\"", "~".repeat(60_000))),
        GrammarSpec::Lark(format!("start: A0\n{chain}A5000: \"a\"")),
        GrammarSpec::Lark(format!("start: a0\n{rules}a5000: \"a\"")),
        GrammarSpec::Lark(format!("start: a0\n{doubling}a40: \"a\"?")),
        GrammarSpec::Lark("start: start start | \"a\" |".to_owned()),
        GrammarSpec::Lark("start: start".to_owned()),
        GrammarSpec::Lark("start: \"a\"{0,1000000000}".to_owned()),
        GrammarSpec::Lark(format!(
            "start: {} \"a\" {}",
            "%lark { start: ".repeat(3000),
            "}".repeat(3000)
        )),
        GrammarSpec::Choice((0..8000).map(|n| format!("{n}")).collect()),
        GrammarSpec::Choice(vec!["a".repeat(100_000)]),
    ];
    for spec in &hostile {
        let begun = Instant::now();
        let about: String = format!("{spec:?}").chars().take(80).collect();
        let compiled = compiler.compile(spec);
        let compile = begun.elapsed();
        let mut masks = Duration::ZERO;
        if let Ok(grammar) = &compiled {
            let mut processor = grammar.processor();
            let mut noise = Noise::new(&tokenizer, 5);
            for _ in 0..30 {
                let row = Instant::now();
                let ids = allowed(&mut *processor, &mut noise);
                masks = masks.max(row.elapsed());
                match ids[..] {
                    _ if processor.failure().is_some() => break,
                    [] => panic!("no token and no error: {about}"),
                    [.., id] => processor.accept(id),
                }
            }
        }
        let outcome = match compiled {
            Ok(_) => "compiles".to_owned(),
            Err(error) => error.to_string(),
        };
        println!("{compile:9.1?} {masks:9.1?} {about}: {outcome}");
        assert!(compile < Duration::from_secs(20), "{about}");
        assert!(masks < Duration::from_secs(5), "{about}");
        // None of them takes grammars away from others.
        compiler
            .compile(&GrammarSpec::Choice(vec![about]))
            .expect("a grammar that is none of these");
    }
}

#[test]
fn a_grammar_is_compiled_once() {
    let tokenizer = shipped();
    let compiler = GrammarCompiler::new(&tokenizer).unwrap();
    let spec = |n: usize| GrammarSpec::JsonSchema(json!({"type": "string", "maxLength": 900 + n}));
    let threads: Vec<_> = (0..8)
        .map(|n| {
            let compiler = compiler.clone();
            std::thread::spawn(move || compiler.compile(&spec(n % 3)).unwrap())
        })
        .collect();
    for thread in threads {
        let grammar = thread.join().unwrap();
        assert!(random_text(&tokenizer, &grammar, 1).0.starts_with('"'));
    }
    // More than are kept: the first ones are made again.
    for n in 0..40 {
        compiler.compile(&spec(n)).unwrap();
    }
    compiler.compile(&spec(0)).unwrap();
}

#[test]
fn a_tokenizer_without_an_end_has_no_grammars() {
    let tokenizer = common::tokenizer(&[("tokenizer.json", common::letters(30))], 30);
    let compiler = GrammarCompiler::new(&tokenizer).unwrap();
    let error = compiler
        .compile(&GrammarSpec::JsonObject)
        .unwrap_err()
        .to_string();
    assert!(error.contains("no token that ends a text"), "{error}");
}

/// Text, reason and draft tokens of requests that run side by side, with log probabilities.
fn run(requests: Vec<Request>, speculation: Speculation) -> Vec<(String, FinishReason, usize)> {
    let rt = runtime(1);
    let loaded = load(&rt, Path::new(SHIPPED));
    let options = EngineOptions {
        speculation,
        ..EngineOptions::default()
    };
    let host = host(loaded, options);
    let handles: Vec<_> = requests
        .into_iter()
        .map(|request| host.submit(request).unwrap())
        .collect();
    let outcome = |handle| {
        let (mut text, mut logprobs) = (String::new(), 0);
        for event in handle {
            match event {
                Event::Token {
                    text: more,
                    logprob,
                    ..
                } => {
                    text += &more;
                    logprobs += usize::from(logprob.unwrap().logprob.is_finite());
                }
                Event::Finished {
                    text: more,
                    result,
                    usage,
                    ..
                } => {
                    text += &more;
                    assert_eq!(
                        logprobs,
                        usage.tokens - usize::from(logprobs < usage.tokens)
                    );
                    return (text, result.unwrap(), usage.drafted);
                }
                Event::Prompt { .. } => {}
            }
        }
        panic!("no last event")
    };
    handles.into_iter().map(outcome).collect()
}

#[test]
fn draft_tokens_keep_to_the_grammar() {
    let tokenizer = Arc::new(shipped());
    let compiler = GrammarCompiler::new(&tokenizer).unwrap();
    let list = json!({"type": "array", "minItems": 12, "maxItems": 12,
                      "items": {"enum": ["the little red fox", "the little red dog"]}});
    let grammar = compiler.compile(&GrammarSpec::JsonSchema(list)).unwrap();
    let request = |seed| Request {
        prompt: tokenizer
            .encode_prompt("Once there was the little red")
            .unwrap(),
        params: GenerateParams {
            max_tokens: 400,
            sampling: SamplingParams {
                temperature: if seed == 0 { 0.0 } else { 1.0 },
                seed,
                ..SamplingParams::default()
            },
            ..GenerateParams::default()
        },
        logprobs: Some(2),
        processor: Some(grammar.processor()),
        ..Request::default()
    };
    let requests = || (0..6).map(request).collect();
    let with = run(requests(), Speculation::Always);
    let without = run(requests(), Speculation::Off);
    for ((text, reason, _), (plain, _, _)) in with.iter().zip(&without) {
        assert_eq!((text, *reason), (plain, FinishReason::Stop));
        let list: Vec<String> = serde_json::from_str(text).unwrap();
        assert_eq!(list.len(), 12);
    }
    assert!(with.iter().map(|(_, _, drafted)| drafted).sum::<usize>() > 0);
}
