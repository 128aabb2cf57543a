//! Variables of the environment, and what is wrong with them.

use std::ffi::OsString;
use std::time::Duration;

use super::launcher::Launcher;
use crate::error::{Error, Result};

/// A longer deadline than this is a mistake.
const YEAR: f64 = 365.0 * 86_400.0;

/// Looks up variables.
pub(super) struct Variables<'l> {
    lookup: &'l dyn Fn(&str) -> Option<OsString>,
}

/// A number, and where it comes from.
#[derive(Clone, Debug)]
pub(super) struct Number {
    pub(super) launcher: &'static Launcher,
    pub(super) variable: &'static str,
    pub(super) value: usize,
}

impl<'l> Variables<'l> {
    pub(super) const fn new(lookup: &'l dyn Fn(&str) -> Option<OsString>) -> Self {
        Self { lookup }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        (self.lookup)(name).is_some()
    }

    /// A text that is not empty.
    pub(super) fn text(&self, launcher: &'static Launcher, variable: &'static str) -> Result<Option<String>> {
        // The name of a variable that the launcher does not have.
        if variable.is_empty() {
            return Ok(None);
        }
        let Some(value) = (self.lookup)(variable) else { return Ok(None) };
        match value.into_string() {
            Ok(text) if text.is_empty() => Err(launcher.wrong(variable, &text, "it is empty")),
            Ok(text) => Ok(Some(text)),
            Err(bytes) => Err(launcher.wrong(variable, &bytes.to_string_lossy(), "it is not UTF-8 text")),
        }
    }

    /// A number from 0 on.
    pub(super) fn number(
        &self,
        launcher: &'static Launcher,
        variable: &'static str,
    ) -> Result<Option<Number>> {
        let Some(text) = self.text(launcher, variable)? else { return Ok(None) };
        match text.trim().parse() {
            Ok(value) => Ok(Some(Number { launcher, variable, value })),
            Err(_) => Err(launcher.wrong(variable, &text, "it must be a whole number from 0 on")),
        }
    }

    /// A time in seconds, more than none.
    pub(super) fn seconds(
        &self,
        launcher: &'static Launcher,
        variable: &'static str,
    ) -> Result<Option<Duration>> {
        let Some(text) = self.text(launcher, variable)? else { return Ok(None) };
        let seconds = text.trim().parse::<f64>().ok().filter(|seconds| (1e-3..=YEAR).contains(seconds));
        let wrong = || launcher.wrong(variable, &text, "it must be a number of seconds, such as 300 or 0.5");
        seconds.map(|seconds| Some(Duration::from_secs_f64(seconds))).ok_or_else(wrong)
    }
}

impl Number {
    fn wrong(&self, why: &str) -> Error {
        self.launcher.wrong(self.variable, &self.value.to_string(), why)
    }

    pub(super) fn at_least(&self, least: usize) -> Result<()> {
        if self.value < least {
            return Err(self.wrong(&format!("it must be at least {least}")));
        }
        Ok(())
    }

    pub(super) fn at_most(&self, most: usize) -> Result<()> {
        if self.value > most {
            return Err(self.wrong(&format!("it must be at most {most}")));
        }
        Ok(())
    }

    pub(super) fn at_most_of(&self, all: &Self) -> Result<()> {
        if self.value > all.value {
            return Err(self.wrong(&format!("it must be at most `{}`, which is {}", all.variable, all.value)));
        }
        Ok(())
    }

    pub(super) fn below(&self, all: &Self) -> Result<()> {
        if self.value >= all.value {
            return Err(self.wrong(&format!(
                "it must be less than `{}`, which is {}, since ranks count from 0",
                all.variable, all.value
            )));
        }
        Ok(())
    }

    /// The port so many above this number.
    pub(super) fn port(&self, above: usize) -> Result<u16> {
        let port = self.value.checked_add(above).and_then(|port| u16::try_from(port).ok());
        port.filter(|_| self.value > 0).ok_or_else(|| {
            self.wrong(&format!("it must be a port number from 1 to {}", usize::from(u16::MAX) - above))
        })
    }
}

/// Nothing in the environment tells of ranks.
pub(super) fn nobody() -> Error {
    Error::Environment(
        "nothing in the environment tells this process its rank. Start it with `attn launch -n 4 -- PROGRAM`, \
         `mpirun -n 4 PROGRAM`, `torchrun --nproc-per-node 4 --no-python PROGRAM` or `srun -n 4 PROGRAM`, or set `ATTN_RANK` \
         and `ATTN_WORLD_SIZE`; ranks that are threads of one process need none of these: `World::threads`"
            .into(),
    )
}
