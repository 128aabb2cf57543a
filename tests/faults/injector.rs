//! A communicator round another, in which something goes wrong at a given point.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use attn::prelude::*;
use attn::{Cpu, Device, Error, KeyValue, Scope, Signature, Traffic, Transfer};

/// How long collectives wait in worlds in which faults are tried.
pub(crate) const DEADLINE: Duration = Duration::from_secs(1);

/// What a rank does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It panics.
    Panic,
    /// It returns an error.
    Error,
    /// It returns as if all were done.
    Leave,
    /// Its process exits.
    Exit,
    /// Its process is killed with -9.
    Kill,
    /// It sleeps past the deadline, and goes on.
    Sleep,
    /// It calls with other shapes.
    Shapes,
    /// It calls another collective.
    Other,
    /// Its connections are closed under it.
    Close,
}

impl Fault {
    /// All that a thread can do wrong, all that a process can, and what can happen to one that has sockets.
    pub(crate) const OF_THREADS: [Self; 6] =
        [Self::Panic, Self::Error, Self::Leave, Self::Sleep, Self::Shapes, Self::Other];
    #[cfg(feature = "mpi")]
    pub(crate) const OF_PROCESSES: [Self; 8] = [
        Self::Panic,
        Self::Error,
        Self::Leave,
        Self::Exit,
        Self::Kill,
        Self::Sleep,
        Self::Shapes,
        Self::Other,
    ];
    pub(crate) const OVER_SOCKETS: [Self; 9] = [
        Self::Panic,
        Self::Error,
        Self::Leave,
        Self::Exit,
        Self::Kill,
        Self::Sleep,
        Self::Shapes,
        Self::Other,
        Self::Close,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Panic => "panics",
            Self::Error => "returns an error",
            Self::Leave => "returns early",
            Self::Exit => "exits",
            Self::Kill => "is killed (-9)",
            Self::Sleep => "sleeps past the deadline",
            Self::Shapes => "calls with other shapes",
            Self::Other => "calls another collective",
            Self::Close => "finds its sockets closed",
        }
    }

    /// Whether it is one at a point: within a block of a ring nothing is called.
    pub(crate) fn fits(self, point: &str) -> bool {
        let called = point.starts_with("exchange") || point.starts_with("rotate");
        match self {
            Self::Shapes => called,
            Self::Other => called || point.starts_with("split"),
            _ => true,
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::OVER_SOCKETS.into_iter().find(|fault| format!("{fault:?}") == name);
        known.ok_or_else(|| format!("no fault is called {name}"))
    }
}

/// Which rank does what wrong, where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) rank: usize,
    /// The number of the point, counted from 0 in the order in which the rank comes to them.
    pub(crate) point: usize,
    pub(crate) fault: Fault,
}

/// One rank's end.
pub(crate) struct Faulty<C> {
    inner: C,
    shared: Arc<Shared>,
}

struct Shared {
    /// The rank's own fault, if it has one.
    plan: Option<Plan>,
    /// The points that the rank has come to.
    points: Mutex<Vec<String>>,
}

/// How a rank goes on from a point.
enum Way {
    Well,
    OtherShapes,
    OtherCollective,
}

impl<C: Communicator> Faulty<C> {
    /// One rank of a world that has a plan, or none.
    pub(crate) fn new(inner: C, plan: Option<Plan>) -> Self {
        let plan = plan.filter(|plan| plan.rank == inner.rank());
        Self { inner, shared: Arc::new(Shared { plan, points: Mutex::default() }) }
    }

    /// Where the rank's points are written down.
    pub(crate) fn points(&self) -> impl Fn() -> Vec<String> + use<C> {
        let shared = Arc::clone(&self.shared);
        move || shared.points.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    fn arrive(&self, point: impl fmt::Display) -> attn::Result<Way> {
        let number = {
            let mut points = self.points.lock().unwrap_or_else(PoisonError::into_inner);
            points.push(point.to_string());
            points.len() - 1
        };
        let Some(Plan { fault, .. }) = self.plan.filter(|plan| plan.point == number) else {
            return Ok(Way::Well);
        };
        match fault {
            Fault::Panic => panic!("on purpose"),
            Fault::Error => Err(Error::Configuration(String::from("an error on purpose"))),
            Fault::Leave => Err(left()),
            Fault::Exit => std::process::exit(7),
            Fault::Kill => {
                let me = std::process::id().to_string();
                let _ = std::process::Command::new("kill").args(["-9", &me]).status();
                std::thread::sleep(Duration::from_secs(60));
                Ok(Way::Well)
            }
            Fault::Sleep => {
                std::thread::sleep(DEADLINE + Duration::from_millis(500));
                Ok(Way::Well)
            }
            Fault::Shapes => Ok(Way::OtherShapes),
            Fault::Other => Ok(Way::OtherCollective),
            Fault::Close => {
                #[cfg(unix)]
                super::sockets::end_all();
                Ok(Way::Well)
            }
        }
    }
}

/// With what a rank leaves that is to return as if all were done.
fn left() -> Error {
    Error::Configuration(String::from("left on purpose"))
}

/// A rank that leaves on purpose has nothing to complain of.
pub(crate) fn quietly(outcome: attn::Result<()>) -> attn::Result<()> {
    if outcome.as_ref().is_err_and(|error| *error == left()) { Ok(()) } else { outcome }
}

const fn other_shapes(mut signature: Signature) -> Signature {
    signature.query[1] += 1;
    signature
}

impl<C: Communicator<Device = Cpu>> Communicator for Faulty<C> {
    type Device = Cpu;

    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn queue(&self) -> attn::Result<<Cpu as Device>::Queue> {
        self.inner.queue()
    }

    fn split(&self, color: usize, key: usize) -> attn::Result<Self> {
        if matches!(self.shared.arrive("split")?, Way::OtherCollective) {
            let queue = self.queue()?;
            let mut arena = attn::device::Arena::<Cpu>::default();
            self.inner.exchange(arena.open(&queue)?, &crate::suite::signature("other", 0), &mut [])?;
        }
        Ok(Self { inner: self.inner.split(color, key)?, shared: Arc::clone(&self.shared) })
    }

    fn exchange(
        &self,
        scope: Scope<'_, Cpu>,
        signature: &Signature,
        transfers: &mut [Transfer<'_, Cpu>],
    ) -> attn::Result<()> {
        match self.shared.arrive(format_args!("exchange, {}", signature.stage))? {
            Way::Well => self.inner.exchange(scope, signature, transfers),
            Way::OtherShapes => self.inner.exchange(scope, &other_shapes(*signature), transfers),
            Way::OtherCollective => self.inner.split(0, 0).map(drop),
        }
    }

    fn rotate<T: Element>(
        &self,
        scope: Scope<'_, Cpu>,
        signature: &Signature,
        lengths: &[usize],
        block: KeyValue<'_, T, Cpu>,
        mut visit: impl FnMut(usize, KeyValue<'_, T, Cpu>) -> attn::Result<()>,
    ) -> attn::Result<()> {
        let signature = match self.shared.arrive(format_args!("rotate, {}", signature.stage))? {
            Way::Well => *signature,
            Way::OtherShapes => other_shapes(*signature),
            Way::OtherCollective => return self.inner.exchange(scope, signature, &mut []),
        };
        let mut hop = 0;
        self.inner.rotate(scope, &signature, lengths, block, |owner, block| {
            self.shared.arrive(format_args!("kernel, hop {hop} of the ring"))?;
            hop += 1;
            visit(owner, block)
        })
    }

    fn traffic(&self) -> Traffic {
        self.inner.traffic()
    }
}
