//! `lab-tool connect`: what an application does, through the C library's resolver and blocking sockets.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, setuid};
use tests::Bytes;
use tests::traffic::{Connect, Family, Order, Report};

use crate::print;
use crate::transfer::{Half, errno, receive, send};

pub(crate) fn run(connect: &Connect) -> Result<()> {
    // Blocked before any thread exists, so that every thread may wait for it.
    let mut resume = SigSet::empty();
    resume.add(Signal::SIGUSR1);
    if connect.stall {
        resume.thread_block().context("blocking SIGUSR1")?;
    }
    if let Some(user) = connect.user {
        setuid(user.into()).with_context(|| format!("becoming user {user}"))?;
    }
    let reports: Vec<Report> = thread::scope(|scope| {
        let row = |n: u32| (0..connect.times).map(move |k| n * connect.times + k);
        let threads: Vec<_> = (0..connect.count)
            .map(|n| scope.spawn(move || row(n).map(|number| one(connect, number, &resume)).collect()))
            .collect();
        let ended = |thread: thread::ScopedJoinHandle<'_, Vec<Report>>| {
            thread.join().expect("a connection's thread panicked")
        };
        threads.into_iter().flat_map(ended).collect()
    });
    reports.iter().try_for_each(print)
}

fn one(connect: &Connect, number: u32, resume: &SigSet) -> Report {
    let mut report = Report::default();
    let started = Instant::now();
    let stream = match dial(connect) {
        Ok(stream) => stream,
        Err(error) => {
            report.failure = Some(errno(&error));
            report.connect_micros = micros(started);
            return report;
        }
    };
    report.connect_micros = micros(started);
    report.peer = stream.peer_addr().ok();
    report.local = stream.local_addr().ok();
    let seed = connect.seed + u64::from(number);
    let sending = || send(&stream, Bytes::new(seed, connect.send));
    let reading = || read(&stream, connect, resume);
    let (sent, received): (Half, Half) = match connect.order {
        Order::Parallel => thread::scope(|scope| {
            let sender = scope.spawn(sending);
            let received = reading();
            (sender.join().expect("the sender panicked"), received)
        }),
        Order::SendFirst => (sending(), reading()),
        Order::ReadFirst => {
            let received = reading();
            (sending(), received)
        }
    };
    sent.sent(&mut report);
    received.received(&mut report);
    report
}

fn read(stream: &TcpStream, connect: &Connect, resume: &SigSet) -> Half {
    if connect.stall {
        println!("stalled");
        // One signal wakes one thread: each passes it on to the next.
        if let Err(error) = resume.wait().and_then(|signal| kill(Pid::this(), signal)) {
            eprintln!("waiting for SIGUSR1: {error}");
        }
    }
    receive(stream, u64::MAX)
}

/// Tries each address in the resolver's order, as applications do; the last failure counts.
fn dial(connect: &Connect) -> io::Result<TcpStream> {
    let mut failure = io::Error::other("the resolver knows no address of this family");
    for address in (connect.host.as_str(), connect.port).to_socket_addrs()? {
        let address = match (address.ip(), connect.family) {
            (IpAddr::V4(v4), Family::Mapped) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
            (IpAddr::V4(_), Family::Any | Family::V4) | (IpAddr::V6(_), Family::Any | Family::V6) => address,
            _ => continue,
        };
        match TcpStream::connect(address) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros().try_into().unwrap_or(u64::MAX)
}
