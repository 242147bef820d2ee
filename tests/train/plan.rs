//! Lists of phases with settings of their own: how they are read, what is refused, and what runs.

use std::path::Path;

use gradus_rft::io::safetensors::Tensors;
use gradus_rft::train::checkpoint::load_latest;
use gradus_rft::train::phase::Phase;
use gradus_rft::train::{Resume, RunConfig, Summary, train};

fn config(settings: &[&str]) -> Result<RunConfig, String> {
    let mut config = RunConfig::default();
    let small = [
        "model.hidden=16",
        "model.layers=1",
        "model.heads=2",
        "model.kv_heads=2",
        "model.head_dim=8",
        "model.ffn=16",
        "sft.demos=16",
        "sft.batch=8",
        "sft.epochs=2",
        "lora.rank=2",
        "rl.steps=2",
        "rl.prompts=2",
        "rl.group=3",
        "eval.max_prompts=2",
        "eval.samples=1",
    ];
    let mut all = small.iter().chain(settings);
    all.try_for_each(|set| config.apply_set(set)).map_err(|e| e.to_string())?;
    Ok(config)
}

/// What is wrong with settings, if not before then in a run.
fn refusal(settings: &[&str]) -> String {
    let checked = config(settings).and_then(|config| {
        config.validate().and_then(|()| config.validate_phases()).map_err(|e| e.to_string())
    });
    checked.expect_err(&format!("{settings:?}"))
}

fn names(list: &str) -> Vec<String> {
    let config = config(&[&format!("phases={list}")]).unwrap();
    config.plan().unwrap().into_iter().map(|plan| plan.name).collect()
}

#[test]
fn lists_are_written_out() {
    assert_eq!(names("sft,quantize,rl"), ["sft", "quantize", "rl"]);
    assert_eq!(names("2*rl"), ["rl", "rl"]);
    assert_eq!(names("sft, 2*( collect , value_fit ), rl").join(","), {
        "sft,collect,value_fit,collect,value_fit,rl"
    });
    assert_eq!(names("2*(sft,2*(rl,sft))").join(","), "sft,rl,sft,rl,sft,sft,rl,sft,rl,sft");
    assert_eq!(names("(sft,rl)"), ["sft", "rl"]);
    assert_eq!(names("[\"sft\", \"2*(rl,sft)\"]"), ["sft", "rl", "sft", "rl", "sft"]);
    assert!(names("").is_empty());
    for (list, says) in [
        ("0*rl", "`0` is not a number from 1"),
        ("x*rl", "`x` is not a number from 1"),
        ("20000*rl", "`20000` is not a number from 1 to 10000"),
        ("200*(100*rl)", "more than 10000 phases"),
        ("99999999999999999999*rl", "is not a number"),
        ("2*(rl", "`)` is missing"),
        ("2*rl)", "`)` is left over"),
        ("2*", "a name, N*NAME or N*(NAME,NAME) is expected"),
        ("2*()", "got `)`"),
        ("2*(rl,,rl)", "got `,`"),
        ("2", "`2` is not the name of a phase"),
        ("sft rl", "`rl` is left over"),
        ("rl+sft", "`+sft` is left over"),
    ] {
        let error = refusal(&[&format!("phases={list}")]);
        assert!(error.contains("`phases`") && error.contains(says), "{list}: {error}");
    }
}

