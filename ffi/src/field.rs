//! From the fields of the header's structs to the arguments of Rust ops. The type of an argument says how its
//! field is read, so that most ops only list their fields: see [`impl_op`].

use gradus::dtype::{DType, Element, Float};
use gradus::ops::*;
use gradus::quant::{Nf4View, QuantType};
use gradus::{Result, View, ViewMut};

use crate::quant::{adapter, nf4};
use crate::sys::*;
use crate::tensor::Tensors;

/// An argument of a Rust op that is made from a field of type `C`. Errors name the field.
pub(crate) trait Field<'a, C>: Sized {
    fn get(t: &Tensors<'a>, name: &str, field: &C) -> Result<Self>;
}

impl<'a, T: Element> Field<'a, gradus_tensor> for View<'a, T> {
    fn get(t: &Tensors<'a>, name: &str, field: &gradus_tensor) -> Result<Self> {
        t.read(name, field)
    }
}

impl<'a, T: Element> Field<'a, gradus_tensor> for ViewMut<'a, T> {
    fn get(t: &Tensors<'a>, name: &str, field: &gradus_tensor) -> Result<Self> {
        t.write(name, field)
    }
}

impl<'a, T: Element> Field<'a, gradus_tensor> for Option<View<'a, T>> {
    fn get(t: &Tensors<'a>, name: &str, field: &gradus_tensor) -> Result<Self> {
        t.opt_read(name, field)
    }
}

impl<'a, T: Element> Field<'a, gradus_tensor> for Option<ViewMut<'a, T>> {
    fn get(t: &Tensors<'a>, name: &str, field: &gradus_tensor) -> Result<Self> {
        t.opt_write(name, field)
    }
}

impl<'a> Field<'a, *const gradus_nf4> for Nf4View<'a> {
    fn get(t: &Tensors<'a>, name: &str, field: &*const gradus_nf4) -> Result<Self> {
        nf4(t, name, t.given(name, *field)?)
    }
}

impl<'a, T: Float> Field<'a, *const gradus_lora> for Lora<'a, T> {
    fn get(t: &Tensors<'a>, name: &str, field: &*const gradus_lora) -> Result<Self> {
        adapter(t, name, t.given(name, *field)?)
    }
}

/// Numbers that the op itself checks.
macro_rules! numbers {
    ($($number:ty),*) => {
        $(impl Field<'_, $number> for $number {
            fn get(_: &Tensors<'_>, _: &str, field: &$number) -> Result<Self> {
                Ok(*field)
            }
        })*
    };
}
numbers!(f64, i32, i64);

impl Field<'_, i32> for bool {
    fn get(t: &Tensors<'_>, name: &str, field: &i32) -> Result<Self> {
        t.flag(name, *field)
    }
}

impl Field<'_, i64> for usize {
    fn get(t: &Tensors<'_>, name: &str, field: &i64) -> Result<Self> {
        t.size(name, *field)
    }
}

impl Field<'_, gradus_logit_transform> for LogitTransform {
    fn get(_: &Tensors<'_>, _: &str, field: &gradus_logit_transform) -> Result<Self> {
        let gradus_logit_transform { temperature, scale, softcap } = *field;
        Ok(LogitTransform { temperature, scale, softcap })
    }
}

/// Enums of the header and of Rust whose values mean the same. Both `match`es must be complete, so that a value that
/// either side adds does not compile before it has a meaning on the other.
macro_rules! enumerations {
    ($($c:ident = $rust:ident { $($number:ident = $value:ident),* $(,)? })*) => {
        $(
            impl From<$c> for $rust {
                fn from(number: $c) -> $rust {
                    match number { $($c::$number => $rust::$value),* }
                }
            }

            impl From<$rust> for $c {
                fn from(value: $rust) -> $c {
                    match value { $($rust::$value => $c::$number),* }
                }
            }

            impl Field<'_, i32> for $rust {
                fn get(t: &Tensors<'_>, name: &str, field: &i32) -> Result<Self> {
                    t.enumerator::<$c>(name, *field).map($rust::from)
                }
            }
        )*
    };
}

