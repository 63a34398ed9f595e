//! DNS as captured applications see it: proxy hosts have synthetic addresses, all else is as it was.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::ask::{Answer, Ask, Transport};
use tests::traffic::{Connect, Report, Serve};
use tests::{Command, Lab, Tunnel, musl_resolve, net};

const SOON: Duration = Duration::from_secs(20);
const NAME: &str = "vcenter.corp.example";
const PROXY_HOSTS: [&str; 2] = [NAME, "*.wild.corp.example"];
const A: u16 = 1;
const ALLOW: [&str; 2] = [net::SITE_PREFIX4, net::SITE_PREFIX6];

/// A resolver on the appliance host, as dnsmasq takes it.
const STUB: [&str; 10] = [
    "--keep-in-foreground",
    "--log-facility=-",
    "--log-queries",
    "--user=root",
    "--pid-file=",
    "--no-hosts",
    "--no-resolv",
    "--server=10.77.4.53",
    "--listen-address=127.0.0.53",
    "--bind-interfaces",
];

/// What dig made of an answer.
#[derive(Debug)]
struct Dig {
    text: String,
    status: String,
    flags: String,
    /// Time to live, type, data.
    answers: Vec<(u32, String, String)>,
}

impl Dig {
    /// Asks from inside the captured cgroup of the appliance host.
    fn captured(lab: &Lab, args: &str) -> Result<Dig> {
        Dig::read(lab.appliance().captured(Command::new("dig").args(args.split(' '))).check()?)
    }

    /// Asks from the appliance host outside of it.
    fn uncaptured(lab: &Lab, args: &str) -> Result<Dig> {
        Dig::read(lab.appliance().command("dig").args(args.split(' ')).check()?)
    }

    fn read(text: String) -> Result<Dig> {
        let between = |before: &str, after: &str| -> Result<String> {
            let (_, rest) = text.split_once(before).with_context(|| format!("no {before:?} in {text}"))?;
            Ok(rest.split_once(after).with_context(|| format!("no {after:?} in {text}"))?.0.to_owned())
        };
        let section = between(";; ANSWER SECTION:\n", "\n\n").unwrap_or_default();
        let answer = |line: &str| -> Result<_> {
            let fields: Vec<&str> = line.split_whitespace().collect();
            ensure!(fields.len() >= 5, "no record: {line}");
            Ok((fields[1].parse()?, fields[3].to_owned(), fields[4..].join(" ")))
        };
        let answers = section.lines().map(answer).collect::<Result<_>>()?;
        Ok(Dig { status: between("status: ", ",")?, flags: between(";; flags: ", ";")?, answers, text })
    }

    /// The data of all answers of this type.
    fn data(&self, kind: &str) -> Vec<&str> {
        self.answers.iter().filter(|(_, k, _)| k == kind).map(|(_, _, data)| data.as_str()).collect()
    }

    /// The one synthetic IPv4 address that was answered.
    fn synthetic(&self) -> Result<Ipv4Addr> {
        let [(ttl, kind, data)] = &self.answers[..] else { anyhow::bail!("not one answer: {}", self.text) };
        ensure!((self.status.as_str(), kind.as_str()) == ("NOERROR", "A"), "{}", self.text);
        ensure!(*ttl <= 5, "an answer for long: {}", self.text);
        let address: Ipv4Addr = data.parse()?;
        ensure!(address.octets()[..2] == [240, 64], "{}", self.text);
        Ok(address)
    }

    fn assert_no_data(&self) {
        assert_eq!((self.status.as_str(), self.answers.len()), ("NOERROR", 0), "{}", self.text);
        assert!(!self.text.contains("AUTHORITY SECTION"), "a SOA would be cached: {}", self.text);
        // glibc takes NODATA without RA for a referral and asks elsewhere.
        assert_eq!(self.flags, "qr rd ra", "{}", self.text);
    }
}

/// A question with this id, recursion desired, and an EDNS record where a size is given.
fn question(id: u16, name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
    let mut message =
        [id.to_be_bytes(), [1, 0], [0, 1], [0; 2], [0; 2], [0, u8::from(edns.is_some())]].concat();
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend([kind.to_be_bytes(), 1u16.to_be_bytes()].concat());
    if let Some(size) = edns {
        message.extend([&[0, 0, 41][..], &size.to_be_bytes(), &[0; 6]].concat());
    }
    message
}

/// The two ways of the lab's resolver, and the first one through an IPv6 socket.
fn resolvers() -> [SocketAddr; 3] {
    let mapped = net::APPLIANCE_RESOLVER.v4.to_ipv6_mapped();
    let [v4, v6] = net::APPLIANCE_RESOLVER.both();
    [v4, v6, mapped.into()].map(|address| SocketAddr::new(address, 53))
}

