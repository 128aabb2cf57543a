//! What the attribute takes and what it refuses: each file under `compile/fail` makes one mistake, and what stands
//! beside it is what its author is told.

#[test]
fn right_uses_compile() {
    trybuild::TestCases::new().pass("tests/compile/pass/*.rs");
}

// Apart from the others: where all are to fail, trybuild checks them at once, and else builds one after the other.
#[test]
fn wrong_uses_are_explained() {
    trybuild::TestCases::new().compile_fail("tests/compile/fail/*.rs");
}
