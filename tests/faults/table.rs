//! The tables of what was tried and what came of it.

use std::fmt::Write;
use std::path::Path;

/// Where the tables stand in the page.
const MARKS: [&str; 2] = ["<!-- faults: written by scripts/faults -->", "<!-- faults: end -->"];

/// Sections, by their headings, in order.
pub(crate) const THREADS: &str = "Among threads";
pub(crate) const TCP: &str = "Among processes of `attn launch`, over TCP";
pub(crate) const OPEN_MPI: &str = "Under Open MPI's mpirun";
pub(crate) const MPICH: &str = "Under MPICH's mpirun";
pub(crate) const OUTSIDE: &str = "From outside";
const SECTIONS: [&str; 5] = [THREADS, TCP, OPEN_MPI, MPICH, OUTSIDE];

/// Heads of the columns: of faults in a strategy, and of those from outside.
const STRATEGIES: &str =
    "| strategy | point | fault | what every survivor heard | after |\n|---|---|---|---|---|\n";
const TRIALS: &str =
    "| what was done | what every rank said | the output file | after |\n|---|---|---|---|\n";

/// What stands behind a row in which a survivor did not hear what it must.
const AMISS: &str = " !";

/// A row as it will stand: its section, its text, and whether anything is amiss.
pub(crate) type Line = (&'static str, String, bool);

/// Puts rows in their sections of a page. Those sections that have none now stay as they are.
///
/// # Errors
/// If the page cannot be read or written, or has no place for them.
pub(crate) fn write(page: &Path, lines: &[Line]) -> std::io::Result<()> {
    let text = std::fs::read_to_string(page)?;
    let place = MARKS.map(|mark| text.find(mark));
    let [Some(start), Some(end)] = place else {
        return Err(std::io::Error::other(format!("it has no lines `{}` and `{}`", MARKS[0], MARKS[1])));
    };
    let (head, old) = (&text[..start + MARKS[0].len()], &text[start + MARKS[0].len()..end]);
    let tables = SECTIONS.map(|section| table(section, lines).unwrap_or_else(|| rows(section, old)));
    let (mut counted, mut all, mut amiss) = (Vec::new(), 0, 0);
    for (section, table) in SECTIONS.iter().zip(&tables).filter(|(_, table)| !table.is_empty()) {
        counted.push(format!("{} {}{}", table.len(), section[..1].to_lowercase(), &section[1..]));
        all += table.len();
        amiss += table.iter().filter(|row| row.ends_with(AMISS)).count();
    }
    let mut new = format!(
        "\n\n{all} faults: {}. In {amiss} of them somebody did not hear what it must (marked by `!`).\n",
        counted.join(", ")
    );
    for (section, table) in SECTIONS.iter().zip(tables).filter(|(_, table)| !table.is_empty()) {
        let columns = if *section == OUTSIDE { TRIALS } else { STRATEGIES };
        let _ = write!(new, "\n### {section}\n\n{columns}{}\n", table.join("\n"));
    }
    std::fs::write(page, format!("{head}{new}\n{}", &text[end..]))
}

/// The rows of a section, if it has any.
fn table(section: &str, lines: &[Line]) -> Option<Vec<String>> {
    let rows = lines.iter().filter(|(of, ..)| *of == section);
    let rows: Vec<String> =
        rows.map(|(_, text, amiss)| format!("{text}{}", if *amiss { AMISS } else { "" })).collect();
    (!rows.is_empty()).then_some(rows)
}

/// The rows that a section has had so far.
fn rows(section: &str, old: &str) -> Vec<String> {
    let lines = old.lines().skip_while(|line| line.strip_prefix("### ") != Some(section)).skip(1);
    let lines = lines.take_while(|line| !line.starts_with("### ")).filter(|line| line.starts_with('|'));
    // Behind the heads of the columns and the line under them.
    lines.skip(2).map(str::to_owned).collect()
}
