//! `cp.async.bulk`: the copy engine, with and without tensor maps.
//!
//! Copies into shared memory land when no warp can go on, and signal their mbarrier then. Copies
//! out of it write global memory when their group is waited for.

use super::control::immediate;
use super::mbarrier::{defined, defined_wide};
use super::memory::{Address, specific};
use super::place::{Place, SharedAddress};
use super::{Decode, Execute, Ops};
use crate::machine::counters::Work;
use crate::machine::fault::{Fault, Kind, Step};
use crate::machine::pending::{BulkStore, Landing, Payload, Signal, Source};
use crate::machine::race::{Access, who};
use crate::machine::registers::lanes;
use crate::machine::{Context, Flow, PARAM_OFFSET};
use crate::tensor::reduce::Reduction;
use crate::tensor::tensor_map::{Piece, TensorElement, TensorMap};
use crate::text::ast::{Operand, Space};

pub(super) fn decode(ops: &mut Ops<'_, '_, '_, '_>) -> Decode {
    let reduce = ops.instruction.opcode[1] == "reduce";
    let skip = 1 + usize::from(reduce) + 2;
    let modifiers: Vec<String> = ops.instruction.opcode.iter().skip(skip).cloned().collect();
    let run = match modifiers.first().map(String::as_str) {
        Some("commit_group") => Box::new(|c: &mut Context<'_>, mask| {
            lanes(mask).for_each(|lane| c.warp.bulk.entry(lane).or_default().commit());
            Ok(Flow::Next)
        }),
        Some("wait_group") => wait(ops)?,
        Some("prefetch") => Box::new(|_: &mut Context<'_>, _| Ok(Flow::Next)) as Execute,
        _ => copy(ops, &modifiers, reduce)?,
    };
    Ok((Work::Memory, run))
}

fn wait(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    ops.count(1)?;
    let (keep, read) = (immediate(ops.operand(0)?)? as usize, ops.has("read"));
    Ok(Box::new(move |c, mask| {
        for lane in lanes(mask) {
            if let Some(groups) = c.warp.bulk.get_mut(&lane) {
                groups.wait(keep, read, c.cluster, c.memory)?;
            }
        }
        Ok(Flow::Next)
    }))
}

/// The side of a copy that is not the executing block's shared memory.
#[derive(Clone)]
enum Far {
    /// A box of a tensor: map, coordinates.
    Tensor(Address, Vec<usize>),
    /// Bytes at an address of global memory.
    Global(Address),
    /// Bytes in the shared memory of the cluster.
    Shared(SharedAddress),
}

/// A decoded copy.
struct Bulk {
    far: Far,
    near: SharedAddress,
    /// Bytes, if there is no tensor map to tell.
    size: Option<usize>,
    /// The mbarrier that a copy into shared memory signals.
    barrier: Option<SharedAddress>,
    /// Blocks of the cluster that a load goes to.
    multicast: Option<usize>,
    /// What a store does instead of overwriting; the type is the map's if it has none.
    reduction: Option<(Reduction, Option<TensorElement>)>,
    line: u32,
}

/// What the modifiers of a copy say.
#[derive(Default)]
struct Form {
    tensor: Option<usize>,
    spaces: Vec<String>,
    signals: bool,
    grouped: bool,
    multicast: bool,
    hint: bool,
    reduction: Option<Reduction>,
    element: Option<TensorElement>,
}

fn form(ops: &Ops<'_, '_, '_, '_>, modifiers: &[String]) -> Result<Form, String> {
    let mut form = Form::default();
    for modifier in modifiers {
        match modifier.as_str() {
            "tensor" | "tile" | "noftz" => {}
            "1d" | "2d" | "3d" | "4d" | "5d" => form.tensor = modifier[..1].parse().ok(),
            "global" | "shared::cta" | "shared::cluster" => form.spaces.push(modifier.clone()),
            "mbarrier::complete_tx::bytes" => form.signals = true,
            "bulk_group" => form.grouped = true,
            "multicast::cluster" => form.multicast = true,
            "L2::cache_hint" => form.hint = true,
            name => match (Reduction::from_ptx(name), element(name)) {
                (Some(reduction), _) => form.reduction = Some(reduction),
                (None, Some(element)) => form.element = Some(element),
                _ => return Err(format!("bulk copy modifier `.{name}` is not supported")),
            },
        }
    }
    if form.signals == form.grouped || form.spaces.len() != 2 {
        return ops.unknown();
    }
    Ok(form)
}

