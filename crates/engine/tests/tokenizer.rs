//! Encoding, decoding and streaming with small tokenizers.

mod common;

use std::sync::Arc;

use common::{
    BYTE_FALLBACK_IDS, BYTE_LEVEL_IDS, byte_fallback, byte_level, difference, metaspace, pieces,
    pieces_after, tokenizer, write,
};
use proptest::prelude::*;
use serde_json::json;
use sparamx_engine::{EngineError, Tokenizer};

fn level() -> Arc<Tokenizer> {
    tokenizer(&[("tokenizer.json", byte_level())], BYTE_LEVEL_IDS)
}

fn fallback() -> Arc<Tokenizer> {
    tokenizer(&[("tokenizer.json", byte_fallback())], BYTE_FALLBACK_IDS)
}

fn spaces() -> Arc<Tokenizer> {
    tokenizer(&[("tokenizer.json", metaspace())], BYTE_FALLBACK_IDS)
}

fn byte_ids(bytes: &[u8]) -> Vec<u32> {
    bytes.iter().map(|&b| 3 + u32::from(b)).collect()
}

#[test]
fn text_goes_there_and_back() {
    for text in [
        "hello the tall 🦀 é",
        "  two  spaces ",
        "\n\ttab",
        "日本語 👩‍👩‍👧",
        "",
    ] {
        let ids = level().encode(text, true).unwrap();
        assert_eq!(level().decode(&ids).unwrap(), text);
        let ids = fallback().encode(text, true).unwrap();
        assert_eq!(ids[0], 1, "BOS comes first");
        assert_eq!(fallback().decode(&ids).unwrap(), text);
        assert_eq!(fallback().encode(text, false).unwrap(), ids[1..]);
    }
}

#[test]
fn bytes_of_tokens_join_to_the_text() {
    for text in ["hello the tall 🦀 é", "two  spaces", "\n\ttab 日本語"] {
        for (tokenizer, text) in [
            (level(), text.to_owned()),
            // A space is put before every text.
            (fallback(), format!(" {text}")),
        ] {
            let ids = tokenizer
                .encode(text.trim_start_matches(' '), false)
                .unwrap();
            let bytes = ids.iter().flat_map(|&id| tokenizer.token_bytes(id));
            assert_eq!(String::from_utf8(bytes.collect()).unwrap(), text);
        }
    }
    let (level, fallback) = (level(), fallback());
    let crab = level.encode("🦀", false).unwrap();
    assert_eq!(level.token_bytes(crab[0]), [0xF0]);
    assert_eq!(level.token_text(crab[0]), "\u{FFFD}");
    assert_eq!(fallback.token_bytes(3 + 0xE2), [0xE2]);
    assert_eq!(fallback.token_text(2), "</s>");
    assert_eq!(fallback.special_id("</s>"), Some(2));
    assert_eq!(fallback.special_id("▁t"), None);
    assert!(
        fallback
            .token_bytes(BYTE_FALLBACK_IDS as u32 + 9)
            .is_empty()
    );
}

#[test]
fn pieces_are_whole_characters_as_early_as_can_be() {
    let t = fallback();
    let stream = |ids: &[u32]| -> Vec<Option<String>> {
        let mut stream = t.stream(&[]).unwrap();
        ids.iter().map(|&id| stream.push(id).unwrap()).collect()
    };
    let some = |s: &str| Some(s.to_owned());
    let mut ids = t.encode("to the", false).unwrap();
    ids.extend(byte_ids("🦀é".as_bytes()));
    // EOS, a special token, and "a".
    ids.extend([2, 260]);
    let want = [
        some("to"),
        some(" t"),
        some("he"),
        None,
        None,
        None,
        some("🦀"),
        None,
        some("é"),
        None,
        some("a"),
    ];
    assert_eq!(stream(&ids), want);
}

#[test]
fn the_first_space_goes_and_the_others_stay() {
    let t = fallback();
    for text in ["to", " to", "  to", "    to", "to  to"] {
        let ids = t.encode(text, true).unwrap();
        assert_eq!(pieces(&t, &ids).concat(), text);
    }
    // A special token between words is no reason to lose the space after it.
    let to = t.encode("to", false).unwrap();
    let ids = [&to[..], &[2], &to[..]].concat();
    assert_eq!(pieces(&t, &ids).concat(), "to to");
    assert_eq!(pieces(&t, &ids).concat(), t.decode(&ids).unwrap());
}

