//! What a certificate says of itself, for people.
//!
//! What must hold: a stranger's certificate can't break a line of the log, nor fill it.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Name;

/// Letters of a name that are shown.
const LONGEST: usize = 120;
/// Names of a certificate that are kept.
const NAMES: usize = 20;

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Whom it is for, as in `CN=appliance.example`.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// The names and addresses that it is for (`subjectAltName`), the first [`NAMES`] of them.
    pub names: Vec<String>,
    /// From when on it is valid.
    pub not_before: Timestamp,
    /// Until when it is valid.
    pub not_after: Timestamp,
    /// Whether it is an authority's.
    pub is_authority: bool,
    /// The subject as it is encoded, without its header: as a trust anchor has it.
    pub(super) subject_der: Vec<u8>,
    /// The issuer, likewise.
    pub(super) issuer_der: Vec<u8>,
}

impl Facts {
    /// Reads a certificate; `None` where it is none.
    pub fn of(der: &CertificateDer<'_>) -> Option<Facts> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|names| &names.value.general_names);
        let validity = certificate.validity();
        Some(Facts {
            subject: name(certificate.subject()),
            issuer: name(certificate.issuer()),
            names: names.filter_map(alternative).take(NAMES).collect(),
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
            is_authority: certificate.is_ca(),
            subject_der: content(certificate.subject()),
            issuer_der: content(certificate.issuer()),
        })
    }

    /// True where it names itself as its issuer.
    pub fn is_self_signed(&self) -> bool {
        self.subject_der == self.issuer_der
    }

    /// Whole days until it ends; negative where it has.
    pub fn days_left(&self, now: Timestamp) -> i64 {
        (self.not_after.as_second() - now.as_second()).div_euclid(24 * 3600)
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = match self.names.is_empty() {
            true => "no names".to_owned(),
            false => format!("names {}", self.names.join(" ")),
        };
        write!(
            f,
            "subject {}, issuer {}, {names}, valid from {} to {}",
            self.subject, self.issuer, self.not_before, self.not_after
        )
    }
}

/// All that can be read of a list of certificates.
pub fn facts(certificates: &[CertificateDer<'_>]) -> Vec<Facts> {
    certificates.iter().filter_map(Facts::of).collect()
}

fn name(name: &X509Name<'_>) -> String {
    match name.iter().next() {
        None => "(none)".to_owned(),
        Some(_) => shown(&name.to_string()),
    }
}

/// On one line, and not too long of it.
fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() || c == '"' { '?' } else { c };
    let mut letters = text.chars();
    let mut shown: String = letters.by_ref().take(LONGEST).map(plain).collect();
    if letters.next().is_some() {
        shown.push('…');
    }
    // Spaces are usual in a subject, and not in other words of the line.
    if shown.contains(' ') { format!("\"{shown}\"") } else { shown }
}

fn alternative(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(shown(name)),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(|bytes| Ipv4Addr::from(bytes).to_string());
            let v6 = <[u8; 16]>::try_from(*bytes).map(|bytes| Ipv6Addr::from(bytes).to_string());
            v4.or(v6).ok()
        }
        _ => None,
    }
}

/// Times beyond what a calendar of four-digit years has are its ends.
fn time(second: i64) -> Timestamp {
    let end = if second < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_second(second).unwrap_or(end)
}

/// The content of a name's SEQUENCE: what stands behind tag and length.
fn content(name: &X509Name<'_>) -> Vec<u8> {
    let raw = name.as_raw();
    let header = match raw.get(1) {
        Some(length) if length & 0x80 != 0 => 2 + usize::from(length & 0x7f),
        _ => 2,
    };
    raw.get(header..).unwrap_or_default().to_vec()
}
