//! Tokenizers and chat templates: what Python's side says, bit for bit, and whatever is broken is
//! an error.
#![cfg(feature = "hf")]

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use gradus::error::Error;
use gradus_rft::text::{ChatOptions, ChatTemplate, Codec, Tokenizer};
use serde_json::{Map, Value, json};

fn golden() -> PathBuf {
    crate::common::root().join("tests/golden/text")
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

fn ids(value: &Value) -> Vec<i32> {
    list(value).iter().map(|id| id.as_i64().unwrap() as i32).collect()
}

fn options(given: &Value) -> ChatOptions {
    let mut options = ChatOptions::default();
    for (key, value) in given.as_object().unwrap() {
        match key.as_str() {
            "add_generation_prompt" => options.add_generation_prompt = value.as_bool().unwrap(),
            "tools" => options.tools = Some(value.clone()),
            _ => drop(options.extra.insert(key.clone(), value.clone())),
        }
    }
    options
}

fn template(source: &str) -> gradus::Result<ChatTemplate> {
    ChatTemplate::new("test", source, Map::new())
}

fn say(source: &str) -> gradus::Result<String> {
    template(source)?.render(&[json!({"role": "user", "content": "hi"})], &ChatOptions::default())
}

#[test]
fn chats_are_rendered_as_python_renders_them() {
    let golden = read(&golden().join("chat.json"));
    let mut wrong = Vec::new();
    for case in list(&golden["cases"]) {
        let name = case["template"].as_str().unwrap();
        let source = golden["templates"][name].as_str().unwrap();
        let tokens = golden["tokens"].as_object().unwrap().clone();
        let template = ChatTemplate::new(name, source, tokens).unwrap();
        let messages = list(&golden["chats"][case["chat"].as_str().unwrap()]);
        let got = template.render(messages, &options(&case["options"]));
        let same = match (&got, case["text"].as_str(), case["refused"].as_str()) {
            (Ok(got), Some(text), _) => got == text,
            (Err(Error::InvalidArgument { got, .. }), _, Some(words)) => got == words,
            _ => false,
        };
        if !same {
            let what = format!("{name} {} {}", case["chat"], case["options"]);
            let want = case["text"].as_str().or(case["refused"].as_str()).unwrap();
            wrong.push(format!(
                "{what}\n-- want\n{want}\n-- got\n{}\n",
                got.unwrap_or_else(|e| e.to_string())
            ));
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
    assert!(list(&golden["cases"]).len() > 70);
}

#[test]
fn texts_have_the_ids_python_gives_them() {
    for family in list(&read(&golden().join("tokenizers.json"))) {
        let name = family["name"].as_str().unwrap();
        let tokenizer = Tokenizer::load(&golden().join(name)).unwrap();
        assert_eq!(json!(tokenizer.len()), family["len"], "{name}");
        for case in list(&family["cases"]) {
            let text = case["text"].as_str().unwrap();
            let (bare, special) = (ids(&case["bare"]), ids(&case["special"]));
            assert_eq!(tokenizer.encode_rendered(text).unwrap(), bare, "{name}: {text:?}");
            assert_eq!(tokenizer.encode(text).unwrap(), special, "{name}: {text:?}");
            assert_eq!(
                json!(tokenizer.decode(&bare).unwrap()),
                case["decoded"],
                "{name}: {text:?}"
            );
            assert_eq!(
                json!(tokenizer.decode_raw(&bare).unwrap()),
                case["raw"],
                "{name}: {text:?}"
            );
        }
    }
}

/// Whatever a stream shows joins to the whole text, and no piece holds half a character.
#[test]
fn streams_join_to_the_whole_text() {
    for family in list(&read(&golden().join("tokenizers.json"))) {
        let name = family["name"].as_str().unwrap();
        let tokenizer = Tokenizer::load(&golden().join(name)).unwrap();
        let mut all = Vec::new();
        for case in list(&family["cases"]) {
            let bare = ids(&case["bare"]);
            all.extend(&bare);
            for ids in [&bare, &all] {
                let mut stream = tokenizer.stream();
                let mut pieces: Vec<String> =
                    ids.iter().map(|&id| stream.push(id).unwrap()).collect();
                pieces.push(stream.finish().unwrap());
                let text = tokenizer.decode(ids).unwrap();
                // This decoder takes the space before an apostrophe back after it was shown.
                if name != "word_piece" {
                    assert_eq!(pieces.concat(), text, "{name}: {:?}", case["text"]);
                }
                let broken = |s: &str| s.matches('\u{fffd}').count();
                assert_eq!(broken(&pieces.concat()), broken(&text), "{name}: {pieces:?}");
            }
        }
    }
}

/// A folder with `byte_level`'s tokenizer and these files.
fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = golden().join("byte_level/tokenizer.json");
    std::fs::copy(from, folder.path().join("tokenizer.json")).unwrap();
    for (name, value) in files {
        std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    }
    folder
}

#[test]
fn neighbors_name_the_stops_and_the_beginning() {
    let files = [
        (
            "tokenizer_config.json",
            json!({"eos_token": {"content": "<|stop|>"}, "bos_token": "<s>"}),
        ),
        ("generation_config.json", json!({"eos_token_id": [1, 3], "pad_token_id": 2})),
        ("config.json", json!({"eos_token_id": 1})),
    ];
    let with = folder(&files);
    let tokenizer = Tokenizer::load(with.path()).unwrap();
    assert_eq!(tokenizer.stops(), [3, 1]);
    assert_eq!((tokenizer.bos(), tokenizer.pad()), (Some(0), Some(2)));
    assert_eq!(tokenizer.id("<|start|>"), Some(2));
    let text = tokenizer.encode_rendered("fox</s> dog").unwrap();
    assert_eq!(tokenizer.decode(&text).unwrap(), "fox");
    assert_eq!(tokenizer.decode_raw(&text).unwrap(), "fox</s> dog");
    assert_eq!(tokenizer.stream().push(1).unwrap(), "");

    let plain = Tokenizer::load(folder(&[]).path()).unwrap();
    assert_eq!((plain.stops(), plain.bos(), plain.pad()), (&[][..], None, None));
    let map = folder(&[("special_tokens_map.json", json!({"eos_token": "</s>"}))]);
    assert_eq!(Tokenizer::load(map.path()).unwrap().stops(), [1]);

    for wrong in [json!("1"), json!([1, "a"]), json!(-1), json!(1u64 << 40), json!({})] {
        let with = folder(&[("generation_config.json", json!({"eos_token_id": wrong}))]);
        let error = Tokenizer::load(with.path()).unwrap_err().to_string();
        assert!(error.contains("generation_config.json: `eos_token_id`"), "{error}");
    }
}

#[test]
fn plain_text_begins_as_the_configuration_says() {
    let add = |add: Value| {
        let config = json!({"bos_token": "<|start|>", "add_bos_token": add});
        Tokenizer::load(folder(&[("tokenizer_config.json", config)]).path()).unwrap()
    };
    let bare = add(Value::Null).encode_rendered("a fox").unwrap();
    let after = |bos: i32| [&[bos][..], &bare].concat();
    assert_eq!(add(Value::Null).encode("a fox").unwrap(), after(0), "the post-processor's");
    assert_eq!(add(json!(false)).encode("a fox").unwrap(), bare);
    assert_eq!(add(json!(true)).encode("a fox").unwrap(), [&[2, 0][..], &bare].concat());

    // A beginning and an end by the post-processor: the end is not for a prompt.
    let folder = tempfile::tempdir().unwrap();
    let from = golden().join("byte_fallback/tokenizer.json");
    std::fs::copy(from, folder.path().join("tokenizer.json")).unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"eos_token_id": 2}"#).unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    let bare = tokenizer.encode_rendered("the row</s>").unwrap();
    assert_eq!(bare.last(), Some(&2), "the text's own stays");
    assert_eq!(tokenizer.encode("the row</s>").unwrap(), [&[1][..], &bare].concat());
}

#[test]
fn tokens_of_the_configuration_are_added_where_they_belong() {
    let config =
        |id: &str| json!({"added_tokens_decoder": {id: {"content": "<new>", "special": true}}});
    let plain = Tokenizer::load(folder(&[]).path()).unwrap();
    let next = plain.len().to_string();
    let with = folder(&[("tokenizer_config.json", config(&next))]);
    let tokenizer = Tokenizer::load(with.path()).unwrap();
    assert_eq!(tokenizer.len(), plain.len() + 1);
    assert_eq!(tokenizer.encode_rendered("<new>").unwrap(), [plain.len() as i32]);
    tokenizer.check(plain.len() + 1).unwrap();
    let error = tokenizer.check(plain.len()).unwrap_err().to_string();
    assert!(error.contains("embedding has 400 rows"), "{error}");
    for wrong in ["7", "9999", "x"] {
        let with = folder(&[("tokenizer_config.json", config(wrong))]);
        let error = Tokenizer::load(with.path()).unwrap_err().to_string();
        assert!(error.contains(wrong) && error.contains("tokenizer_config.json"), "{error}");
    }
}

#[test]
fn ids_out_of_range_are_refused() {
    let tokenizer = Tokenizer::load(&golden().join("byte_level")).unwrap();
    for wrong in [-1, i32::MIN, i32::MAX, tokenizer.len() as i32] {
        let error = tokenizer.decode(&[5, wrong]).unwrap_err().to_string();
        assert!(error.contains(&format!("got {wrong}, expected ids in 0..400")), "{error}");
        assert!(tokenizer.stream().push(wrong).is_err());
    }
    let error = Tokenizer::load(Path::new("nowhere")).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("no such file"), "{error}");
}

