//! Argument structs that grow: how one is read, filled with defaults, and found by the op's name.

use std::ffi::{c_char, c_void};

use gradus::device::Device;
use gradus::{Error, Result};

use crate::names::of_header;
use crate::status::{given_mut, guard, text};
use crate::tensor::Tensors;
use crate::{handle, sys};

/// More than any struct will ever have: a larger `struct_size` is a mistake, not a newer header.
const LARGEST: usize = 1 << 16;

/// The struct of an op.
///
/// # Safety
/// `repr(C)`, valid as all zeros, and its first field is `struct_size: usize`.
pub(crate) unsafe trait Args: Copy {
    /// The op's name.
    const NAME: &'static str;
}

/// What an op does with its struct.
pub(crate) trait Op: Args {
    /// Sets fields whose default is not zero.
    fn defaults(&mut self) {}
    /// Validates and computes.
    fn run(&self, tensors: &Tensors<'_>) -> Result<()>;
}

/// The struct with its defaults.
fn default_args<A: Op>() -> A {
    // SAFETY: the trait asks that zeros are valid.
    let mut args: A = unsafe { std::mem::zeroed() };
    args.defaults();
    args
}

fn check_size<A: Op>(size: usize) -> Result<()> {
    if (size_of::<usize>()..=LARGEST).contains(&size) {
        return Ok(());
    }
    let expected = format!("sizeof(gradus_{}_args), {} here", A::NAME, size_of::<A>());
    Err(Error::invalid(A::NAME, "struct_size", size, expected))
}

/// The caller's struct: what an older header lacks has its default, what a newer one adds must be 0.
fn load<A: Op>(args: *const c_void) -> Result<A> {
    let start: &usize = crate::status::given(A::NAME, "args", args as *const usize)?;
    let size = *start;
    check_size::<A>(size)?;
    let mut own = default_args::<A>();
    let known = size.min(size_of::<A>());
    // SAFETY: the caller's struct has `size` bytes, ours at least `known`.
    unsafe {
        let bytes = args as *const u8;
        std::ptr::copy_nonoverlapping(bytes, &raw mut own as *mut u8, known);
        let tail = std::slice::from_raw_parts(bytes.add(known), size - known);
        if tail.iter().any(|&byte| byte != 0) {
            let got = format!("{size} with fields that this library does not know set");
            let expected = format!("at most {}, or zeros behind it", size_of::<A>());
            return Err(Error::invalid(A::NAME, "struct_size", got, expected));
        }
    }
    Ok(own)
}

fn store<A: Op>(args: *mut c_void, size: usize) -> Result<()> {
    check_size::<A>(size)?;
    let own = default_args::<A>();
    let known = size.min(size_of::<A>());
    // SAFETY: the caller's struct has `size` bytes.
    unsafe {
        let bytes = args as *mut u8;
        std::ptr::write_bytes(bytes, 0, size);
        std::ptr::copy_nonoverlapping(&raw const own as *const u8, bytes, known);
        (args as *mut usize).write(size);
    }
    Ok(())
}

fn run<A: Op>(args: &A, device: &Device, dry: bool) -> Result<()> {
    args.run(&Tensors::new(A::NAME, device, dry)).map_err(of_header)
}

/// The body of an op's export.
pub(crate) fn call<A: Op>(ctx: u64, stream: *mut c_void, args: *const A) -> sys::gradus_status {
    guard(|| {
        let context = handle::get(ctx)?;
        let args = load::<A>(args as *const c_void)?;
        let device = context.device(A::NAME, stream)?;
        Ok(run(&args, &device, false)?)
    })
}

/// What can be done with an op by its name.
pub(crate) struct Entry {
    pub name: &'static str,
    pub size: usize,
    init: fn(*mut c_void, usize) -> Result<()>,
    run: fn(*const c_void, &Device) -> Result<()>,
}

impl Entry {
    pub const fn of<A: Op>() -> Entry {
        Entry {
            name: A::NAME,
            size: size_of::<A>(),
            init: store::<A>,
            run: |args, device| run(&load::<A>(args)?, device, true),
        }
    }
}

fn entry(function: &'static str, name: *const c_char) -> Result<&'static Entry> {
    let name = text(function, "name", name)?;
    crate::ops::TABLE.iter().find(|entry| entry.name == name).ok_or_else(|| {
        Error::invalid(
            function,
            "name",
            format!("`{name}`"),
            "an op of gradus.h without its prefix",
        )
    })
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gradus_init(
    name: *const c_char,
    args: *mut c_void,
    size: usize,
) -> sys::gradus_status {
    guard(|| {
        let entry = entry("gradus_init", name)?;
        given_mut("gradus_init", "args", args as *mut usize)?;
        Ok((entry.init)(args, size)?)
    })
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gradus_sizeof(name: *const c_char) -> usize {
    let mut size = 0;
    guard(|| {
        let wanted = text("gradus_sizeof", "name", name)?;
        let ops = crate::ops::TABLE.iter().map(|entry| (entry.name, entry.size));
        let all = ops.chain(crate::ops::STRUCTS.iter().copied());
        size = all.into_iter().find(|(name, _)| *name == wanted).map_or(0, |(_, size)| size);
        Ok(())
    });
    size
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gradus_workspace_size(
    ctx: u64,
    name: *const c_char,
    args: *const c_void,
    bytes: *mut usize,
) -> sys::gradus_status {
    guard(|| {
        let context = handle::get(ctx)?;
        let bytes = given_mut("gradus_workspace_size", "bytes", bytes)?;
        let entry = entry("gradus_workspace_size", name)?;
        let Some((device, driver)) = context.dry()? else {
            // The arguments are checked all the same, but on the CPU a run would compute.
            *bytes = 0;
            return Ok(());
        };
        match (entry.run)(args, &device) {
            // A dry device's results are zeros, which an op may take for a finding.
            Ok(()) | Err(Error::NonFinite { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        *bytes = driver.usage().peak as usize;
        Ok(())
    })
}
