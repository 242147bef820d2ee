//! Low-rank adapters that take turns on one model.

use crate::model::decoder::Decoder;
use crate::model::linear::LoraAdapter;
use crate::model::params::Parameter;
use gradus::dtype::Float;

/// The low-rank adapters of all linear maps of a model, with their values.
#[derive(Debug)]
pub(crate) struct LoraSet<T> {
    /// One for each linear map that could have one, in order.
    maps: Vec<Option<LoraAdapter>>,
    values: Vec<Parameter<T>>,
}

impl<T: Float> Decoder<T> {
    /// Takes the adapters off, which leaves the base model. Moves some hundred small structs and no value.
    ///
    /// `None` for a model without adapters, and for one with parameters behind them: modules that an adapter
    /// has whole stay on.
    pub(crate) fn take_lora(&mut self) -> Option<LoraSet<T>> {
        let ids = |lora: LoraAdapter| [lora.a.0, lora.b.0];
        let own: Vec<usize> = self.linears().filter_map(|map| map.lora).flat_map(ids).collect();
        let first = *own.iter().min()?;
        if self.params.count() - first != own.len() {
            return None;
        }
        let maps = self.linears_mut().map(|map| map.lora.take()).collect();
        Some(LoraSet { maps, values: self.params.split_off(first) })
    }

    /// Puts adapters on that [`Decoder::take_lora`] took off this model, which has none.
    pub(crate) fn put_lora(&mut self, set: LoraSet<T>) {
        debug_assert!(!self.has_adapters());
        self.params.append(set.values);
        self.linears_mut().zip(set.maps).for_each(|(map, lora)| map.lora = lora);
    }
}
