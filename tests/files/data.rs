//! Data sets: rows of every kind of file, prompts of every kind of row, and broken files of both.
#![cfg(feature = "hf")]

use std::path::{Path, PathBuf};

use gradus::error::Error;
use gradus_rft::data::jsonl;
use gradus_rft::data::jsonl::JsonLines;
use gradus_rft::data::{
    Dataset, Example, PromptFormat, PromptSource, Row, Split, gsm8k_gold, parquet,
};
use gradus_rft::text::ChatTemplate;
use serde_json::{Map, Value, json};

fn golden() -> PathBuf {
    crate::common::root().join("tests/golden/data")
}

fn rows_of(value: &Value) -> Vec<Row> {
    value.as_array().unwrap().iter().map(|row| row.as_object().unwrap().clone()).collect()
}

fn lines(text: &[u8]) -> Result<Vec<Row>, Error> {
    JsonLines::new(text, Path::new("test")).collect()
}

#[test]
fn parquet_rows_are_what_pyarrow_wrote() {
    let bytes = std::fs::read(golden().join("rows.json")).unwrap();
    let want: Value = serde_json::from_slice(&bytes).unwrap();
    for file in
        ["snappy", "none", "gzip", "lz4", "brotli", "zstd", "zstd_v2", "pages_v2", "groups", "odd"]
    {
        let key = if want[file].is_array() { file } else { "rows" };
        let rows = parquet::read(&golden().join(file).with_extension("parquet")).unwrap();
        let want = rows_of(&want[key]);
        assert_eq!(rows, want, "{file}");
        let order = |row: &Row| row.keys().cloned().collect::<Vec<_>>();
        assert_eq!(order(&rows[0]), order(&want[0]), "{file}");
    }
}

#[test]
fn json_lines_are_read_line_by_line() {
    let text =
        b"\xef\xbb\xbf{\"a\": 1}\r\n\n  \r\n{\"b\": [1, 2.5, null, \"\xc3\xa9\"]}\n{\"c\": {}}";
    let want = json!([{"a": 1}, {"b": [1, 2.5, null, "é"]}, {"c": {}}]);
    assert_eq!(lines(text).unwrap(), rows_of(&want));
    assert_eq!(lines(b"").unwrap(), Vec::<Row>::new());

    // Numbers are read to the last bit.
    for number in
        ["0.1", "1.7976931348623157e308", "18446744073709551615", "12345678901234567890.5"]
    {
        let rows = lines(format!("{{\"n\": {number}}}").as_bytes()).unwrap();
        assert_eq!(rows[0]["n"].as_f64(), number.parse().ok(), "{number}");
    }
    let wrong: [(&[u8], &str); 9] = [
        (b"{}\n{\"a\": 1, \"a\": 2}", "line 2: column 16: the key `a` appears twice"),
        (b"{\"a\": {\"b\": [{\"c\": 1, \"c\": 1}]}}", "the key `c` appears twice"),
        (b"{}\n\n[1]", "line 3: is a list, not an object"),
        (b"3", "line 1: is a number"),
        (b"{\"a\": 1", "line 1: column"),
        (b"{\"a\": NaN}", "line 1"),
        (b"{\"a\": \"\xff\"}", "line 1"),
        (b"{} {}", "line 1"),
        (&[b"{\"a\":".repeat(500), b"1".to_vec()].concat(), "recursion limit"),
    ];
    for (text, words) in wrong {
        let error = lines(text).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
    let mut reader = JsonLines::new(&b"{}\nx\n{}"[..], Path::new("test"));
    assert!(reader.next().unwrap().is_ok() && reader.next().unwrap().is_err());
    assert!(reader.next().is_none());
}

#[test]
fn arrays_are_read_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let write = |text: &str| {
        let path = folder.path().join("rows.json");
        std::fs::write(&path, text).unwrap();
        jsonl::read(&path)
    };
    let want = rows_of(&json!([{"a": 1}, {"a": 2}]));
    assert_eq!(write("\u{feff} [ {\"a\": 1},\n{\"a\": 2} ]\n").unwrap(), want);
    assert_eq!(write("{\"a\": 1}\n{\"a\": 2}\n").unwrap(), want);
    for (text, words) in
        [("[{}, 3]", "item 1 is a number"), ("[{\"a\":1,\"a\":1}]", "twice"), ("[{}", "EOF")]
    {
        let error = write(text).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("rows.json"), "{error}");
    }
}

