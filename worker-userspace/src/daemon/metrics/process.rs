//! What the kernel says of this process, by the names that all of Prometheus' clients have for it.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};

use crate::inspect::metrics::{self, Exposition};

/// The fields of `/proc/self/stat` that are read, counted from the one behind the command's name (`proc(5)`'s third).
const UTIME: usize = 11;
const STIME: usize = 12;
const STARTTIME: usize = 19;
const VSIZE: usize = 20;
const RSS: usize = 21;

/// Adds what can be read.
pub(super) fn put(out: &mut Exposition) {
    let stat = fs::read_to_string("/proc/self/stat").ok().and_then(|stat| fields(&stat));
    let constant = |what| sysconf(what).ok().flatten().and_then(|n| u64::try_from(n).ok());
    if let (Some(stat), Some(ticks)) = (&stat, constant(SysconfVar::CLK_TCK)) {
        let seconds = |n: u64| n as f64 / ticks as f64;
        out.put_one(&metrics::PROCESS_CPU, seconds(stat.cpu));
        let boot = fs::read_to_string("/proc/stat").ok();
        let boot = boot
            .and_then(|text| text.lines().find_map(|line| line.strip_prefix("btime ")?.parse::<f64>().ok()));
        if let Some(boot) = boot {
            out.put_one(&metrics::PROCESS_START, boot + seconds(stat.start));
        }
    }
    // One of them is the directory itself.
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        out.put_one(&metrics::PROCESS_OPEN_FDS, open.count().saturating_sub(1));
    }
    if let Ok((most, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        out.put_one(&metrics::PROCESS_MAX_FDS, most);
    }
    if let (Some(stat), Some(page)) = (&stat, constant(SysconfVar::PAGE_SIZE)) {
        out.put_one(&metrics::PROCESS_RESIDENT, stat.resident * page);
        out.put_one(&metrics::PROCESS_VIRTUAL, stat.virtual_bytes);
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// In ticks.
    cpu: u64,
    /// In ticks after the host's start.
    start: u64,
    virtual_bytes: u64,
    /// In pages.
    resident: u64,
}

/// A command may have any name, with blanks and brackets in it.
fn fields(stat: &str) -> Option<Stat> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Stat {
        cpu: number(UTIME)? + number(STIME)?,
        start: number(STARTTIME)?,
        virtual_bytes: number(VSIZE)?,
        resident: number(RSS)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_read_whatever_the_command_is_named() {
        let line = "42 (a) b 9) S 1 42 42 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 4 0 12345 1048576 256 18446744073709551615";
        let stat = Stat { cpu: 12, start: 12345, virtual_bytes: 1_048_576, resident: 256 };
        assert_eq!(fields(line), Some(stat));
        assert_eq!(fields("42 (dworker) S 1"), None);
    }

    #[test]
    fn this_process_is_measured() {
        let mut out = Exposition::default();
        put(&mut out);
        let text = out.text();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6 && value("process_virtual_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0 && value("process_max_fds") >= value("process_open_fds"));
        let now = jiff::Timestamp::now().as_second() as f64;
        // The host's start is told in whole seconds.
        assert!((now - 86_400.0..now + 2.0).contains(&value("process_start_time_seconds")), "{text}");
        assert!(value("process_cpu_seconds_total") >= 0.0);
    }
}
