//! Rewards by name, programs that are run, and verifiers on texts that nobody would write.

use std::time::{Duration, Instant};

use gradus_rft::reward::command::parse_reply;
use gradus_rft::reward::spec::{SpecOptions, help, parse, parse_all};
use gradus_rft::reward::verify::{
    Code, Format, Json, MathAnswer, boxed, canonical, code_block, evaluate, normalize, parse_boxes,
    parse_calls, tagged,
};
use gradus_rft::reward::{Outcome, Reward, RewardInput, RewardOutcome, score};
use proptest::prelude::*;
use serde_json::{Value, json};

fn ask(reward: &dyn Reward, completion: &str, row: &Value) -> Outcome {
    let fields = row.as_object().unwrap();
    let input = RewardInput { prompt: "", completion, finished: true, fields };
    reward.score(&[input]).remove(0)
}

fn one(value: f32) -> Outcome {
    Ok(RewardOutcome::Score(value))
}

#[test]
fn names() {
    let row = json!({
        "answer": "#### 10", "numbers": [2, 5], "target": 10, "boxes": [0, 0, 2, 2],
        "tool_calls": {"name": "f"}, "schema": {"type": "object"}
    });
    for (spec, completion, expected) in [
        ("numeric", "ten is 10", 1.0),
        ("numeric:0.5", "10.4", 1.0),
        ("numeric:0.5", "10.6", 0.0),
        ("numeric:10%", "10.9", 1.0),
        ("exact", "#### 10", 1.0),
        ("format", "<think>a</think><answer>b</answer>", 1.0),
        ("format:^a+:b*$", "aa:", 1.0),
        ("json:k", "{\"k\": 1}", 1.0),
        ("json:k,l", "{\"k\": 1}", 0.0),
        ("tool-call", "{\"name\": \"f\"}", 1.0),
        ("iou", "[0, 0, 2, 1]", 0.5),
        ("iou:0.6", "[0, 0, 2, 1]", 0.0),
        ("countdown", "2*5", 1.0),
        ("countdown:all,0.1", "2+5", 0.1),
        ("countdown:0.25", "5", 0.25),
        (" 0.5 * numeric", "10", 0.5),
        ("-2*numeric", "10", -2.0),
        ("1e-1*format:1*0", "10", 0.1),
    ] {
        assert_eq!(ask(&*parse(spec).unwrap(), completion, &row), one(expected), "{spec}");
    }
}

#[test]
fn names_that_are_wrong() {
    for (spec, words) in [
        ("nummeric", &["`nummeric`", "numeric[:TOLERANCE]", "cmd:PROGRAM"][..]),
        ("numeric:x", &["`numeric:x`", "percentage"]),
        ("exact:1", &["nothing"]),
        ("format:(", &["format pattern"]),
        ("iou:2", &["threshold"]),
        ("countdown:most", &["`all`"]),
        ("0.5", &["weight"]),
        ("inf*exact", &["`inf*exact`"]),
        ("1e99*exact", &["weight"]),
        ("cmd:", &["no program"]),
        ("cmd:no-such-program-1 x", &["no-such-program-1"]),
        ("cmd:'", &["quote"]),
        ("code:no-such-program-1", &["no-such-program-1"]),
        ("http://", &["http://"]),
        ("", &["numeric"]),
    ] {
        let error = parse(spec).err().unwrap().to_string();
        assert!(error.contains("config `reward`"), "{error}");
        assert!(words.iter().all(|word| error.contains(word)), "{spec}: {error}");
    }
    let none: [&str; 0] = [];
    assert!(parse_all(&none, &SpecOptions::default()).is_err());
    assert!(help().lines().count() >= 11 && help().contains("NOT a security sandbox"));
}

#[test]
fn sums_pass_on_failures_and_abstentions() {
    let specs = ["numeric", "0.2*format:^so", "-0.5*format:!"];
    let sum = parse_all(&specs, &SpecOptions::default()).unwrap();
    let row = json!({"answer": 3});
    for (completion, expected) in [("so 3", 1.2), ("so 3!", 0.7), ("4!", -0.5), ("4", 0.0)] {
        assert_eq!(ask(&*sum, completion, &row), one(expected), "{completion}");
    }
    let error = ask(&*sum, "so 3", &json!({})).unwrap_err();
    assert!(error.starts_with("numeric: ") && error.contains("`answer`"), "{error}");
    let input = RewardInput {
        prompt: "",
        completion: "",
        finished: true,
        fields: row.as_object().unwrap(),
    };
    assert_eq!(score(&*sum, &[input; 3]).unwrap().rewards, [0.0; 3]);
}

