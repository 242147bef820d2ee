//! All trainable and frozen float tensors of a model in one list, and gradients beside it. A layer
//! holds [`ParamId`]s; the optimizer, checkpoints and gradient sums walk the list.

use std::any::Any;

use gradus::device::{Allocator, Buffer, Device};
use gradus::dtype::{DType, Float};
use gradus::error::{Error, Result};
use gradus::ops::{Convert, convert};
use gradus::view::View;

/// Index of a parameter in its [`Parameters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub usize);

/// One named tensor in the memory of the model's device. What ops read has the model's dtype `T`;
/// what the optimizer moves is f32.
#[derive(Debug)]
pub struct Parameter<T = f32> {
    /// Name in the Hugging Face convention.
    pub name: String,
    /// Extents, row-major.
    pub shape: Vec<usize>,
    /// Whether the optimizer moves it.
    pub trainable: bool,
    /// Values that ops read.
    data: Buffer<T>,
    /// The f32 values behind `data` while the parameter trains; `data` itself if `T` is f32.
    master: Option<Buffer<f32>>,
    /// The parameter that the base model has in this one's place, if an adapter brought this one.
    original: Option<ParamId>,
}

impl<T: Float> Parameter<T> {
    /// Number of values; 0 if a quantized copy replaced them.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether a quantized copy replaced the values.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.len() * size_of::<T>() + self.master.as_ref().map_or(0, |m| m.len() * 4)
    }

    /// A copy of the values in host memory: the f32 ones, if the parameter trains.
    pub fn values(&self) -> Result<Vec<f32>> {
        match &self.master {
            Some(master) => master.to_host(),
            None => Ok(self.data.to_host()?.into_iter().map(T::to_f32).collect()),
        }
    }

    pub(crate) fn address(&self) -> usize {
        self.data.all().as_ptr() as usize
    }

    /// The f32 values that the optimizer moves.
    pub(crate) fn master_mut(&mut self) -> Option<&mut Buffer<f32>> {
        match &mut self.master {
            Some(master) => Some(master),
            None => (&mut self.data as &mut dyn Any).downcast_mut(),
        }
    }

    fn set(&mut self, values: &[f32]) -> Result<()> {
        if let Some(master) = &mut self.master {
            master.upload(values)?;
        }
        let narrow: Vec<T> = values.iter().map(|&x| T::from_f32(x)).collect();
        self.data.upload(&narrow)
    }
}

/// What stands behind the name of a module that an adapter has whole, in the name of the base model's
/// own: PEFT's word.
pub(crate) const ORIGINAL: &str = ".original_module";

/// A model's parameters in a fixed order.
#[derive(Debug)]
pub struct Parameters<T = f32> {
    device: Device,
    items: Vec<Parameter<T>>,
}

impl<T: Float> Parameters<T> {
    /// None yet.
    pub fn new(device: &Device) -> Parameters<T> {
        Parameters { device: device.clone(), items: Vec::new() }
    }

    /// Appends a trainable parameter.
    ///
    /// # Errors
    /// `OutOfMemory`, or what the driver says.
    pub fn push(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
        data: Vec<f32>,
    ) -> Result<ParamId> {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        let narrow = data.iter().map(|&x| T::from_f32(x)).collect();
        let master = match T::DTYPE {
            DType::F32 => None,
            _ => Some(Buffer::from_vec(&self.device, data)?),
        };
        self.items.push(Parameter {
            name: name.into(),
            shape: shape.to_vec(),
            trainable: true,
            data: Buffer::from_vec(&self.device, narrow)?,
            master,
            original: None,
        });
        Ok(ParamId(self.items.len() - 1))
    }

    /// Appends a parameter that does not train: it has no f32 values beside those that ops read.
    ///
    /// # Errors
    /// `OutOfMemory`, or what the driver says.
    pub fn push_frozen(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
        data: Vec<T>,
    ) -> Result<ParamId> {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        self.items.push(Parameter {
            name: name.into(),
            shape: shape.to_vec(),
            trainable: false,
            data: Buffer::from_vec(&self.device, data)?,
            master: None,
            original: None,
        });
        Ok(ParamId(self.items.len() - 1))
    }

