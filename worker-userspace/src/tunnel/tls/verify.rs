//! Verifying the other end's certificate, and saying what is wrong with it.
//!
//! What must hold: the verdict is webpki's alone. What is added is for people: which certificate of the chain,
//! which name was wanted, and what to put where.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::certificate::{Facts, facts};
use crate::tunnel::dial::Words;

tokio::task_local! {
    /// Whose certificate is verified, for the log.
    pub(super) static PEER: SocketAddr;
}

/// What an appliance or a proxy showed in a handshake.
#[derive(Debug)]
pub struct Shown {
    /// Its certificates, its own first.
    pub chain: Vec<Facts>,
    /// Why they are not taken.
    pub refused: Option<Finding>,
}

/// Why a certificate is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// In one word, for programs.
    pub fault: Fault,
    /// Which certificate, and what is wrong with it.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

/// What is wrong with a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is for another name.
    Name,
    /// Nobody who is trusted vouches for it.
    Untrusted,
    /// It has ended.
    Expired,
    /// It has not begun.
    NotYet,
    /// Something else.
    Other,
}

/// Verifies the certificate of who is dialled, and keeps what it saw. Each handshake has one of its own.
#[derive(Debug)]
pub(super) struct Attentive {
    pub(super) judge: Arc<WebPkiServerVerifier>,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) words: Words,
    pub(super) shown: Arc<OnceLock<Shown>>,
}

impl ServerCertVerifier for Attentive {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict =
            self.judge.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let refused = verdict.as_ref().err().map(|error| {
            let wanted = server_name.to_str();
            Case {
                error,
                chain: &[std::slice::from_ref(end_entity), intermediates].concat(),
                roots: &self.roots,
                now: timestamp(now),
            }
            .server(&wanted, self.words)
        });
        let mut chain = facts(std::slice::from_ref(end_entity));
        chain.extend(facts(intermediates));
        // Only one certificate is shown in a handshake.
        let _ = self.shown.set(Shown { chain, refused });
        verdict
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.judge.supported_verify_schemes()
    }
}

/// Verifies workers' certificates, and logs why one is refused: who is refused learns little.
#[derive(Debug)]
pub(super) struct Telling {
    pub(super) judge: Arc<dyn ClientCertVerifier>,
    pub(super) roots: Arc<RootCertStore>,
}

impl ClientCertVerifier for Telling {
    fn offer_client_auth(&self) -> bool {
        self.judge.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.judge.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.judge.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verdict = self.judge.verify_client_cert(end_entity, intermediates, now);
        if let Err(error) = &verdict {
            let chain = &[std::slice::from_ref(end_entity), intermediates].concat();
            let Finding { problem, remedy, .. } =
                Case { error, chain, roots: &self.roots, now: timestamp(now) }.client();
            let peer = PEER.try_with(ToString::to_string).unwrap_or_default();
            tracing::warn!(peer, "refused a worker's client certificate: {problem}: {remedy}");
        }
        verdict
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.judge.supported_verify_schemes()
    }
}

fn timestamp(now: UnixTime) -> Timestamp {
    i64::try_from(now.as_secs()).ok().and_then(|s| Timestamp::from_second(s).ok()).unwrap_or(Timestamp::MAX)
}

/// A refused chain.
struct Case<'c> {
    error: &'c Error,
    chain: &'c [CertificateDer<'c>],
    roots: &'c RootCertStore,
    now: Timestamp,
}

/// How the remedies of one side are told.
struct Remedies {
    /// Where authorities are named.
    authorities: &'static str,
    /// Who has the certificate, and where it stands.
    owner: &'static str,
    own: &'static str,
    /// What the certificate is used for.
    usage: &'static str,
}

