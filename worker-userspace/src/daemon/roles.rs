//! The roles that run, and what is said of them.

use std::sync::Arc;
use std::time::Instant;

use super::appliance::Appliance;
use super::metrics::Collected;
use super::readiness::Believed;
use super::why;
use crate::appliance::registry::Registry;
use crate::config::Config;
use crate::drain::Drain;
use crate::inspect::api::{Lack, Reports};
use crate::inspect::ledger::Ledger;
use crate::inspect::status::{
    ApplianceStatus, CertificateStatus, Flows, LaneStatus, PolicyStatus, ProxyStatus, Status, UpstreamStatus,
    WorkerStatus,
};
use crate::steer::steering::Steering;
use crate::threads::Threads;
use crate::tunnel::tls::expiry::Expiry;
use crate::worker::Uplink;

/// What `status` is made of.
pub(super) struct Roles {
    pub(super) config: Config,
    pub(super) started: Instant,
    pub(super) ledger: Ledger,
    pub(super) threads: Threads,
    pub(super) registry: Option<Arc<Registry>>,
    pub(super) appliance: Option<Appliance>,
    pub(super) uplink: Option<Arc<Uplink>>,
    pub(super) steering: Option<Arc<Steering>>,
    pub(super) proxy: Option<ProxyStatus>,
    pub(super) found: Believed<Vec<Lack>>,
    pub(super) expiry: Expiry,
    /// The metrics as they were read last.
    pub(super) collected: Believed<Collected>,
}

impl Roles {
    /// With what is `wanted` among what is listed.
    fn status(&self, wanted: Option<&str>) -> Status {
        let appliance =
            self.config.appliance.as_ref().zip(self.appliance.as_ref()).map(|(config, appliance)| {
                ApplianceStatus {
                    listen: appliance.listen.clone(),
                    plaintext: config.tls.is_none(),
                    groups: appliance.registry.groups().iter().map(|group| group.status()).collect(),
                }
            });
        let worker = self.config.worker.as_ref().zip(self.uplink.as_ref()).map(|(config, uplink)| {
            let told = uplink.told();
            let connected = uplink.session().is_up();
            // What it was when it was connected last is no role.
            let role = told.role.filter(|_| connected);
            WorkerStatus {
                appliance: uplink.appliance(),
                connected,
                problem: uplink.problem(),
                lanes: uplink.session().lanes().iter().map(|lane| LaneStatus::of(lane)).collect(),
                allow: texts(config.egress.allow.iter().flatten()),
                deny: texts(&config.egress.deny),
                role: role.map(|told| told.role.word().to_owned()),
                role_epoch: role.map(|told| told.epoch),
                policy: PolicyStatus::of(told.policy.as_deref(), config.egress.allow.is_some()),
                proxy: uplink.proxy().map(|(proxy, appliance)| UpstreamStatus {
                    address: proxy.name().to_owned(),
                    appliance,
                    no_proxy: texts(proxy.no_proxy().listed()),
                }),
            }
        });
        let steer = self.steering.as_ref().map(|steering| steering.status(wanted));
        let named = [
            ("appliance", appliance.is_some()),
            ("worker", worker.is_some()),
            ("steer", steer.is_some()),
            ("proxy", self.proxy.is_some()),
        ];
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            roles: named.into_iter().filter(|(_, on)| *on).map(|(name, _)| name.to_owned()).collect(),
            appliance,
            worker,
            steer,
            proxy: self.proxy.clone(),
            tls: CertificateStatus::all(&self.expiry),
            flows: Flows {
                open: self.ledger.open_count(),
                total: self.ledger.total(),
                recent: self.ledger.report(wanted),
            },
        }
    }
}

/// What the daemon says of itself to who asks over HTTP.
pub(super) fn reports(roles: &Arc<Roles>, drain: &Drain) -> Reports {
    let (reported, asked, explained, drain) = (roles.clone(), roles.clone(), roles.clone(), drain.clone());
    Reports {
        why: Arc::new(move |asked| Box::pin(why::why(explained.clone(), asked))),
        status: Arc::new(move |wanted| reported.status(wanted.item.as_deref())),
        unready: Arc::new(move || {
            let (roles, stopping) = (asked.clone(), drain.is_stopping());
            Box::pin(async move {
                match stopping {
                    true => vec![Lack { part: "stopping", detail: "dworker is stopping".to_owned() }],
                    false => roles.unready().await,
                }
            })
        }),
    }
}

fn texts<'p, P: ToString + 'p>(patterns: impl IntoIterator<Item = &'p P>) -> Vec<String> {
    patterns.into_iter().map(ToString::to_string).collect()
}
