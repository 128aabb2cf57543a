//! What the attribute says where a backend's cargo feature is off.

#[test]
fn a_backend_needs_its_feature() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/compile/pass/*.rs");
    cases.compile_fail("tests/compile/fail/*.rs");
}
