//! AdamW on the CPU: chunks of 4096 elements are items of work, elements are independent.

use crate::alloc::{self, Gather};
use crate::device::parallel;
use crate::dtype::Element;
use crate::ops::optim::adamw::{
    AdamW, AdamW8bit, AdamW8bitTensor, AdamWOutcome, AdamWSettings, AdamWTensor, DecayOrder,
    STATE_BLOCK,
};
use crate::ops::support::math;
use crate::quant::codebook::Bounds;
use crate::quant::dynamic_map;
use crate::view::View;

/// Elements per item of work; a multiple of the state block.
const CHUNK: usize = 4096;
/// Rough scalar operations per element.
const WORK: usize = 16;
const LANES: usize = 16;

/// The constants of one step, rounded once from f64.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Coefficients {
    pub beta1: f32,
    pub one_minus_beta1: f32,
    pub beta2: f32,
    pub one_minus_beta2: f32,
    pub eps: f32,
    pub grad_scale: f32,
    /// 1 / √(1 − β2ᵗ).
    pub inverse_root: f32,
    /// lr / (1 − β1ᵗ).
    pub step: f32,
    /// lr·λ.
    pub decay: f32,
    order: DecayOrder,
}

impl Coefficients {
    pub(crate) fn new(s: &AdamWSettings) -> Coefficients {
        Coefficients {
            beta1: s.beta1 as f32,
            one_minus_beta1: (1.0 - s.beta1) as f32,
            beta2: s.beta2 as f32,
            one_minus_beta2: (1.0 - s.beta2) as f32,
            eps: s.eps as f32,
            grad_scale: s.grad_scale as f32,
            inverse_root: (1.0 / (1.0 - power(s.beta2, s.step)).sqrt()) as f32,
            step: (s.lr / (1.0 - power(s.beta1, s.step))) as f32,
            decay: (s.lr * s.weight_decay) as f32,
            order: s.decay,
        }
    }

    /// One element: the new (param, m, v).
    #[inline(always)]
    fn update(&self, p: f32, grad: f32, m: f32, v: f32) -> (f32, f32, f32) {
        let g = self.grad_scale * grad;
        let m = self.beta1.mul_add(m, self.one_minus_beta1 * g);
        let v = self.beta2.mul_add(v, self.one_minus_beta2 * g * g);
        let q = m / v.sqrt().mul_add(self.inverse_root, self.eps);
        // p·(1 − lr·λ) would carry the rounding of 1 − lr·λ through every step.
        let decayed = match self.order {
            DecayOrder::Before => p,
            DecayOrder::After => (-self.step).mul_add(q, p),
        };
        let p = p - self.step.mul_add(q, self.decay * decayed);
        (p, m, v)
    }

    #[inline(always)]
    fn overflows(&self, grad: f32) -> bool {
        let g = self.grad_scale * grad;
        !(self.one_minus_beta2 * g * g).is_finite() || !g.is_finite()
    }
}

/// x^n by squaring: the same bits on every platform.
fn power(x: f64, n: u64) -> f64 {
    let (mut result, mut base, mut rest) = (1.0, x, n);
    while rest > 0 {
        if rest & 1 == 1 {
            result *= base;
        }
        base *= base;
        rest >>= 1;
    }
    result
}

/// Counters of one chunk.
#[derive(Clone, Copy, Default)]
struct Counts {
    updated: u32,
    unchanged: u32,
    absorbed: u32,
}

/// One chunk of a tensor with 32-bit state.
struct Chunk<'a> {
    param: &'a mut [f32],
    grad: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    mask: Option<&'a [u8]>,
    counts: &'a mut Counts,
}

