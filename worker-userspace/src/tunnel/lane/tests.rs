//! Two lanes over an in-memory pipe, and one lane against a peer that misbehaves.

mod batch;
mod room;
mod told;
mod window;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;
use crate::tunnel::credit::{INITIAL, USUAL};
use crate::tunnel::frame::{Type, frame_bytes};
use crate::tunnel::message::{self, OpenOk};
use crate::tunnel::websocket::Opcode;

struct End {
    lane: Lane,
    incoming: mpsc::Receiver<Incoming>,
    task: JoinHandle<LaneEnd>,
}

fn hello(max_streams: u32) -> Hello {
    Hello { initial_credit: INITIAL, max_streams, ..Hello::sample() }
}

fn end(io: DuplexStream, side: Side, settings: Settings) -> End {
    let upgraded = Upgraded::new(io, side, BytesMut::new());
    let (lane, incoming, driver) = Lane::new(upgraded, hello(settings.max_streams), settings);
    End { lane, incoming, task: tokio::spawn(driver) }
}

fn pair(settings: Settings) -> (End, End) {
    let (a, b) = duplex(32 * 1024);
    (end(a, Side::Client, settings.clone()), end(b, Side::Server, settings))
}

fn open_request() -> Open {
    Open {
        target: crate::target::Target { host: "vcenter.corp.example".parse().unwrap(), port: 443 },
        deadline: Duration::from_secs(10),
        credit: INITIAL,
        trace: 1,
    }
}

fn ok() -> OpenOk {
    OpenOk { address: "192.0.2.1:443".parse().unwrap(), dial: Duration::from_millis(3), proxied: false }
}

fn pattern(seed: usize, n: usize) -> Vec<u8> {
    (0..n).map(|i| ((i * 31 + seed * 7 + i / 251) % 256) as u8).collect()
}

async fn send_all(stream: &Stream, data: &[u8]) -> Result<(), Refusal> {
    let mut rest = data;
    while !rest.is_empty() {
        let n = stream.sendable().await?.min(rest.len());
        stream.send(BytesMut::from(&rest[..n]));
        rest = &rest[n..];
    }
    Ok(())
}

async fn read_all(stream: &Stream) -> Result<Vec<u8>, Refusal> {
    let (mut all, mut chunks) = (Vec::new(), VecDeque::new());
    while stream.receive(&mut chunks).await? {
        for chunk in chunks.drain(..) {
            all.extend_from_slice(&chunk);
            stream.consumed(chunk.len());
        }
    }
    Ok(all)
}

#[tokio::test]
async fn bytes_arrive_unchanged_both_ways_with_half_close() {
    let (a, mut b) = pair(Settings::default());
    let stream = a.lane.open(open_request()).unwrap();
    let data = pattern(1, 3_000_000);
    let answer = pattern(2, 2_000_000);
    let (expected, reply) = (data.clone(), answer.clone());
    let server = tokio::spawn(async move {
        let Incoming { open, stream } = b.incoming.recv().await.unwrap();
        assert_eq!(open, Open { credit: USUAL, ..open_request() });
        stream.accept(ok());
        // All of the request first, the answer only behind its end.
        assert_eq!(read_all(&stream).await.unwrap(), expected);
        send_all(&stream, &reply).await.unwrap();
        stream.finish();
        b
    });
    // Sent before the answer to OPEN is known.
    send_all(&stream, &data).await.unwrap();
    stream.finish();
    assert_eq!(stream.opened().await.unwrap(), ok());
    assert_eq!(read_all(&stream).await.unwrap(), answer);
    let b = server.await.unwrap();
    drop(stream);
    assert_eq!((a.lane.streams(), b.lane.streams()), (0, 0));
}

#[tokio::test]
async fn a_refusal_keeps_its_meaning() {
    let (a, mut b) = pair(Settings::default());
    let stream = a.lane.open(open_request()).unwrap();
    let refusal = Refusal { code: Code::Refused, errno: 111, text: "dialling 192.0.2.1:443: refused".into() };
    b.incoming.recv().await.unwrap().stream.refuse(refusal.clone());
    assert_eq!(stream.opened().await, Err(refusal.clone()));
    assert_eq!(read_all(&stream).await, Err(refusal.clone()));
    assert_eq!(stream.sendable().await, Err(refusal));
    assert_eq!(a.lane.streams(), 0);
}

