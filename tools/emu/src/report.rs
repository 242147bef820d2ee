//! Counters as text, and the shortest time the counted work could take on a GPU.

use std::fmt::Write;

use crate::machine::counters::{CLASS_NAMES, Counters, Work};

/// Peak rates of a GPU, per second. Measured where a measurement is known, else the data sheet's.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Name in the report.
    pub name: &'static str,
    /// Bytes of memory a streaming copy moves.
    pub memory_bytes: f64,
    /// Clock in Hz times streaming multiprocessors.
    pub sm_clocks: f64,
    /// Multiply-adds of bf16 tensor cores per SM and clock, by `mma.sync`.
    pub mma_macs: f64,
}

/// H200: 132 SMs at 1.98 GHz, 4.3 TB/s copied; `mma.sync` reaches about 60 % of the tensor cores'
/// 2,048 multiply-adds per clock.
pub const H200: Rates =
    Rates { name: "H200", memory_bytes: 4.3e12, sm_clocks: 132.0 * 1.98e9, mma_macs: 2048.0 * 0.6 };

/// The resource that bounds a kernel from below, and the time in seconds it needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Floor {
    /// `memory`, `L2`, `issue`, `shared memory`, `special functions`, `f64` or `tensor cores`.
    pub resource: &'static str,
    /// Seconds with that resource always busy and all SMs evenly loaded.
    pub seconds: f64,
}

impl Counters {
    /// Time each resource needs for this work, the longest first.
    pub fn floors(&self, rates: &Rates) -> Vec<Floor> {
        let lanes = |work: Work| self.lane_instructions[work as usize] as f64;
        let per_sm = |amount: f64, rate: f64| amount / rate / rates.sm_clocks;
        let mut list = vec![
            Floor { resource: "memory", seconds: self.cold_bytes() as f64 / rates.memory_bytes },
            // The L2 delivers about 64 bytes per SM and clock.
            Floor { resource: "L2", seconds: per_sm(self.global_bytes() as f64, 64.0) },
            Floor { resource: "issue", seconds: per_sm(self.instructions() as f64, 4.0) },
            Floor {
                resource: "shared memory",
                seconds: per_sm(self.shared_wavefronts as f64, 1.0),
            },
            Floor {
                resource: "special functions",
                seconds: per_sm(lanes(Work::Special) + lanes(Work::Convert), 16.0),
            },
            Floor { resource: "f64", seconds: per_sm(lanes(Work::Double), 64.0) },
            Floor {
                resource: "tensor cores",
                seconds: per_sm(self.mma_macs as f64, rates.mma_macs),
            },
        ];
        list.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        list
    }

    /// A table for people. The floor is a model, not a measurement.
    pub fn report(&self, kernel: &str, rates: &Rates) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{kernel}: {} launches, {} blocks, {} warps",
            self.launches, self.blocks, self.warps
        );
        let _ = writeln!(
            out,
            "  instructions   {} warp, {:.1} lanes each",
            self.instructions(),
            self.lanes_per_instruction()
        );
        for (name, count) in CLASS_NAMES.iter().zip(self.warp_instructions).filter(|(_, n)| *n > 0)
        {
            let _ = writeln!(out, "    {name:<12} {count}");
        }
        let _ = writeln!(
            out,
            "  global         {} B in sectors ({} load, {} store), {:.1} % asked for, {} B cold",
            self.global_bytes(),
            32 * self.global_load_sectors,
            32 * self.global_store_sectors,
            100.0 * self.sector_efficiency(),
            self.cold_bytes()
        );
        let _ = writeln!(
            out,
            "  shared         {} wavefronts, {} without conflicts; {} local accesses",
            self.shared_wavefronts, self.shared_wavefronts_ideal, self.local_accesses
        );
        let _ = writeln!(
            out,
            "  others         {} atomics, {} barrier arrivals, {} mma ({} multiply-adds)",
            self.atomics, self.barriers, self.mma, self.mma_macs
        );
        let floors = self.floors(rates);
        let line: Vec<String> = floors
            .iter()
            .take(3)
            .map(|f| format!("{} {:.2} us", f.resource, f.seconds * 1e6))
            .collect();
        let _ = writeln!(out, "  {} floor model  {}", rates.name, line.join(", "));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_resource_binds() {
        let mut c = Counters { cold_load_sectors: 1 << 20, ..Counters::default() };
        assert_eq!(c.floors(&H200)[0].resource, "memory");
        c.shared_wavefronts = 1 << 40;
        assert_eq!(c.floors(&H200)[0].resource, "shared memory");
        assert!(c.report("k", &H200).contains("shared memory"));
    }
}
