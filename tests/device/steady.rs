//! The steady state of every op that the model and the trainer call: with operands in device memory
//! a second call asks the driver for launches, and for one download if it has values for the host.
//! A graph of such calls does what the calls do, bit for bit.

use std::sync::Arc;

use crate::common::normals;
use gradus::device::{
    Call, DeviceBuffer, Driver, DryDriver, EmuDriver, Gpu, KernelSet, PinnedBuffer, RecordingDriver,
};
use gradus::dtype::Element;
use gradus::ops::*;
use gradus::quant::{Absmax, Nf4View, QuantType};
use gradus::{DType, Device, Result, View, ViewMut};

/// Tokens, width, vocabulary, heads, heads of keys, width of a head, rank.
const T: usize = 5;
const H: usize = 32;
const V: usize = 48;
const HEADS: usize = 4;
const KV: usize = 2;
const D: usize = 8;
const R: usize = 3;

/// A device whose calls are logged.
struct World {
    driver: Arc<RecordingDriver>,
    gpu: Arc<Gpu>,
    device: Device,
}

/// A buffer with a shape.
struct Tensor<E> {
    buffer: DeviceBuffer<E>,
    shape: Vec<i64>,
}

impl<E: Element> Tensor<E> {
    fn v(&self) -> View<'_, E> {
        self.buffer.view(&self.shape).unwrap()
    }
    fn m(&mut self) -> ViewMut<'_, E> {
        self.buffer.view_mut(&self.shape).unwrap()
    }

    fn bits(&self) -> Vec<u8> {
        bytemuck_bytes(&self.buffer.to_host().unwrap())
    }
}

fn bytemuck_bytes<E: Element>(data: &[E]) -> Vec<u8> {
    bytemuck::cast_slice(data).to_vec()
}

impl World {
    fn new(set: KernelSet) -> World {
        let driver = Arc::new(RecordingDriver::new(Arc::new(EmuDriver::new())));
        let gpu = Arc::new(Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap());
        World { driver, device: Device::Gpu(gpu.clone()), gpu }
    }

    fn of<E: Element>(&self, data: &[E], shape: &[usize]) -> Tensor<E> {
        let buffer = DeviceBuffer::from_host(&self.gpu, data).unwrap();
        Tensor { buffer, shape: shape.iter().map(|&n| n as i64).collect() }
    }

    fn f(&self, seed: u64, shape: &[usize]) -> Tensor<f32> {
        let n = shape.iter().product();
        let data: Vec<f32> = normals(seed, n, 1.0).iter().map(|&x| x as f32).collect();
        self.of(&data, shape)
    }

    fn zeros(&self, shape: &[usize]) -> Tensor<f32> {
        self.of(&vec![0f32; shape.iter().product()], shape)
    }

    /// Runs twice and looks at the second run: `values` results go to the host.
    fn steady(&self, name: &str, values: usize, mut run: impl FnMut(&Device) -> Result<()>) {
        run(&self.device).unwrap_or_else(|e| panic!("{name}: {e}"));
        self.driver.take();
        run(&self.device).unwrap();
        let calls = self.driver.take();
        assert!(!calls.iter().any(Call::is_memory), "{name}: {calls:?}");
        assert!(!calls.contains(&Call::Synchronize), "{name}: {calls:?}");
        assert_eq!(calls.iter().filter(|c| c.is_wait()).count(), values, "{name}: {calls:?}");
        assert!(calls.iter().any(|c| matches!(c, Call::Launch(_))), "{name}: {calls:?}");
        let uploads = calls.iter().filter(|c| matches!(c, Call::Upload(_))).count();
        assert!(uploads <= values, "{name}: tables are there already: {calls:?}");
    }
}

/// A 4-bit matrix in device memory.
struct Weight {
    packed: Tensor<u8>,
    absmax: Tensor<f32>,
    code: Tensor<f32>,
    n: usize,
    k: usize,
}

impl Weight {
    fn new(world: &World, seed: u64, [n, k]: [usize; 2]) -> Weight {
        let bytes: Vec<u8> =
            normals(seed, n * k / 2, 1e4).iter().map(|&x| x as i64 as u8).collect();
        Weight {
            packed: world.of(&bytes, &[n * k / 2]),
            absmax: world.f(seed + 1, &[n * k / 32]),
            code: world.of(QuantType::Nf4.code(), &[16]),
            n,
            k,
        }
    }

