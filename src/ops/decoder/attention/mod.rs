//! Causal attention over packed sequences with grouped key/value heads (Vaswani et al. 2017,
//! arXiv:1706.03762, eq. 1; Ainslie et al. 2023, arXiv:2305.13245).
//!
//! One op serves training, prefill and decoding: a query row's output is the same bits whether its
//! sequence is computed whole, in chunks against a cache, one token at a time, or packed with
//! others. Every sum over keys runs in an order that depends on the key's index alone.

pub(crate) mod cpu;
mod cpu_backward;
mod cpu_forward;
mod cpu_lanes;
pub(crate) mod gpu;

use crate::alloc::{self, Gather};
use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Rows of the largest page.
const MAX_PAGE: usize = 1 << 30;

/// Which rows of `k` and `v` hold the keys of a sequence. Sequences may share rows.
#[derive(Clone, Copy, Debug)]
pub enum KvRows<'a> {
    /// `[B]` first row of each sequence: key j lies in row start + j.
    From(View<'a, i64>),
    /// A cache cut into pages, each a whole part of `k` and `v`.
    Pages {
        /// `[B, P]` pages of each sequence: key j of sequence b lies in row
        /// `table[b, j / size]·size + j % size`. Entries behind the last key are not read.
        table: View<'a, i32>,
        /// Rows of a page, a power of two up to 2^30.
        size: usize,
    },
    /// The first keys lie where those of other sequences lie, the rest in rows of their own.
    Prefixed {
        /// The keys that are shared.
        prefix: Prefix<'a>,
        /// `[B]` row of the first key behind the prefix: key j lies in row
        /// start + j − prefix.len.
        start: View<'a, i64>,
    },
}

/// The keys that a sequence begins with and others begin with too, such as those of a prompt: key j
/// lies in row start + j where j < len.
#[derive(Clone, Copy, Debug)]
pub struct Prefix<'a> {
    /// `[B]` row of `k` and `v` that holds key 0 of each sequence.
    pub start: View<'a, i64>,
    /// `[B]` number of keys there, up to all keys of the sequence; 0: it shares none.
    pub len: View<'a, i64>,
}

/// Arguments of [`attention`]. Query `i` of a sequence with `Lq` queries and `Lk` keys sees keys
/// `0..=Lk − Lq + i`; query head `h` uses key/value head `h / (Hq / Hkv)`.
#[derive(Debug)]
pub struct Attention<'a, T> {
    /// `[Tq, Hq, D]` queries, sequences packed one after another.
    pub q: View<'a, T>,
    /// `[S, Hkv, D]` keys: packed like `q`, or a cache with room between the sequences.
    pub k: View<'a, T>,
    /// `[S, Hkv, D]` values.
    pub v: View<'a, T>,
    /// `[B + 1]` offsets of the sequences in `q`.
    pub cu_seqlens: View<'a, i64>,
    /// Where the keys of each sequence lie in `k` and `v`.
    pub kv_rows: KvRows<'a>,
    /// `[B]` number of keys `Lk` of each sequence, at least its number of queries.
    pub kv_len: View<'a, i64>,
    /// Factor on q·k, usually 1/√D; finite.
    pub scale: f64,
    /// `[Tq, Hq, D]` output.
    pub o: ViewMut<'a, T>,
    /// `[Tq, Hq]` logsumexp over the visible keys of scale·q·k, if wanted.
    pub lse: Option<ViewMut<'a, f32>>,
}

