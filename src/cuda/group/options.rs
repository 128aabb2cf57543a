//! How a communicator of GPUs is opened.

use std::time::Duration;

use attn_runtime::{Error, Result};

/// How long a collective may wait for its peers, unless said otherwise.
const DEADLINE: Duration = Duration::from_secs(300);

/// What carries tensors from GPU to GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// The direct exchange where all ranks have it; else NCCL, and the log says why.
    #[default]
    Auto,
    /// Kernels that write into the peers' memory ([`Direct`](crate::cuda::direct::Direct)): for ranks that are threads of one
    /// process, on GPUs that reach each other.
    Direct,
    /// NCCL.
    Nccl,
}

/// When ranks compare what they call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Check {
    /// The first call of each kind and shape. Later ones are not waited for by the host.
    #[default]
    First,
    /// Every call: for finding out which rank goes astray. Slow, since hosts wait for each other.
    Always,
}

/// How a [`GpuComm`](super::GpuComm) is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuOptions {
    pub(super) transport: Transport,
    pub(super) check: Check,
    pub(super) deadline: Duration,
}

impl Default for GpuOptions {
    fn default() -> Self {
        Self { transport: Transport::Auto, check: Check::First, deadline: DEADLINE }
    }
}

impl GpuOptions {
    /// The defaults, but for what the environment says: ATTN_DEADLINE (seconds), ATTN_CHECK (`first`, `always`).
    ///
    /// # Errors
    /// If it says something else.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let mut options = Self::default();
        if let Some(said) = variable("ATTN_DEADLINE") {
            let seconds = said.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            options.deadline = seconds.filter(|deadline| !deadline.is_zero()).ok_or_else(|| {
                Error::Environment(format!("ATTN_DEADLINE is `{said}`, expected seconds, such as 300 or 2.5"))
            })?;
        }
        if let Some(said) = variable("ATTN_CHECK") {
            options.check = match said.as_str() {
                "first" => Check::First,
                "always" => Check::Always,
                _ => {
                    let said = format!("ATTN_CHECK is `{said}`, expected `first` or `always`");
                    return Err(Error::Environment(said));
                }
            };
        }
        Ok(options)
    }

    /// Sets what carries tensors.
    #[must_use]
    pub const fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// Sets when ranks compare what they call.
    #[must_use]
    pub const fn check(mut self, check: Check) -> Self {
        self.check = check;
        self
    }

    /// Sets how long a collective may wait for its peers once this rank has come to it (five minutes, unless set).
    #[must_use]
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Result<GpuOptions> {
        GpuOptions::from_variables(|name| {
            pairs.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_sets_deadline_and_check() {
        assert_eq!(from(&[]), Ok(GpuOptions::default()));
        let set = GpuOptions::default().deadline(Duration::from_millis(2500)).check(Check::Always);
        assert_eq!(from(&[("ATTN_DEADLINE", "2.5"), ("ATTN_CHECK", "always")]), Ok(set));
        for (name, value) in
            [("ATTN_DEADLINE", "soon"), ("ATTN_DEADLINE", "-1"), ("ATTN_DEADLINE", "0"), ("ATTN_CHECK", "")]
        {
            let said = from(&[(name, value)]).unwrap_err().to_string();
            assert!(said.contains(name) && said.contains("expected"), "{said}");
        }
    }
}
