//! The ranks' output, on the launcher's.

use std::io::{self, Write};

use super::frame::Stream;

/// Prints lines whole, each behind its rank's number.
pub(super) struct Printer {
    prefix: bool,
}

impl Printer {
    pub(super) const fn new(prefix: bool) -> Self {
        Self { prefix }
    }

    /// Prints lines of a rank. One without an end gets one, so that what another rank prints does not stand behind it.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(super) fn print(&self, rank: usize, stream: Stream, lines: &[u8]) -> io::Result<()> {
        let text = self.text(rank, lines);
        match stream {
            Stream::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(&text).and_then(|()| stdout.flush())
            }
            Stream::Stderr => io::stderr().lock().write_all(&text),
        }
    }

    fn text(&self, rank: usize, lines: &[u8]) -> Vec<u8> {
        let prefix = if self.prefix { format!("[{rank}] ") } else { String::new() };
        let mut text = Vec::with_capacity(lines.len() + prefix.len() + 1);
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            text.extend(prefix.as_bytes());
            text.extend(line);
        }
        if text.last().is_some_and(|last| *last != b'\n') {
            text.push(b'\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_its_rank_before_it_and_an_end() {
        let text = |prefix, lines: &[u8]| Printer::new(prefix).text(12, lines);
        assert_eq!(text(true, b"one\n\ntwo\n"), b"[12] one\n[12] \n[12] two\n");
        assert_eq!(text(true, b"\xff\xfe"), b"[12] \xff\xfe\n");
        assert_eq!(text(false, b"one\ntwo"), b"one\ntwo\n");
    }
}
