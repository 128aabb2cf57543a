//! Stage 2: arguments become a plan, or every error in them.
//!
//! One mistake is one error: what was given but cannot be used is [`Setting::Faulty`](settings::Setting), and the
//! checks that would need it are left out.

mod axes;
mod backend;
mod degrees;
mod mask;
mod settings;
mod strategies;
mod values;

use attn_plan::{RingLayout, Split};
use settings::Settings;
use syn::Path;
use values::{count, flag, path, scale};

use crate::diag::Errors;
use crate::parse::Arg;
use crate::plan::{Plan, Spec, Strategies};
use crate::registry::{Backend, Key};

/// Gives the arguments their meaning. `None` if there was an error.
pub(crate) fn plan(args: &[Arg], backends: &[Backend], errors: &mut Errors) -> Option<Plan> {
    let mut settings = Settings::collect(args, errors);
    let strategies = settings.strategies();
    let offers = strategies.as_ref().value().map_or(&[][..], Strategies::offers);
    settings.check_owners(offers);
    let tensor_layout = settings.tensor_layout();
    let heads = settings.read(Key::Heads, count);
    let kv_heads = settings.read(Key::KvHeads, count);
    let head_dim = settings.read(Key::HeadDim, count);
    let degrees = settings.degrees();
    let layout = settings.named(Key::Layout, &RingLayout::ALL);
    let split = settings.named(Key::Split, &Split::ALL);
    let agree = settings.check_product(offers, &degrees);
    let head_counts = settings.head_counts(heads, kv_heads);
    if let (true, Some(counts), Some((Split::Strict, _))) = (agree, head_counts, split.or(&Split::Strict)) {
        settings.check_heads(offers, &degrees, counts);
    }
    let scale = settings.read(Key::Scale, scale);
    let mask = settings.mask();
    let use_sync = settings.read(Key::UseSync, flag);
    let fuse_qkv = settings.read(Key::FuseQkv, flag);
    let kernel = settings.kernel(backends, offers);
    settings.read(Key::Crate, path);

    let spec = Spec {
        heads: heads.value(),
        kv_heads: kv_heads.value(),
        head_dim: head_dim.value(),
        degree: degrees.whole.value(),
        ulysses: degrees.part(Key::Ulysses).value(),
        ring: degrees.part(Key::Ring).value(),
        allgather: degrees.part(Key::AllGather).value(),
        layout: layout.value().copied(),
        split: split.value().copied(),
        scale: scale.value(),
        mask: mask.value(),
        use_sync: use_sync.value(),
        fuse_qkv: fuse_qkv.value(),
    };
    let plan = Plan { strategies: strategies.value()?, layout: tensor_layout?, kernel: kernel?, spec };
    errors.is_empty().then_some(plan)
}

/// The path of the crate `attn`, if `crate = ..` gives one that can be read.
pub(crate) fn base(args: &[Arg]) -> Option<Path> {
    args.iter().find(|arg| arg.key == Key::Crate.row().name).and_then(|arg| path(&arg.value))
}
