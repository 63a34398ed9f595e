//! How bytes are put into messages.

use super::*;
use crate::tunnel::stream::LARGEST_SEND;

/// What was read at once leaves at once: a rest of some bytes would be a message, a record and a packet of its own.
#[tokio::test]
async fn the_largest_send_is_one_message_of_four_records_at_most() {
    for side in [Side::Client, Side::Server] {
        let (io, mut raw) = duplex(1 << 20);
        let a = end(io, side, Settings::default());
        let stream = a.lane.open(open_request()).unwrap();
        let sendable = stream.sendable().await.unwrap();
        assert_eq!(sendable, INITIAL as usize);
        // More credit than there is before the answer.
        let mut credit = BytesMut::new();
        frame::put_u64(&mut credit, if side == Side::Client { 1 } else { 2 }, Type::Credit, 1 << 20);
        let mut message = BytesMut::new();
        let key = (side == Side::Server).then_some([0; 4]);
        websocket::put_header(&mut message, Opcode::Binary, credit.len(), key);
        message.extend_from_slice(&credit);
        raw.write_all(&message).await.unwrap();
        while stream.sendable().await.unwrap() < LARGEST_SEND {
            tokio::task::yield_now().await;
        }
        stream.send(BytesMut::zeroed(LARGEST_SEND));
        stream.finish();
        let other = if side == Side::Client { Side::Server } else { Side::Client };
        let (mut decoder, mut frames) = (websocket::Decoder::new(other), frame::Decoder::default());
        let (mut input, mut sizes, mut size, mut data) = (BytesMut::new(), Vec::new(), 0, 0);
        while data < LARGEST_SEND {
            raw.read_buf(&mut input).await.unwrap();
            while let Some(websocket::Event::Payload { mut bytes, end }) = decoder.next(&mut input).unwrap() {
                size += bytes.len();
                while let Some(piece) = frames.next(&mut bytes).unwrap() {
                    if let frame::Piece::Data(_, bytes) = piece {
                        data += bytes.len();
                    }
                }
                if end {
                    sizes.push(std::mem::take(&mut size));
                }
            }
        }
        let largest: Vec<_> = sizes.iter().filter(|size| **size > 1000).collect();
        assert_eq!(largest.len(), 1, "{sizes:?}");
        // With the websocket's header.
        assert!(largest[0] + 14 <= 4 * 16 * 1024, "{sizes:?}");
    }
}
