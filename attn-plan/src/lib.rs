//! What `attn`'s macro, runtime and program must agree on before any tensor exists: which axis numbers are a
//! layout, which degrees divide which head counts. Pure functions of integers, no dependencies, so that the
//! attribute can ask at compile time what the runtime asks at start-up.

mod heads;
mod layout;

pub use heads::{HeadSplitError, KvGroupError, check_head_split, check_kv_group, degrees, divisors};
pub use layout::TensorLayout;
