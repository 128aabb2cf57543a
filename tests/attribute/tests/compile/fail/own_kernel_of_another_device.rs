use std::ptr::NonNull;

use attn::device::StridedCopy;
use attn::prelude::*;
use attn::{AttentionCall, AttentionKernel, Device, Scope, ThreadComm};

struct Abacus;

unsafe impl Device for Abacus {
    const NAME: &'static str = "abacus";
    type Queue = ();
    type Memory = ();

    fn allocate(_: &(), _: usize) -> attn::Result<()> {
        Ok(())
    }

    fn base(_: &()) -> NonNull<u8> {
        NonNull::dangling()
    }

    unsafe fn copy(_: &(), _: &[StridedCopy]) -> attn::Result<()> {
        Ok(())
    }

    fn synchronize(_: &()) -> attn::Result<()> {
        Ok(())
    }
}

#[derive(Default)]
struct Beads;

impl<T: Element> AttentionKernel<Abacus, T> for Beads {
    fn forward(&self, _: Scope<'_, Abacus>, _: &mut AttentionCall<'_, T, Abacus>) -> attn::Result<()> {
        Ok(())
    }
}

#[parallel_attention(strategy = "ulysses", backend = Beads)]
struct Attention;

fn is_parallel<A: ParallelAttention<ThreadComm, f32>>() {}

fn main() {
    is_parallel::<Attention>();
}
