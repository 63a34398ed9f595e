//! What a refusal is in the words of HTTP and of SOCKS5.

use ::http::StatusCode;

use crate::refusal::Code;

/// One refusal in both protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    /// The status of HTTP.
    pub(super) status: StatusCode,
    /// The error type of `Proxy-Status` (RFC 9209, 2.3).
    pub(super) error: &'static str,
    /// The reply of SOCKS5 (RFC 1928, 6).
    pub(super) reply: u8,
}

/// The answer for a refusal's kind.
pub(super) fn answer(code: Code) -> Answer {
    let (status, error, reply) = match code {
        Code::NoRoute => (StatusCode::FORBIDDEN, "destination_not_found", 2),
        Code::Denied => (StatusCode::FORBIDDEN, "destination_ip_prohibited", 2),
        Code::NetUnreachable => (StatusCode::BAD_GATEWAY, "destination_ip_unroutable", 3),
        Code::HostUnreachable => (StatusCode::BAD_GATEWAY, "destination_unavailable", 4),
        Code::NameNotFound | Code::ResolveFailed => (StatusCode::BAD_GATEWAY, "dns_error", 4),
        Code::Refused => (StatusCode::BAD_GATEWAY, "connection_refused", 5),
        Code::Timeout => (StatusCode::GATEWAY_TIMEOUT, "connection_timeout", 6),
        Code::Limit => (StatusCode::SERVICE_UNAVAILABLE, "connection_limit_reached", 1),
        Code::NoWorker | Code::TunnelLost | Code::Shutdown => {
            (StatusCode::SERVICE_UNAVAILABLE, "destination_unavailable", 1)
        }
        Code::ProxyDenied => (StatusCode::FORBIDDEN, "http_request_denied", 2),
        Code::ProxyDown => (StatusCode::BAD_GATEWAY, "destination_unavailable", 4),
        Code::Reset | Code::Closed => (StatusCode::BAD_GATEWAY, "connection_terminated", 1),
        Code::Protocol | Code::Other => (StatusCode::BAD_GATEWAY, "proxy_internal_error", 1),
    };
    Answer { status, error, reply }
}

#[cfg(test)]
mod tests {
    use super::super::http::refuse;
    use super::*;
    use crate::upstream::answer::{Answer as Heard, Head};

    /// What a worker behind this proxy makes of its answer.
    fn heard(code: Code) -> (Code, i32) {
        let answer = answer(code);
        let text = "whatever; error=dns_error, says \"the far end\"";
        let response = refuse(answer.status, answer.error, text);
        let mut head = format!("HTTP/1.1 {}\r\n", response.status());
        for (name, value) in response.headers() {
            head += &format!("{name}: {}\r\n", value.to_str().unwrap());
        }
        match Head::default().take(format!("{head}\r\n").as_bytes()) {
            Ok((_, Some(Heard::Refused(said)))) => said.meaning(),
            other => panic!("{code:?}: {other:?}"),
        }
    }

    #[test]
    fn what_this_proxy_answers_a_worker_behind_it_understands() {
        let all: Vec<Code> = (1..=1000).map(Code::from_wire).fold(Vec::new(), |seen, code| {
            if seen.contains(&code) { seen } else { [seen, vec![code]].concat() }
        });
        assert!(all.len() >= 18, "{all:?}");
        for code in all {
            // Whose fault it was is the nearer proxy's to know; for who is behind it, it is that proxy's.
            let expected = match code {
                Code::Denied => Code::ProxyDenied,
                Code::ResolveFailed => Code::NameNotFound,
                Code::Closed => Code::Reset,
                Code::NoRoute
                | Code::NoWorker
                | Code::TunnelLost
                | Code::Shutdown
                | Code::ProxyDown
                | Code::Protocol
                | Code::Other => Code::HostUnreachable,
                same => same,
            };
            assert_eq!(heard(code), (expected, 0), "{code:?}");
            assert_eq!(expected.errno(), code.errno(), "{code:?}: another errno behind one proxy more");
        }
    }
}
