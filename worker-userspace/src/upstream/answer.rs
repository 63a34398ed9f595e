//! A proxy's answer to `CONNECT`: where its head ends, and what a refusal means.
//!
//! Pure. Proxies differ in what they say when a target is not there: RFC 9209's `Proxy-Status` tells it best, squid has
//! its own header, tinyproxy says 500 to everything, and 401 where another password is wanted.

use crate::refusal::Code;
use crate::target::Target;

/// Most bytes of the heads of one answer together.
pub const LONGEST: usize = 16 * 1024;
/// Most characters that are shown of what a proxy says.
const SHOWN: usize = 80;

/// What a proxy answered.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// What follows is the target's.
    Connected,
    /// It does not connect.
    Refused(Said),
}

/// What is no answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Its head has no end.
    TooLong,
    /// It does not begin as HTTP does.
    NotHttp,
}

/// The head of an answer, as it comes in.
#[derive(Debug, Default)]
pub struct Head {
    bytes: Vec<u8>,
    /// Bytes of heads before this one: of `100 Continue` and the like.
    before: usize,
}

impl Head {
    /// Takes of `seen` what belongs to the head. Tells how much that was, and the answer once the head is whole.
    ///
    /// # Errors
    /// It is no head, or has no end.
    pub fn take(&mut self, seen: &[u8]) -> Result<(usize, Option<Answer>), Wrong> {
        let mut taken = 0;
        loop {
            let had = self.bytes.len();
            self.bytes.extend_from_slice(&seen[taken..]);
            // What can't become HTTP any more is told at once: something else may wait for us to speak.
            let begin = self.bytes.len().min(5);
            if self.bytes[..begin] != b"HTTP/"[..begin] {
                return Err(Wrong::NotHttp);
            }
            let Some(end) = end(&self.bytes, had) else {
                return match self.before + self.bytes.len() > LONGEST {
                    true => Err(Wrong::TooLong),
                    false => Ok((seen.len(), None)),
                };
            };
            if self.before + end > LONGEST {
                return Err(Wrong::TooLong);
            }
            taken += end - had;
            self.before += end;
            let head = self.bytes[..end].to_vec();
            self.bytes.clear();
            match judge(&head)? {
                // An interim answer; another one follows.
                None if taken < seen.len() => {}
                None => return Ok((taken, None)),
                answer => return Ok((taken, answer)),
            }
        }
    }
}

