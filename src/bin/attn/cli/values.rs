//! Numbers and masks of the command line, checked.

use std::time::Duration;

use attn::{Mask, Span};

use crate::failure::Failure;

/// More ranks than this are a slip of the finger: each is a thread of this process.
pub(crate) const MAX_RANKS: usize = 1024;

/// More runs than this too.
const MAX_RUNS: usize = 100_000;

/// A number of ranks or threads.
pub(super) fn at_most_1024(text: &str) -> Result<usize, String> {
    between(text, 1, MAX_RANKS)
}

/// A number of runs to measure.
pub(super) fn runs(text: &str) -> Result<usize, String> {
    between(text, 1, MAX_RUNS)
}

/// A number of runs to leave out.
pub(super) fn warmup(text: &str) -> Result<usize, String> {
    between(text, 0, MAX_RUNS)
}

fn between(text: &str, least: usize, most: usize) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        Ok(number) => Err(format!("{number} is not between {least} and {most}")),
        Err(_) => Err(format!("expected a number between {least} and {most}")),
    }
}

/// A number above 0, such as of heads.
pub(super) fn positive(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(number @ 1..) => Ok(number),
        _ => Err(String::from("expected a whole number above 0")),
    }
}

/// `batch,seq,heads,head_dim`.
pub(super) fn shape(text: &str) -> Result<[usize; 4], String> {
    let expected = || String::from("expected batch,seq,heads,head_dim: four whole numbers above 0");
    let numbers: Option<Vec<usize>> = text.split(',').map(|number| positive(number).ok()).collect();
    numbers.and_then(|numbers| numbers.try_into().ok()).ok_or_else(expected)
}

/// A rate.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err(String::from("expected a finite number above 0")),
    }
}

/// A time, of a day at most.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(String::from("expected seconds, from 0 to 86400")),
    }
}

/// A time to wait, of a day at most.
pub(super) fn deadline(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86400.0 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(String::from("expected seconds, above 0 and at most 86400")),
    }
}

/// A softmax scale.
pub(super) fn scale(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(scale) if scale.is_finite() && scale > 0.0 => Ok(scale),
        Ok(scale) => Err(format!("as a 32-bit float this is {scale}: expected a finite number above 0")),
        Err(_) => Err(String::from("expected a finite number above 0")),
    }
}

/// A mask, as the library reads it.
pub(super) fn mask(text: &str) -> Result<Mask, String> {
    text.parse::<Mask>().map_err(|error| error.to_string())
}

/// The mask by position that a mask is.
///
/// # Errors
/// If it needs tensors of a file.
pub(crate) fn span(mask: Mask) -> Result<Span, Failure> {
    if mask != Mask::from(mask.span) {
        return Err(Failure::Usage(format!(
            "`--mask {mask}` needs tensors of a file, which `attn run --input` reads: without one, masks are none, causal \
             and window"
        )));
    }
    Ok(mask.span)
}