/// Element type of a reduction without a tensor map.
fn element(name: &str) -> Option<TensorElement> {
    Some(match name {
        "u32" | "b32" => TensorElement::U32,
        "s32" => TensorElement::S32,
        "u64" | "b64" => TensorElement::U64,
        "s64" => TensorElement::S64,
        "f16" => TensorElement::F16,
        "bf16" => TensorElement::Bf16,
        "f32" => TensorElement::F32,
        "f64" => TensorElement::F64,
        _ => return None,
    })
}

fn copy(
    ops: &mut Ops<'_, '_, '_, '_>,
    modifiers: &[String],
    reduce: bool,
) -> Result<Execute, String> {
    let form = form(ops, modifiers)?;
    if reduce != form.reduction.is_some()
        || (form.element.is_some() && !reduce)
        || (reduce && form.signals)
        || (reduce && form.element.is_some() == form.tensor.is_some())
    {
        return ops.unknown();
    }
    if let (Some(reduction), Some(element)) = (form.reduction, form.element) {
        reduction.check(element)?;
    }
    let (bulk, load) = (bulk(ops, &form)?, form.signals);
    Ok(Box::new(move |c, mask| {
        let near = bulk.near.places(c, mask)?;
        for lane in lanes(mask) {
            if load {
                start_load(c, &bulk, near[lane], lane)?
            } else {
                start_store(c, &bulk, near[lane], lane)?
            }
        }
        Ok(Flow::Next)
    }))
}

/// The operands: destination, source{, size}{, mbarrier}{, block mask}{, cache policy}.
fn bulk(ops: &mut Ops<'_, '_, '_, '_>, form: &Form) -> Result<Bulk, String> {
    let operands = ops.instruction.operands.clone();
    let sized = usize::from(form.tensor.is_none());
    let wanted =
        2 + sized + [form.signals, form.multicast, form.hint].iter().filter(|b| **b).count();
    ops.count(wanted)?;
    let (to, from) = (form.spaces[0].as_str(), form.spaces[1].as_str());
    let (near, far) = match (to, from) {
        ("shared::cluster" | "shared::cta", "global") if form.signals => (0, 1),
        ("global", "shared::cta") if form.grouped => (1, 0),
        // Towards another block, from here: the near side is the destination all the same.
        ("shared::cluster", "shared::cta")
            if form.signals && form.tensor.is_none() && !form.multicast =>
        {
            (0, 1)
        }
        _ => return ops.unknown(),
    };
    let far = match (&operands[far], form.tensor) {
        (Operand::Tensor(map, coordinates), Some(rank)) if coordinates.len() == rank => {
            let mut registers = Vec::new();
            for coordinate in coordinates {
                registers.push(ops.narrow_of(coordinate)?);
            }
            Far::Tensor(ops.address_of(map)?.0, registers)
        }
        (operand, None) if from == "shared::cta" && to != "global" => {
            Far::Shared(SharedAddress::of(ops, operand)?)
        }
        (operand, None) => Far::Global(ops.address_of(operand)?.0),
        _ => return ops.unknown(),
    };
    let near = SharedAddress::of(ops, &operands[near])?;
    let size = if sized == 1 { Some(ops.narrow(2)?) } else { None };
    let barrier =
        if form.signals { Some(SharedAddress::of(ops, &operands[2 + sized])?) } else { None };
    let multicast = if form.multicast { Some(ops.narrow(3 + sized)?) } else { None };
    let reduction = form.reduction.map(|reduction| (reduction, form.element));
    Ok(Bulk { far, near, size, barrier, multicast, reduction, line: ops.instruction.line })
}