/// A table has the keys of its kind's section, and sections; the rest of the run is as it was.
#[test]
fn a_phase_has_settings_of_its_own() {
    let config = config(&[
        "phases=warm,quantize,collect,value_fit,rl,2*mix",
        "rl.advantage=gae",
        "phase.warm.kind=sft",
        "phase.warm.epochs=1",
        "phase.warm.learning_rate=1e-3",
        "phase.warm.rl.micro_batch=2",
        "phase.mix.kind=rl",
        "phase.mix.steps=7",
        "phase.mix.prompts=5",
        "phase.mix.advantage=group",
        "phase.mix.stop=a,b",
        "phase.mix.beta=auto",
        "phase.mix.eval.every=3",
        "phase.mix.task.max_target=20",
        "phase.rl.steps=4",
        "phase.collect.steps=3",
        "phase.collect.group=2",
        "phase.value_fit.steps=9",
    ])
    .unwrap();
    config.validate().and_then(|()| config.validate_phases()).unwrap();
    let plans = config.plan().unwrap();
    let kinds: Vec<Phase> = plans.iter().map(|plan| plan.kind).collect();
    use Phase::{Collect, Quantize, Rl, Sft, ValueFit};
    assert_eq!(kinds, [Sft, Quantize, Collect, ValueFit, Rl, Rl, Rl]);
    assert!(plans.iter().map(|plan| plan.number).eq(0..7));
    let warm = &plans[0].config;
    assert_eq!((warm.sft.epochs, warm.sft.learning_rate.value()), (1, Some(1e-3)));
    assert_eq!((warm.rl.micro_batch, config.rl.micro_batch), (2, 32));
    assert_eq!(plans[1].config, config, "a phase without a table has the run's settings");
    let collect = &plans[2].config;
    assert_eq!((collect.value.collect_steps, collect.rl.group, collect.rl.steps), (3, 2, 2));
    assert_eq!(plans[3].config.value.fit_steps, 9);
    assert_eq!(plans[4].config.rl.steps, 4);
    let mix = &plans[6].config;
    assert_eq!((mix.rl.steps, mix.rl.prompts, mix.eval.every), (7, 5, 3));
    assert_eq!((mix.rl.stop.as_slice(), mix.task.max_target), (&["a".into(), "b".into()][..], 20));
    assert_eq!(mix.rl.advantage.name(), "group");
    // The streams of a kind go on: 4 steps of 2 prompts, then 7 of 5.
    let before: Vec<[u64; 3]> =
        plans.iter().map(|p| [p.before.steps, p.before.prompts, p.before.epochs]).collect();
    assert_eq!(before[..5], [[0; 3]; 5]);
    assert_eq!(before[5..], [[4, 8, 0], [11, 43, 0]]);
}

#[test]
fn the_table_of_a_phase_is_checked() {
    let mix = "phase.mix.kind=rl";
    for (settings, key, says) in [
        (&["phases=mix"][..], "phases", "neither a kind nor a table [phase.mix]"),
        (&["phase.mix.steps=3"], "phase.mix.steps", "set phase.mix.kind first"),
        (&["phase.mix.kind=fly"], "phase.mix.kind", "`fly` is not one of sft, quantize"),
        (&["phase.sft.kind=rl"], "phase.sft.kind", "`sft` is a kind itself"),
        (&["phases=rl", mix], "phase.mix", "is not in `phases`"),
        (&[mix, "phase.mix.stepps=3"], "phase.mix.stepps", "did you mean steps"),
        (&[mix, "phase.mix.rl.grup=3"], "phase.mix.rl.grup", "did you mean group"),
        (&[mix, "phase.mix.a.b.c=3"], "phase.mix.a.b.c", "no key"),
        (&[mix, "phase.mix.steps=many"], "phase.mix.steps", "`many` is not a whole number"),
        (&[mix, "phase.mix.scale=all"], "phase.mix.scale", "`all` is not one of auto"),
        (&[mix, "phase.mix.steps.x=1"], "phase.mix.steps.x", "no key"),
        (&[mix, "phase.mix.optim=adamw"], "phase.mix.optim", "kind `rl` has no `rl.optim`"),
        (&[mix, "phase.mix.lora.rank=2"], "phase.mix.lora.rank", "has no `lora.rank`"),
        (&[mix, "phase.mix.sft.epochs=2"], "phase.mix.sft.epochs", "has no `sft.epochs`"),
        (&["phase.sft.steps=2"], "phase.sft.steps", "no key `steps`"),
        (&["phase.sft.rl.group=2"], "phase.sft.rl.group", "kind `sft` has no `rl.group`"),
        (&["phase.quantize.blocksize=32"], "phase.quantize.blocksize", "no key"),
        (&["phase.collect.beta=1"], "phase.collect.beta", "has no `rl.beta`"),
        (&["phase.value_fit.gamma=1"], "phase.value_fit.gamma", "has no `value.gamma`"),
        (&["phase=1"], "phase", "phase.NAME.KEY"),
        (&["phase.mix=1"], "phase.mix", "phase.NAME.KEY"),
        (&["phases=mix", mix, "phase.mix.group=0"], "phase.mix.group", "not in 1..=4096"),
        (&["phases=mix", mix, "phase.mix.group=1"], "phase.mix.group", "no other"),
        (
            &["phases=mix", mix, "phase.mix.loss=relift", "rl.clip_high=0.3"],
            "rl.clip_high",
            "(in the phase `mix`)",
        ),
        (
            &[
                "phases=mix",
                mix,
                "phase.mix.data.path=rows.jsonl",
                "phase.mix.data.heldout_share=1",
            ],
            "phase.mix.data.heldout_share",
            "nothing to train on",
        ),
        (
            &["phases=collect,value_fit,rl", "rl.loss=reft", "phase.collect.steps=0"],
            "phase.collect.steps",
            "would gather nothing",
        ),
    ] {
        let error = refusal(settings);
        assert!(error.contains(&format!("`{key}`")), "{settings:?}: {error}");
        assert!(error.contains(says), "{settings:?}: {error}");
    }
}