/// Programs are short here, but the machine may be busy.
fn code() -> Code {
    Code { time: Duration::from_secs(10), memory: 1 << 29, ..Code::default() }
}

fn fenced(program: &str) -> String {
    format!("Here it is:\n```python\n{program}\n```\nDone.")
}

#[test]
#[cfg(unix)]
fn programs_are_judged_by_their_tests() {
    let row = json!({"tests": [
        {"stdin": "1 2\n", "stdout": "3"}, {"stdin": "5 -7", "stdout": "-2\n"}
    ]});
    let add = fenced("a, b = map(int, input().split())\nprint(a + b)");
    assert_eq!(ask(&code(), &add, &row), one(1.0));
    let half = fenced("a, b = map(int, input().split())\nprint(abs(a + b))");
    assert_eq!(ask(&code(), &half, &row), one(0.5));
    assert_eq!(ask(&Code { all: true, ..code() }, &half, &row), one(0.0));
    let row = json!({"test_code": "assert f(2) == 4\nassert f(3) == 9"});
    assert_eq!(ask(&code(), &fenced("def f(x): return x * x"), &row), one(1.0));
    for wrong in ["def f(x): return 4", "import os; os._exit(0)", "raise SystemExit(0)", "def", ""]
    {
        assert_eq!(ask(&code(), &fenced(wrong), &row), one(0.0), "{wrong}");
    }
}

#[test]
#[cfg(unix)]
fn programs_are_limited() {
    let row = json!({"tests": [{"stdout": "ok"}]});
    let run = |code: &Code, program: &str| ask(code, &fenced(program), &row);
    assert_eq!(run(&code(), "print('ok')"), one(1.0));
    assert_eq!(run(&code(), "x = bytearray(1 << 30); print('ok')"), one(0.0));
    assert_eq!(run(&code(), "print('ok', 'x' * (2 << 20))"), one(0.0));
    let see = "import os; print('ok' if not os.environ.get('CARGO_MANIFEST_DIR') else 'seen')";
    assert_eq!(run(&code(), see), one(1.0));
    let nothing = "import sys; print('ok' if sys.stdin.read() == '' else 'read')";
    assert_eq!(run(&code(), nothing), one(1.0));
    let begun = Instant::now();
    let hasty = Code { time: Duration::from_millis(700), ..code() };
    assert_eq!(run(&hasty, "print('ok', flush=True)\nwhile True: pass"), one(0.0));
    assert!(begun.elapsed() < Duration::from_secs(5));
    // A FIFO in the place of the output must not block the reader.
    let fifo = "import os; os.remove('stdout'); os.mkfifo('stdout'); print('ok')";
    assert_eq!(run(&code(), fifo), one(1.0));
    // The time is the sample's: three tests of two seconds each do not take six.
    let three = json!({"tests": [{"stdout": ""}, {"stdout": ""}, {"stdout": ""}]});
    let slow = Code { time: Duration::from_secs(3), ..code() };
    let begun = Instant::now();
    let Ok(RewardOutcome::Score(share)) = ask(&slow, &fenced("import time; time.sleep(2)"), &three)
    else {
        panic!("no score")
    };
    assert!((0.0..0.5).contains(&share), "{share}");
    assert!(begun.elapsed() < Duration::from_millis(4500), "{:?}", begun.elapsed());
    let missing = Code { interpreter: vec!["/no/such/python".into()], ..code() };
    assert!(run(&missing, "").unwrap_err().contains("/no/such/python"));
}

