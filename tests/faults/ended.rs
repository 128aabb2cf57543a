//! What came of a trial from outside: how each rank ended, and whether it should have.

use std::fmt::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use super::row::shortened;

/// One thing that was tried, and what came of it.
pub(crate) struct Outside {
    pub(crate) what: String,
    /// What each rank said and how it ended: one for all if they are threads.
    said: Vec<String>,
    /// What became of the output file.
    pub(crate) file: &'static str,
    pub(crate) took: Duration,
    pub(crate) complaints: Vec<String>,
}

impl Outside {
    /// A line of the table.
    pub(crate) fn line(&self) -> String {
        let mut heard: Vec<(&str, Vec<usize>)> = Vec::new();
        for (rank, said) in self.said.iter().enumerate() {
            match heard.iter_mut().find(|(other, _)| other == said) {
                Some((_, ranks)) => ranks.push(rank),
                None => heard.push((said, vec![rank])),
            }
        }
        let heard: Vec<String> = match heard.as_slice() {
            [(text, _)] => vec![(*text).to_owned()],
            several => several.iter().map(|(text, ranks)| format!("{ranks:?} {text}")).collect(),
        };
        let Self { what, file, took, .. } = self;
        format!("| {what} | {} | {file} | {:.1} s |", heard.join("; "), took.as_secs_f64())
    }
}

/// How a rank ends: its exit code, and what it says.
pub(crate) type End = (i32, &'static str);

/// What came of ranks.
pub(crate) struct Ended {
    /// What each said on stderr, and its exit code.
    ranks: Vec<(Vec<String>, Option<i32>)>,
    /// What others said.
    pub(crate) rest: Vec<String>,
    took: Duration,
    /// Whether nobody had to end it.
    ended: bool,
}

impl Ended {
    /// Sorts what was said. Lines of ranks that are processes stand behind their numbers.
    pub(crate) fn new(text: &str, ranks: usize, took: Duration, status: Option<ExitStatus>) -> Self {
        let ended = status.is_some();
        let mut all = Self { ranks: vec![(Vec::new(), None); ranks], rest: Vec::new(), took, ended };
        // Who is ended by a signal says nothing of it.
        if status.and_then(|status| status.signal()) == Some(9) {
            all.ranks[0].1 = Some(-9);
        }
        for line in text.lines() {
            let numbered = || line.strip_prefix('[')?.split_once("] ");
            let (rank, said) = match numbered() {
                _ if ranks == 1 => (Some(0), line),
                Some((rank, said)) => (rank.parse().ok(), said),
                None => (None, line),
            };
            let Some((errors, code)) = rank.and_then(|rank: usize| all.ranks.get_mut(rank)) else {
                // Its launcher does.
                if line.starts_with("attn: rank 0 on localhost was ended by signal 9") {
                    all.ranks[0].1 = Some(-9);
                }
                all.rest.push(line.to_owned());
                continue;
            };
            if let Some(number) = said.strip_prefix("exit ") {
                *code = number.parse().ok();
            } else if let Some(error) = said.strip_prefix("attn: ") {
                errors.push(error.to_owned());
            } else if ranks == 1 {
                all.rest.push(line.to_owned());
            }
        }
        all
    }

    /// Compares what each rank said and its exit code with what they must be.
    pub(crate) fn judge(self, expected: impl Fn(usize) -> End) -> Outside {
        let (mut complaints, mut lines) = (Vec::new(), Vec::new());
        for (rank, (said, code)) in self.ranks.iter().enumerate() {
            let (expected_code, words) = expected(rank);
            let fits =
                if words.is_empty() { said.is_empty() } else { said.len() == 1 && said[0].contains(words) };
            if !fits || *code != Some(expected_code) {
                complaints.push(format!(
                    "rank {rank} ends with {code:?} in place of {expected_code} and says {said:?}"
                ));
            }
            let mut line =
                if said.is_empty() { String::from("(nothing)") } else { plain(rank, &said.join(" ")) };
            let _ = match code {
                Some(-9) => write!(line, ", killed"),
                Some(code) => write!(line, ", exit code {code}"),
                None => write!(line, ", no exit code"),
            };
            lines.push(line);
        }
        if !self.ended {
            complaints.push(String::from("it hung, and was ended"));
        }
        Outside { what: String::new(), said: lines, file: "", took: self.took, complaints }
    }
}

/// What a rank said, without what differs from rank to rank and from time to time: its own number, and the port.
fn plain(rank: usize, said: &str) -> String {
    const HOST: &str = "127.0.0.1:";
    let said = shortened(said).replace(&format!("rank {} w", rank.max(1)), "rank N w");
    let Some((before, behind)) = said.split_once(HOST) else { return said };
    format!("{before}{HOST}PORT{}", behind.trim_start_matches(|letter: char| letter.is_ascii_digit()))
}