pub(crate) fn adamw(mut a: AdamW<'_>) {
    let c = Coefficients::new(&a.settings);
    let grads = a.tensors.iter().map(|t| (slice(&t.grad), t.mask.as_ref().map(slice)));
    *a.outcome = AdamWOutcome { non_finite: first_non_finite(&c, grads), ..Default::default() };
    if a.outcome.non_finite.is_some() {
        return;
    }
    let sizes = a.tensors.iter().map(|t| t.grad.numel() as usize);
    let mut counts = alloc::filled(Counts::default(), sizes.map(|n| n.div_ceil(CHUNK)).sum());
    let mut counters = counts.iter_mut();
    let chunks: Vec<Chunk> =
        a.tensors.iter_mut().flat_map(|t| split(t, counters.by_ref())).sifted();
    parallel::for_each(chunks, CHUNK * WORK, |_, chunk| update_chunk(&c, chunk));
    total(a.outcome, &counts);
}

fn split<'t, 'c: 't>(
    t: &'t mut AdamWTensor<'_>,
    counters: &mut impl Iterator<Item = &'c mut Counts>,
) -> Vec<Chunk<'t>> {
    let mut masks = t.mask.as_ref().map(|mask| slice(mask).chunks(CHUNK));
    let param = t.param.as_mut_slice().unwrap_or(&mut []).chunks_mut(CHUNK);
    let m = t.m.as_mut_slice().unwrap_or(&mut []).chunks_mut(CHUNK);
    let v = t.v.as_mut_slice().unwrap_or(&mut []).chunks_mut(CHUNK);
    let grad = slice(&t.grad).chunks(CHUNK);
    let state = param.zip(grad).zip(m.zip(v));
    // `state` first: zip asks it before it takes a counter, so none is lost at its end.
    state
        .zip(counters)
        .map(|(((param, grad), (m, v)), counts)| {
            let mask = masks.as_mut().and_then(Iterator::next);
            Chunk { param, grad, m, v, mask, counts }
        })
        .sifted()
}

fn slice<'a, T: Element>(view: &View<'a, T>) -> &'a [T] {
    view.as_slice().unwrap_or(&[])
}

/// Tensor and element of the first gradient that may not be used.
fn first_non_finite<'a>(
    c: &Coefficients,
    grads: impl Iterator<Item = (&'a [f32], Option<&'a [u8]>)>,
) -> Option<(usize, usize)> {
    for (tensor, (grad, mask)) in grads.enumerate() {
        let chunks: Vec<&[f32]> = grad.chunks(CHUNK).gathered();
        let masks: Option<Vec<&[u8]>> = mask.map(|mask| mask.chunks(CHUNK).gathered());
        let bad = parallel::map(chunks.len(), CHUNK * 2, |i| {
            any_overflows(c, chunks[i], masks.as_ref().map(|masks| masks[i]))
        });
        if let Some(chunk) = bad.iter().position(|&bad| bad) {
            let refused = |i: &usize| mask.is_none_or(|m| m[*i] != 0) && c.overflows(grad[*i]);
            return (chunk * CHUNK..grad.len()).find(refused).map(|i| (tensor, i));
        }
    }
    None
}

#[inline(always)]
fn any_overflows_body(c: &Coefficients, grad: &[f32], mask: Option<&[u8]>) -> bool {
    match mask {
        None => grad.iter().fold(false, |bad, &g| bad | c.overflows(g)),
        Some(mask) => {
            grad.iter().zip(mask).fold(false, |bad, (&g, &on)| bad | ((on != 0) & c.overflows(g)))
        }
    }
}

math::dispatch_simd!(
    fn any_overflows(c: &Coefficients, grad: &[f32], mask: Option<&[u8]>) -> bool =
        any_overflows_body
);

