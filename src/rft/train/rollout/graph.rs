//! One token of every running sequence: through the model, to logits, to a draw.
//!
//! On a GPU a step is recorded once per batch size and started with one call from then on. Its
//! inputs and results are pinned host memory, so nothing but reading the drawn tokens waits. Batch
//! sizes are powers of two: the rows that are left over belong to nobody, read page 0 of the cache
//! and write nowhere.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use crate::model::{Batch, Decoder, Keys, KvCache, Packed};
use crate::train::rollout::Sampling;
use gradus::device::{Allocator, Arena, Buffer, Device, Gpu, Graph, PinnedBuffer};
use gradus::dtype::Float;
use gradus::error::Result;
use gradus::ops::vocabulary::sample::check_drawn;
use gradus::ops::{LogitTransform, Sample, sample};

/// Tokens drawn, with their log-probs under the full vocabulary and its entropies.
pub(crate) struct SampledTokens {
    pub token: Vec<i32>,
    pub logp: Vec<f32>,
    pub entropy: Vec<f32>,
}

/// Where draws go.
struct TokenBuffers {
    token: Buffer<i32>,
    logp: Buffer<f32>,
    entropy: Buffer<f32>,
}

/// The sequences of a step: their last tokens, their slots and their uniform draws.
pub(crate) struct ActiveBatch<'a> {
    pub packed: &'a Packed,
    pub slots: &'a [usize],
    pub uniform: &'a [f64],
}

/// What decode steps keep from one to the next: nothing on the CPU.
#[derive(Default)]
pub(crate) struct DecodeGraphs {
    recorded: BTreeMap<usize, DecodeGraph>,
}

impl DecodeGraphs {
    /// The next token of the running sequences, at most `most` of them.
    pub fn step<T: Float>(
        &mut self,
        model: &Decoder<T>,
        cache: &mut KvCache<T>,
        sampling: &Sampling,
        running: ActiveBatch<'_>,
        most: usize,
    ) -> Result<SampledTokens> {
        let Device::Gpu(gpu) = &model.device else {
            let batch = cache.batch(&model.allocator, running.packed, running.slots)?;
            let logits = logits(model, cache, &batch)?;
            return draw(model, &model.allocator, sampling, &logits, running.uniform);
        };
        let size = running.slots.len().next_power_of_two().min(most.max(running.slots.len()));
        let recorded = match self.recorded.entry(size) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(DecodeGraph::new(gpu, size, cache.table_width())?),
        };
        recorded.step(model, cache, sampling, running)
    }
}

/// Logits behind the last token of each sequence of a decode batch.
fn logits<T: Float>(
    model: &Decoder<T>,
    cache: &mut KvCache<T>,
    batch: &Batch,
) -> Result<Buffer<T>> {
    let hidden = model.forward(batch, true, Some(cache), None)?;
    model.logits(&batch.allocator, &hidden)
}

/// Draws a token from every row of `logits`.
pub(crate) fn draw<T: Float>(
    model: &Decoder<T>,
    allocator: &Allocator,
    sampling: &Sampling,
    logits: &Buffer<T>,
    uniform: &[f64],
) -> Result<SampledTokens> {
    let n = uniform.len();
    let uniform = allocator.copy_of(uniform)?;
    let mut drawn = TokenBuffers {
        token: allocator.alloc(n)?,
        logp: allocator.alloc(n)?,
        entropy: allocator.alloc(n)?,
    };
    sample_rows(model, sampling, logits, &uniform, &mut drawn)?;
    let (token, logp) = (drawn.token.to_host()?, drawn.logp.to_host()?);
    checked(SampledTokens { token, logp, entropy: drawn.entropy.to_host()? })
}

fn sample_rows<T: Float>(
    model: &Decoder<T>,
    s: &Sampling,
    logits: &Buffer<T>,
    uniform: &Buffer<f64>,
    drawn: &mut TokenBuffers,
) -> Result<()> {
    let vocab = model.config.vocab;
    let args = Sample {
        logits: logits.rows(vocab)?,
        vocab: vocab as i64,
        transform: LogitTransform { temperature: s.temperature, ..Default::default() },
        top_k: s.top_k,
        top_p: s.top_p,
        min_p: s.min_p,
        greedy: s.greedy,
        uniform: uniform.all(),
        token: drawn.token.all_mut(),
        logp: drawn.logp.all_mut(),
        logp_kept: None,
        kept_mass: None,
        entropy: Some(drawn.entropy.all_mut()),
    };
    sample(&model.device, args)
}

/// On a GPU a row that nothing can be drawn from shows as a negative token.
fn checked(draw: SampledTokens) -> Result<SampledTokens> {
    check_drawn(draw.token.iter().position(|&t| t < 0))?;
    Ok(draw)
}

/// A decode step of one batch size. What it reads and leaves has its place for good; the results in
/// between come from an arena of its own, so that a recorded step never writes what others hold.
struct DecodeGraph {
    gpu: Arc<Gpu>,
    size: usize,
    batch: Batch,
    uniform: Buffer<f64>,
    drawn: TokenBuffers,
    pinned: Pinned,
    state: GraphState,
}

/// The host's side of a step's inputs and results.
struct Pinned {
    ids: PinnedBuffer<i32>,
    positions: PinnedBuffer<i32>,
    table: PinnedBuffer<i32>,
    len: PinnedBuffer<i64>,
    rows: PinnedBuffer<i32>,
    uniform: PinnedBuffer<f64>,
    token: PinnedBuffer<i32>,
    logp: PinnedBuffer<f32>,
    entropy: PinnedBuffer<f32>,
}

