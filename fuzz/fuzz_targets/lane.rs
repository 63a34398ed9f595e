//! A whole lane against a peer that sends whatever it likes: the lane ends with a reason or lives, its streams
//! hold no more than their credit, and nothing panics.

#![no_main]

use std::collections::VecDeque;
use std::time::Duration;

use arbitrary::Arbitrary;
use bytes::{BufMut, BytesMut};
use dworker::tunnel::credit::{INITIAL, USUAL};
use dworker::tunnel::lane::{Lane, Settings, Upgraded};
use dworker::tunnel::message::{Capabilities, Hello, Open, OpenOk};
use dworker::tunnel::websocket::{self, Opcode, Side};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// One frame of a peer that mostly keeps the form and seldom the sense.
#[derive(Arbitrary, Debug)]
enum Step {
    Open {
        id: u8,
        credit: u32,
    },
    Data {
        id: u8,
        length: u16,
    },
    Fin {
        id: u8,
    },
    Reset {
        id: u8,
    },
    Credit {
        id: u8,
        limit: u64,
    },
    OpenOk {
        id: u8,
    },
    Role {
        epoch: u8,
    },
    Policy {
        epoch: u8,
        part: u8,
        last: bool,
    },
    Ping,
    GoAway,
    Raw(Vec<u8>),
    /// The victim opens a stream and sends on it.
    Ours {
        length: u16,
    },
}

fuzz_target!(|input: (bool, Vec<Step>)| {
    let (worker, steps) = input;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(run(worker, steps));
});

/// The victim is a worker's end of a lane or an appliance's.
async fn run(worker: bool, steps: Vec<Step>) {
    let side = if worker { Side::Client } else { Side::Server };
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let settings = Settings { max_streams: 8, ..Settings::default() };
    let budget = settings.budget.clone();
    let all = budget.left();
    let peer = Hello {
        version: 1,
        node: [0; 16],
        session: [0; 16],
        lane: 0,
        name: String::new(),
        software: String::new(),
        initial_credit: 1000,
        max_streams: 4,
        capabilities: Capabilities::OURS,
    };
    let (lane, mut incoming, driver) = Lane::new(Upgraded::new(near, side, BytesMut::new()), peer, settings);
    let told = lane.told();
    let driver = tokio::spawn(driver);
    let reader = tokio::spawn(async move {
        let mut streams = Vec::new();
        while let Some(incoming) = incoming.recv().await {
            let ok = OpenOk { address: "192.0.2.1:1".parse().unwrap(), dial: Duration::ZERO, proxied: false };
            incoming.stream.accept(ok);
            let mut chunks = VecDeque::new();
            tokio::select! {
                biased;
                _ = incoming.stream.receive(&mut chunks) => {}
                () = tokio::task::yield_now() => {}
            }
            let held: usize = chunks.iter().map(BytesMut::len).sum();
            assert!(held <= USUAL as usize, "{held} bytes beyond any credit");
            streams.push(incoming.stream);
        }
        streams
    });
    let mut ours = Vec::new();
    for step in steps.into_iter().take(64) {
        let Some(frame) = frame(step, &lane, &mut ours) else { continue };
        let mut wire = BytesMut::new();
        websocket::put_header(&mut wire, Opcode::Binary, frame.len(), (!worker).then_some([0; 4]));
        wire.put_slice(&frame);
        if far.write_all(&wire).await.is_err() {
            break;
        }
        // What the lane says is thrown away, but read: a peer that does not read is another test's.
        let mut sink = BytesMut::new();
        tokio::select! {
            biased;
            _ = far.read_buf(&mut sink) => {}
            () = tokio::task::yield_now() => {}
        }
    }
    assert!(worker || (told.borrow().role.is_none() && told.borrow().policy.is_none()));
    drop(far);
    driver.await.expect("the lane panicked");
    drop((ours, lane));
    drop(reader.await.expect("the reader panicked"));
    assert_eq!(budget.left(), all, "the budget did not get all back");
}

fn frame(step: Step, lane: &Lane, ours: &mut Vec<dworker::tunnel::stream::Stream>) -> Option<BytesMut> {
    let mut payload = BytesMut::new();
    let target = || dworker::target::Target { host: "a.example".parse().unwrap(), port: 1 };
    let (id, kind) = match step {
        Step::Open { id, credit } => {
            Open { target: target(), deadline: Duration::from_secs(1), credit, trace: 0 }.write(&mut payload);
            (id, 3)
        }
        Step::OpenOk { id } => {
            OpenOk { address: "192.0.2.1:1".parse().unwrap(), dial: Duration::ZERO, proxied: false }
                .write(&mut payload);
            (id, 4)
        }
        Step::Data { id, length } => {
            payload.put_bytes(7, length.into());
            (id, 6)
        }
        Step::Fin { id } => (id, 7),
        Step::Reset { id } => {
            payload.put_slice(&[1, 0, 2, 0, 1, 2, 0, 4, 0, 0, 0, 111, 3, 0, 0]);
            (id, 8)
        }
        Step::Credit { id, limit } => {
            payload.put_u64(limit);
            (id, 9)
        }
        Step::Role { epoch } => {
            payload.put_slice(&[1, 0, 8, 0, 0, 0, 0, 0, 0, 0, epoch, 2, 0, 1, 1 + epoch % 3]);
            (0, 13)
        }
        Step::Policy { epoch, part, last } => {
            payload.put_slice(&[1, 0, 8, 0, 0, 0, 0, 0, 0, 0, epoch, 2, 0, 4, 0, 0, 0, part]);
            payload.put_slice(&[3, 0, 1, last.into(), 4, 0, 3]);
            payload.put_slice(b"a.b");
            (0, 14)
        }
        Step::Ping => {
            payload.put_u64(1);
            (0, 10)
        }
        Step::GoAway => {
            payload.put_slice(&[1, 0, 4, 0, 0, 0, 1, 2, 0, 0]);
            (0, 12)
        }
        Step::Raw(bytes) => return Some(BytesMut::from(&bytes[..bytes.len().min(5000)])),
        Step::Ours { length } => {
            let open = Open { target: target(), deadline: Duration::from_secs(1), credit: INITIAL, trace: 0 };
            if let Ok(stream) = lane.open(open) {
                // At most what the peer's HELLO allows before any answer.
                stream.send(BytesMut::from(&vec![1; usize::from(length).min(1000)][..]));
                ours.push(stream);
            }
            return None;
        }
    };
    let mut frame = BytesMut::new();
    frame.put_u32(id.into());
    frame.put_u8(kind);
    frame.put_uint(payload.len() as u64, 3);
    frame.put_slice(&payload);
    Some(frame)
}
