//! Checks: the appliance, certificates, this host's clock, the proxy.

use super::facts::{Dialled, Facts, Kind, Obstacle};
use super::names;
use crate::inspect::finding::Finding;
use crate::tunnel::tls::Fault;
use crate::tunnel::tls::expiry::SOON;

/// Seconds by which clocks may differ before it is worth a word; and before certificates and logs suffer.
const APART: i64 = 30;
const FAR_APART: i64 = 300;

pub(super) fn appliance(facts: &Facts) -> Vec<Finding> {
    let Some(dialled) = &facts.appliance else { return vec![] };
    let Dialled { appliance, through, .. } = dialled;
    let way = through.as_ref().map(|proxy| format!(" through the proxy {proxy}")).unwrap_or_default();
    match (&dialled.reached, &dialled.admitted) {
        (Err(obstacle), _) | (Ok(_), Some(Err(obstacle))) => told(facts, obstacle),
        (Ok(took), admitted) => {
            let key = if admitted.is_some() { ", and takes this worker's key" } else { "" };
            let well = Finding::ok("appliance", format!("{appliance} answers{way} in {took:.1?}{key}"));
            let worker = facts.status().and_then(|status| status.worker.as_ref());
            let lost = worker.filter(|worker| !worker.connected).map(|worker| {
                let problem = worker.problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
                Finding::error(
                    "not-connected",
                    format!("the daemon is not connected to {}{problem}; a connection by this configuration works", worker.appliance),
                    "dworker reload has it go by the configuration that is there now",
                )
            });
            [well].into_iter().chain(lost).collect()
        }
    }
}

/// Where the proxy is for targets only; else it is on the way to the appliance.
pub(super) fn proxy(facts: &Facts) -> Vec<Finding> {
    match facts.appliance.as_ref().and_then(|dialled| dialled.proxy.as_ref()) {
        None => vec![],
        Some((name, Ok(()))) => {
            let found = format!("{name} answers; it is for targets only, so no login was tried");
            vec![Finding::ok("proxy", found)]
        }
        Some((_, Err(obstacle))) => told(facts, obstacle),
    }
}

/// An obstacle with the word for it, and what to do. Where no resolver answers that is told, and a name that was not found is
/// no other fault.
fn told(facts: &Facts, Obstacle { kind, text, is_unresolved }: &Obstacle) -> Vec<Finding> {
    if *is_unresolved && names::is_nobody_there(facts) {
        return vec![];
    }
    let (id, remedy) = match kind {
        Kind::Files => ("tls-files", "dworker config check"),
        Kind::Name => {
            ("appliance-name", "appliance_url = \"https://...\" with a name that `getent hosts` knows here")
        }
        Kind::Connect => (
            "appliance-unreachable",
            "let TCP to the port in appliance_url pass, or correct it; is the appliance's daemon running?",
        ),
        Kind::Certificate(Fault::Name) => {
            ("certificate-name", "appliance_url = \"https://...\" with one of the certificate's names")
        }
        Kind::Certificate(Fault::Untrusted) => (
            "certificate-untrusted",
            "ca_file = \"/etc/dworker/ca.pem\" with the certificate of who signed it",
        ),
        Kind::Certificate(Fault::Expired) => {
            ("certificate-expired", "renew it and replace the files at the appliance; no restart is needed")
        }
        Kind::Certificate(Fault::NotYet) => {
            ("clock", "timedatectl set-ntp true, here or where it was issued")
        }
        Kind::Certificate(Fault::Other) => ("certificate", "have it issued anew"),
        Kind::Tls => ("tls", "check host and port of appliance_url: something else may listen there"),
        Kind::Key => (
            "worker-key",
            "dworker worker rotate-key NAME at the appliance, and its key into worker_key here",
        ),
        Kind::ClientCertificate => (
            "client-certificate",
            "client_certificate and client_key, signed by the CA of the appliance's client_ca_file",
        ),
        Kind::Upgrade => {
            ("appliance-upgrade", "let websockets pass what is in between, or correct appliance_url")
        }
        Kind::ProxyLogin => (
            "proxy-login",
            "proxy_address = \"http://USER:PASSWORD@HOST:PORT\", or the password in proxy_address_password_file",
        ),
        Kind::ProxyDenied => ("proxy-denied", "allow CONNECT to the appliance's host and port at the proxy"),
        Kind::ProxyDown => ("proxy-unreachable", "proxy_address = \"http://HOST:PORT\" of a proxy that runs"),
        Kind::ProxyTarget => ("proxy-target", "the proxy must resolve and reach the host in appliance_url"),
    };
    vec![Finding::error(id, text, remedy)]
}