/// The first step of a size runs as it is: it loads kernels, gives the scratch memory its size and
/// measures what the results in between need. The second is recorded.
enum GraphState {
    Cold,
    Warm,
    Graph(Graph),
}

impl DecodeGraph {
    fn new(gpu: &Arc<Gpu>, size: usize, pages: usize) -> Result<DecodeGraph> {
        let device = Device::Gpu(gpu.clone());
        let offsets: Vec<i64> = (0..=size as i64).collect();
        let keys = Keys::Cached {
            table: Buffer::new(&device, size * pages)?,
            len: Buffer::new(&device, size)?,
            rows: Buffer::new(&device, size)?,
        };
        let batch = Batch {
            allocator: Allocator::new(&device),
            ids: Buffer::new(&device, size)?,
            positions: Buffer::new(&device, size)?,
            cu_seqlens: Buffer::of(&device, &offsets)?,
            keys,
            masks: None,
        };
        let pinned = Pinned {
            ids: PinnedBuffer::new(gpu, size)?,
            positions: PinnedBuffer::new(gpu, size)?,
            table: PinnedBuffer::new(gpu, size * pages)?,
            len: PinnedBuffer::new(gpu, size)?,
            rows: PinnedBuffer::new(gpu, size)?,
            uniform: PinnedBuffer::new(gpu, size)?,
            token: PinnedBuffer::new(gpu, size)?,
            logp: PinnedBuffer::new(gpu, size)?,
            entropy: PinnedBuffer::new(gpu, size)?,
        };
        let uniform = Buffer::new(&device, size)?;
        let (token, logp) = (Buffer::new(&device, size)?, Buffer::new(&device, size)?);
        let drawn = TokenBuffers { token, logp, entropy: Buffer::new(&device, size)? };
        let gpu = gpu.clone();
        Ok(DecodeGraph { gpu, size, batch, uniform, drawn, pinned, state: GraphState::Cold })
    }

    fn step<T: Float>(
        &mut self,
        model: &Decoder<T>,
        cache: &mut KvCache<T>,
        sampling: &Sampling,
        running: ActiveBatch<'_>,
    ) -> Result<SampledTokens> {
        let keys = cache.extend(running.packed, running.slots)?;
        let (n, pinned) = (self.size, &mut self.pinned);
        pinned.ids.write(0, &padded(&running.packed.ids, n, 0))?;
        pinned.positions.write(0, &padded(&running.packed.positions, n, 0))?;
        pinned.table.write(0, &padded(&keys.table, pinned.table.len(), 0))?;
        pinned.len.write(0, &padded(&keys.len, n, 1))?;
        pinned.rows.write(0, &padded(&keys.rows, n, -1))?;
        pinned.uniform.write(0, &padded(running.uniform, n, 0.0))?;
        self.state = match std::mem::replace(&mut self.state, GraphState::Cold) {
            GraphState::Cold => {
                self.run(model, cache, sampling)?;
                GraphState::Warm
            }
            GraphState::Warm => {
                self.batch.allocator = reserved(&self.gpu, &self.batch.allocator)?;
                let gpu = self.gpu.clone();
                let graph = gpu.capture(|| self.run(model, cache, sampling))?;
                graph.launch()?;
                GraphState::Graph(graph)
            }
            GraphState::Graph(graph) => {
                graph.launch()?;
                GraphState::Graph(graph)
            }
        };
        let count = running.slots.len();
        let (token, logp) = (vec![0; count], vec![0.0; count]);
        let mut draw = SampledTokens { token, logp, entropy: vec![0.0; count] };
        self.pinned.token.read(0, &mut draw.token)?;
        self.pinned.logp.read(0, &mut draw.logp)?;
        self.pinned.entropy.read(0, &mut draw.entropy)?;
        checked(draw)
    }

    /// Gives the stream the whole step.
    fn run<T: Float>(
        &mut self,
        model: &Decoder<T>,
        cache: &mut KvCache<T>,
        sampling: &Sampling,
    ) -> Result<()> {
        let (batch, pinned) = (&mut self.batch, &mut self.pinned);
        pinned.ids.upload(0, batch.ids.all_mut())?;
        pinned.positions.upload(0, batch.positions.all_mut())?;
        if let Keys::Cached { table, len, rows } = &mut batch.keys {
            pinned.table.upload(0, table.all_mut())?;
            pinned.len.upload(0, len.all_mut())?;
            pinned.rows.upload(0, rows.all_mut())?;
        }
        pinned.uniform.upload(0, self.uniform.all_mut())?;
        let logits = logits(model, cache, batch)?;
        sample_rows(model, sampling, &logits, &self.uniform, &mut self.drawn)?;
        pinned.token.download(0, self.drawn.token.all())?;
        pinned.logp.download(0, self.drawn.logp.all())?;
        pinned.entropy.download(0, self.drawn.entropy.all())
    }
}

/// `data`, then `rest` up to `len` elements.
fn padded<E: Copy>(data: &[E], len: usize, rest: E) -> Vec<E> {
    data.iter().copied().chain(std::iter::repeat(rest)).take(len).collect()
}

/// An arena as large as `measured` has to be.
fn reserved(gpu: &Arc<Gpu>, measured: &Allocator) -> Result<Allocator> {
    let arena = Arena::new(gpu);
    if let Allocator::Gpu(measured) = measured {
        arena.reserve(measured.peak())?;
    }
    Ok(Allocator::Gpu(arena))
}
