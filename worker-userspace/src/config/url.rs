//! URLs. The appliance's has scheme, host and port, and nothing else, because nothing else has a meaning; a cloud's
//! may have a path.

use std::fmt;
use std::net::Ipv6Addr;

use super::fault::{SECRETS, Wrong, holds_secret, wrong};
use super::{ApplianceUrl, WorkerUrl};
use crate::target::{Host, Target};

const FORM: &str = "write \"https://HOST\" or \"https://HOST:PORT\"";
const API_FORM: &str = "write it as in \"https://vcenter.corp.example/sdk\" or \"https://10.20.0.1:9440\"";
/// The longest URL of a cloud's API, in bytes.
const LONGEST: usize = 2000;

/// What is said of `http://` where the URL is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plaintext {
    secret: &'static str,
    ask: &'static str,
    asked: &'static str,
}

impl Plaintext {
    /// In a worker's configuration.
    pub(super) const KEY: Plaintext =
        Plaintext { secret: "worker key", ask: "set", asked: "`insecure_plaintext = true`" };
    /// Among the options of a command.
    pub(super) const OPTION: Plaintext =
        Plaintext { secret: "admin token", ask: "add", asked: "`--insecure-plaintext`" };
}

/// Reads `https://host[:port][/]`; `http://` only where `insecure` says so, and only then.
pub(super) fn parse(text: &str, insecure: bool, plaintext: Plaintext) -> Result<ApplianceUrl, Wrong> {
    let Plaintext { secret, ask, asked } = plaintext;
    let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("not a URL", FORM))?;
    let plaintext = match (scheme.to_ascii_lowercase().as_str(), insecure) {
        ("https", false) => false,
        ("http", true) => true,
        ("http", false) => {
            return Err(wrong(
                format!("plaintext, so that anybody on the way could read the {secret}"),
                format!("write \"https://\", or {ask} {asked} in a lab"),
            ));
        }
        ("https", true) => {
            return Err(wrong(
                format!("it asks for TLS, and {asked} asks for none"),
                format!("remove {asked}"),
            ));
        }
        ("wss" | "ws", _) => {
            return Err(wrong(
                "a websocket's scheme",
                "write \"https://\"; the worker finds the websocket by itself",
            ));
        }
        _ => return Err(wrong("the scheme is not \"https\"", FORM)),
    };
    let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.contains('@') {
        return Err(wrong("it has a user in front of the host", format!("remove it; {FORM}")));
    }
    if authority.contains(',') {
        return Err(wrong("more than one URL", "write the one that all appliances share"));
    }
    if path.contains(|c| c != '/') {
        return Err(wrong("something stands behind the host", format!("remove it; {FORM}")));
    }
    let (host, port) = host_and_port(authority, plaintext, FORM)?;
    Ok(ApplianceUrl { host, port, plaintext })
}

/// Reads `https://host[:port][/]`, where an appliance reaches a worker.
pub(super) fn worker(text: &str) -> Result<WorkerUrl, Wrong> {
    const FORM: &str = "write it as in \"https://worker.example\"";
    let Target { host, port } = api_target(text).map_err(|wrong| Wrong { remedy: FORM.into(), ..wrong })?;
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    match scheme.eq_ignore_ascii_case("https") {
        false => Err(wrong("the scheme is not \"https\"", FORM)),
        true if rest.trim_end_matches('/').contains('/') => {
            Err(wrong("something stands behind the host", format!("remove it; {FORM}")))
        }
        true => Ok(WorkerUrl { host, port }),
    }
}

/// Where a cloud's API is: `http[s]://host[:port][/path]`, as it was written, and where that leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiUrl {
    text: String,
    target: Target,
}

impl ApiUrl {
    /// Reads one.
    pub(crate) fn parse(text: &str) -> Result<ApiUrl, Wrong> {
        Ok(ApiUrl { text: text.to_owned(), target: api_target(text)? })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its host, and its port or its scheme's.
    pub fn target(&self) -> &Target {
        &self.target
    }
}

impl fmt::Display for ApiUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn api_target(text: &str) -> Result<Target, Wrong> {
    if text.len() > LONGEST {
        return Err(wrong(format!("longer than {LONGEST} bytes"), API_FORM));
    }
    if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(wrong("white space or a control character stands in it", API_FORM));
    }
    if holds_secret(text) {
        return Err(wrong("a key or token stands in it, and others will read it", "remove it here"));
    }
    let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("not a URL", API_FORM))?;
    let plaintext = match scheme.to_ascii_lowercase().as_str() {
        "https" => false,
        "http" => true,
        _ => return Err(wrong("the scheme is neither \"https\" nor \"http\"", API_FORM)),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
    if authority.contains('@') {
        let remedy = "remove it: the cloud's software knows its credentials, and the worker needs none";
        return Err(wrong("it has a user in front of the host", remedy));
    }
    if path.contains(['?', '#', '\\']) {
        let remedy = format!("leave away what begins with `?`, `#` or `\\`; {API_FORM}");
        return Err(wrong("something other than a path stands behind the host", remedy));
    }
    if SECRETS.iter().any(|begin| authority.contains(begin)) {
        return Err(wrong("a key or token where the host belongs", "remove it here"));
    }
    let (host, port) = host_and_port(authority, plaintext, API_FORM)?;
    Ok(Target { host, port })
}

