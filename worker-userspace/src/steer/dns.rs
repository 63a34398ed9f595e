//! DNS of captured applications: proxy hosts are answered here, all else by the resolver that was asked.

mod answer;
mod strip;
mod wire;

pub use answer::{Pending, Verdict, Zone, answer, servfail};
pub use strip::strip;