    fn v(&self) -> Nf4View<'_> {
        Nf4View {
            packed: self.packed.v(),
            absmax: Absmax::F32(self.absmax.v()),
            code: self.code.v(),
            n: self.n,
            k: self.k,
            blocksize: 32,
            dtype: DType::F32,
        }
    }
}

fn lora<'a>(a: &'a Tensor<f32>, b: &'a Tensor<f32>) -> Lora<'a, f32> {
    Lora { a: a.v(), b: b.v(), scale: 0.5 }
}

#[test]
fn token_ops() {
    let w = World::new(KernelSet::Sm80);
    let ids = w.of(&[1i32, 0, 47, 3, 3], &[T]);
    let (table, weight, dy) = (w.f(1, &[V, H]), w.f(2, &[H]), w.f(3, &[T, H]));
    let (mut x, mut y) = (w.f(4, &[T, H]), w.zeros(&[T, H]));
    let (mut dtable, mut dweight, mut rstd) = (w.zeros(&[V, H]), w.zeros(&[H]), w.zeros(&[T]));
    w.steady("embedding", 0, |d| {
        embedding(d, Embedding { ids: ids.v(), table: table.v(), y: x.m() })
    });
    w.steady("embedding_bwd", 0, |d| {
        embedding_bwd(d, EmbeddingBwd { ids: ids.v(), dy: dy.v(), dtable: dtable.m() })
    });
    w.steady("rmsnorm", 0, |d| {
        let rstd = Some(rstd.m());
        rmsnorm(d, RmsNorm { x: x.v(), weight: weight.v(), eps: 1e-6, y: y.m(), rstd })
    });
    w.steady("rmsnorm_bwd", 0, |d| {
        let args = RmsNormBwd {
            x: x.v(),
            weight: weight.v(),
            eps: 1e-6,
            dy: dy.v(),
            residual: None,
            dx: y.m(),
            dweight: Some(dweight.m()),
        };
        rmsnorm_bwd(d, args)
    });
    let (gate, up, mut dgate, mut dup) =
        (w.f(5, &[T, H]), w.f(6, &[T, H]), w.zeros(&[T, H]), w.zeros(&[T, H]));
    w.steady("swiglu", 0, |d| swiglu(d, Swiglu { gate: gate.v(), up: up.v(), y: y.m() }));
    w.steady("swiglu_bwd", 0, |d| {
        let (dgate, dup) = (dgate.m(), dup.m());
        swiglu_bwd(d, SwigluBwd { gate: gate.v(), up: up.v(), dy: dy.v(), dgate, dup })
    });
    let (positions, cos, sin) =
        (w.of(&[0i32, 1, 2, 0, 1], &[T]), w.f(7, &[4, D / 2]), w.f(8, &[4, D / 2]));
    x.shape = vec![T as i64, HEADS as i64, D as i64];
    w.steady("rope", 0, |d| {
        let (positions, cos, sin) = (positions.v(), cos.v(), sin.v());
        rope(d, Rope { x: x.m(), positions, cos, sin, inverse: false })
    });
}

#[test]
fn products() {
    let w = World::new(KernelSet::Sm80);
    let (x, dy) = (w.f(1, &[T, H]), w.f(2, &[T, V]));
    let (dense, four, bias) = (w.f(3, &[V, H]), Weight::new(&w, 4, [V, H]), w.f(6, &[V]));
    let (a, b) = (w.f(7, &[R, H]), w.f(8, &[V, R]));
    let (mut y, mut dx, mut s) = (w.zeros(&[T, V]), w.zeros(&[T, H]), w.zeros(&[T, R]));
    let (mut dw, mut dbias) = (w.zeros(&[V, H]), w.zeros(&[V]));
    let (mut da, mut db) = (w.zeros(&[R, H]), w.zeros(&[V, R]));
    w.steady("matmul", 0, |d| {
        let lora = &[lora(&a, &b)][..];
        let (bias, adapter, s, residual) = (Some(bias.v()), None, Some(s.m()), None);
        matmul(d, Matmul { x: x.v(), w: dense.v(), bias, lora, adapter, s, residual, y: y.m() })
    });
    w.steady("nf4_matmul", 0, |d| {
        let lora = &[lora(&a, &b)][..];
        let (bias, adapter, s, residual) = (Some(bias.v()), None, None, None);
        nf4_matmul(
            d,
            Nf4Matmul { x: x.v(), w: four.v(), bias, lora, adapter, s, residual, y: y.m() },
        )
    });
    w.steady("matmul_dx", 0, |d| {
        let (lora, adapter, accumulate) = (&[lora(&a, &b)][..], None, true);
        matmul_dx(d, MatmulDx { dy: dy.v(), w: dense.v(), lora, adapter, accumulate, dx: dx.m() })
    });
    w.steady("nf4_matmul_dx", 0, |d| {
        let (lora, adapter, accumulate) = (&[lora(&a, &b)][..], None, true);
        let args = Nf4MatmulDx { dy: dy.v(), w: four.v(), lora, adapter, accumulate, dx: dx.m() };
        nf4_matmul_dx(d, args)
    });
    w.steady("matmul_dw", 0, |d| {
        let dbias = Some(dbias.m());
        matmul_dw(d, MatmulDw { dy: dy.v(), x: x.v(), dw: dw.m(), dbias })
    });
    w.steady("lora_grad", 0, |d| {
        let args = LoraGrad {
            x: x.v(),
            dy: dy.v(),
            s: s.v(),
            lora: lora(&a, &b),
            adapter: None,
            index: 0,
            da: da.m(),
            db: db.m(),
        };
        lora_grad(d, args)
    });
}

