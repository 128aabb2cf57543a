//! The layers a transformer needs besides attention, in f32 on the rank's own threads.
//!
//! Activations are row-major slices: one row for each position, its channels side by side.

use attn::device::cpu::CpuQueue;
use half::bf16;
use safetensors::{Dtype, SafeTensors};
use std::sync::Mutex;

use crate::failure::Failure;

/// What is added to a variance or mean square before its root is taken.
const EPS: f32 = 1e-6;

/// `y = x W^T + b`.
pub(super) struct Linear {
    /// `[outputs, inputs]`.
    weight: Vec<f32>,
    /// `[outputs]`.
    bias: Vec<f32>,
    inputs: usize,
}

impl Linear {
    /// `[rows, inputs]` to `[rows, outputs]`.
    pub(super) fn forward(&self, team: &CpuQueue, x: &[f32]) -> Vec<f32> {
        let (inputs, outputs) = (self.inputs, self.bias.len());
        let rows = x.len() / inputs;
        let mut y = vec![0.0; rows * outputs];
        spread(team, &mut y, outputs, |first, y| {
            let rows = y.len() / outputs;
            y.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(&self.bias));
            add_product(&x[first * inputs..][..rows * inputs], &self.weight, y, [rows, inputs, outputs]);
        });
        y
    }
}

/// `y += x W^T`, where `x` is `[rows, inputs]`, `weight` is `[outputs, inputs]` and `y` is `[rows, outputs]`.
fn add_product(x: &[f32], weight: &[f32], y: &mut [f32], [rows, inputs, outputs]: [usize; 3]) {
    assert_eq!((x.len(), weight.len(), y.len()), (rows * inputs, outputs * inputs, rows * outputs));
    // Slices are at most `isize::MAX` bytes, so no factor of their lengths is beyond `isize`.
    let (row, out) = (inputs as isize, outputs as isize);
    // SAFETY: by the lengths asserted above, every element that the sizes and strides reach lies in its slice;
    // `y` is borrowed exclusively, so it overlaps neither of the others.
    unsafe {
        matrixmultiply::sgemm(
            rows,
            inputs,
            outputs,
            1.0,
            x.as_ptr(),
            row,
            1,
            weight.as_ptr(),
            1,
            row,
            1.0,
            y.as_mut_ptr(),
            out,
            1,
        );
    }
}

/// Layer norm without weights of its own, then `x * (1 + scale) + shift`, the same for all rows.
pub(super) fn layer_norm(team: &CpuQueue, x: &[f32], shift: &[f32], scale: &[f32]) -> Vec<f32> {
    let width = shift.len();
    let mut y = x.to_vec();
    spread(team, &mut y, width, |_, y| {
        for row in y.chunks_exact_mut(width) {
            let mean = row.iter().sum::<f32>() / width as f32;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / width as f32;
            let inverse = 1.0 / (variance + EPS).sqrt();
            for ((x, shift), scale) in row.iter_mut().zip(shift).zip(scale) {
                *x = (*x - mean) * inverse * (1.0 + scale) + shift;
            }
        }
    });
    y
}

/// Divides a head's channels by their root mean square, and multiplies them with `weight`.
pub(super) fn rms_norm(head: &mut [f32], weight: &[f32]) {
    let mean_square = head.iter().map(|x| x * x).sum::<f32>() / head.len() as f32;
    let inverse = 1.0 / (mean_square + EPS).sqrt();
    head.iter_mut().zip(weight).for_each(|(x, weight)| *x = *x * inverse * weight);
}

/// `x * sigmoid(x)`.
pub(super) fn silu(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x /= 1.0 + (-*x).exp());
}

/// `x / 2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`; with `(1 + tanh(u)) / 2 = 1 / (1 + exp(-2u))` one
/// exponential does.
pub(super) fn gelu(team: &CpuQueue, x: &mut [f32], width: usize) {
    let twice = (8.0 / std::f64::consts::PI).sqrt() as f32;
    spread(team, x, width, |_, x| {
        x.iter_mut().for_each(|x| *x /= 1.0 + (-twice * (*x + 0.044_715 * *x * *x * *x)).exp());
    });
}

/// `x += gate * y`, the same `gate` for all rows.
pub(super) fn add_gated(x: &mut [f32], gate: &[f32], y: &[f32]) {
    for (x, y) in x.chunks_exact_mut(gate.len()).zip(y.chunks_exact(gate.len())) {
        for ((x, gate), y) in x.iter_mut().zip(gate).zip(y) {
            *x += gate * y;
        }
    }
}

/// Shares the rows of `y` among the rank's threads: `body` gets the number of its first row, and its rows.
pub(super) fn spread(team: &CpuQueue, y: &mut [f32], width: usize, body: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = (y.len() / width).div_ceil(team.threads()).max(1);
    let parts: Vec<_> = y.chunks_mut(rows * width).map(|part| Mutex::new(Some(part))).collect();
    team.for_each(parts.len(), |_, task| {
        // Every task is claimed once, so its part is there and nobody else holds it.
        if let Some(part) = parts[task].lock().ok().and_then(|mut part| part.take()) {
            body(task * rows, part);
        }
    });
}

/// Named weights, as stored: bfloat16, widened here.
pub(super) struct Weights<'a>(SafeTensors<'a>);

impl<'a> Weights<'a> {
    /// Reads the table of a safetensors file.
    pub(super) fn parse(file: &'a [u8]) -> Result<Self, Failure> {
        SafeTensors::deserialize(file)
            .map(Self)
            .map_err(|error| Failure::Input(format!("the model: {error}")))
    }

    /// A tensor of this shape.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Failure> {
        let tensor = self
            .0
            .tensor(name)
            .map_err(|error| Failure::Input(format!("the model's tensor `{name}`: {error}")))?;
        if tensor.dtype() != Dtype::BF16 || tensor.shape() != shape {
            let (dtype, found) = (tensor.dtype(), tensor.shape());
            return Err(Failure::Input(format!(
                "the model's tensor `{name}` is {dtype:?} of shape {found:?}, expected BF16 of shape {shape:?}"
            )));
        }
        let (elements, _) = tensor.data().as_chunks();
        Ok(elements.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect())
    }

    /// `name.weight` and `name.bias`.
    pub(super) fn linear(&self, name: &str, inputs: usize, outputs: usize) -> Result<Linear, Failure> {
        let weight = self.tensor(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = self.tensor(&format!("{name}.bias"), &[outputs])?;
        Ok(Linear { weight, bias, inputs })
    }
}
