//! How fast the emulator is: lane instructions per second of a log-softmax over long rows.

use gradus_emu::{Machine, Module, Shape};

fn main() -> Result<(), String> {
    let ptx = include_str!("../tests/kernels/generated/logprob.sm80.ptx");
    let (rows, vocab) = (16u32, 151_936usize);
    let mut machine = Machine::default();
    let module = Module::load(ptx, &mut machine)?;
    let mut params = Vec::new();
    let x: Vec<u8> = (0..rows as usize * vocab)
        .flat_map(|i| (0x3f80u16 + (i * 31 % 200) as u16).to_le_bytes())
        .collect();
    for (name, bytes) in
        [("x", &x), ("target", &vec![0; 64]), ("logp", &vec![0; 64]), ("lse", &vec![0; 64])]
    {
        let at = machine.memory.alloc(name, bytes.len());
        machine.memory.host_write(at, bytes).map_err(|f| f.to_string())?;
        params.extend_from_slice(&at.to_le_bytes());
    }
    params.extend_from_slice(&(vocab as i32).to_le_bytes());
    let shape = Shape { blocks: [rows, 1, 1], threads: [256, 1, 1], cluster: 1, shared: 0 };
    for _ in 0..3 {
        let start = std::time::Instant::now();
        let counters = machine
            .launch(module.program("logprob")?, &shape, &params)
            .map_err(|f| f.to_string())?;
        let seconds = start.elapsed().as_secs_f64();
        let lanes: u64 = counters.lane_instructions.iter().sum();
        println!(
            "{} warp instructions, {seconds:.3} s, {:.0} M lane instructions/s",
            counters.instructions(),
            lanes as f64 / seconds / 1e6
        );
    }
    Ok(())
}
