//! Output cut into lines.

use std::io::{self, Read};

/// A line that is longer is cut, so that one without end takes no memory.
const MAX_LINE: usize = 64 << 10;

/// Reads to the end, and gives what is read in whole lines, as many at a time as have come. Only a line longer than
/// [`MAX_LINE`] is given in pieces without an end, and the last may have none. Stops where `give` says false.
///
/// # Errors
/// If reading fails.
pub(super) fn each(mut from: impl Read, mut give: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
    let mut buffer = vec![0; MAX_LINE];
    let mut filled = 0;
    loop {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => {
                if filled > 0 {
                    give(&buffer[..filled]);
                }
                return Ok(());
            }
            Ok(count) => {
                let ends = buffer[filled..filled + count].iter().rposition(|byte| *byte == b'\n');
                let whole = match ends {
                    Some(end) => filled + end + 1,
                    None if filled + count == MAX_LINE => MAX_LINE,
                    None => 0,
                };
                filled += count;
                if whole > 0 {
                    if !give(&buffer[..whole]) {
                        return Ok(());
                    }
                    buffer.copy_within(whole..filled, 0);
                    filled -= whole;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its parts, one for each call.
    struct Parts<'a>(std::slice::Iter<'a, &'a [u8]>);

    impl Read for Parts<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let Some(part) = self.0.next() else { return Ok(0) };
            into[..part.len()].copy_from_slice(part);
            Ok(part.len())
        }
    }

    fn lines(parts: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut given = Vec::new();
        each(Parts(parts.iter()), |lines| {
            given.push(lines.to_vec());
            true
        })
        .unwrap();
        given
    }

    #[test]
    fn lines_are_whole_however_they_come() {
        let given = lines(&[b"o", b"ne\ntwo\nthr", b"ee\n", b"\xff\n", b"end"]);
        assert_eq!(given, [&b"one\ntwo\n"[..], b"three\n", b"\xff\n", b"end"]);
        assert_eq!(lines(&[]), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let long = vec![b'x'; 3 * MAX_LINE + 5];
        let mut lengths = Vec::new();
        each(&long[..], |lines| {
            lengths.push(lines.len());
            true
        })
        .unwrap();
        assert_eq!(lengths, [MAX_LINE, MAX_LINE, MAX_LINE, 5]);
    }

    #[test]
    fn who_wants_no_more_gets_no_more() {
        let mut count = 0;
        each(&vec![b'\n'; 3 * MAX_LINE][..], |_| {
            count += 1;
            false
        })
        .unwrap();
        assert_eq!(count, 1);
    }
}
