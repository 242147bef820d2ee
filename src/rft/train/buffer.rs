//! Records that outlive their batch: buffers by name, and the window of the last batches.
//!
//! A record knows at which update of the run it was made ([`Record::version`]). Everything here is
//! part of a checkpoint; nothing is drawn from a stream whose position would have to be saved.

use std::collections::{BTreeMap, HashSet, VecDeque};

use crate::io::safetensors::{TensorData, Tensors};
use crate::train::update::record::{Record, TokenClass};
use gradus::error::{Error, Result};
use gradus::rng::Rng;

/// Records in the order in which they came. When there are too many, the oldest leave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buffer {
    records: VecDeque<Record>,
}

impl Buffer {
    /// Appends records and keeps the `capacity` newest.
    pub fn extend(&mut self, records: impl IntoIterator<Item = Record>, capacity: usize) {
        self.records.extend(records);
        let over = self.records.len().saturating_sub(capacity);
        self.records.drain(..over);
    }

    /// Appends those of `records` whose tokens no record here has, as [`Buffer::extend`] does.
    pub fn extend_distinct(
        &mut self,
        records: impl IntoIterator<Item = Record>,
        capacity: usize,
    ) -> usize {
        let mut known: HashSet<Vec<i32>> = self.records.iter().map(|r| r.ids.clone()).collect();
        let new: Vec<Record> =
            records.into_iter().filter(|record| known.insert(record.ids.clone())).collect();
        let count = new.len();
        self.extend(new, capacity);
        count
    }

    /// Removes the `n` oldest records and returns them, or all if there are fewer.
    pub fn take(&mut self, n: usize) -> Vec<Record> {
        self.records.drain(..n.min(self.records.len())).collect()
    }

    /// The `n` newest records, oldest first, or all if there are fewer.
    pub fn newest(&self, n: usize) -> impl Iterator<Item = &Record> {
        self.records.iter().skip(self.records.len().saturating_sub(n))
    }

    /// Records in it.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// All that a run keeps of its records.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buffers {
    named: BTreeMap<String, Buffer>,
    /// The records of the last batches, each as it was sampled.
    window: VecDeque<Vec<Record>>,
}

impl Buffers {
    /// The buffer `name`, which is empty if nothing was put into it.
    pub fn named(&mut self, name: &str) -> &mut Buffer {
        self.named.entry(name.into()).or_default()
    }

    /// The buffer `name`, if something was put into it.
    pub fn get(&self, name: &str) -> Option<&Buffer> {
        self.named.get(name)
    }

    /// Records in the buffer `name`.
    pub fn len_of(&self, name: &str) -> usize {
        self.get(name).map_or(0, Buffer::len)
    }

    /// Keeps a batch, and of the ones before so many that there are `window`.
    pub fn remember(&mut self, batch: Vec<Record>, window: usize) {
        self.window.push_back(batch);
        let over = self.window.len().saturating_sub(window);
        self.window.drain(..over);
    }

    /// Whole groups of the remembered batches, drawn without putting back; at most `count`, in the
    /// order in which they were sampled. They are numbered from `first` on.
    pub fn replayed(&self, count: usize, first: u32, rng: &mut Rng) -> Vec<Record> {
        let groups: Vec<&[Record]> = self
            .window
            .iter()
            .flat_map(|batch| batch.chunk_by(|a, b| a.group == b.group))
            .filter(|group| group.iter().any(|record| !record.reward.is_nan()))
            .collect();
        let mut order: Vec<usize> = (0..groups.len()).collect();
        rng.shuffle(&mut order);
        order.truncate(count);
        order.sort_unstable();
        let numbered = |(n, i): (usize, &usize)| {
            let group = first + n as u32;
            groups[*i].iter().map(move |record| Record { group, ..record.clone() })
        };
        order.iter().enumerate().flat_map(numbered).collect()
    }

    /// Puts all records among the tensors of a checkpoint.
    ///
    /// # Errors
    /// `InvalidArgument` for a text that JSON cannot hold, which there is none of.
    pub fn save(&self, tensors: &mut Tensors) -> Result<()> {
        for (name, buffer) in self.named.iter().filter(|(_, buffer)| !buffer.is_empty()) {
            save_records(tensors, &format!("{NAMED}{name}"), buffer.records.iter())?;
        }
        for (i, batch) in self.window.iter().enumerate() {
            save_records(tensors, &format!("{WINDOW}{i}"), batch.iter())?;
        }
        Ok(())
    }

