//! A TUN device in a namespace: one read or write is one IP packet behind a virtio header.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};

use crate::link::End;

/// `struct virtio_net_hdr`, which carries checksum and segmentation offload.
const HEADER: usize = 10;
/// The largest read: an IP packet and its header.
pub(super) const LARGEST: usize = HEADER + 65_535;
/// Packets that wait for the relay. The kernel's default of 500 overflows when the relay is scheduled late.
const RING: libc::c_int = 8192;
/// As Ethernet.
const MTU: libc::c_int = 1500;

#[derive(Debug)]
pub(super) struct Tun {
    file: File,
    name: String,
}

impl Tun {
    /// Makes the device at an end and brings it up. It lives as long as the value.
    pub(super) fn create(end: End<'_>) -> Result<Tun> {
        // A device belongs to the namespace of the thread that opens it.
        let made = end.namespace.within(|| make(end.interface))?;
        let file = made.with_context(|| {
            format!("making the TUN device {} (it needs root, /dev/net/tun and CONFIG_TUN)", end.interface)
        })?;
        Ok(Tun { file, name: end.interface.to_owned() })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Lets the kernel hand over TCP segments larger than the MTU, or has it cut them first.
    pub(super) fn offload(&self, large_segments: bool) -> Result<()> {
        let segments = if large_segments { libc::TUN_F_TSO4 | libc::TUN_F_TSO6 } else { 0 };
        let features = libc::c_ulong::from(libc::TUN_F_CSUM | segments);
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, features) })
            .with_context(|| format!("changing the segmentation offload of the TUN device {}", self.name))
    }

    /// The next packet, behind its header; `None` where there is none now.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(buffer) {
            Ok(n) => Ok(Some(n)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Hands a packet, behind its header, to the device's namespace.
    pub(super) fn deliver(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write(packet).map(drop)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Packets and bytes on the wire for what one read gave.
pub(super) fn on_the_wire(packet: &[u8]) -> (u64, u64) {
    const TCP_DATA_OFFSET: usize = 12;
    let bytes = packet.len().saturating_sub(HEADER);
    let field = |at: usize| usize::from(u16::from_ne_bytes([packet[at], packet[at + 1]]));
    if packet.len() < HEADER || packet[1] == 0 {
        return (1, bytes as u64);
    }
    let (segment, tcp) = (field(4), field(6));
    let Some(offset) = packet.get(HEADER + tcp + TCP_DATA_OFFSET) else { return (1, bytes as u64) };
    let headers = tcp + usize::from(offset >> 4) * 4;
    let packets = bytes.saturating_sub(headers).div_ceil(segment.max(1)).max(1);
    (packets as u64, (bytes + (packets - 1) * headers) as u64)
}

fn make(name: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives until the call returns.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;

    // Any socket of the namespace will do for the interface calls; the port is never used.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    request.ifr_ifru.ifru_mtu = MTU;
    interface(&socket, libc::SIOCSIFMTU, &mut request)?;
    request.ifr_ifru.ifru_metric = RING;
    interface(&socket, libc::SIOCSIFTXQLEN, &mut request)?;
    interface(&socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has just filled in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    interface(&socket, libc::SIOCSIFFLAGS, &mut request)?;
    Ok(file)
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name of a device has 1 to 15 bytes"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn interface(socket: &UdpSocket, call: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the SIOC*IF* calls read and write one `ifreq`, which lives until the call returns.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), call, request) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(gso: u8, segment: u16, tcp_at: u16, length: usize) -> Vec<u8> {
        let mut packet = vec![0; HEADER + length];
        packet[1] = gso;
        packet[4..6].copy_from_slice(&segment.to_ne_bytes());
        packet[6..8].copy_from_slice(&tcp_at.to_ne_bytes());
        // A TCP header of 32 bytes.
        packet[HEADER + usize::from(tcp_at) + 12] = 0x80;
        packet
    }

    #[test]
    fn a_plain_packet_counts_as_itself() {
        assert_eq!(on_the_wire(&packet(0, 0, 20, 1500)), (1, 1500));
    }

    #[test]
    fn a_large_segment_counts_as_the_packets_it_stands_for() {
        // 52 bytes of headers and two and a half segments.
        assert_eq!(on_the_wire(&packet(1, 1448, 20, 52 + 3620)), (3, 3620 + 3 * 52));
    }

    #[test]
    fn a_short_read_is_no_panic() {
        assert_eq!(on_the_wire(&[]), (1, 0));
        assert_eq!(on_the_wire(&[0, 1, 0, 0, 0, 1, 255, 255, 0, 0, 1]), (1, 1));
    }
}