#[test]
fn attention_and_its_gradient() {
    let w = World::new(KernelSet::Sm80);
    let (q, k, v) = (w.f(1, &[T, HEADS, D]), w.f(2, &[T, KV, D]), w.f(3, &[T, KV, D]));
    let (cu_seqlens, kv_start, kv_len) =
        (w.of(&[0i64, 3, 5], &[3]), w.of(&[0i64, 3], &[2]), w.of(&[3i64, 2], &[2]));
    let (mut o, mut lse) = (w.zeros(&[T, HEADS, D]), w.zeros(&[T, HEADS]));
    let (mut dq, mut dk, mut dv) =
        (w.zeros(&[T, HEADS, D]), w.zeros(&[T, KV, D]), w.zeros(&[T, KV, D]));
    w.steady("attention", 0, |d| {
        let args = Attention {
            q: q.v(),
            k: k.v(),
            v: v.v(),
            cu_seqlens: cu_seqlens.v(),
            kv_rows: KvRows::From(kv_start.v()),
            kv_len: kv_len.v(),
            scale: 0.3,
            o: o.m(),
            lse: Some(lse.m()),
        };
        attention(d, args)
    });
    w.steady("attention_bwd", 0, |d| {
        let args = AttentionBwd {
            q: q.v(),
            k: k.v(),
            v: v.v(),
            cu_seqlens: cu_seqlens.v(),
            kv_start: kv_start.v(),
            kv_len: kv_len.v(),
            scale: 0.3,
            dout: o.v(),
            dq: dq.m(),
            dk: dk.m(),
            dv: dv.m(),
        };
        attention_bwd(d, args)
    });
}