#[test]
fn text_after_a_prompt_begins_with_its_space() {
    for t in [fallback(), spaces()] {
        let after = |prompt: &str, text: &str| {
            let before = t.encode(prompt, true).unwrap();
            let ids = t.encode(&format!("{prompt}{text}"), true).unwrap();
            assert_eq!(ids[..before.len()], before, "{prompt}|{text}");
            pieces_after(&t, &before, &ids[before.len()..])
        };
        assert_eq!(
            after("once upon a", " tall he"),
            [" t", "a", "l", "l", " ", "he"]
        );
        // Indentation after a line break, and none.
        assert_eq!(after("x.\n", "    y"), ["    ", "y"]);
        assert_eq!(after("x.\n", "y"), ["y"]);
        assert_eq!(after("x", "  y"), ["  ", "y"]);
        // Nothing before it: the space that the tokenizer adds is none of the text.
        assert_eq!(after("", "to"), ["to"]);
        // A special token is no text, so that the words on both sides are parted as always.
        let to = t.encode("to", false).unwrap();
        assert_eq!(pieces_after(&t, &[1, to[0], 2], &to), [" to"]);
        assert_eq!(pieces_after(&t, &[1, 2], &to), ["to"]);
    }
}

#[test]
fn a_character_cut_by_the_end_of_the_prompt_is_new_text() {
    let bytes = byte_ids("aé日b".as_bytes());
    for t in [level(), fallback()] {
        let ids = match t.encode("a", true).unwrap().len() {
            1 => t.encode("aé日b", true).unwrap(),
            _ => bytes.clone(),
        };
        let texts = ["aé日b", "é日b", "é日b", "日b", "日b", "日b", "b", ""];
        for (start, want) in texts.into_iter().enumerate() {
            let text = pieces_after(&t, &ids[..start], &ids[start..]).concat();
            assert_eq!(text, want, "{start}");
            assert_eq!(difference(&t, &ids, start), want, "{start}");
        }
        // It never ends: the prompt's text has U+FFFD for it already, once for all its bytes or for each.
        let cut = [&ids[..5], &t.encode("b", false).unwrap()].concat();
        let text = pieces_after(&t, &cut[..5], &cut[5..]).concat();
        assert_eq!(text, difference(&t, &cut, 5));
        assert_eq!(pieces_after(&t, &ids[..5], &[]).concat(), "");
    }
}

#[test]
fn a_long_run_of_byte_tokens_before_the_seam_stays_whole() {
    let t = fallback();
    let ids = byte_ids("日é".repeat(40).as_bytes());
    for start in 150..ids.len() {
        let text = pieces_after(&t, &ids[..start], &ids[start..]).concat();
        assert_eq!(text, difference(&t, &ids, start), "{start}");
    }
}

#[test]
fn a_character_that_never_ends_is_replaced_when_the_text_does() {
    for t in [level(), fallback()] {
        let ids = t.encode("🦀", false).unwrap();
        let cut = &ids[..ids.len() - 1];
        assert_eq!(pieces(&t, cut).concat(), t.decode(cut).unwrap());
        assert!(pieces(&t, cut).concat().ends_with('\u{fffd}'));
    }
}

#[test]
fn bad_bytes_do_not_take_back_what_is_shown() {
    let ids = [byte_ids("é".as_bytes()), byte_ids(&[0xff]), vec![260]].concat();
    assert_eq!(
        fallback().decode(&ids).unwrap(),
        "\u{fffd}\u{fffd}\u{fffd}a",
        "what the crate does"
    );
    assert_eq!(pieces(&fallback(), &ids).concat(), "é\u{fffd}a");
}

#[test]
fn garbage_without_end_comes_out_and_costs_little() {
    let ids = byte_ids(&[0x80; 5000]);
    let pieces = pieces(&fallback(), &ids);
    assert_eq!(pieces.concat(), "\u{fffd}".repeat(5000));
    assert!(pieces.len() > 4990, "nothing is held back for long");
}