    /// The parameter in the place of `id`: itself with the adapter, what the base model has there
    /// without.
    pub(crate) fn chosen(&self, mut id: ParamId, adapt: bool) -> ParamId {
        while let (false, Some(original)) = (adapt, self.items[id.0].original) {
            id = original;
        }
        id
    }

    /// What the base model has in the place of `item`.
    pub(crate) fn original<'a>(&'a self, item: &'a Parameter<T>) -> &'a Parameter<T> {
        item.original.map_or(item, |id| self.get(self.chosen(id, false)))
    }

    /// The parameter called `name`.
    pub(crate) fn find(&self, name: &str) -> Option<ParamId> {
        self.items.iter().position(|p| p.name == name).map(ParamId)
    }

    /// The parameter `id`.
    pub fn get(&self, id: ParamId) -> &Parameter<T> {
        &self.items[id.0]
    }

    /// The values of parameter `id` as a vector.
    pub fn vector(&self, id: ParamId) -> View<'_, T> {
        self.items[id.0].data.all()
    }

    /// The values of parameter `id` as rows of its last extent.
    pub fn matrix(&self, id: ParamId) -> Result<View<'_, T>> {
        let item = &self.items[id.0];
        item.data.rows(item.shape.last().copied().unwrap_or(0))
    }

    /// All parameters in order.
    pub fn iter(&self) -> impl Iterator<Item = &Parameter<T>> {
        self.items.iter()
    }

    /// All parameters in order, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Parameter<T>> {
        self.items.iter_mut()
    }

    /// Replaces the values of parameter `id`.
    ///
    /// # Errors
    /// `InvalidArgument` for another number of values.
    pub fn put(&mut self, id: ParamId, values: &[f32]) -> Result<()> {
        self.items[id.0].set(values)
    }

    /// Replaces the values of the parameter called `name`.
    ///
    /// # Errors
    /// `InvalidArgument` for a name or a shape that the model does not have.
    pub fn set(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Result<()> {
        let Some(item) = self.items.iter_mut().find(|p| p.name == name) else {
            return Err(Error::invalid("parameters", "name", name, "a parameter of this model"));
        };
        if item.shape != shape || values.len() != item.len() {
            let got = format!("shape {shape:?} with {} values", values.len());
            return Err(Error::invalid("parameters", name, got, format!("shape {:?}", item.shape)));
        }
        item.set(values)
    }

    /// Puts `values` in the place of parameter `id`, for the optimizer to move. The base model keeps
    /// its own, frozen, as a parameter beside it.
    ///
    /// # Errors
    /// `OutOfMemory`, or what the driver says.
    pub(crate) fn replace(&mut self, id: ParamId, values: Vec<f32>) -> Result<()> {
        let (name, shape) = (self.items[id.0].name.clone(), self.items[id.0].shape.clone());
        let own = name.trim_end_matches(".weight");
        let original = format!("{own}{ORIGINAL}.weight");
        let new = self.push(name, &shape, values)?;
        // The new one takes the place of the old, which moves to the end of the list.
        self.items.swap(id.0, new.0);
        self.items[id.0].original = Some(new);
        let old = &mut self.items[new.0];
        (old.name, old.trainable, old.master) = (original, false, None);
        Ok(())
    }

    /// Appends the parameter `name` for the optimizer to move, where the base model has `original`.
    pub(crate) fn push_beside(
        &mut self,
        name: &str,
        original: ParamId,
        values: Vec<f32>,
    ) -> Result<ParamId> {
        let shape = self.items[original.0].shape.clone();
        let id = self.push(name, &shape, values)?;
        self.items[id.0].original = Some(original);
        Ok(id)
    }

    /// Number of parameters.
    #[cfg(feature = "serve")]
    pub(crate) fn count(&self) -> usize {
        self.items.len()
    }

    /// Takes the parameters from number `first` on out of the list.
    #[cfg(feature = "serve")]
    pub(crate) fn split_off(&mut self, first: usize) -> Vec<Parameter<T>> {
        self.items.split_off(first.min(self.items.len()))
    }

    /// Puts parameters that [`Parameters::split_off`] took at the end again.
    #[cfg(feature = "serve")]
    pub(crate) fn append(&mut self, mut taken: Vec<Parameter<T>>) {
        self.items.append(&mut taken);
    }

    /// Marks every parameter as frozen. The f32 values behind narrower ones are given up.
    pub fn freeze(&mut self) {
        for item in &mut self.items {
            item.trainable = false;
            item.master = None;
        }
    }

    /// Rounds the f32 values that the optimizer moved to what ops read.
    pub(crate) fn refresh(&mut self) -> Result<()> {
        for item in &mut self.items {
            if let (true, Some(master)) = (item.trainable, &item.master) {
                convert(&self.device, Convert { x: master.all(), y: item.data.all_mut() })?;
            }
        }
        Ok(())
    }

    /// Frees the values of a parameter that a quantized copy replaces.
    pub(crate) fn release(&mut self, id: ParamId) -> Result<()> {
        let item = &mut self.items[id.0];
        item.data = Buffer::from_vec(&Device::Cpu, Vec::new())?;
        item.master = None;
        item.shape = vec![0];
        item.trainable = false;
        Ok(())
    }

    /// A copy of the values that ops read of everything that trains.
    ///
    /// # Errors
    /// `OutOfMemory`, or what the driver says.
    pub fn snapshot(&self) -> Result<Snapshot<T>> {
        let copy = |(i, p): (usize, &Parameter<T>)| {
            Ok((ParamId(i), Buffer::from_vec(&self.device, p.data.to_host()?)?))
        };
        let trained = self.items.iter().enumerate().filter(|(_, p)| p.trainable);
        Ok(Snapshot { values: trained.map(copy).collect::<Result<_>>()? })
    }

    /// Values for a snapshot from host memory, one per parameter that trains, in order.
    ///
    /// # Errors
    /// `OutOfMemory`, or what the driver says.
    pub(crate) fn snapshot_of(
        &self,
        mut values: impl FnMut(&Parameter<T>) -> Result<Vec<f32>>,
    ) -> Result<Snapshot<T>> {
        let place = |(i, p): (usize, &Parameter<T>)| {
            let narrow = values(p)?.into_iter().map(T::from_f32).collect();
            Ok((ParamId(i), Buffer::from_vec(&self.device, narrow)?))
        };
        let trained = self.items.iter().enumerate().filter(|(_, p)| p.trainable);
        Ok(Snapshot { values: trained.map(place).collect::<Result<_>>()? })
    }

    /// Exchanges the values that ops read with those of a snapshot of the same parameters.
    pub fn swap(&mut self, held: &mut Snapshot<T>) {
        for (id, values) in &mut held.values {
            std::mem::swap(&mut self.items[id.0].data, values);
        }
    }
}

