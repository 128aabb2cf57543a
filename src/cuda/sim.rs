//! The GPU's kernels on the host, for tests: the same sources, built by a C++ compiler against a simulator.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr::NonNull;
use std::ffi::OsString;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use attn_runtime::device::cpu::CpuMemory;
use attn_runtime::device::{Device, EdgeCopy, StridedCopy};
use attn_runtime::{Error, Result};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::abi::{self, Launchers, for_each_launcher};
use super::copy;
use super::edge;
use super::lane::{Lane, Mark};
use super::launches::{Backend, GpuQueue, Witness};
use super::loader::told;

/// A simulated GPU, of compute capability 9.0 unless its queue says otherwise, for tests: it runs the kernels of `Cuda` thread by thread on
/// the host, many thousand times slower, and reports races, deadlocks and reads of what was not yet written.
///
/// Its memory is the host's. A queue runs at once. (What a communicator of simulated GPUs sends and receives runs beside
/// it, on a thread.)
#[derive(Clone, Copy, Debug)]
pub struct Simulated;

impl Simulated {
    /// Sets the seed of every queue made from now on: in which order the simulated threads run, and how long the copy
    /// engine takes. Results must not depend on it.
    pub fn seed(seed: u64) {
        SEED.store(seed, Ordering::Relaxed);
    }
}

/// The seed of queues that are given none.
static SEED: AtomicU64 = AtomicU64::new(1);

/// The queue of a simulated GPU: what is queued is done when the call returns.
#[derive(Clone)]
pub struct SimQueue {
    simulator: &'static Simulator,
    seed: u64,
    /// Where work runs that other ranks take part in; what a communicator's own queue has.
    lane: Option<Arc<Lane>>,
    condemned: Arc<OnceLock<Error>>,
    witnesses: Arc<Mutex<Vec<Weak<dyn Witness>>>>,
    capability: (u32, u32),
}

impl SimQueue {
    /// A queue on the simulated GPU.
    ///
    /// # Errors
    /// If the simulator's library cannot be loaded.
    pub fn new() -> Result<Self> {
        Self::seeded(SEED.load(Ordering::Relaxed))
    }

    /// A queue with a seed of its own.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn seeded(seed: u64) -> Result<Self> {
        static SIMULATOR: OnceLock<Result<Simulator>> = OnceLock::new();
        let simulator = SIMULATOR.get_or_init(Simulator::load).as_ref().map_err(Clone::clone)?;
        Ok(Self {
            simulator,
            seed,
            lane: None,
            condemned: Arc::default(),
            witnesses: Arc::default(),
            capability: (9, 0),
        })
    }

    /// The queue as one of another card, of a compute capability (major, minor): kernels are chosen for that.
    #[must_use]
    pub fn of_capability(self, major: u32, minor: u32) -> Self {
        Self { capability: (major, minor), ..self }
    }

    /// That what the queue has done was all that it was asked for.
    fn believed(&self) -> Result<()> {
        self.sound()?;
        let witnesses = self.witnesses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        witnesses.iter().filter_map(Weak::upgrade).try_for_each(|witness| witness.testify())
    }

    /// That the queue was not condemned.
    fn sound(&self) -> Result<()> {
        self.condemned.get().map_or(Ok(()), |error| Err(error.clone()))
    }
}

impl core::fmt::Debug for SimQueue {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SimQueue").field("seed", &self.seed).finish_non_exhaustive()
    }
}

impl GpuQueue for SimQueue {
    type Device = Simulated;
}

/// The simulator's library. It stays loaded: its functions are called from here on.
#[derive(Debug)]
struct Simulator {
    launchers: Launchers,
    seed: unsafe extern "C" fn(u64),
    report: unsafe extern "C" fn() -> *const c_char,
}

impl Simulator {
    /// Loads the library that the build made, or the one that `ATTN_SIM_LIBRARY` names.
    fn load() -> Result<Self> {
        let asked = std::env::var_os("ATTN_SIM_LIBRARY").filter(|path| !path.is_empty());
        let path = asked.unwrap_or_else(|| OsString::from(BUILT));
        let unavailable = |why: String| Error::Unavailable {
            what: "the simulator of the GPU kernels",
            why,
            cure: String::from(
                "build with the feature `sim`, or let the environment variable ATTN_SIM_LIBRARY name libattn_sim.so \
                 where the program is started by itself: `cargo test` and `cargo run` set the variable themselves",
            ),
        };
        if path.is_empty() {
            return Err(unavailable(String::from("this program was built without it")));
        }
        // SAFETY: the library is the one that this package's build script made, or one that the user vouches for; its
        // initialisers are those of the C++ runtime.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) };
        let library = library.map_err(|error| unavailable(told(&error)))?;
        macro_rules! symbol {
            ($name:expr) => {
                // SAFETY: `abi.h` declares the symbol with the type of the field that it is put into.
                *unsafe { library.get($name) }.map_err(|error| unavailable(told(&error)))?
            };
        }
        macro_rules! loaded {
            ($($field:ident = $symbol:ident: fn($($name:ident: $type:ty),*) -> $result:ty;)*) => {
                Launchers { $($field: symbol!(stringify!($symbol)),)* }
            };
        }
        let launchers = for_each_launcher!(loaded);
        let (seed, report) = (symbol!("attn_sim_seed"), symbol!("attn_sim_report"));
        // SAFETY: the functions are those of `abi.h`.
        let launchers = unsafe { launchers.checked() }?;
        // The functions must outlive every queue, and queues are never counted: the library stays.
        core::mem::forget(library);
        Ok(Self { launchers, seed, report })
    }
}

