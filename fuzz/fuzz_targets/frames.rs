//! Whatever a peer sends on a websocket: it is decoded alike however the network cuts it, or refused with a
//! reason, and nothing grows beyond its bound.

#![no_main]

use bytes::BytesMut;
use dworker::tunnel::frame::{self, MAX_CONTROL, MAX_DATA, Piece, Type};
use dworker::tunnel::message::{GoAway, Hello, Open, OpenOk, RoleIs, read_refusal};
use dworker::tunnel::policy::Assembly;
use dworker::tunnel::websocket::{self, Event, MAX_MESSAGE, Side};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, u8, &[u8])| {
    let (server, cut, bytes) = input;
    let side = if server { Side::Server } else { Side::Client };
    let whole = decode(side, bytes, bytes.len().max(1));
    let cut = decode(side, bytes, usize::from(cut).max(1));
    assert_eq!(whole, cut);
});

/// What was decoded: runs of one stream's data, control frames, websocket control frames; and how it ended.
#[derive(Debug, PartialEq)]
enum Seen {
    Data(u32, Vec<u8>),
    Control(u32, Type, Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
    Fault(String),
}

fn decode(side: Side, bytes: &[u8], step: usize) -> Vec<Seen> {
    let (mut websocket, mut frames) = (websocket::Decoder::new(side), frame::Decoder::default());
    let (mut input, mut seen) = (BytesMut::new(), Vec::new());
    for part in bytes.chunks(step) {
        input.extend_from_slice(part);
        loop {
            match websocket.next(&mut input) {
                Ok(None) => break,
                Err(fault) => {
                    seen.push(Seen::Fault(fault.to_string()));
                    return seen;
                }
                Ok(Some(Event::Payload { bytes, end })) => {
                    assert!(bytes.len() <= MAX_MESSAGE);
                    if let Err(fault) = payload(&mut frames, bytes, end, &mut seen) {
                        seen.push(Seen::Fault(fault));
                        return seen;
                    }
                }
                Ok(Some(Event::Ping(payload))) => seen.push(Seen::Ping(payload.to_vec())),
                Ok(Some(Event::Pong)) => seen.push(Seen::Pong),
                Ok(Some(Event::Close(code))) => seen.push(Seen::Close(code)),
            }
        }
        // What waits for more is a header or a control frame, never a payload.
        assert!(input.len() < 14 + 125);
    }
    seen
}

fn payload(
    frames: &mut frame::Decoder,
    mut bytes: BytesMut,
    end: bool,
    seen: &mut Vec<Seen>,
) -> Result<(), String> {
    while let Some(piece) = frames.next(&mut bytes).map_err(|fault| fault.to_string())? {
        match (piece, seen.last_mut()) {
            (Piece::Data(id, data), Some(Seen::Data(last, all))) if *last == id => {
                all.extend_from_slice(&data)
            }
            (Piece::Data(id, data), _) => {
                assert!(id != 0 && !data.is_empty() && data.len() <= MAX_DATA);
                seen.push(Seen::Data(id, data.to_vec()));
            }
            (Piece::Control(header, payload), _) => {
                assert!(payload.len() == header.length && payload.len() <= MAX_CONTROL);
                read_back(header.kind, &payload);
                seen.push(Seen::Control(header.stream, header.kind, payload.to_vec()));
            }
        }
    }
    match end {
        true => frames.end_of_message().map_err(|fault| fault.to_string()),
        false => Ok(()),
    }
}

/// What can be read can be written and reads the same again.
fn read_back(kind: Type, payload: &[u8]) {
    let mut out = BytesMut::new();
    match kind {
        Type::Hello | Type::Welcome => {
            if let Ok(hello) = Hello::read(payload) {
                hello.write(&mut out);
                assert_eq!(Hello::read(&out).as_ref(), Ok(&hello));
            }
        }
        Type::Open => {
            if let Ok(open) = Open::read(payload) {
                open.write(&mut out);
                assert_eq!(Open::read(&out).as_ref(), Ok(&open));
            }
        }
        Type::OpenOk => {
            if let Ok(ok) = OpenOk::read(payload) {
                ok.write(&mut out);
                assert_eq!(OpenOk::read(&out).as_ref(), Ok(&ok));
            }
        }
        Type::OpenErr | Type::Reset => {
            if let Ok(refusal) = read_refusal(payload) {
                dworker::tunnel::message::write_refusal(&refusal, &mut out);
                assert_eq!(read_refusal(&out).as_ref(), Ok(&refusal));
            }
        }
        Type::Role => {
            if let Ok(told) = RoleIs::read(payload) {
                told.write(&mut out);
                assert_eq!(RoleIs::read(&out).as_ref(), Ok(&told));
            }
        }
        Type::Policy => {
            // A part is taken or refused, and a policy that is whole is bounded by its one frame.
            if let Ok(Some(policy)) = Assembly::default().add(payload) {
                assert!((policy.patterns.len() + policy.unknown.len()) * 3 <= payload.len());
            }
        }
        Type::GoAway => {
            if let Ok(away) = GoAway::read(payload) {
                away.write(&mut out);
                assert_eq!(GoAway::read(&out).as_ref(), Ok(&away));
            }
        }
        _ => {}
    }
}
