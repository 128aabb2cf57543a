//! `attn bench --tune`: which of the kernels that `flash` can be is the fastest on this card, written to a table.

use std::path::Path;

use attn::cuda::tuning::{Asked, Choice, FlashVariant, Tuning};
use attn::cuda::{FlashForm, FlashSm80, FlashSm90, Half, Launches};
use attn::device::Arena;
use attn::kernel::Band;
use attn::prelude::*;
use attn::{AttentionCall, AttentionKernel, KeyValue};

use super::times::Times;
use crate::cli::{self, BenchArgs};
use crate::failure::Failure;
use crate::machine::Machine;
use crate::random::positions;
use crate::report;

/// Where no shape is given: so many keys and queries, as many heads as make 2048 columns, batches of 16384 positions.
const LENGTHS: [usize; 4] = [512, 2048, 8192, 32768];
const HEAD_DIMS: [usize; 6] = [32, 64, 96, 128, 192, 256];

/// One call to be measured.
#[derive(Clone, Copy, Debug)]
struct Work {
    /// `[batch, seq, heads, head_dim]`, and the same of keys and values.
    query: [usize; 4],
    key: [usize; 4],
    span: Span,
}

/// Measures, reports and writes.
///
/// # Errors
/// If the table cannot be read or written, memory cannot be had, or the device reports an error.
pub(super) fn run<D: Machine + Launches, T: Half>(args: &BenchArgs, table: &Path) -> Result<(), Failure> {
    let mut tuning = if table.exists() { Tuning::read(table)? } else { Tuning::default() };
    let card = D::model()?;
    let mut text = String::new();
    for work in works(args)? {
        let Some(choice) = measure::<D, T>(&work, args, &card)? else { continue };
        text.push_str(&format!("{choice}\n"));
        tuning.set(choice);
    }
    std::fs::write(table, tuning.to_string()).map_err(|error| Failure::file("write", table, &error))?;
    text.push_str(&format!(
        "written to {}: calls go by it where ATTN_TUNING={}\n",
        table.display(),
        table.display()
    ));
    report::print(&text)
}

/// What the command line asks for; without a shape all of the grid, with and without a causal mask.
fn works(args: &BenchArgs) -> Result<Vec<Work>, Failure> {
    let asked = cli::span(args.mask)?;
    if let Some(query @ [batch, seq, heads, head_dim]) = args.shape {
        let key = [batch, args.seq_k.unwrap_or(seq), args.kv_heads.unwrap_or(heads), head_dim];
        return Ok(vec![Work { query, key, span: asked }]);
    }
    let mut works = Vec::new();
    for head_dim in HEAD_DIMS {
        for seq in LENGTHS {
            let query = [(16384 / seq).max(1), seq, (2048 / head_dim).max(1), head_dim];
            works.extend([Span::Full, Span::Causal].map(|span| Work { query, key: query, span }));
        }
    }
    Ok(works)
}

/// Times every kernel that takes the call, in turns. None if none does.
fn measure<D: Machine + Launches, T: Half>(
    work: &Work,
    args: &BenchArgs,
    card: &str,
) -> Result<Option<Choice>, Failure> {
    let queue = D::queue()?;
    let Work { query: shape, key: key_shape, span } = *work;
    let band = Band::of_span(span, shape[1], key_shape[1]);
    let asked = Asked {
        capability: D::capability(&queue),
        head_dim: shape[3],
        banded: span != Span::Full,
        keys: key_shape[1],
    };
    let variants: Vec<_> = FlashVariant::ALL.into_iter().filter(|variant| variant.takes(&asked)).collect();
    if variants.is_empty() {
        return Ok(None);
    }
    let made = |stream, shape: [usize; 4]| {
        <D as Machine>::upload(&queue, positions::<T>(stream, shape, 0, shape[1])?)
    };
    let (query, key, value) = (made(1, shape)?, made(2, key_shape)?, made(3, key_shape)?);
    let mut out = Tensor::<T, D>::zeros(&queue, shape)?;
    let mut arena = Arena::<D>::default();
    let mut spans: Vec<Vec<[D::Moment; 2]>> = variants.iter().map(|_| Vec::new()).collect();
    let warmup = args.warmup.unwrap_or(3);
    for round in 0..warmup + args.runs {
        for (variant, spans) in variants.iter().zip(&mut spans) {
            let mut call = AttentionCall {
                query: query.view(),
                kv: KeyValue { key: key.view(), value: value.view() },
                mask: band.into(),
                scale: 1.0 / (shape[3] as f32).sqrt(),
                out: out.view_mut(),
                lse: None,
            };
            let scope = arena.open(&queue)?;
            let start = D::moment(&queue)?;
            match variant {
                FlashVariant::Sm90Overlapped => {
                    FlashSm90::new(FlashForm::Overlapped).forward(scope, &mut call)?;
                }
                FlashVariant::Sm90Simple => FlashSm90::new(FlashForm::Simple).forward(scope, &mut call)?,
                FlashVariant::Sm80 => FlashSm80.forward(scope, &mut call)?,
                other => return Err(Failure::Internal(format!("{} cannot be measured", other.name()))),
            }
            let end = D::moment(&queue)?;
            if round >= warmup {
                spans.push([start, end]);
            }
        }
    }
    D::synchronize(&queue)?;
    let mut medians = Vec::with_capacity(variants.len());
    for (variant, spans) in variants.iter().zip(&spans) {
        let times = spans.iter().map(|[start, end]| D::milliseconds(start, end));
        medians.push((*variant, Times::of(times.collect::<attn::Result<_>>()?).median));
    }
    medians.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    let told: Vec<_> =
        medians.iter().map(|(variant, median)| format!("{} {median:.3} ms", variant.name())).collect();
    let [batch, seq, heads, head_dim] = shape;
    Ok(Some(Choice {
        capability: asked.capability,
        head_dim: Some(asked.head_dim),
        banded: Some(asked.banded),
        keys: Some(asked.keys),
        variant: medians[0].0,
        measured: true,
        provenance: format!("{card}: {}, {batch},{seq},{heads},{head_dim} {}", told.join(", "), T::DTYPE),
    }))
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use attn::cuda::Simulated;
    use half::bf16;

    use super::*;

    #[test]
    fn the_fastest_of_all_kernels_for_a_shape_is_known_as_measured() {
        let args = BenchArgs { runs: 1, warmup: Some(0), ..super::super::tests::args() };
        let work = Work { query: [1, 70, 2, 64], key: [1, 70, 1, 64], span: Span::Causal };
        let choice = measure::<Simulated, bf16>(&work, &args, "a card").unwrap().unwrap();
        assert_eq!((choice.capability, choice.head_dim), ((9, 0), Some(64)));
        assert_eq!((choice.banded, choice.keys, choice.measured), (Some(true), Some(70), true));
        for name in FlashVariant::ALL.map(FlashVariant::name) {
            assert!(choice.provenance.contains(name), "{choice}");
        }
        let unknown = Work { query: [1, 8, 1, 72], key: [1, 8, 1, 72], ..work };
        assert!(measure::<Simulated, bf16>(&unknown, &args, "a card").unwrap().is_none());
    }
}
