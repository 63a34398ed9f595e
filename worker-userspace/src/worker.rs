//! The worker: holds its lanes to the appliance up, and dials what the appliance asks for.
//!
//! What must hold: a lost lane comes back by itself, soon and without a stampede; a lane that the
//! appliance wants to end is replaced before it ends; each refusal reaches the appliance with its meaning; what
//! is dialled is judged by what the appliance told before it asked ([`orders`]).

mod orders;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use crate::drain::Drain;
use crate::egress::dial::{Dialled, Dialler};
use crate::egress::policy::Policy;
use crate::inspect::ledger::{Entry, FlowGuard, Ledger, Origin};
use crate::refusal::{Code, Refusal};
use crate::route::{Opened, Request, Router};
use crate::splice::{Reads, splice_over};
use crate::target::Target;
use crate::threads::Home;
use crate::tunnel::handshake::Dial;
use crate::tunnel::lane::{Incoming, Lane, LaneEnd, Settings, Told};
use crate::tunnel::message::{Hello, Open, OpenOk};
use crate::tunnel::session::Session;
use crate::tunnel::stream::Stream;
use crate::tunnel::transport::Way;
use crate::upstream::Upstream;
use orders::Orders;

/// The longest wait before the next attempt. Short: an appliance that returns should be used at once.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// The first wait's upper bound; it doubles with each failure.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// A lane that lasted this long was a success: the next failure waits like the first.
const STEADY: Duration = Duration::from_secs(10);

/// The worker's end of the tunnel.
pub struct Uplink {
    dial: Dial,
    hello: Hello,
    lanes: u8,
    settings: Settings,
    dialler: Arc<Dialler>,
    orders: Orders,
    ledger: Ledger,
    drain: Drain,
    session: Arc<Session>,
    changes: watch::Sender<u64>,
    problem: Mutex<Option<String>>,
}

/// What an [`Uplink`] is made of.
pub struct Parts {
    /// Where and how to dial.
    pub dial: Dial,
    /// What this end says of itself; the lane's number is filled in.
    pub hello: Hello,
    /// Lanes to hold up.
    pub lanes: u8,
    /// How lanes are run.
    pub settings: Settings,
    /// What dials targets.
    pub dialler: Dialler,
    /// Where connections are written down.
    pub ledger: Ledger,
    /// Stops it.
    pub drain: Drain,
}

impl Uplink {
    /// An uplink; nothing is dialled before [`start`](Self::start).
    pub fn new(parts: Parts) -> Arc<Uplink> {
        let Parts { dial, hello, lanes, settings, dialler, ledger, drain } = parts;
        let session = Arc::new(Session::new(hello.clone()));
        let dialler = Arc::new(dialler);
        Arc::new(Uplink {
            dial,
            hello,
            lanes,
            settings,
            orders: Orders::new(dialler.clone()),
            dialler,
            ledger,
            drain,
            session,
            changes: watch::Sender::new(0),
            problem: Mutex::new(None),
        })
    }

    /// Starts to hold the lanes up.
    pub fn start(self: &Arc<Self>) {
        for number in 0..self.lanes {
            // Its lanes, what they dial and all that is copied stay there.
            let thread = self.settings.threads.at(number.into());
            self.drain.spawn_on(&thread, "uplink", self.clone().hold(number));
        }
    }

    /// The lanes that are up.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Why the last attempt failed, while no lane is up.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the appliance has told: this worker's role, and what it may dial.
    pub fn told(&self) -> Told {
        self.orders.hold()
    }

    /// What it may dial now.
    pub fn policy(&self) -> Arc<Policy> {
        self.dialler.policy()
    }

    /// Where the worker dials.
    pub fn appliance(&self) -> String {
        self.dial.appliance.at.to_string()
    }

    /// The proxy that this worker goes through, and whether the way to the appliance leads through it.
    pub fn proxy(&self) -> Option<(&Upstream, bool)> {
        self.dial.proxy.as_deref().map(|proxy| (proxy, self.dial.through().is_some()))
    }

    async fn hold(self: Arc<Self>, number: u8) {
        let mut failures = 0;
        let mut gate = self.drain.gate();
        // Two processes of one node would push each other aside.
        tokio::select! {
            () = gate.opened() => {}
            () = self.drain.stopping() => return,
        }
        while !self.drain.is_stopping() {
            let started = Instant::now();
            let lasted = tokio::select! {
                lasted = self.clone().lane(number) => lasted,
                () = self.drain.stopping() => return,
            };
            failures = if lasted && started.elapsed() >= STEADY { 0 } else { failures + 1 };
            // Full jitter: of many workers that lost one appliance, few come back at the same moment.
            let longest = FIRST_WAIT.saturating_mul(1 << (failures - 1).clamp(0, 8)).min(LONGEST_WAIT);
            let wait = longest.mul_f64(rand::random::<f64>());
            tokio::select! {
                () = sleep(wait) => {}
                () = self.drain.stopping() => return,
            }
        }
    }