#[test]
fn folders_give_their_training_split() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let load = || Dataset::load(folder.path());
    assert!(load().unwrap_err().to_string().contains("no data files"));
    write("data/b.jsonl", "{\"n\": 2}");
    write("data/a.json", "[{\"n\": 1}]");
    assert_eq!(load().unwrap().rows, rows_of(&json!([{"n": 1}, {"n": 2}])));
    write("train-00000-of-00001.jsonl", "{\"n\": 3}");
    write("test.jsonl", "{\"n\": 4}");
    write("README.md", "no");
    assert_eq!(load().unwrap().rows, rows_of(&json!([{"n": 3}])));
    let test = Dataset::load_split(folder.path(), "test").unwrap();
    assert_eq!(test.rows, rows_of(&json!([{"n": 4}])));
    assert!(Dataset::load_split(folder.path(), "tes").is_err());
    write("test.jsonl", "\n");
    let empty = Dataset::load_split(folder.path(), "test").unwrap_err().to_string();
    assert!(empty.contains("has no rows"), "{empty}");
    assert!(
        Dataset::load(&folder.path().join("README.md")).unwrap_err().to_string().contains(".md")
    );
    assert!(matches!(Dataset::load(Path::new("nowhere.jsonl")), Err(Error::Io { .. })));
}

fn data(rows: Value) -> Dataset {
    Dataset { path: "test".into(), rows: rows_of(&rows) }
}

fn one(row: Value, source: PromptSource) -> gradus::Result<Example> {
    let format = PromptFormat { source, ..PromptFormat::default() };
    data(json!([row])).examples(&format, None).map(|mut examples| examples.remove(0))
}

#[test]
fn every_kind_of_row_becomes_a_prompt() {
    let plain = one(json!({"prompt": "P", "completion": "C", "level": 3}), PromptSource::Auto);
    let plain = plain.unwrap();
    assert_eq!((plain.prompt.as_str(), plain.demo.as_deref()), ("P", Some("C")));
    assert_eq!((plain.rendered, &plain.fields["level"]), (false, &json!(3)));

    let user = json!({"role": "user", "content": "U"});
    let system = json!({"role": "system", "content": "S"});
    let assistant = json!({"role": "assistant", "content": "A"});
    let chat = one(json!({"messages": [system, user, assistant]}), PromptSource::Auto).unwrap();
    assert_eq!((chat.prompt.as_str(), chat.demo.as_deref()), ("S\n\nU", Some("A")));
    let chat =
        one(json!({"prompt": [user], "completion": [assistant]}), PromptSource::Auto).unwrap();
    assert_eq!((chat.prompt.as_str(), chat.demo.as_deref()), ("U", Some("A")));

    let question = one(json!({"question": "Q", "answer": "A"}), PromptSource::Auto).unwrap();
    assert_eq!((question.prompt.as_str(), question.demo), ("Q", None));
    let gsm =
        one(json!({"question": "Q", "answer": "2+2\n#### 1,004 "}), PromptSource::Auto).unwrap();
    assert!(gsm.prompt.starts_with("Q\n\n") && gsm.prompt.contains("####"));
    assert_eq!(
        (&gsm.fields["gold"], gsm.demo.as_deref()),
        (&json!("1004"), Some("2+2\n#### 1,004 "))
    );
    assert_eq!(gsm8k_gold("#### 1 #### -2.5"), Some("-2.5".into()));
    assert_eq!((gsm8k_gold("4"), gsm8k_gold("####  ")), (None, None));

    for row in [json!({"nums": [3, 5], "target": 8}), json!({"numbers": ["3", 5], "target": "8"})] {
        let countdown = one(row, PromptSource::Auto).unwrap();
        assert!(countdown.prompt.contains("equals 8") && countdown.prompt.contains("3, 5,"));
        assert_eq!(
            (&countdown.fields["nums"], &countdown.fields["target"]),
            (&json!([3, 5]), &json!(8))
        );
    }
    let template = PromptSource::Template("{{ a }}: {{ b.c | upper }}".into());
    assert_eq!(one(json!({"a": 1, "b": {"c": "x"}}), template).unwrap().prompt, "1: X");
}

