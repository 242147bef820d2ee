//! A step of decoding as a graph: the calls, bit for bit; and threads that share a device.

use crate::world::*;
use gradus::device::{Call, KernelSet, PinnedBuffer};
use gradus::ops::*;
use gradus::{Device, Result, View, ViewMut};

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