#[test]
fn heads_losses_and_samples() {
    let w = World::new(KernelSet::Sm80);
    let (hidden, head, four) = (w.f(1, &[T, H]), w.f(2, &[V, H]), Weight::new(&w, 3, [V, H]));
    let targets = w.of(&[1i32, 0, 47, 3, 3], &[T]);
    let (logits, dlogp) = (w.f(5, &[T, V]), w.f(6, &[T]));
    let (mut logp, mut dlogits) = (w.zeros(&[T]), w.zeros(&[T, V]));
    let (mut score, mut dhidden, mut dweight) =
        (w.zeros(&[T, H]), w.zeros(&[T, H]), w.zeros(&[V, H]));
    w.steady("logprob", 0, |d| logprob(d, LogProb::new(logits.v(), targets.v(), logp.m())));
    w.steady("logprob_bwd", 0, |d| {
        logprob_bwd(d, LogProbBwd::new(logits.v(), targets.v(), dlogp.v(), dlogits.m()))
    });
    w.steady("linear_logprob", 0, |d| {
        let head = Head::Nf4(four.v());
        let args = LinearLogProb::new(hidden.v(), head, targets.v(), logp.m());
        linear_logprob(d, LinearLogProb { score: Some(score.m()), ..args })
    });
    w.steady("score_scale", 0, |d| {
        score_scale(d, ScoreScale { score: score.v(), dlogp: dlogp.v(), dhidden: dhidden.m() })
    });
    w.steady("linear_logprob_bwd", 0, |d| {
        let args = LinearLogProbBwd {
            hidden: hidden.v(),
            head: Head::Dense(head.v()),
            lora: &[],
            targets: targets.v(),
            vocab: V as i64,
            transform: LogitTransform::default(),
            dlogp: dlogp.v(),
            dentropy: None,
            dhidden: dhidden.m(),
            dweight: Some(dweight.m()),
        };
        linear_logprob_bwd(d, args)
    });
    let (uniform, mut token) = (w.of(&[0.1f64, 0.3, 0.5, 0.7, 0.9], &[T]), w.of(&[0i32; T], &[T]));
    w.steady("sample", 0, |d| {
        let args = Sample {
            logits: logits.v(),
            vocab: V as i64,
            transform: LogitTransform::default(),
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            greedy: false,
            uniform: uniform.v(),
            token: token.m(),
            logp: logp.m(),
            logp_kept: None,
            kept_mass: None,
            entropy: None,
        };
        sample(d, args)
    });
    let cu = w.of(&[0i64, 2, 5], &[3]);
    let (settings, one, mut loss) = (PolicySettings::default(), w.of(&[1f32; 2], &[2]), 0.0);
    w.steady("policy_loss", 1, |d| {
        let args = PolicyLoss::new(
            logp.v(),
            Advantage::PerSequence(one.v()),
            cu.v(),
            one.v(),
            &settings,
            &mut loss,
            dhidden.buffer.view_mut(&[T as i64]).unwrap(),
        );
        policy_loss(d, args)
    });
}

#[test]
fn optimiser() {
    let w = World::new(KernelSet::Sm80);
    let (g, h) = (w.f(1, &[5000]), w.f(2, &[70]));
    let mut state: Vec<Tensor<f32>> = (0..3).map(|_| w.zeros(&[5000])).collect();
    let (mut norm, mut outcome) = (GlobalNorm::default(), AdamWOutcome::default());
    w.steady("grad_norm", 1, |d| {
        grad_norm(d, GradNorm { grads: &[g.v(), h.v()], norm: &mut norm })
    });
    w.steady("adamw", 1, |d| {
        let [param, m, v] = &mut state[..] else { unreachable!() };
        let mask = None;
        let tensor = AdamWTensor { param: param.m(), grad: g.v(), m: m.m(), v: v.m(), mask };
        let settings = AdamWSettings::default();
        adamw(d, AdamW { tensors: vec![tensor], settings, outcome: &mut outcome })
    });
    assert!(norm.finite && outcome.updated == 5000);
    let mut codes = [w.of(&[0u8; 5000], &[5000]), w.of(&[0u8; 5000], &[5000])];
    let mut maxima = [w.zeros(&[20]), w.zeros(&[20])];
    w.steady("adamw_8bit", 1, |d| {
        let ([m, v], [m_absmax, v_absmax]) = (&mut codes, &mut maxima);
        let tensor = AdamW8bitTensor {
            param: state[0].m(),
            grad: g.v(),
            m: m.m(),
            v: v.m(),
            m_absmax: m_absmax.m(),
            v_absmax: v_absmax.m(),
            mask: None,
        };
        let settings = AdamWSettings::default();
        adamw_8bit(d, AdamW8bit { tensors: vec![tensor], settings, outcome: &mut outcome })
    });
}

/// What a decode step does, in small, with inputs and results in pinned memory.
struct Decode {
    w: World,
    table: Tensor<f32>,
    norm: Tensor<f32>,
    weight: Weight,
    adapter: [Tensor<f32>; 2],
    keys: [Tensor<f32>; 2],
    ids: Tensor<i32>,
    uniform: Tensor<f64>,
    rows: [Tensor<i64>; 3],
    hidden: [Tensor<f32>; 3],
    logits: Tensor<f32>,
    logp: Tensor<f32>,
    drawn: Tensor<f32>,
    token: Tensor<i32>,
    inputs: PinnedBuffer<i32>,
    draws: PinnedBuffer<f64>,
    tokens: PinnedBuffer<i32>,
}

