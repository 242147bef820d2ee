//! Data sets: rows of every kind of file, prompts of every kind of row, and broken files of both.
#![cfg(feature = "hf")]

use std::path::{Path, PathBuf};

use gradus::data::jsonl::{self, JsonLines};
use gradus::data::{Dataset, Example, PromptFormat, PromptSource, Row, Split, gsm8k_gold, parquet};
use gradus::error::Error;
use gradus::text::ChatTemplate;
use serde_json::{Map, Value, json};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data")
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

    // Numbers are read to the last bit; integers beyond 64 bits become floats.
    for number in
        ["0.1", "-444444499999999994444444444466", "1.7976931348623157e308", "18446744073709551615"]
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
        ("nulls", "claim more than"),
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
