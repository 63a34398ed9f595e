//! The bare forwarder: takes the connections that the kernel leads to it, asks where they were to go, connects there and
//! copies. So that ways of leading connections elsewhere are compared, and nothing behind them.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dworker::steer::kernel::{Arrival, Kernel};
use dworker::steer::probe;
use dworker::steer::programs::Programs;
use dworker::steer::rules::{Rule, Rules};
use ipnet::{Ipv4Net, Ipv6Net};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::pipe::copy;

/// Where connections wait that were not accepted yet.
const BACKLOG: u32 = 4096;

/// A bare forwarder.
#[derive(Debug, clap::Args)]
pub(crate) struct Forward {
    /// Where it listens.
    #[arg(long)]
    listen: SocketAddr,
    /// dworker's programs lead connections of this cgroup here; without it, nftables does.
    #[arg(long, requires = "host")]
    cgroup: Option<PathBuf>,
    /// Those to this host.
    #[arg(long)]
    host: Option<IpAddr>,
}

/// By what connections are led here.
enum Led {
    Programs(Box<Programs>),
    Redirect,
}

impl Forward {
    /// Serves until it is killed.
    pub(crate) async fn run(&self) -> Result<()> {
        let socket = TcpSocket::new_v4()?;
        // What it accepts inherits this.
        socket.set_nodelay(true)?;
        socket.bind(self.listen)?;
        let listener = socket.listen(BACKLOG)?;
        let led = match (&self.cgroup, self.host) {
            (Some(cgroup), Some(host)) => Led::Programs(Box::new(steer(&listener, cgroup, host)?)),
            _ => Led::Redirect,
        };
        println!("listening");
        loop {
            let (near, source) = listener.accept().await?;
            let Some(target) = led.target(&near, self.listen.port(), source)? else { continue };
            tokio::spawn(async move {
                let far = TcpStream::connect(target).await?;
                far.set_nodelay(true)?;
                copy(near, far).await
            });
        }
    }
}

impl Led {
    /// Where a connection was to go; `None` where nobody led it here.
    fn target(&self, near: &TcpStream, port: u16, source: SocketAddr) -> Result<Option<SocketAddr>> {
        match self {
            Led::Programs(programs) => Ok(match programs.take_flow(port, source, near.as_fd())? {
                Arrival::Captured(record) => Some(record.target),
                // The programs' own, which tells them who we are.
                Arrival::Gone | Arrival::Foreign => None,
            }),
            Led::Redirect => {
                let target = SockRef::from(near).original_dst_v4().context("SO_ORIGINAL_DST")?;
                Ok(target.as_socket())
            }
        }
    }
}

/// Has dworker's programs lead this cgroup's connections to a host here. All ends with this process.
fn steer(listener: &TcpListener, cgroup: &Path, host: IpAddr) -> Result<Programs> {
    let synthetic: (Ipv4Net, Ipv6Net) = ("240.64.0.0/16".parse()?, "2001:2::/48".parse()?);
    let rule = Rule { number: NonZeroU32::MIN, group: 0, pattern: host.to_string().parse()? };
    let rules = Rules::new(&[rule], synthetic).map_err(|faults| anyhow::anyhow!("the rule: {faults:?}"))?;
    let programs = Programs::load(None)?;
    programs.mark_listener(listener.as_fd())?;
    programs.set_listeners(listener.local_addr()?.port(), 0)?;
    programs.set_synthetic(synthetic.0, synthetic.1)?;
    for (net, entry) in rules.prefixes() {
        programs.put_rules(*net, entry)?;
    }
    programs.attach(&probe::cgroups(&[cgroup.to_owned()])?)?;
    programs.settle()?;
    Ok(programs)
}