/// A vector of elements at a time; the last is padded with elements that are masked out.
#[inline(always)]
fn update_chunk_body(c: &Coefficients, chunk: Chunk<'_>) {
    let Chunk { param, grad, m, v, mask, counts } = chunk;
    let mut lanes = LaneCounts::default();
    let (param, param_rest) = param.as_chunks_mut::<LANES>();
    let (grad, grad_rest) = grad.as_chunks::<LANES>();
    let (m, m_rest) = m.as_chunks_mut::<LANES>();
    let (v, v_rest) = v.as_chunks_mut::<LANES>();
    let vectors = param.iter_mut().zip(grad).zip(m.iter_mut().zip(v));
    for (i, ((param, grad), (m, v))) in vectors.enumerate() {
        let on = lanes_on(mask.map(|mask| &mask[i * LANES..(i + 1) * LANES]), LANES);
        update_vector(c, [param, m, v], grad, &on, &mut lanes);
    }
    let rest = param_rest.len();
    if rest > 0 {
        let [mut p, g, mut m, mut v] = [&*param_rest, grad_rest, m_rest, v_rest].map(padded);
        let on = lanes_on(mask.map(|mask| &mask[mask.len() - rest..]), rest);
        update_vector(c, [&mut p, &mut m, &mut v], &g, &on, &mut lanes);
        param_rest.copy_from_slice(&p[..rest]);
        m_rest.copy_from_slice(&m[..rest]);
        v_rest.copy_from_slice(&v[..rest]);
    }
    *counts = lanes.total();
}

math::dispatch_simd!(fn update_chunk(c: &Coefficients, chunk: Chunk<'_>) = update_chunk_body);

#[inline(always)]
fn update_vector(
    c: &Coefficients,
    [param, m, v]: [&mut [f32; LANES]; 3],
    grad: &[f32; LANES],
    on: &[bool; LANES],
    lanes: &mut LaneCounts,
) {
    for l in 0..LANES {
        let (p1, m1, v1) = c.update(param[l], grad[l], m[l], v[l]);
        let same = param[l] == p1;
        lanes.updated[l] += on[l] as u32;
        lanes.unchanged[l] += (on[l] & same) as u32;
        lanes.absorbed[l] += (on[l] & !same & math::same_bf16(param[l], p1)) as u32;
        // Selected, not multiplied: a masked gradient may be NaN.
        param[l] = if on[l] { p1 } else { param[l] };
        m[l] = if on[l] { m1 } else { m[l] };
        v[l] = if on[l] { v1 } else { v[l] };
    }
}

/// Which of the first `len` lanes the mask leaves on.
#[inline(always)]
fn lanes_on(mask: Option<&[u8]>, len: usize) -> [bool; LANES] {
    match mask {
        None => std::array::from_fn(|l| l < len),
        Some(mask) => std::array::from_fn(|l| l < len && mask[l] != 0),
    }
}

fn padded(rest: &[f32]) -> [f32; LANES] {
    std::array::from_fn(|l| rest.get(l).copied().unwrap_or(0.0))
}

/// Counters of one chunk, per lane.
#[derive(Default)]
struct LaneCounts {
    updated: [u32; LANES],
    unchanged: [u32; LANES],
    absorbed: [u32; LANES],
}

impl LaneCounts {
    fn total(&self) -> Counts {
        Counts {
            updated: self.updated.iter().sum(),
            unchanged: self.unchanged.iter().sum(),
            absorbed: self.absorbed.iter().sum(),
        }
    }
}

fn total(outcome: &mut AdamWOutcome, counts: &[Counts]) {
    for c in counts {
        outcome.updated += c.updated as u64;
        outcome.unchanged += c.unchanged as u64;
        outcome.absorbed_bf16 += c.absorbed as u64;
    }
}

/// One block of a tensor with 8-bit state.
struct Block<'a> {
    param: &'a mut [f32],
    grad: &'a [f32],
    m: &'a mut [u8],
    v: &'a mut [u8],
    m_absmax: &'a mut f32,
    v_absmax: &'a mut f32,
    mask: Option<&'a [u8]>,
    counts: &'a mut Counts,
}

/// An 8-bit map and the bounds of its codes.
struct Map {
    values: &'static [f32; 256],
    bounds: Bounds,
}

impl Map {
    fn new(signed: bool) -> Map {
        let values = dynamic_map(signed);
        Map { values, bounds: Bounds::new(values) }
    }
}

pub(crate) fn adamw_8bit(mut a: AdamW8bit<'_>) {
    let c = Coefficients::new(&a.settings);
    let grads = a.tensors.iter().map(|t| (slice(&t.grad), t.mask.as_ref().map(slice)));
    *a.outcome = AdamWOutcome { non_finite: first_non_finite(&c, grads), ..Default::default() };
    if a.outcome.non_finite.is_some() {
        return;
    }
    let sizes = a.tensors.iter().map(|t| t.grad.numel() as usize);
    let mut counts = alloc::filled(Counts::default(), sizes.map(|n| n.div_ceil(STATE_BLOCK)).sum());
    let mut counters = counts.iter_mut();
    let blocks: Vec<Block> =
        a.tensors.iter_mut().flat_map(|t| split_8bit(t, counters.by_ref())).sifted();
    let (signed, unsigned) = (Map::new(true), Map::new(false));
    parallel::for_each(blocks, STATE_BLOCK * 2 * WORK, |_, block| {
        update_block(&c, &signed, &unsigned, block)
    });
    total(a.outcome, &counts);
}

fn split_8bit<'t, 'c: 't>(
    t: &'t mut AdamW8bitTensor<'_>,
    counters: &mut impl Iterator<Item = &'c mut Counts>,
) -> Vec<Block<'t>> {
    let mut masks = t.mask.as_ref().map(|mask| slice(mask).chunks(STATE_BLOCK));
    let param = t.param.as_mut_slice().unwrap_or(&mut []).chunks_mut(STATE_BLOCK);
    let m = t.m.as_mut_slice().unwrap_or(&mut []).chunks_mut(STATE_BLOCK);
    let v = t.v.as_mut_slice().unwrap_or(&mut []).chunks_mut(STATE_BLOCK);
    let m_absmax = t.m_absmax.as_mut_slice().unwrap_or(&mut []).iter_mut();
    let v_absmax = t.v_absmax.as_mut_slice().unwrap_or(&mut []).iter_mut();
    let grad = slice(&t.grad).chunks(STATE_BLOCK);
    let state = param.zip(grad).zip(m.zip(v)).zip(m_absmax.zip(v_absmax));
    state
        .zip(counters)
        .map(|((((param, grad), (m, v)), (m_absmax, v_absmax)), counts)| {
            let mask = masks.as_mut().and_then(Iterator::next);
            Block { param, grad, m, v, m_absmax, v_absmax, mask, counts }
        })
        .sifted()
}

