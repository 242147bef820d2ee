//! Keys and values of running sequences, in pages. A sequence owns a slot from admission until it is
//! done; its pages follow its length. Sequences that go on from one prompt share its full pages.

use crate::model::batch::{Batch, Keys, Packed};
use crate::model::config::ModelConfig;
use gradus::device::{Allocator, Buffer, Device};
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::{CopyRows, copy_rows};

/// Tokens of a page.
pub const PAGE: usize = 16;

/// The cache of all layers.
#[derive(Debug)]
pub struct KvCache<T = f32> {
    pub(crate) device: Device,
    /// Width of a row: all key/value heads.
    pub(crate) width: usize,
    /// `[pages · PAGE, width]` of each layer. Page 0 is nobody's and zero.
    pub(crate) keys: Vec<Buffer<T>>,
    pub(crate) values: Vec<Buffer<T>>,
    max_len: usize,
    free: Vec<i32>,
    /// Slots that hold a page.
    holders: Vec<u32>,
    slots: Vec<Slot>,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    pages: Vec<i32>,
    len: usize,
}

/// Where the keys of a batch are: see [`Keys::Cached`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Extended {
    pub table: Vec<i32>,
    pub len: Vec<i64>,
    pub rows: Vec<i32>,
}

impl<T: Float> KvCache<T> {
    /// An empty cache of `slots` sequences of at most `max_len` tokens, with room for all of them
    /// at once: `2 · layers · (slots · ceil(max_len / PAGE) + 1) · PAGE · kv_dim` values.
    ///
    /// # Errors
    /// `OutOfMemory`, or what the driver says.
    pub fn new(
        config: &ModelConfig,
        device: &Device,
        slots: usize,
        max_len: usize,
    ) -> Result<KvCache<T>> {
        KvCache::with_pages(config, device, slots, max_len, slots * max_len.div_ceil(PAGE))
    }

    /// A cache of `slots` sequences of up to `max_len` tokens, with room for `pages` pages in all.
    pub fn with_pages(
        config: &ModelConfig,
        device: &Device,
        slots: usize,
        max_len: usize,
        pages: usize,
    ) -> Result<KvCache<T>> {
        let width = config.kv_dim();
        let values = (pages + 1).checked_mul(PAGE).and_then(|n| n.checked_mul(width));
        let buffer = |_| -> Result<Buffer<T>> {
            let mut rows = Buffer::new(device, values.unwrap_or(usize::MAX / 8))?;
            rows.clear_first(PAGE * width)?;
            Ok(rows)
        };
        Ok(KvCache {
            device: device.clone(),
            width,
            keys: (0..config.layers).map(buffer).collect::<Result<_>>()?,
            values: (0..config.layers).map(buffer).collect::<Result<_>>()?,
            max_len,
            free: (1..=pages as i32).rev().collect(),
            holders: vec![0; pages + 1],
            slots: vec![Slot::default(); slots],
        })
    }

    /// Most tokens of a slot.
    pub fn max_len(&self) -> usize {
        self.max_len
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Tokens stored in `slot`; 0 in one that the cache does not have.
    pub fn len(&self, slot: usize) -> usize {
        self.slots.get(slot).map_or(0, |slot| slot.len)
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.holders.len() - 1
    }

    /// Pages that no slot holds.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// Whether the next token of `slot` takes a page that the slot does not hold yet.
    pub fn begins_page(&self, slot: usize) -> bool {
        self.len(slot).is_multiple_of(PAGE)
    }

    /// Forgets the tokens of `slot` and gives its pages back.
    pub fn clear(&mut self, slot: usize) {
        let slot = self.slots.get_mut(slot).map(std::mem::take).unwrap_or_default();
        for page in slot.pages {
            self.holders[page as usize] -= 1;
            if self.holders[page as usize] == 0 {
                self.free.push(page);
            }
        }
    }

    /// `packed` as the continuation of the sequences in `slots`, one slot each. From here on its
    /// tokens count as stored: the forward pass that takes the batch writes them.
    ///
    /// # Errors
    /// `InvalidArgument` for another number of slots, slots that are named twice or not there, one
    /// that would grow past the cache's length, or pages that are used up; the cache is as it was.
    pub fn batch(
        &mut self,
        allocator: &Allocator,
        packed: &Packed,
        slots: &[usize],
    ) -> Result<Batch> {
        let placed = self.extend(packed, slots)?;
        let keys = Keys::Cached {
            table: allocator.copy_of(&placed.table)?,
            len: allocator.copy_of(&placed.len)?,
            rows: allocator.copy_of(&placed.rows)?,
        };
        packed.with_keys(allocator, keys)
    }

    /// The host's part of [`KvCache::batch`].
    pub(crate) fn extend(&mut self, packed: &Packed, slots: &[usize]) -> Result<Extended> {
        if slots.len() != packed.sequences() {
            let expected = format!("{} (one per sequence)", packed.sequences());
            return Err(Error::invalid("kv_cache", "slots", slots.len(), expected));
        }
        if packed.shares() {
            let expected = "whole sequences: slots share their pages";
            return Err(Error::invalid("kv_cache", "packed", "a prefix", expected));
        }
        self.check_slots(slots)?;
        self.check_room(packed, slots)?;
        let mut new = Extended::default();
        for (i, &slot) in slots.iter().enumerate() {
            let first = self.slots[slot].len;
            let len = first + packed.span(i).len();
            self.grow(slot, len);
            new.rows.extend((first..len).map(|at| self.row(slot, at)));
            new.len.push(len as i64);
            new.table.extend(self.table_row(slot));
        }
        Ok(new)
    }

    /// Row of the cache that holds token `at` of `slot`.
    fn row(&self, slot: usize, at: usize) -> i32 {
        self.slots[slot].pages[at / PAGE] * PAGE as i32 + (at % PAGE) as i32
    }

    /// Pages of a slot's row of a page table.
    pub(crate) fn table_width(&self) -> usize {
        self.max_len.div_ceil(PAGE).max(1)
    }

    /// The slot's pages, then page 0.
    fn table_row(&self, slot: usize) -> impl Iterator<Item = i32> + '_ {
        let rest = std::iter::repeat(0);
        self.slots[slot].pages.iter().copied().chain(rest).take(self.table_width())
    }

