//! A cable with a delay, a rate and a loss of the test's choice.
//!
//! Kernels without netem cannot delay a packet, and the reference machine has none. So the cable between the
//! router and the site can be a pair of TUN devices instead of a veth pair, and a relay of the lab's own carries
//! the packets between them: `link` says when a packet arrives, `relay` is the thread that keeps to it, `tun` is
//! the device.
//!
//! What must hold: a packet is never reordered, never altered, and either delivered or counted as dropped; what
//! is held is bounded; nothing is left behind, because both devices vanish with the [`Path`].
//!
//! The devices have the MTU of Ethernet, so that segments have the sizes of a real wire. Speed comes from
//! segmentation offload: on a path with neither rate nor loss, a TCP segment of up to 64 KiB crosses in one
//! piece. With a rate or a loss the kernel cuts it before the relay sees it, because each packet of the wire
//! has its own turn and its own luck.

mod link;
mod relay;
mod tun;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::link::End;
use relay::{Relay, Relaying};
use tun::Tun;

/// How one direction of a path treats its packets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PathSettings {
    /// Time on the wire, one way, after a packet has been sent whole.
    pub delay: Duration,
    /// Bits per second of IP packets, headers included; `None` sends at once.
    pub rate: Option<u64>,
    /// Chance of each packet to be lost, from 0.0 to 1.0.
    pub loss: f64,
    /// Bytes that may wait for their turn where there is a rate; a packet that finds no room is dropped.
    pub queue: usize,
    /// Seed of the losses: the same packets in the same order meet the same fate.
    pub seed: u64,
}

impl Default for PathSettings {
    /// As a cable: no delay, no limit, no loss.
    fn default() -> PathSettings {
        PathSettings { delay: Duration::ZERO, rate: None, loss: 0.0, queue: 1 << 20, seed: 1 }
    }
}

impl PathSettings {
    /// True where packets may cross in pieces larger than the MTU.
    fn carries_large_segments(&self) -> bool {
        self.rate.is_none() && self.loss == 0.0
    }

    /// The same for the other direction, with luck of its own.
    fn backward(self) -> PathSettings {
        PathSettings { seed: !self.seed, ..self }
    }

    fn check(&self) -> Result<()> {
        ensure!(
            (0.0..=1.0).contains(&self.loss),
            "loss {} is no probability: give one from 0.0 to 1.0",
            self.loss
        );
        ensure!(self.rate != Some(0), "a rate of 0 bits per second carries nothing: use a loss of 1.0");
        Ok(())
    }
}

/// What happened to the packets of one direction. Counts packets as the wire would see them: a segment that
/// crossed in one piece counts as the packets it stands for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathStats {
    /// Packets delivered.
    pub packets: u64,
    /// Bytes of the packets delivered, IP headers included.
    pub bytes: u64,
    /// Packets dropped by `loss`.
    pub lost: u64,
    /// Packets dropped because the queue was full.
    pub overflowed: u64,
    /// Packets that the far device refused (it went down).
    pub refused: u64,
}

/// Two hosts joined by a wire that the test shapes. Dropping it takes the wire away.
#[derive(Debug)]
pub struct Path {
    a: Arc<Tun>,
    b: Arc<Tun>,
    a_to_b: Relaying,
    b_to_a: Relaying,
}

impl Path {
    /// Makes a device at each end, up and without an address, and joins them.
    pub(crate) fn join(a: End<'_>, b: End<'_>, settings: PathSettings) -> Result<Path> {
        settings.check()?;
        let a = Arc::new(Tun::create(a)?);
        let b = Arc::new(Tun::create(b)?);
        a.offload(settings.carries_large_segments())?;
        b.offload(settings.carries_large_segments())?;
        let a_to_b = Relay::start(a.clone(), b.clone(), settings)?;
        let b_to_a = Relay::start(b.clone(), a.clone(), settings.backward())?;
        Ok(Path { a, b, a_to_b, b_to_a })
    }

    /// Changes both directions from now on. Packets already on the wire keep their time of arrival.
    ///
    /// # Errors
    ///
    /// When the settings are wrong or a relay has ended.
    pub fn set(&self, settings: PathSettings) -> Result<()> {
        self.set_each(settings, settings.backward())
    }

    /// As [`Path::set`], with settings for each direction.
    pub fn set_each(&self, a_to_b: PathSettings, b_to_a: PathSettings) -> Result<()> {
        a_to_b.check()?;
        b_to_a.check()?;
        // The offload of a device is about the packets that the kernel sends into it.
        self.a.offload(a_to_b.carries_large_segments())?;
        self.b.offload(b_to_a.carries_large_segments())?;
        self.a_to_b.set(a_to_b)?;
        self.b_to_a.set(b_to_a)
    }

    /// Counts since the start, from the first end to the second and back.
    ///
    /// # Errors
    ///
    /// When a relay has ended.
    pub fn stats(&self) -> Result<(PathStats, PathStats)> {
        Ok((self.a_to_b.stats()?, self.b_to_a.stats()?))
    }
}
