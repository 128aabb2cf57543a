//! The program `attn`.
fn main() {}
