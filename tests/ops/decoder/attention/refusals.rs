//! Attention: what it refuses, and that a refused call writes nothing.

use gradus::ops::{Attention, AttentionBwd, KvRows, Prefix, attention, attention_bwd};
use gradus::{Device, Error, View, ViewMut};

const CPU: Device = Device::Cpu;

#[test]
fn attention_to_more_keys_than_memory_is_an_error() {
    let data = [1f32; 16];
    let (keys, mut o) = (1i64 << 44, [7f32; 16]);
    let kv_len = [keys];
    let repeated = View::strided(&data, &[keys, 1, 16], &[0, 0, 1]).unwrap();
    let args = Attention {
        q: View::new(&data, &[1, 1, 16]).unwrap(),
        k: repeated,
        v: repeated,
        cu_seqlens: View::new(&[0, 1], &[2]).unwrap(),
        kv_rows: KvRows::From(View::new(&[0], &[1]).unwrap()),
        kv_len: View::new(&kv_len, &[1]).unwrap(),
        scale: 1.0,
        o: ViewMut::new(&mut o, &[1, 1, 16]).unwrap(),
        lse: None,
    };
    assert_eq!(attention(&CPU, args).unwrap_err().code(), 3);
    assert_eq!(o, [7.0; 16]);
}

/// The arguments of a good call (two sequences of 2 and 1 queries), to be spoiled one at a time.
struct Good<'a> {
    q: View<'a, f32>,
    k: View<'a, f32>,
    v: View<'a, f32>,
    cu_seqlens: Vec<i64>,
    kv_start: Vec<i64>,
    kv_len: Vec<i64>,
    prefix: Option<[Vec<i64>; 2]>,
    scale: f64,
    dout: View<'a, f32>,
    out: [i64; 3],
    lse: Vec<i64>,
    kv_out: [[i64; 3]; 2],
}

impl Good<'_> {
    /// Runs forward and backward on outputs full of 7.
    fn run(self) -> [Result<(), Error>; 2] {
        let mut buffers = vec![vec![7f32; 64]; 5];
        let [o, lse, dq, dk, dv] = &mut buffers[..] else { unreachable!() };
        let prefix = self.prefix.as_ref();
        let prefix = prefix.map(|[start, len]| Prefix { start: start.into(), len: len.into() });
        let start = View::from(&self.kv_start);
        let args = Attention {
            q: self.q,
            k: self.k,
            v: self.v,
            cu_seqlens: (&self.cu_seqlens).into(),
            kv_rows: match prefix {
                None => KvRows::From(start),
                Some(prefix) => KvRows::Prefixed { prefix, start },
            },
            kv_len: (&self.kv_len).into(),
            scale: self.scale,
            o: ViewMut::new(o, &self.out).unwrap(),
            lse: Some(ViewMut::new(lse, &self.lse).unwrap()),
        };
        let forward = attention(&CPU, args);
        let args = AttentionBwd {
            q: self.q,
            k: self.k,
            v: self.v,
            cu_seqlens: (&self.cu_seqlens).into(),
            kv_start: start,
            kv_len: (&self.kv_len).into(),
            prefix,
            scale: self.scale,
            dout: self.dout,
            dq: ViewMut::new(dq, &self.out).unwrap(),
            dk: ViewMut::new(dk, &self.kv_out[0]).unwrap(),
            dv: ViewMut::new(dv, &self.kv_out[1]).unwrap(),
        };
        let backward = attention_bwd(&CPU, args);
        let untouched = |x: &[f32]| x.iter().all(|&x| x == 7.0);
        assert!(forward.is_ok() || (untouched(&buffers[0]) && untouched(&buffers[1])));
        assert!(backward.is_ok() || buffers[2..].iter().all(|x| untouched(x)));
        [forward, backward]
    }
}