impl Decode {
    fn new(set: KernelSet) -> Decode {
        let w = World::new(set);
        let gpu = w.gpu.clone();
        let zeros = |shape: &[usize]| w.zeros(shape);
        Decode {
            table: w.f(1, &[V, H]),
            norm: w.f(2, &[H]),
            weight: Weight::new(&w, 3, [H, H]),
            adapter: [w.f(5, &[R, H]), w.f(6, &[H, R])],
            keys: [w.f(7, &[9, KV, D]), w.f(8, &[9, KV, D])],
            ids: w.of(&[0i32; T], &[T]),
            uniform: w.of(&[0f64; T], &[T]),
            rows: [
                w.of(&[0i64, 1, 2, 3, 4, 5], &[T + 1]),
                w.of(&[0i64, 2, 0, 5, 3], &[T]),
                w.of(&[2i64, 7, 9, 1, 5], &[T]),
            ],
            hidden: [zeros(&[T, H]), zeros(&[T, H]), zeros(&[T, H])],
            logits: zeros(&[T, V]),
            logp: zeros(&[T]),
            drawn: zeros(&[T]),
            token: w.of(&[0i32; T], &[T]),
            inputs: PinnedBuffer::new(&gpu, T).unwrap(),
            draws: PinnedBuffer::new(&gpu, T).unwrap(),
            tokens: PinnedBuffer::new(&gpu, T).unwrap(),
            w,
        }
    }

    fn step(&mut self) -> Result<()> {
        let d = &self.w.device;
        self.inputs.upload(0, self.ids.m())?;
        self.draws.upload(0, self.uniform.m())?;
        let [x, y, z] = &mut self.hidden;
        embedding(d, Embedding { ids: self.ids.v(), table: self.table.v(), y: x.m() })?;
        let weight = self.norm.v();
        rmsnorm(d, RmsNorm { x: x.v(), weight, eps: 1e-6, y: y.m(), rstd: None })?;
        let adapters = [lora(&self.adapter[0], &self.adapter[1])];
        project(d, y.v(), &self.weight, &adapters, z.m())?;
        attend(d, z, &self.keys, &self.rows, y)?;
        // The head is the embedding.
        plain(d, y.v(), self.table.v(), self.logits.m())?;
        logprob(d, LogProb::new(self.logits.v(), self.ids.v(), self.logp.m()))?;
        let args = Sample {
            logits: self.logits.v(),
            vocab: V as i64,
            transform: LogitTransform::default(),
            top_k: 0,
            top_p: 0.9,
            min_p: 0.0,
            greedy: false,
            uniform: self.uniform.v(),
            token: self.token.m(),
            logp: self.drawn.m(),
            logp_kept: None,
            kept_mass: None,
            entropy: None,
        };
        sample(d, args)?;
        self.tokens.download(0, self.token.v())
    }

    fn fill(&mut self, seed: u64) {
        let draw = |i: usize| ((seed as usize * 31 + i * 17) % 48) as i32;
        let ids: Vec<i32> = (0..T).map(draw).collect();
        let uniform: Vec<f64> = (0..T).map(|i| (draw(i + 7) as f64 + 0.5) / 48.0).collect();
        self.inputs.write(0, &ids).unwrap();
        self.draws.write(0, &uniform).unwrap();
    }

    /// Everything that a step leaves behind.
    fn results(&self) -> Vec<Vec<u8>> {
        let tokens = self.tokens.to_vec().unwrap();
        let mut all =
            vec![bytemuck_bytes(&tokens), self.token.bits(), self.logp.bits(), self.drawn.bits()];
        all.extend(self.hidden.iter().map(Tensor::bits));
        all.push(self.logits.bits());
        all
    }
}

