//! What would happen to a connection, and why: the records behind `dworker why`.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::ledger::FlowReport;
use super::print::age;
use super::status::{NodeRole, RefusedStatus, RuleStatus};
use crate::target::{Host, Target};

/// The port of what is asked for without one.
const PORT: u16 = 443;

/// What is asked.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Asked {
    /// Name or address, and a port where that is not 443.
    pub target: String,
    /// The process that would connect; where nobody is named, one in a captured cgroup.
    pub pid: Option<u32>,
    /// The cgroup that it would be in: absolute, or below where cgroup v2 is mounted.
    pub cgroup: Option<String>,
    /// The user that it would be of.
    pub uid: Option<u32>,
    /// What the process is called; with `netns`, nothing of it is read in `/proc`, where a daemon may not see others'.
    pub comm: Option<String>,
    /// The network namespace that it lives in: the device and the number of its `/proc/PID/ns/net`, as in `4:4026531840`.
    pub netns: Option<String>,
}

/// What happens to a connection, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = WhyVerdict)]
pub enum Verdict {
    /// It goes to the forwarder, and on by the tunnel.
    Steered,
    /// It goes to steering's DNS server.
    Answered,
    /// It goes where it wants.
    Direct,
    /// `connect()` fails.
    Refused,
}

impl Verdict {
    /// The word for it, in JSON too.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Steered => "steered",
            Verdict::Answered => "answered",
            Verdict::Direct => "direct",
            Verdict::Refused => "refused",
        }
    }
}

/// What would happen to a connection, and why.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Why {
    /// What happens to it.
    pub verdict: Verdict,
    /// Why, in one word: that of the kernel's counter, where it counts such connections; else `not-captured`,
    /// `steering-off`, `no-steering`, `loopback` or `unresolved`.
    pub reason: String,
    /// What `connect()` fails with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    /// All of that as a line for people.
    pub line: String,
    /// What was asked for.
    pub target: String,
    /// Who would connect.
    pub scope: WhyScope,
    /// What the name leads to, where it is one; of an address that stands for a name, that name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<WhyName>,
    /// The address that is judged; absent where there is none yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// The rule that names it, also where it goes direct.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleStatus>,
    /// Who carries it, where a rule names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carrier: Option<WhyCarrier>,
    /// What the policy of the worker says, as far as this daemon knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<WhyPolicy>,
    /// Whether this worker dials it through its proxy; absent where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<WhyProxy>,
    /// That its target was down a moment ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub down: Option<WhyDown>,
    /// The last connections to it that the kernel refused, newest first.
    pub refused: Vec<RefusedStatus>,
    /// The last connections to it that were not made or were cut, newest first.
    pub failed: Vec<FlowReport>,
}

/// Who would connect.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct WhyScope {
    /// The process: `command[pid]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// Its user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub cgroup: Option<PathBuf>,
    /// The captured cgroup that it is in, or below; absent where nothing of it is captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub captured_by: Option<PathBuf>,
    /// True where nothing is captured, since steering was switched off by hand.
    #[serde(default, skip_serializing_if = "is_false")]
    pub off: bool,
    /// By what it is excluded: `user NAME` or `cgroup PATH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excluded: Option<String>,
    /// True where it lives in another network namespace than the daemon.
    pub foreign_netns: bool,
    /// True where it is the daemon itself.
    pub own: bool,
}

/// What a name leads to.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WhyName {
    /// The name.
    pub name: String,
    /// Who says so: `steering` (synthetic addresses), `hosts` (`/etc/hosts`) or `resolver` (that of this host).
    pub from: String,
    /// Its addresses; none where steering gives them with the first question, or where the resolver knows none.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
}

/// Who would carry a connection.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WhyCarrier {
    /// The group, or the appliance.
    pub name: String,
    /// True where a worker, or the appliance, is connected.
    pub up: bool,
    /// The node that would carry it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What that node does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<NodeRole>,
    /// The lane that would: the least busy one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lane: Option<u8>,
    /// The proxy through which the way to the appliance leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<String>,
}