fn misuse(message: String) -> Box<Fault> {
    Fault::new(Kind::Misuse, message)
}

/// The tensor map at an address, which may be a parameter, a constant or global memory.
fn tensor_map(c: &mut Context<'_>, address: &Address, lane: usize) -> Step<TensorMap> {
    let address = address.resolve(c, 1 << lane)?[lane];
    let (space, at) = specific(address);
    if !at.is_multiple_of(64) {
        return Err(Fault::new(
            Kind::Misaligned,
            format!("a tensor map at {address:#x}, expected a multiple of 64"),
        ));
    }
    let bytes = match space {
        Space::Const if at < PARAM_OFFSET => c.launch.constants.get(at as usize..at as usize + 128),
        Space::Const => {
            let at = (at - PARAM_OFFSET) as usize;
            c.launch.params.get(at..at + 128)
        }
        Space::Global => {
            let (slot, offset) = c.memory.locate(at, 128)?;
            Some(&c.memory.buffer(slot).data[offset..offset + 128])
        }
        _ => None,
    };
    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
    let bytes = bytes.ok_or_else(|| misuse(format!("no tensor map can be at {address:#x}")))?;
    TensorMap::decode(bytes).map_err(misuse)
}

/// The pieces of a copy, in the near side's shared memory.
fn pieces(
    c: &mut Context<'_>,
    bulk: &Bulk,
    near: Place,
    lane: usize,
) -> Step<(Vec<Piece>, Option<TensorElement>)> {
    match &bulk.far {
        Far::Tensor(map, coordinates) => {
            let map = tensor_map(c, map, lane)?;
            let mut at = Vec::new();
            for &register in coordinates {
                at.push(defined(&c.warp.registers, register, lane)? as i32);
            }
            let pieces = map.pieces(near.1 as u32, &at).map_err(misuse)?;
            Ok((pieces, Some(map.element())))
        }
        Far::Global(address) => {
            let global = address.resolve(c, 1 << lane)?[lane];
            let bytes = size(c, bulk, near, lane)?;
            if !global.is_multiple_of(16) {
                return Err(Fault::new(
                    Kind::Misaligned,
                    format!("a bulk copy at global address {global:#x}"),
                ));
            }
            Ok((
                vec![Piece { shared: near.1 as u32, global: Some(specific(global).1), bytes }],
                None,
            ))
        }
        Far::Shared(_) => {
            let bytes = size(c, bulk, near, lane)?;
            Ok((vec![Piece { shared: near.1 as u32, global: None, bytes }], None))
        }
    }
}

/// The size operand, which like the addresses is a multiple of 16.
fn size(c: &Context<'_>, bulk: &Bulk, near: Place, lane: usize) -> Step<u32> {
    let bytes = bulk.size.map_or(Ok(0), |size| defined(&c.warp.registers, size, lane))?;
    if !bytes.is_multiple_of(16) || !near.1.is_multiple_of(16) {
        let message = format!("a bulk copy of {bytes} bytes at shared offset {}", near.1);
        return Err(Fault::new(Kind::Misaligned, message));
    }
    Ok(bytes)
}

