//! How a target that can't be dialled fails: what an application sees of it, and what both ends say.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use nix::errno::Errno;
use serde_json::Value;

use crate::daemon::Daemon;
use crate::topology::Lab;
use crate::traffic::{Connect, Report};

const SOON: Duration = Duration::from_secs(30);

/// One way for a target to fail.
#[derive(Debug, Clone, Copy)]
pub struct Failing {
    /// What `connect()` fails with.
    pub errno: Errno,
    /// The word in `status` and in the log.
    pub state: &'static str,
    /// What the reason says.
    pub reason: &'static str,
}

/// A target as `status` shows it.
pub fn shown(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, port).to_string(),
        Err(_) => format!("{host}:{port}"),
    }
}

impl Report {
    /// True where it was connected, and reset before anything came.
    pub fn is_reset(&self) -> bool {
        self.failure.is_none() && self.received == 0 && self.end == "ECONNRESET"
    }
}

impl Lab {
    /// Connects twice in a row: the first is reset, the second fails in `connect()`.
    ///
    /// # Panics
    /// It fails in another way.
    pub fn assert_fails(&self, host: &str, port: u16, errno: Errno) -> Result<()> {
        let target = shown(host, port);
        let reports = Connect::to(host, port).times(2).captured(self.appliance())?;
        let [first, second] = &reports[..] else { panic!("{target}: {reports:?}") };
        assert!(first.is_reset(), "{target}: {first:?}");
        assert_eq!(second.failure.as_deref(), Some(format!("{errno:?}").as_str()), "{target}: {second:?}");
        Ok(())
    }
}

impl Daemon {
    /// Waits until the connection to this target has failed so, and gives what `status` shows of it.
    ///
    /// # Panics
    /// The reason is another one.
    pub fn wait_for_failing(&self, host: &str, port: u16, failing: &Failing) -> Result<Value> {
        let flow = self.wait_for_flow(&shown(host, port), failing.state, SOON)?;
        assert!(flow["reason"].as_str().is_some_and(|reason| reason.contains(failing.reason)), "{flow:#}");
        Ok(flow)
    }
}
