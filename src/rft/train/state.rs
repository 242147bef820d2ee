//! Saving and loading everything a run moves or is held to: parameters, 4-bit weights, optimizer
//! moments, critic, reference, records that outlive their batch.
//! With the seed and the step this is the whole state, so a resumed run continues bit for bit.

use crate::io::safetensors::{TensorData, Tensors};
use crate::model::{Parameter, ValueHead, Weight};
use crate::train::buffer::Buffers;
use crate::train::critic::Critic;
use crate::train::trainer::Trainer;
use crate::train::update::reference::Reference;
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::quant::{Nf4Matrix, Nf4Tensor, OwnedAbsmax};

/// Says that the reference is the model without its adapters.
const REFERENCE_BASE: &str = "reference_base";

/// Updates that the run has made.
const VERSION: &str = "version";

/// Updates that the optimizer of the phase in `rl.then` has made.
const INNER: &str = "inner/t";

impl<T: Float> Trainer<T> {
    /// Everything that moves, by name; and the base weights, unless they are those of a folder.
    ///
    /// # Errors
    /// What the driver says while the state comes to the host.
    pub fn save_state(&self) -> Result<Tensors> {
        let mut tensors = Tensors::new();
        let mut trained = 0;
        for p in self.model.params.iter() {
            if p.is_empty() || (self.frozen_base && !p.trainable) {
                continue;
            }
            let shape = &p.shape;
            tensors
                .insert(format!("param/{}", p.name), TensorData::new::<f32>(shape, &p.values()?));
            if p.trainable {
                let [m, v] = self.optimizer.moments(trained)?;
                trained += 1;
                tensors.insert(format!("adam_m/{}", p.name), TensorData::new::<f32>(shape, &m));
                tensors.insert(format!("adam_v/{}", p.name), TensorData::new::<f32>(shape, &v));
            }
        }
        for linear in self.model.linears().filter(|_| !self.frozen_base) {
            if let Weight::Nf4(w) = &linear.weight {
                save_nf4(&mut tensors, &linear.name, w)?;
            }
        }
        if let Some(critic) = &self.critic {
            for (name, data) in
                [("weight", &critic.head.weight), ("m", &critic.m), ("v", &critic.v)]
            {
                tensors
                    .insert(format!("critic/{name}"), TensorData::new::<f32>(&[data.len()], data));
            }
            let t = [critic.t as i64];
            tensors.insert("critic/t".into(), TensorData::new::<i64>(&[1], &t));
        }
        match &self.reference {
            Reference::NotTaken => {}
            Reference::Base => {
                tensors.insert(REFERENCE_BASE.into(), TensorData::new::<i64>(&[1], &[1]));
            }
            Reference::Held(held) => {
                for (id, values) in held.to_host()? {
                    let p = self.model.params.get(id);
                    let data = TensorData::new::<f32>(&p.shape, &values);
                    tensors.insert(format!("reference/{}", p.name), data);
                }
            }
        }
        tensors.insert("adam/t".into(), TensorData::new::<i64>(&[1], &[self.optimizer.t as i64]));
        self.save_kept(&mut tensors)?;
        Ok(tensors)
    }

    /// Records that outlive their batch, the version that their age is counted from, and the optimizer
    /// of the phase in `rl.then`. A run that keeps no records has none of it.
    fn save_kept(&self, tensors: &mut Tensors) -> Result<()> {
        if !self.keeps_records {
            return Ok(());
        }
        self.buffers.save(tensors)?;
        let mut scalar = |name: &str, value: u64| {
            tensors.insert(name.into(), TensorData::new::<i64>(&[1], &[value as i64]))
        };
        scalar(VERSION, self.version);
        if let Some(inner) = &self.inner {
            scalar(INNER, inner.t);
            for (index, p) in self.model.params.iter().filter(|p| p.trainable).enumerate() {
                let [m, v] = inner.moments(index)?;
                for (which, data) in [("m", m), ("v", v)] {
                    let name = format!("inner_{which}/{}", p.name);
                    tensors.insert(name, TensorData::new::<f32>(&p.shape, &data));
                }
            }
        }
        Ok(())
    }

    fn load_kept(&mut self, tensors: &Tensors) -> Result<()> {
        self.buffers = Buffers::load(tensors)?;
        self.version = 0;
        if tensors.contains_key(VERSION) {
            self.version = scalar(tensors, VERSION)? as u64;
        }
        self.inner = None;
        if tensors.contains_key(INNER) {
            let mut inner = self.fresh_optimizer()?;
            inner.t = scalar(tensors, INNER)? as u64;
            for (index, p) in self.model.params.iter().filter(|p| p.trainable).enumerate() {
                let moment = |which: &str| -> Result<Vec<f32>> {
                    find(tensors, &format!("inner_{which}/{}", p.name))?.to_vec::<f32>()
                };
                inner.set_moments(index, [&moment("m")?, &moment("v")?])?;
            }
            self.inner = Some(inner);
        }
        Ok(())
    }

