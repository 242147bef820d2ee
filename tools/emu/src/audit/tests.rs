//! Each finding on a few lines that have it, and on a few that do not.

use super::*;

fn one(body: &str) -> Audit {
    let ptx = format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p)\n{{\n\
         .reg .b64 %rd<9>; .reg .b32 %r<40>; .reg .f32 %f<9>; .reg .pred %p<4>;\n{body}\nret;\n}}"
    );
    audit(&ptx).unwrap().remove(0)
}

const PRODUCT: &str = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0,%f1,%f2,%f3}, \
                       {%r1,%r2,%r3,%r4}, {%r5,%r6}, {%f0,%f1,%f2,%f3};";
const FRAGMENT: &str = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1,%r2,%r3,%r4}, [%r9];";

#[test]
fn a_branch_between_load_and_product_is_found_in_loops() {
    let rare = "@%p1 bra $SKIP; mov.u32 %r1, 0; $SKIP:";
    let looped = |body: &str| format!("$TOP: {body} @%p0 bra $TOP;");
    let between = one(&looped(&format!("{FRAGMENT}\n{rare}\n{PRODUCT}")));
    assert_eq!(between.branches_before_products.len(), 1);
    let before = one(&looped(&format!("{rare}\n{FRAGMENT}\n{PRODUCT}")));
    assert_eq!(before.branches_before_products, [0u32; 0]);
    let outside = one(&format!("{FRAGMENT}\n{rare}\n{PRODUCT}"));
    assert_eq!(outside.branches_before_products, [0u32; 0]);
    // What the product does not use may be loaded on either side.
    let other = FRAGMENT.replace("%r1,%r2,%r3,%r4", "%r11,%r12,%r13,%r14");
    let other = one(&looped(&format!("{other}\n{rare}\n{PRODUCT}")));
    assert_eq!(other.branches_before_products, [0u32; 0]);
}

#[test]
fn loads_that_wait_for_loads_are_rounds() {
    let chain = "ld.global.u64 %rd1, [%rd0]; ld.global.u32 %r1, [%rd1];";
    let bulk = "ld.global.v4.u32 {%r20,%r21,%r22,%r23}, [%rd5];";
    assert_eq!(one(&format!("{chain} {bulk}")).load_rounds, 1);
    assert_eq!(one(&format!("{chain} st.shared.u32 [%r9], %r1; {bulk}")).load_rounds, 2);
    // Two at a time are one round, used or not.
    let pair = "ld.global.u32 %r1, [%rd0]; ld.global.u32 %r2, [%rd0+4]; add.u32 %r3, %r1, %r2;";
    assert_eq!(one(&format!("{pair} {bulk}")).load_rounds, 1);
    assert_eq!(one(&format!("{bulk} {chain}")).load_rounds, 0);
    assert_eq!(
        one(&format!("{chain} cp.async.cg.shared.global [%r9], [%rd5], 16;")).load_rounds,
        1
    );
    assert_eq!(one(chain).first_bulk, None);
}

#[test]
fn divisions_count_inside_loops() {
    let divide = "div.s64 %rd1, %rd2, %rd3;";
    assert_eq!(one(divide).divisions_in_loops.len(), 0);
    assert_eq!(one(&format!("$TOP: {divide} @%p0 bra $TOP;")).divisions_in_loops.len(), 1);
    let narrow = "$TOP: div.u32 %r1, %r2, %r3; @%p0 bra $TOP;";
    assert_eq!(one(narrow).divisions_in_loops.len(), 0);
}

#[test]
fn innermost_loops_are_described() {
    let inner = format!("$IN: {FRAGMENT} {PRODUCT} st.shared.u32 [%r9], %r1; @%p1 bra $IN;");
    let found = one(&format!("$OUT: ld.global.u32 %r1, [%rd0]; {inner} @%p0 bra $OUT;")).loops;
    let [inner] = &found[..] else { panic!("{found:?}") };
    assert_eq!((inner.instructions, inner.products), (4, 1));
    assert_eq!((inner.loads, inner.shared_stores), (0, 1));
}
