//! The same code, compiled for what the processor has.

/// Code whose inner loops a compiler turns into vector instructions.
pub(crate) trait Vectorised {
    /// Runs it. `FUSED` says whether a multiplication and an addition are one instruction: then
    /// [`multiply_add`] is best written as one.
    ///
    /// An implementation is `#[inline(always)]`, and so is what it calls: only then is it compiled for the features of
    /// the function that it is called in.
    fn run<const FUSED: bool>(self);
}

/// Runs code on the widest vectors that this processor has.
pub(crate) fn run(work: impl Vectorised) {
    #[cfg(test)]
    if PORTABLE.get() {
        return work.run::<false>();
    }
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("f16c")
    {
        // SAFETY: the processor has the features.
        return unsafe { avx2(work) };
    }
    work.run::<{ cfg!(target_feature = "neon") || cfg!(target_feature = "fma") }>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2(work: impl Vectorised) {
    work.run::<true>();
}

/// `a * b + c`.
#[inline(always)]
pub(crate) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[cfg(test)]
thread_local! {
    /// Whether this thread takes the code for any processor.
    pub(crate) static PORTABLE: core::cell::Cell<bool> = const { core::cell::Cell::new(false) };
}

#[cfg(all(test, feature = "flash"))]
mod tests {
    use super::PORTABLE;
    use crate::device::Arena;
    use crate::device::cpu::{Cpu, CpuQueue};
    use crate::kernel::{AttentionCall, AttentionKernel, Band, Flash};
    use crate::tensor::{KeyValue, Tensor};

    /// Attention on one thread, over several tiles and blocks, causal.
    fn attend() -> Tensor<f32> {
        let queue = CpuQueue::new(1).unwrap();
        let mut arena = Arena::<Cpu>::default();
        let value = |index: [usize; 4], salt: usize| {
            ((index[1] * 37 + index[2] * 11 + index[3] * salt) % 23) as f32 / 9.0 - 1.2
        };
        let tensor =
            |salt: usize| Tensor::<f32>::from_fn([1, 150, 2, 19], |index| value(index, salt)).unwrap();
        let (query, key, keys_value, mut out) = (tensor(3), tensor(5), tensor(7), tensor(1));
        let mut call = AttentionCall {
            query: query.view(),
            kv: KeyValue { key: key.view(), value: keys_value.view() },
            mask: Band::causal(150, 150).into(),
            scale: 0.7,
            out: out.view_mut(),
            lse: None,
        };
        Flash.forward(arena.open(&queue).unwrap(), &mut call).unwrap();
        out
    }

    #[test]
    fn code_for_any_processor_computes_the_same_up_to_rounding() {
        let here = attend();
        PORTABLE.set(true);
        let anywhere = attend();
        PORTABLE.set(false);
        for (a, b) in here.as_slice().iter().zip(anywhere.as_slice()) {
            assert!((a - b).abs() <= 1e-6, "{a} {b}");
        }
    }
}