/// Values that parameters had.
#[derive(Debug)]
pub struct Snapshot<T = f32> {
    values: Vec<(ParamId, Buffer<T>)>,
}

impl<T: Float> Snapshot<T> {
    /// Each parameter with a copy of its values in host memory.
    pub(crate) fn to_host(&self) -> Result<Vec<(ParamId, Vec<f32>)>> {
        let copy = |(id, values): &(ParamId, Buffer<T>)| {
            Ok((*id, values.to_host()?.into_iter().map(T::to_f32).collect()))
        };
        self.values.iter().map(copy).collect()
    }
}

/// One f32 buffer per trainable parameter.
#[derive(Debug)]
pub struct Gradients {
    buffers: Vec<Option<Buffer<f32>>>,
}

impl Gradients {
    /// Zeros for every trainable parameter.
    pub fn zeros<T: Float>(params: &Parameters<T>, allocator: &Allocator) -> Result<Gradients> {
        let zeros =
            |p: &Parameter<T>| p.trainable.then(|| allocator.zeros::<f32>(p.len())).transpose();
        Ok(Gradients { buffers: params.iter().map(zeros).collect::<Result<_>>()? })
    }

    /// The buffer of parameter `id`, if it is trainable.
    pub fn get(&self, id: ParamId) -> Option<&Buffer<f32>> {
        self.buffers[id.0].as_ref()
    }

    /// The buffer of parameter `id`, if it is trainable.
    pub fn get_mut(&mut self, id: ParamId) -> Option<&mut Buffer<f32>> {
        self.buffers[id.0].as_mut()
    }

