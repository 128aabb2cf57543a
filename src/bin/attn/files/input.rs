//! The tensors of a file, checked.

use std::fs;
use std::io;
use std::path::Path;

use attn::{Cpu, DType, Element, Tensor, TensorLayout, View};
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::compute::Settings;
use crate::failure::Failure;
use crate::machine::Machine;
use crate::plan::{self, Run};
use crate::random::positions;

const JOINT: [&str; 3] = ["joint_q", "joint_k", "joint_v"];

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

    /// The one type of `q`, `k` and `v`.
    ///
    /// # Errors
    /// If they differ, or it is none to compute in.
    pub(super) fn dtype(&self) -> Result<DType, Failure> {
        self.one_dtype(&["q", "k", "v"])
    }

    /// Loads what the command line asks for, as elements of `T`.
    ///
    /// # Errors
    /// If a tensor is missing, superfluous, or of a shape or type that does not fit.
    pub(super) fn load<T: Element>(&self, settings: &Settings) -> Result<Inputs<T>, Failure> {
        let joint_here: Vec<&str> = JOINT.into_iter().filter(|name| self.file.tensor(name).is_ok()).collect();
        match (settings.joint, joint_here.as_slice()) {
            (None, [first, ..]) => {
                return Err(Failure::Input(format!(
                    "`{}` has the joint tensor `{first}`: say where joint tokens stand with `--joint front` or \
                     `--joint rear`",
                    self.path.display()
                )));
            }
            (Some(side), []) => {
                return Err(Failure::Input(format!(
                    "`--joint {}` needs the tensors `joint_q`, `joint_k` and `joint_v`, and `{}` has none of them",
                    side.name(),
                    self.path.display()
                )));
            }
            _ => {}
        }
        let names: Vec<&str> =
            ["q", "k", "v"].into_iter().chain(settings.joint.iter().flat_map(|_| JOINT)).collect();
        self.one_dtype(&names)?;
        let [q, k, v] = ["q", "k", "v"].map(|name| self.tensor(name, settings.layout));
        let (q, k, v) = (q?, k?, v?);
        let [batch, _, heads, head_dim] = q.shape();
        let [_, keys, kv_heads, _] = k.shape();
        k.expect([batch, keys, kv_heads, head_dim], "batch and head_dim of `q`")?;
        v.expect([batch, keys, kv_heads, head_dim], "the shape of `k`")?;
        let groups = heads.is_multiple_of(kv_heads);
        if !groups {
            return Err(Failure::Input(format!(
                "`k` and `v` have {kv_heads} heads, which do not divide the {heads} heads of `q`"
            )));
        }
        let joint = match settings.joint {
            None => None,
            Some(_) => {
                let [joint_q, joint_k, joint_v] = JOINT.map(|name| self.tensor(name, settings.layout));
                let (joint_q, joint_k, joint_v) = (joint_q?, joint_k?, joint_v?);
                let tokens = joint_q.shape()[1];
                joint_q.expect([batch, tokens, heads, head_dim], "the shape of `q` in all but seq")?;
                let keys = [batch, tokens, kv_heads, head_dim];
                joint_k.expect(keys, "seq of `joint_q`, and the shape of `k` in all else")?;
                joint_v.expect(keys, "the shape of `joint_k`")?;
                Some([joint_q, joint_k, joint_v])
            }
        };
        Ok(Inputs { q, k, v, joint })
    }

    /// The one type of several tensors.
    fn one_dtype(&self, names: &[&'static str]) -> Result<DType, Failure> {
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

    fn stored(&self, name: &str) -> Result<TensorView<'a>, Failure> {
        self.file.tensor(name).map_err(|_| {
            let mut names = self.file.names();
            names.sort_unstable();
            let there =
                if names.is_empty() { String::from("none") } else { format!("`{}`", names.join("`, `")) };
            Failure::Input(format!("`{}` has no tensor `{name}`; it has {there}", self.path.display()))
        })
    }

    fn tensor<T: Element>(&self, name: &'static str, layout: TensorLayout) -> Result<Loaded<T>, Failure> {
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
        Ok(Loaded { name, tensor, layout })
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

/// A tensor of a file, on a device.
pub(super) struct Loaded<T, D: Machine = Cpu> {
    name: &'static str,
    /// As stored.
    tensor: Tensor<T, D>,
    layout: TensorLayout,
}

impl<T: Element, D: Machine> Loaded<T, D> {
    /// `[batch, seq, heads, head_dim]`.
    pub(super) const fn shape(&self) -> [usize; 4] {
        self.layout.permute(self.tensor.shape())
    }

    /// The whole tensor, axes in that order.
    pub(super) fn view(&self) -> View<'_, T, D> {
        self.tensor.view().permuted(self.layout)
    }

    /// A rank's positions.
    pub(super) fn shard(&self, rank: usize, ranks: usize) -> attn::Result<View<'_, T, D>> {
        let positions = self.shape()[1] / ranks;
        self.view().narrow(1, rank * positions, positions)
    }
}