    /// What [`Buffers::save`] put there.
    ///
    /// # Errors
    /// `InvalidArgument` for columns that do not fit each other.
    pub fn load(tensors: &Tensors) -> Result<Buffers> {
        let mut buffers = Buffers::default();
        let under = |prefix: &'static str| {
            let names = tensors.keys().filter_map(move |name| name.strip_prefix(prefix));
            names.filter_map(|name| name.strip_suffix("/ends"))
        };
        for name in under(NAMED) {
            let records = load_records(tensors, &format!("{NAMED}{name}"))?.into();
            buffers.named.insert(name.into(), Buffer { records });
        }
        for i in 0..under(WINDOW).count() {
            buffers.window.push_back(load_records(tensors, &format!("{WINDOW}{i}"))?);
        }
        Ok(buffers)
    }
}

const NAMED: &str = "buffer/";
const WINDOW: &str = "replay/";

/// Bytes of a record in a checkpoint: `tokens` tokens with their columns.
pub(crate) fn record_bytes(tokens: usize) -> u64 {
    (tokens * (4 + 1 + 4 + 4) + 48) as u64
}

/// Columns over all tokens, one record after the other, and columns over the records.
fn save_records<'a>(
    tensors: &mut Tensors,
    prefix: &str,
    records: impl Iterator<Item = &'a Record>,
) -> Result<()> {
    let records: Vec<&Record> = records.collect();
    let mut end = 0;
    let ends = records.iter().map(|r| {
        end += r.ids.len() as i64;
        end
    });
    let ends: Vec<i64> = ends.collect();
    fn column<E: Copy>(records: &[&Record], of: impl Fn(&Record) -> &[E]) -> Vec<E> {
        records.iter().flat_map(|r| of(r).to_vec()).collect()
    }
    let ids = column(&records, |r| &r.ids);
    let class: Vec<u8> = column(&records, |r| &r.class).into_iter().map(|c| c as u8).collect();
    let logp = column(&records, |r| &r.sampler_logp);
    let entropy = column(&records, |r| &r.entropy);
    let reward: Vec<f32> = records.iter().map(|r| r.reward).collect();
    let group: Vec<i32> = records.iter().map(|r| r.group as i32).collect();
    let row: Vec<i64> = records.iter().map(|r| r.row as i64).collect();
    let version: Vec<i64> = records.iter().map(|r| r.version as i64).collect();
    let finished: Vec<u8> = records.iter().map(|r| r.finished as u8).collect();
    let feedback: Vec<&Option<String>> = records.iter().map(|r| &r.feedback).collect();
    let feedback = serde_json::to_vec(&feedback).map_err(|e| {
        Error::invalid("save_state", format!("{prefix}/feedback"), e, "texts as JSON")
    })?;
    let (n, tokens) = (records.len(), ids.len());
    let mut put = |name: &str, data| tensors.insert(format!("{prefix}/{name}"), data);
    put("ends", TensorData::new::<i64>(&[n], &ends));
    put("ids", TensorData::new::<i32>(&[tokens], &ids));
    put("class", TensorData::new::<u8>(&[tokens], &class));
    put("sampler_logp", TensorData::new::<f32>(&[tokens], &logp));
    put("entropy", TensorData::new::<f32>(&[tokens], &entropy));
    put("reward", TensorData::new::<f32>(&[n], &reward));
    put("group", TensorData::new::<i32>(&[n], &group));
    put("row", TensorData::new::<i64>(&[n], &row));
    put("version", TensorData::new::<i64>(&[n], &version));
    put("finished", TensorData::new::<u8>(&[n], &finished));
    put("feedback", TensorData::new::<u8>(&[feedback.len()], &feedback));
    Ok(())
}