/// Where the build put the library; empty where there was no build of it. (`cargo test` and `cargo run` set the
/// variable to the same; only a program that is started by itself can be given another library.)
const BUILT: &str = env!("ATTN_SIM_LIBRARY");

// SAFETY: `CpuMemory` is a heap block of the size asked for, zeroed, aligned to 64, and freed when dropped.
unsafe impl Device for Simulated {
    const NAME: &'static str = "simulated";
    type Queue = SimQueue;
    type Memory = CpuMemory;

    fn allocate(_: &SimQueue, bytes: usize) -> Result<CpuMemory> {
        CpuMemory::zeroed(bytes).map_err(|_| Error::OutOfMemory { device: Self::NAME, bytes })
    }

    fn base(memory: &CpuMemory) -> NonNull<u8> {
        memory.base()
    }

    unsafe fn copy(queue: &SimQueue, copies: &[StridedCopy]) -> Result<()> {
        // SAFETY: the caller's contract.
        unsafe { copy::batch::<Self>(queue, copies) }
    }

    unsafe fn edge(queue: &SimQueue, copies: &[EdgeCopy]) -> Result<()> {
        // SAFETY: the caller's contract.
        unsafe { edge::batch::<Self>(queue, copies) }
    }

    fn synchronize(queue: &SimQueue) -> Result<()> {
        if let Some(lane) = &queue.lane {
            let mark = Mark::default();
            lane.run(mark.set());
            mark.place()();
        }
        queue.believed()
    }
}

impl Backend for Simulated {
    type Shared = CpuMemory;

    fn with_stream<R>(queue: &SimQueue, body: impl FnOnce(&Launchers, *mut c_void) -> R) -> Result<R> {
        queue.sound()?;
        // SAFETY: `abi.h` gives the function any seed.
        unsafe { (queue.simulator.seed)(queue.seed) };
        let stream = queue.lane.as_ref().map_or(core::ptr::null_mut(), |lane| lane.stream());
        Ok(body(&queue.simulator.launchers, stream))
    }

    fn label(_: &SimQueue) -> String {
        String::from(Self::NAME)
    }

    fn capability(queue: &SimQueue) -> (u32, u32) {
        queue.capability
    }

    fn report(queue: &SimQueue, status: c_int) -> Option<String> {
        // SAFETY: by `abi.h` the report is a string that lives until this thread's next launch.
        let report = unsafe { CStr::from_ptr((queue.simulator.report)()) };
        (status == abi::SIM_FAULT).then(|| report.to_string_lossy().into_owned())
    }

    fn share(_: &SimQueue, bytes: usize) -> Result<CpuMemory> {
        CpuMemory::zeroed(bytes)
    }

    fn shared_base(memory: &CpuMemory) -> NonNull<u8> {
        memory.base()
    }

    unsafe fn upload(queue: &SimQueue, from: &[u8], to: NonNull<u8>) -> Result<()> {
        queue.sound()?;
        // SAFETY: the caller's contract; the slice is borrowed and so does not overlap.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), from.len()) };
        Ok(())
    }

    unsafe fn download(queue: &SimQueue, from: NonNull<u8>, to: &mut [u8]) -> Result<()> {
        queue.believed()?;
        // SAFETY: as above.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn duplicate(_: &SimQueue, from: NonNull<u8>, to: NonNull<u8>, bytes: usize) -> Result<()> {
        // SAFETY: the caller's contract.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), bytes) };
        Ok(())
    }

    type Mark = Mark;

    fn beside(queue: &SimQueue) -> Result<SimQueue> {
        Ok(SimQueue { lane: Some(Lane::new()?), ..queue.clone() })
    }

    fn mark(_: &SimQueue) -> Result<Mark> {
        Ok(Mark::default())
    }

    fn set(queue: &SimQueue, mark: &Mark) -> Result<()> {
        match &queue.lane {
            Some(lane) => lane.run(mark.set()),
            None => mark.set()(),
        }
        Ok(())
    }

    fn follow(queue: &SimQueue, mark: &Mark) -> Result<()> {
        match &queue.lane {
            Some(lane) => lane.run(mark.place()),
            None => mark.place()(),
        }
        Ok(())
    }

    fn is_past(mark: &Mark) -> Result<bool> {
        Ok(mark.is_past())
    }

    fn is_recording(_: &SimQueue) -> Result<bool> {
        Ok(false)
    }

    fn condemn(queue: &SimQueue, error: &Error) {
        // The first one explains those that follow.
        let _ = queue.condemned.set(error.clone());
    }

    fn heed(queue: &SimQueue, witness: Weak<dyn Witness>) {
        queue.witnesses.lock().unwrap_or_else(PoisonError::into_inner).push(witness);
    }

    fn nccl() -> Result<&'static crate::cuda::nccl::Library> {
        crate::cuda::nccl::sim::library()
    }
}
