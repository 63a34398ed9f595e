//! Runs tests one after another in the main thread, for test programs that are also what they test.

use std::panic::catch_unwind;
use std::process::ExitCode;

/// Runs those of `tests` that the command line asks for, after `before`.
pub(crate) fn run(tests: &[(&str, fn())], before: impl FnOnce()) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let chosen =
        tests.iter().filter(|(name, _)| filters.is_empty() || filters.iter().any(|f| name.contains(*f)));
    if arguments.iter().any(|argument| argument == "--list") {
        chosen.for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    before();
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, test) in chosen {
        match catch_unwind(test) {
            Ok(()) => passed += 1,
            Err(_) => failed.push(*name),
        }
        println!("test {name} ... {}", if failed.last() == Some(name) { "FAILED" } else { "ok" });
    }
    println!("\ntest result: {passed} passed; {} failed {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