pub(super) fn clock(facts: &Facts) -> Vec<Finding> {
    let Some((theirs, ours)) = facts.appliance.as_ref().and_then(|dialled| dialled.date) else {
        return vec![];
    };
    let apart = ours.as_second() - theirs.as_second();
    let found = || {
        let side = if apart > 0 { "ahead of" } else { "behind" };
        format!("this host's clock is {} s {side} the appliance's: {ours:.0} and {theirs:.0}", apart.abs())
    };
    let remedy = "timedatectl set-ntp true, on whichever is wrong";
    vec![match apart.abs() {
        ..APART => Finding::ok("clock", "it agrees with the appliance's"),
        APART..FAR_APART => Finding::warning("clock", found(), remedy),
        _ => Finding::error("clock", found(), remedy),
    }]
}

pub(super) fn expiry(facts: &Facts) -> Vec<Finding> {
    // What was just refused is told there.
    let refused = matches!(
        facts.appliance.as_ref().map(|dialled| &dialled.reached),
        Some(Err(Obstacle { kind: Kind::Certificate(_), .. }))
    );
    let all = facts.certificates.iter().filter(|found| !(refused && found.source == "appliance"));
    let mut findings: Vec<Finding> = all
        .clone()
        .filter(|certificate| certificate.days_left < SOON)
        .map(|certificate| {
            let which = format!(
                "{}: certificate {} ({}, names {})",
                certificate.source,
                certificate.number,
                certificate.subject,
                certificate.names.join(" ")
            );
            let until = certificate.not_after;
            let remedy = remedy(&certificate.source);
            match certificate.days_left {
                ..0 => {
                    Finding::error("certificate-expired", format!("{which} has expired at {until}"), remedy)
                }
                days => {
                    let days = if days == 1 { "1 day".to_owned() } else { format!("{days} days") };
                    let found = format!("{which} expires in {days}, at {until}");
                    Finding::warning("certificate-expires", found, remedy)
                }
            }
        })
        .collect();
    if findings.is_empty()
        && let Some(first) = all.min_by_key(|certificate| certificate.not_after)
    {
        let text = format!(
            "the first one to expire ({}, {}) is valid for {} days",
            first.source, first.subject, first.days_left
        );
        findings.push(Finding::ok("certificates", text));
    }
    findings
}

