//! What would happen to a connection on this host, as far as steering knows.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use worker_common::decision::Path;
use worker_common::{Entry, PortRule, Verdict as Decided};

use super::{Steering, lock};
use crate::inspect::status::{RefusedStatus, RuleStatus};
use crate::inspect::why::{Verdict, WhyDown, WhyName, errno_name};
use crate::steer::caller::Scope;
use crate::steer::judge::{Judged, judge};
use crate::steer::kernel::{Counter, KernelError, Reason};
use crate::steer::names::{Standing, hosts_addresses};
use crate::target::{Host, Name, Target};

/// Refusals that an answer lists.
const LISTED: usize = 5;

/// What steering says of a connection.
#[derive(Debug, Clone)]
pub struct Explained {
    /// What happens to it.
    pub verdict: Verdict,
    /// Why, in a word.
    pub reason: &'static str,
    /// What `connect()` fails with.
    pub errno: Option<i32>,
    /// Why, for people; empty where it is steered.
    pub text: String,
    /// What it is for, as who carries it is told: the name that an address stands for.
    pub meant: Target,
    /// What the name leads to, where it is one; of an address that stands for a name, that name.
    pub name: Option<WhyName>,
    /// The address that was judged.
    pub address: Option<IpAddr>,
    /// The rule that names it.
    pub rule: Option<RuleStatus>,
    /// The id of the carrier that the rule is of.
    pub carrier: Option<i64>,
    /// That the target was down a moment ago.
    pub down: Option<WhyDown>,
    /// What the kernel refused of late.
    pub refused: Vec<RefusedStatus>,
}

/// What a name leads to, before the kernel is asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Led {
    /// To these addresses, by whom.
    To(&'static str, Vec<IpAddr>),
    /// It is a proxy host that nobody has asked for yet: to an address with this entry.
    Fresh(Box<Entry>),
    /// Steering has no say in it: this host's resolver is to be asked.
    Resolver,
}

impl Steering {
    /// What a name leads to, for one whose questions are answered by steering or are not.
    pub fn lead(&self, name: &Name, scope: &Scope) -> Led {
        // Resolvers look there first.
        match hosts_addresses(&self.hosts, name) {
            Ok(addresses) if !addresses.is_empty() => return Led::To("hosts", addresses),
            _ => {}
        }
        if scope.is_left_alone() || !matches!(self.names.standing(name.as_str()), Standing::ProxyHost(_)) {
            return Led::Resolver;
        }
        if let Some(synthetic) = self.names.assigned(name) {
            let both = [
                (self.families.ipv4, IpAddr::from(synthetic.v4)),
                (self.families.ipv6, IpAddr::from(synthetic.v6)),
            ];
            let answered = both.into_iter().filter(|(answered, _)| *answered).map(|(_, address)| address);
            return Led::To("steering", answered.collect());
        }
        match self.rules.plan().for_name(name) {
            Some(entry) => Led::Fresh(Box::new(entry)),
            None => Led::Resolver,
        }
    }

