//! `bench`: measures a part of the house, and prints what it found beside what was promised.

use anyhow::Result;

use crate::command::{cargo, run, say};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Bench {
    /// The part.
    part: Part,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Part {
    /// 2,000 workers, 10,000 proxy hosts, a million events: look-ups, saves, lists, searches.
    Registry,
}

/// Builds with optimisation and measures; fails where a promise is broken.
pub(crate) fn bench(options: &Bench) -> Result<()> {
    let name = match options.part {
        Part::Registry => "registry",
    };
    say("building with optimisation");
    run(cargo("bench").args(["--locked", "-p", "worker-userspace", "--bench", name]))
}