fn dns_counter(tunnel: &Tunnel, name: &str) -> Result<u64> {
    tunnel.appliance.status()?["steer"]["dns"][name].as_u64().with_context(|| format!("no counter {name}"))
}

/// Nobody asked the appliance's resolver about the site.
fn assert_kept_secret(lab: &Lab) {
    let asked = lab.appliance_resolver().queries();
    let leaked: Vec<_> = asked.iter().filter(|query| query.name.to_lowercase().contains("corp")).collect();
    assert!(leaked.is_empty(), "{leaked:?}");
}

#[test]
fn dig_sees_an_address_and_no_data_for_a_proxy_host_over_udp_and_tcp() -> Result<()> {
    let lab = Lab::new()?;
    let tunnel = lab.tunnel(PROXY_HOSTS, ALLOW)?;
    lab.explain(|| {
        let address = Dig::captured(&lab, NAME)?.synthetic()?;
        let other = Dig::captured(&lab, "a.wild.corp.example")?.synthetic()?;
        assert_ne!(address, other, "each name has its own");
        for how in ["", " +tcp", " @fd77:0:0:4::53", " @fd77:0:0:4::53 +tcp"] {
            let dig = |what: &str| Dig::captured(&lab, &format!("{what}{how}"));
            let found = dig(NAME)?;
            assert_eq!((found.synthetic()?, found.flags.as_str()), (address, "qr rd ra"), "{how}");
            // dig itself takes no answer from another source than the one that it asked.
            let protocol = if how.contains("tcp") { "(TCP)" } else { "(UDP)" };
            let server = if how.contains('@') { "fd77:0:0:4::53#53" } else { "10.77.4.53#53" };
            let from = found.text.lines().find(|line| line.starts_with(";; SERVER: ")).unwrap_or_default();
            assert!(from.contains(server) && from.contains(protocol), "{how}: {from}");
            for kind in ["AAAA", "HTTPS", "SVCB", "MX", "TXT", "NS", "SOA", "SRV", "TYPE65280"] {
                dig(&format!("{NAME} {kind}"))?.assert_no_data();
            }
            for about in ["_443._tcp.vcenter.corp.example TLSA", "_https.a.wild.corp.example SVCB"] {
                dig(about)?.assert_no_data();
            }
            assert_eq!(dig(&format!("-x {address}"))?.data("PTR"), ["vcenter.corp.example."], "{how}");
            assert_eq!(dig("-x 240.64.99.99")?.status, "NXDOMAIN", "an address without a name");
            dig(&format!("-x {address} TXT"))?; // the type does not count for where it goes
            // Names keep the letters that were asked, which some resolver libraries check.
            let odd = dig("vCenter.CORP.example")?;
            assert!(odd.text.contains("\nvCenter.CORP.example."), "{}", odd.text);
            assert_eq!(odd.synthetic()?, address, "{how}");
            // EDNS is answered where it was asked for, and nowhere else.
            assert!(
                dig(&format!("{NAME} +bufsize=4096 +dnssec"))?
                    .text
                    .contains("; EDNS: version: 0, flags: do; udp: 1232")
            );
            assert!(!dig(&format!("{NAME} +noedns"))?.text.contains("EDNS"));
            assert_eq!(dig(&format!("{NAME} +edns=1 +noednsneg"))?.status, "BADVERS");
        }
        let status = tunnel.appliance.status()?;
        let names = status["steer"]["names"].as_array().context("no names")?;
        let known: Vec<_> =
            names.iter().map(|name| (name["name"].as_str(), name["addresses"][0].as_str())).collect();
        let (address, other) = (address.to_string(), other.to_string());
        assert_eq!(known, [(Some(NAME), Some(&*address)), (Some("a.wild.corp.example"), Some(&*other))]);
        assert_eq!((dns_counter(&tunnel, "forwarded")?, dns_counter(&tunnel, "dropped")?), (0, 0));
        assert_eq!(lab.appliance_resolver().queries(), [], "not a single question was for the resolver");
        Ok(())
    })
}

