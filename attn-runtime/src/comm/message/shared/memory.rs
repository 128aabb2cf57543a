//! Memory that processes of one host map.

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
    file: File,
    pub(super) place: Place,
}

impl Memory {
    /// New memory, zeroed. All of it is there from the start, so that touching it can fail for nobody, until it is
    /// [released](Open::release).
    #[cfg(target_os = "linux")]
    pub(super) fn create(bytes: usize) -> io::Result<(Self, Open)> {
        use std::os::fd::AsRawFd;

        use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, memfd_create};

        // What the system can never have is refused here. What follows would first take all that there is.
        drop(MmapOptions::new().len(bytes).map_anon()?);
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
        Ok((Self { map }, Open { file, place }))
    }

    /// Maps another process's memory, for reading.
    pub(super) fn open(place: Place) -> io::Result<Self> {
        let file = find(place, File::options().read(true))?;
        Ok(Self { map: MmapOptions::new().len(place.length()?).populate().map_raw_read_only(&file)? })
    }

    /// Maps another process's memory, for reading and writing.
    pub(super) fn open_for_writing(place: Place) -> io::Result<Self> {
        let file = find(place, File::options().read(true).write(true))?;
        Ok(Self { map: MmapOptions::new().len(place.length()?).populate().map_raw(&file)? })
    }

    /// Makes what was shared this process's own, as it is: what others write there from now on is not seen here.
    #[cfg(target_os = "linux")]
    pub(super) fn make_private(&self, open: &Open) -> io::Result<()> {
        use std::sync::atomic::{AtomicU8, Ordering};

        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap};

        let (base, bytes) = (self.map.as_mut_ptr().cast::<u8>(), self.bytes());
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: this puts the same bytes where they are. The mapping is this one's own, and stays as long as it was to be.
        unsafe { mmap(base.cast(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags, &open.file, 0) }?;
        // Each page becomes private when it is written.
        // SAFETY: the range is the mapping.
        if unsafe { madvise(base.cast(), bytes, Advice::LinuxPopulateWrite) }.is_err() {
            for page in (0..bytes).step_by(4096) {
                // SAFETY: the byte is inside of the mapping; it is changed atomically to what it is.
                unsafe { AtomicU8::from_ptr(base.add(page)) }.fetch_or(0, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn create(_: usize) -> io::Result<(Self, Open)> {
        Err(io::ErrorKind::Unsupported.into())
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn make_private(&self, _: &Open) -> io::Result<()> {
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
        // Nobody touches a number but through this function, that is atomically (tensors and entries stand apart from numbers),
        // and where the mapping is for reading nobody writes through it: the numbers that a process writes are in memory of its
        // own.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().cast::<u64>().wrapping_add(index)) }
    }

    /// The address of so many bytes; none if the memory does not hold them.
    pub(super) fn at(&self, offset: usize, length: usize) -> Option<*mut u8> {
        let end = offset.checked_add(length)?;
        (end <= self.bytes()).then(|| self.map.as_mut_ptr().wrapping_add(offset))
    }
}

/// The file of another process's memory.
#[cfg(target_os = "linux")]
fn find(place: Place, options: &std::fs::OpenOptions) -> io::Result<File> {
    use rustix::fs::{SealFlags, fcntl_get_seals};

    let file = options.open(format!("/proc/{}/fd/{}", place.process, place.descriptor))?;
    // Memory that could still be made shorter under who maps it is none of ours.
    let sealed = fcntl_get_seals(&file)?.contains(SealFlags::SHRINK);
    if sealed && file.metadata()?.len() == place.bytes {
        Ok(file)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

#[cfg(not(target_os = "linux"))]
fn find(_: Place, _: &std::fs::OpenOptions) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

impl Open {
    /// So many bytes at the start of a record.
    pub(super) const RECORD: usize = 24;

    /// Gives back to the system what the memory holds from `start` on: whoever still maps it finds zeros there.
    pub(super) fn release(&self, start: usize) {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{FallocateFlags, fallocate};
            let rest = self.place.bytes.saturating_sub(start as u64);
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if let Err(error) = fallocate(&self.file, flags, start as u64, rest) {
                log::debug!("shared memory goes when the last rank forgets it: {error}");
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (start, &self.file);
    }
}

impl Place {
    fn length(self) -> io::Result<usize> {
        usize::try_from(self.bytes).map_err(|_| io::ErrorKind::InvalidData.into())
    }

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
