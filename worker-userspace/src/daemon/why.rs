//! What would happen to a connection: what all roles know of it together.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::Roles;
use crate::inspect::ledger::{Filter, FlowReport, Phase};
use crate::inspect::status::NodeRole;
use crate::inspect::why::{self, Asked, Verdict, Why, WhyCarrier, WhyError, WhyPolicy, WhyProxy, WhyScope};
use crate::refusal::Code;
use crate::resolve::Resolver;
use crate::route::GRACE;
use crate::steer::caller::{self, Scope, Seen, Who};
use crate::steer::steering::{Explained, Led, Steering};
use crate::target::{Host, Name, Target};

/// How long this host's resolver is waited for.
const RESOLVER: Duration = Duration::from_secs(5);
/// Failed connections that an answer lists.
const LISTED: usize = 5;

/// Answers.
///
/// # Errors
/// What was asked means nothing, or a table of the kernel can't be read.
pub(super) async fn why(roles: Arc<Roles>, asked: Asked) -> Result<Why, WhyError> {
    let target = why::target(&asked.target)?;
    let seen = match (asked.comm, asked.netns) {
        (Some(comm), Some(netns)) => Some(seen(&comm, &netns)?),
        _ => None,
    };
    let who = Who { pid: asked.pid, cgroup: asked.cgroup.map(Into::into), uid: asked.uid, seen };
    let (scope, explained) = match &roles.steering {
        Some(steering) => {
            let field = if who.pid.is_some() { "pid" } else { "cgroup" };
            let wrong = |detail| WhyError::Asked { field, detail };
            let asked = steering.clone();
            let scope = spawn_blocking(move || asked.scope(&who)).await;
            let scope = scope.map_err(|error| wrong(error.to_string()))?;
            let scope = Arc::new(scope.map_err(|error| wrong(error.to_string()))?);
            let explained = explain(steering, &target, &scope).await?;
            (Some(Arc::unwrap_or_clone(scope)), Some(explained))
        }
        None => (None, None),
    };
    Ok(roles.compose(&target, scope, explained))
}

fn seen(comm: &str, netns: &str) -> Result<Seen, WhyError> {
    let netns =
        netns.split_once(':').and_then(|(device, number)| Some((device.parse().ok()?, number.parse().ok()?)));
    let detail = "not a device and a number, as in 4:4026531840".to_owned();
    let netns = netns.ok_or(WhyError::Asked { field: "netns", detail })?;
    Ok(Seen { comm: caller::shown(comm), netns })
}

async fn explain(
    steering: &Arc<Steering>,
    target: &Target,
    scope: &Arc<Scope>,
) -> Result<Explained, WhyError> {
    let led = match &target.host {
        Host::Addr(_) => None,
        Host::Name(name) => Some({
            let (steering, asked, scope) = (steering.clone(), name.clone(), scope.clone());
            match blocking(move || Ok(steering.lead(&asked, &scope))).await? {
                // Whoever is not captured goes where that says.
                Led::Resolver => Led::To("resolver", resolve(name).await?),
                led => led,
            }
        }),
    };
    let (steering, target, scope) = (steering.clone(), target.clone(), scope.clone());
    blocking(move || steering.explain(&target, &scope, led.as_ref()).map_err(|error| error.to_string())).await
}

/// What reads files and the kernel's tables.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, WhyError> {
    let read = spawn_blocking(read).await.map_err(|panicked| panicked.to_string()).flatten();
    read.map_err(|detail| WhyError::Asked { field: "target", detail })
}

/// As this host's resolver has it for everybody who is not captured, this daemon among them.
async fn resolve(name: &Name) -> Result<Vec<IpAddr>, WhyError> {
    static SYSTEMS: LazyLock<Resolver> = LazyLock::new(Resolver::default);
    match SYSTEMS.look_up(name, Instant::now() + RESOLVER, RESOLVER).await {
        Ok(addresses) => Ok(addresses.into_iter().map(|address| address.to_canonical()).collect()),
        Err(refusal) if refusal.code == Code::NameNotFound => Ok(Vec::new()),
        // That nobody answers does not say that there is no address.
        Err(refusal) => Err(WhyError::Silent(format!(
            "{}: where it would go without dworker is not known; ask again, or for an address",
            refusal.text
        ))),
    }
}