/// Where the empty line ends that ends a head, of which `before` bytes were looked at already.
fn end(bytes: &[u8], before: usize) -> Option<usize> {
    let from = before.saturating_sub(2);
    (from..bytes.len()).find_map(|at| match &bytes[at..] {
        [b'\n', b'\n', ..] => Some(at + 2),
        [b'\n', b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

/// Reads a whole head; `None` is an interim answer.
fn judge(head: &[u8]) -> Result<Option<Answer>, Wrong> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.lines();
    let (version, rest) = lines.next().and_then(|line| line.split_once(' ')).ok_or(Wrong::NotHttp)?;
    let rest = rest.trim_start();
    let (status, reason) = rest.split_once(' ').unwrap_or((rest, ""));
    let digits = status.len() == 3 && status.bytes().all(|b| b.is_ascii_digit());
    let status: u16 = status.parse().ok().filter(|_| digits).ok_or(Wrong::NotHttp)?;
    if !matches!(version, "HTTP/1.0" | "HTTP/1.1") {
        return Err(Wrong::NotHttp);
    }
    match status {
        100..=199 => return Ok(None),
        // Length and encoding of a body mean nothing here (RFC 9110, 9.3.6).
        200..=299 => return Ok(Some(Answer::Connected)),
        _ => {}
    }
    let mut said =
        Said { status, reason: shown(reason), cause: None, detail: String::new(), schemes: Vec::new() };
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        said.header(&name.to_ascii_lowercase(), value.trim());
    }
    Ok(Some(Answer::Refused(said)))
}

/// Words of a proxy as a message can have them.
fn shown(text: &str) -> String {
    let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.trim().chars().take(SHOWN).map(printable).collect()
}

/// What a proxy said instead of connecting.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    status: u16,
    reason: String,
    /// What a header says of the cause.
    cause: Option<(Code, i32)>,
    /// The header's own word for it.
    detail: String,
    /// The authentication that is asked for.
    schemes: Vec<String>,
}

/// The error types of `Proxy-Status` (RFC 9209, 2.3) that say more than a status does.
const PROXY_STATUS: [(&str, Code); 13] = [
    ("connection_refused", Code::Refused),
    ("connection_timeout", Code::Timeout),
    ("connection_read_timeout", Code::Timeout),
    ("http_response_timeout", Code::Timeout),
    ("destination_ip_unroutable", Code::NetUnreachable),
    ("destination_unavailable", Code::HostUnreachable),
    ("destination_not_found", Code::HostUnreachable),
    ("dns_error", Code::NameNotFound),
    ("dns_timeout", Code::ResolveFailed),
    ("destination_ip_prohibited", Code::ProxyDenied),
    ("http_request_denied", Code::ProxyDenied),
    ("connection_limit_reached", Code::Limit),
    ("connection_terminated", Code::Reset),
];

impl Said {
    fn header(&mut self, name: &str, value: &str) {
        let words = |c: char| c == ';' || c == ',' || c.is_whitespace();
        match name {
            "proxy-status" => {
                let error = value.split(words).find_map(|part| part.strip_prefix("error="));
                if let Some((error, code)) = PROXY_STATUS.iter().find(|(word, _)| Some(*word) == error) {
                    (self.cause, self.detail) = (Some((*code, 0)), (*error).to_owned());
                }
            }
            "x-squid-error" if self.cause.is_none() => {
                let (error, errno) = value.split_once(' ').unwrap_or((value, ""));
                self.cause = match (error, errno.trim().parse::<i32>()) {
                    ("ERR_DNS_FAIL", _) => Some((Code::NameNotFound, 0)),
                    ("ERR_CONNECT_FAIL", Ok(errno)) => match Code::from_errno(errno) {
                        Code::Refused | Code::Timeout | Code::HostUnreachable | Code::NetUnreachable => {
                            Some((Code::from_errno(errno), errno))
                        }
                        _ => None,
                    },
                    _ => None,
                };
                self.detail = shown(value);
            }
            "proxy-authenticate" | "www-authenticate" => {
                let scheme = value.split(words).next().unwrap_or_default();
                self.schemes.push(shown(scheme));
            }
            _ => {}
        }
    }

    /// Who this worker is does not do.
    pub fn wants_login(&self) -> bool {
        matches!(self.status, 401 | 407)
    }

    /// True where it is about who asks, or no proxy's answer at all, whatever was asked for.
    pub fn is_of_the_client(&self) -> bool {
        self.wants_login() || self.status == 429 || self.meaning().0 == Code::ProxyDown
    }

    /// The kind of refusal, and the errno of the proxy's own `connect()` where it told.
    pub fn meaning(&self) -> (Code, i32) {
        match (self.status, self.cause) {
            (401 | 407, _) => (Code::ProxyDenied, 0),
            (_, Some(cause)) => cause,
            (408 | 504, _) => (Code::Timeout, 0),
            (404 | 410, _) => (Code::HostUnreachable, 0),
            (429, _) => (Code::Limit, 0),
            (400..=499, _) => (Code::ProxyDenied, 0),
            (500..=599, _) => (Code::HostUnreachable, 0),
            _ => (Code::ProxyDown, 0),
        }
    }

    /// One line about it, with the remedy.
    pub fn text(&self, proxy: &str, target: &Target, has_login: bool) -> String {
        let mut said = format!("{} {}", self.status, self.reason).trim_end().to_owned();
        if !self.detail.is_empty() {
            said = format!("{said}, {}", self.detail);
        }
        if self.wants_login() {
            let basic = self.schemes.iter().any(|scheme| scheme.eq_ignore_ascii_case("basic"));
            return match (self.schemes.is_empty() || basic, has_login) {
                (false, _) => format!(
                    "the proxy {proxy} wants authentication by {} ({said}); dworker has Basic: allow that at the proxy, or this \
                     host without",
                    self.schemes.join(" or ")
                ),
                (true, true) => format!(
                    "the proxy {proxy} does not take this user and password ({said}): correct them in `proxy_address`, or in \
                     `proxy_address_password_file`"
                ),
                (true, false) => format!(
                    "the proxy {proxy} wants a user and a password ({said}): write them into `proxy_address`, as in \
                     \"http://USER:PASSWORD@proxy.example:3128\""
                ),
            };
        }
        match self.meaning().0 {
            Code::ProxyDenied => format!(
                "the proxy {proxy} does not let this host connect to {target} ({said}): allow it there, or name the target in \
                 `no_proxy` where it is reachable without"
            ),
            Code::ProxyDown => {
                format!("the proxy {proxy} answered {said} to CONNECT: is `proxy_address` an HTTP proxy?")
            }
            _ => format!("the proxy {proxy} can't connect to {target} ({said})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is taken of a text that comes in pieces of `size`, and the answer.
    fn read(text: &[u8], size: usize) -> Result<(usize, Option<Answer>), Wrong> {
        let mut head = Head::default();
        let mut all = 0;
        for piece in text.chunks(size) {
            let (taken, answer) = head.take(piece)?;
            all += taken;
            if answer.is_some() {
                return Ok((all, answer));
            }
            assert_eq!(taken, piece.len(), "left behind, though the head goes on");
        }
        Ok((all, None))
    }

    fn said(text: &str) -> Said {
        match read(text.as_bytes(), usize::MAX).unwrap() {
            (_, Some(Answer::Refused(said))) => said,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn what_stands_behind_the_head_is_left() {
        for head in [
            "HTTP/1.1 200 Connection established\r\n\r\n",
            "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n",
            "HTTP/1.1 299 \n\n",
            "HTTP/1.1 200\nA: b\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        ] {
            for size in [1, 2, 3, 7, usize::MAX] {
                for behind in ["", "\r\n", "HTTP/1.1 500 \r\n\r\n"] {
                    let text = format!("{head}{behind}");
                    let expected = Ok((head.len(), Some(Answer::Connected)));
                    assert_eq!(read(text.as_bytes(), size), expected, "{text:?} by {size}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_answer_is_told_as_soon_as_it_is_clear() {
        for (text, wrong) in [
            ("SSH-2.0-OpenSSH_9.2\r\n", Wrong::NotHttp),
            ("HTTX", Wrong::NotHttp),
            ("\x15\x03\x01", Wrong::NotHttp),
            ("HTTP/1.1\r\n\r\n", Wrong::NotHttp),
            ("HTTP/1.1 +20 OK\r\n\r\n", Wrong::NotHttp),
            ("HTTP/1.1 2000 OK\r\n\r\n", Wrong::NotHttp),
            ("HTTP/2.0 200 OK\r\n\r\n", Wrong::NotHttp),
        ] {
            assert_eq!(read(text.as_bytes(), 1), Err(wrong), "{text:?}");
        }
        let long = |n| format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "b".repeat(n - 24));
        for (size, longest) in [(1000, LONGEST), (usize::MAX, LONGEST)] {
            assert_eq!(read(long(longest).as_bytes(), size), Ok((longest, Some(Answer::Connected))));
            assert_eq!(read(long(longest + 1).as_bytes(), size), Err(Wrong::TooLong));
        }
        let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(LONGEST);
        assert_eq!(read(interim.as_bytes(), 999), Err(Wrong::TooLong), "for ever");
    }

    #[test]
    fn refusals_keep_their_meaning() {
        const SQUID: &str = "HTTP/1.1 503 Service Unavailable\r\nServer: squid/5.7\r\nX-Squid-Error: ";
        for (text, code, errno, says) in [
            ("HTTP/1.1 407 Auth\r\n\r\n".to_owned(), Code::ProxyDenied, 0, "wants a user and a password (407 Auth)"),
            (
                "HTTP/1.1 407 Auth\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n\r\n".into(),
                Code::ProxyDenied,
                0,
                "by Negotiate or NTLM (407 Auth); dworker has Basic",
            ),
            (
                "HTTP/1.1 407 Auth\r\nProxy-Authenticate: NTLM\r\nproxy-authenticate: basic realm=\"x\"\r\n\r\n".into(),
                Code::ProxyDenied,
                0,
                "wants a user",
            ),
            ("HTTP/1.0 401 Unauthorized\r\n\r\n".into(), Code::ProxyDenied, 0, "`proxy_address`"),
            ("HTTP/1.1 403 Filtered\r\n\r\nbody".into(), Code::ProxyDenied, 0, "(403 Filtered): allow it there"),
            ("HTTP/1.1 405 No\r\n\r\n".into(), Code::ProxyDenied, 0, "`no_proxy`"),
            ("HTTP/1.1 500 Unable to connect\r\n\r\n".into(), Code::HostUnreachable, 0, "can't connect to"),
            ("HTTP/1.1 502 \r\n\r\n".into(), Code::HostUnreachable, 0, "(502)"),
            ("HTTP/1.1 504 Late\r\n\r\n".into(), Code::Timeout, 0, "(504 Late)"),
            ("HTTP/1.1 302 Found\r\n\r\n".into(), Code::ProxyDown, 0, "is `proxy_address` an HTTP proxy?"),
            (format!("{SQUID}ERR_CONNECT_FAIL 111\r\n\r\n"), Code::Refused, 111, "ERR_CONNECT_FAIL 111"),
            (format!("{SQUID}ERR_CONNECT_FAIL 0\r\n\r\n"), Code::HostUnreachable, 0, "ERR_CONNECT_FAIL 0"),
            (format!("{SQUID}ERR_DNS_FAIL 0\r\n\r\n"), Code::NameNotFound, 0, "ERR_DNS_FAIL"),
            (
                "HTTP/1.1 502 Bad\r\nProxy-Status: dworker; error=connection_refused; details=\"x\"\r\n\r\n".into(),
                Code::Refused,
                0,
                "(502 Bad, connection_refused)",
            ),
            (
                // Whatever it says of a cause, the user comes first.
                "HTTP/1.1 407 Auth\r\nProxy-Status: a; error=connection_refused\r\n\r\n".into(),
                Code::ProxyDenied,
                0,
                "wants a user",
            ),
        ] {
            let said = said(&text);
            let target = Target { host: "vcenter.corp.example".parse().unwrap(), port: 443 };
            assert_eq!(said.meaning(), (code, errno), "{text:?}");
            let shown = said.text("http://p:1", &target, false);
            assert!(shown.contains(says) && shown.contains("http://p:1"), "{text:?}: {shown}");
        }
    }

    proptest! {
        #[test]
        fn the_pieces_do_not_matter(text in "(HTTP/1\\.[01] [1-5]0[0-7] [a-z]{0,3}\r?\n([a-zA-Z-]{1,5}: [a-z]{0,5}\r?\n){0,3}\r?\n){1,2}[a-z\r\n]{0,9}", size in 1usize..40) {
            prop_assert_eq!(read(text.as_bytes(), size), read(text.as_bytes(), usize::MAX));
        }

        #[test]
        fn no_answer_panics_or_shows_control_characters(
            begin in "(HTTP/1\\.1 [0-9]{3} )?",
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let text = [begin.as_bytes(), &bytes, b"\r\n\r\n"].concat();
            if let Ok((_, Some(Answer::Refused(said)))) = read(&text, 7) {
                let target = Target { host: "a.example".parse().unwrap(), port: 443 };
                prop_assert!(!said.text("http://p:1", &target, true).contains(char::is_control));
            }
        }
    }
}