#[test]
fn templates_are_found_where_models_keep_them() {
    let none = folder(&[]);
    assert!(ChatTemplate::load(none.path()).unwrap().is_none());
    let text = "{{ eos_token }}{{ messages[0].content }}";
    let listed = json!([{"name": "rag", "template": "no"}, {"name": "default", "template": text}]);
    for (config, file) in [(json!(text), None), (listed, None), (json!("no"), Some(text))] {
        let config = json!({"eos_token": {"content": "<e>"}, "chat_template": config});
        let with = folder(&[("tokenizer_config.json", config)]);
        if let Some(text) = file {
            std::fs::write(with.path().join("chat_template.jinja"), text).unwrap();
        }
        let template = ChatTemplate::load(with.path()).unwrap().unwrap();
        let messages = [json!({"role": "user", "content": "hi"})];
        assert_eq!(template.render(&messages, &ChatOptions::default()).unwrap(), "<e>hi");
    }
    for wrong in [json!(3), json!([]), json!([{"name": "default"}]), json!("{% if %}")] {
        let with = folder(&[("tokenizer_config.json", json!({"chat_template": wrong}))]);
        let error = ChatTemplate::load(with.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json"), "{error}");
    }
}

#[test]
fn dates_are_those_of_the_options() {
    let template = template("{{ strftime_now('%d %B %Y') }}").unwrap();
    let now = Some(UNIX_EPOCH + Duration::from_secs(1_709_210_096));
    let options = ChatOptions { now, ..ChatOptions::default() };
    assert_eq!(template.render(&[], &options).unwrap(), "29 February 2024");
}

/// Operators, filters and methods, and how values are spelled; `None` where Python refuses.
#[test]
fn expressions_print_what_python_prints() {
    let golden = read(&golden().join("expressions.json"));
    let mut extra = golden["variables"].as_object().unwrap().clone();
    // As data files hold integers of more than 64 bits.
    let row = format!("{{\"big\": {}}}", golden["big"].as_str().unwrap());
    let mut rows = gradus_rft::data::jsonl::JsonLines::new(row.as_bytes(), Path::new("test"));
    extra.extend(rows.next().unwrap().unwrap());
    let options = ChatOptions { extra, ..ChatOptions::default() };
    let mut wrong = Vec::new();
    for case in list(&golden["cases"]) {
        let source = case[0].as_str().unwrap();
        let got = template(source)
            .and_then(|t| t.render(&[json!({"role": "user", "content": "hi"})], &options));
        if got.as_deref().ok() != case[1].as_str() {
            wrong.push(format!("{source}\n  want {}\n  got  {got:?}", case[1]));
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
    assert!(list(&golden["cases"]).len() > 350);
}

#[test]
fn last_messages_go_on() {
    let templates = read(&golden().join("chat.json"));
    let cases = read(&golden().join("continued.json"));
    for case in list(&cases) {
        let name = case["template"].as_str().unwrap();
        let source = templates["templates"][name].as_str().unwrap();
        let tokens = templates["tokens"].as_object().unwrap().clone();
        let template = ChatTemplate::new(name, source, tokens).unwrap();
        let options = ChatOptions { continue_final_message: true, ..options(&case["options"]) };
        let got = template.render(list(&case["chat"]), &options);
        assert_eq!(got.as_deref().ok(), case["text"].as_str(), "{case}: {got:?}");
    }
    let gone = template("{{ messages[0].content }}").unwrap();
    let options = ChatOptions { continue_final_message: true, ..ChatOptions::default() };
    let talk =
        [json!({"role": "user", "content": "a"}), json!({"role": "assistant", "content": "b"})];
    let error = gone.render(&talk, &options).unwrap_err().to_string();
    assert!(error.contains("leaves out"), "{error}");
    let empty = [json!({"role": "assistant", "tool_calls": []})];
    assert!(gone.render(&empty, &options).unwrap_err().to_string().contains("without a text"));
    // Tools that a template would not write are refused.
    let options = ChatOptions { tools: Some(json!([{"name": "f"}])), ..ChatOptions::default() };
    let error = gone.render(&talk, &options).unwrap_err().to_string();
    assert!(error.contains("does not read `tools`"), "{error}");
}

/// The budget that stops hostile templates leaves room for what is real.
#[test]
fn long_conversations_are_within_the_budget() {
    let golden = read(&golden().join("chat.json"));
    let turns = list(&golden["chats"]["talk"]);
    let many: Vec<Value> =
        turns[..1].iter().chain(turns[1..3].iter().cycle().take(3000)).cloned().collect();
    let long = [json!({"role": "user", "content": "word ".repeat(200_000)})];
    for name in ["frame", "headers", "alternate"] {
        let source = golden["templates"][name].as_str().unwrap();
        let template =
            ChatTemplate::new(name, source, golden["tokens"].as_object().unwrap().clone()).unwrap();
        for messages in [&many[..], &long] {
            let text = template.render(messages, &ChatOptions::default()).unwrap();
            assert!(text.len() > 50_000, "{name}");
        }
    }
}

/// Templates that never end, eat memory or nest without end stop with an error.
#[test]
fn hostile_templates_stop() {
    let hostile = [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999999999) %}x{% endfor %}",
        "{{ 'x' * 999999999 }}",
        "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x='x') %}{% for i in range(20) %}{% set ns.x = ns.x.replace('x', 'xxxxxxxx') %}{% endfor %}",
        "{% for a in range(9999) %}{{ 'abcdefgh' * 999 }}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m(x) %}{{ m([x]) }}{% endmacro %}{{ m(1) }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(900) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{{ [1] | tojson(indent=9999999) }}",
        "{% include 'other' %}",
        "{% extends 'other' %}",
        "{% import 'other' as x %}",
        "{{ strftime_now('%Q') }}",
        "{{ undefined_thing.field }}",
        "{{ 1 / 0 }}",
        "{{ 'a'.nope() }}",
        "{{ nope() }}",
        "{{ messages | nope }}",
    ];
    for source in hostile {
        let start = std::time::Instant::now();
        assert!(say(source).is_err(), "{source}");
        assert!(start.elapsed().as_secs() < 10, "{source}");
    }
    let deep = [
        "{% if x %}".repeat(5000),
        "(".repeat(9999),
        "[".repeat(9999),
        "{{ ".to_owned() + &"not ".repeat(9999),
    ];
    for source in
        deep.iter().map(String::as_str).chain(["{{ (", "{%", "{{ 'x", "{#", &"x".repeat(2 << 20)])
    {
        assert!(say(&format!("{{{{ {source}")).is_err() || say(source).is_err());
    }
}

/// Lists that hold their predecessor twice, sixty times over, have more parts than there is time to
/// look at; texts of megabytes are looked at again and again; chains of operators have no end. All
/// of it stops, and soon.
#[test]
fn what_an_instruction_looks_at_is_bounded() {
    let nested = "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}\
                  {% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}";
    let long = "{% set ns = namespace(s='x' * 1000000) %}";
    let many = "{% for i in range(100000) %}";
    let nested = [
        "{{ ns.x == ns.y }}",
        "{{ 1 < ns.x < ns.y }}",
        "{{ ns.x in [ns.y] }}",
        "{{ [ns.x, ns.y] | sort }}",
        "{{ ns.x }}",
        "{{ ns.x ~ '' }}",
        "{{ ns.x | upper }}",
        "{{ [ns.x] | map('upper') | list }}",
        "{{ '{}'.format(ns.x) }}",
        "{{ {'a': 1}[ns.x] }}",
        "{{ [ns.x] | select('eq', ns.y) | list }}",
        "{{ [{'a': ns.x}, {'a': ns.y}] | groupby('a') }}",
        "{% for q in [ns.x, ns.y] %}{{ loop.changed(q) }}{% endfor %}",
        "{{ raise_exception(ns.x) }}",
    ]
    .map(|end| format!("{nested}{end}"));
    let long = [
        "{{ ns.s.replace('x', ns.s) }}",
        "{{ range(90000) | map('string') | join(ns.s) }}",
        "{{ ns.s.join(range(90000) | map('string') | list) }}",
        "{{ 'x'.center(999999999999) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ ns.s | wordwrap(1, wrapstring=ns.s) }}",
        "MANY{{ ns.s == ns.s ~ '' }}{% endfor %}",
        "MANY{{ ns.s[i] }}{% endfor %}",
        "MANY{% for c in ns.s %}{% break %}{% endfor %}{% endfor %}",
        "{% set l = [1] %}{% set n = namespace(x=[1]) %}MANY{% set n.x = n.x + n.x %}{% endfor %}",
    ]
    .map(|end| format!("{long}{}", end.replace("MANY", many)));
    let chains = [" ~ ", " ** ", " + ", " and ", " % "]
        .map(|sign| format!("{{{{ {} }}}}", vec!["1"; 40_000].join(sign)));
    let deep = [
        format!("{{{{ x{} }}}}", "|upper".repeat(30_000)),
        format!("{{{{ x{} }}}}", ".a".repeat(80_000)),
        format!("{{{{ {}1 }}}}", "-".repeat(100_000)),
        format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 3 %}".repeat(18_000)),
    ];
    for source in nested.iter().chain(&long).chain(&chains).chain(&deep) {
        let (start, end) = (std::time::Instant::now(), &source[source.len().saturating_sub(60)..]);
        assert!(say(source).is_err(), "{end}");
        assert!(start.elapsed().as_secs() < 20, "{end}");
    }
}

