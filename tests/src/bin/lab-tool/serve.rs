//! `lab-tool serve`: one thread for each listener and for each connection, until it is killed.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;

use anyhow::{Context, Result};
use tests::Bytes;
use tests::traffic::{Report, Serve, Service};

use crate::print;
use crate::transfer::{echo, errno, receive, send, write};

pub(crate) fn run(service: Service) -> Result<()> {
    let mut listeners = Vec::new();
    for address in &service.listen {
        let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
        println!("listening {}", listener.local_addr()?);
        listeners.push(listener);
    }
    thread::scope(|scope| {
        let accepting: Vec<_> =
            listeners.iter().map(|listener| scope.spawn(|| accept(listener, service.serve))).collect();
        accepting.into_iter().try_for_each(|thread| thread.join().expect("a listener panicked"))
    })
}

/// Serves until accepting fails: a test server that cannot accept must end, loudly.
fn accept(listener: &TcpListener, serve: Serve) -> Result<()> {
    loop {
        let (stream, peer) = listener.accept().context("accepting")?;
        println!("accepted {peer}");
        thread::spawn(move || {
            let report = one(&stream, serve);
            // Closed before it is reported: who waits for the report may count on it.
            drop(stream);
            print(&report)
        });
    }
}

fn one(stream: &TcpStream, serve: Serve) -> Report {
    let mut report =
        Report { peer: stream.peer_addr().ok(), local: stream.local_addr().ok(), ..Report::default() };
    match serve {
        Serve::Echo => {
            let (received, failure) = echo(stream);
            received.received(&mut report);
            report.send_failure = failure.as_ref().map(errno);
        }
        Serve::Hash => {
            let received = receive(stream, u64::MAX);
            send(stream, received.sha256().as_bytes()).sent(&mut report);
            received.received(&mut report);
        }
        Serve::Source { seed, length } => {
            send(stream, Bytes::new(seed, length)).sent(&mut report);
            receive(stream, u64::MAX).received(&mut report);
        }
        Serve::Stall => loop {
            thread::park();
        },
        Serve::Reset { after } => {
            receive(stream, after).received(&mut report);
            report.send_failure = reset_on_close(stream).err().as_ref().map(errno);
        }
        Serve::Slam { seed, length } => {
            receive(stream, 1).received(&mut report);
            write(stream, Bytes::new(seed, length)).sent(&mut report);
            if let Err(error) = reset_on_close(stream) {
                report.send_failure = Some(errno(&error));
            }
        }
    }
    report
}

/// Makes closing the stream a reset instead of a FIN.
fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the option's value is a `linger`, alive for the call, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