/// A file and the command line say the same; what is printed is read again.
#[test]
fn files_have_tables_of_phases() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    let text = "phases = [\"sft\", \"quantize\", \"2*(a,b)\"]\n[phase.a]\nkind = \"rl\"\nsteps = 3\nbeta = 0\n\
                reward.functions = [\"0.5*exact\", \"http://user:secret@host/\"]\n\
                [phase.b]\nkind = \"sft\"\nepochs = 1\n[phase.b.data]\nmax_prompt_tokens = 9\n";
    std::fs::write(&path, text).unwrap();
    let read = RunConfig::load(&path).unwrap();
    let plans = read.plan().unwrap();
    assert_eq!(plans.iter().map(|p| p.name.as_str()).collect::<String>(), "sftquantizeabab");
    assert_eq!((plans[2].config.rl.steps, plans[2].config.rl.beta.value()), (3, Some(0.0)));
    assert_eq!(plans[2].config.reward.functions.len(), 2);
    assert_eq!(plans[3].config.data.max_prompt_tokens, 9);
    let printed = read.to_toml();
    assert!(printed.contains("host") && !printed.contains("secret"), "{printed}");
    std::fs::write(&path, printed).unwrap();
    let again = RunConfig::load(&path).unwrap();
    assert_eq!(again, read.without_secrets());
    assert_eq!(again.fingerprint(), read.fingerprint());
    for (wrong, key) in [
        ("[phase.a]\nkind = \"rl\"\nstepps = 3\n", "phase.a.stepps"),
        ("[phase.a]\nkind = \"rl\"\nsteps = \"three\"\n", "phase.a.steps"),
        ("[phase.a]\nkind = 3\n", "phase.a.kind"),
        ("[phase.a]\nsteps = 3\n", "phase.a.kind"),
        ("[phase.a]\nkind = \"rl\"\n[phase.a.data.more]\nx = 1\n", "phase.a.data.more"),
        ("phase = 3\n", "phase"),
    ] {
        std::fs::write(&path, format!("{wrong}\n")).unwrap();
        let checked = RunConfig::load(&path).and_then(|mut config| {
            config.phases.push(gradus_rft::train::config::PhaseEntry("a".into()));
            config.validate()
        });
        let error = checked.unwrap_err().to_string();
        assert!(error.contains(key), "{wrong}: {error}");
    }
}

/// Keys that change no result may change in a phase, too.
#[test]
fn a_fingerprint_knows_what_phases_depend_on() {
    let base = ["phases=quantize,mix", "phase.mix.kind=rl"];
    let of = |more: &[&str]| {
        let all: Vec<&str> = base.iter().chain(more).copied().collect();
        config(&all).unwrap().fingerprint()
    };
    for neutral in ["phase.mix.slots=3", "phase.mix.reward.workers=3", "phase.mix.rl.slots=2"] {
        assert_eq!(of(&[]), of(&[neutral]), "{neutral}");
    }
    for other in ["phase.mix.steps=9", "phase.mix.reward.answer=gold", "phase.mix.rl.steps=9"] {
        assert_ne!(of(&[]), of(&[other]), "{other}");
    }
}

