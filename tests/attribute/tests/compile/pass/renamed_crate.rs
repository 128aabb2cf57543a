//! `crate` names the crate where it is known otherwise, in quotes or not.

mod inner {
    pub use attn as other;

    #[other::parallel_attention(strategy = ["none", "ring"], crate = other)]
    pub struct Relative;
}

#[attn::parallel_attention(strategy = ["none", "ring"], crate = "crate::inner::other")]
struct Quoted;

#[attn::parallel_attention(strategy = "ulysses", crate = inner::other)]
struct Path;

#[attn::parallel_attention(strategy = "ulysses", crate = self::inner::other)]
struct FromSelf;

#[attn::parallel_attention(strategy = "ulysses", crate = ::attn)]
struct Absolute;

macro_rules! attention {
    ($name:ident) => {
        #[attn::parallel_attention(strategy = "ring", crate = $crate::inner::other)]
        struct $name;
    };
}

attention!(FromMacro);

fn is_parallel<A: attn::ParallelAttention<attn::ThreadComm, f32>>() {}

fn main() {
    is_parallel::<inner::Relative>();
    is_parallel::<Quoted>();
    is_parallel::<Path>();
    is_parallel::<FromSelf>();
    is_parallel::<Absolute>();
    is_parallel::<FromMacro>();
}
