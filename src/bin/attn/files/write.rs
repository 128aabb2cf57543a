//! The output file.

use std::fs::File;
use std::io::{self, Write};

use attn::{DType, Element};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::compute::{Results, Rows, Settings};

/// Writes `out`, `joint_out` if there are joint tokens, and `lse` and `joint_lse` if they were asked for.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn results<T: Element>(
    file: &mut File,
    results: &Results<T>,
    settings: &Settings,
) -> io::Result<()> {
    let mut tensors = Vec::new();
    let named = [("out", "lse", Some(&results.rows)), ("joint_out", "joint_lse", results.joint.as_ref())];
    for (out, lse, rows) in named {
        let Some(rows) = rows else { continue };
        let Rows { shape: [batch, seq, heads, _], .. } = *rows;
        let shape = settings.layout.permute(rows.shape);
        tensors.push((out, dtype(T::DTYPE)?, shape.to_vec(), encode(&rows.out)?));
        if settings.lse {
            tensors.push((lse, Dtype::F32, vec![batch, heads, seq], encode(&rows.lse)?));
        }
    }
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| Ok((*name, TensorView::new(*dtype, shape.clone(), data)?)));
    let views: Vec<_> =
        views.collect::<Result<_, safetensors::SafeTensorError>>().map_err(io::Error::other)?;
    file.write_all(&safetensors::serialize(views, None).map_err(io::Error::other)?)
}

fn dtype(dtype: DType) -> io::Result<Dtype> {
    match dtype {
        DType::F32 => Ok(Dtype::F32),
        DType::F16 => Ok(Dtype::F16),
        DType::BF16 => Ok(Dtype::BF16),
        other => Err(io::Error::other(format!("elements of type {other} have no name in the file"))),
    }
}

/// Little-endian.
fn encode<T: Element>(elements: &[T]) -> io::Result<Vec<u8>> {
    let values = elements.iter().map(|element| element.to_f32());
    Ok(match dtype(T::DTYPE)? {
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
        Dtype::F16 => values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect(),
        _ => values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
    })
}