enumerations! {
    gradus_dtype = DType {
        GRADUS_U8 = U8,
        GRADUS_I32 = I32,
        GRADUS_I64 = I64,
        GRADUS_F16 = F16,
        GRADUS_BF16 = Bf16,
        GRADUS_F32 = F32,
        GRADUS_F64 = F64,
    }
    gradus_quant_type = QuantType { GRADUS_NF4 = Nf4, GRADUS_FP4 = Fp4 }
    gradus_ratio = RatioLevel {
        GRADUS_RATIO_TOKEN = Token,
        GRADUS_RATIO_SEQUENCE_MEAN = SequenceMean,
        GRADUS_RATIO_SEQUENCE_MEAN_TOKEN = SequenceMeanToken,
        GRADUS_RATIO_SEQUENCE_SUM = SequenceSum,
    }
    gradus_denominator = Denominator {
        GRADUS_DENOMINATOR_OLD = Old,
        GRADUS_DENOMINATOR_SAMPLER = Sampler,
    }
    gradus_center = ClipCenter {
        GRADUS_CENTER_ONE = One,
        GRADUS_CENTER_OLD_OVER_SAMPLER = OldOverSampler,
    }
    gradus_kl_estimator = KlEstimator {
        GRADUS_K1 = K1,
        GRADUS_K2 = K2,
        GRADUS_K3 = K3,
        GRADUS_KL_ABS = Abs,
    }
    gradus_kl_estimator = RewardKl {
        GRADUS_K1 = K1,
        GRADUS_K2 = K2,
        GRADUS_K3 = K3,
        GRADUS_KL_ABS = Abs,
    }
    gradus_kl_gradient = KlGradient {
        GRADUS_KL_GRADIENT_SAME = Same,
        GRADUS_KL_GRADIENT_K2 = K2,
        GRADUS_KL_GRADIENT_NONE = None,
    }
    gradus_kl_weight = KlWeight {
        GRADUS_KL_WEIGHT_ONE = One,
        GRADUS_KL_WEIGHT_RATIO = Ratio,
        GRADUS_KL_WEIGHT_RATIO_DETACHED = RatioDetached,
    }
    gradus_baseline = GroupBaseline {
        GRADUS_BASELINE_NONE = None,
        GRADUS_BASELINE_MEAN = Mean,
        GRADUS_BASELINE_LEAVE_ONE_OUT = LeaveOneOut,
        GRADUS_BASELINE_LENGTH_WEIGHTED = LengthWeighted,
        GRADUS_BASELINE_MAX2 = Max2,
    }
    gradus_scale = GroupScale {
        GRADUS_SCALE_NONE = None,
        GRADUS_SCALE_GROUP_STD = GroupStd,
        GRADUS_SCALE_BATCH_STD = BatchStd,
        GRADUS_SCALE_LOO_STD = LooStd,
        GRADUS_SCALE_NONZERO_SHARE = NonzeroShare,
    }
    gradus_eps_form = EpsForm {
        GRADUS_ADD_TO_STD = AddToStd,
        GRADUS_ADD_TO_VARIANCE = AddToVariance,
        GRADUS_FLOOR_VARIANCE = FloorVariance,
    }
    gradus_on_single = OnSingle { GRADUS_SINGLE_ZERO = Zero, GRADUS_SINGLE_RAW = Raw }
    gradus_bound = OffPolicyBound {
        GRADUS_TRUNCATE = Truncate,
        GRADUS_MASK = Mask,
        GRADUS_SEQUENCE_MASK = SequenceMask,
    }
    gradus_level = RejectLevel {
        GRADUS_LEVEL_TOKEN = Token,
        GRADUS_LEVEL_SEQUENCE_SUM = SequenceSum,
        GRADUS_LEVEL_SEQUENCE_MEAN = SequenceMean,
        GRADUS_LEVEL_SEQUENCE_MAX = SequenceMax,
    }
    gradus_reduction = SeqReduction {
        GRADUS_SUM = Sum,
        GRADUS_MEAN = Mean,
        GRADUS_MAX = Max,
        GRADUS_MIN = Min,
    }
    gradus_quantile_method = QuantileMethod {
        GRADUS_LINEAR = Linear,
        GRADUS_LOWER = Lower,
        GRADUS_HIGHER = Higher,
    }
    gradus_decay = DecayOrder { GRADUS_DECAY_BEFORE = Before, GRADUS_DECAY_AFTER = After }
}

