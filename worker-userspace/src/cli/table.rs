//! Tables and details for people.

use std::time::Duration;

use jiff::Timestamp;

/// A table with aligned columns; the last one is as wide as it wants.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|row| row.iter().map(|cell| shown(cell)).collect()).collect();
    let mut widths: Vec<usize> = header.iter().map(|title| title.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let header: Vec<String> = header.iter().map(|title| title.to_uppercase()).collect();
    for row in std::iter::once(&header).chain(&rows) {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            line += cell;
            if i + 1 < row.len() {
                line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
            }
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// One thing with its details, a line each; empty ones are left out.
pub(super) fn details(title: &str, lines: &[(&str, String)]) -> String {
    let mut out = format!("{}\n", shown(title));
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        out += &format!("\t{name} {}\n", shown(value));
    }
    out
}

/// Without what would move a terminal's cursor.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `-` where there is nothing.
pub(super) fn dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

/// A round trip.
pub(super) fn rtt(us: Option<u64>) -> String {
    us.map_or("-".into(), |us| format!("{:.1}ms", us as f64 / 1000.0))
}

/// How long ago something was, roughly.
pub(super) fn ago(then: Timestamp) -> String {
    let seconds = (Timestamp::now() - then).as_secs().max(0);
    dworker::inspect::print::age(Duration::from_secs(seconds.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_escape_codes_do_nothing() {
        let rows = [vec!["a".into(), "x\u{1b}[2J".into()], vec!["zürich".into(), String::new()]];
        assert_eq!(table(&["name", "text"], rows), "NAME    TEXT\na       x [2J\nzürich\n");
        assert_eq!(
            details("worker a", &[("one", "1".into()), ("none", String::new())]),
            "worker a\n\tone 1\n"
        );
    }
}