/// Integers of more than 64 bits reach templates as they are, and rewards as texts of their digits.
#[test]
fn wide_integers_keep_their_digits() {
    let digits = "-123456789012345678901234567890123456789012345678901234567890";
    let text = format!("{{\"n\": 18446744073709551616, \"m\": [{digits}, 1], \"k\": 7}}");
    let rows = [
        lines(text.as_bytes()).unwrap(),
        jsonl::parse_array(format!("[{text}]").as_bytes(), Path::new("test")).unwrap(),
    ];
    for rows in rows {
        let data = Dataset { path: "test".into(), rows };
        let source = "{{ n }} {{ n + 1 }} {{ m }} {{ m | tojson }} {{ k }} {{ m[0] ~ '' }}";
        let format = PromptFormat {
            source: PromptSource::Template(source.into()),
            ..PromptFormat::default()
        };
        let example = data.examples(&format, None).unwrap().remove(0);
        let want = format!(
            "18446744073709551616 18446744073709551617 [{digits}, 1] [{digits}, 1] 7 {digits}"
        );
        assert_eq!(example.prompt, want);
        let fields = json!({"n": "18446744073709551616", "m": [digits, 1], "k": 7});
        assert_eq!(Value::Object(example.fields), fields);
    }
}

/// A prompt that ends within an assistant's message is not closed, and a row's tools and options reach
/// the template.
#[test]
fn rows_tell_the_template() {
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{{ tools | tojson if tools }}\
                  {{ style }}{% if add_generation_prompt %}<assistant>{% endif %}{{ documents | tojson if documents }}";
    let template = ChatTemplate::new("test", source, Map::new()).unwrap();
    let prompt = |row: Value| {
        let examples = data(json!([row])).examples(&PromptFormat::default(), Some(&template));
        examples.map(|mut e| e.remove(0)).map_err(|e| e.to_string())
    };
    let user = json!({"role": "user", "content": "U"});
    let begun = json!({"role": "assistant", "content": "<think>"});
    let got = prompt(json!({"prompt": [user, begun], "answer": 1})).unwrap();
    assert_eq!((got.prompt.as_str(), got.demo), ("<user>U</><assistant><think>", None));
    // The last message of `messages` is the demonstration; one before it is gone on with.
    let got =
        prompt(json!({"messages": [user, begun, {"role": "assistant", "content": "D"}]})).unwrap();
    assert_eq!(
        (got.prompt.as_str(), got.demo.as_deref()),
        ("<user>U</><assistant><think>", Some("D"))
    );

    let tools = json!([{"name": "f", "parameters": {"x": null, "y": 1}}]);
    let options = json!({"style": "!", "unset": null});
    let want = "<user>U</>[{\"name\": \"f\", \"parameters\": {\"y\": 1}}]!<assistant>";
    for row in [
        json!({"prompt": "U", "tools": tools, "chat_template_kwargs": options}),
        json!({"prompt": "U", "tools": tools.to_string(), "chat_template_kwargs": options.to_string()}),
    ] {
        assert_eq!(prompt(row).unwrap().prompt, want);
    }
    let with = json!({"prompt": "U", "documents": [{"title": "t"}], "tools": null});
    assert_eq!(prompt(with).unwrap().prompt, "<user>U</><assistant>[{\"title\": \"t\"}]");
    assert_eq!(
        prompt(json!({"prompt": "U", "tools": []})).unwrap().prompt,
        "<user>U</><assistant>"
    );
    for (row, words) in [
        (json!({"prompt": "U", "tools": 3}), "`tools` is a number"),
        (json!({"prompt": "U", "tools": "hammer"}), "`tools` is a string"),
        (json!({"prompt": "U", "chat_template_kwargs": [1]}), "`chat_template_kwargs` is a list"),
        (
            json!({"prompt": "U", "chat_template_kwargs": {"messages": []}}),
            "`messages`, which is no option",
        ),
    ] {
        let error = prompt(row).unwrap_err();
        assert!(error.contains(words) && error.contains("row 0"), "{words}: {error}");
    }
    let error = one(json!({"prompt": "U", "tools": tools}), PromptSource::Auto).unwrap_err();
    assert!(error.to_string().contains("chat template"), "{error}");
    let plain = ChatTemplate::new("test", "{{ messages[0].content }}", Map::new()).unwrap();
    let rows = data(json!([{"prompt": "U", "tools": tools}]));
    let error = rows.examples(&PromptFormat::default(), Some(&plain)).unwrap_err().to_string();
    assert!(error.contains("does not read `tools`"), "{error}");
}