fn load_records(tensors: &Tensors, prefix: &str) -> Result<Vec<Record>> {
    let wrong = |name: &str, got: String, wanted: &str| {
        Error::invalid("load_state", format!("{prefix}/{name}"), got, wanted)
    };
    let get = |name: &str| {
        let found = tensors.get(&format!("{prefix}/{name}"));
        found.ok_or_else(|| wrong(name, "nothing of that name".into(), "a column of the buffer"))
    };
    let ends = get("ends")?.to_vec::<i64>()?;
    let (n, tokens) = (ends.len(), ends.last().copied().unwrap_or(0));
    let ascends = ends.windows(2).all(|pair| pair[0] <= pair[1]) && ends.iter().all(|&e| e >= 0);
    if !ascends {
        return Err(wrong("ends", "offsets that fall".into(), "offsets that rise"));
    }
    let sized = |name: &str, wanted: usize| match get(name)? {
        data if data.shape == [wanted] => Ok(data),
        data => Err(wrong(name, format!("{:?}", data.shape), &format!("[{wanted}]"))),
    };
    let of_tokens = |name: &str| sized(name, tokens as usize);
    let of_records = |name: &str| sized(name, n);
    let ids = of_tokens("ids")?.to_vec::<i32>()?;
    let class = of_tokens("class")?.to_vec::<u8>()?;
    let logp = of_tokens("sampler_logp")?.to_vec::<f32>()?;
    let entropy = of_tokens("entropy")?.to_vec::<f32>()?;
    let reward = of_records("reward")?.to_vec::<f32>()?;
    let group = of_records("group")?.to_vec::<i32>()?;
    let row = of_records("row")?.to_vec::<i64>()?;
    let version = of_records("version")?.to_vec::<i64>()?;
    let finished = of_records("finished")?.to_vec::<u8>()?;
    let feedback: Vec<Option<String>> = serde_json::from_slice(&get("feedback")?.bytes)
        .map_err(|e| wrong("feedback", e.to_string(), "texts as JSON"))?;
    if feedback.len() != n {
        return Err(wrong("feedback", format!("{} texts", feedback.len()), &format!("{n} texts")));
    }
    let class = class.into_iter().map(|c| {
        let known = TokenClass::of(c);
        known.ok_or_else(|| wrong("class", c.to_string(), "the number of a token class"))
    });
    let class: Vec<TokenClass> = class.collect::<Result<_>>()?;
    let mut first = 0;
    let each = feedback.into_iter().enumerate().map(|(i, feedback)| {
        let span = first..ends[i] as usize;
        first = span.end;
        Record {
            ids: ids[span.clone()].to_vec(),
            class: class[span.clone()].to_vec(),
            sampler_logp: logp[span.clone()].to_vec(),
            entropy: entropy[span].to_vec(),
            reward: reward[i],
            group: group[i] as u32,
            row: row[i] as u64,
            version: version[i] as u64,
            finished: finished[i] != 0,
            feedback,
            ..Record::default()
        }
    });
    Ok(each.collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use gradus::rng::{Purpose, Rng};

    fn record(id: i32, reward: f32) -> Record {
        let mut record = Record { reward, row: id as u64, version: 3, ..Record::default() };
        record.push(&[id, 1], TokenClass::Prompt, &[]);
        record.push(&[2, 3, id], TokenClass::Gen, &[-0.5, -1.25, -2.0]);
        record.entropy[3] = 0.7;
        record.feedback = (id % 2 == 0).then(|| format!("line {id}: \"no\"\n\u{1F980}"));
        record.finished = id % 3 == 0;
        record
    }

    fn ids(records: &[Record]) -> Vec<i32> {
        records.iter().map(|r| r.ids[0]).collect()
    }

    #[test]
    fn the_oldest_leave_a_full_buffer() {
        let mut buffer = Buffer::default();
        buffer.extend((0..3).map(|i| record(i, 1.0)), 5);
        buffer.extend((3..7).map(|i| record(i, 1.0)), 5);
        assert_eq!(ids(&buffer.newest(9).cloned().collect::<Vec<_>>()), [2, 3, 4, 5, 6]);
        assert_eq!(ids(&buffer.newest(2).cloned().collect::<Vec<_>>()), [5, 6]);
        assert_eq!(ids(&buffer.take(2)), [2, 3]);
        assert_eq!(buffer.extend_distinct([record(5, 0.0), record(8, 0.0), record(8, 0.0)], 5), 1);
        assert_eq!(ids(&buffer.take(9)), [4, 5, 6, 8]);
        assert!(buffer.is_empty() && buffer.take(1).is_empty());
    }

    /// Batches of two groups of two: of the batches 0 .. 3 the window holds two.
    #[test]
    fn groups_are_drawn_whole_from_the_window() {
        let mut buffers = Buffers::default();
        for batch in 0..3 {
            let one = |i: i32| Record { group: i as u32 / 2, ..record(10 * batch + i, 1.0) };
            buffers.remember((0..4).map(one).collect(), 2);
        }
        let draw = |count, step| {
            let mut rng = Rng::new(5, Purpose::Shuffle, [2, step, 0]);
            buffers.replayed(count, 7, &mut rng)
        };
        assert_eq!(ids(&draw(99, 0)), [10, 11, 12, 13, 20, 21, 22, 23]);
        assert_eq!(
            draw(99, 0).iter().map(|r| r.group).collect::<Vec<_>>(),
            [7, 7, 8, 8, 9, 9, 10, 10]
        );
        let mut seen = HashSet::new();
        for step in 0..40 {
            let two = draw(2, step);
            assert_eq!(two, draw(2, step), "a function of the key");
            assert_eq!((two.len(), two[0].group, two[2].group), (4, 7, 8));
            assert_eq!((two[0].row / 2, two[2].row / 2), (two[1].row / 2, two[3].row / 2));
            assert!(two[0].row < two[2].row, "in the order in which they were sampled");
            seen.insert(ids(&two));
        }
        assert_eq!(seen.len(), 6, "every pair of four groups is drawn");
        assert!(draw(0, 0).is_empty());
    }

    #[test]
    fn groups_without_a_reward_are_not_drawn() {
        let mut buffers = Buffers::default();
        let one = |i: i32| {
            let reward = if i == 2 { 1.0 } else { f32::NAN };
            Record { group: i as u32 / 2, ..record(i, reward) }
        };
        buffers.remember((0..4).map(one).collect(), 1);
        let mut rng = Rng::new(0, Purpose::Shuffle, [0; 3]);
        assert_eq!(ids(&buffers.replayed(9, 0, &mut rng)), [2, 3]);
    }

    /// Equal but for the bits of a reward that is none.
    fn same(a: &Record, b: &Record) -> bool {
        let reward = |r: &Record| Record { reward: 0.0, ..r.clone() };
        a.reward.to_bits() == b.reward.to_bits() && reward(a) == reward(b)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        /// What is saved is loaded, bit by bit; a column that does not fit is refused.
        #[test]
        fn buffers_survive_a_checkpoint(
            named in prop::collection::btree_map("[a-z]{1,3}", prop::collection::vec(0i32..50, 1..6), 0..3),
            window in prop::collection::vec(prop::collection::vec(0i32..50, 0..5), 0..12),
        ) {
            let one = |&i: &i32| record(i, if i == 7 { f32::NAN } else { i as f32 });
            let mut buffers = Buffers::default();
            for (name, ids) in &named {
                buffers.named(name).extend(ids.iter().map(one), 100);
            }
            window.iter().for_each(|ids| buffers.remember(ids.iter().map(one).collect(), 100));
            let mut tensors = Tensors::new();
            buffers.save(&mut tensors).unwrap();
            let loaded = Buffers::load(&tensors).unwrap();
            prop_assert_eq!(loaded.window.len(), buffers.window.len());
            let all = |of: &Buffers| -> Vec<Record> {
                let named = of.named.values().flat_map(|buffer| buffer.records.iter());
                named.chain(of.window.iter().flatten()).cloned().collect()
            };
            let (got, want) = (all(&loaded), all(&buffers));
            prop_assert_eq!(got.len(), want.len());
            prop_assert!(got.iter().zip(&want).all(|(a, b)| same(a, b)));
            let names: Vec<String> = tensors.keys().cloned().collect();
            for name in names {
                let mut broken = tensors.clone();
                broken.remove(&name);
                let whole = name.ends_with("/ends");
                prop_assert!(whole || Buffers::load(&broken).is_err(), "without {}", name);
                let mut cut = tensors.clone();
                let data = cut.get_mut(&name).unwrap();
                if data.shape != [0] {
                    *data = TensorData::new::<f64>(&[1], &[9.0]);
                    prop_assert!(Buffers::load(&cut).is_err(), "{} cut", name);
                }
            }
        }
    }
}