/// o[i, h] = Σ_j softmax_j(scale · q[i, h]·k[j, g]) · v[j, g] over the visible keys j, g = h / (Hq / Hkv).
///
/// f64 views are computed in f64, all others in f32 with the normalizer in f64. With u = 2⁻²⁴, n
/// visible keys and ε = (D/16 + 8)·u·|scale|·max_j Σ_d|q_d·k_jd|, an output is within
/// (2·ε + (40 + n/64)·u)·Σ_j p_j·|v_j| of exact, p being the exact probabilities. On a GPU bf16 and
/// f16 with `D` a multiple of 16 up to 128 run on tensor cores and round the weights to their dtype
/// for the product with v: `docs/NUMERICS.md` has the bound.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, a non-contiguous last dimension, offsets that
/// fall, a key range or a page outside `k`, fewer pages than keys, fewer keys than queries or than
/// a prefix has, or a `scale` that is not finite; `OutOfMemory` if the scores of a row do not fit. Tables in device
/// memory are not looked at: the launch depends on shapes alone, a page outside `k` is read as the
/// last one, and the rows of a sequence whose other tables do not fit are NaN.
///
/// # Cost
/// `4·D` flops and one exponential per visible (query, head, key); reads q, k and v, writes o.
/// Workspace per thread: up to 32 rows of scores.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{Attention, KvRows, attention}};
/// let (q, k, v) = ([1.0f32, 1.0], [0.0f32, 0.0], [2.0f32, 4.0]);
/// let mut o = [0f32; 2];
/// attention(&Device::Cpu, Attention {
///     q: View::new(&q, &[2, 1, 1])?,
///     k: View::new(&k, &[2, 1, 1])?,
///     v: View::new(&v, &[2, 1, 1])?,
///     cu_seqlens: View::new(&[0, 2], &[2])?,
///     kv_rows: KvRows::From(View::new(&[0], &[1])?),
///     kv_len: View::new(&[2], &[1])?,
///     scale: 1.0,
///     o: ViewMut::new(&mut o, &[2, 1, 1])?,
///     lse: None,
/// })?;
/// assert_eq!(o, [2.0, 3.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn attention<T: Float>(device: &Device, args: Attention<'_, T>) -> Result<()> {
    let check = Check("attention");
    let inputs = Inputs {
        q: &args.q,
        k: &args.k,
        v: &args.v,
        cu_seqlens: &args.cu_seqlens,
        kv_rows: args.kv_rows,
        kv_len: &args.kv_len,
        scale: args.scale,
    };
    inputs.check(&check, device)?;
    let [tokens, heads, d] = extents(&args.q);
    check.shape(device, "o", &args.o, &[tokens, heads, d])?;
    check.opt_shape(device, "lse", &args.lse, &[tokens, heads])?;
    on_device!(device, check, args: Attention<T: Float> => cpu::attention, gpu::attention)
}

/// Arguments of [`attention_bwd`]. The first seven are the forward pass's.
#[derive(Debug)]
pub struct AttentionBwd<'a, T> {
    /// `[Tq, Hq, D]` queries.
    pub q: View<'a, T>,
    /// `[S, Hkv, D]` keys.
    pub k: View<'a, T>,
    /// `[S, Hkv, D]` values.
    pub v: View<'a, T>,
    /// `[B + 1]` offsets of the sequences in `q`.
    pub cu_seqlens: View<'a, i64>,
    /// `[B]` first row of each sequence in `k` and `v`; `cu_seqlens` without its end where keys
    /// are packed like queries. With a prefix: of its first key behind that.
    pub kv_start: View<'a, i64>,
    /// `[B]` number of keys of each sequence, those of its prefix included. Ranges of keys must not
    /// overlap but for prefixes.
    pub kv_len: View<'a, i64>,
    /// The keys that sequences share, if any do, as in [`KvRows::Prefixed`].
    pub prefix: Option<Prefix<'a>>,
    /// Factor on q·k; finite.
    pub scale: f64,
    /// `[Tq, Hq, D]` gradient of the output.
    pub dout: View<'a, T>,
    /// `[Tq, Hq, D]` gradient of the queries.
    pub dq: ViewMut<'a, T>,
    /// `[S, Hkv, D]` gradient of the keys; 0 in rows of no sequence.
    pub dk: ViewMut<'a, T>,
    /// `[S, Hkv, D]` gradient of the values; 0 in rows of no sequence.
    pub dv: ViewMut<'a, T>,
}