/// Whether a worker dials a target through its proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WhyProxy {
    /// The proxy, without its password.
    pub address: String,
    /// True where the proxy dials the target; false where the worker does so itself.
    pub used: bool,
    /// True where the worker resolves the name, since addresses decide whether it may be dialled: then the proxy gets its
    /// addresses, but for those that `no_proxy` has.
    #[serde(default, skip_serializing_if = "is_false")]
    pub by_address: bool,
    /// The entry of `no_proxy` that keeps the target from the proxy; absent of this host itself, too, which needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exempted_by: Option<String>,
}

/// What a policy says.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WhyPolicy {
    /// Whose it is: `appliance` (what it pushes to the group's workers) or `egress` (this worker's own).
    pub of: String,
    /// True where it lets the target be dialled.
    pub allowed: bool,
    /// In words.
    pub text: String,
}

/// That a target was down a moment ago.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WhyDown {
    /// What `connect()` fails with.
    pub errno: i32,
    /// For how many milliseconds more.
    pub remaining_ms: u64,
}

/// What was asked can't be answered.
#[derive(Debug, thiserror::Error)]
pub enum WhyError {
    /// It means nothing.
    #[error("{field}: {detail}")]
    Asked {
        /// The parameter.
        field: &'static str,
        /// What is wrong with it, and what to do.
        detail: String,
    },
    /// Nobody says where the name leads.
    #[error("{0}")]
    Silent(String),
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// `HOST[:PORT]` as a target.
///
/// # Errors
/// It is none.
pub fn target(text: &str) -> Result<Target, WhyError> {
    let wrong = |why: String| WhyError::Asked {
        field: "target",
        detail: format!("{text:?}: {why}: write a name or an address, `HOST`, `HOST:PORT` or `[IPV6]:PORT`"),
    };
    // An IPv6 address has colons of its own.
    let is_host = text.parse::<IpAddr>().is_ok() || (text.starts_with('[') && text.ends_with(']'));
    let (host, port) = match is_host {
        true => (text, None),
        false => match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        None => PORT,
        Some(port) => match port.parse::<u16>() {
            Ok(port) if port > 0 => port,
            _ => return Err(wrong(format!("{port:?} is no port"))),
        },
    };
    let host = host.parse::<Host>().map_err(|error| wrong(error.to_string()))?;
    Ok(Target { host, port })
}

/// An errno's name.
pub fn errno_name(errno: i32) -> String {
    match Errno::from_raw(errno) {
        Errno::UnknownErrno => format!("errno {errno}"),
        known => format!("{known:?}"),
    }
}

impl Why {
    /// As text: the verdict, then what leads to it.
    pub fn plain(&self) -> String {
        let mut out = format!("{}\n", self.line);
        // A string takes whatever is written.
        let mut line = |text: String| {
            let _ = writeln!(out, "\t{text}");
        };
        let WhyScope { process, uid, cgroup, captured_by, off, excluded, foreign_netns, own } = &self.scope;
        let mut scope = Vec::new();
        scope.extend(process.iter().map(|process| format!("process {process}")));
        scope.extend(uid.iter().map(|uid| format!("uid {uid}")));
        scope.extend(cgroup.iter().map(|cgroup| format!("cgroup {}", cgroup.display())));
        scope.push(match captured_by {
            Some(by) if Some(by) == cgroup.as_ref() => "captured".to_owned(),
            Some(by) => format!("captured by {}", by.display()),
            None => "not captured".to_owned(),
        });
        scope.extend(off.then(|| "steering is off".to_owned()));
        scope.extend(excluded.iter().map(|what| format!("excluded by {what}")));
        scope.extend(foreign_netns.then(|| "another network namespace".to_owned()));
        scope.extend(own.then(|| "the daemon itself".to_owned()));
        line(format!("scope   {}", scope.join("  ")));
        if let Some(WhyName { name, from, addresses }) = &self.name {
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            let addresses = match (addresses.is_empty(), from.as_str()) {
                (false, _) => addresses.join(" "),
                (true, "steering") => "a synthetic address, with the first question".into(),
                (true, _) => "no address".into(),
            };
            line(format!("name    {name} -> {addresses}  (from {from})"));
        }
        if let Some(RuleStatus { id, pattern, carrier }) = &self.rule {
            line(format!("rule    {id}: {pattern}  carrier {carrier}"));
        }
        if let Some(WhyCarrier { name, up, node, role, lane, through }) = &self.carrier {
            let mut words = vec![format!("carrier {name}"), if *up { "up" } else { "down" }.to_owned()];
            words.extend(node.iter().map(|node| format!("node {node}")));
            words.extend(role.iter().map(|role| role.word().to_owned()));
            words.extend(lane.iter().map(|lane| format!("lane {lane}")));
            words.extend(through.iter().map(|proxy| format!("through the proxy {proxy}")));
            line(words.join("  "));
        }
        if let Some(WhyPolicy { of, text, .. }) = &self.policy {
            line(format!("policy  {text}  (of {of})"));
        }
        if let Some(WhyProxy { address, used, by_address, exempted_by }) = &self.proxy {
            line(match (used, exempted_by) {
                (true, _) if *by_address => format!(
                    "proxy   it depends on its addresses, which this worker asks for: through {address} but for those in no_proxy"
                ),
                (true, _) => format!("proxy   this worker dials it through {address}"),
                (false, Some(entry)) => {
                    format!("proxy   this worker dials it itself, without {address}: no_proxy has {entry}")
                }
                (false, None) => {
                    format!("proxy   this worker dials it itself, without {address}: it is this host")
                }
            });
        }
        if let Some(WhyDown { errno, remaining_ms }) = &self.down {
            let remaining = Duration::from_millis(*remaining_ms).as_secs_f64();
            line(format!("down    {}, {remaining:.1}s more", errno_name(*errno)));
        }
        for refused in &self.refused {
            let errno = refused.errno.map(|errno| format!("  {}", errno_name(errno))).unwrap_or_default();
            line(format!("refused {}  {}  {}{errno}", refused.process, refused.target, refused.reason));
        }
        for flow in &self.failed {
            let reason = flow.reason.as_deref().unwrap_or(&flow.state);
            let ago = age(Duration::from_millis(flow.age_ms));
            line(format!("failed  flow {}  after {ago}  {reason}", flow.id));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_as_people_write_them() {
        for (text, expected) in [
            ("vcenter.corp.example", "vcenter.corp.example:443"),
            ("VCenter.Corp.Example.:902", "vcenter.corp.example:902"),
            ("10.20.0.5", "10.20.0.5:443"),
            ("10.20.0.5:22", "10.20.0.5:22"),
            ("::ffff:10.20.0.5", "10.20.0.5:443"),
            ("[::ffff:10.20.0.5]:22", "10.20.0.5:22"),
            ("2001:db8::5", "[2001:db8::5]:443"),
            ("[2001:db8::5]", "[2001:db8::5]:443"),
            ("[2001:db8::5]:22", "[2001:db8::5]:22"),
        ] {
            assert_eq!(target(text).map(|t| t.to_string()).ok().as_deref(), Some(expected), "{text}");
        }
        for (text, says) in [
            ("", "1 to 253"),
            ("vc.example:", "\"\" is no port"),
            ("vc.example:0", "\"0\" is no port"),
            ("vc.example:https", "\"https\" is no port"),
            ("vc.example:70000", "is no port"),
            ("https://vc.example/", "is no port"),
            ("10.1", "number"),
            ("a b", "letters"),
        ] {
            let error = target(text).map(|t| t.to_string()).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("HOST:PORT"), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_line_of_the_proxy_says_what_decides() {
        for (proxy, says) in [
            (r#""used":true"#, "this worker dials it through http://p:1\n"),
            (r#""used":true,"by_address":true"#, "depends on its addresses"),
            (r#""used":false,"exempted_by":"*.corp.example""#, "no_proxy has *.corp.example\n"),
            (r#""used":false"#, "it is this host\n"),
        ] {
            let text = format!(
                r#"{{"verdict":"direct","reason":"no-steering","line":"direct","target":"a.example:443",
                    "scope":{{"foreign_netns":false,"own":false}},"refused":[],"failed":[],
                    "proxy":{{"address":"http://p:1",{proxy}}}}}"#
            );
            let why: Why = serde_json::from_str(&text).expect("an answer");
            assert!(why.plain().contains(says), "{}", why.plain());
        }
    }

    #[test]
    fn errnos_have_names() {
        assert_eq!(errno_name(libc::EHOSTUNREACH), "EHOSTUNREACH");
        assert_eq!(errno_name(99_999), "errno 99999");
    }
}
