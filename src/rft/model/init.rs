//! Random weights.

use crate::model::build::{Start, WeightSource};
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use gradus::device::Device;
use gradus::dtype::Float;
use gradus::error::Result;
use gradus::rng::{Purpose, Rng};

/// Draws every parameter from a stream of its own, counted in the order of building.
struct Random {
    seed: u64,
    stream: u32,
}

impl WeightSource for Random {
    fn trains(&self) -> bool {
        true
    }

    fn values<F: Float>(&mut self, _: &str, shape: &[usize], start: Start) -> Result<Vec<F>> {
        let count = shape.iter().product();
        let stream = self.stream;
        self.stream += 1;
        Ok(match start {
            Start::Ones => vec![F::from_f32(1.0); count],
            Start::Zeros => vec![F::from_f32(0.0); count],
            Start::Normal(std) => {
                let mut rng = Rng::new(self.seed, Purpose::Init, [0, stream, 0]);
                (0..count).map(|_| F::from_f32((rng.normal() * std) as f32)).collect()
            }
        })
    }
}

/// Zeros that never train.
struct Zeros;

impl WeightSource for Zeros {
    fn trains(&self) -> bool {
        false
    }

    fn values<F: Float>(&mut self, _: &str, shape: &[usize], _: Start) -> Result<Vec<F>> {
        Ok(vec![F::from_f32(0.0); shape.iter().product()])
    }
}

impl<T: Float> Decoder<T> {
    /// Normal weights of standard deviation 1/√k; the maps that write to the residual stream are
    /// divided by √(2·layers) (GPT-2's rule, Radford et al. 2019 §2.3). All parameters trainable.
    pub fn random(config: &ModelConfig, device: Device, seed: u64) -> Result<Decoder<T>> {
        Ok(Decoder::build(config, device, Random { seed, stream: 0 })?.0)
    }

    /// Frozen weights of zeros: for what depends on shapes alone.
    pub fn zeros(config: &ModelConfig, device: Device) -> Result<Decoder<T>> {
        Ok(Decoder::build(config, device, Zeros)?.0)
    }
}