impl Roles {
    fn compose(&self, target: &Target, scope: Option<Scope>, explained: Option<Explained>) -> Why {
        let told = scope.map(|scope| WhyScope {
            process: scope.process,
            uid: scope.uid,
            cgroup: scope.cgroup,
            captured_by: scope.captured,
            off: scope.off,
            excluded: scope.excluded.map(|excluded| excluded.to_string()),
            foreign_netns: scope.caller.foreign_netns,
            own: scope.caller.own,
        });
        let meant = explained.as_ref().map_or(target, |explained| &explained.meant);
        let carrier = self.carrier(meant, explained.as_ref());
        // What this worker's host steers goes to the appliance, and another worker dials it.
        let dials = self.registry.is_some() || explained.as_ref().is_none_or(|it| it.rule.is_none());
        let policy = self.policy(meant).filter(|_| dials);
        let proxy = self.upstream(meant).filter(|_| dials);
        let failed = self.failed(meant);
        let Some(explained) = explained else {
            return Why {
                verdict: Verdict::Direct,
                reason: "no-steering".into(),
                errno: None,
                line: "direct: this daemon captures nothing: it has no [steer]".into(),
                target: target.to_string(),
                scope: WhyScope::default(),
                name: None,
                address: None,
                rule: None,
                carrier,
                policy,
                proxy,
                down: None,
                refused: Vec::new(),
                failed,
            };
        };
        let line = match (explained.verdict, &carrier) {
            (Verdict::Steered, Some(carrier)) => format!("steered to {}", self.whereto(carrier)),
            (Verdict::Steered, None) => "steered".to_owned(),
            (verdict, _) => format!("{}: {}", verdict.word(), explained.text),
        };
        Why {
            verdict: explained.verdict,
            reason: explained.reason.to_owned(),
            errno: explained.errno,
            line,
            target: target.to_string(),
            scope: told.unwrap_or_default(),
            name: explained.name,
            address: explained.address,
            rule: explained.rule,
            carrier,
            policy,
            proxy,
            down: explained.down,
            refused: explained.refused,
            failed,
        }
    }

    fn whereto(&self, carrier: &WhyCarrier) -> String {
        let what = if self.registry.is_some() { "group " } else { "" };
        let name = &carrier.name;
        match (&carrier.node, carrier.up) {
            (Some(node), true) => {
                let role = carrier.role.map(|role| format!(" ({})", role.word())).unwrap_or_default();
                format!("{what}{name}, node {node}{role}")
            }
            (None, true) => format!("{what}{name}"),
            (_, false) => {
                format!("{what}{name}, where nobody is connected: it waits up to {GRACE:?} for that")
            }
        }
    }

    /// Who would carry it: whom the kernel's rule names, or else the registry's.
    fn carrier(&self, target: &Target, explained: Option<&Explained>) -> Option<WhyCarrier> {
        let by_rule = explained.and_then(|explained| explained.carrier);
        if let Some(registry) = &self.registry {
            let group = match by_rule {
                Some(id) => registry.group(id),
                None => registry.owner(target).map(|(_, group)| group),
            }?;
            let sessions = group.sessions();
            let session = sessions.iter().find(|session| session.is_up());
            return Some(WhyCarrier {
                name: group.config.name.clone(),
                up: session.is_some(),
                node: session.map(|session| session.peer().name.clone()),
                role: session.zip(sessions.first()).map(|(chosen, first)| match Arc::ptr_eq(chosen, first) {
                    true => NodeRole::Primary,
                    false => NodeRole::Standby,
                }),
                lane: session.and_then(|session| session.least_busy()).map(|lane| lane.peer().lane),
                through: None,
            });
        }
        let uplink = self.uplink.as_ref().filter(|_| by_rule.is_some() || self.proxy.is_some())?;
        Some(WhyCarrier {
            name: format!("appliance {}", uplink.appliance()),
            up: uplink.session().is_up(),
            node: None,
            role: None,
            lane: uplink.session().least_busy().map(|lane| lane.peer().lane),
            through: uplink
                .proxy()
                .filter(|(_, appliance)| *appliance)
                .map(|(proxy, _)| proxy.name().to_owned()),
        })
    }

    /// Whether a worker's own proxy dials it.
    fn upstream(&self, target: &Target) -> Option<WhyProxy> {
        let (proxy, _) = self.uplink.as_ref()?.proxy()?;
        let exempted_by = proxy.no_proxy().entry_for(target).map(ToString::to_string);
        let used = proxy.carries(target);
        // As the dialler decides it.
        let by_address = used
            && matches!(target.host, Host::Name(_))
            && self.uplink.as_ref()?.policy().needs_address(target);
        Some(WhyProxy { address: proxy.name().to_owned(), used, by_address, exempted_by })
    }

    /// What the policies say that this daemon knows: an appliance what it pushes, a worker its own.
    fn policy(&self, target: &Target) -> Option<WhyPolicy> {
        if let Some(registry) = &self.registry {
            let owner = registry.owner(target);
            let text = match &owner {
                Some((pattern, group)) => format!(
                    "the workers of {} may dial it, by {pattern}; their own egress.allow may narrow that",
                    group.config.name
                ),
                None => "no worker may dial it: it is nobody's proxy host".to_owned(),
            };
            return Some(WhyPolicy { of: "appliance".into(), allowed: owner.is_some(), text });
        }
        let policy = self.uplink.as_ref()?.policy();
        let judged = policy.check_target(target);
        let allowed = judged.is_ok();
        let text = match judged {
            Ok(()) if matches!(target.host, Host::Name(_)) && policy.needs_address(target) => {
                "this worker may dial it for the appliance, where its addresses may be dialled".to_owned()
            }
            Ok(()) => "this worker may dial it for the appliance".to_owned(),
            Err(refusal) => refusal.text,
        };
        Some(WhyPolicy { of: "egress".into(), allowed, text })
    }

    fn failed(&self, target: &Target) -> Vec<FlowReport> {
        let text = target.to_string();
        let filter = Filter { phase: Some(Phase::Failed), target: Some(text.clone()), ..Filter::default() };
        let mut found = self.ledger.list(&filter);
        found.retain(|flow| flow.target == text);
        found.truncate(LISTED);
        found
    }
}
