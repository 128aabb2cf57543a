//! Calls that cannot be answered: each gets an error that names the numbers and the cure, and none panics.

mod support;

use attn::prelude::*;
use attn::{Band, Error, ThreadComm};
use support::WithFlash;

fn open(comm: ThreadComm, strategy: &str) -> attn::Result<Session<WithFlash, ThreadComm, f32>> {
    Session::open_with(comm, &ParallelConfig::strategy(strategy))
}

fn tensor(shape: [usize; 4]) -> Tensor<f32> {
    Tensor::from_fn(shape, |_| 1.0).unwrap()
}

#[test]
fn bad_calls_name_numbers_and_cure() {
    World::threads(1)
        .run(|comm| {
            let mut session = open(comm, "none")?;
            let q = tensor([1, 4, 4, 8]);
            let metadata = AttentionMetadata::default();
            let mut fails = |k: [usize; 4], v: [usize; 4], says: &str| {
                let (k, v) = (tensor(k), tensor(v));
                let error = session.attend(&q, &k, &v, &metadata).unwrap_err().to_string();
                assert!(error.contains(says), "{error}");
            };
            fails([2, 4, 4, 8], [2, 4, 4, 8], "`key` has shape [2, 4, 4, 8], expected [1, 4, 4, 8]");
            fails([1, 4, 4, 7], [1, 4, 4, 7], "`key` has shape [1, 4, 4, 7], expected [1, 4, 4, 8]");
            fails([1, 4, 4, 8], [1, 5, 4, 8], "`value` has shape [1, 5, 4, 8], expected [1, 4, 4, 8]");
            fails([1, 4, 3, 8], [1, 4, 3, 8], "3 key/value heads do not divide 4 query heads");
            fails([1, 0, 4, 8], [1, 0, 4, 8], "`key` has shape [1, 0, 4, 8]: an axis of length 0");
            let empty = tensor([0, 4, 4, 8]);
            assert!(matches!(session.attend(&empty, &empty, &empty, &metadata), Err(Error::Empty { .. })));

            let mut small = tensor([1, 3, 4, 8]);
            let error = session.attend_into(&q, &q, &q, &metadata, &mut small).unwrap_err().to_string();
            assert!(error.contains("`out` has shape [1, 3, 4, 8], expected [1, 4, 4, 8]"), "{error}");

            let (mut out, mut lse) = (tensor([1, 4, 4, 8]), vec![0.0; 64]);
            let lse = LseMut::new(&mut lse, [1, 5, 4])?;
            let error =
                session.attend_into(&q, &q, &q, &metadata, Outputs::new(&mut out).with_lse(lse)).unwrap_err();
            assert!(error.to_string().contains("`lse` has shape [1, 5, 4, 1]"), "{error}");

            let text = tensor([1, 2, 4, 8]);
            let mut joint = AttentionMetadata::joint(&text, &text, &text, JointStrategy::Front);
            joint.mask = Some(Mask::Causal);
            let error = session.attend(&q, &q, &q, &joint).unwrap_err();
            assert_eq!(error, Error::JointMask { mask: "causal" });
            joint.mask = None;
            joint.joint_value = None;
            let error = session.attend(&q, &q, &q, &joint).unwrap_err().to_string();
            assert!(error.contains("`joint_value` is missing"), "{error}");
            let thin = tensor([1, 2, 2, 8]);
            let joint = AttentionMetadata::joint(&text, &thin, &thin, JointStrategy::Front);
            let error = session.attend(&q, &q, &q, &joint).unwrap_err().to_string();
            assert!(error.contains("`joint_key` has shape [1, 2, 2, 8], expected [1, 2, 4, 8]"), "{error}");

            // A view that repeats one element may be longer than any memory.
            let one = [1.0_f32; 8];
            for seq in [usize::MAX, usize::MAX / 8, 1 << 59] {
                let endless = View::with_strides(&one, [1, seq, 4, 8], [0, 0, 0, 1])?;
                let error = session.attend(&q, endless, endless, &metadata).unwrap_err();
                assert!(matches!(error, Error::TooLarge { .. }), "{error}");
            }

            let nan = AttentionMetadata::default().with_scale(f32::NAN);
            assert!(matches!(session.attend(&q, &q, &q, &nan), Err(Error::Scale(_))));
            Ok::<_, Error>(())
        })
        .unwrap();
}