#[test]
fn one_tcp_connection_carries_questions_for_us_and_for_the_resolver() -> Result<()> {
    let lab = Lab::new()?;
    let tunnel = lab.tunnel(PROXY_HOSTS, ALLOW)?;
    lab.explain(|| {
        let all = "+tcp +keepopen vcenter.corp.example A direct.example A a.wild.corp.example A direct2.example AAAA";
        let text = Dig::captured(&lab, all)?.text;
        for expected in ["240.64.0.1\n", "10.77.4.10\n", "240.64.0.2\n", "fd77:0:0:4::20\n"] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        assert_eq!(tunnel.appliance.status()?["steer"]["counters"]["dns-tcp"], 1, "one connection");
        let counts = (dns_counter(&tunnel, "answered")?, dns_counter(&tunnel, "forwarded")?);
        assert_eq!(counts, (2, 2));
        assert_kept_secret(&lab);
        Ok(())
    })
}

#[test]
fn what_is_no_proxy_host_is_answered_byte_for_byte_by_the_resolver_that_was_asked() -> Result<()> {
    let (aaaa, ptr, txt, unknown) = (28, 12, 16, 65280);
    let lab = Lab::new()?;
    let record = |letter: char| format!("txt-record=big.example,{}\n", letter.to_string().repeat(200));
    let records: String = ('a'..='y').map(record).collect();
    lab.appliance_resolver().add(&format!("edns-packet-max=4096\n{records}"))?;
    let tunnel = lab.tunnel(PROXY_HOSTS, ALLOW)?;
    lab.explain(|| {
        let questions = [
            question(1, "direct.example", A, None),
            question(2, "direct.example", aaaa, Some(1232)),
            question(3, "diRECT.exAMPLE", A, Some(4096)),
            question(4, "unknown.example", A, None),
            question(5, "direct.example", unknown, None),
            question(6, "10.4.77.10.in-addr.arpa", ptr, None),
            question(7, "big.example", txt, None),
            question(8, "big.example", txt, Some(4096)),
            // Above and beside the proxy hosts, and as near to them as can be.
            question(9, "wild.corp.example", A, None),
            question(10, "xvcenter.corp.example", A, None),
        ];
        let mut forwarded = 0;
        for to in resolvers() {
            for transport in Transport::ALL {
                for message in &questions {
                    let ask = Ask { to, transport, message: message.clone() };
                    let captured = ask.captured(lab.appliance())?;
                    let what = format!("{transport:?} {to} question {}", message[1]);
                    assert_eq!(captured, ask.uncaptured(lab.appliance())?, "{what}");
                    assert_eq!((captured.failure.as_deref(), captured.from), (None, Some(to)), "{what}");
                    forwarded += 1;
                }
                // What we answer comes from the same address: glibc and musl check it.
                let ours =
                    Ask { to, transport, message: question(11, NAME, A, None) }.captured(lab.appliance())?;
                let connected = (transport != Transport::Udp).then_some(to);
                assert_eq!((ours.from, ours.peer), (Some(to), connected), "{transport:?} {to}: {ours:?}");
                assert!(ours.message.ends_with(&[240, 64, 0, 1]), "{transport:?} {to}: {ours:?}");
            }
        }
        // The questions above were worth it: whole over TCP, cut over UDP.
        let big = |transport, edns| -> Result<Answer> {
            Ask { to: resolvers()[0], transport, message: question(12, "big.example", txt, edns) }
                .captured(lab.appliance())
        };
        let is_cut = |answer: &Answer| answer.message[2] & 2 != 0;
        let (udp, tcp) = (big(Transport::Udp, None)?, big(Transport::Tcp, None)?);
        assert!(is_cut(&udp) && udp.message.len() <= 512, "{} bytes", udp.message.len());
        assert!(!is_cut(&tcp) && tcp.message.len() > 5000, "{} bytes", tcp.message.len());
        assert_eq!(dns_counter(&tunnel, "forwarded")?, forwarded + 2);
        assert_eq!((dns_counter(&tunnel, "failed")?, dns_counter(&tunnel, "stripped")?), (0, 0));
        // Each resolver has a port of its own; the v4-mapped address is the IPv4 one.
        let status = tunnel.appliance.status()?;
        let stands: Vec<&String> =
            status["steer"]["resolvers"].as_object().context("no resolvers")?.keys().collect();
        assert_eq!(stands, ["10.77.4.53", "fd77:0:0:4::53"]);
        Ok(())
    })
}