    /// What would happen to a connection. `led` is what the target's name leads to, with the resolver's addresses where
    /// steering has no say; of several the first one is judged, as applications try it first.
    ///
    /// # Errors
    /// A map can't be read.
    pub fn explain(
        &self,
        target: &Target,
        scope: &Scope,
        led: Option<&Led>,
    ) -> Result<Explained, KernelError> {
        let named = match (&target.host, led) {
            (Host::Name(name), Some(led)) => {
                let (from, addresses) = match led {
                    Led::To(from, addresses) => (*from, addresses.clone()),
                    Led::Fresh(_) => ("steering", Vec::new()),
                    Led::Resolver => ("resolver", Vec::new()),
                };
                Some(WhyName { name: name.to_string(), from: from.to_owned(), addresses })
            }
            _ => None,
        };
        let address = match (&target.host, &named) {
            (Host::Addr(address), _) => Some(*address),
            (Host::Name(_), Some(named)) => named.addresses.first().copied(),
            (Host::Name(_), None) => None,
        };
        let entry = match led {
            Some(Led::Fresh(entry)) => Some(**entry),
            _ => None,
        };
        // The first address of the prefix is no name's, so nothing else is known of it.
        let judged = match (address, entry) {
            (Some(address), _) => Some(self.judge(scope, SocketAddr::new(address, target.port), None)?),
            (None, Some(entry)) => {
                let prefixes = self.names.prefixes();
                let stand_in = match self.families.ipv4 {
                    true => IpAddr::from(prefixes.v4().network()),
                    false => IpAddr::from(prefixes.v6().network()),
                };
                Some(self.judge(scope, SocketAddr::new(stand_in, target.port), Some(entry))?)
            }
            (None, None) => None,
        };
        let rule = judged.as_ref().and_then(|judged| judged.entry.as_ref()?.rule(target.port).copied());
        let mut explained = match &judged {
            _ if scope.off => said(
                Verdict::Direct,
                "steering-off",
                "steering is off: `dworker steer on` captures again".to_owned(),
            ),
            _ if !scope.is_captured() => {
                let whose = match (&scope.process, &scope.cgroup) {
                    (Some(process), _) => format!("{process} is in no captured cgroup"),
                    (None, Some(cgroup)) => format!("{} is not captured", cgroup.display()),
                    (None, None) => {
                        let missing = self.missing_cgroups();
                        let missing =
                            missing.first().map(|path| format!(": {} is not there yet", path.display()));
                        format!("no cgroup is captured{}", missing.unwrap_or_default())
                    }
                };
                said(Verdict::Direct, "not-captured", whose)
            }
            Some(judged) => {
                match (self.verdict(target, judged, scope), self.left_alone(named.as_ref(), scope)) {
                    // A name that would be steered; but its question was left alone, so it led elsewhere.
                    (Explained { reason: "direct", .. }, Some(alone)) => alone,
                    (explained, _) => explained,
                }
            }
            None => {
                let why = self
                    .left_alone(named.as_ref(), scope)
                    .map_or("no rule names it".to_owned(), |alone| alone.text);
                let text = format!("{why}, and this host's resolver knows no address of it");
                said(Verdict::Direct, "unresolved", text)
            }
        };
        explained.meant = target.clone();
        // Where a rule names the address, its host is asked for: by an address that stands for a name, that name.
        if let Some(address) = address.filter(|address| rule.is_some() || self.names.contains(*address)) {
            let host = self.host_at(SocketAddr::new(address, target.port));
            explained.meant.host = host.unwrap_or_else(|| target.host.clone());
        }
        let named = named.or_else(|| match &explained.meant.host {
            Host::Name(name) => {
                let from = if self.names.contains(address?) { "steering" } else { "hosts" };
                Some(WhyName {
                    name: name.to_string(),
                    from: from.to_owned(),
                    addresses: address.into_iter().collect(),
                })
            }
            Host::Addr(_) => None,
        });
        let down = judged.as_ref().and_then(|judged| judged.down);
        explained.down = down.map(|(errno, left)| WhyDown { errno, remaining_ms: left.as_millis() as u64 });
        (explained.name, explained.address) = (named, address);
        explained.refused = self.refused_to(&explained.meant, address);
        if let Some(rule) = rule {
            (explained.rule, explained.carrier) = self.rule(&rule);
        }
        Ok(explained)
    }

    fn judge(&self, scope: &Scope, target: SocketAddr, entry: Option<Entry>) -> Result<Judged, KernelError> {
        judge(&*self.kernel, scope.caller, target, entry)
    }

    /// Why the name of a proxy host was asked of this host's resolver by one whose connections the programs see.
    fn left_alone(&self, named: Option<&WhyName>, scope: &Scope) -> Option<Explained> {
        let WhyName { name, .. } = named.filter(|named| named.from == "resolver")?;
        match self.names.standing(name) {
            Standing::ProxyHost(_) if scope.caller.own => Some(own()),
            Standing::ProxyHost(_) if scope.caller.excluded => Some(excluded(scope)),
            Standing::ProxyHost(_) if scope.caller.foreign_netns => Some(foreign()),
            _ => None,
        }
    }