/// Gradient of [`attention`]: with p the probabilities, dp = dout·v and δ = Σ_j p·dp,
/// ds = scale·p·(dp − δ), dq = Σ_j ds·k, dk = Σ_i ds·q, dv = Σ_i p·dout (Dao et al. 2022,
/// arXiv:2205.14135, appendix B.4).
///
/// The probabilities are computed again from q and k. Sums over queries run in the order (head,
/// query), so nothing depends on threads or on the other sequences. The gradient of a key that
/// sequences share is the sum of theirs, in the order of the sequences. On a GPU bf16 and f16 with `D` a
/// multiple of 16 up to 128 run on tensor cores and round p and ds to their dtype for the last
/// products: `docs/NUMERICS.md` has the bound. There an infinite operand or a NaN may reach all
/// gradients of its sequence.
///
/// # Errors
/// As [`attention`], and `InvalidArgument` where ranges of keys overlap.
///
/// # Cost
/// `10·D` flops and one exponential per visible (query, head, key). Workspace per thread: 64 rows
/// of scores and twice the keys of one head; on the CPU with a prefix f32 gradients of the keys
/// and values of all sequences.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{AttentionBwd, attention_bwd}};
/// // Query 0 sees key 0, query 1 both keys alike.
/// let (q, k, v, dout) = ([1f32, 1.0], [0f32, 0.0], [2f32, 4.0], [1f32, 1.0]);
/// let (mut dq, mut dk, mut dv) = ([0f32; 2], [0f32; 2], [0f32; 2]);
/// attention_bwd(&Device::Cpu, AttentionBwd {
///     q: View::new(&q, &[2, 1, 1])?,
///     k: View::new(&k, &[2, 1, 1])?,
///     v: View::new(&v, &[2, 1, 1])?,
///     cu_seqlens: View::new(&[0, 2], &[2])?,
///     kv_start: View::new(&[0], &[1])?,
///     kv_len: View::new(&[2], &[1])?,
///     prefix: None,
///     scale: 1.0,
///     dout: View::new(&dout, &[2, 1, 1])?,
///     dq: ViewMut::new(&mut dq, &[2, 1, 1])?,
///     dk: ViewMut::new(&mut dk, &[2, 1, 1])?,
///     dv: ViewMut::new(&mut dv, &[2, 1, 1])?,
/// })?;
/// assert_eq!((dq, dk, dv), ([0.0, 0.0], [-0.5, 0.5], [1.5, 0.5]));
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn attention_bwd<T: Float>(device: &Device, args: AttentionBwd<'_, T>) -> Result<()> {
    let check = Check("attention_bwd");
    let inputs = Inputs {
        q: &args.q,
        k: &args.k,
        v: &args.v,
        cu_seqlens: &args.cu_seqlens,
        kv_rows: args.kv_rows(),
        kv_len: &args.kv_len,
        scale: args.scale,
    };
    inputs.check(&check, device)?;
    check_apart(&check, &args)?;
    check.shape(device, "dout", &args.dout, &extents(&args.q))?;
    check.shape(device, "dq", &args.dq, &extents(&args.q))?;
    check.shape(device, "dk", &args.dk, &extents(&args.k))?;
    check.shape(device, "dv", &args.dv, &extents(&args.k))?;
    on_device!(device, check, args: AttentionBwd<T: Float> => cpu::attention_bwd, gpu::attention_bwd)
}

impl<'a, T> AttentionBwd<'a, T> {
    /// Where the keys lie, as the forward pass takes it.
    pub(crate) fn kv_rows(&self) -> KvRows<'a> {
        match self.prefix {
            None => KvRows::From(self.kv_start),
            Some(prefix) => KvRows::Prefixed { prefix, start: self.kv_start },
        }
    }
}