fn update_block(c: &Coefficients, signed: &Map, unsigned: &Map, block: Block<'_>) {
    let (mut m, mut v) = ([0f32; STATE_BLOCK], [0f32; STATE_BLOCK]);
    let n = block.param.len();
    for i in 0..n {
        m[i] = signed.values[block.m[i] as usize] * *block.m_absmax;
        v[i] = unsigned.values[block.v[i] as usize] * *block.v_absmax;
    }
    let state = Chunk {
        param: block.param,
        grad: block.grad,
        m: &mut m[..n],
        v: &mut v[..n],
        mask: block.mask,
        counts: block.counts,
    };
    update_chunk(c, state);
    let largest = |values: &[f32]| f32::from_bits(math::max_magnitude(values));
    (*block.m_absmax, *block.v_absmax) = (largest(&m[..n]), largest(&v[..n]));
    let mut codes = [0; STATE_BLOCK];
    encode(&m, *block.m_absmax, signed, &mut codes);
    block.m.copy_from_slice(&codes[..n]);
    encode(&v, *block.v_absmax, unsigned, &mut codes);
    block.v.copy_from_slice(&codes[..n]);
}

/// Nearest codes of x / max; a negative value keeps its sign even where zero is nearest.
#[inline(always)]
fn encode_body(x: &[f32; STATE_BLOCK], max: f32, map: &Map, codes: &mut [u8; STATE_BLOCK]) {
    for (code, &x) in codes.iter_mut().zip(x) {
        let nearest = map.bounds.code(if max == 0.0 { 0.0 } else { x / max });
        let lost_sign = (x < 0.0) & (map.values[nearest as usize] == 0.0);
        *code = nearest.saturating_sub(lost_sign as u8);
    }
}

math::dispatch_simd!(
    fn encode(x: &[f32; STATE_BLOCK], max: f32, map: &Map, codes: &mut [u8; STATE_BLOCK]) =
        encode_body
);