/// Programs that leave what is hard to clear up. Nothing of it stays, and the next one is judged.
#[test]
#[cfg(target_os = "linux")]
fn nothing_of_a_hostile_program_stays() {
    // A folder of its own for temporary files, so that what stays is this test's; in memory, as a
    // disk may need minutes for so many folders.
    let memory = std::path::Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.into() } else { std::env::temp_dir() };
    let folder = tempfile::tempdir_in(base).unwrap();
    let me = std::env::current_exe().unwrap();
    let output = std::process::Command::new(me)
        .args(["--ignored", "--exact", "hostile_programs", "--nocapture"])
        .env("TMPDIR", folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
#[cfg(unix)]
#[ignore = "run by nothing_of_a_hostile_program_stays"]
fn hostile_programs() {
    let row = json!({"tests": [{"stdout": "ok"}]});
    for program in [
        // 30,000 folders, one in the other.
        "import os\nfor i in range(30000):\n    os.mkdir('d'); os.chdir('d')\nprint('ok')",
        // The same with names that a path cannot hold, and no right to any of them.
        "import os\nfds = []\nfor i in range(300):\n    n = 'x' * 255; os.mkdir(n); os.chdir(n)\n    \
         fds.append(os.open('.', os.O_RDONLY))\nfor fd in fds: os.fchmod(fd, 0)\nprint('ok')",
        "import os\nos.makedirs('a/b/c')\nopen('a/b/f', 'w').close()\n\
         for d in ['a/b/c', 'a/b', 'a', '.']: os.chmod(d, 0)\nprint('ok')",
        "import os\nfor i in range(20000): open(f'{i}', 'w').close()\nprint('ok')",
        "import os, socket\nos.mkfifo('fifo'); os.symlink('/', 'root'); os.link('main', 'again')\n\
         socket.socket(socket.AF_UNIX).bind('socket')\nprint('ok')",
        // Names that clearing up uses, names that are no text.
        "import os\nfor i in range(9): os.makedirs(f'gradus-moved-{i}/gradus-moved-{i}/x')\n\
         os.makedirs(b'\\xff\\n/\\xfe')\nprint('ok')",
        // Its folder is elsewhere, or gone.
        "import os\nos.makedirs('a/b'); d = os.getcwd(); os.rename(d, '../moved'); os.makedirs(d)\nprint('ok')",
        "import os, shutil\nshutil.rmtree(os.getcwd())\nprint('ok')",
        "import os, shutil\nd = os.getcwd(); shutil.rmtree(d); os.symlink('/etc', d)\nprint('ok')",
        // Children that keep files open and go on writing.
        "import os\nif os.fork() == 0:\n    f = open('held', 'w')\n    i = 0\n    while True:\n        \
         i += 1; os.makedirs(f'w{i}/x')\nprint('ok')",
    ] {
        let begun = Instant::now();
        assert_eq!(ask(&code(), &fenced(program), &row), one(1.0), "{program}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{program}: {:?}", begun.elapsed());
    }
    let moved = std::env::temp_dir().join("moved");
    std::fs::remove_dir(moved).expect("what was in the folder is gone from where it was moved to");
}

#[test]
#[cfg(target_os = "linux")]
fn what_a_program_starts_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("pid");
    let program = format!(
        "import subprocess\np = subprocess.Popen(['sleep', '600'])\nopen({:?}, 'w').write(str(p.pid))\nprint('ok')",
        mark.to_str().unwrap()
    );
    assert_eq!(ask(&code(), &fenced(&program), &json!({"tests": [{"stdout": "ok"}]})), one(1.0));
    let pid = std::fs::read_to_string(mark).unwrap();
    let begun = Instant::now();
    let lives = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !(stat.is_empty() || stat.contains(") Z "))
    };
    while lives() && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!lives(), "{pid} lives");
}

/// Pieces out of which interesting texts are made.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[-+0-9.,e/%$ ]{0,8}",
        prop::sample::select(vec![
            "\\boxed{",
            "}",
            "{",
            "\\frac",
            "<answer>",
            "</answer>",
            "####",
            "answer is",
            "[",
            "]",
            "(",
            ")",
            "*",
            "<tool_call>",
            "</tool_call>",
            "{\"name\": \"f\"}",
            "```python\n",
            "\n```",
            "\u{2212}",
            "\\",
            "\\times",
            "é",
            "\\sqrt",
            "\\text{",
            "\\pm",
            "\\cup",
            "\\pi",
            "\\overline{",
            "\\begin{pmatrix}",
            "^",
            "_",
            "!",
            " and ",
            "x = ",
            "½",
            "³",
            "<think>",
            "</think>",
            "cm",
            "°",
            ",\\!",
            "{,}",
        ])
        .prop_map(String::from),
        ".{0,6}",
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

fn answer(text: &str) -> MathAnswer {
    MathAnswer::gold(text).or_else(|| MathAnswer::completion(text)).unwrap()
}