    /// Two buffers at once.
    pub fn pair_mut(
        &mut self,
        a: ParamId,
        b: ParamId,
    ) -> Option<(&mut Buffer<f32>, &mut Buffer<f32>)> {
        let [a, b] = self.buffers.get_disjoint_mut([a.0, b.0]).ok()?;
        Some((a.as_mut()?, b.as_mut()?))
    }

    /// Sets every gradient to 0 and keeps the memory.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) fn cleared(mut self) -> Result<Gradients> {
        self.buffers.iter_mut().flatten().try_for_each(Buffer::clear)?;
        Ok(self)
    }

    /// Adds `other`, which lies in host memory like `self`, element by element. Callers add
    /// micro-batches in index order, which makes the sum independent of which thread computed what.
    ///
    /// # Errors
    /// `InvalidArgument` for gradients of another model, or in the memory of a GPU, where backward
    /// passes add to them themselves.
    pub(crate) fn add(&mut self, other: &Gradients) -> Result<()> {
        let pairs = || self.buffers.iter().zip(&other.buffers);
        let fits =
            |(mine, theirs): (&Option<Buffer<f32>>, &Option<Buffer<f32>>)| match (mine, theirs) {
                (Some(Buffer::Host(mine)), Some(Buffer::Host(theirs))) => {
                    mine.len() == theirs.len()
                }
                (None, None) => true,
                (Some(_), _) | (None, Some(_)) => false,
            };
        if self.buffers.len() != other.buffers.len() || !pairs().all(fits) {
            let expected = "gradients of the same model, both in host memory";
            return Err(Error::invalid("gradients", "other", "other buffers", expected));
        }
        for (mine, theirs) in self.buffers.iter_mut().zip(&other.buffers) {
            if let (Some(Buffer::Host(mine)), Some(Buffer::Host(theirs))) = (mine, theirs) {
                mine.iter_mut().zip(theirs).for_each(|(a, b)| *a += b);
            }
        }
        Ok(())
    }

    /// The buffers of all trainable parameters in order.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Buffer<f32>)> {
        self.buffers.iter().enumerate().filter_map(|(i, b)| Some((ParamId(i), b.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use gradus::device::{DriverInfo, DryDriver};

    fn gradients(device: &Device, lengths: &[usize]) -> Gradients {
        let mut params = Parameters::<f32>::new(device);
        for (i, &n) in lengths.iter().enumerate() {
            params.push(format!("p{i}"), &[n], vec![0.0; n]).unwrap();
        }
        Gradients::zeros(&params, &Allocator::new(device)).unwrap()
    }

    #[test]
    fn gradients_add_up_in_host_memory_and_are_refused_elsewhere() {
        let cpu = Device::Cpu;
        let (mut sum, mut part) = (gradients(&cpu, &[2, 3]), gradients(&cpu, &[2, 3]));
        part.get_mut(ParamId(1)).unwrap().upload(&[1.0, 2.0, 3.0]).unwrap();
        sum.add(&part).unwrap();
        sum.add(&part).unwrap();
        assert_eq!(sum.get(ParamId(1)).unwrap().to_host().unwrap(), [2.0, 4.0, 6.0]);
        let part = part.cleared().unwrap();
        assert_eq!(part.get(ParamId(1)).unwrap().to_host().unwrap(), [0.0; 3]);

        let info = DriverInfo {
            name: "dry".into(),
            ordinal: 0,
            capability: (9, 0),
            cuda: (13, 0),
            multiprocessors: 1,
            memory: 1 << 30,
            shared_per_block: 232_448,
        };
        let gpu = Device::gpu(Arc::new(DryDriver::new(info))).unwrap();
        let there = gradients(&gpu, &[2, 3]);
        for other in [gradients(&cpu, &[2]), gradients(&cpu, &[3, 3]), there] {
            let error = sum.add(&other).unwrap_err().to_string();
            assert!(error.contains("`other`"), "{error}");
        }
        assert_eq!(sum.get(ParamId(1)).unwrap().to_host().unwrap(), [2.0, 4.0, 6.0]);
    }
}