#[test]
fn columns_are_found_by_path() {
    let row = json!({"a.b": 1, "a": {"b": 2, "c": [{"d": 3}], "e.f": 4}, "text": "{\"g\": {\"h\": 5}}", "z": null});
    let row = row.as_object().unwrap();
    for (path, want) in
        [("a.b", json!(1)), ("a.c.0.d", json!(3)), ("a.e.f", json!(4)), ("text.g.h", json!(5))]
    {
        assert_eq!(gradus_rft::data::at(row, path).unwrap().into_owned(), want, "{path}");
    }
    for missing in ["b", "a.c.1.d", "a.c.x", "text.g.i", "a.", ".", ""] {
        assert!(gradus_rft::data::at(row, missing).is_none(), "{missing}");
    }
}

#[test]
fn rows_that_do_not_fit_are_named() {
    let wrong = [
        (json!({"text": "x", "id": 1}), PromptSource::Auto, "the columns are [\"text\", \"id\"]"),
        (
            json!({"a": 1}),
            PromptSource::Prompt("prompt".into()),
            "row 0: there is no column `prompt`; its columns are [\"a\"]",
        ),
        (json!({"prompt": 1}), PromptSource::Auto, "`prompt` is a number"),
        (json!({"messages": "x"}), PromptSource::Auto, "`messages` is a string"),
        (json!({"messages": []}), PromptSource::Auto, "none before the answer"),
        (json!({"messages": [1]}), PromptSource::Auto, "without a text"),
        (json!({"question": "q", "answer": "x"}), PromptSource::Gsm8k, "does not end in `####`"),
        (json!({"question": "q"}), PromptSource::Gsm8k, "there is no column `answer`"),
        (
            json!({"nums": [], "target": 1}),
            PromptSource::Auto,
            "`nums` is not a list of whole numbers",
        ),
        (json!({"nums": [1.5], "target": 1}), PromptSource::Auto, "`nums` is not"),
        (json!({"numbers": [1], "target": "x"}), PromptSource::Auto, "`target` is not"),
        (json!({"a": 1}), PromptSource::Template("{{ b }}".into()), "row 0"),
        (json!({"a": 1}), PromptSource::Template("{{ b".into()), "prompt template"),
    ];
    for (row, source, words) in wrong {
        let error = one(row, source).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
    let talk = json!([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]);
    let error = one(json!({ "messages": talk }), PromptSource::Auto).unwrap_err().to_string();
    assert!(error.contains("chat template"), "{error}");
}

#[test]
fn chat_templates_frame_every_prompt() {
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\
                  {% if messages[-1].content == 'bad' %}{{ raise_exception('bad words') }}{% endif %}\
                  {% if add_generation_prompt %}<assistant>{% endif %}";
    let template = ChatTemplate::new("test", source, Map::new()).unwrap();
    let format = PromptFormat { system: Some("S".into()), ..PromptFormat::default() };
    let rows = json!([{"prompt": "P"}, {"prompt": [{"role": "system", "content": "own"}, {"role": "user", "content": "U"}]}]);
    let examples = data(rows).examples(&format, Some(&template)).unwrap();
    assert_eq!(examples[0].prompt, "<system>S<user>P<assistant>");
    assert_eq!(examples[1].prompt, "<system>own<user>U<assistant>");
    assert!(examples[0].rendered);
    let rows = data(json!([{"prompt": "P"}, {"prompt": "bad"}]));
    let error = rows.examples(&format, Some(&template)).unwrap_err().to_string();
    assert!(error.contains("row 1") && error.contains("bad words"), "{error}");
}

#[test]
fn splits_share_no_prompt() {
    let rows: Vec<Value> = (0..400).map(|i| json!({"prompt": format!("p{}", i % 200)})).collect();
    let examples = data(Value::Array(rows)).examples(&PromptFormat::default(), None).unwrap();
    let split = Split::by_hash(examples.clone(), 5).unwrap();
    assert!((40..=120).contains(&split.heldout.len()), "{}", split.heldout.len());
    assert_eq!(split.train.len() + split.heldout.len(), 400);
    let in_train = |e: &Example| split.train.iter().any(|t| t.prompt == e.prompt);
    assert!(!split.heldout.iter().any(in_train));
    let mut turned = examples.clone();
    turned.reverse();
    let again = Split::by_hash(turned, 5).unwrap();
    assert_eq!(again.heldout.len(), split.heldout.len());
    let explicit = Split::explicit(examples.clone(), examples[..10].to_vec()).unwrap();
    assert_eq!((explicit.train.len(), explicit.heldout.len()), (380, 10));
    assert!(Split::explicit(examples[..10].to_vec(), examples.clone()).is_err());
    assert!(Split::by_hash(examples, 1).is_err());
}

/// A few kilobytes hold gigabytes: refused by what they claim, in little time and memory.
#[test]
fn parquet_bombs_are_refused() {
    for (bomb, words) in [
        ("page", "claim more than"),
        ("page_zstd", "claim more than"),
        ("dictionary", "take more than"),
        ("nulls", "take more than"),
        ("list", "claim more than"),
        ("prefix", "take more than"),
    ] {
        let start = std::time::Instant::now();
        let path = golden().join(format!("bomb_{bomb}.parquet"));
        let error = parquet::read(&path).unwrap_err();
        assert!(matches!(error, Error::Format { .. }), "{bomb}: {error}");
        assert!(error.to_string().contains(words), "{bomb}: {error}");
        assert!(start.elapsed().as_secs() < 20, "{bomb}");
    }
}

/// Whatever is cut or changed in a file gives rows or an error.
#[test]
fn no_broken_file_panics() {
    let path = Path::new("test");
    for file in ["snappy", "none", "gzip", "brotli", "zstd", "zstd_v2", "pages_v2", "odd"] {
        let bytes = std::fs::read(golden().join(file).with_extension("parquet")).unwrap();
        for at in (0..bytes.len()).step_by(bytes.len() / 60) {
            assert!(parquet::parse(bytes[..at].to_vec(), path).is_err());
            for bit in [0, 3, 7] {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                let _ = parquet::parse(changed, path);
            }
        }
    }
    let text = b"{\"a\": [1, 2.5e3, null, \"\\u00e9\"], \"b\": {\"c\": true}}\n{\"a\": \"x\"}\n";
    for at in 0..text.len() {
        let _ = lines(&text[..at]);
        for bit in 0..8 {
            let mut changed = text.to_vec();
            changed[at] ^= 1 << bit;
            let _ = lines(&changed);
            let _ = jsonl::parse_array(&changed, path);
        }
    }
}
