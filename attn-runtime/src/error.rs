//! What can go wrong, with the numbers in it.

use crate::tensor::DType;

/// The result of everything here that can fail.
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// An error of this crate. Messages name the numbers at fault and, where there is one, the cure.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor's shape is not what the call needs.
    #[error("`{tensor}` has shape {found:?}, expected {expected}")]
    Shape {
        /// Which tensor.
        tensor: &'static str,
        /// Its shape, in the caller's layout.
        found: [usize; 4],
        /// What would have been right.
        expected: String,
    },

    /// A tensor has an axis of length zero.
    #[error("`{tensor}` has shape {found:?}: an axis of length 0 leaves nothing to attend")]
    Empty {
        /// Which tensor.
        tensor: &'static str,
        /// Its shape, in the caller's layout.
        found: [usize; 4],
    },

    /// A buffer is too short for the shape and strides that were to be laid over it.
    #[error("shape {shape:?} with strides {strides:?} needs {needed} elements, the buffer holds {found}")]
    Bounds {
        /// The shape asked for.
        shape: [usize; 4],
        /// Distance between neighbours of each axis, in elements.
        strides: [usize; 4],
        /// How many elements these reach.
        needed: usize,
        /// How many there are.
        found: usize,
    },

    /// A shape whose number of bytes does not fit the address space.
    #[error("shape {shape:?} of {dtype} is more than this machine can address")]
    TooLarge {
        /// The shape asked for.
        shape: [usize; 4],
        /// The element type.
        dtype: DType,
    },

    /// An allocation failed.
    #[error("could not allocate {bytes} bytes of {device} memory")]
    OutOfMemory {
        /// The device's name.
        device: &'static str,
        /// How many bytes were asked for.
        bytes: usize,
    },

    /// Key and value heads that do not divide the query heads.
    #[error(transparent)]
    KvGroup(#[from] attn_plan::KvGroupError),

    /// Heads that the strategy's degree does not divide.
    #[error("{0}; or use `split = \"uneven\"`")]
    HeadSplit(#[from] attn_plan::HeadSplitError),

    /// A sequence that does not divide.
    #[error("`{tensor}`: {error}")]
    SeqSplit {
        /// Which tensor.
        tensor: &'static str,
        /// What does not divide.
        error: attn_plan::SeqSplitError,
    },

    /// An uneven split without the lengths of the whole sequences.
    #[error(
        "`split = \"uneven\"` needs the lengths of the whole sequences, which cannot be told from a shard of \
         {positions} positions: give them with `AttentionMetadata::with_sequence`"
    )]
    SequenceNeeded {
        /// The query's positions on this rank.
        positions: usize,
    },

    /// A whole sequence without positions.
    #[error(
        "the whole sequences are said to have {query} queries and {key} keys: give their lengths over all ranks, each at \
         least 1"
    )]
    EmptySequence {
        /// Positions of the query.
        query: usize,
        /// Positions of key and value.
        key: usize,
    },

    /// A norm or a rotation of queries or keys that does not fit its tensor.
    #[error("`edges.{edge}`: {message}")]
    Edge {
        /// Of which tensor: `query`.
        edge: &'static str,
        /// What does not fit.
        message: String,
    },

    /// A mask whose numbers do not fit the call.
    #[error("`{mask}` {message}")]
    Mask {
        /// Which mask: `key_lengths`.
        mask: &'static str,
        /// What does not fit.
        message: String,
    },

    /// A mask that the kernel, or a strategy of a user's own round it, does not take.
    #[error(
        "the mask `{mask}` is not taken by this strategy with this kernel: they take {takes}; use others, or another mask \
         (types of your own say in `MASKS` what they take)"
    )]
    MaskKind {
        /// The call's masks.
        mask: attn_plan::Mask,
        /// What strategy and kernel take.
        takes: attn_plan::MaskKinds,
    },

    /// A strategy was given what it does not say that it takes.
    #[error(
        "the strategy does not take {what}: use one that does, such as `ulysses`, or, if it is yours and handles them, say \
         `const {constant}: bool = true` in its `ParallelAttentionStrategy`"
    )]
    NotTaken {
        /// What it was given.
        what: &'static str,
        /// The trait's constant that says whether it takes them.
        constant: &'static str,
    },

    /// A number that the attribute fixed, and a tensor or group that differs.
    #[error("the attribute says `{key} = {declared}`, but this call has {found}")]
    Declared {
        /// The attribute's key.
        key: &'static str,
        /// Its value there.
        declared: String,
        /// The value met.
        found: String,
    },

    /// `strategy = "none"` on a group of several ranks.
    #[error(
        "strategy `none` runs on one rank, this group has {ranks}: use one rank, or a strategy that shards the \
         sequence, such as `ulysses` or `ring`"
    )]
    NotParallel {
        /// The size of the group.
        ranks: usize,
    },

    /// Some, but not all, of `joint_query`, `joint_key`, `joint_value`.
    #[error(
        "joint tensors come together: `joint_query` is {query}, `joint_key` is {key}, `joint_value` is {value}"
    )]
    JointIncomplete {
        /// `given` or `missing`.
        query: &'static str,
        /// `given` or `missing`.
        key: &'static str,
        /// `given` or `missing`.
        value: &'static str,
    },

    /// A mask that has no meaning together with joint tensors.
    #[error(
        "a {mask} mask cannot be combined with joint tensors: the joint tokens have no position among the others; \
         masks that can are none, padding and dense"
    )]
    JointMask {
        /// The masks.
        mask: attn_plan::Mask,
    },

    /// A configuration that the group or the offered strategies cannot give.
    #[error("{0}")]
    Configuration(String),

    /// Strides by which two indices of a tensor that is to be written meet at one element.
    #[error("strides {strides:?} reach one element of shape {shape:?} by two indices: it cannot be written")]
    Overlap {
        /// The shape asked for.
        shape: [usize; 4],
        /// Distance between neighbours of each axis, in elements.
        strides: [usize; 4],
    },

    /// Part of an axis that the axis does not have.
    #[error("{length} positions from {start} on of axis {axis} reach beyond shape {shape:?}")]
    Range {
        /// The axis.
        axis: usize,
        /// The first position asked for.
        start: usize,
        /// How many.
        length: usize,
        /// The tensor's shape.
        shape: [usize; 4],
    },

    /// A plan's region that lies outside its tensor, or parts of a plan that do not fit each other.
    #[error("exchange plan: {0}")]
    Plan(String),

    /// A softmax scale that is not a finite number.
    #[error("softmax scale {0} is not a finite number")]
    Scale(f32),

    /// Ranks of one group made different calls.
    #[error("rank {rank} differs from its group: it called {theirs}, where {others} called {expected}")]
    RanksDisagree {
        /// The rank that differs, numbered in the world (the lowest of its group, if several do).
        rank: usize,
        /// What it called.
        theirs: String,
        /// Who called what most ranks called.
        others: String,
        /// What most ranks called.
        expected: String,
    },

    /// A rank returned an error or gave up inside a collective call.
    #[error("rank {rank} failed: {message}")]
    RankFailed {
        /// The rank, numbered in the world.
        rank: usize,
        /// What it said.
        message: String,
    },

    /// A rank panicked.
    #[error("rank {rank} panicked: {message}")]
    RankPanicked {
        /// The rank, numbered in the world.
        rank: usize,
        /// The panic's message.
        message: String,
    },

    /// A rank was lost: its process has ended or cannot be reached.
    #[error(
        "rank {rank} is lost, and {operation} (collective number {sequence} of its group) waits for it: {why}"
    )]
    RankLost {
        /// The rank, numbered in the world.
        rank: usize,
        /// The collective that waits.
        operation: String,
        /// The collective's number, counted per group from 1.
        sequence: u64,
        /// What is known about it.
        why: String,
    },

    /// A library that carries messages between ranks reported an error.
    #[error("{library} reported an error from {call}: {text}")]
    Library {
        /// Which: `MPI`, `NCCL`.
        library: &'static str,
        /// What was called: `MPI_Isend`.
        call: &'static str,
        /// What it says about it.
        text: String,
    },

    /// Variables of the environment, by which a launcher tells a process its place, that are missing or make no sense.
    #[error("{0}")]
    Environment(String),

    /// A rank ended while others still waited for it.
    #[error(
        "rank {rank} has ended, but {operation} (collective number {sequence} of its group) waits for it"
    )]
    RankLeft {
        /// The rank, numbered in the world.
        rank: usize,
        /// The collective that waits.
        operation: String,
        /// The collective's number, counted per group from 1.
        sequence: u64,
    },

    /// A collective's deadline passed.
    #[error(
        "{operation} (collective number {sequence} of its group) passed its deadline of {seconds} s: ranks \
         {missing:?} had not arrived"
    )]
    Deadline {
        /// The collective that waited.
        operation: String,
        /// The collective's number, counted per group from 1.
        sequence: u64,
        /// The deadline in seconds.
        seconds: f64,
        /// The ranks that had not come or whose data was late, numbered in the world.
        missing: Vec<usize>,
    },

    /// A collective was called while another one of the same rank and group was under way.
    #[error(
        "a collective was called while another one of the same rank and group was under way, in it or on another thread"
    )]
    Reentrant,

    /// A group or team size that cannot be.
    #[error("{what} must be at least 1")]
    ZeroSize {
        /// What was zero.
        what: &'static str,
    },

    /// The device, its driver or its simulator reported an error. A GPU reports a fault at whichever call comes next,
    /// so the cause may lie in work that was queued before; after a fault in a kernel the process can use it no more.
    #[error("{name} ({text}) reported by `{launch}` on {device}")]
    Device {
        /// Which device: `cuda:0`.
        device: String,
        /// What was launched or called.
        launch: &'static str,
        /// The vendor's name of the error: `cudaErrorIllegalAddress`.
        name: String,
        /// What the vendor says about it.
        text: String,
    },

    /// A kernel was asked for what it does not compute.
    #[error("the GPU kernel `{kernel}` does not take {what}: {supported}")]
    Unsupported {
        /// The kernel.
        kernel: &'static str,
        /// What was asked for.
        what: String,
        /// What it takes, or what to do instead.
        supported: String,
    },

    /// An address or a stride that the device cannot step by.
    #[error(
        "`{tensor}`: its {what} is no multiple of the {needed} bytes that the GPU moves at a time: slice it at such \
         multiples, or copy it into a tensor of its own"
    )]
    Misaligned {
        /// Which tensor.
        tensor: &'static str,
        /// Its address, or the stride of one of its axes, with the number.
        what: String,
        /// What would have to divide it.
        needed: usize,
    },

    /// A device, its driver or a library that is not there.
    #[error("{what} is not available: {why}; {cure}")]
    Unavailable {
        /// What was looked for.
        what: &'static str,
        /// What was found instead.
        why: String,
        /// What to do.
        cure: String,
    },

    /// A call that cannot be recorded was made while its queue records a graph.
    #[error("{what} cannot be captured in a graph: {cure}")]
    Capturing {
        /// What was called.
        what: &'static str,
        /// What to do.
        cure: &'static str,
    },

    /// The operating system would start no thread.
    #[error("could not start a thread: {0}")]
    Thread(String),
}

impl From<attn_plan::SeqSplitError> for Error {
    fn from(error: attn_plan::SeqSplitError) -> Self {
        Self::SeqSplit { tensor: "sequence", error }
    }
}

impl From<attn_plan::HeadError> for Error {
    fn from(error: attn_plan::HeadError) -> Self {
        match error {
            attn_plan::HeadError::Group(error) => Self::KvGroup(error),
            attn_plan::HeadError::Split(error) => Self::HeadSplit(error),
        }
    }
}

impl Error {
    /// A pipeline was asked for a strategy that it does not offer.
    #[doc(hidden)]
    pub fn unknown_choice(choice: usize, offered: &[&str]) -> Self {
        Self::Configuration(format!("there is no strategy number {choice} among {}", offered.join(", ")))
    }
}
