use attn::prelude::*;

#[parallel_attention(strategy = "ulysses", heads = 24, degree = 5)]
struct Attention<W> {
    weights: W,
}

impl<W> Attention<W> {
    fn forward<C: Communicator>(
        &self,
        session: &mut Session<Self, C, f32>,
        x: &Tensor<f32, C::Device>,
    ) -> attn::Result<Tensor<f32, C::Device>>
    where
        Self: ParallelAttention<C, f32>,
    {
        assert_eq!(session.strategy(), "ulysses");
        self.attend(session, x, x, x, &AttentionMetadata::default())
    }
}

fn main() -> attn::Result<()> {
    let attention = Attention { weights: [1.0] };
    World::threads(2).run(|comm| {
        let mut session = Session::open(comm)?;
        let x = Tensor::from_fn([1, 8, 24, 64], |_| 1.0)?;
        attention.forward(&mut session, &x).map(drop)
    })?;
    Ok(())
}
