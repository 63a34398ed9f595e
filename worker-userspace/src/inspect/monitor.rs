//! What happens, as it happens: what `dworker monitor` shows.
//!
//! What must hold: where nobody looks, nothing is made and nothing is kept; nothing waits for who looks. Who reads too
//! slowly loses events and is told how many.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, broadcast};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use utoipa::ToSchema;

use super::ledger::{Flow, Process};
use super::why;
use crate::drain::Drain;
use crate::target::Pattern;
use crate::web::extract::Query;
use crate::web::sse::{self, Sender};
use crate::web::{Kind, Problem};

/// Where events are asked for.
pub const MONITOR: &str = "/api/v1/monitor";
/// Events that wait for a reader.
const QUEUE: usize = 1024;
/// Messages that wait for its connection.
const MESSAGES: usize = 16;
/// Readers at once.
const MOST: usize = 16;
/// After so long without an event the stream says that it is alive.
const QUIET: Duration = Duration::from_secs(15);

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// A captured connection came to the forwarder.
    Steered,
    /// A connection went direct although a rule names it.
    Direct,
    /// The kernel refused a connection.
    Refused,
    /// A connection's target was dialled.
    Opened,
    /// A connection ended in order, or was cut after it had been open.
    Closed,
    /// A connection was not made.
    Failed,
    /// Another node carries a group's new streams, or none does any more.
    Failover,
}

impl What {
    /// All of them.
    pub const ALL: [What; 7] = {
        use What::*;
        [Steered, Direct, Refused, Opened, Closed, Failed, Failover]
    };

    /// The word for it, in JSON too.
    pub fn word(self) -> &'static str {
        match self {
            What::Steered => "steered",
            What::Direct => "direct",
            What::Refused => "refused",
            What::Opened => "opened",
            What::Closed => "closed",
            What::Failed => "failed",
            What::Failover => "failover",
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = MonitorEvent)]
pub struct Happening {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// What kind of thing.
    pub kind: What,
    /// Name or address, and port, of the connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What the application asked `connect()` for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub original: Option<SocketAddr>,
    /// Who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The connection's number, as in `dworker status flow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<u64>,
    /// Who carries it, `group/node`; of a failover the group, with the new primary where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<String>,
    /// The address that was dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub dialled: Option<SocketAddr>,
    /// True where that address is a proxy's, which dialled the target.
    #[serde(default, skip_serializing_if = "is_false")]
    pub proxied: bool,
    /// Why, in a word and, where there is more to say, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What `connect()` failed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    /// Bytes from the opener to the target, and back, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<[u64; 2]>,
}

impl Happening {
    /// One of this kind, now.
    pub fn new(kind: What) -> Happening {
        Happening {
            time: Timestamp::now(),
            kind,
            target: None,
            original: None,
            process: None,
            flow: None,
            carrier: None,
            dialled: None,
            proxied: false,
            reason: None,
            errno: None,
            bytes: None,
        }
    }

    /// What happened to a connection.
    pub(super) fn of(kind: What, flow: &Flow) -> Happening {
        let ended = flow.outcome();
        Happening {
            target: Some(flow.target.to_string()),
            original: flow.origin.original,
            process: flow.origin.process.clone(),
            flow: Some(flow.id),
            carrier: flow.carrier(),
            dialled: flow.dial().map(|dialled| dialled.address),
            proxied: flow.dial().is_some_and(|dialled| dialled.proxied),
            reason: ended.and_then(Result::err).map(ToString::to_string),
            bytes: ended
                .map(|_| [&flow.meter.up, &flow.meter.down].map(|bytes| bytes.load(Ordering::Relaxed))),
            ..Happening::new(kind)
        }
    }

