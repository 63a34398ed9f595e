//! Checks: how this host looks names up, and what keeps questions from arriving at steering's DNS.

use std::net::IpAddr;

use super::canary::{Heard, Song};
use super::facts::Facts;
use crate::inspect::finding::Finding;

pub(super) fn overlap(facts: &Facts) -> Vec<Finding> {
    let found = facts.names.overlap.as_ref().map(|why| {
        Finding::error(
            "synthetic-overlap",
            why,
            "steer.synthetic4 or steer.synthetic6 = a network that neither this host nor the sites use",
        )
    });
    found.into_iter().collect()
}

pub(super) fn file(facts: &Facts) -> Vec<Finding> {
    let found = facts.names.file.as_ref().map(|why| {
        Finding::error("names-file", why, "restore it from a backup, or set the synthetic prefixes back")
    });
    found.into_iter().collect()
}

/// What became of the look-up that every application makes.
pub(super) fn libc(facts: &Facts) -> Vec<Finding> {
    if facts.config().is_none_or(|config| config.steer.is_none()) {
        return vec![];
    }
    let songs: Vec<&Song> = facts
        .hooks
        .iter()
        .flat_map(|hooks| &hooks.canaries)
        .filter_map(|(_, song)| song.as_ref().ok())
        .collect();
    let lost = songs.iter().find_map(|song| match &song.libc {
        Some(Heard::Silent(instead)) => Some(instead.clone()),
        None => Some("getaddrinfo() does not come to an end".to_owned()),
        Some(Heard::Fires | Heard::Unknown) => None,
    });
    let arrives = songs.iter().any(|song| song.libc == Some(Heard::Fires));
    let sources = facts.names.nsswitch.join(" ");
    let remedy = "hosts: files dns (in /etc/nsswitch.conf, without `resolve`)";
    match (resolve_first(&facts.names.nsswitch), lost) {
        (true, Some(instead)) => vec![Finding::error(
            "nss-resolve",
            format!(
                "`hosts: {sources}` asks systemd-resolved past all hooks, so names of proxy hosts are not answered: {instead}"
            ),
            remedy,
        )],
        (true, None) => vec![Finding::warning(
            "nss-resolve",
            format!(
                "`hosts: {sources}` asks systemd-resolved past all hooks wherever that runs; a question arrives only while it \
                 does not"
            ),
            remedy,
        )],
        (false, Some(instead)) => vec![Finding::error(
            "name-lookup",
            format!("a look-up as applications make it does not arrive here (`hosts: {sources}`): {instead}"),
            "hosts: files dns (in /etc/nsswitch.conf), and a nameserver in /etc/resolv.conf",
        )],
        (false, None) if arrives => {
            vec![Finding::ok("name-lookup", format!("look-ups arrive here (`hosts: {sources}`)"))]
        }
        (false, None) => vec![],
    }
}

/// True where systemd-resolved is asked, through a socket of its own, before DNS is.
fn resolve_first(sources: &[String]) -> bool {
    let at = |wanted: &str| sources.iter().position(|source| source == wanted);
    at("resolve").is_some_and(|resolve| at("dns").is_none_or(|dns| resolve < dns))
}

pub(super) fn hosts(facts: &Facts) -> Vec<Finding> {
    let found = facts.names.hosts.iter().map(|(name, address)| {
        let line = format!("{name} stands in /etc/hosts, with {address}");
        match address.is_loopback() || address.is_unspecified() {
            true => Finding::error(
                "hosts-file",
                format!("{line}: connections to it stay on this host"),
                format!("remove {name} from /etc/hosts"),
            ),
            false => Finding::warning(
                "hosts-file",
                format!(
                    "{line}: applications connect to that address, which is steered only from the next start or change of the \
                     proxy hosts on, and follows no change at the site"
                ),
                format!("remove {name} from /etc/hosts"),
            ),
        }
    });
    found.collect()
}

/// True where there are resolvers to ask, and none of them answers.
pub(super) fn is_nobody_there(facts: &Facts) -> bool {
    let all = &facts.names.resolvers;
    !all.is_empty() && all.iter().all(|(_, said)| said.is_err())
}