impl Case<'_> {
    /// What is wrong with the certificate of who is dialled.
    fn server(&self, wanted: &str, words: Words) -> Finding {
        use CertificateError as C;
        let remedies = Remedies {
            authorities: words.authorities,
            owner: words.owner,
            own: words.own,
            usage: "serverAuth",
        };
        let Words { url, owner, .. } = words;
        match self.error {
            Error::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => Finding {
                fault: Fault::Name,
                problem: format!("{} is not for {wanted}", self.which(0)),
                remedy: format!(
                    "write one of its names in {url}, or have {owner}'s certificate issued anew with \
                     {wanted} as `subjectAltName`"
                ),
            },
            _ => self.any(&remedies),
        }
    }

    /// What is wrong with a worker's certificate.
    fn client(&self) -> Finding {
        self.any(&Remedies {
            authorities: "`appliance.client_ca_file`",
            owner: "the worker",
            own: "`client_certificate`",
            usage: "clientAuth",
        })
    }

    fn any(&self, remedies: &Remedies) -> Finding {
        use CertificateError as C;
        let Remedies { owner, usage, .. } = remedies;
        let renewed = format!("renew it at {owner}, or set this host's clock, which says {}", self.now);
        let (problem, remedy) = match self.error {
            Error::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => self.unknown(remedies),
            Error::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => {
                let (at, since) = self.first(|facts| facts.not_after < self.now);
                let days = since.map(|facts| -facts.days_left(self.now) - 1);
                let days = days.map(|days| format!(", {days} days ago")).unwrap_or_default();
                (format!("{} has expired{days}", self.which(at)), renewed)
            }
            Error::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => {
                let (at, _) = self.first(|facts| facts.not_before > self.now);
                let remedy =
                    format!("set this host's clock, which says {}, or that of who issued it", self.now);
                (format!("{} is not valid yet", self.which(at)), remedy)
            }
            Error::InvalidCertificate(C::InvalidPurpose | C::InvalidPurposeContext { .. }) => (
                format!("{} is not for this use", self.which(0)),
                format!("have it issued anew with `extendedKeyUsage = {usage}`"),
            ),
            // What `openssl req -x509` makes unless told otherwise. The error's type is webpki's; we have only its name.
            Error::InvalidCertificate(C::Other(other)) if other.to_string().contains("CaUsedAsEndEntity") => {
                (
                    format!("{} is a CA's own", self.which(0)),
                    format!("make {owner} one with `CA:FALSE` and its name as `subjectAltName`"),
                )
            }
            error => (format!("{} can't be used, {error}", self.which(0)), "have it issued anew".to_owned()),
        };
        let fault = match self.error {
            Error::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => Fault::Untrusted,
            Error::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => Fault::Expired,
            Error::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => Fault::NotYet,
            _ => Fault::Other,
        };
        Finding { fault, problem, remedy }
    }

    /// Nobody who is trusted vouches for the chain.
    fn unknown(&self, remedies: &Remedies) -> (String, String) {
        let Remedies { authorities, owner, own, .. } = remedies;
        let Some((at, top)) = self.top() else {
            return (self.which(0), "have it issued anew".to_owned());
        };
        let which = self.which(at);
        let issuer = &top.issuer;
        if self.roots.roots.iter().any(|root| *root.subject == *top.issuer_der) {
            let problem = format!("{which} was signed by another key than that of the trusted {issuer}");
            let remedy = format!("name the certificate that {issuer} has now in {authorities}");
            return (problem, remedy);
        }
        match (top.is_self_signed(), at) {
            (true, 0) => (
                format!("{which} is self-signed and not trusted"),
                format!("put it, in PEM, into {authorities}, if it is really {owner}'s"),
            ),
            (true, _) => (
                format!("{which} is an authority that is not trusted"),
                format!("put it, in PEM, into {authorities}, if you know it"),
            ),
            (false, _) => (
                format!("{which} was signed by nobody who is trusted"),
                format!(
                    "put the certificate of the CA {issuer}, in PEM, into {authorities}; where that is an \
                     intermediate one, put it behind {owner}'s own in {own}"
                ),
            ),
        }
    }

    /// The last certificate of the way from the first one to a root, as far as it was sent.
    fn top(&self) -> Option<(usize, Facts)> {
        let read: Vec<(usize, Facts)> =
            self.chain.iter().enumerate().filter_map(|(at, der)| Some((at, Facts::of(der)?))).collect();
        let mut top = read.first()?;
        // Each step goes to another one, so a circle ends.
        for _ in 0..read.len() {
            let issuer = read.iter().find(|(_, facts)| facts.subject_der == top.1.issuer_der);
            match issuer {
                Some(issuer) if !top.1.is_self_signed() => top = issuer,
                _ => break,
            }
        }
        Some(top.clone())
    }

    /// The first certificate that it is true of.
    fn first(&self, of: impl Fn(&Facts) -> bool) -> (usize, Option<Facts>) {
        let found = self.chain.iter().enumerate().find_map(|(at, der)| {
            let facts = Facts::of(der)?;
            of(&facts).then_some((at, facts))
        });
        found.map_or((0, None), |(at, facts)| (at, Some(facts)))
    }

    fn which(&self, at: usize) -> String {
        let facts = self.chain.get(at).and_then(Facts::of);
        let facts = facts.map_or("unreadable".to_owned(), |facts| facts.to_string());
        format!("certificate {} of {} ({facts})", at + 1, self.chain.len())
    }
}
