//! Memory that processes of one host map: written by the process that made it, read by the others.

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicU64;

use memmap2::{MmapOptions, MmapRaw};

/// A mapping of shared memory. It stays while anybody maps it, and goes with the last process that does, however that ends.
#[derive(Debug)]
pub(super) struct Memory {
    map: MmapRaw,
}

/// Where other processes find memory to map: the process that has it open, the number under which it has, and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::comm::message) struct Place {
    pub(super) process: u64,
    pub(super) descriptor: u64,
    pub(super) bytes: u64,
}

/// What is to be kept open until all who shall map it have.
#[derive(Debug)]
pub(super) struct Open {
    _file: File,
    pub(super) place: Place,
}

impl Memory {
    /// New memory, zeroed. All of it is there from the start: touching it can fail for nobody.
    #[cfg(target_os = "linux")]
    pub(super) fn create(bytes: usize) -> io::Result<(Self, Open)> {
        use std::os::fd::AsRawFd;

        use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, memfd_create};

        let file = memfd_create("attn", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        fallocate(&file, FallocateFlags::empty(), 0, bytes as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let file = File::from(file);
        let map = MmapOptions::new().len(bytes).populate().map_raw(&file)?;
        let place = Place {
            process: u64::from(std::process::id()),
            descriptor: u64::try_from(file.as_raw_fd()).unwrap_or_default(),
            bytes: bytes as u64,
        };
        Ok((Self { map }, Open { _file: file, place }))
    }

    /// Maps another process's memory, for reading.
    #[cfg(target_os = "linux")]
    pub(super) fn open(place: Place) -> io::Result<Self> {
        use rustix::fs::{SealFlags, fcntl_get_seals};

        let Place { process, descriptor, bytes } = place;
        let file = File::open(format!("/proc/{process}/fd/{descriptor}"))?;
        // Memory that could still be made shorter under a reader is none of ours.
        let sealed = fcntl_get_seals(&file)?.contains(SealFlags::SHRINK);
        match usize::try_from(bytes) {
            Ok(length) if sealed && file.metadata()?.len() == bytes => {
                Ok(Self { map: MmapOptions::new().len(length).populate().map_raw_read_only(&file)? })
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn create(_: usize) -> io::Result<(Self, Open)> {
        Err(io::ErrorKind::Unsupported.into())
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn open(_: Place) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn bytes(&self) -> usize {
        self.map.len()
    }

    /// A number that processes tell each other by: the `index`-th of the memory, taken as numbers of eight bytes.
    ///
    /// # Panics
    /// If the memory is not so long.
    pub(super) fn number(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.bytes() / size_of::<u64>());
        // SAFETY: the number lies inside of the mapping, by the line above, and is aligned, since the mapping is to a page.
        // Nobody touches it but through this function, that is atomically, and where the mapping is for reading nobody
        // writes through it: the numbers that a process writes are in memory of its own.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().cast::<u64>().wrapping_add(index)) }
    }

    /// The address of so many bytes; none if the memory does not hold them.
    pub(super) fn at(&self, offset: usize, length: usize) -> Option<*mut u8> {
        let end = offset.checked_add(length)?;
        (end <= self.bytes()).then(|| self.map.as_mut_ptr().wrapping_add(offset))
    }
}

impl Open {
    /// So many bytes at the start of a record.
    pub(super) const RECORD: usize = 24;
}

impl Place {
    pub(super) fn write(&self) -> [u8; Open::RECORD] {
        let mut record = [0; Open::RECORD];
        for (to, from) in record.chunks_exact_mut(8).zip([self.process, self.descriptor, self.bytes]) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        record
    }

    /// None if the record is none.
    pub(super) fn read(record: &[u8]) -> Option<Self> {
        let [process, descriptor, bytes] = record.as_chunks().0.first_chunk()?.map(u64::from_le_bytes);
        Some(Self { process, descriptor, bytes })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn what_one_mapping_writes_the_other_reads() {
        let (own, open) = Memory::create(8192).unwrap();
        let theirs = Memory::open(Place::read(&open.place.write()).unwrap()).unwrap();
        drop(open);
        own.number(1000).store(7, Ordering::Release);
        assert_eq!(theirs.number(1000).load(Ordering::Acquire), 7);
        assert!(theirs.at(8000, 192).is_some() && theirs.at(8000, 193).is_none());
        assert!(theirs.at(usize::MAX, 2).is_none());
    }

    #[test]
    fn memory_of_another_length_or_kind_is_none() {
        let (_own, open) = Memory::create(8192).unwrap();
        assert!(Memory::open(Place { bytes: 4096, ..open.place }).is_err());
        let file = tempfile();
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&file) as u64;
        assert!(Memory::open(Place { descriptor, ..open.place }).is_err());
    }

    /// A file that can be made shorter.
    fn tempfile() -> File {
        let file = rustix::fs::memfd_create("attn", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 8192).unwrap();
        File::from(file)
    }
}