/// Values nested without end are dropped without overflowing the stack.
#[test]
fn deep_values_are_dropped() {
    let nest = "{% set ns = namespace(x=[]) %}{% for i in range(RANGE) %}{% for j in range(9999) %}\
                {% set ns.x = VALUE %}{% endfor %}{% endfor %}";
    // Many levels a step: 400,000 within the budget.
    let many = format!("{}ns.x{}", "[".repeat(40), "]".repeat(40));
    for end in
        ["", "{{ ns.x }}", "{{ ns.x == ns.x }}", "{{ [ns.x, ns.x] | sort }}", "{{ ns.x ~ '' }}"]
    {
        for (range, value) in [("1", "[ns.x]"), ("6", "[ns.x]"), ("9999", "[ns.x]"), ("1", &many)] {
            // Too deep, out of fuel or right: all of it returns.
            let _ = say(&(nest.replace("RANGE", range).replace("VALUE", value) + end));
        }
    }
}

#[test]
fn refusals_carry_the_templates_words() {
    let error = say("{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }));
    assert!(error.to_string().contains("roles must alternate"), "{error}");
    let error = say("\n\n{{ messages[0].content.nope.more }}").unwrap_err().to_string();
    assert!(error.contains('3'), "names the line: {error}");
    let not_a_message = template("x").unwrap().render(&[json!("hi")], &ChatOptions::default());
    assert!(not_a_message.unwrap_err().to_string().contains("`messages`"));
}

#[test]
fn special_tokens_can_be_kept() {
    let config = json!({"eos_token": "</s>"});
    let tokenizer = Tokenizer::load(folder(&[("tokenizer_config.json", config)]).path()).unwrap();
    let ids = tokenizer.encode_rendered("a<|start|> fox</s> dog").unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a fox");
    assert_eq!(tokenizer.decode_spelled(&ids).unwrap(), "a<|start|> fox");
}

/// What a folder can make us do is bounded in time and memory, and nothing of a dependency's panics is
/// printed.
#[test]
fn hostile_tokenizers_are_refused_soon() {
    let soon = |files: &[(&str, Value)]| {
        let start = std::time::Instant::now();
        let done = Tokenizer::load(folder(files).path());
        assert!(start.elapsed().as_secs() < 20);
        done
    };
    let plain = Tokenizer::load(folder(&[]).path()).unwrap().len();
    let token = |i: usize| {
        ((plain + i).to_string(), json!({"content": format!("<t{i}>"), "special": true}))
    };
    let many: Map<String, Value> = (0..20_000).map(token).collect();
    let tokenizer =
        soon(&[("tokenizer_config.json", json!({"added_tokens_decoder": many}))]).unwrap();
    assert_eq!(tokenizer.len(), plain + 20_000);
    assert_eq!(tokenizer.id("<t19999>"), Some((plain + 19_999) as i32));
    let ends: Vec<usize> = (0..1_000_000).collect();
    let error = soon(&[("generation_config.json", json!({"eos_token_id": ends}))]).unwrap_err();
    assert!(error.to_string().contains("more than 1024 ids"), "{error}");

    let bytes = std::fs::read(golden().join("byte_level/tokenizer.json")).unwrap();
    let original: Value = serde_json::from_slice(&bytes).unwrap();
    let with = |part: &str, steps: Value| {
        let mut changed = original.clone();
        changed[part] = steps;
        let start = std::time::Instant::now();
        let made = Tokenizer::from_bytes(Path::new("test"), changed.to_string().as_bytes());
        let done = made.and_then(|t| t.encode(&"a".repeat(10_000)).map(drop));
        assert!(start.elapsed().as_secs() < 20);
        done.map_err(|e| e.to_string())
    };
    let replace =
        |content: &str| json!({"type": "Replace", "pattern": {"String": "a"}, "content": content});
    let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "normalizers": steps});
    for (part, steps, words) in [
        ("normalizer", replace(&"b".repeat(1 << 20)), "1048576 times as long"),
        ("normalizer", sequence(vec![replace("aa"); 12]), "4096 times as long"),
        ("normalizer", json!({"type": "Prepend", "prepend": "x".repeat(1 << 20)}), "before a text"),
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "////"}), "cut off"),
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "cut off"),
        (
            "pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": vec![
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}); 12]}),
            "4096 times",
        ),
        (
            "decoder",
            json!({"type": "Sequence", "decoders": vec![replace("aa"); 12]}),
            "its decoder may",
        ),
    ] {
        let error = with(part, steps).unwrap_err();
        assert!(error.contains(words), "{words}: {error}");
    }
    assert!(with("normalizer", sequence(vec![replace("aa"); 2])).is_ok());
    // A map whose trie is garbage: an error or ids, and no word on standard error.
    let garbage = json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="});
    let _ = with("normalizer", garbage);
}

/// Whatever is cut or changed in a tokenizer's file gives a tokenizer or an error.
#[test]
fn no_broken_tokenizer_panics() {
    for name in ["byte_level", "byte_fallback", "unigram", "word_piece"] {
        let path = golden().join(name).join("tokenizer.json");
        let bytes = std::fs::read(&path).unwrap();
        let step = (bytes.len() / 40).max(1);
        for at in (0..bytes.len()).step_by(step) {
            let cut = Tokenizer::from_bytes(&path, &bytes[..at]);
            assert!(cut.is_err() || at + 1 == bytes.len(), "{name}: cut at {at}");
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 7);
            if let Ok(tokenizer) = Tokenizer::from_bytes(&path, &changed) {
                let ids = tokenizer.encode("the fox 12 é😀 <s>");
                let _ = ids.and_then(|ids| tokenizer.decode(&ids));
            }
        }
    }
}