    /// As a line for people.
    pub fn plain(&self) -> String {
        let mut words = vec![format!("{:.3}", self.time), format!("{:<8}", self.kind.word())];
        words.extend(self.target.clone());
        if let Some(Process { pid, comm, .. }) = &self.process {
            words.push(format!("{comm}[{pid}]"));
        }
        let original = self.original.map(|original| original.to_string());
        words.extend(original.filter(|original| Some(original) != self.target.as_ref()));
        words.extend(self.carrier.iter().map(|carrier| format!("carrier {carrier}")));
        let by = if self.proxied { " (a proxy)" } else { "" };
        words.extend(self.dialled.iter().map(|dialled| format!("dialled {dialled}{by}")));
        if let Some([up, down]) = self.bytes {
            words.push(format!("up {}  down {}", super::print::bytes(up), super::print::bytes(down)));
        }
        words.extend(self.flow.iter().map(|flow| format!("flow {flow}")));
        words.extend(self.errno.map(why::errno_name));
        words.extend(self.reason.clone());
        // Names and texts come from others.
        words.join("  ").chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// Takes what happens to all who look. Clones are the same.
#[derive(Debug, Clone)]
pub struct Hub(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sender: broadcast::Sender<Arc<Happening>>,
    places: Arc<Semaphore>,
}

impl Default for Hub {
    fn default() -> Hub {
        Hub(Arc::new(Shared {
            sender: broadcast::Sender::new(QUEUE),
            places: Arc::new(Semaphore::new(MOST)),
        }))
    }
}

impl Hub {
    /// Tells who looks; where nobody does, `what` is not even made.
    pub fn tell(&self, what: impl FnOnce() -> Happening) {
        if self.0.sender.receiver_count() > 0 {
            // The last reader may be gone by now.
            let _ = self.0.sender.send(Arc::new(what()));
        }
    }

    /// Hears what happens from now on.
    pub fn listen(&self) -> broadcast::Receiver<Arc<Happening>> {
        self.0.sender.subscribe()
    }
}

/// Which events are asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    host: Option<String>,
    pid: Option<u32>,
    cgroup: Option<String>,
    kind: Option<String>,
}

/// Which events a reader gets. What is empty or `None` does not matter.
#[derive(Debug, Default)]
struct Filter {
    hosts: Vec<Pattern>,
    pid: Option<u32>,
    cgroups: Vec<u64>,
    kinds: Vec<What>,
}

impl Filter {
    fn of(asked: &Asked, cgroups: Cgroups) -> Result<Filter, Problem> {
        fn all<T>(
            text: Option<&String>,
            field: &'static str,
            read: impl Fn(&str) -> Result<T, String>,
        ) -> Result<Vec<T>, Problem> {
            let words = text.map(|text| text.split(',').map(str::trim)).into_iter().flatten();
            words
                .map(|word| read(word).map_err(|why| Problem::invalid(field, format!("{word:?}: {why}"))))
                .collect()
        }
        let kind = |word: &str| {
            let known: Vec<_> = What::ALL.iter().map(|what| what.word()).collect();
            let found = What::ALL.into_iter().find(|what| what.word() == word);
            found.ok_or_else(|| format!("write some of {}, separated by commas", known.join(", ")))
        };
        Ok(Filter {
            hosts: all(asked.host.as_ref(), "host", |word| {
                word.parse::<Pattern>().map_err(|error| error.to_string())
            })?,
            pid: asked.pid,
            cgroups: match &asked.cgroup {
                None => Vec::new(),
                Some(written) => match written.split(',').map(|id| id.trim().parse()).collect() {
                    Ok(ids) => ids,
                    Err(_) => cgroups(Path::new(written))
                        .map_err(|why| Problem::invalid("cgroup", format!("{written:?}: {why}")))?,
                },
            },
            kinds: all(asked.kind.as_ref(), "kind", kind)?,
        })
    }