    /// Every slot is there, and named once.
    fn check_slots(&self, slots: &[usize]) -> Result<()> {
        let mut seen = vec![false; self.slots.len()];
        for &slot in slots {
            let got = match seen.get_mut(slot) {
                None => format!("slot {slot}"),
                Some(seen) if *seen => format!("slot {slot} twice"),
                Some(seen) => {
                    *seen = true;
                    continue;
                }
            };
            let expected = format!("different slots below {}", self.slots.len());
            return Err(Error::invalid("kv_cache", "slots", got, expected));
        }
        Ok(())
    }

    fn check_room(&self, packed: &Packed, slots: &[usize]) -> Result<()> {
        let mut wanted = 0;
        for (i, &slot) in slots.iter().enumerate() {
            let len = self.slots[slot].len + packed.span(i).len();
            if len > self.max_len {
                let expected = format!("at most {} tokens a slot", self.max_len);
                return Err(Error::invalid("kv_cache", "packed", len, expected));
            }
            wanted += len.div_ceil(PAGE).saturating_sub(self.slots[slot].pages.len());
        }
        self.check_pages(wanted)
    }

    fn check_pages(&self, wanted: usize) -> Result<()> {
        if wanted > self.free.len() {
            let expected = format!("at most the {} free pages", self.free.len());
            return Err(Error::invalid("kv_cache", "pages", wanted, expected));
        }
        Ok(())
    }

    /// Gives `slot` the pages that `len` tokens need, which are known to be free, and the length.
    fn grow(&mut self, slot: usize, len: usize) {
        while self.slots[slot].pages.len() < len.div_ceil(PAGE) {
            let Some(page) = self.free.pop() else { break };
            self.holders[page as usize] = 1;
            self.slots[slot].pages.push(page);
        }
        self.slots[slot].len = len;
    }

    /// Makes each (slot, from) pair's slot go on from the tokens of `from`: full pages are shared,
    /// the last one is copied. How G samples share one prefill.
    ///
    /// # Errors
    /// `InvalidArgument` if a slot is not there, in use or named twice, or pages are used up; the
    /// cache is as it was.
    pub fn fork(&mut self, allocator: &Allocator, pairs: &[(usize, usize)]) -> Result<()> {
        self.check_slots(&pairs.iter().map(|pair| pair.0).collect::<Vec<_>>())?;
        if let Some(&(_, from)) = pairs.iter().find(|pair| pair.1 >= self.slots.len()) {
            let expected = format!("slots below {}", self.slots.len());
            return Err(Error::invalid("kv_cache", "from", from, expected));
        }
        if let Some(&(slot, _)) = pairs.iter().find(|&&(slot, _)| self.slots[slot].len > 0) {
            return Err(Error::invalid("kv_cache", "slot", slot, "a slot that is not in use"));
        }
        let partial = |&&(_, from): &&(usize, usize)| !self.slots[from].len.is_multiple_of(PAGE);
        self.check_pages(pairs.iter().filter(partial).count())?;
        let (mut from_rows, mut to_rows) = (Vec::new(), Vec::new());
        for &(slot, from) in pairs {
            let Slot { pages, len } = self.slots[from].clone();
            let shared = &pages[..len / PAGE];
            shared.iter().for_each(|&page| self.holders[page as usize] += 1);
            self.slots[slot].pages = shared.to_vec();
            self.grow(slot, len);
            for at in len / PAGE * PAGE..len {
                from_rows.push(self.row(from, at));
                to_rows.push(self.row(slot, at));
            }
        }
        self.copy_tokens(allocator, &from_rows, &to_rows)
    }

    /// Copies rows of all layers within the cache.
    fn copy_tokens(&mut self, allocator: &Allocator, from: &[i32], to: &[i32]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        let mut between = allocator.alloc::<T>(from.len() * self.width)?;
        let (from, to) = (allocator.copy_of(from)?, allocator.copy_of(to)?);
        for pages in self.keys.iter_mut().chain(&mut self.values) {
            let (x, y) = (pages.rows(self.width)?, between.rows_mut(self.width)?);
            copy_rows(&self.device, CopyRows { x, from_rows: Some(from.all()), to_rows: None, y })?;
            let (x, y) = (between.rows(self.width)?, pages.rows_mut(self.width)?);
            copy_rows(&self.device, CopyRows { x, from_rows: None, to_rows: Some(to.all()), y })?;
        }
        Ok(())
    }
}
