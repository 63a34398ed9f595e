//! The README taken apart: sections, fenced blocks, tables, and words between backticks.

use std::fs;

use anyhow::{Context, Result};

/// A part of the README.
pub(crate) struct Text(String);

/// A command of a block, with what the README says that it prints.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Example {
    /// As it is typed.
    pub(crate) typed: String,
    /// The lines behind it that begin with `# `; none where the README does not show any.
    pub(crate) printed: Vec<String>,
}

/// All of it.
pub(crate) fn readme() -> Result<Text> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    Ok(Text(fs::read_to_string(path).with_context(|| path.to_owned())?))
}

impl Text {
    /// The section with this heading, up to the next one of its level.
    pub(crate) fn section(&self, heading: &str) -> Result<Text> {
        let begin = format!("\n## {heading}\n");
        let (_, rest) = self.0.split_once(&begin).with_context(|| format!("no section {heading}"))?;
        Ok(Text(rest.split("\n## ").next().unwrap_or_default().to_owned()))
    }

    /// The fenced blocks of a language, in order.
    pub(crate) fn blocks(&self, language: &str) -> Vec<String> {
        let fenced = self.0.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
        fenced.filter(|(first, _)| *first == language).map(|(_, body)| body.to_owned()).collect()
    }

    /// The shell's blocks, each command with what it prints.
    pub(crate) fn examples(&self) -> Result<Vec<Vec<Example>>> {
        self.blocks("sh").iter().map(|block| examples(block)).collect()
    }

    /// The rows of the table with this header, without it.
    pub(crate) fn table(&self, header: &str) -> Result<Vec<Vec<&str>>> {
        let (_, rest) = self.0.split_once(header).with_context(|| format!("no table {header}"))?;
        let rows = rest.lines().skip(2).take_while(|line| line.starts_with('|'));
        Ok(rows.map(|row| row.split('|').skip(1).map(str::trim).collect()).collect())
    }

    /// Whether this stands in it, however its lines are broken.
    pub(crate) fn says(&self, text: &str) -> bool {
        let flat = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        flat(&self.0).contains(&flat(text))
    }

    /// What stands between backticks, outside the fenced blocks.
    pub(crate) fn codes(&self) -> Vec<&str> {
        self.0.split("```").step_by(2).flat_map(codes).collect()
    }
}

/// What stands between backticks.
pub(crate) fn codes(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn examples(block: &str) -> Result<Vec<Example>> {
    let mut examples: Vec<Example> = Vec::new();
    for line in block.lines() {
        match line.strip_prefix("# ") {
            None => examples.push(Example { typed: line.to_owned(), printed: Vec::new() }),
            Some(printed) => {
                let example = examples.last_mut().context("a block begins with what is printed")?;
                example.printed.push(printed.to_owned());
            }
        }
    }
    Ok(examples)
}

/// Whether these lines are those that the README shows. There `...` stands for anything within a line, and on a line
/// of its own for any lines; and of what is never twice the same, as times and sizes, only the form counts.
pub(crate) fn is_shown(printed: &[&str], shown: &[String]) -> bool {
    match shown {
        [] => printed.is_empty(),
        [first, rest @ ..] if first == "..." => (0..=printed.len()).any(|n| is_shown(&printed[n..], rest)),
        [first, rest @ ..] => {
            printed.first().is_some_and(|line| is_like(&formed(line), &formed(first)))
                && is_shown(&printed[1..], rest)
        }
    }
}

fn is_like(line: &str, shown: &str) -> bool {
    match shown.split_once("...") {
        None => line == shown,
        Some((begin, rest)) => line.strip_prefix(begin).is_some_and(|line| {
            line.char_indices().map(|(at, _)| at).chain([line.len()]).any(|at| is_like(&line[at..], rest))
        }),
    }
}

/// A line with one space between its words, and what differs from run to run as its form.
fn formed(line: &str) -> String {
    line.split_whitespace().map(form).collect::<Vec<_>>().join(" ")
}

fn form(word: &str) -> String {
    // 0.4ms, 12s, 34KiB, 0B/s
    let unit = word.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    match unit {
        "us" | "ms" | "s" | "m" | "h" | "d" if unit != word => return "TIME".into(),
        "B" | "KiB" | "MiB" | "GiB" if unit != word => return "SIZE".into(),
        "B/s" | "KiB/s" | "MiB/s" | "GiB/s" if unit != word => return "RATE".into(),
        _ => {}
    }
    // python3[14691]
    if let Some((name, number)) = word.split_once('[')
        && number.strip_suffix(']').is_some_and(|number| number.parse::<u32>().is_ok())
    {
        return format!("{name}[PID]");
    }
    // 2026-01-31T12:00:00Z
    let digits: String = word.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    if digits == "0000-00-00T00:00:00Z" { "WHEN".into() } else { word.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_commands_with_what_they_print() -> Result<()> {
        let read = examples("one # a remark\ntwo\n# 1\n#  2\n")?;
        let two = Example { typed: "two".into(), printed: vec!["1".into(), " 2".into()] };
        assert_eq!(read, [Example { typed: "one # a remark".into(), printed: vec![] }, two]);
        assert!(examples("# 1\n").is_err());
        let text =
            Text("\n## A\n```sh\nb\n```\n`c`\n\n| k | v |\n|---|---|\n| `d` | e |\n## B\n`f`\n".into());
        let section = text.section("A")?;
        assert_eq!((section.blocks("sh"), section.codes()), (vec!["b\n".to_owned()], vec!["c", "d"]));
        assert_eq!(section.table("| k | v |")?, [["`d`", "e", ""]]);
        assert!(text.section("C").is_err() && section.says("`c`  | k") && !section.says("f"));
        Ok(())
    }

    #[test]
    fn what_is_printed_is_compared_but_for_what_is_never_twice_the_same() {
        let is_shown = |printed: &[&str], shown: &[&str]| {
            is_shown(printed, &shown.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        for (printed, shown) in [
            (&["a  0.4ms 3h"][..], &["a 12.0ms  1d"][..]),
            (&["12KiB 0B/s python3[12]"], &["0B 1MiB/s python3[3]"]),
            (&["at 2026-11-26T14:07:26Z"], &["at 2000-01-01T00:00:00Z"]),
            (&["key = \"dwk_abc\"", "b"], &["key = \"dwk_...\"", "b"]),
            (&["a", "b", "c", "d"], &["a", "...", "d"]),
            (&["a", "d"], &["a", "...", "d"]),
        ] {
            assert!(is_shown(printed, shown), "{printed:?} {shown:?}");
        }
        for (printed, shown) in [
            (&["a 1"][..], &["a 2"][..]),
            (&["a 443"], &["a 902"]),
            (&["1s"], &["1B"]),
            (&["s"], &["1s"]),
            (&["a", "b"], &["a"]),
            (&["a"], &["a", "b"]),
            (&["key = \"dwk_abc"], &["key = \"dwk_...\""]),
            (&["a", "b", "c"], &["a", "...", "d"]),
            (&[], &["a"]),
            (&["a"], &[]),
        ] {
            assert!(!is_shown(printed, shown), "{printed:?} {shown:?}");
        }
    }
}