#[test]
fn resolver_libraries_find_proxy_hosts_whatever_resolvers_the_host_has() -> Result<()> {
    let lab = Lab::new()?;
    let tunnel = lab.tunnel(PROXY_HOSTS, ALLOW)?;
    lab.explain(|| {
        let host = lab.appliance();
        let getent = |args: &[&str]| host.captured(Command::new("getent").args(args)).output();
        let address = Dig::captured(&lab, NAME)?.synthetic()?.to_string();
        // A resolver on the host itself, as systemd-resolved is, which passes on what it is asked.
        let stub = host.command("dnsmasq").args(STUB).spawn()?;
        stub.wait_for_line("started, version", SOON)?;
        // Nobody listens at the dead one. musl asks all three at once, on one socket.
        let (dead, alive4, alive6) =
            ("nameserver 10.77.4.20\n", "nameserver 10.77.4.53\n", "nameserver fd77:0:0:4::53\n");
        for servers in [
            alive4,
            alive6,
            &[dead, alive4, alive6].concat(),
            &[dead, alive6].concat(),
            "nameserver 127.0.0.53\n",
            // Over TCP, with both questions in one connection.
            &format!("{alive4}options use-vc\n"),
            &format!("{alive6}options edns0 trust-ad single-request\n"),
        ] {
            host.set_resolv_conf(&format!("search corp.example\n{servers}options timeout:5 attempts:2\n"))?;
            let lines = |output: String| -> Vec<String> {
                output.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
            };
            // By its whole name, and by its first label and the search domain.
            for name in [NAME, "vcenter", "VCENTER.corp.example"] {
                let found = lines(getent(&["ahosts", name])?.check()?);
                assert_eq!(found.len(), 3, "one address, three kinds of sockets: {found:?}");
                assert!(found[0].starts_with(&format!("{address} STREAM")), "{name} {servers}: {found:?}");
                assert!(found.iter().all(|line| line.starts_with(&address)), "{found:?}");
                assert_eq!(lines(getent(&["ahostsv4", name])?.check()?).len(), 3);
                // Through an IPv6 socket it is the v4-mapped one.
                let mapped = lines(getent(&["ahostsv6", name])?.check()?);
                assert!(
                    mapped.iter().all(|line| line.starts_with(&format!("::ffff:{address}"))),
                    "{mapped:?}"
                );
                assert_eq!(
                    host.captured(musl_resolve(name)?).check()?,
                    format!("{address}\n"),
                    "musl: {name} {servers}"
                );
            }
            // gethostbyname and gethostbyaddr, which are older.
            assert_eq!(lines(getent(&["hosts", NAME])?.check()?), [format!("{address} {NAME}")]);
            assert_eq!(lines(getent(&["hosts", &address])?.check()?), [format!("{address} {NAME}")]);
            // Other names are still there, and those that are not there still are not.
            let direct = lines(getent(&["ahostsv4", "direct.example"])?.check()?);
            assert!(direct[0].starts_with("10.77.4.10 STREAM"), "{servers}: {direct:?}");
            let mut musl = lines(host.captured(musl_resolve("direct.example")?).check()?);
            musl.sort_unstable();
            assert_eq!(musl, ["10.77.4.10", "fd77:0:0:4::10"], "musl: {servers}");
            assert_eq!(getent(&["ahosts", "unknown.example"])?.status.code(), Some(2), "{servers}");
            assert_eq!(
                host.captured(musl_resolve("unknown.example")?).output()?.status.code(),
                Some(1),
                "{servers}"
            );
        }
        // glibc looks below the search domain for what a name lacks, and with many dots to have, musl and it look
        // there first: the resolver has learned the name from none of that.
        host.set_resolv_conf(&format!("search branch.example corp.example\n{alive4}options ndots:5\n"))?;
        assert!(getent(&["ahostsv4", NAME])?.check()?.starts_with(&address));
        assert_eq!(host.captured(musl_resolve(NAME)?).check()?, format!("{address}\n"));
        let asked = lab.appliance_resolver().queries();
        assert!(asked.iter().any(|query| query.name == "unknown.example.corp.example"), "{asked:?}");
        assert!(asked.iter().all(|query| !query.name.to_lowercase().contains(NAME)), "{asked:?}");
        let status = tunnel.appliance.status()?;
        let stands: Vec<&String> =
            status["steer"]["resolvers"].as_object().context("no resolvers")?.keys().collect();
        assert_eq!(stands, ["10.77.4.20", "10.77.4.53", "127.0.0.53", "fd77:0:0:4::53"]);
        assert!(!stub.stderr().to_lowercase().contains(NAME), "{}", stub.stderr());
        Ok(())
    })
}

