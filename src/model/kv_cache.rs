//! Keys and values of running sequences: `slots` lines of `max_len` tokens per layer. A sequence
//! owns a slot from admission until it is done; a shared prompt is copied in.

use crate::error::{Error, Result};
use crate::model::config::ModelConfig;

/// The cache of all layers.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// Tokens a slot can hold.
    pub max_len: usize,
    /// Number of slots.
    pub slots: usize,
    width: usize,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    lens: Vec<usize>,
}

impl KvCache {
    /// An empty cache: `2 · layers · slots · max_len · kv_dim` floats.
    pub fn new(config: &ModelConfig, slots: usize, max_len: usize) -> Result<KvCache> {
        let width = config.kv_dim();
        let floats = slots.checked_mul(max_len).and_then(|n| n.checked_mul(width));
        let buffer = || -> Result<Vec<f32>> {
            let floats = floats.unwrap_or(usize::MAX / 8);
            let mut buffer = Vec::new();
            buffer.try_reserve_exact(floats).map_err(|_| Error::OutOfMemory {
                what: format!("KV cache of {slots} slots x {max_len} tokens"),
                bytes: floats as u64 * 4,
            })?;
            buffer.resize(floats, 0.0);
            Ok(buffer)
        };
        let all = |_| (0..config.layers).map(|_| buffer()).collect::<Result<Vec<_>>>();
        Ok(KvCache { max_len, slots, width, keys: all(0)?, values: all(1)?, lens: vec![0; slots] })
    }

    /// Tokens stored in `slot`.
    pub fn len(&self, slot: usize) -> usize {
        self.lens[slot]
    }

    /// Forgets the tokens of `slot`.
    pub fn clear(&mut self, slot: usize) {
        self.lens[slot] = 0;
    }

    /// First row of `slot` in [`KvCache::keys`] and [`KvCache::values`].
    pub fn start(&self, slot: usize) -> usize {
        slot * self.max_len
    }

    /// `[slots · max_len, kv_dim]` keys of a layer.
    pub fn keys(&self, layer: usize) -> &[f32] {
        &self.keys[layer]
    }

    /// `[slots · max_len, kv_dim]` values of a layer.
    pub fn values(&self, layer: usize) -> &[f32] {
        &self.values[layer]
    }

    /// Stores a layer's new keys and values of `slot` behind its tokens; the length moves with
    /// [`KvCache::advance`] once all layers are written.
    pub(crate) fn write(&mut self, layer: usize, slot: usize, k: &[f32], v: &[f32]) {
        let at = (self.start(slot) + self.lens[slot]) * self.width;
        self.keys[layer][at..at + k.len()].copy_from_slice(k);
        self.values[layer][at..at + v.len()].copy_from_slice(v);
    }

    /// Counts `tokens` newly written tokens of `slot`.
    pub(crate) fn advance(&mut self, slot: usize, tokens: usize) {
        self.lens[slot] += tokens;
    }

    /// Makes `slot` a copy of `from_slot` of another cache: how G samples share one prefill.
    pub fn copy_from(&mut self, slot: usize, from: &KvCache, from_slot: usize) -> Result<()> {
        let tokens = from.len(from_slot);
        if tokens > self.max_len || from.width != self.width || from.keys.len() != self.keys.len() {
            let got = format!("{tokens} tokens of width {}", from.width);
            let expected = format!("at most {} tokens of width {}", self.max_len, self.width);
            return Err(Error::invalid("kv_cache", "from", got, expected));
        }
        let (to, source) = (self.start(slot) * self.width, from.start(from_slot) * self.width);
        let floats = tokens * self.width;
        for layer in 0..self.keys.len() {
            self.keys[layer][to..to + floats]
                .copy_from_slice(&from.keys[layer][source..source + floats]);
            self.values[layer][to..to + floats]
                .copy_from_slice(&from.values[layer][source..source + floats]);
        }
        self.lens[slot] = tokens;
        Ok(())
    }
}
