//! `wgmma.*`: products of a warpgroup, one warp at a time.
//!
//! A product computes when it is issued, but its accumulators are undefined until
//! `wgmma.wait_group`, and the bytes and registers it reads are looked at again then.

use super::control::immediate;
use super::matrix::{accumulator, misuse, rows, vector, whole_warp};
use super::{Decode, Execute, Ops};
use crate::machine::counters::{Counters, Work};
use crate::machine::fault::{Fault, Kind, Step};
use crate::machine::pending::Product;
use crate::machine::registers::{ALL, Row};
use crate::machine::shared::wavefronts;
use crate::machine::{Context, Flow};
use crate::tensor::mma::Element;
use crate::tensor::wgmma::{Descriptor, Major, Operand as Values, SharedRead, Take, Wgmma};
use crate::text::ast::{Class, Operand};

pub(super) fn decode(ops: &mut Ops<'_, '_, '_, '_>) -> Decode {
    let modifiers: Vec<String> = ops.modifiers().iter().map(|m| m.to_string()).collect();
    let modifiers: Vec<&str> = modifiers.iter().map(String::as_str).collect();
    let (work, run): (Work, Execute) = match modifiers[..] {
        ["fence", "sync", "aligned"] => (Work::Control, whole(|c| c.warp.products.fence())),
        ["commit_group", "sync", "aligned"] => (Work::Control, whole(|c| c.warp.products.commit())),
        ["wait_group", "sync", "aligned"] => (Work::Control, wait(ops)?),
        ["mma_async", "sync", "aligned", shape, ref types @ ..] => {
            (Work::Tensor, product(ops, shape, types)?)
        }
        _ => return ops.unknown(),
    };
    Ok((work, run))
}

