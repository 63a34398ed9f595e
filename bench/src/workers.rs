//! Many workers in one process: to the appliance each is one, with a key, a session and lanes of its own, made of
//! dworker's own uplink. Only what a process is beyond that is there once: so thousands fit on one machine.

use std::io::BufRead;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dworker::config::Key;
use dworker::drain::Drain;
use dworker::egress::dial::Dialler;
use dworker::egress::policy::Policy;
use dworker::inspect::ledger::Ledger;
use dworker::route::Router;
use dworker::target::Target;
use dworker::tunnel::dial::{Appliance, Words};
use dworker::tunnel::handshake::{Dial, authorization};
use dworker::tunnel::lane::Settings;
use dworker::tunnel::message::Hello;
use dworker::tunnel::tls;
use dworker::worker::{Parts, Uplink};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Of each worker, as a worker's configuration has it by default.
const LANES: u8 = 2;
/// Workers that connect at the same time: an appliance lets so many strangers of one address in.
const AT_ONCE: usize = 16;
/// How long one may take to connect.
const UP: Duration = Duration::from_secs(60);

/// Workers of one appliance, whose keys are the lines of standard input. Prints `up` once all are connected.
#[derive(Debug, clap::Args)]
pub(crate) struct Workers {
    /// The appliance.
    #[arg(long)]
    appliance: SocketAddr,
    /// The authority that its certificate is checked with.
    #[arg(long)]
    ca: PathBuf,
}

impl Workers {
    /// Keeps them connected until it is killed.
    pub(crate) async fn run(&self) -> Result<()> {
        let authorities = CertificateDer::pem_file_iter(&self.ca)?.collect::<Result<Vec<_>, _>>()?;
        let host = self.appliance.ip().to_string().parse()?;
        let appliance = Appliance {
            at: Target { host, port: self.appliance.port() },
            tls: Some(tls::client(authorities)?),
            words: Words::CONFIGURATION,
        };
        let (settings, drain) = (Settings::default(), Drain::new(Duration::ZERO));
        let (places, mut connecting) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
        for line in std::io::stdin().lock().lines() {
            let key: Key = line?.parse().context("a key")?;
            let uplink = Uplink::new(Parts {
                dial: Dial {
                    appliance: appliance.clone(),
                    key: authorization(key.reveal()).context("a key")?,
                    proxy: None,
                },
                hello: Hello::of(rand::random(), "simulated".into(), settings.max_streams),
                lanes: LANES,
                settings: settings.clone(),
                dialler: Dialler::new(Policy::new(None, &[]), UP),
                ledger: Ledger::default(),
                drain: drain.clone(),
            });
            let places = places.clone();
            connecting.spawn(async move {
                let _place = places.acquire().await?;
                uplink.start();
                match timeout(UP, connected(&uplink)).await {
                    Ok(()) => Ok(()),
                    Err(_) => bail!("not connected within {UP:?}: {}", uplink.problem().unwrap_or_default()),
                }
            });
        }
        while let Some(connected) = connecting.join_next().await {
            connected??;
        }
        println!("up");
        std::future::pending().await
    }
}

/// Waits until all lanes of a worker are up.
async fn connected(uplink: &Uplink) {
    let mut changes = uplink.changes();
    while uplink.session().lanes().len() < usize::from(LANES) {
        if changes.changed().await.is_err() {
            return;
        }
    }
}