    fn verdict(&self, target: &Target, judged: &Judged, scope: &Scope) -> Explained {
        let direct = |reason: &'static str, text: &str| said(Verdict::Direct, reason, text.to_owned());
        match (judged.path, judged.verdict) {
            (Path::Pass, _) => direct("loopback", "it stays on this host"),
            (Path::Dns, _) if scope.caller.own => own(),
            (Path::Dns, _) if scope.caller.excluded => excluded(scope),
            (Path::Dns, _) if scope.caller.foreign_netns => foreign(),
            (Path::Dns, _) => said(
                Verdict::Answered,
                "dns-tcp",
                "it asks a resolver, and dworker's DNS answers in its place".into(),
            ),
            (Path::DnsLinkLocal, _) => {
                direct("dns-link-local", "it asks a link-local resolver, whose interface is not known")
            }
            (Path::Refuse(reason), _) => self.refusal(target, judged, reason, libc::EHOSTUNREACH, None),
            (Path::Rules, Some(Decided::Own)) => own(),
            (Path::Rules, Some(Decided::Excluded)) => excluded(scope),
            (Path::Rules, Some(Decided::ForeignNetns)) => foreign(),
            (Path::Rules, Some(Decided::Steer(_))) => said(Verdict::Steered, "steered", String::new()),
            (Path::Rules, Some(Decided::FailOpen(_))) => direct(
                "fail-open",
                "a rule names it, but it can't be sent to dworker, and the rule fails open",
            ),
            (Path::Rules, Some(Decided::Refuse { reason, errno, rule })) => {
                let errno = i32::try_from(errno).unwrap_or(libc::EHOSTUNREACH);
                self.refusal(target, judged, reason, errno, (rule > 0).then_some(rule))
            }
            (Path::Rules, Some(Decided::Direct) | None) => {
                let ports = judged.entry.as_ref().is_some_and(|entry| entry.len > 0);
                match ports {
                    true => {
                        said(Verdict::Direct, "direct", format!("no rule names port {} of it", target.port))
                    }
                    false => direct("direct", "no rule names it"),
                }
            }
        }
    }

    fn refusal(
        &self,
        target: &Target,
        judged: &Judged,
        reason: Reason,
        errno: i32,
        rule: Option<u32>,
    ) -> Explained {
        let text = match reason {
            Reason::Group => {
                let plan = self.rules.plan();
                let group =
                    rule.and_then(|number| plan.rules.iter().find(|rule| rule.number.get() == number));
                let name =
                    group.and_then(|rule| plan.carriers.values().find(|(slot, _)| *slot == rule.group));
                let name = name.map(|(_, name)| name.as_str()).unwrap_or_default();
                format!("no worker of {name} is connected")
            }
            Reason::Down => {
                let left = judged.down.map_or(Duration::ZERO, |(_, left)| left).as_secs_f64();
                format!("it was down a moment ago; it is tried again in {left:.1}s")
            }
            Reason::StaleSynthetic => {
                "the address is a synthetic one, and no name that is a proxy host has it".to_owned()
            }
            Reason::PortNotInRule => {
                format!("no rule names port {} of it, and its address is a synthetic one", target.port)
            }
            Reason::NoListener => "dworker does not listen for this family".to_owned(),
            other => other.counter().word().to_owned(),
        };
        let text = format!("{}: {text}", errno_name(errno));
        Explained { errno: Some(errno), ..said(Verdict::Refused, reason.counter().word(), text) }
    }

    fn rule(&self, rule: &PortRule) -> (Option<RuleStatus>, Option<i64>) {
        let plan = self.rules.plan();
        let found = plan.rules.iter().find(|known| known.number.get() == rule.rule);
        let carrier = plan.carriers.iter().find(|(_, (slot, _))| *slot == rule.group);
        let status = found.map(|found| RuleStatus {
            id: rule.rule,
            pattern: found.pattern.to_string(),
            carrier: carrier.map(|(_, (_, name))| name.clone()).unwrap_or_default(),
        });
        (status, carrier.map(|(id, _)| *id))
    }

    fn refused_to(&self, target: &Target, address: Option<IpAddr>) -> Vec<RefusedStatus> {
        let about = |refused: &&RefusedStatus| {
            let name = match &target.host {
                Host::Name(name) => refused.name.as_deref() == Some(name.as_str()),
                Host::Addr(_) => false,
            };
            refused.target.port() == target.port && (name || Some(refused.target.ip()) == address)
        };
        lock(&self.refused).iter().filter(about).take(LISTED).cloned().collect()
    }
}

fn own() -> Explained {
    said(Verdict::Direct, Counter::Own.word(), "it is the daemon itself".into())
}

fn excluded(scope: &Scope) -> Explained {
    let what = scope.excluded.as_ref().map(ToString::to_string).unwrap_or_default();
    said(Verdict::Direct, Counter::Excluded.word(), format!("{what} is excluded"))
}

fn foreign() -> Explained {
    let text = "it lives in another network namespace than the daemon".into();
    said(Verdict::Direct, Counter::ForeignNetns.word(), text)
}

fn said(verdict: Verdict, reason: &'static str, text: String) -> Explained {
    Explained {
        verdict,
        reason,
        errno: None,
        text,
        // Until it is found out.
        meant: Target { host: Host::Addr(IpAddr::from([0; 4])), port: 0 },
        name: None,
        address: None,
        rule: None,
        carrier: None,
        down: None,
        refused: Vec::new(),
    }
}
