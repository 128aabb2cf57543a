//! The tensors of a call, checked.

use attn::{Element, KeyPlacement, Positions, Tensor, TensorLayout};

use super::compute::Settings;
use super::positions::PositionAxis;
use super::source::Source;
use crate::failure::Failure;
use crate::plan::{self, Run};
use crate::random::positions;

/// Those that every file has.
pub(super) const PLAIN: [&str; 3] = ["q", "k", "v"];

const JOINT: [&str; 3] = ["joint_q", "joint_k", "joint_v"];

/// A tensor of all ranks.
pub(super) struct Loaded<T> {
    name: &'static str,
    /// As stored.
    tensor: Tensor<T>,
    layout: TensorLayout,
}

impl<T: Element> Loaded<T> {
    pub(super) const fn new(name: &'static str, tensor: Tensor<T>, layout: TensorLayout) -> Self {
        Self { name, tensor, layout }
    }

    /// `[batch, seq, heads, head_dim]`.
    pub(super) const fn shape(&self) -> [usize; 4] {
        self.layout.permute(self.tensor.shape())
    }

    /// Some of its positions as a tensor of their own, stored in the same layout.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub(super) fn gather(&self, positions: Positions) -> attn::Result<Tensor<T>> {
        let (mut shape, (_, axis)) = (self.tensor.shape(), self.layout.axes());
        let elements = PositionAxis::of(shape, axis).gather(self.tensor.as_slice(), positions)?;
        shape[axis] = positions.len();
        Tensor::from_slice(&elements, shape)
    }

    /// All of it, as a tensor of its own.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub(super) fn whole(&self) -> attn::Result<Tensor<T>> {
        Tensor::from_slice(self.tensor.as_slice(), self.tensor.shape())
    }

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
}

/// All tensors of a call, whole and on the host.
pub(super) struct Inputs<T> {
    pub(super) q: Loaded<T>,
    pub(super) k: Loaded<T>,
    pub(super) v: Loaded<T>,
    /// Queries, keys and values.
    pub(super) joint: Option<[Loaded<T>; 3]>,
}

/// What masks must fit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) heads: usize,
    /// Positions of queries and of keys, without joint tokens.
    pub(super) query: usize,
    pub(super) key: usize,
    pub(super) joint: usize,
}

impl<T: Element> Inputs<T> {
    /// Loads what the command line asks for from a file.
    ///
    /// # Errors
    /// If a tensor is missing, superfluous, or of a shape or type that does not fit.
    pub(super) fn load(source: &Source<'_>, settings: &Settings) -> Result<Self, Failure> {
        let joint_here: Vec<&str> = JOINT.into_iter().filter(|name| source.find(name).is_some()).collect();
        match (settings.joint, joint_here.as_slice()) {
            (None, [first, ..]) => {
                return Err(Failure::Input(format!(
                    "`{}` has the joint tensor `{first}`: say where joint tokens stand with `--joint front` or \
                     `--joint rear`",
                    source.path().display()
                )));
            }
            (Some(side), []) => {
                return Err(Failure::Input(format!(
                    "`--joint {}` needs the tensors `joint_q`, `joint_k` and `joint_v`, and `{}` has none of them",
                    side.name(),
                    source.path().display()
                )));
            }
            _ => {}
        }
        let names: Vec<&str> = PLAIN.into_iter().chain(settings.joint.iter().flat_map(|_| JOINT)).collect();
        source.one_dtype(&names)?;
        let [q, k, v] = PLAIN.map(|name| source.tensor(name, settings.layout));
        let (q, k, v): (Loaded<T>, Loaded<T>, Loaded<T>) = (q?, k?, v?);
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
                let [joint_q, joint_k, joint_v] = JOINT.map(|name| source.tensor(name, settings.layout));
                let (joint_q, joint_k, joint_v) = (joint_q?, joint_k?, joint_v?);
                let tokens = joint_q.shape()[1];
                joint_q.expect([batch, tokens, heads, head_dim], "the shape of `q` in all but seq")?;
                let keys = [batch, tokens, kv_heads, head_dim];
                joint_k.expect(keys, "seq of `joint_q`, and the shape of `k` in all else")?;
                joint_v.expect(keys, "the shape of `joint_k`")?;
                Some([joint_q, joint_k, joint_v])
            }
        };
        Ok(Self { q, k, v, joint })
    }

    /// Tensors that look random.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub(super) fn random(shape: [usize; 4]) -> attn::Result<Self> {
        let random = |name, stream| -> attn::Result<Loaded<T>> {
            Ok(Loaded::new(name, positions(stream, shape, 0, shape[1])?, TensorLayout::Bshd))
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

    pub(super) fn sizes(&self) -> Sizes {
        let [batch, query, heads, _] = self.q.shape();
        let joint = self.joint.as_ref().map_or(0, |[query, ..]| query.shape()[1]);
        Sizes { batch, heads, query, key: self.k.shape()[1], joint }
    }

    /// Checks that a run can share them among its ranks.
    ///
    /// # Errors
    /// If it cannot.
    pub(super) fn check_split(&self, run: Run, keys: KeyPlacement) -> Result<(), Failure> {
        plan::check_heads(run, [self.q.shape()[2], self.k.shape()[2]])?;
        plan::check_sequence(run, "`q`", self.q.shape()[1])?;
        match keys {
            KeyPlacement::Sharded => plan::check_sequence(run, "`k` and `v`", self.k.shape()[1]),
            KeyPlacement::Replicated => Ok(()),
        }
    }
}
