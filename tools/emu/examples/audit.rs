//! Prints what the audit of PTX files finds: `cargo run -p gradus-emu --example audit -- FILES`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for path in std::env::args().skip(1) {
        println!("{path}");
        for found in gradus_emu::audit::audit(&std::fs::read_to_string(&path)?)? {
            println!(
                "  {}: {} rounds of loads before line {:?}, branches before products {:?}, 64-bit \
                 divisions in loops {:?}",
                found.kernel,
                found.load_rounds,
                found.first_bulk,
                found.branches_before_products,
                found.divisions_in_loops
            );
            for l in found.loops.iter().filter(|l| l.products > 0 || l.shared_stores > 0) {
                println!("    {l:?}");
            }
        }
    }
    Ok(())
}