fn same(a: &MathAnswer, b: &MathAnswer) -> bool {
    a.is(b, 0.0, 0.0) && b.is(a, 0.0, 0.0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn verifiers_take_any_text(text in pieces()) {
        let row = json!({
            "answer": "1/2", "numbers": [1, 2, 3], "target": 6, "boxes": [[0, 0, 1, 1], [1, 1, 2, 2]],
            "tool_calls": [{"name": "f"}], "schema": {"type": ["object", "array"]}
        });
        for spec in ["numeric:1%", "exact", "format", "json", "tool-call", "iou", "countdown:0.1"] {
            match ask(&*parse(spec).unwrap(), &text, &row) {
                Ok(RewardOutcome::Score(score)) => prop_assert!((0.0..=1.0).contains(&score)),
                other => prop_assert!(false, "{spec}: {other:?}"),
            }
        }
        let _ = (code_block(&text), tagged(&text, "x"), normalize(&text), parse_reply(text.as_bytes(), 1));
        // As a gold, any text is a number or a failure.
        let _ = ask(&*parse("numeric").unwrap(), "1", &json!({"answer": text}));
    }

    #[test]
    fn decimals_round_trip(value in any::<i64>(), places in 0usize..6) {
        let scaled = value as i128;
        let power = 10i128.pow(places as u32);
        let (whole, part) = (scaled.abs() / power, scaled.abs() % power);
        let sign = if value < 0 { "\u{2212}" } else { "" };
        let grouped: Vec<String> = whole.to_string().bytes().rev().collect::<Vec<_>>().chunks(3)
            .map(|group| group.iter().rev().map(|&b| b as char).collect()).rev().collect();
        let tail = if places > 0 { format!(".{part:0places$}") } else { String::new() };
        let fancy = answer(&format!("${sign}{}{tail}$", grouped.join(",")));
        let plain = answer(&format!("{value}e-{places}"));
        let fraction = answer(&format!("\\frac{{{value}}}{{{power}}}"));
        prop_assert!(same(&fancy, &plain) && same(&plain, &fraction));
        let next = answer(&format!("{}e-{places}", scaled + 1));
        prop_assert!(!same(&plain, &next));
        let last = answer(&format!("so {value}."));
        prop_assert!(same(&last, &answer(&value.to_string())));
    }

    /// Sums and products of surds, in one order and another.
    #[test]
    fn surds_have_a_normal_form(
        terms in prop::collection::vec((-9i64..10, 1u32..40, 1u32..5), 1..5),
        scale in 1u32..30,
    ) {
        let write = |(c, r, d): &(i64, u32, u32)| format!("\\frac{{{c}\\sqrt{{{r}}}}}{{{d}}}");
        let forward: Vec<String> = terms.iter().map(write).collect();
        let backward: Vec<String> = terms.iter().rev().map(|(c, r, d)| {
            // c√r/d = cs√(r·s²)/(d·s²)
            let square = scale * scale;
            format!("({}\\sqrt{{{}}})/{}", c * scale as i64, r * square, d * square)
        }).collect();
        let (a, b) = (answer(&forward.join("+")), answer(&backward.join(" + ")));
        prop_assert!(same(&a, &b), "{forward:?} {backward:?}");
        let more = answer(&format!("{}+1", forward.join("+")));
        prop_assert!(!same(&a, &more));
        let value: f64 = terms.iter().map(|&(c, r, d)| c as f64 * (r as f64).sqrt() / d as f64).sum();
        let decimals = answer(&format!("{value:.12}"));
        prop_assert!(a.is(&decimals, 1e-9, 0.0));
    }

    #[test]
    fn boxes_and_braces_round_trip(inside in "[a-z{}0-9]{0,12}", before in "[a-z]{0,8}") {
        let depth = inside.chars().try_fold(0i32, |depth, c| {
            let depth = depth + (c == '{') as i32 - (c == '}') as i32;
            (depth >= 0).then_some(depth)
        });
        prop_assume!(depth == Some(0));
        let text = format!("{before}\\boxed{{{inside}}} .");
        // An empty box is none.
        prop_assert_eq!(boxed(&text), Some(inside.as_str()).filter(|inside| !inside.is_empty()));
        prop_assert_eq!(boxed(&text[..text.len() - 3]), None);
    }

    #[test]
    fn printed_boxes_are_read(corners in prop::array::uniform4(-1e6f64..1e6)) {
        let found = parse_boxes(&format!("I see {corners:?} there"));
        prop_assert_eq!(found.len(), 1);
        prop_assert_eq!(found[0].corners, corners);
        prop_assert!((0.0..=1.0).contains(&found[0].iou(&found[0])));
    }

    #[test]
    fn sums_are_evaluated(terms in prop::collection::vec(1i128..1000, 1..12)) {
        let text = terms.iter().map(i128::to_string).collect::<Vec<_>>().join(" + ");
        let (value, used) = evaluate(&format!("({text})")).unwrap();
        prop_assert_eq!(value.unwrap().parts(), Some((terms.iter().sum::<i128>(), 1)));
        prop_assert_eq!(used.len(), terms.len());
    }

    #[test]
    fn calls_round_trip(name in "[a-z]{1,8}", keys in prop::collection::btree_map(".{0,5}", any::<i32>(), 0..5)) {
        let call = json!({"name": name, "arguments": keys});
        let text = format!("ok <tool_call>{call:#}</tool_call>");
        let calls = parse_calls(&text);
        prop_assert_eq!(calls.len(), 1);
        let read = json!({"arguments": calls[0].as_ref().unwrap().arguments, "name": name});
        prop_assert_eq!(canonical(&read), canonical(&call));
    }
}

/// Figures for the log: `cargo test --test files reward::builtin -- --ignored --nocapture`.
#[test]
#[ignore = "prints times"]
fn times() {
    let row = json!({
        "answer": "24", "numbers": [2, 3, 4], "target": 24, "boxes": [[0, 0, 2, 2], [1, 1, 3, 3]],
        "tool_calls": [{"name": "f"}], "tests": [{"stdout": "1"}]
    });
    let fields = row.as_object().unwrap();
    let thought = "Three times 4 is 12, and 12 times 2 is 24. ".repeat(20);
    let text = format!("<think>{thought}</think>\n<answer>2*3*4 = 24</answer>");
    let input = RewardInput { prompt: "", completion: &text, finished: true, fields };
    for spec in
        ["numeric", "exact", "format", "format:^<think>.*</think>", "json", "iou", "countdown"]
    {
        let (reward, inputs) = (parse(spec).unwrap(), vec![input; 4096]);
        let begun = Instant::now();
        reward.score(&inputs);
        println!("{spec}: {:.0} samples/s", 4096.0 / begun.elapsed().as_secs_f64());
    }
    let text = fenced("print(1)");
    let inputs = vec![RewardInput { completion: &text, ..input }; 100];
    let begun = Instant::now();
    code().score(&inputs);
    println!("code: {:.0} runs/s", 100.0 / begun.elapsed().as_secs_f64());
}

/// Pieces of text; a text of one of them over and over makes a careless parser quadratic.
const PIECES: [&str; 68] = [
    "\\boxed{",
    "{",
    "1",
    "1,111,",
    "(",
    "1+",
    "[",
    "[1,",
    "<answer>",
    "</answer>",
    "\\frac{1}{",
    "1/",
    "-",
    "1e",
    "$",
    "<tool_call>",
    "<think>",
    "####",
    "answer is ",
    "answer to ",
    "answer ",
    "answer:\n",
    "答案是",
    "\\boxed",
    "\\boxed ",
    "\\boxed{1} and ",
    "<tool_call>{\"",
    "<tool_call>{}</tool_call>",
    "</think>",
    "\\sqrt{",
    "\\sqrt",
    "√",
    "2^",
    "9^{9",
    "!",
    "\\text{",
    "{,}000",
    " 000",
    ",\\!000",
    "\\pm ",
    "\\pm1+",
    "1,",
    "1 and ",
    "(1,",
    "\\{1,",
    "\\frac12",
    "\\overline{",
    "0.(",
    "x = ",
    "= ",
    "\\cup ",
    "\\begin{pmatrix}",
    "1 & ",
    "1 cm ",
    "1 km/",
    "1:",
    "³",
    "½",
    "_{1",
    "|",
    "\\ln",
    "\\binom",
    "π",
    "(1,2),",
    "(1,2",
    "```\n",
    "\u{2212}",
    "x ",
];

/// Each of the long texts must take a moment only.
#[test]
fn long_texts_take_linear_time() {
    let row = json!({
        "answer": "1", "numbers": [1, 2], "target": 3, "boxes": [0, 0, 1, 1], "tool_calls": []
    });
    let (begun, mut slowest) = (Instant::now(), (Duration::ZERO, "", ""));
    for piece in PIECES {
        let text = piece.repeat(200_000 / piece.len());
        for spec in ["numeric", "exact", "format", "json", "tool-call", "iou", "countdown"] {
            let one = Instant::now();
            ask(&*parse(spec).unwrap(), &text, &row).unwrap();
            slowest = slowest.max((one.elapsed(), spec, piece));
        }
        Format::new("^<think>.*</think>.*<answer>.*</answer>$").unwrap().matches(&text);
        let _ = (code_block(&text), ask(&Json::default(), &text, &row));
    }
    println!("{slowest:?}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?} {slowest:?}", begun.elapsed());
}
