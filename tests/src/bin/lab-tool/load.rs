//! `lab-tool load`: a thread for each connection, begun at an even rate until SIGTERM.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use tests::load::{Kind, Load, Outcome, now};

use crate::transfer::errno;

/// A peer that says nothing for so long never will.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at whether the load ends, while no connections are made.
const LOOK: Duration = Duration::from_millis(100);
/// Many threads are there at once while nothing answers.
const STACK: usize = 128 * 1024;

pub(crate) fn run(load: &Load) -> Result<()> {
    // Blocked before any thread exists: the signal shall end the load, not the process.
    let mut end = SigSet::empty();
    end.add(Signal::SIGTERM);
    end.thread_block().context("blocking SIGTERM")?;
    // Once: it is connections that are to be counted, not the answers of a resolver.
    let (echo, source) = (resolve(&load.echo)?, resolve(&load.source)?);
    let (there, ending) = (Barrier::new(load.held as usize + 1), AtomicBool::new(false));
    let (there, ending) = (&there, &ending);
    thread::scope(|scope| {
        for _ in 0..load.held {
            spawn(scope, move || {
                report(Kind::Held, || hold(echo, Duration::from_millis(load.pause), there, ending))
            })?;
        }
        there.wait();
        (1..=load.held).for_each(|n| println!("holds {n}"));
        scope.spawn(move || {
            // What waits for the signal must hear of it in the end.
            end.wait().expect("SIGTERM can be waited for");
            ending.store(true, Ordering::Relaxed);
        });
        let begun = Instant::now();
        for n in 0u32.. {
            let kind = [Kind::Plain, Kind::Hello, Kind::Quiet][n as usize % 3];
            let due = match load.rate {
                0 => LOOK * n,
                rate => Duration::from_secs(1) * n / rate,
            };
            thread::sleep(due.saturating_sub(begun.elapsed()));
            if ending.load(Ordering::Relaxed) {
                break;
            }
            if load.rate > 0 {
                spawn(scope, move || {
                    report(kind, || match kind {
                        Kind::Quiet => listen(source),
                        _ => ask(echo, kind),
                    });
                })?;
            }
        }
        Ok(())
    })
}

fn spawn<'s>(scope: &'s Scope<'s, '_>, work: impl FnOnce() + Send + 's) -> io::Result<()> {
    thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work).map(drop)
}

fn resolve((host, port): &(String, u16)) -> Result<SocketAddr> {
    let mut found = (host.as_str(), *port).to_socket_addrs().with_context(|| format!("resolving {host}"))?;
    found.next().with_context(|| format!("{host} has no address"))
}

fn report(kind: Kind, work: impl FnOnce() -> io::Result<()>) {
    let started = now();
    let failure = work().err().map(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => "eof".to_owned(),
        _ => errno(&error),
    });
    let outcome = Outcome { kind, started, ended: now(), failure };
    println!("{}", serde_json::to_string(&outcome).expect("an outcome is JSON"));
}

fn dial(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Asks, hears the answer, and ends in order.
fn ask(echo: SocketAddr, kind: Kind) -> io::Result<()> {
    let mut stream = dial(echo)?;
    let question = match kind {
        Kind::Hello => hello(),
        _ => b"how are you?".to_vec(),
    };
    exchange(&mut stream, &question)?;
    end(stream)
}

/// Hears to the end what the server says.
fn listen(source: SocketAddr) -> io::Result<()> {
    let mut stream = dial(source)?;
    let mut said = Vec::new();
    stream.read_to_end(&mut said)?;
    match said.is_empty() {
        true => Err(io::ErrorKind::UnexpectedEof.into()),
        false => Ok(()),
    }
}

fn hold(echo: SocketAddr, pause: Duration, there: &Barrier, ending: &AtomicBool) -> io::Result<()> {
    let first = dial(echo).and_then(|mut stream| exchange(&mut stream, b"hold").map(|()| stream));
    // However it went: the others wait.
    there.wait();
    let mut stream = first?;
    for question in 0u64.. {
        if ending.load(Ordering::Relaxed) {
            break;
        }
        thread::sleep(pause);
        // Each is another one: an answer that was meant for the one before would be seen.
        exchange(&mut stream, format!("question {question}").repeat(8).as_bytes())?;
    }
    end(stream)
}

fn exchange(stream: &mut TcpStream, question: &[u8]) -> io::Result<()> {
    stream.write_all(question)?;
    let mut answer = vec![0; question.len()];
    stream.read_exact(&mut answer)?;
    match answer == question {
        true => Ok(()),
        false => Err(io::Error::other("another answer")),
    }
}

fn end(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("more than was asked for")),
    }
}

/// A TLS `ClientHello` in a record of its own: one cipher suite, no extensions.
fn hello() -> Vec<u8> {
    let body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0]].concat();
    let message = [&[1, 0, 0, body.len() as u8][..], &body].concat();
    [&[22, 3, 1, 0, message.len() as u8][..], &message].concat()
}
