//! `cargo bench`: the rows of `gradus bench` on the CPU, timed by criterion. Names are `family/op/shape dtype`, so
//! `cargo bench -- logprob` times the rows of that op.

use criterion::{Criterion, Throughput};
use gradus::Device;
use gradus_rft::bench::cpu_cases;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for case in cpu_cases() {
        let mut group = criterion.benchmark_group(format!("{}/{}", case.family, case.op));
        group.throughput(Throughput::ElementsAndBytes { elements: case.flops, bytes: case.bytes });
        // Operands are made for rows that are chosen, and once.
        let mut body = None;
        group.bench_function(format!("{} {}", case.shape, case.dtype.name()), |bencher| {
            let make = || (case.make)(&Device::Cpu).expect("operands");
            let body = body.get_or_insert_with(make);
            bencher.iter(|| body(&Device::Cpu).expect("the op"));
        });
        group.finish();
    }
    criterion.final_summary();
}