    /// Replaces the state by a saved one of the same configuration.
    pub fn load_state(&mut self, tensors: &Tensors) -> Result<()> {
        let quantized =
            tensors.keys().any(|name| name.starts_with("adam_m/") && name.contains(".lora_A."));
        if quantized && !self.model.has_adapters() {
            self.quantize()?;
        }
        if !self.frozen_base {
            self.load_nf4(tensors)?;
        }
        let mut optimizer = self.fresh_optimizer()?;
        optimizer.t = scalar(tensors, "adam/t")? as u64;
        let names: Vec<(String, Vec<usize>, bool)> = self
            .model
            .params
            .iter()
            .map(|p| (p.name.clone(), p.shape.clone(), p.trainable))
            .collect();
        let mut trained = 0;
        for (name, shape, trainable) in names {
            if shape == [0] || (self.frozen_base && !trainable) {
                continue;
            }
            let data = find(tensors, &format!("param/{name}"))?.to_vec::<f32>()?;
            self.model.params.set(&name, &shape, &data)?;
            if trainable {
                let moment = |which: &str| -> Result<Vec<f32>> {
                    find(tensors, &format!("adam_{which}/{name}"))?.to_vec::<f32>()
                };
                optimizer.set_moments(trained, [&moment("m")?, &moment("v")?])?;
                trained += 1;
            }
        }
        self.optimizer = optimizer;
        self.reference = self.load_reference(tensors)?;
        self.load_kept(tensors)?;
        self.critic = match tensors.contains_key("critic/weight") {
            true => Some(Critic {
                head: ValueHead { weight: find(tensors, "critic/weight")?.to_vec::<f32>()? },
                t: scalar(tensors, "critic/t")? as u64,
                m: find(tensors, "critic/m")?.to_vec::<f32>()?,
                v: find(tensors, "critic/v")?.to_vec::<f32>()?,
            }),
            false => None,
        };
        Ok(())
    }

    fn load_reference(&self, tensors: &Tensors) -> Result<Reference<T>> {
        if tensors.contains_key(REFERENCE_BASE) {
            return Ok(Reference::Base);
        }
        if !tensors.keys().any(|name| name.starts_with("reference/")) {
            return Ok(Reference::NotTaken);
        }
        let values = |p: &Parameter<T>| {
            let name = format!("reference/{}", p.name);
            let data = find(tensors, &name)?.to_vec::<f32>()?;
            if data.len() == p.len() {
                return Ok(data);
            }
            let got = format!("{} values", data.len());
            Err(Error::invalid("load_state", name, got, format!("{} values", p.len())))
        };
        Ok(Reference::Held(self.model.params.snapshot_of(values)?))
    }

    fn load_nf4(&mut self, tensors: &Tensors) -> Result<()> {
        let device = self.model.device.clone();
        for linear in self.model.linears_mut() {
            if let Weight::Nf4(w) = &mut linear.weight {
                *w = Nf4Matrix::new(&device, load_nf4(tensors, &linear.name, w)?)?;
            }
        }
        Ok(())
    }
}

fn find<'a>(tensors: &'a Tensors, name: &str) -> Result<&'a TensorData> {
    tensors.get(name).ok_or_else(|| {
        Error::invalid("load_state", name, "nothing of that name", "a tensor of the checkpoint")
    })
}

fn scalar(tensors: &Tensors, name: &str) -> Result<i64> {
    let values = find(tensors, name)?.to_vec::<i64>()?;
    values
        .first()
        .copied()
        .ok_or_else(|| Error::invalid("load_state", name, "no value", "one value"))
}

fn save_nf4(tensors: &mut Tensors, name: &str, w: &Nf4Matrix) -> Result<()> {
    let p = w.to_parts()?;
    let mut put = |part: &str, data| tensors.insert(format!("nf4/{name}.{part}"), data);
    put("packed", TensorData::new::<u8>(&[p.packed.len()], &p.packed));
    match &p.absmax {
        OwnedAbsmax::F32(absmax) => {
            put("absmax", TensorData::new::<f32>(&[absmax.len()], absmax));
        }
        OwnedAbsmax::Nested { codes, nested, offset, .. } => {
            put("absmax", TensorData::new::<u8>(&[codes.len()], codes));
            put("nested_absmax", TensorData::new::<f32>(&[nested.len()], nested));
            put("nested_offset", TensorData::new::<f32>(&[1], &[*offset]));
        }
    }
    Ok(())
}

/// The saved form of a matrix that was quantized like `like`.
fn load_nf4(tensors: &Tensors, name: &str, like: &Nf4Matrix) -> Result<Nf4Tensor> {
    let get = |part: &str| find(tensors, &format!("nf4/{name}.{part}"));
    let mut parts = like.to_parts()?;
    parts.packed = get("packed")?.to_vec::<u8>()?;
    match &mut parts.absmax {
        OwnedAbsmax::F32(absmax) => *absmax = get("absmax")?.to_vec::<f32>()?,
        OwnedAbsmax::Nested { codes, nested, offset, .. } => {
            *codes = get("absmax")?.to_vec::<u8>()?;
            *nested = get("nested_absmax")?.to_vec::<f32>()?;
            *offset = get("nested_offset")?.to_vec::<f32>()?.first().copied().unwrap_or(f32::NAN);
        }
    }
    Nf4Tensor::from_parts(parts)
}