/// Everything that a run leaves: the state, and each step's phase, step, reward and tokens.
fn ran(out: &Path, settings: &[&str]) -> (Summary, Vec<serde_json::Value>) {
    let mut config = config(settings).unwrap();
    config.out = out.to_string_lossy().into_owned();
    config.device = "cpu".into();
    let summary = train(config, &Resume::No).unwrap();
    let rows = Path::new(&summary.folder).join("metrics.jsonl");
    let rows = std::fs::read_to_string(rows).unwrap();
    let without_clock = |line: &str| {
        let mut row: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(line).unwrap();
        row.retain(|key, _| !key.starts_with("time/"));
        row.into()
    };
    (summary, rows.lines().map(without_clock).collect())
}

/// What the newest checkpoint of a run holds.
fn state(run: &Summary) -> Tensors {
    let (found, _) = load_latest(&Path::new(&run.folder).join("checkpoints")).unwrap();
    found.unwrap().tensors
}

/// From each of its checkpoints a run ends in the same bits: what `value_fit` learns from is drawn again
/// under the settings of its own `collect`, and every phase goes on where it stood.
#[test]
fn a_run_goes_on_in_the_middle_of_any_phase() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&[
        "phases=warm,quantize,2*(collect,value_fit,mix)",
        "rl.advantage=gae",
        "phase.warm.kind=sft",
        "phase.warm.epochs=1",
        "phase.collect.steps=2",
        "phase.collect.group=5",
        "phase.value_fit.steps=2",
        "phase.mix.kind=rl",
        "phase.mix.prompts=3",
        "phase.mix.task.digits=2",
        "reward.functions=format:^\\d",
        "checkpoint.every=1",
        "checkpoint.keep=100",
        "device=cpu",
    ])
    .unwrap();
    config.out = folder.path().to_string_lossy().into_owned();
    let whole = train(config.clone(), &Resume::No).unwrap();
    let run = Path::new(&whole.folder).to_path_buf();
    let (want, rows) = (state(&whole), std::fs::read_to_string(run.join("metrics.csv")).unwrap());
    let untimed = |rows: &str| -> Vec<String> {
        rows.lines().map(|row| row.rsplitn(3, ',').last().unwrap().to_string()).collect()
    };
    let checkpoints = run.join("checkpoints");
    let mut steps: Vec<String> = std::fs::read_dir(&checkpoints)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name != "LATEST")
        .collect();
    steps.sort();
    assert!(steps.len() > 20, "{steps:?}");
    for step in steps.iter().rev().skip(1) {
        std::fs::read_dir(&checkpoints).unwrap().map(|entry| entry.unwrap()).for_each(|entry| {
            let newer =
                entry.file_name().to_str().is_some_and(|n| n != "LATEST" && n > step.as_str());
            if newer {
                std::fs::remove_dir_all(entry.path()).unwrap();
            }
        });
        std::fs::write(checkpoints.join("LATEST"), step).unwrap();
        let again = train(config.clone(), &Resume::From(run.clone())).unwrap();
        assert!(state(&again) == want, "from checkpoint {step}");
        let again = std::fs::read_to_string(run.join("metrics.csv")).unwrap();
        assert_eq!(untimed(&again), untimed(&rows), "from checkpoint {step}");
    }
}