/// What forward and backward read.
struct Inputs<'v, 'a, T> {
    q: &'v View<'a, T>,
    k: &'v View<'a, T>,
    v: &'v View<'a, T>,
    cu_seqlens: &'v View<'a, i64>,
    kv_rows: KvRows<'a>,
    kv_len: &'v View<'a, i64>,
    scale: f64,
}

impl<T: Float> Inputs<'_, '_, T> {
    fn check(&self, check: &Check, device: &Device) -> Result<()> {
        check.rank(device, "q", self.q, 3)?;
        check.rank(device, "k", self.k, 3)?;
        let [tokens, heads, d] = extents(self.q);
        let [rows, kv_heads, _] = extents(self.k);
        check.that(d > 0, "q", "D = 0", "D > 0")?;
        check.shape(device, "k", self.k, &[rows, kv_heads, d])?;
        check.that(kv_heads > 0, "k", "0 heads", "at least one head")?;
        let expected = format!("a positive multiple of the {kv_heads} heads of `k`");
        let fits = heads > 0 && heads.is_multiple_of(kv_heads);
        check.that(fits, "q", format!("{heads} heads"), &expected)?;
        check.shape(device, "v", self.v, &[rows, kv_heads, d])?;
        let count = check.cu_seqlens(device, "cu_seqlens", self.cu_seqlens, tokens)?;
        let fits = count > 0 || tokens == 0;
        check.that(fits, "cu_seqlens", "one offset", "B + 1 offsets where there are queries")?;
        self.kv_rows.check(check, device, count)?;
        check.shape(device, "kv_len", self.kv_len, &[count])?;
        let looked_at =
            self.cu_seqlens.is_host() && self.kv_rows.is_host() && self.kv_len.is_host();
        for b in 0..if looked_at { count } else { 0 } {
            self.check_keys(check, b, rows as i64)?;
        }
        let fits = (self.scale as f32).is_finite();
        check.that(fits, "scale", self.scale, "a number that is finite in f32")
    }

    /// The keys of sequence `b` lie inside `k` and are at least as many as its queries.
    fn check_keys(&self, check: &Check, b: usize, rows: i64) -> Result<()> {
        let queries = self.cu_seqlens.at(b + 1) - self.cu_seqlens.at(b);
        let len = self.kv_len.at(b);
        let (most, what) = self.kv_rows.room(check, b, rows)?;
        if len < queries || len > most {
            let expected = format!("{queries} (the queries) to {most} ({what})");
            check.that(false, "kv_len", format!("{len} at index {b}"), &expected)?;
        }
        self.kv_rows.check_shared(check, b, len)?;
        self.kv_rows.check_pages(check, b, len, rows)
    }
}

