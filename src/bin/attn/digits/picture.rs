//! The digits as a picture: a row for each run, the digits across.

use std::io::{self, Write};

use super::dit::{CHANNELS, GRID, TOKENS};

/// Pixels along an image's edge.
const EDGE: usize = 2 * GRID;
/// Each becomes a square of so many.
const ZOOM: usize = 3;
/// White pixels round each image.
const MARGIN: usize = 6;
const CELL: usize = EDGE * ZOOM + MARGIN;

/// Writes runs of samples, `[digits, TOKENS, CHANNELS]` each, as an 8-bit grey PNG: dark ink on white.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write(to: impl Write, runs: &[&[f32]], digits: usize) -> io::Result<()> {
    let (width, height) = (digits * CELL + MARGIN, runs.len() * CELL + MARGIN);
    let mut pixels = vec![u8::MAX; width * height];
    for (row, run) in runs.iter().enumerate() {
        for (column, sample) in run.chunks_exact(TOKENS * CHANNELS).take(digits).enumerate() {
            let corner = (MARGIN + row * CELL) * width + MARGIN + column * CELL;
            for y in 0..EDGE * ZOOM {
                for x in 0..EDGE * ZOOM {
                    pixels[corner + y * width + x] = grey(ink(sample, x / ZOOM, y / ZOOM));
                }
            }
        }
    }
    let edge = |pixels: usize| u32::try_from(pixels).map_err(io::Error::other);
    let mut encoder = png::Encoder::new(to, edge(width)?, edge(height)?);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    writer.finish()?;
    Ok(())
}

/// The value at a pixel: a token is a square of 2x2.
fn ink(sample: &[f32], x: usize, y: usize) -> f32 {
    sample[(GRID * (y / 2) + x / 2) * CHANNELS + 2 * (y % 2) + x % 2]
}

/// Ink of 1 is black, of -1 white.
fn grey(ink: f32) -> u8 {
    ((1.0 - ink.clamp(-1.0, 1.0)) * 127.5).round() as u8
}