/// What an attribute fixes, a call must keep.
#[parallel_attention(
    strategy = "ulysses",
    heads = 8,
    kv_heads = 4,
    head_dim = 16,
    degree = 2,
    mask = "causal",
    scale = 0.5
)]
struct Fixed;

#[test]
fn what_the_attribute_fixes_is_checked() {
    let error =
        World::threads(4).run(|comm| Session::<Fixed, _, f32>::open(comm).map(drop)).unwrap_err().to_string();
    assert_eq!(error, "the attribute says `degree = 2`, but this call has a group of 4 ranks");
    let outcome = World::threads(2).run(|comm| {
        let mut session = Session::<Fixed, _, f32>::open(comm)?;
        let (q, k) = (tensor([1, 4, 8, 16]), tensor([1, 4, 4, 16]));
        let mut fails =
            |q: &Tensor<f32>, k: &Tensor<f32>, metadata: &AttentionMetadata<'_, f32>, says: &str| {
                let error = session.attend(q, k, k, metadata).unwrap_err().to_string();
                assert!(error.contains(says), "{error}");
            };
        let plain = AttentionMetadata::default();
        fails(&tensor([1, 4, 4, 16]), &k, &plain, "`heads = 8`, but this call has 4");
        fails(&q, &q, &plain, "`kv_heads = 4`, but this call has 8");
        fails(&tensor([1, 4, 8, 8]), &tensor([1, 4, 4, 8]), &plain, "`head_dim = 16`, but this call has 8");
        fails(&q, &k, &AttentionMetadata::default().with_mask(Mask::None), "`mask = \"causal\"`");
        fails(&q, &k, &AttentionMetadata::default().with_scale(0.25), "`scale = 0.5`");
        session.attend(&q, &k, &k, &plain).map(drop)
    });
    assert_eq!(outcome, Ok(vec![(), ()]));
}

#[test]
fn groups_that_a_strategy_cannot_use_are_refused() {
    let error = World::threads(2).run(|comm| open(comm, "none").map(drop)).unwrap_err().to_string();
    assert!(error.starts_with("strategy `none` runs on one rank, this group has 2"), "{error}");
    let error = World::threads(3)
        .run(|comm| {
            let x = tensor([1, 4, 4, 8]);
            open(comm, "ulysses")?.attend(&x, &x, &x, &AttentionMetadata::default()).map(drop)
        })
        .unwrap_err()
        .to_string();
    assert_eq!(error, "4 query heads do not divide among 3 ranks: degrees that do are 1, 2 and 4");
    let error = World::threads(0).run(|_| Ok::<_, Error>(())).unwrap_err().to_string();
    assert_eq!(error, "the number of ranks must be at least 1");
}

#[test]
fn absurd_numbers_are_errors() {
    for ranks in [5000, usize::MAX] {
        let error = World::threads(ranks).run(|_| Ok::<_, Error>(())).unwrap_err().to_string();
        assert!(error.contains("more than the 4096"), "{error}");
    }
    let error =
        World::threads(1).threads_per_rank(usize::MAX).run(|_| Ok::<_, Error>(())).unwrap_err().to_string();
    assert!(error.contains("more than the 4096"), "{error}");
    let mut wide = [0.0_f32; 30];
    let error = LseMut::from_view(ViewMut::new(&mut wide, [1, 2, 5, 3]).unwrap()).unwrap_err().to_string();
    assert!(error.contains("a last axis of length 1"), "{error}");
    assert!(attn::SequenceLayout::strict(4, usize::MAX, 4, 4).is_err());
    let band = Band { lo: i64::MIN, hi: i64::MAX };
    assert_eq!(band.from_block(usize::MAX, 0).keys_of(usize::MAX, &(3..9)), 3..9);
    // The queries' heads and keys' heads do not divide, and nobody waits for a list of divisors without end.
    World::threads(1)
        .run(|comm| {
            let one = [1.0_f32; 8];
            let many = View::with_strides(&one, [1, 1, 1 << 60, 1], [0; 4])?;
            let seven = View::with_strides(&one, [1, 1, 7, 1], [0; 4])?;
            let mut out = Tensor::<f32>::from_fn([1, 1, 1, 1], |_| 0.0)?;
            let error =
                open(comm, "none")?.attend_into(many, seven, seven, &AttentionMetadata::default(), &mut out);
            assert!(error.unwrap_err().to_string().contains("7 key/value heads do not divide"));
            Ok::<_, Error>(())
        })
        .unwrap();
}
