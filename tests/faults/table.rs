//! The table of what was tried and what came of it.

use std::fmt::Write;
use std::path::Path;

use super::row::Row;

/// Where the table stands in the page.
const MARKS: [&str; 2] = ["<!-- faults: written by scripts/faults -->", "<!-- faults: end -->"];

/// Puts the table in its place in a page.
///
/// # Errors
/// If the page cannot be read or written, or has no place for it.
pub(crate) fn write(page: &Path, rows: &[Row]) -> std::io::Result<()> {
    let text = std::fs::read_to_string(page)?;
    let place = MARKS.map(|mark| text.find(mark));
    let [Some(start), Some(end)] = place else {
        return Err(std::io::Error::other(format!("it has no lines `{}` and `{}`", MARKS[0], MARKS[1])));
    };
    let mut table = String::new();
    let worlds =
        ["threads", "tcp", "MPI"].map(|world| (world, rows.iter().filter(|row| row.world == world).count()));
    let counted: Vec<String> =
        worlds.iter().filter(|(_, n)| *n > 0).map(|(world, n)| format!("{n} among {world}")).collect();
    let amiss = rows.iter().filter(|row| !row.complaints().is_empty()).count();
    let _ = writeln!(
        table,
        "\n{} faults: {}. In {amiss} of them a survivor did not hear what it must (marked by `!`).\n",
        rows.len(),
        counted.join(", ")
    );
    table.push_str("| world | strategy | point | fault | what every survivor heard | after |\n|---|---|---|---|---|---|\n");
    for row in rows {
        let mark = if row.complaints().is_empty() { "" } else { " !" };
        let _ = writeln!(table, "{}{mark}", row.line());
    }
    let head = &text[..start + MARKS[0].len()];
    std::fs::write(page, format!("{head}\n{table}\n{}", &text[end..]))
}