fn start_load(c: &mut Context<'_>, bulk: &Bulk, near: Place, lane: usize) -> Step<()> {
    let (pieces, _) = pieces(c, bulk, near, lane)?;
    let barrier = match &bulk.barrier {
        Some(barrier) => barrier.places(c, 1 << lane)?[lane],
        None => return Err(misuse("a bulk load without an mbarrier".into())),
    };
    if barrier.0 != near.0 {
        return Err(misuse(format!(
            "a copy to block {} of the cluster signals an mbarrier of block {}",
            near.0, barrier.0
        )));
    }
    let blocks = match bulk.multicast {
        None => vec![near.0],
        Some(mask) => {
            let mask = defined(&c.warp.registers, mask, lane)? & 0xffff;
            if mask >> c.cluster.shared.len() != 0 {
                return Err(misuse(format!(
                    "multicast to blocks {mask:#x} of a cluster of {}",
                    c.cluster.shared.len()
                )));
            }
            lanes(mask).collect()
        }
    };
    let sources = match &bulk.far {
        Far::Shared(address) => Some(read_source(c, address, pieces[0].bytes, lane)?),
        _ => {
            check_global(c, &pieces, Side::Read)?;
            None
        }
    };
    for block in blocks {
        count_banks(c, &pieces);
        c.reach_barrier_async((block, barrier.1))?;
        let mut landing = Landing {
            rank: block,
            pieces: Vec::new(),
            signal: Signal::Bytes((block, barrier.1)),
            line: bulk.line,
        };
        for piece in &pieces {
            let (at, bytes) = (piece.shared as usize, piece.bytes as usize);
            c.begin_async_write((block, at), bytes, lane as u8)?;
            let from = match (piece.global, &sources) {
                (_, Some(source)) => Payload::Shared(source.clone()),
                (Some(address), None) => Payload::Global(address),
                (None, None) => Payload::Zero,
            };
            landing.pieces.push((at, bytes, from));
        }
        c.note_landing((block, barrier.1));
        c.cluster.late.push_back(Box::new(move |cluster, memory, _| landing.land(cluster, memory)));
    }
    Ok(())
}

/// The source of a copy between blocks.
fn read_source(
    c: &mut Context<'_>,
    address: &SharedAddress,
    bytes: u32,
    lane: usize,
) -> Step<Source> {
    let place = address.places(c, 1 << lane)?[lane];
    if !place.1.is_multiple_of(16) {
        return Err(Fault::new(
            Kind::Misaligned,
            format!("a bulk copy from shared offset {}", place.1),
        ));
    }
    let mut data = vec![0; bytes as usize];
    c.read_async(place, &mut data, lane as u8)?;
    Ok(Source { place, bytes: data })
}

/// Passes that the copy engine takes over the banks: 128 bytes each.
fn count_banks(c: &mut Context<'_>, pieces: &[Piece]) {
    let bytes: u64 = pieces.iter().map(|piece| u64::from(piece.bytes)).sum();
    c.counters.shared_wavefronts += bytes.div_ceil(128);
    c.counters.shared_wavefronts_ideal += bytes.div_ceil(128);
}

/// What a copy does to global memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Read,
    Written,
    /// Read and written in one step: reductions do not race with each other.
    Reduced,
}

/// Bounds, initialization, races and traffic of the global side.
fn check_global(c: &mut Context<'_>, pieces: &[Piece], side: Side) -> Step<()> {
    let store = side != Side::Read;
    for piece in pieces {
        let (Some(address), bytes) = (piece.global, piece.bytes as usize) else { continue };
        let (slot, offset) = c.memory.locate(address, bytes)?;
        let who = who(c.warp, c.cluster.index, &c.cluster.acquired, c.launch);
        let access = match side {
            Side::Read => Access::Read,
            Side::Written => Access::Write,
            Side::Reduced => Access::StrongWrite,
        };
        c.memory.mark((slot, offset), bytes, (&who, 32), access)?;
        if side != Side::Written {
            let buffer = c.memory.buffer(slot);
            if let Some(bad) = buffer.first_unwritten(offset, bytes) {
                let message = format!(
                    "byte {bad} of `{}` is read by a bulk copy and was never written",
                    buffer.name
                );
                return Err(Fault::new(Kind::Uninitialized, message));
            }
        }
        // A piece can be longer than the sectors one call takes.
        for part in (0..bytes).step_by(1024) {
            let part_bytes = (bytes - part).min(1024);
            let sectors =
                c.memory.sectors(slot, &[(offset + part) as u64], part_bytes as u64, store);
            if store {
                c.counters.global_store_sectors += sectors;
                c.counters.global_store_bytes += part_bytes as u64;
            } else {
                c.counters.global_load_sectors += sectors;
                c.counters.global_load_bytes += part_bytes as u64;
            }
        }
    }
    Ok(())
}

