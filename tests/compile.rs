//! What the attribute takes and what it refuses: each file under `compile/fail` makes one mistake, and what stands
//! beside it is what its author is told.

#[test]
fn right_uses_compile_and_wrong_ones_are_explained() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/compile/pass/*.rs");
    cases.compile_fail("tests/compile/fail/*.rs");
    // What these are told lists every kernel there is, and GPUs have more.
    if cfg!(not(any(feature = "cuda", feature = "sim"))) {
        cases.compile_fail("tests/compile/fail/without_gpu/*.rs");
    }
}