type Spoil = fn(&mut Good<'_>);
/// What spoils both calls, the argument that is named, and what else the message says.
const SCALARS: [(Spoil, &str, &str); 20] = [
    (|g| g.cu_seqlens = vec![0, 2, 4], "cu_seqlens", "3"),
    (|g| g.cu_seqlens = vec![1, 2, 3], "cu_seqlens", "0"),
    (|g| g.cu_seqlens = vec![0, 4, 3], "cu_seqlens", "never fall"),
    (|g| g.cu_seqlens = vec![], "cu_seqlens", "empty"),
    (|g| g.kv_start = vec![0], "kv_start", "[2]"),
    (|g| g.kv_start = vec![-1, 3], "kv_start", "-1 at index 0"),
    (|g| g.kv_start = vec![0, i64::MAX], "kv_start", "0..=5"),
    (|g| g.kv_len = vec![3], "kv_len", "[2]"),
    (|g| g.kv_len = vec![1, 2], "kv_len", "2 (the queries)"),
    (|g| g.kv_len = vec![3, 3], "kv_len", "3 at index 1"),
    (|g| g.kv_len = vec![i64::MAX, 2], "kv_len", "the rows from 0 on"),
    (|g| g.prefix = Some([vec![0], vec![1, 0]]), "prefix_start", "[2]"),
    (|g| g.prefix = Some([vec![0, 0], vec![1]]), "prefix_len", "[2]"),
    (|g| g.prefix = Some([vec![6, 0], vec![0, 0]]), "prefix_start", "6 at index 0"),
    (|g| g.prefix = Some([vec![0, 4], vec![0, 2]]), "prefix_len", "2 at index 1"),
    (|g| g.prefix = Some([vec![0, 0], vec![0, -1]]), "prefix_len", "-1 at index 1"),
    (|g| g.prefix = Some([vec![0, 0], vec![0, 3]]), "prefix_len", "at most the 2 keys"),
    (|g| g.prefix = Some([vec![0, 0], vec![i64::MAX, 0]]), "prefix_len", "0 to 5"),
    (|g| g.scale = f64::NAN, "scale", "NaN"),
    (|g| g.scale = 1e39, "scale", "finite in f32"),
];

/// A call that nothing is wrong with, on operands of 0.5.
fn good(data: &[f32]) -> Good<'_> {
    let view = |shape: &[i64]| View::new(data, shape).unwrap();
    Good {
        q: view(&[3, 4, 2]),
        k: view(&[5, 2, 2]),
        v: view(&[5, 2, 2]),
        cu_seqlens: vec![0, 2, 3],
        kv_start: vec![0, 3],
        kv_len: vec![3, 2],
        prefix: None,
        scale: 1.0,
        dout: view(&[3, 4, 2]),
        out: [3, 4, 2],
        lse: vec![3, 4],
        kv_out: [[5, 2, 2]; 2],
    }
}

/// Asserts that `result` is a refusal of the argument `arg` that says `text`.
fn message(result: &Result<(), Error>, arg: &str, text: &str) {
    let message = result.as_ref().expect_err(arg).to_string();
    assert!(message.contains(&format!("argument `{arg}`")), "{arg}: {message}");
    assert!(message.contains(text), "{text}: {message}");
}

#[test]
fn attention_refuses_bad_input_and_writes_nothing() {
    let data = vec![0.5f32; 64];
    let view = |shape: &[i64]| View::new(&data, shape).unwrap();
    let good = || good(&data);
    good().run().into_iter().for_each(|result| result.unwrap());
    for (spoil, arg, text) in SCALARS {
        let mut bad = good();
        spoil(&mut bad);
        bad.run().iter().for_each(|result| message(result, arg, text));
    }
    let views = [
        (Good { q: view(&[3, 8]), ..good() }, "q", "rank 3"),
        (Good { q: view(&[3, 4, 0]), ..good() }, "q", "D > 0"),
        (Good { q: view(&[3, 3, 2]), ..good() }, "q", "multiple of the 2 heads"),
        (Good { q: view(&[3, 0, 2]), ..good() }, "q", "multiple of the 2 heads"),
        (
            Good { q: View::strided(&data, &[3, 4, 2], &[8, 1, 4]).unwrap(), ..good() },
            "q",
            "contig",
        ),
        (Good { k: view(&[5, 2]), ..good() }, "k", "rank 3"),
        (Good { k: view(&[5, 2, 3]), ..good() }, "k", "[5, 2, 2]"),
        (Good { k: view(&[5, 0, 2]), ..good() }, "k", "0 heads"),
        (Good { v: view(&[4, 2, 2]), ..good() }, "v", "[5, 2, 2]"),
    ];
    for (bad, arg, text) in views {
        bad.run().iter().for_each(|result| message(result, arg, text));
    }
    let [forward, backward] = Good { out: [3, 2, 4], ..good() }.run();
    message(&forward, "o", "[3, 4, 2]");
    message(&backward, "dq", "[3, 4, 2]");
    message(&Good { lse: vec![12], ..good() }.run()[0], "lse", "rank 2");
    message(&Good { lse: vec![4, 3], ..good() }.run()[0], "lse", "[3, 4]");
    message(&Good { dout: view(&[3, 4, 1]), ..good() }.run()[1], "dout", "[3, 4, 2]");
    let kv_out = [[5, 2, 2], [5, 2, 1]];
    message(&Good { kv_out, ..good() }.run()[1], "dv", "[5, 2, 2]");
    let kv_out = [[5, 1, 2], [5, 2, 2]];
    message(&Good { kv_out, ..good() }.run()[1], "dk", "[5, 2, 2]");
    let [forward, backward] = Good { kv_start: vec![0, 2], ..good() }.run();
    forward.unwrap();
    message(&backward, "kv_start", "do not overlap");
}

#[test]
fn prefixes_may_overlap_and_what_lies_behind_them_may_not() {
    let data = vec![0.5f32; 64];
    let prefix = Some([vec![0, 0], vec![0, 1]]);
    let run = |kv_start: Vec<i64>| {
        let prefix = prefix.clone();
        Good { kv_start, prefix, ..good(&data) }.run()
    };
    run(vec![0, 4]).into_iter().for_each(|result| result.unwrap());
    let [forward, backward] = run(vec![0, 2]);
    forward.unwrap();
    message(&backward, "kv_start", "do not overlap");
}
