//! All trainable and frozen float tensors of a model in one list, and gradients beside it. A layer
//! holds [`ParamId`]s; the optimiser, checkpoints and gradient sums walk the list.

use crate::error::{Error, Result};

/// Index of a parameter in its [`Parameters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub usize);

/// One named f32 tensor.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Name in the Hugging Face convention.
    pub name: String,
    /// Extents, row-major.
    pub shape: Vec<usize>,
    /// Values.
    pub data: Vec<f32>,
    /// Whether the optimiser moves it.
    pub trainable: bool,
}

/// A model's parameters in a fixed order.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    items: Vec<Parameter>,
}

impl Parameters {
    /// Appends a parameter.
    pub fn push(&mut self, name: impl Into<String>, shape: &[usize], data: Vec<f32>) -> ParamId {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        self.items.push(Parameter {
            name: name.into(),
            shape: shape.to_vec(),
            data,
            trainable: true,
        });
        ParamId(self.items.len() - 1)
    }

    /// The parameter `id`.
    pub fn get(&self, id: ParamId) -> &Parameter {
        &self.items[id.0]
    }

    /// The values of parameter `id`.
    pub fn data(&self, id: ParamId) -> &[f32] {
        &self.items[id.0].data
    }

    /// The parameter `id`, to change.
    pub fn get_mut(&mut self, id: ParamId) -> &mut Parameter {
        &mut self.items[id.0]
    }

    /// All parameters in order.
    pub fn iter(&self) -> impl Iterator<Item = &Parameter> {
        self.items.iter()
    }

    /// All parameters in order, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        self.items.iter_mut()
    }

    /// Replaces the values of the parameter called `name`.
    pub fn set(&mut self, name: &str, shape: &[usize], data: Vec<f32>) -> Result<()> {
        let Some(item) = self.items.iter_mut().find(|p| p.name == name) else {
            return Err(Error::invalid("parameters", "name", name, "a parameter of this model"));
        };
        if item.shape != shape || data.len() != item.data.len() {
            let got = format!("shape {shape:?} with {} values", data.len());
            return Err(Error::invalid("parameters", name, got, format!("shape {:?}", item.shape)));
        }
        item.data = data;
        Ok(())
    }

    /// Marks every parameter as frozen.
    pub fn freeze(&mut self) {
        self.items.iter_mut().for_each(|p| p.trainable = false);
    }

    /// Frees the values of a parameter that a quantised copy replaces.
    pub(crate) fn release(&mut self, id: ParamId) {
        let item = &mut self.items[id.0];
        item.data = Vec::new();
        item.shape = vec![0];
        item.trainable = false;
    }

    /// Number of values the optimiser moves.
    pub fn trainable_count(&self) -> usize {
        self.items.iter().filter(|p| p.trainable).map(|p| p.data.len()).sum()
    }
}

/// One f32 buffer per trainable parameter.
#[derive(Clone, Debug)]
pub struct Gradients {
    buffers: Vec<Option<Vec<f32>>>,
}

impl Gradients {
    /// Zeros for every trainable parameter.
    pub fn zeros(params: &Parameters) -> Gradients {
        let zeros = |p: &Parameter| p.trainable.then(|| vec![0.0; p.data.len()]);
        Gradients { buffers: params.iter().map(zeros).collect() }
    }

    /// The buffer of parameter `id`, if it is trainable.
    pub fn get(&self, id: ParamId) -> Option<&[f32]> {
        self.buffers[id.0].as_deref()
    }

    /// The buffer of parameter `id`, if it is trainable.
    pub fn get_mut(&mut self, id: ParamId) -> Option<&mut Vec<f32>> {
        self.buffers[id.0].as_mut()
    }

    /// Two buffers at once.
    pub fn pair_mut(&mut self, a: ParamId, b: ParamId) -> Option<(&mut Vec<f32>, &mut Vec<f32>)> {
        let [a, b] = self.buffers.get_disjoint_mut([a.0, b.0]).ok()?;
        Some((a.as_mut()?, b.as_mut()?))
    }

    /// Adds `other` element by element. Callers add micro-batches in index order, which makes the
    /// sum independent of which thread computed what.
    pub fn add(&mut self, other: &Gradients) {
        for (mine, theirs) in self.buffers.iter_mut().zip(&other.buffers) {
            if let (Some(mine), Some(theirs)) = (mine, theirs) {
                mine.iter_mut().zip(theirs).for_each(|(a, b)| *a += b);
            }
        }
    }

    /// The buffers of all trainable parameters in order.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Vec<f32>)> {
        self.buffers.iter().enumerate().filter_map(|(i, b)| Some((ParamId(i), b.as_ref()?)))
    }
}
