//! What `dworker doctor` has found. As JSON it is an interface: fields and ids are added, never renamed.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing, and no fault.
    Notice,
    /// It works, and will not for long, or not for all.
    Warning,
    /// Something that the configuration asks for does not work.
    Error,
}

impl Severity {
    /// The word for it, in JSON too.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Notice => "notice",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// What kind of thing it is: a word that stays the same.
    pub id: String,
    /// How bad it is.
    pub severity: Severity,
    /// What was found, with its values.
    pub found: String,
    /// What to do: a command, or a line of a configuration, where it is that simple.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    fn new(severity: Severity, id: &str, found: impl Into<String>, remedy: Option<String>) -> Finding {
        Finding { id: id.to_owned(), severity, found: found.into(), remedy }
    }

    /// Something that is as it should be.
    pub fn ok(id: &str, found: impl Into<String>) -> Finding {
        Finding::new(Severity::Ok, id, found, None)
    }

    /// Something worth knowing.
    pub fn notice(id: &str, found: impl Into<String>) -> Finding {
        Finding::new(Severity::Notice, id, found, None)
    }

    /// Something that will not go on for long, or not for all.
    pub fn warning(id: &str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding::new(Severity::Warning, id, found, Some(remedy.into()))
    }

    /// Something that does not work.
    pub fn error(id: &str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding::new(Severity::Error, id, found, Some(remedy.into()))
    }
}

/// All that `dworker doctor` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Diagnosis)]
pub struct Diagnosis {
    /// Version of the software that looked.
    pub version: String,
    /// The configuration that it went by.
    pub config: String,
    /// The daemon's process id; absent where none answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The worst of the findings.
    pub severity: Severity,
    /// The worst first.
    pub findings: Vec<Finding>,
}

impl Diagnosis {
    /// Of these findings, in the order in which the checks have them.
    pub fn new(config: String, pid: Option<u32>, mut findings: Vec<Finding>) -> Diagnosis {
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        let severity = findings.first().map_or(Severity::Ok, |worst| worst.severity);
        Diagnosis { version: env!("CARGO_PKG_VERSION").to_owned(), config, pid, severity, findings }
    }

    /// What a command exits with: 0 where nothing is wrong, 1 with warnings, 2 with errors.
    pub fn exit_code(&self) -> u8 {
        match self.severity {
            Severity::Ok | Severity::Notice => 0,
            Severity::Warning => 1,
            Severity::Error => 2,
        }
    }

    /// For people.
    pub fn plain(&self) -> String {
        let daemon = self.pid.map_or("no daemon answers".to_owned(), |pid| format!("daemon {pid}"));
        let mut text = format!("dworker {}  {}  {daemon}\n", self.version, self.config);
        for Finding { id, severity, found, remedy } in &self.findings {
            // A string takes whatever is written; so below.
            let _ = writeln!(text, "{:<8} {id:<22} {}", severity.word(), printable(found));
            if let Some(remedy) = remedy {
                let _ = writeln!(text, "{:<31} > {}", "", printable(remedy));
            }
        }
        let count = |wanted| self.findings.iter().filter(|finding| finding.severity == wanted).count();
        let several = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let _ = writeln!(
            text,
            "{}, {}, {}",
            several(count(Severity::Error), "error"),
            several(count(Severity::Warning), "warning"),
            several(count(Severity::Notice), "notice")
        );
        text
    }
}

/// Names and texts come from others.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first_and_decides() {
        let findings = vec![
            Finding::ok("cgroup-v2", "mounted at /sys/fs/cgroup"),
            Finding::warning("certificate-expires", "in 3 days\u{7}", "renew it"),
            Finding::notice("dns-over-https", "can't be seen"),
            Finding::error("hook-detached", "dw_connect4 is not there", "dworker reload"),
        ];
        let diagnosis = Diagnosis::new("a.toml".into(), Some(7), findings.clone());
        let text = "\
dworker VERSION  a.toml  daemon 7
error    hook-detached          dw_connect4 is not there
                                > dworker reload
warning  certificate-expires    in 3 days\u{fffd}
                                > renew it
notice   dns-over-https         can't be seen
ok       cgroup-v2              mounted at /sys/fs/cgroup
1 error, 1 warning, 1 notice
";
        assert_eq!(diagnosis.plain(), text.replace("VERSION", env!("CARGO_PKG_VERSION")));
        let code = |findings: &[Finding]| Diagnosis::new(String::new(), None, findings.to_vec()).exit_code();
        assert_eq!([code(&findings), code(&findings[..2]), code(&findings[..1]), code(&[])], [2, 1, 0, 0]);
        assert!(Diagnosis::new("environment".into(), None, vec![]).plain().contains("no daemon answers"));
    }
}
