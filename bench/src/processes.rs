//! What processes cost, from `/proc`.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context, Result};

/// Ticks of `/proc/PID/stat` in a second: USER_HZ, 100 on every architecture that we build for.
const TICKS: f64 = 100.0;

/// These processes and all that they started.
pub(crate) fn with_children(pids: &[u32]) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(parent) = stat(pid).and_then(|fields| fields.get(1)?.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut all = pids.to_vec();
    let mut next = 0;
    while let Some(pid) = all.get(next) {
        all.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    all
}

/// The fields of `/proc/PID/stat` behind the name, the state first.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

/// Seconds of CPU that they have used, in the kernel and outside.
pub(crate) fn cpu(pids: &[u32]) -> f64 {
    let ticks = |fields: Vec<String>| {
        let field = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
        field(11) + field(12)
    };
    with_children(pids).into_iter().filter_map(stat).map(ticks).sum::<f64>() / TICKS
}

/// Pages that the kernel has for the connections of the whole machine.
pub(crate) fn tcp_pages() -> Result<u64> {
    let path = "/proc/net/sockstat";
    let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find(|line| line.starts_with("TCP:")).context("no line of TCP in sockstat")?;
    let pages = line.rsplit_once(" mem ").context("no memory in sockstat")?.1;
    pages.trim().parse().with_context(|| format!("reading {line}"))
}

/// Bytes of memory that they have to themselves, and their part of what they share. What they started may have ended meanwhile.
pub(crate) fn memory(pids: &[u32]) -> Result<f64> {
    let mut sum = 0.0;
    for pid in with_children(pids) {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = match fs::read_to_string(&path) {
            Err(_) if !pids.contains(&pid) => continue,
            text => text.with_context(|| format!("reading {path}"))?,
        };
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
        let kib: f64 =
            line.trim().trim_end_matches(" kB").parse().with_context(|| format!("reading {line}"))?;
        sum += kib * 1024.0;
    }
    Ok(sum)
}
