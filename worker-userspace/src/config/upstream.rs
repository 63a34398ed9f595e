//! Reads `proxy_address`, `proxy_address_password_file` and `no_proxy`: the proxy that a worker goes through.
//!
//! What must hold: a password in the URL is shown nowhere, also where the URL is wrong; what a URL leaves out is what
//! curl takes it for.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;

use super::fault::{Wrong, wrong};
use super::files::{FileError, Named, Password, read_password};
use super::reader::{Reader, Table, bare};
use super::url::split_port;
use crate::target::{Exempt, Host, NoProxy};

const FORM: &str =
    "write it as in \"http://proxy.example:3128\" or \"http://USER:PASSWORD@proxy.example:3128\"";
const LIST: &str = "write \"vcenter.corp.example, 10.20.0.0/16\", or the entries as a list";
/// curl's port of a proxy whose URL has none; others take 80.
const HTTP: u16 = 1080;
const HTTPS: u16 = 443;

/// The proxy that a worker goes through, to the appliance and to its targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Whether the proxy itself is spoken to in TLS (`https://`).
    pub tls: bool,
    /// Name or address; with TLS also what its certificate must say.
    pub host: Host,
    /// TCP port. Default 1080, or 443 in TLS.
    pub port: u16,
    /// Who this worker is there (`user:password@`, `proxy_address_password_file`).
    pub login: Option<ProxyLogin>,
    /// What is dialled without it (`no_proxy`).
    pub no_proxy: NoProxy,
}

/// A user of a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyLogin {
    /// The user: no colon, nothing that can't be printed.
    pub user: String,
    /// The password.
    pub password: PasswordSource,
}

/// Where a proxy's password stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PasswordSource {
    /// In `proxy_address` itself.
    Inline(Password),
    /// Alone in another file (`proxy_address_password_file`).
    File(PathBuf),
}

impl PasswordSource {
    /// The password itself, read anew where it stands in a file.
    ///
    /// # Errors
    /// The file cannot be read, or holds no password.
    pub fn read(&self) -> Result<Password, FileError> {
        match self {
            PasswordSource::Inline(password) => Ok(password.clone()),
            PasswordSource::File(path) => read_password(path).map(|(password, _)| password),
        }
    }
}

/// The URL, without user and password.
impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "https://" } else { "http://" })?;
        f.write_str(if self.login.is_some() { "***@" } else { "" })?;
        match self.host {
            Host::Addr(std::net::IpAddr::V6(addr)) => write!(f, "[{addr}]:{}", self.port),
            _ => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// What a URL says.
struct Parts {
    tls: bool,
    host: Host,
    port: Option<u16>,
    login: Option<(String, Option<Password>)>,
}

/// A URL as it is shown: `***` for all that stands in front of the host; and for the whole of it where nobody knows what of
/// it is a password, as in `host:port:user:password`, or where the `@` was forgotten.
pub(super) fn shown(text: &str) -> String {
    let (scheme, rest) = match text.find("://") {
        Some(at) => text.split_at(at + 3),
        None => ("", text),
    };
    let is_scheme = scheme.trim_end_matches("://").bytes().all(|b| b.is_ascii_alphanumeric());
    let behind = rest.split_once(':').map_or("", |(_, behind)| behind.trim_end_matches('/'));
    match rest.rsplit_once('@') {
        Some((_, host)) if is_scheme => format!("{scheme}***@{host}"),
        None if rest.contains('[') || behind.bytes().all(|b| b.is_ascii_digit()) => text.to_owned(),
        _ => "***".to_owned(),
    }
}

pub(super) fn read<'d>(r: &mut Reader<'d>, top: &Table<'d>, named: &mut Named) -> Option<Upstream> {
    let no_proxy = top.get("no_proxy").map(|v| bare(r.words(&v, entry, LIST))).unwrap_or_default();
    let file_set = top.get("proxy_address_password_file");
    let file = file_set.as_ref().and_then(|v| r.path(v).map(|path| (v.place.clone(), path)));
    named.passwords.extend(file.clone());
    let Some(url) = top.get("proxy_address") else {
        if let Some(file) = file_set {
            let remedy = "add the proxy, as in proxy_address = \"http://USER@proxy.example:3128\"";
            r.fault(&file.place, wrong("`proxy_address` is not set", remedy));
        }
        return None;
    };
    let Parts { tls, host, port, login } = r.parsed(&url, parse)?;
    let login = match (login, &file_set) {
        (None, None) => None,
        (None, Some(file)) => {
            let remedy = "add who this worker is, as in \"http://USER@proxy.example:3128\"";
            r.fault(&file.place, wrong("`proxy_address` has no user", remedy));
            None
        }
        (Some((_, Some(_))), Some(file)) => {
            r.fault(&file.place, wrong("`proxy_address` has a password too", "keep one of the two"));
            None
        }
        (Some((user, Some(password))), None) => {
            named.inline.push(url.place.clone());
            Some(ProxyLogin { user, password: PasswordSource::Inline(password) })
        }
        (Some((user, None)), Some(_)) => {
            file.map(|(_, path)| ProxyLogin { user, password: PasswordSource::File(path) })
        }
        (Some((_, None)), None) => {
            let remedy = "write \"http://USER:PASSWORD@...\", or set `proxy_address_password_file`";
            r.fault(&url.place, wrong("it has a user, and no password", remedy));
            None
        }
    };
    if port.is_none() && !tls {
        let problem = format!("it has no port, so port {HTTP} is meant, as curl takes it; others take 80");
        r.warn(&url.place, wrong(problem, "write the port"));
    }
    let port = port.unwrap_or(if tls { HTTPS } else { HTTP });
    Some(Upstream { tls, host, port, login, no_proxy: no_proxy.into_iter().collect() })
}

