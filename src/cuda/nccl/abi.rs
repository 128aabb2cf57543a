//! NCCL's C interface, as far as this crate calls it: `nccl.h` of 2.18 and later. The crate in `tests/abi` compares it
//! with cudarc's bindings.

use core::ffi::{c_char, c_int, c_uint, c_void};

/// `ncclResult_t`. A number and not an enum: a newer library may return another one.
pub(super) type Code = c_int;

/// `ncclSuccess`.
pub(super) const SUCCESS: Code = 0;
/// `ncclInProgress`: a communicator that does not block is still at it.
pub(super) const IN_PROGRESS: Code = 7;

/// `ncclUint8`: all data is counted in bytes.
pub(super) const BYTES: c_int = 1;

/// `NCCL_SPLIT_NOCOLOR`: takes part in a split, and gets no communicator.
pub(super) const NO_COLOR: c_int = -1;

/// `NCCL_API_MAGIC`.
const MAGIC: c_uint = 0xcafe_beef;
/// `NCCL_CONFIG_UNDEF_INT`: the library decides.
const UNDEFINED: c_int = c_int::MIN;
/// `NCCL_VERSION(2, 18, 0)`: the configuration is as it was then. Newer libraries take older ones.
const CONFIG_VERSION: c_uint = 21800;

/// `ncclUniqueId`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct UniqueId {
    /// Its bytes.
    pub internal: [u8; 128],
}

/// `struct ncclComm`, of which only addresses are known.
#[derive(Debug)]
#[repr(C)]
pub(super) struct RawComm {
    _private: [u8; 0],
}

/// `ncclConfig_t`, as it begins.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Config {
    /// Bytes of this struct.
    pub(super) size: usize,
    /// Tells one that was filled in from one that was not.
    pub(super) magic: c_uint,
    /// The version that it is of.
    pub(super) version: c_uint,
    /// 0: calls that would wait for other ranks return `ncclInProgress` instead.
    pub(super) blocking: c_int,
    /// Clusters of NCCL's kernels.
    pub(super) cga_cluster_size: c_int,
    /// The least of blocks of NCCL's kernels.
    pub(super) min_ctas: c_int,
    /// The most of them.
    pub(super) max_ctas: c_int,
    /// The network to use.
    pub(super) net_name: *const c_char,
    /// Whether communicators that are split off share resources.
    pub(super) split_share: c_int,
}

impl Config {
    /// A communicator that never blocks its caller, all else left to the library.
    pub(super) const NONBLOCKING: Self = Self {
        size: size_of::<Self>(),
        magic: MAGIC,
        version: CONFIG_VERSION,
        blocking: 0,
        cga_cluster_size: UNDEFINED,
        min_ctas: UNDEFINED,
        max_ctas: UNDEFINED,
        net_name: core::ptr::null(),
        split_share: UNDEFINED,
    };
}

/// `ncclGetVersion`.
pub(super) type GetVersion = unsafe extern "C" fn(*mut c_int) -> Code;
/// `ncclGetErrorString`.
pub(super) type GetErrorString = unsafe extern "C" fn(Code) -> *const c_char;
/// `ncclGetLastError`.
pub(super) type GetLastError = unsafe extern "C" fn(*mut RawComm) -> *const c_char;
/// `ncclGetUniqueId`.
pub(super) type GetUniqueId = unsafe extern "C" fn(*mut UniqueId) -> Code;
/// `ncclCommInitRankConfig`.
pub(super) type CommInit =
    unsafe extern "C" fn(*mut *mut RawComm, c_int, UniqueId, c_int, *mut Config) -> Code;
/// `ncclCommSplit`.
pub(super) type CommSplit =
    unsafe extern "C" fn(*mut RawComm, c_int, c_int, *mut *mut RawComm, *mut Config) -> Code;
/// `ncclCommGetAsyncError`.
pub(super) type CommAsyncError = unsafe extern "C" fn(*mut RawComm, *mut Code) -> Code;
/// `ncclCommFinalize`, `ncclCommDestroy`, `ncclCommAbort`.
pub(super) type CommCall = unsafe extern "C" fn(*mut RawComm) -> Code;
/// `ncclGroupStart`, `ncclGroupEnd`.
pub(super) type Group = unsafe extern "C" fn() -> Code;
/// `ncclSend`.
pub(super) type Send =
    unsafe extern "C" fn(*const c_void, usize, c_int, c_int, *mut RawComm, *mut c_void) -> Code;
/// `ncclRecv`.
pub(super) type Receive =
    unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, *mut RawComm, *mut c_void) -> Code;
/// `ncclAlltoAll`.
pub(super) type AllToAll =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, *mut RawComm, *mut c_void) -> Code;
/// `ncclCommRegister`.
pub(super) type CommRegister =
    unsafe extern "C" fn(*mut RawComm, *mut c_void, usize, *mut *mut c_void) -> Code;
/// `ncclCommDeregister`.
pub(super) type CommDeregister = unsafe extern "C" fn(*mut RawComm, *mut c_void) -> Code;
/// `ncclMemAlloc`.
pub(super) type MemAlloc = unsafe extern "C" fn(*mut *mut c_void, usize) -> Code;
/// `ncclMemFree`.
pub(super) type MemFree = unsafe extern "C" fn(*mut c_void) -> Code;