/// `st.async.shared::cluster.mbarrier::complete_tx::bytes{.v2, .v4}.b32 [d], a, [mbar]`: a store to
/// the cluster's shared memory that lands later and counts its bytes at an mbarrier there.
pub(super) fn store_async(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    ops.only(&["async", "weak", "shared::cluster", "mbarrier::complete_tx::bytes", "v2", "v4"])?;
    if !ops.has("shared::cluster") || !ops.has("mbarrier::complete_tx::bytes") {
        return ops.unknown();
    }
    ops.count(3)?;
    let wide = match ops.ty() {
        "b32" | "u32" | "s32" | "f32" => false,
        "b64" | "u64" | "s64" | "f64" => true,
        _ => return ops.unknown(),
    };
    let operand = ops.operand(1)?.clone();
    let list = if let Operand::Vector(list) = operand { list } else { vec![operand] };
    if list.len() != if ops.has("v4") { 4 } else { 1 + usize::from(ops.has("v2")) } {
        return Err(format!("a vector of {} values", list.len()));
    }
    let mut values = Vec::new();
    for value in &list {
        values.push(if wide { ops.wide_of(value)? } else { ops.narrow_of(value)? });
    }
    let (address, barrier) = (SharedAddress::new(ops, 0)?, SharedAddress::new(ops, 2)?);
    let line = ops.instruction.line;
    Ok(Box::new(move |c, mask| {
        let (places, barriers) = (address.places(c, mask)?, barrier.places(c, mask)?);
        for lane in lanes(mask) {
            let mut data = Vec::new();
            for &value in &values {
                if wide {
                    data.extend(defined_wide(&c.warp.registers, value, lane)?.to_le_bytes());
                } else {
                    data.extend(defined(&c.warp.registers, value, lane)?.to_le_bytes());
                }
            }
            let ((rank, at), bytes) = (places[lane], data.len());
            if !at.is_multiple_of(bytes) {
                let message = format!("st.async of {bytes} bytes at shared offset {at}");
                return Err(Fault::new(Kind::Misaligned, message));
            }
            if barriers[lane].0 != rank {
                return Err(misuse("st.async to one block with an mbarrier of another".into()));
            }
            c.reach_barrier(barriers[lane])?;
            c.begin_late_write((rank, at), bytes, lane as u8)?;
            let pieces = vec![(at, bytes, Payload::Data(data))];
            c.note_landing(barriers[lane]);
            let landing = Landing { rank, pieces, signal: Signal::Bytes(barriers[lane]), line };
            c.cluster
                .late
                .push_back(Box::new(move |cluster, memory, _| landing.land(cluster, memory)));
        }
        Ok(Flow::Next)
    }))
}

fn start_store(c: &mut Context<'_>, bulk: &Bulk, near: Place, lane: usize) -> Step<()> {
    let (pieces, map_element) = pieces(c, bulk, near, lane)?;
    if near.0 != c.warp.block {
        return Err(misuse("a bulk store from the shared memory of another block".into()));
    }
    let reduction = match bulk.reduction {
        None => None,
        Some((reduction, element)) => {
            let element = element.or(map_element);
            let element = element.ok_or_else(|| misuse("a reduction without a type".into()))?;
            reduction.check(element).map_err(misuse)?;
            Some((reduction, element))
        }
    };
    check_global(c, &pieces, if reduction.is_some() { Side::Reduced } else { Side::Written })?;
    count_banks(c, &pieces);
    let mut store = BulkStore { sources: Vec::new(), writes: Vec::new(), reduction, read: false };
    for piece in &pieces {
        let place = (near.0, piece.shared as usize);
        let mut bytes = vec![0; piece.bytes as usize];
        c.read_async(place, &mut bytes, lane as u8)?;
        if let Some(address) = piece.global {
            store.writes.push((store.sources.len(), address));
        }
        store.sources.push(Source { place, bytes });
    }
    c.warp.bulk.entry(lane).or_default().open.push(store);
    Ok(())
}
