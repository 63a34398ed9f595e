//! What the demo prints: numbered steps, a few words, and what real commands said, indented.

use anyhow::{Result, ensure};
use tests::{Command, Output};

const INDENT: &str = "      ";

/// The steps so far.
#[derive(Default)]
pub(crate) struct Report {
    steps: usize,
}

impl Report {
    /// Begins the next step.
    pub(crate) fn step(&mut self, title: &str) {
        self.steps += 1;
        println!("\n{:>2}. {title}", self.steps);
    }

    /// Says something about the step.
    pub(crate) fn say(&self, text: &str) {
        text.lines().for_each(|line| println!("{}", format!("    {line}").trim_end()));
    }

    /// Shows a text of somebody else's.
    pub(crate) fn quote(&self, text: &str) {
        println!();
        for line in text.trim().lines() {
            println!("{}", format!("{INDENT}{line}").trim_end());
        }
    }

    /// Runs a command that must work, shown as `prompt$ shown`.
    pub(crate) fn works(&self, prompt: &str, shown: &str, command: Command) -> Result<Output> {
        let output = self.run(prompt, shown, command)?;
        ensure!(output.status.success(), "this should have worked: {output}");
        Ok(output)
    }

    /// As [`Report::works`], for one that must fail.
    pub(crate) fn fails(&self, prompt: &str, shown: &str, command: Command) -> Result<Output> {
        let output = self.run(prompt, shown, command)?;
        ensure!(!output.status.success(), "this should have failed: {output}");
        Ok(output)
    }

    fn run(&self, prompt: &str, shown: &str, command: Command) -> Result<Output> {
        self.quote(&format!("{prompt}$ {shown}"));
        let output = command.output()?;
        for line in output.stdout.lines().chain(output.stderr.lines()) {
            println!("{INDENT}{line}");
        }
        if !output.status.success() {
            println!("{INDENT}({})", output.status);
        }
        Ok(output)
    }
}
