//! A router and its workers, over lanes in memory: what carries is real, what is dialled is the test.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::duplex;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::refusal::{Code, Refusal};
use crate::route::{Opened, Request, Router};
use crate::tunnel::lane::{Incoming, Lane, Settings, Upgraded};
use crate::tunnel::message::{Hello, Open, OpenOk};
use crate::tunnel::stream::Stream;
use crate::tunnel::websocket::Side;

pub(crate) const SOON: Duration = Duration::from_secs(10);

/// One worker's end of its lane.
pub(crate) struct Worker {
    pub(crate) lane: Lane,
    pub(crate) incoming: mpsc::Receiver<Incoming>,
}

impl Worker {
    /// The next stream that it is asked for.
    pub(crate) async fn asked(&mut self) -> Stream {
        timeout(SOON, self.incoming.recv()).await.expect("nobody asked").expect("the lane is up").stream
    }

    pub(crate) fn die(&self) {
        self.lane.close("it dies");
    }
}

/// Gives streams on the first lane that is up.
pub(crate) struct Lanes {
    lanes: Mutex<Vec<(String, Lane)>>,
    changes: watch::Sender<u64>,
    opened: AtomicU32,
    /// Streams that are given out before any lane is asked.
    prepared: Mutex<Vec<Stream>>,
}

impl Lanes {
    pub(crate) fn new() -> Arc<Lanes> {
        Arc::new(Lanes {
            lanes: Mutex::default(),
            changes: watch::Sender::new(0),
            opened: AtomicU32::new(0),
            prepared: Mutex::default(),
        })
    }

    /// Streams ever opened.
    pub(crate) fn opened(&self) -> u32 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Gives out this stream next, whatever has become of it by then.
    pub(crate) fn prepare(&self, stream: Stream) {
        self.prepared.lock().unwrap().push(stream);
    }

    /// A worker that takes so many bytes ahead of its answer.
    pub(crate) fn connect(&self, name: &str, initial_credit: u32) -> Worker {
        let (near, far) = duplex(1 << 20);
        let lane = |io, side| {
            let peer = Hello { name: name.into(), initial_credit, ..Hello::sample() };
            let (lane, incoming, driver) =
                Lane::new(Upgraded::new(io, side, BytesMut::new()), peer, Settings::default());
            tokio::spawn(driver);
            (lane, incoming)
        };
        let (ours, _) = lane(near, Side::Server);
        self.lanes.lock().unwrap().push((format!("site/{name}"), ours));
        self.changes.send_modify(|n| *n += 1);
        let (lane, incoming) = lane(far, Side::Client);
        Worker { lane, incoming }
    }
}

impl Router for Lanes {
    fn open(&self, request: &Request) -> Result<Opened, Refusal> {
        if let Some(stream) = self.prepared.lock().unwrap().pop() {
            return Ok(Opened { stream, carrier: "site/prepared".into() });
        }
        let lanes = self.lanes.lock().unwrap();
        let Some((name, lane)) = lanes.iter().find(|(_, lane)| !lane.is_closing()) else {
            return Err(Refusal::new(Code::NoWorker, "no worker of group site is connected"));
        };
        let stream = lane.open(Open::from(request))?;
        self.opened.fetch_add(1, Ordering::Relaxed);
        Ok(Opened { stream, carrier: name.clone() })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// The target was dialled.
pub(crate) fn accept(stream: &Stream) {
    stream.accept(OpenOk { address: "192.0.2.1:443".parse().unwrap(), dial: Duration::ZERO, proxied: false });
}

/// All that the target hears.
pub(crate) async fn read_all(stream: &Stream) -> Vec<u8> {
    let (mut all, mut chunks) = (Vec::new(), VecDeque::new());
    while timeout(SOON, stream.receive(&mut chunks)).await.unwrap().unwrap() {
        for chunk in chunks.drain(..) {
            all.extend_from_slice(&chunk);
            stream.consumed(chunk.len());
        }
    }
    all
}

/// What the stream's target hears next.
pub(crate) async fn read_some(stream: &Stream, wanted: usize) -> Vec<u8> {
    let (mut some, mut chunks) = (Vec::new(), VecDeque::new());
    while some.len() < wanted {
        assert!(timeout(SOON, stream.receive(&mut chunks)).await.expect("no more comes").unwrap(), "an end");
        chunks.drain(..).for_each(|chunk| some.extend_from_slice(&chunk));
    }
    some
}