fn remedy(source: &str) -> &'static str {
    match source {
        "appliance" => "have it renewed at the appliance",
        "proxy" => "have it renewed at the proxy",
        "ca_file" | "ca_dir" | "appliance.client_ca_file" => {
            "add the certificate that follows it; remove this one when nothing needs it"
        }
        _ => "renew it and replace the files; no restart is needed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::finding::Severity;
    use crate::inspect::status::CertificateStatus;
    use jiff::Timestamp;
    use std::time::Duration;

    fn dialled() -> Dialled {
        Dialled {
            appliance: "appliance.example:443".into(),
            through: None,
            reached: Ok(Duration::from_millis(3)),
            date: None,
            admitted: Some(Ok(())),
            proxy: None,
        }
    }

    use super::proxy as proxy_of;

    fn with(dialled: Dialled) -> Facts {
        Facts { appliance: Some(dialled), ..Facts::default() }
    }

    #[test]
    fn clocks_may_differ_a_little() {
        let now = Timestamp::from_second(1_800_000_000).expect("a time");
        for (seconds, expected) in [
            (0, Severity::Ok),
            (-29, Severity::Ok),
            (30, Severity::Warning),
            (-299, Severity::Warning),
            (300, Severity::Error),
            (-86_400, Severity::Error),
        ] {
            let theirs = Timestamp::from_second(now.as_second() - seconds).expect("a time");
            let found = clock(&with(Dialled { date: Some((theirs, now)), ..dialled() }));
            assert_eq!(found[0].severity, expected, "{seconds}");
            if seconds == -86_400 {
                assert!(found[0].found.contains("86400 s behind"), "{found:?}");
            }
        }
    }

    #[test]
    fn each_obstacle_has_a_word_and_a_remedy_of_its_own() {
        use Kind::*;
        let kinds = [
            Files,
            Name,
            Connect,
            Certificate(Fault::Name),
            Certificate(Fault::Untrusted),
            Certificate(Fault::Expired),
            Certificate(Fault::NotYet),
            Certificate(Fault::Other),
            Tls,
            Key,
            ClientCertificate,
            Upgrade,
            ProxyLogin,
            ProxyDenied,
            ProxyDown,
            ProxyTarget,
        ];
        let mut words = std::collections::HashSet::new();
        for kind in kinds {
            let obstacle = Obstacle { kind, text: "why".into(), is_unresolved: false };
            let found = appliance(&with(Dialled { reached: Err(obstacle), ..dialled() }));
            assert_eq!((found.len(), found[0].severity), (1, Severity::Error), "{kind:?}");
            assert!(words.insert(found[0].id.clone()), "{kind:?}");
        }
        assert_eq!(appliance(&with(dialled()))[0].severity, Severity::Ok);
    }

    #[test]
    fn a_name_that_no_resolver_could_tell_is_one_fault_with_the_resolver() {
        let dead = Err("no answer within 1s".to_owned());
        let resolvers = |said: &[Result<Duration, String>]| {
            said.iter().map(|said| ("10.0.0.53".parse().expect("an address"), said.clone())).collect()
        };
        for (is_unresolved, said, expected) in [
            (true, vec![dead.clone(), dead.clone()], 0),
            (true, vec![dead.clone(), Ok(Duration::ZERO)], 1),
            (true, vec![], 1),
            (false, vec![dead], 1),
        ] {
            let obstacle = Obstacle { kind: Kind::Connect, text: "why".into(), is_unresolved };
            let proxy = Some(("http://proxy.example".to_owned(), Err(obstacle.clone())));
            let mut facts = with(Dialled { reached: Err(obstacle), proxy, ..dialled() });
            facts.names.resolvers = resolvers(&said);
            assert_eq!((appliance(&facts).len(), proxy_of(&facts).len()), (expected, expected), "{said:?}");
        }
    }

    #[test]
    fn a_certificate_that_ends_is_told_unless_it_was_just_refused() {
        let certificate = |days_left| CertificateStatus {
            source: "appliance".into(),
            number: 1,
            subject: "CN=appliance.example".into(),
            issuer: "CN=lab".into(),
            names: vec!["appliance.example".into()],
            not_before: Timestamp::UNIX_EPOCH,
            not_after: Timestamp::UNIX_EPOCH,
            days_left,
        };
        for (days, id) in [
            (-1, "certificate-expired"),
            (0, "certificate-expires"),
            (29, "certificate-expires"),
            (30, "certificates"),
        ] {
            let facts = Facts { certificates: vec![certificate(days)], ..with(dialled()) };
            assert_eq!(expiry(&facts)[0].id, id, "{days}");
        }
        let obstacle =
            Obstacle { kind: Kind::Certificate(Fault::Expired), text: "why".into(), is_unresolved: false };
        let refused = Dialled { reached: Err(obstacle), ..dialled() };
        let facts = Facts { certificates: vec![certificate(-1)], ..with(refused) };
        assert!(expiry(&facts).is_empty());
    }
}
