//! The lab's path keeps its promises: delay, rate and loss as set, and every byte that TCP sends.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use tests::{Lab, Path, PathSettings, net};

const MS: Duration = Duration::from_millis(1);
/// The router's address on the path; the site refuses what others send.
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 1);
/// Far more than any of the exchanges below takes; a lost one fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

/// A lab with a path, and exchanges over it between the router and the site.
struct World {
    lab: Lab,
}

impl World {
    fn new(settings: PathSettings) -> Result<World> {
        Ok(World { lab: Lab::with_path(settings)? })
    }

    fn path(&self) -> &Path {
        self.lab.path().expect("the lab was made with one")
    }

    /// A datagram socket of the router and one of the site, connected to each other.
    fn datagrams(&self) -> Result<(UdpSocket, UdpSocket)> {
        let router = self.lab.router().within(|| UdpSocket::bind((ROUTER, 0)))??;
        let site = self.lab.site().within(|| UdpSocket::bind((net::SITE.v4, 0)))??;
        router.connect(site.local_addr()?)?;
        site.connect(router.local_addr()?)?;
        for socket in [&router, &site] {
            socket.set_read_timeout(Some(PATIENCE))?;
        }
        Ok((router, site))
    }

    /// A connection from the router to the site.
    fn connection(&self) -> Result<(TcpStream, TcpStream)> {
        let listener = self.lab.site().within(|| TcpListener::bind((net::SITE.v4, 0)))??;
        let address = listener.local_addr()?;
        let router = self.lab.router().within(|| TcpStream::connect_timeout(&address, PATIENCE))??;
        let (site, _) = listener.accept()?;
        for socket in [&router, &site] {
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
        }
        Ok((router, site))
    }

    /// The shortest of some round trips: the scheduler of a busy machine adds to most of them.
    fn round_trip(&self) -> Result<Duration> {
        let (router, site) = self.datagrams()?;
        let mut shortest = PATIENCE;
        for _ in 0..20 {
            let start = Instant::now();
            router.send(b"ping")?;
            site.recv(&mut [0; 8])?;
            site.send(b"pong")?;
            router.recv(&mut [0; 8])?;
            shortest = shortest.min(start.elapsed());
        }
        Ok(shortest)
    }

    /// Sends `length` bytes over TCP both ways at the same time and checks them all.
    fn exchange(&self, length: usize) -> Result<()> {
        let (router, site) = self.connection()?;
        thread::scope(|scope| {
            scope.spawn(|| send(&router, length, 1));
            scope.spawn(|| send(&site, length, 2));
            scope.spawn(|| receive(&site, length, 1));
            scope.spawn(|| receive(&router, length, 2));
        });
        Ok(())
    }

    /// Sends `length` bytes over TCP to the site, checks them all, and tells how long it took.
    fn transfer(&self, length: usize) -> Result<Duration> {
        let (router, site) = self.connection()?;
        let start = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| send(&router, length, 1));
            scope.spawn(|| receive(&site, length, 1));
        });
        Ok(start.elapsed())
    }
}

const BLOCK: usize = 64 << 10;

/// A stream whose bytes depend on their place, so that a shift or a swap shows: each block begins elsewhere in it.
fn pattern(seed: u8) -> Vec<u8> {
    (0..BLOCK + 256).map(|n| (n as u8).wrapping_mul(31) ^ ((n >> 8) as u8) ^ seed).collect()
}

fn send(mut to: &TcpStream, length: usize, seed: u8) {
    let pattern = pattern(seed);
    for number in 0..length / BLOCK {
        to.write_all(&pattern[number % 256..][..BLOCK]).unwrap();
    }
}

fn receive(mut from: &TcpStream, length: usize, seed: u8) {
    let pattern = pattern(seed);
    let mut data = vec![0; BLOCK];
    for number in 0..length / BLOCK {
        from.read_exact(&mut data).unwrap();
        assert!(data == pattern[number % 256..][..BLOCK], "block {number} of stream {seed} arrived changed");
    }
}

#[test]
fn delay_is_kept_and_changes_while_it_runs() -> Result<()> {
    let world = World::new(PathSettings { delay: 20 * MS, ..PathSettings::default() })?;
    let trip = world.round_trip()?;
    assert!((40 * MS..55 * MS).contains(&trip), "{trip:?} instead of 40 ms");
    world.path().set(PathSettings::default())?;
    let trip = world.round_trip()?;
    assert!(trip < 10 * MS, "{trip:?} instead of next to nothing");
    let one_way = PathSettings { delay: 30 * MS, ..PathSettings::default() };
    world.path().set_each(one_way, PathSettings::default())?;
    let trip = world.round_trip()?;
    assert!((30 * MS..40 * MS).contains(&trip), "{trip:?} instead of 30 ms");
    Ok(())
}

