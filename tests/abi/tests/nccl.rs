//! The types, numbers and functions of `src/cuda/nccl/abi.rs` are those of NCCL's header, as cudarc's bindings have them.

#[allow(dead_code, unreachable_pub, reason = "it is made for the crate that it is taken from")]
#[path = "../../../src/cuda/nccl/abi.rs"]
mod abi;

use std::mem::{align_of, offset_of};

use cudarc::nccl::sys;

#[test]
fn codes_and_types_have_their_numbers() {
    assert_eq!(abi::SUCCESS, sys::ncclResult_t::ncclSuccess as abi::Code);
    assert_eq!(abi::IN_PROGRESS, sys::ncclResult_t::ncclInProgress as abi::Code);
    assert_eq!(abi::BYTES, sys::ncclDataType_t::ncclUint8 as std::ffi::c_int);
    // `NCCL_SPLIT_NOCOLOR`, a macro that the bindings do not have.
    assert_eq!(abi::NO_COLOR, -1);
}

#[test]
fn an_identifier_is_as_large() {
    assert_eq!(size_of::<abi::UniqueId>(), size_of::<sys::ncclUniqueId>());
    assert_eq!(align_of::<abi::UniqueId>(), align_of::<sys::ncclUniqueId>());
}

#[test]
fn the_configuration_begins_alike() {
    macro_rules! same {
        ($($ours:ident $theirs:ident),* $(,)?) => {
            $(assert_eq!(offset_of!(abi::Config, $ours), offset_of!(sys::ncclConfig_t, $theirs));)*
        };
    }
    same!(
        size size,
        magic magic,
        version version,
        blocking blocking,
        cga_cluster_size cgaClusterSize,
        min_ctas minCTAs,
        max_ctas maxCTAs,
        net_name netName,
        split_share splitShare,
    );
    // NCCL copies as many bytes as the struct says that it has, and no more than it knows of.
    assert!(size_of::<abi::Config>() <= size_of::<sys::ncclConfig_t>());
    assert_eq!(align_of::<abi::Config>(), align_of::<sys::ncclConfig_t>());
    let config = abi::Config::NONBLOCKING;
    assert_eq!((config.size, config.magic, config.version), (48, 0xcafe_beef, 21800));
    assert_eq!((config.blocking, config.split_share), (0, std::ffi::c_int::MIN));
}

/// Both take as many arguments of the same sizes: a pair of function types that do not is an error of the compiler.
#[test]
fn functions_take_the_same() {
    use std::ffi::c_int;
    use sys::{cudaStream_t as Stream, ncclComm_t as Comm, ncclDataType_t as Type, ncclResult_t as Code};

    /// Calls `$ours` with the arguments of `$theirs`, each cast to the type at its place.
    macro_rules! same {
        ($ours:ident, $theirs:expr, ($($argument:ident: $type:ty => $cast:ty),*)) => {{
            let _: unsafe fn($($type),*) -> Code = $theirs;
            let _: fn(abi::$ours, $($type),*) -> abi::Code = |ours, $($argument),*| {
                // SAFETY: never called.
                unsafe { ours($($argument as $cast),*) }
            };
            $(assert_eq!(size_of::<$type>(), size_of::<$cast>());)*
        }};
    }
    type Raw = *mut abi::RawComm;
    type Void = *mut std::ffi::c_void;
    type Constant = *const std::ffi::c_void;
    same!(GetVersion, sys::ncclGetVersion, (version: *mut c_int => *mut c_int));
    same!(GetUniqueId, sys::ncclGetUniqueId, (id: *mut sys::ncclUniqueId => *mut abi::UniqueId));
    same!(CommSplit, sys::ncclCommSplit, (
        comm: Comm => Raw, color: c_int => c_int, key: c_int => c_int, out: *mut Comm => *mut Raw,
        config: *mut sys::ncclConfig_t => *mut abi::Config
    ));
    same!(CommAsyncError, sys::ncclCommGetAsyncError, (comm: Comm => Raw, state: *mut Code => *mut abi::Code));
    same!(CommCall, sys::ncclCommFinalize, (comm: Comm => Raw));
    same!(CommCall, sys::ncclCommDestroy, (comm: Comm => Raw));
    same!(CommCall, sys::ncclCommAbort, (comm: Comm => Raw));
    same!(Send, sys::ncclSend, (
        data: Constant => Constant, count: usize => usize, kind: Type => c_int, peer: c_int => c_int, comm: Comm => Raw,
        stream: Stream => Void
    ));
    same!(Receive, sys::ncclRecv, (
        data: Void => Void, count: usize => usize, kind: Type => c_int, peer: c_int => c_int, comm: Comm => Raw,
        stream: Stream => Void
    ));
    same!(AllToAll, sys::ncclAlltoAll, (
        from: Constant => Constant, to: Void => Void, count: usize => usize, kind: Type => c_int, comm: Comm => Raw,
        stream: Stream => Void
    ));
    same!(CommRegister, sys::ncclCommRegister, (
        comm: Comm => Raw, data: Void => Void, bytes: usize => usize, handle: *mut Void => *mut Void
    ));
    same!(CommDeregister, sys::ncclCommDeregister, (comm: Comm => Raw, handle: Void => Void));
    same!(MemAlloc, sys::ncclMemAlloc, (data: *mut Void => *mut Void, bytes: usize => usize));
    same!(MemFree, sys::ncclMemFree, (data: Void => Void));
    let _: (unsafe fn() -> Code, unsafe fn() -> Code) = (sys::ncclGroupStart, sys::ncclGroupEnd);
    // What is passed by value cannot be cast.
    let _: unsafe fn(*mut Comm, c_int, sys::ncclUniqueId, c_int, *mut sys::ncclConfig_t) -> Code =
        sys::ncclCommInitRankConfig;
    let _: fn(abi::CommInit) = |ours| {
        let _: unsafe extern "C" fn(*mut Raw, c_int, abi::UniqueId, c_int, *mut abi::Config) -> abi::Code =
            ours;
    };
    let _: unsafe fn(Code) -> *const std::ffi::c_char = sys::ncclGetErrorString;
    let _: unsafe fn(Comm) -> *const std::ffi::c_char = sys::ncclGetLastError;
    let _: fn(abi::GetErrorString, abi::GetLastError, abi::Group) = |_, _, _| {};
}
