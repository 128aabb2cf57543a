use std::io::{self, Read};
use std::sync::Arc;

use proptest::prelude::*;

use crate::comm::message::{Bytes, Head};
use crate::comm::tcp::frame::{Broken, Frame, read, write};

fn written(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes, frame).unwrap();
    bytes
}

#[test]
fn what_is_written_is_read() {
    let head = Head([1, 2, 3, 4, 5, 6, 7, u64::MAX]);
    // More than is made room for at first, no body, and an empty one, which is not the same.
    for body in [None, Some(0), Some(5), Some(1 << 20), Some((3 << 20) + 7)] {
        let body = body.map(|length: usize| {
            let bytes: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            Arc::new(Bytes::copied(&bytes).unwrap())
        });
        let bytes = written(&Frame::Message(head, body.clone()));
        let Frame::Message(found, found_body) = read(&mut &bytes[..]).unwrap() else { panic!() };
        assert_eq!(found, head);
        assert_eq!(found_body.as_ref().map(|body| &***body), body.as_ref().map(|body| &***body));
    }
    assert!(matches!(read(&mut &written(&Frame::Leave)[..]), Ok(Frame::Leave)));
    assert!(matches!(read(&mut &written(&Frame::Heard)[..]), Ok(Frame::Heard)));
}

/// Reads from bytes, and remembers the largest space that it was asked to fill.
struct Watched<'b>(&'b [u8], usize);

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = self.1.max(buffer.len());
        self.0.read(buffer)
    }
}

#[test]
fn what_a_header_announces_is_not_made_room_for_before_it_comes() {
    let mut bytes = written(&Frame::Message(Head::default(), Some(Arc::new(Bytes::zeroed(8).unwrap()))));
    bytes[8..16].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    let mut from = Watched(&bytes, 0);
    assert!(matches!(read(&mut from), Err(Broken::Connection(_))));
    assert_eq!(from.1, 1 << 20);
    bytes[8..16].copy_from_slice(&((1_u64 << 40) + 1).to_le_bytes());
    assert!(matches!(read(&mut &bytes[..]), Err(Broken::Garbage(_))));
    bytes[8..16].copy_from_slice(&(1_u64 << 60).to_le_bytes());
    assert!(matches!(read(&mut &bytes[..]), Err(Broken::Garbage(_))));
}

proptest! {
    #[test]
    fn garbage_is_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        mark in any::<bool>(),
        kind in 0_u32..5,
    ) {
        let mut bytes = bytes;
        if mark && bytes.len() >= 8 {
            bytes[..4].copy_from_slice(b"attn");
            bytes[4..8].copy_from_slice(&kind.to_le_bytes());
        }
        match read(&mut &bytes[..]) {
            Ok(Frame::Message(_, body)) => prop_assert!(body.is_none_or(|body| body.len() <= bytes.len())),
            Ok(Frame::Leave | Frame::Heard) => prop_assert!(mark),
            Err(Broken::Memory(error)) => prop_assert!(false, "{error}"),
            Err(_) => {}
        }
    }
}
