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
        Code::HostUnreachable => (StatusCode::BAD_GATEWAY, "destination_ip_unroutable", 4),
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
