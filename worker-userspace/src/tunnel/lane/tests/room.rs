//! Who has the room of a lane's queue.

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::batch::{Reader, credited_with, give, send_in};
use super::*;
use crate::tunnel::stream::LARGEST_SEND;

/// More than any stream here sends.
const CREDIT: u64 = 64 << 20;
const SIDE: Side = Side::Server;

/// A lane without a tick, which would help who was forgotten, to a slow reader; and a stream of it.
async fn alone() -> (End, Stream, DuplexStream) {
    let never = Duration::from_secs(3600);
    let settings = Settings { ping: never, dead: 2 * never, ..Settings::default() };
    credited_with(settings, BATCH, SIDE, CREDIT).await
}

/// However the end of a message falls into their turns, and whether the lane's queue has room for all of them or not.
#[tokio::test(start_paused = true)]
async fn streams_that_are_ready_get_as_much_as_each_other() {
    let cases = [200, 650, 900, 2000, 6000].map(|microseconds| (microseconds, 2, 16_000));
    let many = [3, 4, 5, 20].into_iter().flat_map(|count| {
        [(650, count, 16_000), (650, count, LARGEST_SEND), (6000, count, 16_000), (650, count, 100_000)]
    });
    for (microseconds, count, piece) in cases.into_iter().chain(many) {
        let (end, first, mut raw) = alone().await;
        let mut streams = vec![first];
        while streams.len() < count {
            let stream = end.lane.open(open_request()).unwrap();
            give(&mut raw, SIDE, &stream, CREDIT).await;
            streams.push(stream);
        }
        let mut reader = Reader::of(&mut raw, SIDE);
        // As fast as this, turns are longer.
        for _ in 0..100 {
            tokio::time::advance(Duration::from_micros(microseconds)).await;
            tokio::join!(send_in(16_000, &streams[0], LARGEST_SEND), reader.messages(LARGEST_SEND));
        }
        // What each has to send is more.
        let places: Vec<u32> = streams.iter().map(|stream| stream.place().1).collect();
        let bytes = 30 * count * LARGEST_SEND;
        let mut senders = JoinSet::new();
        for stream in streams {
            senders.spawn(async move { send_in(piece, &stream, bytes).await });
        }
        let began = Instant::now();
        let messages = reader.messages(bytes).await;
        assert!(began.elapsed() < Duration::from_secs(1), "an idle lane's clock goes on to its tick");
        drop(senders);
        let sum = |place: &u32| messages.iter().filter_map(|message| message.data.get(place)).sum::<usize>();
        let sums: Vec<usize> = places.iter().map(sum).collect();
        let (least, most) = (sums.iter().min().unwrap(), sums.iter().max().unwrap());
        // They do not begin at once, and end in the middle of a round.
        let apart = (most / 10).max(6 * LARGEST_SEND);
        assert!(most - least <= apart, "{microseconds} µs, pieces of {piece}: {sums:?}");
    }
}

/// Of many that wait, and of what is in the queue, a few messages go before it.
#[tokio::test(start_paused = true)]
async fn a_small_message_beside_many_streams_is_soon_its_turn() {
    for (count, size) in [(1, 100), (30, 100), (30, 3000)] {
        let (end, first, mut raw) = alone().await;
        let mut streams = vec![first];
        while streams.len() < count + 40 {
            let stream = end.lane.open(open_request()).unwrap();
            give(&mut raw, SIDE, &stream, CREDIT).await;
            streams.push(stream);
        }
        let mut tasks = JoinSet::new();
        for stream in streams.split_off(count) {
            tasks.spawn(async move { send_in(LARGEST_SEND, &stream, CREDIT as usize).await });
        }
        // Each has something to say as soon as it was heard; and when that was, in bytes of the lane.
        let mut small = HashMap::new();
        for stream in streams {
            let (heard, mut hears) = mpsc::unbounded_channel();
            small.insert(stream.place().1, (heard, 0, 0));
            tasks.spawn(async move {
                loop {
                    send_in(size, &stream, size).await;
                    hears.recv().await.unwrap();
                }
            });
        }
        let mut reader = Reader::of(&mut raw, SIDE);
        let (mut read, mut bulk, mut most, mut times) = (0, 0, 0, 0);
        for messages in 0..2000 {
            let message = reader.next().await;
            read += message.size;
            for (place, bytes) in &message.data {
                let Some((heard, since, part)) = small.get_mut(place) else {
                    bulk += bytes;
                    continue;
                };
                *part += bytes;
                if *part < size {
                    continue;
                }
                *part = 0;
                let before = read - std::mem::replace(since, read);
                // Until each of the others has used up a turn, they are as small.
                if messages > 500 {
                    (most, times) = (most.max(before), times + 1);
                }
                heard.send(()).unwrap();
            }
        }
        assert!(times > 200 * count, "{count}: heard {times} times");
        assert!(bulk > read * 2 / 5, "{count} messages of {size}: {bulk} of {read} for the others");
        // What was in the queue, and what those may add to it whose turn it is.
        assert!(most < 3 * QUEUE, "{count} messages of {size}: {most} bytes");
    }
}

/// A socket that seemed readable, and was not.
#[tokio::test(start_paused = true)]
async fn a_turn_without_anything_to_send_is_passed_on() {
    let (end, first, mut raw) = alone().await;
    let mut full = vec![first];
    while !end.lane.is_full() {
        let stream = end.lane.open(open_request()).unwrap();
        give(&mut raw, SIDE, &stream, CREDIT).await;
        // What fits into a message and into the connection is gone at once.
        while let Some(Ok(n)) = stream.sendable_now().await {
            stream.send(BytesMut::zeroed(n));
            tokio::task::yield_now().await;
        }
        full.push(stream);
    }
    let mut waiting = JoinSet::new();
    // More than there is room for, were it taken.
    for _ in 0..400 {
        let stream = end.lane.open(open_request()).unwrap();
        waiting.spawn(async move {
            assert!(stream.sendable_now().await.is_none(), "there is no room");
            stream.sendable().await.unwrap();
            stream.pass();
            stream
        });
    }
    tokio::task::yield_now().await;
    let began = Instant::now();
    let mut reader = Reader::of(&mut raw, SIDE);
    let streams = tokio::select! {
        streams = waiting.join_all() => streams,
        _ = reader.messages(usize::MAX) => unreachable!("there is no end"),
    };
    assert!(began.elapsed() < Duration::from_secs(1), "an idle lane's clock goes on to its tick");
    drop(streams);
}

/// Without a tick, who is not woken waits for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_waits_is_woken_whichever_thread_it_is_on() {
    const STREAMS: usize = 12;
    let (end, first, mut raw) = alone().await;
    let bytes = 20 * LARGEST_SEND;
    let mut streams = vec![first];
    while streams.len() < STREAMS {
        let stream = end.lane.open(open_request()).unwrap();
        give(&mut raw, SIDE, &stream, CREDIT).await;
        streams.push(stream);
    }
    for round in 1..=20 {
        let mut senders = JoinSet::new();
        for (at, stream) in streams.drain(..).enumerate() {
            senders.spawn(async move {
                send_in([1000, 16_000, LARGEST_SEND][at % 3], &stream, bytes).await;
                stream
            });
        }
        let mut reader = Reader::of(&mut raw, SIDE);
        let all = async { tokio::join!(senders.join_all(), reader.messages(STREAMS * bytes)) };
        let (back, _) = timeout(Duration::from_secs(60), all).await.expect("somebody was forgotten");
        streams = back;
        assert_eq!(streams.len(), STREAMS, "round {round}");
    }
}