#[tokio::test]
async fn a_connect_to_port_0_costs_nobody_the_lane() {
    let (a, mut b) = pair(Settings::default());
    let mut nonsense = open_request();
    nonsense.target.port = 0;
    assert_eq!(a.lane.open(nonsense).unwrap_err().code, Code::Refused);
    let stream = a.lane.open(open_request()).unwrap();
    b.incoming.recv().await.unwrap().stream.accept(ok());
    assert_eq!(stream.opened().await, Ok(ok()));
}

#[tokio::test]
async fn a_dropped_stream_is_a_reset_and_never_an_end() {
    let (a, mut b) = pair(Settings::default());
    let stream = a.lane.open(open_request()).unwrap();
    let far = b.incoming.recv().await.unwrap().stream;
    far.accept(ok());
    send_all(&far, b"half an answer").await.unwrap();
    let mut chunks = VecDeque::new();
    assert!(stream.receive(&mut chunks).await.unwrap());
    drop(far);
    assert_eq!(read_all(&stream).await.unwrap_err().code, Code::Reset);
}

#[tokio::test]
async fn a_stalled_reader_holds_its_credit_and_nobody_else() {
    let (a, mut b) = pair(Settings::default());
    let stalled = a.lane.open(open_request()).unwrap();
    let far_stalled = b.incoming.recv().await.unwrap().stream;
    let filler = pattern(0, INITIAL as usize);
    send_all(&stalled, &filler).await.unwrap();
    tokio::select! {
        biased;
        _ = stalled.sendable() => panic!("sent beyond the credit"),
        () = tokio::task::yield_now() => {}
    }
    let mut tasks = Vec::new();
    for seed in 0..50 {
        let stream = a.lane.open(open_request()).unwrap();
        let far = b.incoming.recv().await.unwrap().stream;
        let data = pattern(seed, 1_000_000);
        let expected = data.clone();
        tasks.push(tokio::spawn(async move { assert_eq!(read_all(&far).await.unwrap(), expected) }));
        tasks.push(tokio::spawn(async move {
            send_all(&stream, &data).await.unwrap();
            stream.finish();
            stream.failed().await;
        }));
    }
    for pair in tasks.chunks_mut(2) {
        (&mut pair[0]).await.unwrap();
        pair[1].abort();
    }
    stalled.finish();
    assert_eq!(read_all(&far_stalled).await.unwrap(), filler);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn streams_opened_by_many_threads_are_announced_in_order_and_before_their_bytes() {
    let (a, mut b) = pair(Settings::default());
    let serving = tokio::spawn(async move {
        while let Some(Incoming { stream, .. }) = b.incoming.recv().await {
            tokio::spawn(async move {
                stream.accept(ok());
                send_all(&stream, &read_all(&stream).await.unwrap()).await.unwrap();
                stream.finish();
            });
        }
        b.task.await.unwrap()
    });
    let openers: Vec<_> = (0..16)
        .map(|seed| {
            let lane = a.lane.clone();
            tokio::spawn(async move {
                let data = pattern(seed, 100);
                for _ in 0..2000 {
                    let stream = lane.open(open_request())?;
                    send_all(&stream, &data).await?;
                    stream.finish();
                    assert_eq!(read_all(&stream).await?, data);
                }
                Ok::<_, Refusal>(())
            })
        })
        .collect();
    for opener in openers {
        opener.await.unwrap().unwrap();
    }
    a.lane.close("the test is over");
    let end = serving.await.unwrap();
    assert!(matches!(end, LaneEnd::Closed(Some(1000))), "{end}");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_room_gets_what_reset_streams_leave() {
    let (near, far) = duplex(64);
    let full = end(near, Side::Server, Settings::default());
    let open = || full.lane.open(open_request()).unwrap();
    let fill = |stream: &Stream| stream.send(BytesMut::from(&pattern(0, INITIAL as usize)[..]));
    let bulk: Vec<_> = (0..11).map(|_| open()).collect();
    bulk.iter().for_each(fill);
    tokio::task::yield_now().await;
    // Many stand in line before the last one, and are gone when their turn comes.
    let mut waiting: Vec<_> = (0..200).map(|_| open()).collect();
    for stream in &waiting {
        assert!(tokio::time::timeout(Duration::ZERO, stream.sendable()).await.is_err());
    }
    let last = waiting.pop().unwrap();
    let woken = tokio::spawn(async move { last.sendable().await.map(|_| Instant::now()) });
    tokio::task::yield_now().await;
    let before = Instant::now();
    drop((bulk, waiting));
    let mut peer = Peer::new(far);
    tokio::spawn(async move { while peer.hear().await.is_some() {} });
    let elapsed = woken.await.unwrap().unwrap() - before;
    assert!(elapsed < Duration::from_millis(100), "woken by the clock after {elapsed:?}");
}

#[tokio::test]
async fn a_burst_within_the_limit_is_served() {
    let (a, mut b) = pair(Settings { max_streams: 5000, ..Settings::default() });
    let streams: Vec<_> = (0..5000).map(|_| a.lane.open(open_request()).unwrap()).collect();
    // All of them arrive before the first one is looked at.
    while b.lane.counters().streams.load(Ordering::Relaxed) < 5000 {
        tokio::task::yield_now().await;
    }
    let far: Vec<_> = streams.iter().map(|_| b.incoming.try_recv().expect("served").stream).collect();
    far.iter().for_each(|stream| stream.accept(ok()));
    for stream in streams {
        stream.opened().await.unwrap();
    }
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_the_lane_lives() {
    let settings = Settings { max_streams: 4, ..Settings::default() };
    let (a, mut b) = pair(settings);
    let streams: Vec<_> = (0..4).map(|_| a.lane.open(open_request()).unwrap()).collect();
    assert_eq!(a.lane.open(open_request()).unwrap_err().code, Code::Limit);
    let far: Vec<_> = [b.incoming.recv().await, b.incoming.recv().await].into_iter().flatten().collect();
    drop(streams);
    drop(far);
    let again = a.lane.open(open_request()).unwrap();
    b.incoming.recv().await.unwrap();
    let incoming = b.incoming.recv().await.unwrap();
    drop(incoming);
    let last = b.incoming.recv().await.unwrap();
    last.stream.accept(ok());
    again.opened().await.unwrap();
}

#[tokio::test]
async fn going_away_lets_streams_end_and_takes_no_new_ones() {
    let (a, mut b) = pair(Settings::default());
    let stream = a.lane.open(open_request()).unwrap();
    let far = b.incoming.recv().await.unwrap().stream;
    far.accept(ok());
    stream.opened().await.unwrap();
    b.lane.go_away(Duration::from_secs(60), "upgrade");
    a.lane.closing().await;
    assert!(a.lane.open(open_request()).is_err());
    send_all(&stream, b"still here").await.unwrap();
    stream.finish();
    assert_eq!(read_all(&far).await.unwrap(), b"still here");
    far.finish();
    assert_eq!(read_all(&stream).await.unwrap(), b"");
    assert!(matches!(b.task.await.unwrap(), LaneEnd::Local(reason) if reason == "drained"));
    assert!(matches!(a.task.await.unwrap(), LaneEnd::Closed(Some(1000))));
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_at_its_deadline() {
    let (a, mut b) = pair(Settings::default());
    let stream = a.lane.open(open_request()).unwrap();
    let far = b.incoming.recv().await.unwrap().stream;
    b.lane.go_away(Duration::from_secs(3), "upgrade");
    assert!(matches!(b.task.await.unwrap(), LaneEnd::Local(reason) if reason.contains("deadline")));
    assert_eq!(far.failed().await.code, Code::TunnelLost);
    assert_eq!(stream.failed().await.code, Code::TunnelLost);
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_dead_after_five_seconds_and_a_living_one_is_not() {
    let (a, b) = pair(Settings::default());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!a.task.is_finished() && !b.task.is_finished());

    let (near, _far) = duplex(1 << 20);
    let started = Instant::now();
    let quiet = end(near, Side::Server, Settings::default());
    let stream = quiet.lane.open(open_request()).unwrap();
    assert!(matches!(quiet.task.await.unwrap(), LaneEnd::Silent(_)));
    assert_eq!(started.elapsed().as_secs(), 5);
    assert_eq!(stream.failed().await.code, Code::TunnelLost);
}

/// What waits for the peer's answer is asked elsewhere then, so each moment counts.
#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_dead_to_the_moment() {
    let (near, far) = duplex(1 << 20);
    let quiet = end(near, Side::Server, Settings::default());
    let mut peer = Peer::new(far);
    // Just behind a second's beginning.
    tokio::time::sleep(Duration::from_millis(1010)).await;
    peer.say(frame_bytes(0, Type::Ping, &[0; 8])).await;
    let heard = Instant::now();
    assert!(matches!(quiet.task.await.unwrap(), LaneEnd::Silent(_)));
    let elapsed = heard.elapsed();
    assert!((5000..5010).contains(&elapsed.as_millis()), "{elapsed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_dead_too() {
    let (near, _far) = duplex(64);
    let full = end(near, Side::Server, Settings::default());
    let stream = full.lane.open(open_request()).unwrap();
    stream.send(BytesMut::from(&pattern(0, 10_000)[..]));
    assert!(matches!(full.task.await.unwrap(), LaneEnd::Silent(_)));
}

/// A peer that sends these frames, each in a message, and what its lane ends with.
async fn misbehave(frames: &[BytesMut]) -> (String, Vec<u8>) {
    let (near, mut far) = duplex(1 << 22);
    let victim = end(near, Side::Server, Settings { max_streams: 8, ..Settings::default() });
    let mut wire = BytesMut::new();
    for frame in frames {
        websocket::put_header(&mut wire, Opcode::Binary, frame.len(), Some([0; 4]));
        wire.put_slice(frame);
    }
    far.write_all(&wire).await.unwrap();
    let reason = victim.task.await.unwrap();
    assert!(reason.is_fault(), "{reason}");
    let mut said = Vec::new();
    far.read_to_end(&mut said).await.unwrap();
    (reason.to_string(), said)
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_loses_its_lane_with_a_reason() {
    let open = {
        let mut fields = BytesMut::new();
        open_request().write(&mut fields);
        frame_bytes(1, Type::Open, &fields)
    };
    let data = |n: usize| frame_bytes(1, Type::Data, &vec![7; n]);
    let cases: [(&str, Vec<BytesMut>); 11] = [
        ("unknown type 77", vec![BytesMut::from(&[0, 0, 0, 1, 77, 0, 0, 0][..])]),
        ("never opened", vec![data(5)]),
        ("beyond the stream's credit", vec![open.clone(), data(200_000), data(100_000)]),
        ("not the peer's next", vec![open.clone(), open.clone()]),
        ("OPEN without its field", vec![frame_bytes(1, Type::Open, b"")]),
        ("OPEN with a torn field", vec![frame_bytes(1, Type::Open, b"x")]),
        ("behind the FIN", vec![open.clone(), frame_bytes(1, Type::Fin, b""), data(1)]),
        ("Hello on a lane that is up", vec![frame_bytes(0, Type::Hello, b"")]),
        ("Role from a worker", vec![frame_bytes(0, Type::Role, b"")]),
        ("Policy from a worker", vec![frame_bytes(0, Type::Policy, b"")]),
        ("within a frame", vec![BytesMut::from(&[0, 0, 0][..])]),
    ];
    for (says, frames) in cases {
        let (reason, said) = misbehave(&frames).await;
        assert!(reason.contains(says), "{reason:?} without {says:?}");
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains(says), "the peer was not told {says:?}");
    }
}

#[tokio::test]
async fn frames_for_a_stream_that_has_just_ended_are_no_fault() {
    let (near, mut far) = duplex(1 << 20);
    let mut victim = end(near, Side::Server, Settings::default());
    let mut fields = BytesMut::new();
    open_request().write(&mut fields);
    let mut payload = frame_bytes(1, Type::Open, &fields);
    let mut wire = BytesMut::new();
    websocket::put_header(&mut wire, Opcode::Binary, payload.len(), Some([0; 4]));
    wire.extend_from_slice(&payload);
    far.write_all(&wire).await.unwrap();
    drop(victim.incoming.recv().await.unwrap());
    payload = frame_bytes(1, Type::Data, b"late");
    payload.extend(frame_bytes(1, Type::Fin, b""));
    payload.extend(frame_bytes(0, Type::Ping, &[0; 8]));
    wire.clear();
    websocket::put_header(&mut wire, Opcode::Binary, payload.len(), Some([0; 4]));
    wire.extend_from_slice(&payload);
    far.write_all(&wire).await.unwrap();
    // The answer to the ping shows that the lane has read all of it and lives.
    let mut said = Vec::new();
    let pong = frame_bytes(0, Type::Pong, &[0; 8]);
    while !said.windows(pong.len()).any(|window| window == &pong[..]) {
        assert!(far.read_buf(&mut said).await.unwrap() > 0);
    }
    assert!(!victim.task.is_finished());
}

#[tokio::test]
async fn a_stream_that_ends_without_an_answer_waits_no_longer_than_its_lane() {
    let (near, mut far) = duplex(1 << 20);
    let victim = end(near, Side::Server, Settings::default());
    let stream = victim.lane.open(open_request()).unwrap();
    stream.finish();
    let payload = frame_bytes(2, Type::Fin, b"");
    let mut wire = BytesMut::new();
    websocket::put_header(&mut wire, Opcode::Binary, payload.len(), Some([0; 4]));
    wire.extend_from_slice(&payload);
    far.write_all(&wire).await.unwrap();
    // Both directions have ended by now, and still nobody said that the target was dialled.
    assert!(!stream.receive(&mut VecDeque::new()).await.unwrap());
    drop(far);
    victim.task.await.unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(10), stream.opened()).await;
    assert_eq!(answer.expect("waits for ever").unwrap_err().code, Code::TunnelLost);
}

/// A peer made by hand: a client that says what it likes, and hears all control frames.
struct Peer {
    io: DuplexStream,
    websocket: websocket::Decoder,
    frames: frame::Decoder,
    read: BytesMut,
    heard: VecDeque<(Type, BytesMut)>,
}

impl Peer {
    fn new(io: DuplexStream) -> Peer {
        Peer {
            io,
            websocket: websocket::Decoder::new(Side::Client),
            frames: frame::Decoder::default(),
            read: BytesMut::new(),
            heard: VecDeque::new(),
        }
    }

    async fn say(&mut self, frame: BytesMut) {
        let mut wire = BytesMut::new();
        websocket::put_header(&mut wire, Opcode::Binary, frame.len(), Some([0; 4]));
        wire.extend_from_slice(&frame);
        self.io.write_all(&wire).await.unwrap();
    }

    /// As the appliance's end.
    async fn tell(&mut self, frame: BytesMut) {
        let mut wire = BytesMut::new();
        websocket::put_header(&mut wire, Opcode::Binary, frame.len(), None);
        wire.extend_from_slice(&frame);
        self.io.write_all(&wire).await.unwrap();
    }

    async fn open(&mut self, id: u32) {
        let mut fields = BytesMut::new();
        open_request().write(&mut fields);
        self.say(frame_bytes(id, Type::Open, &fields)).await;
    }

    /// The next control frame; `None`: the websocket is closed.
    async fn hear(&mut self) -> Option<(Type, BytesMut)> {
        loop {
            if let Some(frame) = self.heard.pop_front() {
                return Some(frame);
            }
            match self.websocket.next(&mut self.read).unwrap() {
                None => assert!(self.io.read_buf(&mut self.read).await.unwrap() > 0, "cut without a close"),
                Some(websocket::Event::Close(_)) => return None,
                Some(websocket::Event::Payload { mut bytes, .. }) => {
                    while let Some(piece) = self.frames.next(&mut bytes).unwrap() {
                        if let frame::Piece::Control(header, payload) = piece {
                            self.heard.push_back((header.kind, payload));
                        }
                    }
                }
                Some(_) => {}
            }
        }
    }
}

#[tokio::test]
async fn what_the_peer_opens_before_it_hears_goaway_is_served() {
    let (near, far) = duplex(1 << 20);
    let (mut b, mut peer) = (end(near, Side::Server, Settings::default()), Peer::new(far));
    b.lane.go_away(Duration::from_secs(60), "upgrade");
    // This crosses the GOAWAY.
    peer.open(1).await;
    let stream = b.incoming.recv().await.expect("served").stream;
    stream.refuse(Refusal::new(Code::Refused, "nobody listens"));
    // The lane stays until the peer has heard that it should open no more, and has been heard saying so.
    let (mut away, mut asked, mut refused) = (false, None, false);
    while asked.is_none() || !refused {
        match peer.hear().await.expect("closed before the peer could know") {
            (Type::GoAway, _) => away = true,
            (Type::Ping, stamp) if away => asked = Some(stamp),
            (Type::Ping, _) => {}
            (Type::OpenErr, refusal) => {
                assert_eq!(message::read_refusal(&refusal).unwrap().code, Code::Refused);
                refused = true;
            }
            other => panic!("{other:?}"),
        }
    }
    peer.say(frame_bytes(0, Type::Pong, &asked.unwrap())).await;
    while peer.hear().await.is_some() {}
    assert!(matches!(b.task.await.unwrap(), LaneEnd::Local(reason) if reason == "drained"));
}

#[tokio::test]
async fn a_lane_whose_ids_are_used_up_is_left_in_order() {
    let (a, mut b) = pair(Settings::default());
    a.lane.shared.queues().next_id = LAST_ID - LAST_ID % 2 - 1;
    let streams = [(); 2].map(|()| a.lane.open(open_request()).unwrap());
    // Whoever holds the lane up replaces it, at both ends.
    tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(a.lane.closing(), b.lane.closing()) })
        .await
        .expect("nobody is told");
    assert_eq!(a.lane.open(open_request()).unwrap_err().code, Code::TunnelLost);
    for stream in streams {
        b.incoming.recv().await.unwrap().stream.accept(ok());
        stream.opened().await.unwrap();
    }
}
