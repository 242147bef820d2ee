//! From an op's checked arguments to its CPU or GPU side, for the dtype at hand.
//!
//! Ops are generic over their dtype, and Rust compiles a generic function again in every crate and every test
//! that calls it. [`on_device`] ends that: behind the checks, an op goes through one plain function per dtype,
//! which is compiled here, once.

use crate::error::Result;

/// What the CPU side of an op returns: nothing where it cannot fail.
pub(crate) trait Outcome {
    fn result(self) -> Result<()>;
}

impl Outcome for () {
    fn result(self) -> Result<()> {
        Ok(())
    }
}

impl Outcome for Result<()> {
    fn result(self) -> Result<()> {
        self
    }
}

/// `args`, an argument struct of elements `T`, as the same struct of elements `U`, which is the same type.
///
/// # Safety
/// `A` is some `Args<'_, T>` and `B` is `Args<'_, U>` with the same lifetime.
#[cfg(not(test))]
pub(crate) unsafe fn of_type<T: 'static, U: 'static, A, B>(args: A) -> B {
    assert!(
        std::any::TypeId::of::<T>() == std::any::TypeId::of::<U>(),
        "a dtype belongs to one type"
    );
    let args = std::mem::ManuallyDrop::new(args);
    // SAFETY: T is U, so A is B; `args` is not dropped, its copy is.
    unsafe { std::mem::transmute_copy(&args) }
}

/// `on_device!(device, check, args: Lerp<T: Float> => cpu::lerp, gpu::lerp)`: calls the CPU side, where memory that
/// cannot be had becomes `OutOfMemory`, or the GPU side.
macro_rules! on_device {
    ($device:expr, $check:expr, $args:ident: $Args:ident<$T:ident: $Bound:ident> => $cpu:path, $gpu:path) => {{
        use $crate::ops::support::dispatch::Outcome;
        fn run<$T: $Bound>(
            device: &$crate::Device,
            op: &'static str,
            args: $Args<'_, $T>,
        ) -> Result<()> {
            match device {
                $crate::Device::Cpu => $crate::alloc::or_out_of_memory(op, || $cpu(args))?.result(),
                $crate::Device::Gpu(gpu) => $gpu(gpu, args),
            }
        }
        $crate::ops::support::dispatch::per_dtype!($Bound, $T, $Args, run($device, $check.0, $args))
    }};
}

/// The call `run::<T>(…)` itself: the library's own unit tests need few dtypes of few ops, and compiling all of them
/// once more would take longer than all that they do.
#[cfg(test)]
macro_rules! per_dtype {
    ($Bound:ident, $T:ident, $Args:ident, $run:ident($device:expr, $op:expr, $args:ident)) => {
        $run::<$T>($device, $op, $args)
    };
}

/// The call `run::<T>(…)` through a function that is not generic.
#[cfg(not(test))]
macro_rules! per_dtype {
    (Float, $($rest:tt)*) => {
        $crate::ops::support::dispatch::per_dtype!(
            [F16 => half::f16, Bf16 => half::bf16, F32 => f32, F64 => f64], [U8, I32, I64], $($rest)*)
    };
    (Real, $($rest:tt)*) => {
        $crate::ops::support::dispatch::per_dtype!(
            [F32 => f32, F64 => f64], [U8, I32, I64, F16, Bf16], $($rest)*)
    };
    ([$($tag:ident => $type:ty),*], [$($other:ident),*], $T:ident, $Args:ident,
     $run:ident($device:expr, $op:expr, $args:ident)) => {
        match <$T as $crate::dtype::Element>::DTYPE {
            $($crate::DType::$tag => {
                #[inline(never)]
                fn once(device: &$crate::Device, op: &'static str, args: $Args<'_, $type>) -> Result<()> {
                    $run::<$type>(device, op, args)
                }
                // SAFETY: both are `$Args`, of `$T` and of `$type`.
                once($device, $op, unsafe {
                    $crate::ops::support::dispatch::of_type::<$T, $type, _, _>($args)
                })
            })*
            $($crate::DType::$other)|* => unreachable!("the op is not for this dtype"),
        }
    };
}

pub(crate) use {on_device, per_dtype};
