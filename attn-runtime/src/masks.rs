//! The masks of a call, checked.

use attn_plan::{Mask, MaskKinds};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::metadata::{AttentionMetadata, Segments, Sequence};
use crate::strategy::AttentionMask;
use crate::tensor::Element;

/// Checks a call's masks against its shapes, the attribute and the kernel.
///
/// # Errors
/// If one of them does not fit.
#[inline]
pub(crate) fn admit<'a, T: Element, D: Device>(
    takes: MaskKinds,
    fixed: Option<Mask>,
    metadata: &AttentionMetadata<'a, T, D>,
    rows: [usize; 2],
    sequence: Sequence,
    joint: usize,
) -> Result<AttentionMask<'a, D>> {
    let AttentionMetadata { span, key_lengths, segments, dense, .. } = *metadata;
    let fixed_span = fixed.map(|mask| mask.span);
    let mask = AttentionMask { span: fixed_span.or(span).unwrap_or_default(), key_lengths, segments, dense };
    let kinds = mask.kinds();
    if kinds != Mask::NONE || fixed.is_some() {
        check(takes, fixed, metadata, &mask, rows, sequence, joint)?;
    }
    Ok(mask)
}

/// What [`admit`] checks if there is a mask.
#[inline(never)]
fn check<T: Element, D: Device>(
    takes: MaskKinds,
    fixed: Option<Mask>,
    metadata: &AttentionMetadata<'_, T, D>,
    mask: &AttentionMask<'_, D>,
    [batch, heads]: [usize; 2],
    sequence: Sequence,
    joint: usize,
) -> Result<()> {
    let kinds = mask.kinds();
    if let Some(fixed) = fixed {
        let span_differs = metadata.span.is_some_and(|span| span != fixed.span);
        let asked = Mask { span: metadata.span.unwrap_or(fixed.span), ..kinds };
        if span_differs || kinds != fixed {
            let declared = format!("\"{fixed}\"");
            return Err(Error::Declared { key: "mask", declared, found: differs(fixed, asked) });
        }
    }
    if !takes.takes(kinds) {
        return Err(Error::MaskKind { mask: kinds, takes });
    }
    if joint > 0 && !kinds.takes_joint() {
        return Err(Error::JointMask { mask: kinds });
    }
    if let Some(lengths) = mask.key_lengths {
        if lengths.len() != batch {
            let message =
                format!("has {} lengths, expected {batch}, one for each row of the batch", lengths.len());
            return Err(Error::Mask { mask: "key_lengths", message });
        }
        if let Some((row, length)) = lengths.iter().enumerate().find(|(_, length)| **length > sequence.key) {
            let message = format!(
                "says that row {row} has {length} keys, but there are {} positions of keys",
                sequence.key
            );
            return Err(Error::Mask { mask: "key_lengths", message });
        }
    }
    if let Some(Segments { query, key }) = mask.segments {
        for (what, ids, seq) in [("query", query, sequence.query), ("key", key, sequence.key)] {
            if batch.checked_mul(seq) != Some(ids.len()) {
                let message = format!(
                    "has {} ids of {what} positions, expected {batch} x {seq}, one for each position of each row of the \
                     batch",
                    ids.len()
                );
                return Err(Error::Mask { mask: "segments", message });
            }
        }
    }
    if let Some(dense) = mask.dense {
        let found = dense.shape();
        let whole = |seq: usize| seq.saturating_add(joint);
        let expected = [batch, heads, whole(sequence.query), whole(sequence.key)];
        if found != expected && found != [expected[0], 1, expected[2], expected[3]] {
            let text = format!(
                "{expected:?}, or 1 in place of the {heads} heads (batch, heads, query and key positions of the whole \
                 sequence, joint tokens included)"
            );
            return Err(Error::Shape { tensor: "dense", found, expected: text });
        }
    }
    Ok(())
}

/// What a call has that the attribute has not, or lacks.
fn differs(fixed: Mask, asked: Mask) -> String {
    if fixed.span != asked.span {
        return format!("metadata that asks for `{}`", asked.span);
    }
    for (name, fixed, asked) in [
        ("key lengths (`padding`)", fixed.key_lengths, asked.key_lengths),
        ("segments", fixed.segments, asked.segments),
        ("a dense mask", fixed.dense, asked.dense),
    ] {
        if fixed != asked {
            return if asked { format!("metadata with {name}") } else { format!("metadata without {name}") };
        }
    }
    format!("metadata that asks for `{asked}`")
}
