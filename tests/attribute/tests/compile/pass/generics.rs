//! Lifetimes, types, constants, their bounds and defaults, and where clauses pass through.

use attn::ThreadComm;
use attn::prelude::*;

#[parallel_attention(strategy = "ulysses")]
struct Named<'a, 'b: 'a, W: Clone + 'a = f32, const N: usize = 4>
where
    W: Send,
    [W; N]: Sized,
{
    _weights: &'a [W; N],
    _bias: &'b str,
}

#[parallel_attention(strategy = ["none", "ring"])]
#[derive(Clone, Debug, Default)]
struct Tuple<W>(W, pub u32)
where
    W: Clone;

#[parallel_attention(strategy = "ring")]
struct Unit;

/// A kernel that is a parameter of the struct.
#[parallel_attention(strategy = "ring", backend = K)]
struct Open<K>(std::marker::PhantomData<K>);

#[parallel_attention(strategy = ["none", "ring"], backend = K)]
struct Listed<K>(std::marker::PhantomData<K>);

impl<W: Clone> Tuple<W> {
    fn forward<C: Communicator>(
        &self,
        session: &mut Session<Self, C, f32>,
        x: &Tensor<f32, C::Device>,
    ) -> attn::Result<Tensor<f32, C::Device>>
    where
        Self: ParallelAttention<C, f32>,
    {
        self.attend(session, x, x, x, &AttentionMetadata::default())
    }
}

fn is_parallel<A: ParallelAttention<ThreadComm, f32>>() {}

fn main() {
    is_parallel::<Named<'_, '_, u8, 3>>();
    is_parallel::<Named<'_, '_>>();
    is_parallel::<Tuple<String>>();
    is_parallel::<Unit>();
    is_parallel::<Open<attn::Flash>>();
    is_parallel::<Open<attn::Sdpa>>();
    is_parallel::<Listed<attn::Sdpa>>();
    let _ = Tuple::<u8>::forward::<ThreadComm>;
}