/// Names are names: the same settings under others give the same bits.
#[test]
fn a_named_phase_is_the_phase() {
    let folder = tempfile::tempdir().unwrap();
    let plain = ["phases=sft,quantize,rl,rl,sft,sft"];
    let named = [
        "phases=warm,quantize,2*more,2*again",
        "sft.epochs=5",
        "rl.steps=9",
        "phase.warm.kind=sft",
        "phase.warm.epochs=2",
        "phase.more.kind=rl",
        "phase.more.steps=2",
        "phase.again.kind=sft",
        "phase.again.epochs=2",
    ];
    let (a, rows) = ran(&folder.path().join("plain"), &plain);
    let (b, named_rows) = ran(&folder.path().join("named"), &named);
    assert!(state(&a) == state(&b));
    assert_eq!((a.final_accuracy, a.steps), (b.final_accuracy, b.steps));
    let phases = |rows: &[serde_json::Value]| {
        let phase = |row: &serde_json::Value| row["phase"].as_str().unwrap().to_string();
        rows.iter().map(phase).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(phases(&rows), "sft sft sft sft rl rl rl rl sft sft sft sft sft sft sft sft");
    assert_eq!(
        phases(&named_rows),
        "warm warm warm warm more more more more again again again again again again again again"
    );
    for (mut a, mut b) in rows.into_iter().zip(named_rows) {
        (a["phase"], b["phase"]) = (0.into(), 0.into());
        assert_eq!(a, b);
    }
}

/// A stage of rows; the other stages of the run then read bytes, too. What is missing is missed at once.
#[test]
fn a_stage_has_data_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let rows = folder.path().join("rows.jsonl");
    let row =
        |i: usize| format!(r#"{{"prompt":"{i}+1=","completion":"{0}","answer":"{0}"}}"#, i + 1);
    std::fs::write(&rows, (0..30).map(|i| row(i) + "\n").collect::<String>()).unwrap();
    let path = format!("phase.rows.data.path={}", rows.display());
    let sets = ["phases=rows,sft,rl", "rl.max_new_tokens=4", "phase.rows.kind=sft", &path];
    let out = folder.path().join("runs");
    let mut unscored = config(&sets).unwrap();
    unscored.out = out.to_string_lossy().into_owned();
    let error = train(unscored, &Resume::No).unwrap_err().to_string();
    let key = "`reward.functions`";
    assert!(error.contains(key) && error.contains("(in the phase `rows`)"), "{error}");
    assert!(!out.exists());
    let scored = [&sets[..], &["phase.rows.reward.functions=exact"]].concat();
    let (_, steps) = ran(&out, &scored);
    let tokens: Vec<f64> =
        steps[..8].iter().map(|row| row["num_tokens"].as_f64().unwrap()).collect();
    assert_eq!(steps.iter().filter(|row| row["phase"] == "rows").count(), 4, "{steps:?}");
    assert!(tokens[..4].iter().all(|&n| n <= 24.0), "two digits and an end: {tokens:?}");
    assert!(tokens[4..].iter().all(|&n| n > 24.0), "{tokens:?}");
    let mut gone = config(&scored).unwrap();
    gone.apply_set("phase.rows.data.path=gone.jsonl").unwrap();
    gone.out = folder.path().join("never").to_string_lossy().into_owned();
    let error = train(gone, &Resume::No).unwrap_err().to_string();
    assert!(error.contains("gone.jsonl") && !folder.path().join("never").exists(), "{error}");
}

/// Stages: each has prompts of its own. Scores before and after are over the run's own prompts.
#[test]
fn a_stage_has_a_task_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let easy = ["phases=easy,hard", "task.digits=4", "phase.easy.kind=rl", "phase.hard.kind=rl"];
    let sets = |digits: &'static str| [&easy[..], &["rl.control=zero_lr", digits]].concat();
    let lengths = |rows: &[serde_json::Value]| -> Vec<f64> {
        rows.iter().map(|row| row["num_tokens"].as_f64().unwrap()).collect()
    };
    let (same, all) = ran(&folder.path().join("same"), &sets("phase.easy.task.digits=4"));
    let (apart, staged) = ran(&folder.path().join("apart"), &sets("phase.easy.task.digits=2"));
    let (all, staged) = (lengths(&all), lengths(&staged));
    assert_eq!(all[2..], staged[2..], "the second stage is that of the run");
    assert_ne!(all[..2], staged[..2]);
    assert_eq!(same.final_accuracy, apart.final_accuracy);
    assert_eq!(same.samples.len(), apart.samples.len());
    let mut other = config(&easy).unwrap();
    other.apply_set("phase.hard.task.operators=+*").unwrap();
    other.out = folder.path().join("never").to_string_lossy().into_owned();
    let error = train(other, &Resume::No).unwrap_err().to_string();
    assert!(error.contains("`phase.hard`") && error.contains("characters"), "{error}");
    assert!(!folder.path().join("never").exists());
}