    /// Holds one lane until it is to be replaced. `true`: it was up.
    async fn lane(self: Arc<Self>, number: u8) -> bool {
        let hello = Hello { lane: number, ..self.hello.clone() };
        let (upgraded, welcome) = match self.dial.lane(&hello).await {
            Ok(lane) => lane,
            Err(error) => {
                let text = error.to_string();
                let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
                // Said once, not with each attempt.
                if problem.as_ref() != Some(&text) && self.session.lanes().is_empty() {
                    tracing::warn!(appliance = %self.appliance(), lane = number, "not connected: {text}");
                }
                *problem = Some(text);
                return false;
            }
        };
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let (lane, incoming, driver) = Lane::new(upgraded, welcome, self.settings.clone());
        tracing::info!(appliance = %self.appliance(), lane = number, peer = %lane.peer().name, "connected");
        self.orders.greeted(lane.peer());
        let guard = self.session.add(lane.clone());
        self.changes.send_modify(|n| *n += 1);
        let (uplink, driven) = (self.clone(), lane.clone());
        // A task of its own: it lives on beside its successor when the appliance asks it to go.
        self.drain.spawn("lane", async move {
            let end = uplink.drive(driver, incoming, &driven).await;
            drop(guard);
            uplink.changes.send_modify(|n| *n += 1);
            match end.is_fault() {
                true => tracing::warn!(lane = number, "disconnected: {end}"),
                false => tracing::info!(lane = number, "disconnected: {end}"),
            }
        });
        lane.closing().await;
        true
    }

    async fn drive(
        self: &Arc<Self>,
        driver: impl Future<Output = LaneEnd> + Send + 'static,
        mut incoming: mpsc::Receiver<Incoming>,
        lane: &Lane,
    ) -> LaneEnd {
        // Before the driver's first step: what comes with the lane's first bytes is news, too.
        let mut told = lane.told();
        let serving = async {
            loop {
                let incoming = tokio::select! {
                    // The lane that holds the other end is alive.
                    Ok(()) = told.changed() => None,
                    incoming = incoming.recv() => match incoming {
                        Some(incoming) => Some(incoming),
                        None => return,
                    },
                };
                // What was told before the OPEN counts for it.
                if incoming.is_none() || told.has_changed().unwrap_or(false) {
                    let news = told.borrow_and_update().clone();
                    self.orders.told(lane.peer(), &news);
                }
                if let Some(incoming) = incoming {
                    self.drain.spawn("egress", self.clone().egress(incoming));
                }
            }
        };
        let leaving = async {
            self.drain.stopping().await;
            lane.go_away(self.drain.deadline(), "the worker is stopping");
            std::future::pending().await
        };
        // A task of its own: what moves bytes looks at nothing else.
        let driver = self.drain.spawn_for("lane's driver", driver);
        tokio::pin!(driver);
        tokio::select! {
            end = &mut driver => end,
            () = serving => driver.await,
            end = leaving => end,
        }
    }

    /// Dials what the appliance asks for, and copies.
    fn egress(self: Arc<Self>, incoming: Incoming) -> impl Future<Output = ()> + Send + 'static {
        // Apart from the task: what it takes to dial is much, and is given back before the connection is idle.
        let dialling = Box::pin(self.dial(incoming));
        async move {
            let Some((flow, stream, way)) = dialling.await else { return };
            let outcome = splice_over(way, &stream, &flow.meter, Reads::Down).await;
            flow.end(outcome);
        }
    }

    /// Dials, and answers; nothing where it came to nothing.
    async fn dial(self: Arc<Self>, incoming: Incoming) -> Option<(FlowGuard, Stream, Way)> {
        let Incoming { open, stream } = incoming;
        let flow = self.ledger.open(Entry::Egress, open.trace, open.target.clone(), Origin::default());
        flow.goes_by(&stream);
        let started = Instant::now();
        let dialled = tokio::select! {
            dialled = self.dialler.dial(&open.target, open.deadline) => dialled,
            // Nobody waits for it any more.
            refusal = stream.failed() => {
                flow.end(Err(refusal));
                return None;
            }
        };
        match dialled {
            Ok(Dialled { way, address, proxied }) => {
                let ok = OpenOk { address, dial: started.elapsed(), proxied };
                flow.dialled(ok);
                stream.accept(ok);
                Some((flow, stream, way))
            }
            Err(refusal) => {
                tracing::warn!(target = %open.target, trace = format_args!("{:016x}", open.trace), "not dialled: {refusal}");
                stream.refuse(refusal.clone());
                flow.end(Err(refusal));
                None
            }
        }
    }
}

impl Router for Uplink {
    fn open(&self, request: &Request) -> Result<Opened, Refusal> {
        let stream = self.session.open(Open::from(request)).map_err(|refusal| match refusal.code {
            Code::TunnelLost => {
                Refusal::new(Code::NoWorker, format!("not connected to the appliance {}", self.appliance()))
            }
            _ => refusal,
        })?;
        Ok(Opened { stream, carrier: format!("appliance/{}", self.dial.appliance.at.host) })
    }

    fn home(&self, _target: &Target) -> Home {
        self.session.home()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
