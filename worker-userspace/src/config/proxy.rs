//! Reads `[proxy]`.
//!
//! What must hold: nobody is let in from another host without a password, unless the file says so in a word of its
//! own; a worker's network is behind these ports.

use std::net::SocketAddr;

use super::fault::{Wrong, wrong};
use super::files::Named;
use super::reader::{Place, Reader, Value, bare};
use super::schema::PROXY;
use super::{Login, Proxy, values};

/// The longest user that SOCKS5 can carry, in bytes.
const LONGEST_USER: usize = 255;

pub(super) fn read<'d>(r: &mut Reader<'d>, value: &Value<'d>, named: &mut Named) -> Option<Proxy> {
    const HTTP: &str = "write where to listen, as in [\"127.0.0.1:3128\"]";
    const SOCKS: &str = "write where to listen, as in [\"127.0.0.1:1080\"]";
    let table = r.section(value, &PROXY)?;
    let (http_set, socks_set) = (table.get("http"), table.get("socks"));
    if http_set.is_none() && socks_set.is_none() {
        r.missing(&table.missing("http"), wrong("missing, and so is `socks`", HTTP));
    }
    let at = |text, port| values::listener(text, [&format!("127.0.0.1:{port}"), &format!("[::1]:{port}")]);
    let http = http_set.map(|v| r.one_or_more(&v, |text| at(text, 3128), HTTP)).unwrap_or_default();
    let socks = socks_set.map(|v| r.one_or_more(&v, |text| at(text, 1080), SOCKS)).unwrap_or_default();
    for (place, address) in &socks {
        if let Some((other, _)) = http.iter().find(|(_, other)| other == address) {
            let problem = format!("`http`{} listens there too", r.line(other));
            r.fault(place, wrong(problem, "give each its own port"));
        }
    }

    let user_set = table.get("user");
    let user = user_set.as_ref().and_then(|v| r.parsed(v, user));
    let file_set = table.get("password_file");
    let file = file_set.as_ref().and_then(|v| r.path(v).map(|path| (v.place.clone(), path)));
    match (&user_set, &file_set) {
        (Some(_), None) => {
            let remedy = "add the path of a file that holds the password alone, mode 600";
            r.missing(&table.missing("password_file"), wrong("missing, and `user` is set", remedy));
        }
        (None, Some(_)) => {
            let remedy = "add who is let in, as in user = \"backup\"";
            r.missing(&table.missing("user"), wrong("missing, and `password_file` is set", remedy));
        }
        _ => {}
    }
    let anonymous_set = table.get("allow_anonymous");
    let anonymous = anonymous_set.as_ref().and_then(|v| r.flag(v)).unwrap_or(false);
    if let (Some(place), true, Some(_)) = (&anonymous_set, anonymous, &user_set) {
        let problem = "`user` is set, so that nobody is let in without its password";
        r.fault(&place.place, wrong(problem, "remove one of the two"));
    }
    let login_set = user_set.is_some() || file_set.is_some();
    for (place, address) in http.iter().chain(&socks) {
        expose(r, place, address, login_set, anonymous);
    }
    named.passwords.extend(file.clone());
    let login = match (user, file) {
        (Some(user), Some((_, password_file))) => Some(Login { user, password_file }),
        _ => None,
    };
    Some(Proxy { http: bare(http), socks: bare(socks), login })
}

/// Says what other hosts may do at an address that they reach.
fn expose(r: &mut Reader<'_>, place: &Place, address: &SocketAddr, login: bool, anonymous: bool) {
    if address.ip().to_canonical().is_loopback() {
        return;
    }
    match (login, anonymous) {
        (true, _) => {
            let problem = "other hosts reach it, and the password crosses the network in the clear";
            r.warn(place, wrong(problem, "keep that network private, or listen on 127.0.0.1"));
        }
        (false, true) => {
            let problem = "whoever reaches it reaches all proxy hosts";
            r.warn(place, wrong(problem, "set `user` and `password_file`, or listen on 127.0.0.1"));
        }
        (false, false) => {
            let problem = "other hosts reach it, and nobody is asked for a password";
            let remedy =
                "set `user` and `password_file`, listen on 127.0.0.1, or write `allow_anonymous = true`";
            r.fault(place, wrong(problem, remedy));
        }
    }
}

/// A user as HTTP's Basic and SOCKS5 both can carry it.
fn user(text: &str) -> Result<String, Wrong> {
    const FORM: &str = "write 1 to 255 characters without a colon, as in \"backup\"";
    match (1..=LONGEST_USER).contains(&text.len()) && !text.contains(|c: char| c == ':' || c.is_control()) {
        true => Ok(text.to_owned()),
        false => Err(wrong("not a user", FORM)),
    }
}