#[test]
fn start_and_end_ids_come_from_all_files() {
    let ids = |files: &[(&str, serde_json::Value)]| {
        let mut all = vec![("tokenizer.json", byte_fallback())];
        all.extend_from_slice(files);
        let t = tokenizer(&all, BYTE_FALLBACK_IDS);
        (t.bos(), t.eos().to_vec())
    };
    assert_eq!(ids(&[]), (None, vec![]));
    let config = (
        "config.json",
        json!({"bos_token_id": 1, "eos_token_id": [2, 5]}),
    );
    assert_eq!(ids(std::slice::from_ref(&config)), (Some(1), vec![2, 5]));
    let generation = (
        "generation_config.json",
        json!({"bos_token_id": 7, "eos_token_id": 9}),
    );
    assert_eq!(
        ids(&[config.clone(), generation.clone()]),
        (Some(7), vec![2, 5, 9])
    );
    let tokens = (
        "tokenizer_config.json",
        json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}}),
    );
    assert_eq!(
        ids(&[config.clone(), generation, tokens]),
        (Some(1), vec![2, 5, 9])
    );
    let none = ("tokenizer_config.json", json!({"bos_token": null}));
    assert_eq!(ids(&[config, none]).0, None);
    assert_eq!(
        ids(&[("special_tokens_map.json", json!({"bos_token": "<s>"}))]).0,
        Some(1)
    );
}

#[test]
fn an_empty_prompt_starts_from_bos_or_is_refused() {
    assert_eq!(fallback().encode_prompt("").unwrap(), [1]);
    let error = level().encode_prompt("").unwrap_err();
    assert!(matches!(error, EngineError::EmptyPrompt), "{error}");
    let config = ("tokenizer_config.json", json!({"bos_token": "<|end|>"}));
    let with_bos = tokenizer(&[("tokenizer.json", byte_level()), config], BYTE_LEVEL_IDS);
    assert_eq!(with_bos.encode_prompt("").unwrap(), [260]);
}