pub(super) fn resolvers(facts: &Facts) -> Vec<Finding> {
    let all = &facts.names.resolvers;
    let dead: Vec<(IpAddr, &str)> =
        all.iter().filter_map(|(resolver, said)| Some((*resolver, said.as_ref().err()?.as_str()))).collect();
    let each = dead.iter().map(|(resolver, why)| format!("{resolver}: {why}")).collect::<Vec<_>>().join("; ");
    let remedy = "correct the nameserver lines of /etc/resolv.conf, or start the resolver";
    match (all.len(), dead.len()) {
        (0, _) => vec![],
        (_, 0) => {
            let told: Vec<_> = all.iter().map(|(resolver, _)| resolver.to_string()).collect();
            vec![Finding::ok("resolver", format!("{} of /etc/resolv.conf answers", told.join(", ")))]
        }
        _ if is_nobody_there(facts) => {
            vec![Finding::error(
                "resolver",
                format!("no resolver of /etc/resolv.conf answers: {each}"),
                remedy,
            )]
        }
        _ => vec![Finding::warning(
            "resolver",
            format!("a resolver of /etc/resolv.conf does not answer, and look-ups wait for it: {each}"),
            remedy,
        )],
    }
}

pub(super) fn encrypted(facts: &Facts) -> Vec<Finding> {
    if facts.config().is_none_or(|config| config.steer.is_none()) {
        return vec![];
    }
    let over_tls = facts.names.over_tls.as_ref().map(|setting| {
        Finding::notice(
            "dns-over-tls",
            format!(
                "systemd-resolved asks its own resolvers over TLS ({setting}), which no hook sees: only what asks it at \
                 127.0.0.53 is answered here before"
            ),
        )
    });
    let over_https = Finding::notice(
        "dns-over-https",
        "whether an application asks DNS over HTTPS, as browsers may, can't be seen from outside: it gets no synthetic addresses",
    );
    over_tls.into_iter().chain([over_https]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::doctor::facts::Hooks;
    use crate::inspect::finding::Severity;

    const CONFIG: &str = "appliance_url = \"https://a.example\"\nworker_key_file = \"/k\"\n[steer]\ncgroups = [\"a.slice\"]\n\
        proxy_hosts = [\"vcenter.corp.example\"]\n";

    fn facts(libc: Option<Heard>, nsswitch: &str) -> Facts {
        let config = Config::parse(CONFIG, "dworker.toml").expect("valid").config;
        let song = Song { libc, ..Song::default() };
        let hooks = Hooks { canaries: vec![("/a".into(), Ok(song))], ..Hooks::default() };
        let mut facts = Facts { config: Some(Ok((config, vec![]))), hooks: Some(hooks), ..Facts::default() };
        facts.names.nsswitch = nsswitch.split(' ').map(str::to_owned).collect();
        facts
    }

    #[test]
    fn what_bypasses_dns_is_worse_where_it_does_so_now() {
        let silent = || Some(Heard::Silent("NXDOMAIN".into()));
        for (heard, nsswitch, id, severity) in [
            (Some(Heard::Fires), "files dns", "name-lookup", Severity::Ok),
            (Some(Heard::Fires), "files dns resolve", "name-lookup", Severity::Ok),
            (Some(Heard::Fires), "files resolve [!UNAVAIL=return] dns", "nss-resolve", Severity::Warning),
            (silent(), "files resolve [!UNAVAIL=return] dns", "nss-resolve", Severity::Error),
            (silent(), "files resolve", "nss-resolve", Severity::Error),
            (silent(), "files", "name-lookup", Severity::Error),
            (None, "files dns", "name-lookup", Severity::Error),
        ] {
            let found = libc(&facts(heard, nsswitch));
            assert_eq!((found[0].id.as_str(), found[0].severity), (id, severity), "{nsswitch}");
        }
        assert!(libc(&facts(Some(Heard::Unknown), "files dns")).is_empty(), "another finding says why");
    }

    #[test]
    fn a_dead_resolver_is_an_error_where_no_other_answers() {
        let said = |ok: bool| ok.then_some(std::time::Duration::ZERO).ok_or("no answer within 2s".to_owned());
        for (all, expected) in [
            (vec![true], Severity::Ok),
            (vec![true, false], Severity::Warning),
            (vec![false, false], Severity::Error),
        ] {
            let mut facts = Facts::default();
            facts.names.resolvers =
                all.iter().map(|ok| ("10.0.0.53".parse().expect("an address"), said(*ok))).collect();
            assert_eq!(resolvers(&facts)[0].severity, expected, "{all:?}");
        }
        assert!(resolvers(&Facts::default()).is_empty());
    }

    #[test]
    fn a_name_in_hosts_that_means_this_host_is_cut_off() {
        let mut facts = Facts::default();
        let at = |text: &str| ("vcenter.corp.example".to_owned(), text.parse().expect("an address"));
        facts.names.hosts = vec![at("10.20.0.5"), at("127.0.0.1"), at("0.0.0.0")];
        let found: Vec<_> = hosts(&facts).iter().map(|finding| finding.severity).collect();
        assert_eq!(found, [Severity::Warning, Severity::Error, Severity::Error]);
    }
}