/// One entry of `no_proxy`.
fn entry(text: &str) -> Result<Exempt, Wrong> {
    // The parser's message would repeat a part of a password.
    match text.contains('@') {
        true => Err(wrong(
            "nothing that `no_proxy` can have",
            "a user stands in front of it; write only the host",
        )),
        false => Ok(text.parse()?),
    }
}

/// Reads `http[s]://[user[:password]@]host[:port][/]`. Without a scheme `http://` is meant, as in the environment.
fn parse(text: &str) -> Result<Parts, Wrong> {
    if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(wrong("white space or a control character stands in it", FORM));
    }
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "http" => false,
        "https" => true,
        "socks" | "socks4" | "socks4a" | "socks5" | "socks5h" => {
            return Err(wrong("a SOCKS proxy, where one that knows HTTP's CONNECT belongs", FORM));
        }
        _ => return Err(wrong("the scheme is neither \"http\" nor \"https\"", FORM)),
    };
    let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
    if rest[end..].contains('@') {
        let remedy = "write `/` as %2F, `?` as %3F, `#` as %23, or set `proxy_address_password_file`";
        return Err(wrong("the user or the password has a character that ends a URL's host", remedy));
    }
    if !matches!(&rest[end..], "" | "/") {
        return Err(wrong("something stands behind the host", format!("remove it; {FORM}")));
    }
    let (login, host) = match rest[..end].rsplit_once('@') {
        Some((login, host)) => (Some(login), host),
        None => (None, &rest[..end]),
    };
    if !host.starts_with('[') && host.matches(':').count() > 1 && host.parse::<Ipv6Addr>().is_err() {
        return Err(wrong("more than a host and a port stand there", FORM));
    }
    let (host, port) = split_port(host, FORM)?;
    let login = match login.map(|login| login.split_once(':').ok_or(login)) {
        None => None,
        Some(Ok((user, password))) => Some((decoded(user)?, Some(Password::inline(decoded(password)?)))),
        Some(Err(user)) => Some((decoded(user)?, None)),
    };
    match &login {
        Some((user, _)) if user.is_empty() => Err(wrong("nobody stands in front of the `@`", FORM)),
        Some((user, _)) if user.contains(':') => {
            Err(wrong("the user has a colon, which Basic authentication can't carry", "choose another user"))
        }
        _ => Ok(Parts { tls, host, port, login }),
    }
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> Result<String, Wrong> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, coded)) = rest.split_once('%') {
        bytes.extend_from_slice(plain.as_bytes());
        let byte = coded.get(..2).filter(|two| two.bytes().all(|b| b.is_ascii_hexdigit()));
        let byte = byte.and_then(|two| u8::from_str_radix(two, 16).ok());
        bytes.push(byte.ok_or_else(|| {
            wrong(
                "a `%` in the user or the password has no two hexadecimal digits behind it",
                "write it as %25",
            )
        })?);
        rest = &coded[2..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    let unprintable = || wrong("the user or the password is no text that can be printed", "choose another");
    String::from_utf8(bytes).ok().filter(|text| !text.contains(char::is_control)).ok_or_else(unprintable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls_mean_what_they_say() {
        for (text, tls, host, port, login) in [
            ("http://proxy.example:3128", false, "proxy.example", Some(3128), None),
            ("HTTPS://Proxy.Example/", true, "proxy.example", None, None),
            ("proxy.example:8080", false, "proxy.example", Some(8080), None),
            ("http://[2001:db8::1]:3128", false, "2001:db8::1", Some(3128), None),
            ("http://10.0.0.1", false, "10.0.0.1", None, None),
            ("http://u:p@h:1", false, "h", Some(1), Some(("u", Some("p")))),
            ("http://u:@h:1", false, "h", Some(1), Some(("u", Some("")))),
            ("http://u@h:1", false, "h", Some(1), Some(("u", None))),
            ("http://u:p:q@r@h:1", false, "h", Some(1), Some(("u", Some("p:q@r")))),
            ("http://a%40b:%25%2f%c3%BC@h:1", false, "h", Some(1), Some(("a@b", Some("%/\u{fc}")))),
        ] {
            let parts = parse(text).unwrap_or_else(|wrong| panic!("{text}: {wrong:?}"));
            let login_read =
                parts.login.as_ref().map(|(user, p)| (user.as_str(), p.as_ref().map(Password::reveal)));
            assert_eq!((parts.tls, parts.host.to_string().as_str(), parts.port), (tls, host, port), "{text}");
            assert_eq!(login_read, login, "{text}");
        }
    }

    #[test]
    fn what_is_no_proxy_says_why() {
        for (text, says) in [
            ("", "not a host name"),
            ("socks5h://proxy.example:1080", "SOCKS"),
            ("ftp://proxy.example", "scheme"),
            ("http://proxy.example:3128/pac", "behind the host"),
            ("http://u:pa/ss@proxy.example:3128", "ends a URL's host"),
            ("http://u:pa#ss@proxy.example:3128", "ends a URL's host"),
            ("http://u:pa ss@proxy.example:3128", "white space"),
            ("http://u:100%@proxy.example:3128", "hexadecimal"),
            ("http://u:%zz@proxy.example:3128", "hexadecimal"),
            ("http://u:%\u{e9}@proxy.example:3128", "hexadecimal"),
            ("http://u:%00@proxy.example:3128", "printed"),
            ("http://u:%ff@proxy.example:3128", "printed"),
            ("http://:p@proxy.example:3128", "nobody"),
            ("http://a%3Ab:p@proxy.example:3128", "colon"),
            ("http://proxy.example:0", "port"),
            ("http://proxy.example:3128:u:p", "more than a host and a port"),
            ("http://2001:db8::1", "without brackets"),
        ] {
            let problem = parse(text).err().unwrap_or_else(|| panic!("{text} is taken")).problem;
            assert!(problem.contains(says), "{text:?} gave {problem:?}, without {says:?}");
        }
    }

    #[test]
    fn what_may_be_a_password_is_not_shown() {
        for (text, expected) in [
            ("http://proxy.example:3128", "http://proxy.example:3128"),
            ("http://[2001:db8::1]:3128", "http://[2001:db8::1]:3128"),
            ("u:hunter2@proxy.example:3128", "***@proxy.example:3128"),
            ("http://u:hun'ter2@h:1", "http://***@h:1"),
            ("http://u:hunter2@x@h:1", "http://***@h:1"),
            ("u:hunter2://x@h:1", "***"),
            ("http://proxy.example:3128:u:hunter2", "***"),
            ("http://u:hunter2.proxy.example", "***"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn its_text_has_no_password() {
        let login = |user: &str| {
            let password = PasswordSource::Inline(Password::inline("hunter2".into()));
            Some(ProxyLogin { user: user.into(), password })
        };
        for (host, tls, login, text) in [
            ("proxy.example", false, None, "http://proxy.example:3128"),
            ("2001:db8::1", true, login("u"), "https://***@[2001:db8::1]:3128"),
        ] {
            let host = host.parse().unwrap();
            let upstream = Upstream { tls, host, port: 3128, login, no_proxy: NoProxy::default() };
            assert_eq!(upstream.to_string(), text);
            assert!(!format!("{upstream:?}").contains("hunter2"));
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text in "\\PC{0,20}") {
            let encoded: String = text.bytes().map(|b| format!("%{b:02x}")).collect();
            prop_assert_eq!(decoded(&encoded).ok(), Some(text));
        }

        #[test]
        fn no_password_that_is_taken_is_shown(
            scheme in "(https?://)?", user in "[a-z]{1,4}", password in "Z[^\\s\\p{Cc}/?#\\\\@%]{5,12}"
        ) {
            let text = format!("{scheme}{user}:{password}@proxy.example:3128");
            let parts = parse(&text);
            prop_assume!(parts.is_ok());
            prop_assert_eq!(shown(&text), format!("{}***@proxy.example:3128", scheme));
        }

        #[test]
        fn no_text_panics(text in "(https?://)?[a-z%\\[\\]:/@.?0-9é]{0,16}") {
            let _ = (parse(&text), shown(&text));
        }
    }
}
