//! What is answered here, what is forwarded: a pure function of the query and of what is known of names.
//!
//! What must hold:
//! - A query with a question for a proxy host is never forwarded, whatever its type, class, kind or form.
//! - A query without one is forwarded as it is, unless no resolver could answer it, because its questions
//!   can't be read.
//! - A proxy host is never said not to exist: what it lacks is NODATA, with RA set (glibc takes NODATA without
//!   RA for a referral and asks the next resolver). There is no SOA with it, so nobody caches it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, Metadata, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};

use super::CANARY;
use super::wire::{self, Question, Questions};
use crate::config::Families;
use crate::steer::names::{Names, Reverse, Standing, Synthetic};
use crate::target::Name;

/// How long an answer may be kept, in seconds. A name that stops being a proxy host must be asked of its resolver within
/// a second, also by who keeps answers for as long as he may; asking us again costs next to nothing.
const TTL: u32 = 1;

/// The largest UDP message that we take, as EDNS says it: what fits every path without fragments.
const UDP_PAYLOAD: u16 = 1232;

/// What answering must know of names.
pub trait Zone {
    /// What a name is to us; `name` is written as for [`PatternIndex::standing`](crate::steer::names::PatternIndex).
    fn standing(&self, name: &str) -> Standing;
    /// The addresses of a proxy host that may be answered at once.
    fn assigned(&self, name: &Name) -> Option<Synthetic>;
    /// What an address leads back to.
    fn reverse(&self, addr: IpAddr) -> Reverse;
    /// The addresses of [`CANARY`]; `None`: it is a name like all others.
    fn canary(&self) -> Option<Synthetic> {
        None
    }
}

impl Zone for Names {
    fn standing(&self, name: &str) -> Standing {
        Names::standing(self, name)
    }

    fn assigned(&self, name: &Name) -> Option<Synthetic> {
        Names::assigned(self, name)
    }

    fn reverse(&self, addr: IpAddr) -> Reverse {
        Names::reverse(self, addr)
    }

    fn canary(&self) -> Option<Synthetic> {
        Some(self.prefixes().canary())
    }
}

/// What to do with a query.
#[derive(Debug)]
pub enum Verdict {
    /// Send this back.
    Reply(Vec<u8>),
    /// Assign the name its addresses, which may block, and send back what comes of it.
    Assign(Pending),
    /// Send it to the resolver that was asked, as it is.
    Forward,
    /// No message that anybody answers: too short, or a response.
    Drop,
}

/// A reply that waits for the first addresses of its name.
#[derive(Debug)]
pub struct Pending {
    name: Name,
    reply: Message,
    wanted: Wanted,
}

#[derive(Debug, Clone, Copy)]
struct Wanted {
    v4: bool,
    v6: bool,
}

impl Pending {
    /// The name to assign.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The reply with `addresses`; SERVFAIL without.
    pub fn finish(mut self, addresses: Option<Synthetic>) -> Vec<u8> {
        match addresses {
            Some(addresses) => add_addresses(&mut self.reply, self.wanted, addresses),
            None => self.reply.metadata.response_code = ResponseCode::ServFail,
        }
        encode(self.reply)
    }
}

/// Decides what happens to `query`. `families` says which of A and AAAA proxy hosts have.
pub fn answer(query: &[u8], zone: &impl Zone, families: Families) -> Verdict {
    if query.len() < wire::HEADER || wire::is_response(query) {
        return Verdict::Drop;
    }
    let Ok(questions) = wire::questions(query) else {
        return Verdict::Reply(bare(query, None, ResponseCode::FormErr));
    };
    let Some(ours) = questions.list.iter().find_map(|question| judge(question, zone)) else {
        return Verdict::Forward;
    };
    if wire::opcode(query) != 0 {
        return Verdict::Reply(bare(query, Some(&questions), ResponseCode::NotImp));
    }
    // Resolvers answer FORMERR to several questions, too.
    let [question] = &questions.list[..] else {
        return Verdict::Reply(bare(query, None, ResponseCode::FormErr));
    };
    let Ok(message) = Message::from_vec(query) else {
        return Verdict::Reply(bare(query, Some(&questions), ResponseCode::FormErr));
    };
    let mut reply = reply_to(&message);
    if message.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        reply.metadata.response_code = ResponseCode::BADVERS;
        return Verdict::Reply(encode(reply));
    }
    let kind = RecordType::from(question.kind);
    // In every other class there is nothing.
    let asks = |wanted| {
        (kind == wanted || kind == RecordType::ANY)
            && matches!(DNSClass::from(question.class), DNSClass::IN | DNSClass::ANY)
    };
    match ours {
        Ours::Host(name) => {
            let (v4, v6) = (families.ipv4 && asks(RecordType::A), families.ipv6 && asks(RecordType::AAAA));
            let wanted = Wanted { v4, v6 };
            if v4 || v6 {
                match zone.assigned(&name) {
                    Some(addresses) => add_addresses(&mut reply, wanted, addresses),
                    None => return Verdict::Assign(Pending { name, reply, wanted }),
                }
            }
        }
        Ours::Address(name) if asks(RecordType::PTR) => {
            match hickory_proto::rr::Name::from_ascii(format!("{name}.")) {
                Ok(name) => add(&mut reply, RData::PTR(PTR(name))),
                Err(_) => reply.metadata.response_code = ResponseCode::ServFail,
            }
        }
        // In both families, whatever proxy hosts are answered with: who asks is to see that it was us.
        Ours::Canary(addresses) => {
            let wanted = Wanted { v4: asks(RecordType::A), v6: asks(RecordType::AAAA) };
            add_addresses(&mut reply, wanted, addresses);
        }
        Ours::Address(_) | Ours::NoData => {}
        Ours::Nonexistent => reply.metadata.response_code = ResponseCode::NXDomain,
    }
    Verdict::Reply(encode(reply))
}