#[test]
fn all_bytes_pass_in_spite_of_loss() -> Result<()> {
    let world = World::new(PathSettings { loss: 0.05, ..PathSettings::default() })?;
    world.exchange(2 << 20)?;
    let (to, from) = world.path().stats()?;
    for direction in [to, from] {
        let share = direction.lost as f64 / (direction.lost + direction.packets) as f64;
        assert!((0.02..0.08).contains(&share), "a share of {share} lost instead of 0.05: {direction:?}");
        assert!(direction.bytes >= 2 << 20, "{direction:?}");
    }
    Ok(())
}

#[test]
fn all_bytes_pass_without_loss_and_none_is_dropped() -> Result<()> {
    let world = World::new(PathSettings::default())?;
    world.exchange(16 << 20)?;
    let (to, from) = world.path().stats()?;
    for direction in [to, from] {
        assert_eq!((direction.lost, direction.overflowed, direction.refused), (0, 0, 0), "{direction:?}");
        // The counts are those of a wire, whose packets are no larger than its MTU.
        assert!(direction.bytes >= 16 << 20 && direction.bytes <= direction.packets * 1500, "{direction:?}");
    }
    Ok(())
}

#[test]
fn rate_is_kept() -> Result<()> {
    let rate = 40_000_000;
    let world = World::new(PathSettings { rate: Some(rate), queue: 256 << 10, ..PathSettings::default() })?;
    let length = 4 << 20;
    let ideal = Duration::from_secs_f64(length as f64 * 8.0 / rate as f64);
    let took = world.transfer(length)?;
    assert!(took >= ideal, "{took:?}, which is faster than the rate allows: {ideal:?}");
    assert!(took < 5 * ideal, "{took:?} instead of {ideal:?}");
    Ok(())
}

#[test]
fn a_full_queue_drops() -> Result<()> {
    // A second for each datagram of 1028 bytes, so the queue is full before the first has gone.
    let world =
        World::new(PathSettings { rate: Some(8 * 1028), queue: 3 * 1028, ..PathSettings::default() })?;
    let (router, site) = world.datagrams()?;
    for _ in 0..100 {
        router.send(&[0; 1000])?;
    }
    assert_eq!(site.recv(&mut [0; 1500])?, 1000);
    let (to, _) = world.path().stats()?;
    assert!(to.overflowed >= 90, "{to:?}");
    Ok(())
}

#[test]
fn a_long_path_carries_a_fast_stream() -> Result<()> {
    let world = World::new(PathSettings { delay: 25 * MS, ..PathSettings::default() })?;
    // A window for a gigabit over 50 ms; the kernel's default of 4 MB allows half of it.
    for host in [world.lab.router(), world.lab.site()] {
        host.netns().sysctl("net/ipv4/tcp_wmem", "4096 65536 67108864")?;
        host.netns().sysctl("net/ipv4/tcp_rmem", "4096 131072 67108864")?;
    }
    let length = 256 << 20;
    let took = world.transfer(length)?;
    let rate = length as f64 * 8.0 / took.as_secs_f64() / 1e6;
    println!("one TCP stream over 50 ms: {rate:.0} Mbit/s");
    // A quiet machine carries ten times as much; this only says that the path is not what limits a test.
    assert!(rate > 150.0, "{rate:.0} Mbit/s over 50 ms");
    Ok(())
}

#[test]
fn a_lab_with_a_path_keeps_its_rules() -> Result<()> {
    let world = World::new(PathSettings::default())?;
    let lab = &world.lab;
    for (appliance, site) in net::APPLIANCE.both().into_iter().zip(net::SITE.both()) {
        let _tunnel = lab.appliance().within(|| TcpListener::bind((appliance, 443)))??;
        let _inbound = lab.site().within(|| TcpListener::bind((site, 443)))??;
        lab.site().within(|| TcpStream::connect_timeout(&(appliance, 443).into(), PATIENCE))??;
        let inbound = lab.appliance().within(|| TcpStream::connect_timeout(&(site, 443).into(), PATIENCE))?;
        let refused = Some(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(inbound.err().map(|error| error.kind()), refused, "{site} is closed");
    }
    Ok(())
}

#[test]
fn wrong_settings_are_refused_and_change_nothing() -> Result<()> {
    let world = World::new(PathSettings::default())?;
    let plain = PathSettings::default();
    for (wrong, says) in [
        (PathSettings { loss: -0.1, ..plain }, "-0.1"),
        (PathSettings { loss: 1.1, ..plain }, "1.1"),
        (PathSettings { loss: f64::NAN, ..plain }, "NaN"),
        (PathSettings { rate: Some(0), ..plain }, "0 bits per second"),
    ] {
        let error = world.path().set(wrong).expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    }
    world.round_trip().map(drop)
}
