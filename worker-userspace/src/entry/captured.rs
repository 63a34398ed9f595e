//! The forwarder: accepts captured connections and opens a stream for each.
//!
//! What must hold: only what the kernel sent here gets a stream, a process that connects by itself gets a
//! reset; what could not be dialled is a reset and, for a moment, an errno in `connect()`, never a clean
//! end; a worker that is just being restarted is waited for.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};

use super::DIAL;
use crate::accept;
use crate::carry::Carry;
use crate::drain::Drain;
use crate::inspect::ledger::{Entry, FlowGuard, Ledger, Origin, Process};
use crate::refusal::{Code, Refusal};
use crate::route::Router;
use crate::splice::reset_on_close;
use crate::steer::kernel::Arrival;
use crate::steer::steering::Steering;
use crate::target::Target;
use crate::threads::{self, Threads};

/// The forwarder.
pub struct Forwarder {
    /// What captures.
    pub steering: Arc<Steering>,
    /// What carries.
    pub router: Arc<dyn Router>,
    /// Where connections are written down.
    pub ledger: Ledger,
    /// Where lanes live.
    pub threads: Threads,
    /// Stops it.
    pub drain: Drain,
}

impl Forwarder {
    /// Accepts connections until the drain begins.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let port = match listener.local_addr() {
            Ok(address) => address.port(),
            Err(error) => return tracing::error!("the forwarder's listener has no address: {error}"),
        };
        let take = |socket, source| self.accept(socket, port, source);
        accept::each(&listener, &self.drain, "a captured connection", take).await;
    }

    fn accept(self: &Arc<Self>, socket: TcpStream, port: u16, source: SocketAddr) {
        // Whatever happens before the splice ends in order, the application must see a reset.
        reset_on_close(&socket);
        let record = match self.steering.take_flow(port, source, socket.as_fd()) {
            Arrival::Captured(record) => record,
            Arrival::Gone => {
                return tracing::debug!(%source, "a connection was reset before it was accepted");
            }
            Arrival::Foreign if self.steering.is_own(source) => return,
            Arrival::Foreign => {
                return tracing::warn!(%source, "reset a connection to the forwarder that the kernel did not send here");
            }
        };
        let process = Process {
            pid: record.process.id,
            uid: record.process.uid,
            comm: record.process.command.clone(),
            cgroup_id: record.cgroup,
        };
        let original = record.target;
        let Some(host) = self.steering.host_of(&record) else {
            return tracing::warn!(%original, process = %record.process, "reset: no name has this synthetic address");
        };
        let target = Target { host, port: original.port() };
        let origin = Origin {
            original: Some(original),
            process: Some(process),
            source: Some(source),
            ..Origin::default()
        };
        let trace = rand::random();
        let flow = self.ledger.open(Entry::Captured, trace, target, origin);
        self.place(socket, flow);
    }

    /// Carries a connection where its lane lives, most likely.
    fn place(self: &Arc<Self>, socket: TcpStream, flow: FlowGuard) {
        const WHAT: &str = "captured connection";
        let home = self.router.home(&flow.target);
        let Some(number) = home.filter(|_| home != threads::current()) else {
            return self.drain.spawn(WHAT, self.clone().carry(socket, flow));
        };
        let forwarder = self.clone();
        self.drain.spawn_on(&self.threads.at(number), WHAT, async move {
            match threads::take(socket) {
                Ok(socket) => forwarder.carry(socket, flow).await,
                Err(error) => {
                    let refusal = Refusal::from_io(&error, "placing the connection");
                    forwarder.failed(&flow, &refusal);
                    flow.end(Err(refusal));
                }
            }
        });
    }

    #[allow(clippy::manual_async_fn, reason = "an async fn has room for its arguments twice")]
    fn carry(
        self: Arc<Self>,
        mut socket: TcpStream,
        flow: FlowGuard,
    ) -> impl Future<Output = ()> + Send + 'static {
        async move {
            let carry = Carry { router: &*self.router, flow: &flow, deadline: DIAL };
            let outcome = carry.socket(&mut socket).await;
            if let Err(refusal) = &outcome {
                self.failed(&flow, refusal);
            }
            flow.end(outcome);
            // Closed last: an application that is reset and tries again at once must find the errno in place.
            drop(socket);
        }
    }

    fn failed(&self, flow: &FlowGuard, refusal: &Refusal) {
        self.remember(flow, refusal);
        let process =
            flow.origin.process.as_ref().map(|p| format!("{}[{}]", p.comm, p.pid)).unwrap_or_default();
        let original = flow.origin.original.map(|address| address.to_string()).unwrap_or_default();
        tracing::warn!(target = %flow.target, %original, %process, trace = format_args!("{:016x}", flow.trace), "{refusal}");
    }

    /// The next `connect()` gets the errno that this one should have had.
    fn remember(&self, flow: &FlowGuard, refusal: &Refusal) {
        let about_target = matches!(
            refusal.code,
            Code::Refused
                | Code::Timeout
                | Code::HostUnreachable
                | Code::NetUnreachable
                | Code::NameNotFound
                | Code::ResolveFailed
                | Code::Denied
                | Code::ProxyDenied
                | Code::ProxyDown
        );
        if let (true, false, Some(original)) = (about_target, flow.is_dialled(), flow.origin.original) {
            self.steering.set_down(original, refusal.connect_errno());
        }
    }
}
