//! The adapters that are served, of which the model has one on at a time.

use std::sync::Arc;

use crate::model::{Decoder, LoraSet};
use crate::pretrained::Adapter;
use gradus::dtype::Float;
use gradus::error::{Error, Result};

/// What a request names: the model as it was opened, or an adapter on its base. Requests keep theirs alive,
/// so that they finish with what they began with.
#[derive(Debug)]
pub(super) struct Named {
    /// 0 for the model as it was opened.
    pub id: u64,
    pub name: String,
    /// The adapter's folder; none of the model as it was opened.
    pub path: Option<String>,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
}

/// An adapter and who asks for it; without values while it is on the model.
struct Held<T> {
    named: Arc<Named>,
    set: Option<LoraSet<T>>,
}

/// The adapters of a model.
pub(super) struct Adapters<T> {
    held: Vec<Held<T>>,
    /// What is on the model.
    on: u64,
    /// The model has whole modules of an adapter, which do not come off.
    fixed: bool,
}

impl<T: Float> Adapters<T> {
    /// Those of `model`, which is called `own`.
    pub fn of(model: &mut Decoder<T>, own: Arc<Named>) -> Adapters<T> {
        let mut adapters = Adapters { held: Vec::new(), on: own.id, fixed: false };
        if model.has_adapters() {
            match model.take_lora() {
                Some(set) => {
                    model.put_lora(set);
                    adapters.held.push(Held { named: own, set: None });
                }
                None => adapters.fixed = true,
            }
        }
        adapters
    }

    /// Takes `adapter` in as `named`, without putting it on.
    ///
    /// # Errors
    /// What [`Adapter::attach`] refuses, and modules that an adapter has whole.
    pub fn load(
        &mut self,
        model: &mut Decoder<T>,
        named: Arc<Named>,
        adapter: &Adapter,
    ) -> Result<()> {
        if self.fixed {
            let got = "an adapter beside one that has whole modules";
            let expected = "a base model: merge that adapter into the model first";
            return Err(Error::invalid("load_lora_adapter", "lora_path", got, expected));
        }
        self.take_off(model);
        adapter.attach(model)?;
        match model.take_lora() {
            Some(set) => {
                self.held.push(Held { named, set: Some(set) });
                Ok(())
            }
            // The caller has refused whole modules, so that nothing lies behind the adapter's own values.
            None => {
                let got = "an adapter with whole modules";
                Err(Error::invalid("load_lora_adapter", "lora_path", got, "low-rank updates alone"))
            }
        }
    }

    /// Makes `model` the one that `id` names.
    pub fn wear(&mut self, model: &mut Decoder<T>, id: u64) {
        if self.on == id || self.fixed {
            return;
        }
        self.take_off(model);
        if let Some(set) = self.find(id).and_then(|held| held.set.take()) {
            model.put_lora(set);
        }
        self.on = id;
    }

    /// Frees the adapters that no name and no request asks for any more.
    pub fn drop_unused(&mut self, model: &mut Decoder<T>) {
        let unused = |held: &Held<T>| Arc::strong_count(&held.named) == 1;
        if !self.held.iter().any(unused) {
            return;
        }
        self.take_off(model);
        self.held.retain(|held| !unused(held));
    }

    fn take_off(&mut self, model: &mut Decoder<T>) {
        let on = self.on;
        if let Some(held) = self.find(on).filter(|held| held.set.is_none()) {
            held.set = model.take_lora();
        }
        self.on = NOTHING;
    }

    fn find(&mut self, id: u64) -> Option<&mut Held<T>> {
        self.held.iter_mut().find(|held| held.named.id == id)
    }
}

/// Nobody's id: the base model.
const NOTHING: u64 = u64::MAX;