impl KvRows<'_> {
    fn is_host(&self) -> bool {
        match self {
            KvRows::From(start) => start.is_host(),
            KvRows::Pages { table, .. } => table.is_host(),
            KvRows::Prefixed { prefix, start } => {
                start.is_host() && prefix.start.is_host() && prefix.len.is_host()
            }
        }
    }

    /// The tables have the right shapes, whatever they hold.
    fn check(&self, check: &Check, device: &Device, count: usize) -> Result<()> {
        let (table, size) = match self {
            KvRows::From(start) => return check.shape(device, "kv_start", start, &[count]),
            KvRows::Prefixed { prefix, start } => {
                check.shape(device, "prefix_start", &prefix.start, &[count])?;
                check.shape(device, "prefix_len", &prefix.len, &[count])?;
                return check.shape(device, "kv_start", start, &[count]);
            }
            KvRows::Pages { table, size } => (table, *size),
        };
        check.rank(device, "table", table, 2)?;
        check.shape(device, "table", table, &[count, table.extent(1)])?;
        let fits = size.is_power_of_two() && size <= MAX_PAGE;
        check.that(fits, "size", size, "a power of two up to 2^30")
    }

    /// The most keys that sequence `b` can have, and why.
    fn room(&self, check: &Check, b: usize, rows: i64) -> Result<(i64, String)> {
        match self {
            KvRows::From(start) => {
                let start = check_row(check, "kv_start", start, b, rows)?;
                Ok((rows - start, format!("the rows from {start} on")))
            }
            KvRows::Prefixed { prefix, start } => {
                let start = check_row(check, "kv_start", start, b, rows)?;
                let from = check_row(check, "prefix_start", &prefix.start, b, rows)?;
                let len = prefix.len.at(b);
                if len < 0 || len > rows - from {
                    let expected = format!("0 to {} (the rows from {from} on)", rows - from);
                    check.that(false, "prefix_len", format!("{len} at index {b}"), &expected)?;
                }
                let most = len + rows - start;
                Ok((most, format!("{len} of the prefix and the rows from {start} on")))
            }
            KvRows::Pages { table, size } => {
                let pages = table.extent(1);
                let most = (pages as i64).saturating_mul(*size as i64);
                Ok((most, format!("the rows of {pages} pages of {size}")))
            }
        }
    }

    /// Sequence `b`, of `len` keys, shares no more than it has.
    fn check_shared(&self, check: &Check, b: usize, len: i64) -> Result<()> {
        let KvRows::Prefixed { prefix, .. } = self else { return Ok(()) };
        let shared = prefix.len.at(b);
        let expected = format!("at most the {len} keys of `kv_len`");
        check.that(shared <= len, "prefix_len", format!("{shared} at index {b}"), &expected)
    }

    /// The pages of the `len` keys of sequence `b` lie inside `k`.
    fn check_pages(&self, check: &Check, b: usize, len: i64, rows: i64) -> Result<()> {
        let KvRows::Pages { table, size } = self else { return Ok(()) };
        let (used, pages) = ((len as usize).div_ceil(*size), rows / *size as i64);
        for (p, &page) in table.row(b)[..used].iter().enumerate() {
            if page < 0 || page as i64 >= pages {
                let expected = format!("a page of `k`, one of {pages}");
                check.that(false, "table", format!("{page} at index [{b}, {p}]"), &expected)?;
            }
        }
        Ok(())
    }
}

/// Entry `b` of a table of rows of `k`, which may be the one behind the last.
fn check_row(check: &Check, name: &str, table: &View<'_, i64>, b: usize, rows: i64) -> Result<i64> {
    let row = table.at(b);
    if row < 0 || row > rows {
        let expected = format!("a row of `k`, 0..={rows}");
        check.that(false, name, format!("{row} at index {b}"), &expected)?;
    }
    Ok(row)
}

/// No two sequences share a row of `k` but by their prefixes.
fn check_apart<T>(check: &Check, args: &AttentionBwd<'_, T>) -> Result<()> {
    let AttentionBwd { kv_start, kv_len, prefix, .. } = args;
    let on_host = prefix.is_none_or(|prefix| prefix.len.is_host());
    if !(kv_start.is_host() && kv_len.is_host() && on_host) {
        return Ok(());
    }
    let shared = |b: usize| prefix.as_ref().map_or(0, |prefix| prefix.len.at(b));
    let ranges = (0..kv_len.extent(0)).map(|b| (kv_start.at(b), kv_len.at(b) - shared(b), b));
    let used = ranges.filter(|&(_, len, _)| len > 0);
    let mut ranges = alloc::or_out_of_memory(check.0, || used.sifted())?;
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let ((start, len, a), (next, _, b)) = (pair[0], pair[1]);
        if next < start + len {
            let got = format!("row {next} at index {b}, inside the range at index {a}");
            check.that(false, "kv_start", got, "ranges that do not overlap")?;
        }
    }
    Ok(())
}

fn extents<T>(view: &View<'_, T>) -> [usize; 3] {
    [view.extent(0), view.extent(1), view.extent(2)]
}