    fn takes(&self, happening: &Happening) -> bool {
        let process = happening.process.as_ref();
        // By its name, or by the address that the application had for it.
        let targets = || {
            let original = happening.original.map(|original| original.to_string());
            happening.target.iter().cloned().chain(original).filter_map(|text| why::target(&text).ok())
        };
        (self.kinds.is_empty() || self.kinds.contains(&happening.kind))
            && self.pid.is_none_or(|pid| process.is_some_and(|process| process.pid == pid))
            && (self.cgroups.is_empty()
                || process.is_some_and(|process| self.cgroups.contains(&process.cgroup_id)))
            && (self.hosts.is_empty()
                || targets().any(|target| self.hosts.iter().any(|pattern| pattern.matches(&target))))
    }
}

/// Finds the ids of a cgroup, by its path, and of those that are below it now; blocks.
pub type Cgroups = fn(&Path) -> Result<Vec<u64>, String>;

/// The route. For the control socket only: who looks sees what everybody on this host does.
pub fn router(hub: Hub, cgroups: Cgroups, drain: Drain) -> Router {
    Router::new().route(MONITOR, get(show)).with_state((hub, cgroups, drain))
}

async fn show(
    State((hub, cgroups, drain)): State<(Hub, Cgroups, Drain)>,
    Query(asked): Query<Asked>,
) -> Result<Response, Problem> {
    let filter = spawn_blocking(move || Filter::of(&asked, cgroups)).await;
    let filter = filter.map_err(|panicked| Problem::new(Kind::Internal, panicked.to_string()))??;
    if drain.is_stopping() {
        return Err(Problem::new(Kind::Unavailable, "dworker is stopping"));
    }
    let Ok(place) = hub.0.places.clone().try_acquire_owned() else {
        let detail = format!("{MOST} monitors run already: end one");
        return Err(Problem::new(Kind::Unavailable, detail).retry_after(Duration::from_secs(10)));
    };
    // Before the answer begins: from then on nothing is missed.
    let heard = hub.listen();
    let (sender, response) = sse::channel(MESSAGES);
    let stopping = drain.clone();
    drain.spawn("monitor", async move {
        tokio::select! {
            () = feed(heard, &filter, &sender) => {}
            () = sender.closed() => {}
            () = stopping.stopping() => {}
        }
        drop(place);
    });
    Ok(response)
}

async fn feed(mut heard: broadcast::Receiver<Arc<Happening>>, filter: &Filter, sender: &Sender) {
    // The answer's head goes out with its first bytes.
    let mut alive = sender.keep_alive().await;
    while alive.is_ok() {
        alive = tokio::select! {
            happening = heard.recv() => match happening {
                Ok(happening) if filter.takes(&happening) => sender.wait("event", &*happening).await,
                Ok(_) => Ok(()),
                Err(RecvError::Lagged(lost)) => sender.wait("lost", &lost).await,
                Err(RecvError::Closed) => return,
            },
            () = sleep(QUIET) => sender.wait("alive", &()).await,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    fn happening(target: &str, original: &str, pid: u32, cgroup_id: u64) -> Happening {
        Happening {
            target: Some(target.into()),
            original: original.parse().ok(),
            process: Some(Process { pid, uid: 0, comm: "python3".into(), cgroup_id }),
            ..Happening::new(What::Steered)
        }
    }

    #[test]
    fn a_filter_takes_what_it_names() {
        let vcenter = happening("vcenter.corp.example:443", "240.64.0.1:443", 7, 41);
        let asked = |host: &str, pid, cgroup: &str, kind: &str| {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let asked = Asked { host: some(host), pid, cgroup: some(cgroup), kind: some(kind) };
            Filter::of(&asked, |path| match path.to_str() {
                Some("app.slice") => Ok(vec![40, 41]),
                _ => Err("there is no such cgroup".into()),
            })
        };
        for (host, pid, cgroup, kind, taken) in [
            ("", None, "", "", true),
            ("vcenter.corp.example", None, "", "", true),
            ("*.corp.example", None, "", "", true),
            ("a.example,*.corp.example:443", None, "", "", true),
            ("*.corp.example:80", None, "", "", false),
            ("240.64.0.0/16", None, "", "", true),
            ("10.0.0.0/8", None, "", "", false),
            ("", Some(7), "", "", true),
            ("", Some(8), "", "", false),
            ("", None, "40,41", "", true),
            ("", None, "40", "", false),
            ("", None, "app.slice", "", true),
            ("", None, "", "steered, refused", true),
            ("", None, "", "opened", false),
            ("*.corp.example", Some(8), "", "", false),
        ] {
            let filter = asked(host, pid, cgroup, kind).expect("a filter");
            assert_eq!(filter.takes(&vcenter), taken, "{host} {pid:?} {cgroup} {kind}");
        }
        for (host, cgroup, kind, says) in [
            ("*", "", "", "host"),
            ("", "app", "", "\"app\": there is no such cgroup"),
            ("", "", "opend", "failover"),
        ] {
            let problem = asked(host, None, cgroup, kind).expect_err("no filter");
            assert!(problem.status == 422 && problem.detail.contains(says), "{problem:?}");
        }
        // Of what belongs to nobody it is not known where it happened.
        let failover = Happening::new(What::Failover);
        assert!(!asked("", Some(7), "", "").expect("a filter").takes(&failover));
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_too_slowly_is_told_how_many_events_were_lost() {
        let (hub, drain) = (Hub::default(), Drain::new(Duration::from_secs(1)));
        hub.tell(|| unreachable!("nobody looks"));
        let request = Request::get(format!("{MONITOR}?kind=opened")).body(Body::empty()).unwrap();
        let mut body = router(hub.clone(), |_| Ok(Vec::new()), drain.clone())
            .oneshot(request)
            .await
            .unwrap()
            .into_body();
        let mut next = async || {
            let frame = body.frame().await.expect("a frame").expect("no error");
            String::from_utf8(frame.into_data().expect("data").to_vec()).expect("text")
        };
        assert_eq!(next().await, ":\n\n");
        hub.tell(|| Happening::new(What::Closed));
        hub.tell(|| Happening::new(What::Opened));
        assert!(next().await.contains("\"kind\":\"opened\""), "and not what was not asked for");
        const MANY: usize = 5000;
        for n in 0..MANY {
            hub.tell(|| Happening { flow: Some(n as u64), ..Happening::new(What::Opened) });
        }
        let (mut read, mut lost) = (0, 0);
        while read + lost < MANY {
            let message = next().await;
            match message.strip_prefix("event: lost\ndata: ") {
                Some(count) => lost += count.trim().parse::<usize>().expect("a number"),
                None => read += 1,
            }
        }
        assert_eq!((read + lost, read <= QUEUE + MESSAGES), (MANY, true), "{read} read");
        drain.stop();
        assert!(body.frame().await.is_none(), "it ends with the daemon");
        // Who comes again does not get a stream that ends at once, again and again.
        let request = Request::get(MONITOR).body(Body::empty()).unwrap();
        assert_eq!(router(hub, |_| Ok(Vec::new()), drain).oneshot(request).await.unwrap().status(), 503);
    }
}