#[test]
fn synthetic_addresses_that_a_resolver_answers_are_taken_out() -> Result<()> {
    let lab = Lab::new()?;
    let mixed = "host-record=mixed.example,10.77.4.10\nhost-record=mixed.example,240.64.0.1";
    let only = "host-record=only.example,240.64.0.1,2001:2::1\ncname=alias.example,only.example";
    lab.appliance_resolver().add(&format!("{mixed}\n{only}"))?;
    let tunnel = lab.tunnel(PROXY_HOSTS, ALLOW)?;
    lab.explain(|| {
        Dig::captured(&lab, NAME)?.synthetic()?;
        let outside = Dig::uncaptured(&lab, "mixed.example")?;
        assert!(outside.data("A").contains(&"240.64.0.1"), "the resolver does say it: {}", outside.text);
        for how in ["", " +tcp"] {
            let dig = |what: &str| Dig::captured(&lab, &format!("{what}{how}"));
            let inside = dig("mixed.example")?;
            assert_eq!(
                (inside.status.as_str(), inside.data("A")),
                ("NOERROR", vec!["10.77.4.10"]),
                "{}",
                inside.text
            );
            for gone in ["only.example A", "only.example AAAA"] {
                let inside = dig(gone)?;
                assert_eq!((inside.status.as_str(), inside.answers.len()), ("NOERROR", 0), "{}", inside.text);
            }
            let alias = dig("alias.example")?;
            assert_eq!(
                (alias.answers.len(), alias.data("CNAME")),
                (1, vec!["only.example."]),
                "{}",
                alias.text
            );
        }
        assert_eq!(dns_counter(&tunnel, "stripped")?, 8);
        Ok(())
    })
}

#[test]
fn names_keep_their_addresses_over_restarts_and_serve_those_who_cached_them() -> Result<()> {
    const PORT: u16 = 7000;
    const LENGTH: u64 = 10_000;
    let lab = Lab::new()?;
    let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, PORT)?;
    let mut tunnel = lab.tunnel(PROXY_HOSTS, ALLOW)?;
    lab.explain(|| {
        let address = |name: &str| Dig::captured(&lab, name)?.synthetic();
        let names = ["b.wild.corp.example", NAME, "a.wild.corp.example"];
        let first = names.map(|name| address(name).map(|address| (name, address)));
        let first: Vec<_> = first.into_iter().collect::<Result<_>>()?;
        for (round, kill) in [false, true].into_iter().enumerate() {
            match kill {
                true => tunnel.appliance.kill9()?,
                false => drop(tunnel.appliance.stop(SOON)?),
            }
            tunnel.appliance.start()?;
            tunnel.wait_until_up()?;
            let asked = || -> Result<Value> {
                Ok(tunnel.appliance.status()?["steer"]["counters"]["dns-udp"].clone())
            };
            let before = asked()?;
            // A JVM that asks once in its life: it connects to what it was told before.
            let seed = round as u64;
            for (name, address) in first.iter().filter(|(name, _)| name.contains("wild")) {
                let client = Connect::to(address, PORT).send(LENGTH).seed(seed);
                let reports: Vec<Report> = client.captured(lab.appliance())?;
                reports[0].assert_echo(seed, LENGTH, name);
                let flows = tunnel.appliance.flows()?;
                assert_eq!(flows[0]["target"], format!("{name}:{PORT}"), "killed: {kill}");
            }
            assert_eq!(asked()?, before, "nobody has asked");
            // In another order, with a new name before.
            let new = address(&format!("new{round}.wild.corp.example"))?;
            assert!(first.iter().all(|(_, old)| *old != new), "an address is never given to a second name");
            for (name, old) in first.iter().rev() {
                assert_eq!(address(name)?, *old, "{name}, killed: {kill}");
            }
        }
        assert_kept_secret(&lab);
        Ok(())
    })
}

#[test]
fn the_families_of_the_configuration_are_those_that_names_have() -> Result<()> {
    let lab = Lab::new()?;
    let is_synthetic = |found: &[&str]| matches!(found, [one] if one.parse().is_ok_and(|a: IpAddr| a.to_string().starts_with("2001:2::")));
    for families in [vec!["ipv6"], vec!["ipv4", "ipv6"]] {
        let both = families.len() == 2;
        let families = Value::from(families);
        let tunnel = lab.tunnel_with(PROXY_HOSTS, ALLOW, |config| config.set("steer.families", families))?;
        lab.explain(|| {
            let found = Dig::captured(&lab, &format!("{NAME} AAAA"))?;
            assert!(is_synthetic(&found.data("AAAA")), "{}", found.text);
            let name = Dig::captured(&lab, &format!("-x {}", found.data("AAAA")[0]))?;
            assert_eq!(name.data("PTR"), ["vcenter.corp.example."]);
            match both {
                true => drop(Dig::captured(&lab, NAME)?.synthetic()?),
                false => Dig::captured(&lab, NAME)?.assert_no_data(),
            }
            assert_kept_secret(&lab);
            Ok(())
        })?;
        drop(tunnel);
    }
    Ok(())
}
