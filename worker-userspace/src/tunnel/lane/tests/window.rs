//! Windows on a long path, and what they take of the process's memory.

use super::*;

/// One way of the path.
const ONE_WAY: Duration = Duration::from_millis(25);

/// Two ends with a path of 50 ms between them, as wide as memory.
fn far_apart(settings: Settings) -> (End, End) {
    let ((a, a_path), (b, b_path)) = (duplex(1 << 24), duplex(1 << 24));
    let (a_reads, a_writes) = tokio::io::split(a_path);
    let (b_reads, b_writes) = tokio::io::split(b_path);
    for (mut from, mut to) in [(a_reads, b_writes), (b_reads, a_writes)] {
        let (sender, mut receiver) = mpsc::unbounded_channel::<(Instant, BytesMut)>();
        tokio::spawn(async move {
            let mut piece = BytesMut::with_capacity(1 << 20);
            while from.read_buf(&mut piece).await.is_ok_and(|n| n > 0) {
                let _ = sender.send((Instant::now() + ONE_WAY, piece.split()));
                piece.reserve(1 << 20);
            }
        });
        tokio::spawn(async move {
            while let Some((due, piece)) = receiver.recv().await {
                tokio::time::sleep_until(due).await;
                to.write_all(&piece).await.unwrap();
            }
        });
    }
    (end(a, Side::Client, settings.clone()), end(b, Side::Server, settings))
}

/// Time that `n` bytes take in one direction, from `OPEN` on.
async fn time_of(n: usize, up: bool) -> Duration {
    let (a, mut b) = far_apart(Settings::default());
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = Instant::now();
    let near = a.lane.open(open_request()).unwrap();
    let far = async {
        let far = b.incoming.recv().await.unwrap().stream;
        far.accept(ok());
        far
    };
    let data = pattern(1, n);
    if up {
        let (sent, far) = tokio::join!(
            async {
                send_all(&near, &data).await.unwrap();
                near.finish();
            },
            async {
                let far = far.await;
                assert_eq!(read_all(&far).await.unwrap().len(), n);
                far
            }
        );
        drop((sent, far));
    } else {
        let (read, far) = tokio::join!(async { read_all(&near).await.unwrap() }, async {
            let far = far.await;
            send_all(&far, &data).await.unwrap();
            far.finish();
            far
        });
        assert_eq!(read.len(), n);
        drop(far);
    }
    before.elapsed()
}

/// A new stream has little before it is answered, and all that a long path takes from then on.
#[tokio::test(start_paused = true)]
async fn a_long_path_is_filled_soon() {
    // So many ways of the path, 25 ms each.
    for (n, up, down) in [
        (INITIAL as usize, 1, 2),
        // One round trip for the answer, which brings the usual window.
        (USUAL as usize, 3, 2),
        (1 << 20, 5, 4),
        (8 << 20, 9, 8),
        (64 << 20, 19, 18),
    ] {
        assert_eq!(
            (time_of(n, true).await, time_of(n, false).await),
            (ONE_WAY * up, ONE_WAY * down),
            "{n} bytes"
        );
    }
}

/// All streams of these two ends together may hold 4 MiB at either end.
fn small() -> Settings {
    Settings { budget: Arc::new(Budget::new(4 << 20)), ..Settings::default() }
}

#[tokio::test]
async fn streams_beyond_the_memory_are_refused_and_those_that_are_there_go_on() {
    let (a_io, b_io) = duplex(1 << 16);
    let (a, mut b) = (end(a_io, Side::Client, Settings::default()), end(b_io, Side::Server, small()));
    // Nobody reads at the far end, and everybody sends all that is allowed.
    let (mut streams, mut far) = (Vec::new(), Vec::new());
    let refusal = loop {
        let stream = a.lane.open(open_request()).unwrap();
        send_all(&stream, &pattern(0, INITIAL as usize)).await.unwrap();
        tokio::select! {
            Some(incoming) = b.incoming.recv() => {
                incoming.stream.accept(ok());
                far.push(incoming.stream);
                streams.push(stream);
            }
            refusal = stream.failed() => break refusal,
        }
    };
    assert_eq!(refusal.code, Code::Limit);
    // At least what half of the budget has room for; of the other half some have more than the least.
    let least = (4 << 20) / INITIAL as usize;
    assert!((least / 2..least).contains(&streams.len()), "{} streams", streams.len());
    // All have sent all that they may: it is in memory here, and no more than was meant to be.
    for stream in &streams {
        while let Ok(Ok(n)) = tokio::time::timeout(Duration::ZERO, stream.sendable()).await {
            stream.send(BytesMut::from(&pattern(0, n)[..]));
            tokio::task::yield_now().await;
        }
    }
    let received = || b.lane.counters().received.load(Ordering::Relaxed) as usize;
    let all = || a.lane.counters().sent.load(Ordering::Relaxed) as usize;
    while received() < all() {
        tokio::task::yield_now().await;
    }
    // What is shown of each: its credit is in use to the last byte.
    let accounts: Vec<_> = far.iter().map(|stream| stream.cutter().account().unwrap()).collect();
    assert!(accounts.iter().all(|a| a.window >= INITIAL && a.held == u64::from(a.window)), "{accounts:?}");
    // Those of the refused stream were thrown away.
    assert!(received() <= (4 << 20) + INITIAL as usize, "{} bytes", received());
    assert_eq!(b.lane.open(open_request()).unwrap_err().code, Code::Limit);

    // One that ends makes room for another, and who is there is served.
    let (first, far_first) = (streams.remove(0), far.remove(0));
    first.finish();
    far_first.finish();
    read_all(&far_first).await.unwrap();
    drop((first, far_first));
    let again = a.lane.open(open_request()).unwrap();
    b.incoming.recv().await.expect("served").stream.accept(ok());
    again.opened().await.unwrap();
    streams[0].finish();
    assert!(read_all(&far[0]).await.unwrap().len() >= INITIAL as usize);
}
