//! What `attn`'s macro, runtime and program must agree on before any tensor exists: which axis numbers are a
//! layout, which rank holds which positions and heads, how masks are written. Pure functions of integers and strings,
//! no dependencies, so that the attribute can ask at compile time what the runtime asks at start-up.

mod head_layout;
mod heads;
mod layout;
mod mask;
mod positions;
mod sharding;
mod split;

pub use head_layout::{HeadError, HeadLayout, HeadRun};
pub use heads::{HeadSplitError, KvGroupError, check_head_split, check_kv_group, degrees, divisors};
pub use layout::TensorLayout;
pub use mask::{Mask, MaskError, MaskKinds, Span};
pub use positions::{Positions, Run};
pub use sharding::{RingLayout, SeqSplitError, SequenceLayout, Sharding};
pub use split::{Split, portion};
