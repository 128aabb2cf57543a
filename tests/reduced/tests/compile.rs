//! What the attribute says where a backend's cargo feature is off.

#[test]
fn a_backend_whose_feature_is_on_can_be_named() {
    trybuild::TestCases::new().pass("tests/compile/pass/*.rs");
}

#[test]
fn a_backend_needs_its_feature() {
    trybuild::TestCases::new().compile_fail("tests/compile/fail/*.rs");
}
