//! Programs that are run: what they score, what they say, and what limits them.

use std::time::{Duration, Instant};

use gradus_rft::reward::RewardOutcome;
use gradus_rft::reward::verify::Code;
use serde_json::{Value, json};

use super::{ask, judge, one};

/// Programs are short here, but the machine may be busy.
pub fn code() -> Code {
    Code { time: Duration::from_secs(10), memory: 1 << 29, ..Code::default() }
}

pub fn fenced(program: &str) -> String {
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

/// The same program says the same of itself at every run: feedback may be learned from.
#[test]
#[cfg(unix)]
fn programs_that_fail_say_why() {
    let feedback = |completion: &str, row: &Value| {
        let judgment = judge(&code(), completion, row).unwrap().judgment().unwrap();
        judgment.feedback
    };
    let row = json!({"tests": [{"stdout": "3"}, {"stdout": "4"}]});
    let both = feedback(&fenced("print(3)"), &row).unwrap();
    assert_eq!(both, "test 2: expected `4`, got `3`");
    let broken = feedback(&fenced("print(x)"), &row).unwrap();
    assert!(
        broken.starts_with("test 1: ") && broken.contains("name 'x' is not defined"),
        "{broken}"
    );
    assert!(broken.contains("File \"main\", line 1"), "{broken}");
    assert_eq!(feedback(&fenced("print(x)"), &row), Some(broken));
    let row = json!({"test_code": "assert f(2) == 4, 'two'"});
    assert_eq!(feedback(&fenced("def f(x): return x * x"), &row), None);
    let wrong = feedback(&fenced("def f(x): return x"), &row).unwrap();
    assert!(wrong.contains("AssertionError: two"), "{wrong}");
    let early = feedback(&fenced("raise SystemExit(0)"), &row).unwrap();
    assert_eq!(early, "test 1: the program ended before its tests did");
    let hasty = Code { time: Duration::from_millis(700), ..code() };
    let judgment = judge(&hasty, &fenced("while True: pass"), &row).unwrap().judgment().unwrap();
    assert_eq!(judgment.feedback.as_deref(), Some("test 1: the time is over"));
    // More on standard error than a file may hold is no failure.
    let loud = "import sys\nsys.stderr.write('x' * (2 << 20))\nprint('ok')";
    let row = json!({"tests": [{"stdout": "ok"}]});
    assert_eq!(judge(&code(), &fenced(loud), &row), one(1.0));
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
        .args(["--ignored", "--exact", "reward::code::hostile_programs", "--nocapture"])
        .env("TMPDIR", folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("1 passed"), "{said}");
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
