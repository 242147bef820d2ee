//! What one call of the model works on: tokens, and where their keys are.

use crate::model::dropout::{AdapterDropout, Masks};
use crate::model::kv_cache::{KvCache, PAGE};
use gradus::device::{Allocator, Buffer};
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::{CacheRows, KvRows, Prefix};
use gradus::view::View;
use std::ops::Range;

/// Sequences laid end to end; nothing is padded. A sequence may begin with tokens of an earlier one,
/// which are there once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Packed {
    /// `[T]` token ids.
    pub ids: Vec<i32>,
    /// `[T]` position of each token in its sequence.
    pub positions: Vec<i32>,
    /// `[B + 1]` offsets of the sequences.
    pub cu_seqlens: Vec<i64>,
    /// `[B]` rows of the tokens that each sequence goes on from; none for one that is whole.
    pub prefixes: Vec<Range<usize>>,
}

impl Packed {
    /// An empty batch.
    pub fn new() -> Packed {
        let (ids, positions, prefixes) = Default::default();
        Packed { ids, positions, cu_seqlens: vec![0], prefixes }
    }

    /// Whole sequences, each from position 0.
    pub fn of<'a>(sequences: impl IntoIterator<Item = &'a [i32]>) -> Packed {
        let mut packed = Packed::new();
        sequences.into_iter().for_each(|ids| packed.push(ids, 0));
        packed
    }

    /// Appends a sequence whose first token stands at position `first`.
    pub fn push(&mut self, ids: &[i32], first: usize) {
        self.ids.extend_from_slice(ids);
        self.positions.extend((first..first + ids.len()).map(|p| p as i32));
        self.cu_seqlens.push(self.ids.len() as i64);
        self.prefixes.push(0..0);
    }

    /// Appends a sequence that begins with the first `shared` tokens of the whole sequence `parent` and
    /// goes on with `ids`.
    ///
    /// # Errors
    /// `InvalidArgument` for a parent that is not there, not whole or shorter.
    pub fn push_behind(&mut self, parent: usize, shared: usize, ids: &[i32]) -> Result<()> {
        let whole = parent < self.sequences() && self.prefixes[parent].is_empty();
        let len = if whole { self.span(parent).len() } else { 0 };
        if shared == 0 || shared > len {
            let expected = format!("1 to {len}, the tokens of a whole sequence");
            return Err(Error::invalid("push_behind", "shared", shared, expected));
        }
        let first = self.span(parent).start;
        self.push(ids, shared);
        let last = self.sequences() - 1;
        self.prefixes[last] = first..first + shared;
        Ok(())
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// Tokens of sequence `i`.
    pub fn span(&self, i: usize) -> std::ops::Range<usize> {
        self.cu_seqlens[i] as usize..self.cu_seqlens[i + 1] as usize
    }

    /// Whether a sequence goes on from tokens of another.
    pub fn shares(&self) -> bool {
        self.prefixes.iter().any(|prefix| !prefix.is_empty())
    }

    /// The batch where the ops of `allocator` read it.
    pub fn place(&self, allocator: &Allocator) -> Result<Batch> {
        let keys =
            (0..self.sequences()).map(|i| (self.prefixes[i].len() + self.span(i).len()) as i64);
        let column = |of: fn(&Range<usize>) -> usize| {
            let column: Vec<i64> = self.prefixes.iter().map(|prefix| of(prefix) as i64).collect();
            allocator.copy_of(&column)
        };
        let prefix = match self.shares() {
            true => Some([column(|prefix| prefix.start)?, column(|prefix| prefix.len())?]),
            false => None,
        };
        let keys = Keys::Own {
            start: allocator.copy_of(&self.cu_seqlens[..self.sequences()])?,
            len: allocator.copy_of(&keys.collect::<Vec<_>>())?,
            prefix,
        };
        self.with_keys(allocator, keys)
    }

    /// [`Packed::place`] with dropout on what adapters read; the sequences are number `first` and on of
    /// the update's.
    pub fn place_masked(
        &self,
        allocator: &Allocator,
        dropout: Option<AdapterDropout>,
        first: usize,
    ) -> Result<Batch> {
        let masks = dropout.map(|dropout| Masks::place(dropout, self, first, allocator));
        Ok(Batch { masks: masks.transpose()?, ..self.place(allocator)? })
    }

    /// The batch with keys elsewhere.
    pub(crate) fn with_keys(&self, allocator: &Allocator, keys: Keys) -> Result<Batch> {
        Ok(Batch {
            allocator: allocator.clone(),
            ids: allocator.copy_of(&self.ids)?,
            positions: allocator.copy_of(&self.positions)?,
            cu_seqlens: allocator.copy_of(&self.cu_seqlens)?,
            keys,
            masks: None,
        })
    }
}

/// A [`Packed`] batch in the memory of a device, and where its results go.
#[derive(Debug)]
pub struct Batch {
    pub(crate) allocator: Allocator,
    pub(crate) ids: Buffer<i32>,
    pub(crate) positions: Buffer<i32>,
    pub(crate) cu_seqlens: Buffer<i64>,
    pub(crate) keys: Keys,
    /// Of what adapters read, in training.
    pub(crate) masks: Option<Masks>,
}

/// Where attention finds keys and values.
#[derive(Debug)]
pub(crate) enum Keys {
    /// Beside the queries.
    Own {
        start: Buffer<i64>,
        len: Buffer<i64>,
        /// `[B]` first row and number of the keys that sequences share, if any do.
        prefix: Option<[Buffer<i64>; 2]>,
    },
    /// In the pages of a cache.
    Cached {
        /// `[B, pages]`.
        table: Buffer<i32>,
        /// `[B]` keys of each sequence, the new ones included.
        len: Buffer<i64>,
        /// `[T]` row of the cache that each new token's key goes to; -1: nowhere.
        rows: Buffer<i32>,
    },
}

impl Batch {
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// Number of keys of each sequence.
    pub(crate) fn kv_len(&self) -> View<'_, i64> {
        match &self.keys {
            Keys::Own { len, .. } | Keys::Cached { len, .. } => len.all(),
        }
    }

    /// Where a layer's new keys, and the values `v`, go in the cache, if there is one.
    pub(crate) fn cache_rows<'a, T: Float>(
        &'a self,
        cache: &'a mut Option<&mut KvCache<T>>,
        layer: usize,
        v: &'a Buffer<T>,
    ) -> Result<Option<CacheRows<'a, T>>> {
        let (Some(cache), Keys::Cached { rows, .. }) = (cache, &self.keys) else { return Ok(None) };
        let width = cache.width;
        Ok(Some(CacheRows {
            v: v.rows(width)?,
            rows: rows.all(),
            keys: cache.keys[layer].rows_mut(width)?,
            values: cache.values[layer].rows_mut(width)?,
        }))
    }

    /// Where each sequence's keys are.
    pub(crate) fn kv_rows(&self) -> Result<KvRows<'_>> {
        Ok(match &self.keys {
            Keys::Own { start, prefix, .. } => match shared(prefix) {
                None => KvRows::From(start.all()),
                Some(prefix) => KvRows::Prefixed { prefix, start: start.all() },
            },
            Keys::Cached { table, .. } => {
                let pages = table.len() / self.sequences().max(1);
                let table = table.view(&[self.sequences() as i64, pages as i64])?;
                KvRows::Pages { table, size: PAGE }
            }
        })
    }
}

/// The keys that sequences share.
pub(crate) fn shared(prefix: &Option<[Buffer<i64>; 2]>) -> Option<Prefix<'_>> {
    prefix.as_ref().map(|[start, len]| Prefix { start: start.all(), len: len.all() })
}