impl<T: Element> Loaded<T> {
    fn expect(&self, expected: [usize; 4], what: &str) -> Result<(), Failure> {
        if self.shape() != expected {
            let (name, found, layout) = (self.name, self.tensor.shape(), self.layout);
            let expected = layout.permute(expected);
            return Err(Failure::Input(format!(
                "tensor `{name}` has shape {found:?}, expected {expected:?} ({what}; axes are {layout})"
            )));
        }
        Ok(())
    }

    fn cast<U: Element>(&self) -> attn::Result<Loaded<U>> {
        Ok(Loaded { name: self.name, tensor: self.tensor.cast()?, layout: self.layout })
    }

    fn upload<D: Machine>(self, queue: &D::Queue) -> attn::Result<Loaded<T, D>> {
        Ok(Loaded { name: self.name, tensor: D::upload(queue, self.tensor)?, layout: self.layout })
    }
}

/// All tensors of a call.
pub(super) struct Inputs<T, D: Machine = Cpu> {
    pub(super) q: Loaded<T, D>,
    pub(super) k: Loaded<T, D>,
    pub(super) v: Loaded<T, D>,
    /// Queries, keys and values.
    pub(super) joint: Option<[Loaded<T, D>; 3]>,
}

impl<T: Element> Inputs<T> {
    /// Tensors that look random.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub(super) fn random(shape: [usize; 4]) -> attn::Result<Self> {
        let random = |name, stream| -> attn::Result<Loaded<T>> {
            Ok(Loaded { name, tensor: positions(stream, shape, 0, shape[1])?, layout: TensorLayout::Bshd })
        };
        Ok(Self { q: random("q", 1)?, k: random("k", 2)?, v: random("v", 3)?, joint: None })
    }

    /// The same as elements of another type.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub(super) fn cast<U: Element>(&self) -> attn::Result<Inputs<U>> {
        let joint = match &self.joint {
            None => None,
            Some([q, k, v]) => Some([q.cast()?, k.cast()?, v.cast()?]),
        };
        Ok(Inputs { q: self.q.cast()?, k: self.k.cast()?, v: self.v.cast()?, joint })
    }

    /// The same on a device.
    ///
    /// # Errors
    /// If the memory cannot be had, or the device reports an error.
    pub(super) fn upload<D: Machine>(self, queue: &D::Queue) -> attn::Result<Inputs<T, D>> {
        let joint = match self.joint {
            None => None,
            Some([q, k, v]) => Some([q.upload(queue)?, k.upload(queue)?, v.upload(queue)?]),
        };
        Ok(Inputs { q: self.q.upload(queue)?, k: self.k.upload(queue)?, v: self.v.upload(queue)?, joint })
    }

    /// Checks that a run can share them among its ranks.
    ///
    /// # Errors
    /// If it cannot.
    pub(super) fn check_split(&self, run: Run) -> Result<(), Failure> {
        let heads = [self.q.shape()[2], self.k.shape()[2]];
        plan::check_split(run, "`q`", self.q.shape()[1], heads)?;
        plan::check_split(run, "`k` and `v`", self.k.shape()[1], heads)
    }
}
