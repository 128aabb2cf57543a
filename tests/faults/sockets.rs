//! Closing a rank's connections under it.

use std::os::fd::BorrowedFd;

use rustix::net::{AddressFamily, Shutdown, getpeername, shutdown};

/// Ends every connection that this process has over TCP: nothing more comes or goes, and the others see that.
pub(crate) fn end_all() {
    let Ok(open) = std::fs::read_dir("/dev/fd") else { return };
    let numbers: Vec<i32> =
        open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers {
        // SAFETY: the number was that of an open descriptor a moment ago. Should it have been closed since, by the link or
        // because it was that of the folder itself, the calls below fail, or end another connection of this process,
        // which is what is wanted; neither closes anything or touches memory of ours.
        let socket = unsafe { BorrowedFd::borrow_raw(number) };
        let peer = getpeername(socket).ok().flatten().map(|peer| peer.address_family());
        if matches!(peer, Some(AddressFamily::INET | AddressFamily::INET6)) {
            let _ = shutdown(socket, Shutdown::Both);
        }
    }
}