#[test]
fn settings_of_a_training_run_do_not_cut_or_pad_prompts() {
    let mut file = byte_level();
    file["truncation"] =
        json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    file["padding"] = json!({"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
                             "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
    let t = tokenizer(&[("tokenizer.json", file)], BYTE_LEVEL_IDS);
    assert_eq!(t.encode("abcde", true).unwrap().len(), 5);
    assert_eq!(t.encode("a", true).unwrap().len(), 1);
}

#[test]
fn folders_that_do_not_serve_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let message = |vocab_size| match Tokenizer::from_dir(dir.path(), vocab_size) {
        Ok(_) => panic!("accepted"),
        Err(e) => e.to_string(),
    };
    assert!(
        message(300).contains("there is no tokenizer.json: take it"),
        "{}",
        message(300)
    );
    write(dir.path(), &[("tokenizer.json", json!({"model": 1}))]);
    assert!(
        message(300).contains("tokenizer.json: not a tokenizer: "),
        "{}",
        message(300)
    );
    let mut file = byte_fallback();
    file["post_processor"]["special_tokens"] = json!({});
    write(dir.path(), &[("tokenizer.json", file)]);
    let panics = message(300);
    assert!(
        panics.contains("tokenizer.json: not a tokenizer: its 'post_processor' fails: "),
        "{panics}"
    );
    let mut file = byte_level();
    file["model"]["vocab"] = json!("x".repeat(30_000));
    write(dir.path(), &[("tokenizer.json", file)]);
    assert!(message(300).len() < 700 && !message(300).contains('\n'));
    write(dir.path(), &[("tokenizer.json", byte_level())]);
    std::fs::create_dir(dir.path().join("config.json")).unwrap();
    assert!(message(300).contains("config.json: "), "{}", message(300));
    write(dir.path(), &[("generation_config.json", json!([]))]);
    assert!(
        message(300).contains("generation_config.json: not a JSON object"),
        "{}",
        message(300)
    );
}

/// The right-hand sides are those of Transformers 5.24 for the same files.
#[test]
fn added_tokens_come_from_all_files() {
    let token = |content: &str, changes: serde_json::Value| {
        let mut token = json!({"content": content, "lstrip": false, "rstrip": false, "normalized": false,
                               "single_word": false, "special": true});
        for (flag, value) in changes.as_object().unwrap() {
            token[flag] = value.clone();
        }
        token
    };
    let plain = |content: &str| token(content, json!({}));
    let decoder = |id: &str, token: serde_json::Value| json!({"added_tokens_decoder": {id: token}});
    let check = |config: serde_json::Value,
                 others: &[(&'static str, serde_json::Value)],
                 text: &str,
                 want: (&[u32], &str)| {
        let mut files = vec![
            ("tokenizer.json", byte_level()),
            ("tokenizer_config.json", config),
        ];
        files.extend_from_slice(others);
        let t = tokenizer(&files, 300);
        let ids = t.encode(text, true).unwrap();
        assert_eq!((&ids[..], &t.decode(&ids).unwrap()[..]), want, "{files:?}");
        t
    };
    let [x, y] = ["<|x|>", "<|y|>"];

    check(
        decoder("261", plain(x)),
        &[],
        "a<|x|> b",
        (&[97, 261, 32, 98], "a b"),
    );
    let strips = token(x, json!({"lstrip": true, "rstrip": true}));
    check(
        decoder("261", strips),
        &[],
        "a <|x|> b",
        (&[97, 261, 98], "ab"),
    );
    let visible = token(x, json!({"special": false}));
    check(
        decoder("261", visible),
        &[],
        "a<|x|> b",
        (&[97, 261, 32, 98], "a<|x|> b"),
    );
    check(
        decoder("261", json!({"content": x})),
        &[],
        "a<|x|>",
        (&[97, 261], "a<|x|>"),
    );
    let word = token("to", json!({"single_word": true}));
    check(
        decoder("261", word),
        &[],
        "to tot",
        (&[261, 257, 111, 116], " tot"),
    );
    // Flags here go before those of tokenizer.json, and ids are given in their order.
    let strips = token("<|end|>", json!({"lstrip": true}));
    check(decoder("260", strips), &[], "a  <|end|>", (&[97, 260], "a"));
    let two = json!({"added_tokens_decoder": {"262": plain(x), "261": plain(y)}});
    check(two, &[], "<|x|><|y|>", (&[262, 261], ""));
    let t = check(decoder("299", plain(x)), &[], x, (&[261], ""));
    assert_eq!(
        t.warnings(),
        ["the added token '<|x|>' has id 299 by the file beside tokenizer.json, and gets 261"]
    );

    let old = ("added_tokens.json", json!({x: 261, y: 262}));
    let text = "a<|x|> <|y|>";
    check(
        json!({}),
        std::slice::from_ref(&old),
        text,
        (&[97, 261, 32, 262], text),
    );
    let t = check(
        json!({"pad_token": x}),
        std::slice::from_ref(&old),
        text,
        (&[97, 261, 32, 262], "a <|y|>"),
    );
    assert_eq!((t.special(261), t.special(262)), (Some(x), None));
    check(
        decoder("261", plain(y)),
        &[old],
        "<|x|><|y|>",
        (&[60, 124, 120, 124, 62, 261], x),
    );

    check(
        json!({"pad_token": "[P]"}),
        &[],
        "a [P]",
        (&[97, 32, 261], "a "),
    );
    let roles = json!({"pad_token": "[P]", "unk_token": "[U]"});
    check(roles, &[], "[P][U]", (&[262, 261], ""));
    let role = token("[P]", json!({"rstrip": true}));
    check(
        json!({"pad_token": role, "add_bos_token": true}),
        &[],
        "a[P] \n b",
        (&[97, 261, 98], "ab"),
    );
    check(
        json!({"pad_token": "he"}),
        &[],
        "the he",
        (&[116, 256, 32, 256], "t "),
    );
    check(
        json!({"additional_special_tokens": [x, token(y, json!({"lstrip": true}))]}),
        &[],
        "<|x|> <|y|>",
        (&[261, 262], ""),
    );
    check(
        json!({"extra_special_tokens": [x]}),
        &[],
        "a<|x|>",
        (&[97, 261], "a"),
    );
    check(
        json!({"extra_special_tokens": {"image_token": x}}),
        &[],
        "a<|x|>",
        (&[97, 261], "a"),
    );
    let map = ("special_tokens_map.json", json!({"pad_token": "[P]"}));
    check(
        json!({}),
        std::slice::from_ref(&map),
        "a[P]",
        (&[97, 261], "a"),
    );
    check(
        decoder("261", plain(y)),
        &[map],
        "[P]<|y|>",
        (&[91, 80, 93, 261], "[P]"),
    );
}

#[test]
fn added_tokens_that_are_none_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let message = |file: &str, content: serde_json::Value| {
        write(
            dir.path(),
            &[("tokenizer.json", byte_level()), (file, content)],
        );
        Tokenizer::from_dir(dir.path(), 300)
            .err()
            .unwrap()
            .to_string()
    };
    let old = message("added_tokens.json", json!({"<|x|>": "261"}));
    assert!(
        old.ends_with("added_tokens.json: the added token '<|x|>' has no text or no id"),
        "{old}"
    );
    for entry in [
        json!({"x": {"content": "<|x|>"}}),
        json!({"261": {"lstrip": true}}),
    ] {
        let new = message(
            "tokenizer_config.json",
            json!({"added_tokens_decoder": entry}),
        );
        assert!(
            new.contains("tokenizer_config.json: the added token '"),
            "{new}"
        );
    }
}

/// Adds `<pad>` with the first id that the vocabulary of [`byte_fallback`] does not have.
fn padded() -> serde_json::Value {
    let mut file = byte_fallback();
    let mut pad = file["added_tokens"][0].clone();
    pad["id"] = json!(BYTE_FALLBACK_IDS);
    pad["content"] = json!("<pad>");
    file["added_tokens"].as_array_mut().unwrap().push(pad);
    file
}

#[test]
fn ids_beyond_the_vocabulary_of_the_model_are_refused_where_they_occur() {
    let t = tokenizer(&[("tokenizer.json", padded())], BYTE_FALLBACK_IDS);
    assert!(t.warnings().is_empty(), "{:?}", t.warnings());
    assert_eq!(
        t.encode("to", true).unwrap(),
        fallback().encode("to", true).unwrap()
    );
    let refused = t.encode("to<pad>", true).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the text has the token '<pad>' with id 293, and the model has ids below 293 only: leave it out, or take the \
         tokenizer that belongs to the model"
    );
    let ids = [
        fallback().encode("to", false).unwrap(),
        vec![293, 294, u32::MAX],
    ]
    .concat();
    assert_eq!(t.decode(&ids).unwrap(), "to");
    assert_eq!(pieces(&t, &ids), ["to"]);

    // Tokens of text that the model lacks are said.
    let t = tokenizer(&[("tokenizer.json", padded())], BYTE_FALLBACK_IDS - 2);
    let [warning] = t.warnings() else {
        panic!("{:?}", t.warnings())
    };
    assert_eq!(
        warning,
        "tokenizer.json has tokens that are not among the 291 ids of the model (2, the first is '▁▁' with id 291): texts \
         that need them are refused"
    );
    assert!(t.encode("a    b", true).is_err());
}

#[test]
fn ends_that_the_model_does_not_have_are_left_out_and_said() {
    let files = [
        ("tokenizer.json", byte_fallback()),
        (
            "config.json",
            json!({"bos_token_id": -1, "eos_token_id": [2, 400]}),
        ),
        (
            "generation_config.json",
            json!({"bos_token_id": 1, "eos_token_id": 293, "pad_token_id": 999}),
        ),
    ];
    let t = tokenizer(&files, BYTE_FALLBACK_IDS);
    assert_eq!((t.bos(), t.eos()), (Some(1), &[2][..]));
    // The checkpoint reports what is wrong in config.json.
    assert_eq!(
        t.warnings(),
        [
            "generation_config.json: eos_token_id 293 is not among the 293 ids of the model, and ignored"
        ]
    );
}

#[test]
fn a_text_that_the_tokenizer_fails_on_is_an_error() {
    let mut file = byte_level();
    let greedy = json!({"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": false});
    file["pre_tokenizer"] =
        json!({"type": "Sequence", "pretokenizers": [greedy, file["pre_tokenizer"]]});
    let t = tokenizer(&[("tokenizer.json", file)], BYTE_LEVEL_IDS);
    assert_eq!(t.encode("aa", true).unwrap().len(), 2);
    let error = t.encode(&format!("{}b", "a".repeat(60)), true).unwrap_err();
    let EngineError::Coding { error } = &error else {
        panic!("{error}")
    };
    assert!(error.contains("limit"), "{error}");
    assert_eq!(t.encode("aa", true).unwrap().len(), 2, "and it goes on");
}

#[test]
fn texts_that_cannot_fit_are_refused_before_they_are_tokenized() {
    for t in [level(), fallback(), spaces()] {
        for text in ["a", " ", "é", "tall told "] {
            let long = text.repeat(10_000_000);
            let refused = t.check_room(&long, 512).unwrap_err();
            assert_eq!(
                refused.to_string(),
                format!(
                    "the prompt has {} bytes, more than fit in the context of 512 tokens: shorten the prompt",
                    long.len()
                )
            );
        }
        assert!(t.check_room(&"a".repeat(300), 512).is_ok());
        assert!(t.check_room("", 0).is_ok());
    }
    // A token that takes the blanks after it stands for any number of them.
    let mut file = byte_fallback();
    file["added_tokens"][2]["rstrip"] = json!(true);
    let t = tokenizer(&[("tokenizer.json", file)], BYTE_FALLBACK_IDS);
    let blanks = format!("</s>{}", " ".repeat(10_000));
    assert!(t.encode(&blanks, false).unwrap().len() < 4);
    assert!(t.check_room(&blanks, 4).is_ok());
    assert!(t.check_room(&blanks[4..], 4).is_err());
    assert!(
        t.check_room(&format!("{blanks}{}", "é".repeat(10_000)), 4)
            .is_err()
    );
    // Unknown characters become one token if the file says so.
    let mut file = byte_fallback();
    file["model"]["byte_fallback"] = json!(false);
    let t = tokenizer(&[("tokenizer.json", file)], BYTE_FALLBACK_IDS);
    let unknown = "日".repeat(10_000);
    assert!(t.encode(&unknown, false).unwrap().len() < 4);
    assert!(t.check_room(&unknown, 4).is_ok());
    // As it may be with parts that nobody here knows.
    for (part, value) in [
        (
            "normalizer",
            json!({"type": "Strip", "strip_left": true, "strip_right": true}),
        ),
        ("pre_tokenizer", json!({"type": "WhitespaceSplit"})),
    ] {
        let mut file = byte_level();
        file[part] = value;
        let t = tokenizer(&[("tokenizer.json", file)], BYTE_LEVEL_IDS);
        assert!(t.check_room(&" ".repeat(10_000), 4).is_ok());
        // There is a bound for them as well.
        assert!(t.check_room(&" ".repeat(1 << 20), 4).is_ok());
        assert!(t.check_room(&" ".repeat((1 << 20) + 1), 4).is_err());
        assert!(t.check_room(&" ".repeat(1 << 21), 1 << 16).is_ok());
    }
}

proptest! {
    #[test]
    fn no_text_that_fits_is_refused(text in r"(to|aaaa|    |e\u{301}|\u{1f82}|각|[a-é. ]|🦀|\PC){0,30}") {
        let mut composed = byte_level();
        composed["normalizer"] = json!({"type": "NFC"});
        let composed = tokenizer(&[("tokenizer.json", composed)], BYTE_LEVEL_IDS);
        for t in [level(), fallback(), spaces(), composed] {
            let tokens = t.encode(&text, true).unwrap().len();
            prop_assert!(t.check_room(&text, tokens + 1).is_ok());
        }
    }

    #[test]
    fn text_after_a_prompt_is_the_difference(
        text in r"(to| to|  |he|\n    |[a-é.]|🦀|日|👩‍👩|\PC){0,20}",
        cut in any::<prop::sample::Index>(),
        special in any::<bool>(),
    ) {
        let text = text.replace('\u{fffd}', "");
        for (t, end) in [(level(), 260), (fallback(), 2), (spaces(), 2)] {
            let mut ids = t.encode(&text, true).unwrap();
            let start = cut.index(ids.len() + 1);
            if special {
                ids.insert(start, end);
            }
            let new = pieces_after(&t, &ids[..start], &ids[start..]).concat();
            prop_assert_eq!(new, difference(&t, &ids, start));
        }
    }

    #[test]
    fn any_text_streams_as_it_decodes(text in r"(to| |he|[a-é.]|🦀|日|👩‍👩|\PC){0,30}") {
        let text = text.replace('\u{fffd}', "");
        for t in [level(), fallback()] {
            let ids = t.encode(&text, true).unwrap();
            let pieces = pieces(&t, &ids);
            prop_assert_eq!(pieces.concat(), t.decode(&ids).unwrap());
            prop_assert!(pieces.iter().all(|p| !p.is_empty()));
        }
    }

    /// A byte-level decoder replaces bad bytes one character at a time, so that even garbage streams as it decodes.
    #[test]
    fn any_bytes_stream_as_they_decode(
        ids in prop::collection::vec(prop_oneof![0u32..262, 128u32..256, 240u32..245], 0..150)
    ) {
        let t = level();
        prop_assert_eq!(pieces(&t, &ids).concat(), t.decode(&ids).unwrap());
    }

    #[test]
    fn any_ids_stream_without_taking_anything_back(ids in prop::collection::vec(0u32..300, 0..150)) {
        let t = fallback();
        let good = |text: &str| text.replace('\u{fffd}', "");
        let (streamed, whole) = (pieces(&t, &ids).concat(), t.decode(&ids).unwrap());
        prop_assert!(good(&streamed).len() >= good(&whole).len());
    }
}