/// Runs `$body` with `$T` as the dtype of a tensor: any float, or f32 and f64 for `real`.
macro_rules! for_dtype {
    (float $t:ident, $name:expr, $tensor:expr, $T:ident, $body:expr) => {
        match $t.dtype($name, $tensor)? {
            gradus::DType::F32 => {
                type $T = f32;
                $body
            }
            gradus::DType::Bf16 => {
                type $T = gradus::bf16;
                $body
            }
            gradus::DType::F16 => {
                type $T = gradus::f16;
                $body
            }
            gradus::DType::F64 => {
                type $T = f64;
                $body
            }
            other => {
                let name = format!("{}.dtype", $name);
                Err($t.invalid(&name, other.name(), "f32, bf16, f16 or f64"))
            }
        }
    };
    (real $t:ident, $name:expr, $tensor:expr, $T:ident, $body:expr) => {
        match $t.dtype($name, $tensor)? {
            gradus::DType::F32 => {
                type $T = f32;
                $body
            }
            gradus::DType::F64 => {
                type $T = f64;
                $body
            }
            other => Err($t.invalid(&format!("{}.dtype", $name), other.name(), "f32 or f64")),
        }
    };
}

/// Calls an op with arguments from the fields of `$c` that have their names, or from what is given for them.
macro_rules! call {
    ($c:ident, $t:ident, $op:ident($Args:ident $(::<$T:ident>)? {
        $($field:ident $(: $given:expr)?),* $(,)?
    })) => {{
        let args = $Args $(::<$T>)? { $($field: $crate::field::argument!($c, $t, $field $(, $given)?)),* };
        $t.disjoint()?;
        $op($t.device, args)
    }};
}

macro_rules! argument {
    ($c:ident, $t:ident, $field:ident) => {
        $crate::field::Field::get($t, stringify!($field), &$c.$field)?
    };
    ($c:ident, $t:ident, $field:ident, $given:expr) => {
        $given
    };
}

/// An op whose results are all tensors, for each dtype of one of them.
///
/// ```text
/// impl_op!(gradus_lerp_args {
///     float a,                              F is the dtype of `a` (or `real`: R)
///     defaults { weight: 0.5 },             what is not zero
///     |args, t| lerp(Lerp { a, b, weight: args.weight, y })
/// });
/// ```
macro_rules! impl_op {
    ($c_args:ident {
        $kind:ident $key:ident,
        $(defaults { $($default:ident: $value:expr),* $(,)? },)?
        |$c:ident, $t:ident| $op:ident($Args:ident { $($fields:tt)* })
    }) => {
        impl $crate::args::Op for $c_args {
            $(fn defaults(&mut self) {
                $(self.$default = $value;)*
            })?
            fn run(&self, $t: &$crate::tensor::Tensors<'_>) -> gradus::Result<()> {
                let $c = self;
                $crate::field::for_dtype!($kind $t, stringify!($key), &$c.$key, T, {
                    $crate::field::call!($c, $t, $op($Args::<T> { $($fields)* }))
                })
            }
        }
    };
}

pub(crate) use {argument, call, for_dtype, impl_op};