/// An instruction of the whole warp without operands.
fn whole(body: impl Fn(&mut Context<'_>) + Send + Sync + 'static) -> Execute {
    Box::new(move |c, mask| {
        whole_warp(c, mask)?;
        body(c);
        Ok(Flow::Next)
    })
}

fn wait(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    ops.count(1)?;
    let keep = immediate(ops.operand(0)?)? as usize;
    Ok(Box::new(move |c, mask| {
        whole_warp(c, mask)?;
        c.warp.products.wait(keep, &mut c.warp.registers, c.cluster)?;
        Ok(Flow::Next)
    }))
}

/// Where A comes from.
enum Left {
    Registers(Vec<usize>),
    Descriptor(usize),
}

/// Whether accumulators take part: `scale-d`.
#[derive(Clone, Copy)]
enum ScaleD {
    Always(bool),
    Predicate(usize, bool),
}

/// The immediates behind the descriptors.
struct Tail {
    scale_d: ScaleD,
    a: Take,
    b: Take,
}

fn product(ops: &mut Ops<'_, '_, '_, '_>, shape: &str, types: &[&str]) -> Result<Execute, String> {
    let saturate = types.contains(&"satfinite");
    let types: Vec<&str> = types.iter().copied().filter(|t| *t != "satfinite").collect();
    let [d, a, b] = types[..] else { return ops.unknown() };
    let sizes = shape.strip_prefix("m64n").and_then(|rest| rest.split_once('k'));
    let sizes = sizes.and_then(|(n, k)| Some((n.parse::<usize>().ok()?, k.parse::<usize>().ok()?)));
    let (a, b) = (Element::from_ptx(a), Element::from_ptx(b));
    let (Some((n, k)), Some(a), Some(b), Some(accumulator)) =
        (sizes, a, b, accumulator(d, saturate))
    else {
        return ops.unknown();
    };
    let wgmma = Wgmma::new(n, a, b, accumulator)?;
    if wgmma.k() != k {
        return ops.unknown();
    }
    let accumulators = vector(ops, 0, wgmma.accumulator_registers())?;
    let left = match ops.operand(1)? {
        Operand::Vector(_) => Left::Registers(vector(ops, 1, Wgmma::A_REGISTERS)?),
        _ => Left::Descriptor(ops.wide(1)?),
    };
    let right = ops.wide(2)?;
    let tail = tail(ops, matches!(left, Left::Registers(_)), a)?;
    Ok(Box::new(move |c, mask| {
        whole_warp(c, mask)?;
        issue(c, &wgmma, &accumulators, &left, right, &tail)?;
        Ok(Flow::Next)
    }))
}

/// `scale-d{, imm-scale-a, imm-scale-b{{, imm-trans-a}, imm-trans-b}}`: no scales for integers, no
/// transposition but of 16-bit operands, none of A in registers.
fn tail(ops: &mut Ops<'_, '_, '_, '_>, registers: bool, element: Element) -> Result<Tail, String> {
    let scale_d = match ops.operand(3)? {
        Operand::Int(n) => ScaleD::Always(*n != 0),
        _ => {
            let (p, negated) = ops.predicate(3)?;
            ScaleD::Predicate(p, negated)
        }
    };
    let transposes = match (element.bits(), registers) {
        (16, false) => 2,
        (16, true) => 1,
        _ => 0,
    };
    let scales = if matches!(element, Element::Float(_)) { 2 } else { 0 };
    ops.count(4 + scales + transposes)?;
    let mut values = Vec::new();
    for i in 4..4 + scales + transposes {
        values.push(immediate(ops.operand(i)?)? as i64);
    }
    let negate = |i: usize| match values.get(i).filter(|_| scales == 2) {
        None | Some(1) => Ok(false),
        Some(-1) => Ok(true),
        Some(other) => Err(format!("a scale of {other}, expected 1 or -1")),
    };
    let major = |i: Option<usize>| match i.and_then(|i| values.get(i)) {
        None | Some(0) => Ok(Major::K),
        Some(1) => Ok(Major::Mn),
        Some(other) => Err(format!("a transposition of {other}, expected 0 or 1")),
    };
    let trans_a = (transposes == 2).then_some(2);
    let trans_b = (transposes > 0).then_some(1 + transposes);
    Ok(Tail {
        scale_d,
        a: Take { negate: negate(0)?, major: major(trans_a)? },
        b: Take { negate: negate(1)?, major: major(trans_b)? },
    })
}

/// Shared memory through the async proxy; keeps what it read.
struct Reader<'a, 'b> {
    context: &'a mut Context<'b>,
    chunks: Vec<(usize, [u8; 16])>,
    fault: Option<Box<Fault>>,
}

impl SharedRead for Reader<'_, '_> {
    fn read(&mut self, address: u32, bytes: &mut [u8]) -> Result<(), String> {
        let place = (self.context.warp.block, address as usize);
        if let Err(fault) = self.context.read_async(place, bytes, 32) {
            self.fault = Some(fault);
            return Err(String::new());
        }
        let mut chunk = [0; 16];
        chunk[..bytes.len()].copy_from_slice(bytes);
        self.chunks.push((place.1, chunk));
        Ok(())
    }
}

impl Reader<'_, '_> {
    /// The fault of a read, or the misuse that the tensor function found.
    fn explain(&mut self, message: String) -> Box<Fault> {
        self.fault.take().unwrap_or_else(|| misuse(message))
    }
}

/// The value of a 64-bit register that all lanes agree on.
fn uniform(c: &Context<'_>, register: usize) -> Step<Descriptor> {
    let row = &c.warp.registers.wide[register];
    if c.warp.registers.known(Class::Wide, register) != ALL {
        return Err(Fault::new(Kind::Uninitialized, "a matrix descriptor that was never computed"));
    }
    if row.iter().any(|bits| *bits != row[0]) {
        return Err(misuse("lanes name different matrix descriptors".into()));
    }
    Descriptor::decode(row[0]).map_err(misuse)
}

impl ScaleD {
    /// Its value, which all lanes share.
    fn value(self, c: &Context<'_>) -> Step<bool> {
        let (p, negated) = match self {
            ScaleD::Always(value) => return Ok(value),
            ScaleD::Predicate(p, negated) => (p, negated),
        };
        let value = c.warp.registers.predicate[p];
        let value = if negated { !value } else { value };
        if c.warp.registers.known(Class::Predicate, p) != ALL || (value != 0 && value != ALL) {
            return Err(misuse("scale-d is undefined or differs between lanes".into()));
        }
        Ok(value == ALL)
    }
}

/// What the accumulators hold before a product: values, or the results of products under way.
fn before(c: &Context<'_>, accumulators: &[usize], scale_d: bool) -> Step<Vec<Row>> {
    let (registers, products) = (&c.warp.registers, &c.warp.products);
    products.check_fenced(registers, accumulators)?;
    for &register in accumulators {
        let known = registers.known(Class::Narrow, register);
        if products.in_flight(register) {
            products.untouched(registers, register)?;
        } else if scale_d && known != ALL {
            return Err(Fault::new(Kind::Uninitialized, "an accumulator that was never set"));
        }
    }
    Ok(accumulators.iter().map(|&register| registers.narrow[register]).collect())
}

/// A of this warp from its registers, and what they hold.
fn held(c: &Context<'_>, registers: &[usize]) -> Step<Vec<(usize, Row)>> {
    c.warp.products.check_fenced(&c.warp.registers, registers)?;
    let rows = rows(&c.warp.registers, registers)?;
    Ok(registers.iter().copied().zip(rows).collect())
}

fn issue(
    c: &mut Context<'_>,
    wgmma: &Wgmma,
    accumulators: &[usize],
    left: &Left,
    right: usize,
    tail: &Tail,
) -> Step<()> {
    let warp = c.warp.index as usize % c.launch.warps_per_block;
    if warp / 4 * 4 + 4 > c.launch.warps_per_block {
        return Err(misuse(format!("warp {warp} is in no complete warpgroup")));
    }
    if c.cluster.timed {
        // Neither values nor what they are made of: a product is its multiply-adds.
        c.counters.mma += 1;
        c.counters.mma_macs += wgmma.multiply_adds() / 4;
        accumulators.iter().for_each(|&r| c.warp.registers.set_narrow(r, &[0; 32], ALL, ALL));
        return Ok(());
    }
    let scale_d = tail.scale_d.value(c)?;
    let mut d = before(c, accumulators, scale_d)?;
    let (operands, descriptor) = match left {
        Left::Registers(registers) => (held(c, registers)?, None),
        Left::Descriptor(register) => (Vec::new(), Some(uniform(c, *register)?)),
    };
    let (right, numerics) = (uniform(c, right)?, c.cluster.numerics);
    let mut reader = Reader { context: c, chunks: Vec::new(), fault: None };
    let a = match descriptor {
        Some(descriptor) => wgmma.a_from_shared(&descriptor, tail.a, warp % 4, &mut reader),
        None => {
            let rows: Vec<Row> = operands.iter().map(|(_, row)| *row).collect();
            wgmma.a_from_registers(&rows, tail.a)
        }
    };
    let a = a.map_err(|message| reader.explain(message))?;
    let b = wgmma.b_from_shared(&right, tail.b, &mut reader);
    let b = b.map_err(|message| reader.explain(message))?;
    let chunks = reader.chunks;
    wgmma.accumulate(numerics, &a, &b, scale_d, &mut d).map_err(misuse)?;
    for (&register, row) in accumulators.iter().zip(&d) {
        c.warp.registers.narrow[register] = *row;
        c.warp.registers.defined[Class::Narrow as usize][register] = 0;
    }
    count_banks(c.counters, &a, tail.a.major);
    if warp.is_multiple_of(4) {
        // The group reads B once.
        count_banks(c.counters, &b, tail.b.major);
    }
    c.counters.mma += 1;
    c.counters.mma_macs += wgmma.multiply_adds() / 4;
    let (accumulators, block) = (accumulators.to_vec(), c.warp.block);
    c.warp.products.push(Product { accumulators, operands, chunks, block });
    Ok(())
}

/// Bank passes of an operand: eight chunks of neighboring rows, or of neighboring k, at a time.
fn count_banks(counters: &mut Counters, values: &Values, major: Major) {
    for block in values.chunks.chunks(16) {
        for half in 0..2 {
            let phase: Vec<(usize, u32)> = match major {
                Major::K => block.iter().skip(half).step_by(2).copied().enumerate().collect(),
                Major::Mn => block.iter().skip(8 * half).take(8).copied().enumerate().collect(),
            };
            let (total, ideal) = wavefronts(&phase, 16);
            counters.shared_wavefronts += total;
            counters.shared_wavefronts_ideal += ideal;
        }
    }
}
