//! A safetensors file.

use std::fs;
use std::io;
use std::path::Path;

use attn::{DType, Element, Tensor, TensorLayout};
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::input::Loaded;
use crate::failure::Failure;

/// Finds out whether there is a file to read.
///
/// # Errors
/// If there is none, or it is something else.
pub(super) fn check(path: &Path) -> Result<(), Failure> {
    let fail = |error: io::Error| Failure::file("read", path, &error);
    match fs::metadata(path).map(|found| found.file_type()) {
        Ok(kind) if kind.is_dir() => Err(fail(io::Error::other("it is a folder"))),
        Ok(kind) if !kind.is_file() => Err(fail(io::Error::other("it is not a regular file"))),
        Ok(_) => Ok(()),
        Err(error) => Err(fail(error)),
    }
}

/// Reads a whole file.
///
/// # Errors
/// If it cannot be read.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| Failure::file("read", path, &error))
}

/// A safetensors file whose table is in order.
pub(super) struct Source<'a> {
    path: &'a Path,
    file: SafeTensors<'a>,
}

impl<'a> Source<'a> {
    /// Reads the table.
    ///
    /// # Errors
    /// If the bytes are no safetensors file, or not the whole of one.
    pub(super) fn parse(path: &'a Path, bytes: &'a [u8]) -> Result<Self, Failure> {
        let file = SafeTensors::deserialize(bytes).map_err(|error| {
            let (name, size) = (path.display(), bytes.len());
            Failure::Input(format!("`{name}` ({size} bytes) is no safetensors file, or is damaged: {error}"))
        })?;
        Ok(Self { path, file })
    }

    /// The file's name.
    pub(super) const fn path(&self) -> &'a Path {
        self.path
    }

    /// A tensor, if it is there.
    pub(super) fn find(&self, name: &str) -> Option<TensorView<'a>> {
        self.file.tensor(name).ok()
    }

    /// The names of all tensors, for a message.
    pub(super) fn names(&self) -> String {
        let mut names = self.file.names();
        names.sort_unstable();
        if names.is_empty() { String::from("none") } else { format!("`{}`", names.join("`, `")) }
    }

    /// The one type of several tensors.
    ///
    /// # Errors
    /// If they differ, or it is none to compute in.
    pub(super) fn one_dtype(&self, names: &[&'static str]) -> Result<DType, Failure> {
        let mut first: Option<(&str, DType)> = None;
        for name in names {
            let found = match self.stored(name)?.dtype() {
                Dtype::F32 => DType::F32,
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::BF16,
                other => {
                    return Err(Failure::Input(format!(
                        "tensor `{name}` has elements of type {other}: expected F32, F16 or BF16"
                    )));
                }
            };
            match first {
                Some((other, dtype)) if dtype != found => {
                    return Err(Failure::Input(format!(
                        "tensor `{name}` is {found}, but `{other}` is {dtype}: all must be of one type"
                    )));
                }
                _ => first = Some((name, found)),
            }
        }
        first
            .map(|(_, dtype)| dtype)
            .ok_or_else(|| Failure::Internal(String::from("no tensors to tell the type of")))
    }

    /// A tensor with four axes, as elements of `T`.
    ///
    /// # Errors
    /// If it is not there, or has other axes, or one of no length.
    pub(super) fn tensor<T: Element>(
        &self,
        name: &'static str,
        layout: TensorLayout,
    ) -> Result<Loaded<T>, Failure> {
        let stored = self.stored(name)?;
        let shape: [usize; 4] = stored.shape().try_into().map_err(|_| {
            let found = stored.shape();
            Failure::Input(format!("tensor `{name}` has shape {found:?}, expected four axes: {layout}"))
        })?;
        if shape.contains(&0) {
            return Err(Failure::Input(format!(
                "tensor `{name}` has shape {shape:?}: an axis of length 0 leaves nothing to attend"
            )));
        }
        let tensor = Tensor::from_slice(&decode(stored.dtype(), stored.data()), shape)?;
        Ok(Loaded::new(name, tensor, layout))
    }

    fn stored(&self, name: &str) -> Result<TensorView<'a>, Failure> {
        self.find(name).ok_or_else(|| {
            Failure::Input(format!(
                "`{}` has no tensor `{name}`; it has {}",
                self.path.display(),
                self.names()
            ))
        })
    }
}

/// Elements as stored, little-endian, rounded to `T` if they are of another type.
fn decode<T: Element>(dtype: Dtype, data: &[u8]) -> Vec<T> {
    match dtype {
        Dtype::F32 => data.as_chunks().0.iter().map(|word| T::from_f32(f32::from_le_bytes(*word))).collect(),
        Dtype::F16 => {
            data.as_chunks().0.iter().map(|word| T::from_f32(f16::from_le_bytes(*word).to_f32())).collect()
        }
        _ => data.as_chunks().0.iter().map(|word| T::from_f32(bf16::from_le_bytes(*word).to_f32())).collect(),
    }
}
