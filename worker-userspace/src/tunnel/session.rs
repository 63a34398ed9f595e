//! The lanes of one peer.
//!
//! A stream stays on the lane that it was opened on; a session chooses the least busy one. Losing a lane
//! costs its streams, not the session.

use std::ops::Add;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::lane::{Lane, Load, Totals};
use super::message::{Hello, Open};
use super::stream::Stream;
use crate::refusal::{Code, Refusal};
use crate::threads::{self, Home};

/// Lanes that have moved less in the last second or two are idle.
const MUCH: u64 = 1024 * 1024;

/// The lanes that one run of a peer's process has with us.
#[derive(Debug)]
pub struct Session {
    peer: Hello,
    since: SystemTime,
    lanes: Mutex<Lanes>,
}

#[derive(Debug, Default)]
struct Lanes {
    up: Vec<Arc<Lane>>,
    /// What those have counted that are gone.
    gone: Totals,
}

impl Session {
    /// A session without lanes.
    pub fn new(peer: Hello) -> Session {
        Session { peer, since: SystemTime::now(), lanes: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the peer said of itself on its first lane.
    pub fn peer(&self) -> &Hello {
        &self.peer
    }

    /// When the first lane came up.
    pub fn since(&self) -> SystemTime {
        self.since
    }

    /// Adds a lane. The guard takes it out again.
    pub fn add(self: &Arc<Self>, lane: Lane) -> LaneGuard {
        let lane = Arc::new(lane);
        self.lock().up.push(lane.clone());
        LaneGuard { session: self.clone(), lane }
    }

    /// The lanes that are up.
    pub fn lanes(&self) -> Vec<Arc<Lane>> {
        self.lock().up.clone()
    }

    /// What its lanes have counted, those that are gone included.
    pub fn totals(&self) -> Totals {
        let lanes = self.lock();
        lanes.up.iter().map(|lane| lane.counters().totals()).fold(lanes.gone, Totals::add)
    }

    /// True where a stream could be opened now.
    pub fn is_up(&self) -> bool {
        self.lock().up.iter().any(|lane| !lane.is_closing())
    }

    /// The lane that a new stream goes to, wherever that is opened.
    pub fn least_busy(&self) -> Option<Arc<Lane>> {
        least_busy_of(&self.lock().up, |_| true, |load| load.ever).cloned()
    }

    /// Where a new stream's socket had best live. Who asks is about to open one.
    pub fn home(&self) -> Home {
        let lanes = self.lock();
        let lane = least_busy_of(&lanes.up, |_| true, |load| load.ever + load.promised)?;
        lane.promise();
        lane.home()
    }

    /// Opens a stream on the least busy lane: of those that live where this is asked, unless they are full.
    pub fn open(&self, open: Open) -> Result<Stream, Refusal> {
        let here = threads::current();
        let near = here.and_then(|_| {
            let near = |lane: &Lane| lane.home() == here && !lane.is_full();
            least_busy_of(&self.lock().up, near, |load| load.ever).cloned()
        });
        match near.or_else(|| self.least_busy()) {
            Some(lane) => lane.open(open),
            None => Err(Refusal::new(Code::TunnelLost, format!("no lane to {} is up", self.peer.name))),
        }
    }
}

/// The least busy of some; of those that are as busy, the one with the least `otherwise`. Lanes share threads: one beside a
/// lane that is busy is busy, too. What was opened a moment ago counts for as much as the busiest thread has moved: where much
/// has been moved of late, all that is opened at once would go to the one that had moved a little less.
fn least_busy_of(
    lanes: &[Arc<Lane>],
    which: impl Fn(&Lane) -> bool,
    otherwise: impl Fn(&Load) -> u64,
) -> Option<&Arc<Lane>> {
    let free = |lane: &&Arc<Lane>| !lane.is_closing() && which(lane);
    let first = lanes.iter().find(free)?;
    // Most threads have one lane of a session: there is nothing to compare.
    if lanes.iter().filter(free).nth(1).is_none() {
        return Some(first);
    }
    let loads: Vec<(Home, Load)> = lanes.iter().map(|lane| (lane.home(), lane.load())).collect();
    let of = |home| {
        let here = loads.iter().filter(|(other, _)| *other == home);
        here.fold((0, 0), |(moved, fresh), (_, load)| {
            (moved + load.moved / MUCH, fresh + load.fresh + load.promised)
        })
    };
    let most = loads.iter().map(|(home, _)| of(*home).0).max()?;
    let key = |(home, load): &(Home, Load)| {
        let (moved, fresh) = of(*home);
        (load.queued, moved.saturating_add(fresh.saturating_mul(most)), load.streams, otherwise(load))
    };
    let candidates = lanes.iter().zip(&loads).filter(|(lane, _)| free(lane));
    candidates.min_by_key(|(_, load)| key(load)).map(|(lane, _)| lane)
}

/// Takes its lane out of the session when dropped.
#[derive(Debug)]
pub struct LaneGuard {
    session: Arc<Session>,
    lane: Arc<Lane>,
}

impl LaneGuard {
    /// The lane.
    pub fn lane(&self) -> &Lane {
        &self.lane
    }
}

impl Drop for LaneGuard {
    fn drop(&mut self) {
        let mut lanes = self.session.lock();
        lanes.up.retain(|lane| !Arc::ptr_eq(lane, &self.lane));
        lanes.gone = lanes.gone + self.lane.counters().totals();
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use std::sync::atomic::Ordering;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};
    use tokio::time::sleep;

    use super::*;
    use crate::threads::Threads;
    use crate::tunnel::lane::{Settings, Upgraded};
    use crate::tunnel::websocket::Side;

    /// Adds a lane on this home that ticks at once and then each `ping`, and says what keeps it up.
    async fn add(
        session: &Arc<Session>,
        threads: &Threads,
        home: Home,
        ping: Duration,
    ) -> (LaneGuard, DuplexStream) {
        let (near, far) = duplex(1000);
        let make = async move {
            let upgraded = Upgraded::new(near, Side::Server, BytesMut::new());
            let settings = Settings { ping, dead: 3 * ping, ..Settings::default() };
            let (lane, _, driver) = Lane::new(upgraded, Hello::sample(), settings);
            tokio::spawn(driver);
            lane
        };
        let lane = match home {
            Some(number) => threads.at(number).spawn(make).await.unwrap(),
            None => make.await,
        };
        (session.add(lane), far)
    }

    /// A session with a lane on each of these homes, and what keeps the lanes up.
    async fn session(threads: &Threads, homes: &[Home]) -> (Arc<Session>, Vec<LaneGuard>, Vec<DuplexStream>) {
        let session = Arc::new(Session::new(Hello::sample()));
        let (mut guards, mut all) = (Vec::new(), Vec::new());
        for home in homes {
            // Its first tick sends a ping, and no other comes while the test lasts.
            let (guard, mut far) = add(&session, threads, *home, Duration::from_secs(3600)).await;
            far.read_u8().await.unwrap();
            guards.push(guard);
            all.push(far);
        }
        (session, guards, all)
    }

    fn open() -> Open {
        let target = crate::target::Target { host: "vcenter.corp.example".parse().unwrap(), port: 443 };
        Open { target, deadline: Duration::from_secs(1), credit: 0, trace: 1 }
    }

    /// How many streams each of its lanes has.
    fn streams(guards: &[LaneGuard]) -> Vec<usize> {
        guards.iter().map(|guard| guard.lane().streams()).collect()
    }

    #[tokio::test]
    async fn streams_go_to_lanes_that_live_where_they_are_opened() {
        let (threads, _running) = Threads::of(3).unwrap();
        let (session, guards, _far) = session(&threads, &[Some(0), Some(1), Some(0), Some(1)]).await;
        let mut kept = Vec::new();
        for (thread, expected) in [(1, [0, 2, 0, 2]), (0, [2, 2, 2, 2]), (2, [3, 3, 3, 3])] {
            let session = session.clone();
            let opening = async move { [(); 4].map(|()| session.open(open()).unwrap()) };
            kept.push(threads.at(thread).spawn(opening).await.unwrap());
            assert_eq!(streams(&guards), expected, "where none lives here, all are as good");
        }
        // One that closes is none, and one that takes no more is none.
        guards[1].lane().close("test");
        guards[3].lane().close("test");
        let opening = async move { session.open(open()).unwrap() };
        let _last = threads.at(1).spawn(opening).await.unwrap();
        assert_eq!(streams(&guards)[0] + streams(&guards)[2], 7);
    }

    #[tokio::test]
    async fn what_is_opened_at_once_goes_to_all_threads_whatever_was_a_moment_ago() {
        let (threads, _running) = Threads::of(2).unwrap();
        let (session, guards, _far) = session(&threads, &[Some(0), Some(1)]).await;
        for (guard, moved) in guards.iter().zip([40_u64 << 20, 15 << 20]) {
            guard.lane().counters().received.store(moved, Ordering::Relaxed);
        }
        let kept: Vec<Stream> = (0..8).map(|_| session.open(open()).unwrap()).collect();
        assert_eq!(streams(&guards), [4, 4]);
        // Whoever asks for a home opens a little later: what was asked for counts.
        let mut homes: Vec<Home> = (0..8).map(|_| session.home()).collect();
        homes.sort();
        assert_eq!(homes, [[Some(0); 4], [Some(1); 4]].concat());
        drop(kept);
    }

    #[tokio::test]
    async fn a_thread_that_is_slow_to_open_gets_no_more_than_the_other() {
        let (threads, _running) = Threads::of(2).unwrap();
        let (session, guards, _far) = session(&threads, &[Some(0), Some(1)]).await;
        for guard in &guards {
            guard.lane().counters().received.store(10 << 20, Ordering::Relaxed);
        }
        let (mut kept, mut slow) = (Vec::new(), 0);
        for _ in 0..12 {
            match session.home() {
                Some(0) => slow += 1,
                _ => {
                    let session = session.clone();
                    let opening = async move { session.open(open()).unwrap() };
                    kept.push(threads.at(1).spawn(opening).await.unwrap());
                }
            }
        }
        assert_eq!((slow, kept.len()), (6, 6));
    }

    #[tokio::test]
    async fn homes_that_are_asked_for_at_once_are_all_threads() {
        let (threads, _running) = Threads::of(2).unwrap();
        let (session, _guards, _far) = session(&threads, &[Some(0), Some(1)]).await;
        let mut homes: Vec<Home> = (0..4).map(|_| session.home()).collect();
        homes.sort();
        assert_eq!(homes, [Some(0), Some(0), Some(1), Some(1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn lanes_are_compared_by_what_they_did_in_the_same_time() {
        let threads = Threads::default();
        let session = Arc::new(Session::new(Hello::sample()));
        let (pause, second) = (Duration::from_millis(50), Duration::from_secs(1));
        let (first, _far) = add(&session, &threads, None, second).await;
        sleep(7 * pause).await;
        let (later, _far) = add(&session, &threads, None, second).await;
        sleep(7 * pause).await;
        let guards = [first, later];
        for guard in &guards {
            guard.lane().counters().received.store(5 << 20, Ordering::Relaxed);
        }
        for waited in 0..=60 {
            let moved: Vec<u64> = guards.iter().map(|guard| guard.lane().load().moved).collect();
            assert_eq!(moved[0], moved[1], "{waited}");
            assert!(waited >= 20 || moved[0] == 5 << 20, "a second is recent");
            sleep(pause).await;
        }
        assert_eq!(guards[0].lane().load().moved, 0);
    }

    #[tokio::test]
    async fn what_has_ended_makes_no_thread_busy() {
        let (threads, _running) = Threads::of(2).unwrap();
        let (session, guards, _far) = session(&threads, &[Some(0), Some(1)]).await;
        guards[0].lane().counters().received.store(50 << 20, Ordering::Relaxed);
        for _ in 0..10 {
            let stream = session.open(open()).unwrap();
            assert_eq!(streams(&guards), [0, 1], "short ones stay away from who is busy");
            drop(stream);
        }
    }

    #[tokio::test]
    async fn a_promise_is_kept_once_whichever_lane_of_its_thread_keeps_it() {
        let (threads, _running) = Threads::of(2).unwrap();
        let (session, guards, _far) = session(&threads, &[Some(0), Some(0), Some(1)]).await;
        for guard in &guards {
            guard.lane().counters().received.store(10 << 20, Ordering::Relaxed);
        }
        let (mut kept, mut homes) = (Vec::new(), [0, 0]);
        for _ in 0..12 {
            let home = session.home().unwrap();
            homes[home] += 1;
            let session = session.clone();
            let opening = async move { session.open(open()).unwrap() };
            kept.push(threads.at(home).spawn(opening).await.unwrap());
        }
        let promised: u64 = guards.iter().map(|guard| guard.lane().load().promised).sum();
        assert_eq!(promised, 0, "{homes:?}");
    }

    #[tokio::test]
    async fn a_lane_beside_a_busy_one_is_busy() {
        let (threads, _running) = Threads::of(2).unwrap();
        let (session, guards, _far) = session(&threads, &[Some(0), Some(1), Some(0)]).await;
        assert_eq!(session.home(), Some(0));
        guards[0].lane().counters().received.store(50 << 20, Ordering::Relaxed);
        assert_eq!(session.home(), Some(1));
        // Some bytes are no work.
        guards[0].lane().counters().received.store(50 << 10, Ordering::Relaxed);
        assert_eq!(session.home(), Some(0));
    }
}