fn host_and_port(authority: &str, plaintext: bool, form: &str) -> Result<(Host, u16), Wrong> {
    let (host, port) = split_port(authority, form)?;
    Ok((host, port.unwrap_or(if plaintext { 80 } else { 443 })))
}

/// Splits `host[:port]`; an IPv6 address stands in brackets, as in every URL.
pub(super) fn split_port(authority: &str, form: &str) -> Result<(Host, Option<u16>), Wrong> {
    let (host, after) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, after)) => {
            let address: Ipv6Addr =
                address.parse().map_err(|_| wrong("no IPv6 address stands between the brackets", form))?;
            (Host::addr(address.into()), after)
        }
        None if authority.matches(':').count() > 1 => {
            return Err(wrong(
                "an IPv6 address without brackets",
                "write it as in \"https://[2001:db8::1]:443\"",
            ));
        }
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            (authority[..end].parse()?, &authority[end..])
        }
    };
    match after.strip_prefix(':') {
        Some(port) => match port.parse() {
            Ok(number @ 1..) if port.bytes().all(|b| b.is_ascii_digit()) => Ok((host, Some(number))),
            _ => Err(wrong("the port is not one of 1 to 65535", form)),
        },
        None if after.is_empty() => Ok((host, None)),
        None => Err(wrong("something stands behind the bracket", form)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls_mean_what_they_say() {
        for (text, plaintext, host, port) in [
            ("https://Appliance.Example", false, "appliance.example", 443),
            ("HTTPS://appliance.example:8443/", false, "appliance.example", 8443),
            ("http://10.0.0.1", true, "10.0.0.1", 80),
            ("https://[2001:db8::1]", false, "2001:db8::1", 443),
            ("https://[2001:db8::1]:1/", false, "2001:db8::1", 1),
        ] {
            let expected = ApplianceUrl { host: host.parse().expect(host), port, plaintext };
            assert_eq!(parse(text, plaintext, Plaintext::KEY), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_appliance_url_says_why() {
        for (text, says) in [
            ("", "not a URL"),
            ("appliance.example", "not a URL"),
            ("ftp://appliance.example", "scheme"),
            ("wss://appliance.example", "websocket"),
            ("https://", "not a host name"),
            ("https://:443", "not a host name"),
            ("https://a/tunnel", "behind the host"),
            ("https://a?x", "behind the host"),
            ("https://a#x", "behind the host"),
            ("https://a\\b", "behind the host"),
            ("https://u:p@a", "a user"),
            ("https://a:", "port"),
            ("https://a:0", "port"),
            ("https://a:+1", "port"),
            ("https://a:70000", "port"),
            ("https://2001:db8::1", "without brackets"),
            ("https://[2001:db8::1", "without brackets"),
            ("https://[::1]1", "behind the bracket"),
            ("https://[a]", "between the brackets"),
            ("https://z\u{fc}rich.example", "not a host name"),
            ("https://10.0.0.300", "not a host name"),
        ] {
            let problem = parse(text, false, Plaintext::KEY).expect_err(text).problem;
            assert!(problem.contains(says), "{text:?} gave {problem:?}, without {says:?}");
        }
    }

    #[test]
    fn a_token_stands_nowhere_in_the_url_of_a_cloud() {
        let token = format!("dwa_{}", "t".repeat(43));
        for text in [
            format!("https://vc.example/{token}"),
            format!("https://vc.example/sdk/{token}/x"),
            format!("https://vc.example/sdk;token={token}"),
            format!("https://{token}.example"),
            format!("https://vc.example:{token}"),
            format!("https://vc.example?{token}"),
            token.clone(),
        ] {
            let wrong = ApiUrl::parse(&text).expect_err(&text);
            assert!(wrong.problem.contains("a key or token"), "{text}: {}", wrong.problem);
            assert!(!format!("{wrong:?}").contains(&token), "{wrong:?}");
        }
        assert!(ApiUrl::parse("https://vc.example/dwa_/dwk_x").is_ok(), "that is none");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(https?://)?[a-z\\[\\]:/@.?0-9é]{0,12}", plaintext: bool) {
            let _ = parse(&text, plaintext, Plaintext::OPTION);
        }
    }
}
