//! PTX around an instruction: operands are loaded from `[%rd1]` and on, the result is stored at `[%rd0]`.

macro_rules! case {
    ($inputs:ident, $body:expr, $want:expr) => {
        Case { body: $body, inputs: Inputs::$inputs, want: $want, approximate: None }
    };
    (~ $inputs:ident, $body:expr, $want:expr) => {
        case!(~ [1.2e-7, 0.0] $inputs, $body, $want)
    };
    (~ $bound:tt $inputs:ident, $body:expr, $want:expr) => {
        Case { body: $body, inputs: Inputs::$inputs, want: $want, approximate: Some($bound) }
    };
}

macro_rules! n2 {
    ($op:literal) => {
        concat!(
            "ld.global.u32 %r1, [%rd1];\nld.global.u32 %r2, [%rd2];\n",
            $op,
            " %r3, %r1, %r2;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;"
        )
    };
}
macro_rules! n1 {
    ($op:literal) => {
        concat!(
            "ld.global.u32 %r1, [%rd1];\n",
            $op,
            " %r3, %r1;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;"
        )
    };
}
macro_rules! n3 {
    ($op:literal) => {
        concat!(
            "ld.global.u32 %r1, [%rd1];\nld.global.u32 %r2, [%rd2];\nld.global.u32 %r4, [%rd3];\n",
            $op,
            " %r3, %r1, %r2, %r4;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;"
        )
    };
}
macro_rules! w2 {
    ($op:literal) => {
        concat!(
            "ld.global.u64 %rd4, [%rd1];\nld.global.u64 %rd5, [%rd2];\n",
            $op,
            " %rd6, %rd4, %rd5;\nst.global.u64 [%rd0], %rd6;"
        )
    };
}
macro_rules! wn {
    ($op:literal) => {
        concat!(
            "ld.global.u64 %rd4, [%rd1];\nld.global.u32 %r2, [%rd2];\nand.b32 %r2, %r2, 127;\n",
            $op,
            " %rd6, %rd4, %r2;\nst.global.u64 [%rd0], %rd6;"
        )
    };
}
macro_rules! f2 {
    ($op:literal) => {
        concat!("ld.global.f32 %f1, [%rd1];\nld.global.f32 %f2, [%rd2];\n", $op, " %f3, %f1, %f2;\nmov.b32 %r3, %f3;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;")
    };
}
macro_rules! f1 {
    ($op:literal) => {
        concat!(
            "ld.global.f32 %f1, [%rd1];\n",
            $op,
            " %f3, %f1;\nmov.b32 %r3, %f3;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;"
        )
    };
}
macro_rules! f3 {
    ($op:literal) => {
        concat!("ld.global.f32 %f1, [%rd1];\nld.global.f32 %f2, [%rd2];\nld.global.f32 %f4, [%rd3];\n", $op, " %f3, %f1, %f2, %f4;\nmov.b32 %r3, %f3;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;")
    };
}
macro_rules! d2 {
    ($op:literal) => {
        concat!(
            "ld.global.f64 %fd1, [%rd1];\nld.global.f64 %fd2, [%rd2];\n",
            $op,
            " %fd3, %fd1, %fd2;\nst.global.f64 [%rd0], %fd3;"
        )
    };
}
macro_rules! d1 {
    ($op:literal) => {
        concat!("ld.global.f64 %fd1, [%rd1];\n", $op, " %fd3, %fd1;\nst.global.f64 [%rd0], %fd3;")
    };
}
macro_rules! compare {
    ($ty:literal, $reg:literal, $op:literal) => {
        concat!(
            "ld.global.",
            $ty,
            " ",
            $reg,
            "1, [%rd1];\nld.global.",
            $ty,
            " ",
            $reg,
            "2, [%rd2];\nsetp.",
            $op,
            ".",
            $ty,
            " %p1, ",
            $reg,
            "1, ",
            $reg,
            "2;\nselp.b64 %rd9, 1, 0, %p1;\nst.global.u64 [%rd0], %rd9;"
        )
    };
}
