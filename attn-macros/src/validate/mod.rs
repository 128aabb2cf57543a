//! Stage 2: arguments become a plan, or every error in them.
//!
//! One mistake is one error: what was given but cannot be used is [`Setting::Faulty`](settings::Setting), and the
//! checks that would need it are left out.

mod axes;
mod backend;
mod heads;
mod settings;
mod strategies;
mod values;

use settings::Settings;
use syn::Path;
use values::{count, flag, path, scale, string};

use crate::diag::Errors;
use crate::parse::Arg;
use crate::plan::{Plan, Spec};
use crate::registry::{Backend, Key, MASKS};

/// Gives the arguments their meaning. `None` if there was an error.
pub(crate) fn plan(args: &[Arg], backends: &[Backend], errors: &mut Errors) -> Option<Plan> {
    let mut settings = Settings::collect(args, errors);
    let strategies = settings.strategies();
    settings.check_owners(&strategies);
    let layout = settings.layout();
    let heads = settings.read(Key::Heads, count);
    let kv_heads = settings.read(Key::KvHeads, count);
    let head_dim = settings.read(Key::HeadDim, count);
    let degree = settings.read(Key::Degree, count);
    settings.check_heads(&strategies, heads, kv_heads, degree);
    let scale = settings.read(Key::Scale, scale);
    let mask = settings.read(Key::Mask, string);
    let mask = settings.named(mask, &MASKS);
    let use_sync = settings.read(Key::UseSync, flag);
    let kernel = settings.kernel(backends);
    settings.read(Key::Crate, path);

    let spec = Spec {
        heads: heads.value(),
        kv_heads: kv_heads.value(),
        head_dim: head_dim.value(),
        degree: degree.value(),
        scale: scale.value(),
        mask: mask.value(),
        use_sync: use_sync.value(),
    };
    let plan = Plan { strategies: strategies.value()?, layout: layout?, kernel: kernel?, spec };
    errors.is_empty().then_some(plan)
}

/// The path of the crate `attn`, if `crate = ..` gives one that can be read.
pub(crate) fn base(args: &[Arg]) -> Option<Path> {
    args.iter().find(|arg| arg.key == Key::Crate.row().name).and_then(|arg| path(&arg.value))
}