fn project(
    d: &Device,
    x: View<'_, f32>,
    weight: &Weight,
    lora: &[Lora<'_, f32>],
    y: ViewMut<'_, f32>,
) -> Result<()> {
    let (bias, adapter, s, residual) = (None, None, None, None);
    nf4_matmul(d, Nf4Matmul { x, w: weight.v(), bias, lora, adapter, s, residual, y })
}

fn plain(d: &Device, x: View<'_, f32>, w: View<'_, f32>, y: ViewMut<'_, f32>) -> Result<()> {
    let (bias, adapter, s, residual) = (None, None, None, None);
    matmul(d, Matmul { x, w, bias, lora: &[], adapter, s, residual, y })
}

fn attend(
    d: &Device,
    q: &Tensor<f32>,
    keys: &[Tensor<f32>; 2],
    rows: &[Tensor<i64>; 3],
    o: &mut Tensor<f32>,
) -> Result<()> {
    let heads = [T as i64, HEADS as i64, D as i64];
    let args = Attention {
        q: q.buffer.view(&heads)?,
        k: keys[0].v(),
        v: keys[1].v(),
        cu_seqlens: rows[0].v(),
        kv_rows: KvRows::From(rows[1].v()),
        kv_len: rows[2].v(),
        scale: 0.3,
        o: o.buffer.view_mut(&heads)?,
        lse: None,
    };
    attention(d, args)
}

#[test]
fn a_graph_has_the_bits_of_its_calls() {
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        let mut decode = Decode::new(set);
        let mut want = Vec::new();
        for seed in [1, 2, 3] {
            decode.fill(seed);
            decode.step().unwrap();
            want.push(decode.results());
        }
        assert!(want[0] != want[1] && want[1] != want[2]);
        let (gpu, driver) = (decode.w.gpu.clone(), decode.w.driver.clone());
        let graph = gpu.capture(|| decode.step()).unwrap();
        assert_eq!(decode.results(), want[2], "a capture does nothing");
        // Scratch memory that grows later is not what the graph uses.
        gpu.reserve_scratch(1 << 20).unwrap();
        driver.take();
        for (seed, want) in [1, 2].into_iter().zip(&want) {
            decode.fill(seed);
            graph.launch().unwrap();
            let tokens = decode.tokens.to_vec().unwrap();
            assert_eq!(driver.take(), [Call::LaunchGraph(8), Call::Synchronize]);
            assert_eq!(bytemuck_bytes(&tokens), want[0]);
            assert_eq!(&decode.results(), want, "{set:?}");
            driver.take();
        }
    }
}

#[test]
fn a_capture_of_other_adapters_is_refused() {
    let mut decode = Decode::new(KernelSet::Sm80);
    decode.step().unwrap();
    let gpu = decode.w.gpu.clone();
    decode.adapter[0] = decode.w.f(9, &[R, H]);
    let error = gpu.capture(|| decode.step()).unwrap_err().to_string();
    assert!(error.contains("table"), "{error}");
    decode.step().unwrap();
    gpu.capture(|| decode.step()).unwrap().launch().unwrap();
}

/// Threads that share a device take turns over its memory, whatever it is that they call.
#[test]
fn threads_share_a_device() {
    let w = World::new(KernelSet::Sm80);
    let (hidden, head) = (w.f(1, &[T, H]), w.f(2, &[V, H]));
    let targets = w.of(&[1i32, 0, 47, 3, 3], &[T]);
    let grads = [w.f(3, &[4097]), w.f(4, &[70])];
    let norm = |device: &Device| {
        let mut norm = GlobalNorm::default();
        let grads = [grads[0].v(), grads[1].v()];
        grad_norm(device, GradNorm { grads: &grads, norm: &mut norm }).unwrap();
        norm
    };
    let score = |device: &Device| {
        let (mut logp, mut score) = (w.zeros(&[T]), w.zeros(&[T, H]));
        let head = Head::Dense(head.v());
        let args = LinearLogProb::new(hidden.v(), head, targets.v(), logp.m());
        linear_logprob(device, LinearLogProb { score: Some(score.m()), ..args }).unwrap();
        (logp.bits(), score.bits())
    };
    let want = (norm(&w.device), score(&w.device));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..5).for_each(|_| assert_eq!(norm(&w.device), want.0)));
            scope.spawn(|| (0..5).for_each(|_| assert!(score(&w.device) == want.1)));
        }
    });
}

/// Operands that are never the same twice do not fill the device with tables.
#[test]
fn tables_are_bounded() {
    let driver = Arc::new(DryDriver::new(EmuDriver::new().info().clone()));
    let gpu = Arc::new(Gpu::new(driver.clone()).unwrap());
    let device = Device::Gpu(gpu.clone());
    let grad = DeviceBuffer::<f32>::new(&gpu, 4000).unwrap();
    let mut norm = GlobalNorm::default();
    for first in 0..1500 {
        let grad = grad.view(&[4000]).unwrap();
        let grads: Vec<_> = (0..1000).map(|i| grad.narrow(first + i, 1).unwrap()).collect();
        grad_norm(&device, GradNorm { grads: &grads, norm: &mut norm }).unwrap();
    }
    // 36 MB of tables went through slabs of at most 16 MiB.
    let usage = driver.usage();
    assert!(usage.peak < 80 << 20 && usage.allocations < 16, "{usage:?}");
}