/// SERVFAIL to a query that could not be forwarded.
pub(super) fn servfail(query: &[u8]) -> Vec<u8> {
    match Message::from_vec(query) {
        Ok(message) => {
            let mut reply = reply_to(&message);
            reply.metadata.response_code = ResponseCode::ServFail;
            encode(reply)
        }
        Err(_) => bare(query, wire::questions(query).ok().as_ref(), ResponseCode::ServFail),
    }
}

/// What a question that is not for the resolver is about.
enum Ours {
    Host(Name),
    /// [`CANARY`].
    Canary(Synthetic),
    /// A synthetic address, asked for its name.
    Address(Name),
    NoData,
    Nonexistent,
}

/// `None`: it is for the resolver.
fn judge(question: &Question, zone: &impl Zone) -> Option<Ours> {
    if let Some(addr) = arpa_address(&question.name) {
        match zone.reverse(addr) {
            Reverse::Name(name) => return Some(Ours::Address(name)),
            Reverse::Unassigned => return Some(Ours::Nonexistent),
            Reverse::Outside => {}
        }
    }
    if question.name == CANARY
        && let Some(addresses) = zone.canary()
    {
        return Some(Ours::Canary(addresses));
    }
    match zone.standing(&question.name) {
        Standing::Foreign => None,
        Standing::ProxyHost(name) => Some(Ours::Host(name)),
        Standing::About => Some(Ours::NoData),
        Standing::SearchExpansion => Some(Ours::Nonexistent),
    }
}

/// The address whose reverse name this is.
fn arpa_address(name: &str) -> Option<IpAddr> {
    if let Some(text) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut labels = text.rsplit('.');
        for octet in &mut octets {
            *octet = labels.next()?.parse().ok()?;
        }
        return labels.next().is_none().then(|| Ipv4Addr::from(octets).into());
    }
    let text = name.strip_suffix(".ip6.arpa")?;
    let mut bits: u128 = 0;
    let mut labels = text.rsplit('.');
    for _ in 0..32 {
        let label = labels.next().filter(|label| label.len() == 1)?;
        bits = bits << 4 | u128::from_str_radix(label, 16).ok()?;
    }
    labels.next().is_none().then(|| Ipv6Addr::from_bits(bits).into())
}

/// An empty reply, with id, RD, CD, question and EDNS as the query has them.
fn reply_to(message: &Message) -> Message {
    let mut reply = Message::response(message.id, message.op_code);
    reply.metadata = Metadata::response_from_request(&message.metadata);
    reply.metadata.recursion_available = true;
    reply.queries.clone_from(&message.queries);
    reply.edns = message.edns.as_ref().map(|edns| {
        let mut ours = Edns::new();
        ours.set_max_payload(UDP_PAYLOAD).set_dnssec_ok(edns.flags().dnssec_ok);
        ours
    });
    reply
}

fn add_addresses(reply: &mut Message, wanted: Wanted, addresses: Synthetic) {
    if wanted.v4 {
        add(reply, RData::A(A(addresses.v4)));
    }
    if wanted.v6 {
        add(reply, RData::AAAA(AAAA(addresses.v6)));
    }
}

fn add(reply: &mut Message, data: RData) {
    if let Some(question) = reply.queries.first() {
        let record = Record::from_rdata(question.name.clone(), TTL, data);
        reply.add_answer(record);
    }
}

fn encode(reply: Message) -> Vec<u8> {
    reply.to_vec().unwrap_or_else(|_| {
        // What was read can be written; if it ever could not, the application must not wait for nothing.
        let mut header = reply.id.to_be_bytes().to_vec();
        header.extend([0x80, 0x80 | ResponseCode::ServFail.low()]);
        header.resize(wire::HEADER, 0);
        header
    })
}

/// A reply made of nothing but the query's header and, where they mean the same in it, its questions. Resolver
/// libraries ignore most replies without the question.
pub(super) fn bare(query: &[u8], questions: Option<&Questions>, code: ResponseCode) -> Vec<u8> {
    let echoed = questions.filter(|questions| !questions.compressed);
    let end = echoed.map_or(wire::HEADER, |questions| questions.end);
    let count = echoed.map_or(0, |questions| questions.list.len() as u8);
    let mut reply = query.get(..end).unwrap_or(query).to_vec();
    reply.resize(reply.len().max(wire::HEADER), 0);
    reply[2] = 0x80 | reply[2] & 0b0111_1001; // response; opcode and RD as asked
    reply[3] = 0x80 | reply[3] & 0x10 | code.low(); // RA; CD as asked
    reply[4..wire::HEADER].copy_from_slice(&[0, count, 0, 0, 0, 0, 0, 0]);
    reply
}

#[cfg(test)]
mod tests;
