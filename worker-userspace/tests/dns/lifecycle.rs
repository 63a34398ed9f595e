//! Ports, start, stop and failure.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dworker::sockets::Sockets;
use dworker::steer::dns::ServerError;
use dworker::steer::names::Prefixes;
use hickory_proto::rr::RecordType;
use tokio::time::Instant;

use crate::support::*;

fn foreign(id: u16) -> Vec<u8> {
    query(id, "www.other.example.", RecordType::A, None)
}

#[tokio::test]
async fn eight_ports_are_ready_and_each_that_is_used_is_made_up_for() {
    many_descriptors();
    let house = House::new(9);
    assert_eq!(house.kernel.offered(), 8);
    assert_eq!(house.kernel.marked.load(Ordering::Relaxed), 8 * 4, "UDP and TCP on both loopback addresses");
    let question = query(1, "vc.corp.example.", RecordType::A, None);
    for used in 1..=260usize {
        if house.kernel.offered() < used {
            break;
        }
        let resolver = IpAddr::from(Ipv4Addr::from_bits(0x7f00_0100 + used as u32));
        let app = house.udp(resolver).await;
        // The second question uses nothing more.
        for _ in 0..2 {
            assert_eq!(addresses(&ask(&app, &question).await), ["240.64.0.1"]);
        }
        let wanted = (8 + used).min(256);
        until(|| house.kernel.offered() == wanted, || format!("{} ports", house.kernel.offered())).await;
    }
    assert_eq!(house.kernel.offered(), 256);
    let distinct: std::collections::HashSet<u16> =
        house.kernel.offered.lock().unwrap().iter().copied().collect();
    assert_eq!(distinct.len(), 256);
}

#[tokio::test]
async fn a_server_that_follows_another_makes_up_for_ports_that_stand_for_resolvers_already() {
    many_descriptors();
    let mut first = House::new(9);
    let question = query(1, "vc.corp.example.", RecordType::A, None);
    let ask_from = async |house: &House, host: u8| {
        let app = house.udp(IpAddr::from(Ipv4Addr::new(127, 0, 1, host))).await;
        assert_eq!(addresses(&ask(&app, &question).await), ["240.64.0.1"]);
    };
    let offers = async |kernel: &Kernel, ports| {
        until(|| kernel.offered() == ports, || format!("{} ports", kernel.offered())).await;
    };
    for host in 1..=8 {
        ask_from(&first, host).await;
    }
    offers(&first.kernel, 16).await;
    let handed_on = Sockets::new(first.sockets.all().unwrap());
    let kernel = first.kernel.clone();
    first.stop();
    first.ended().await.unwrap();

    let second = House::adopt(9, kernel, Prefixes::default(), handed_on).unwrap();
    assert_eq!(second.kernel.offered(), 16);
    // Those of before are silent. Twice as many as stood ready ask anew.
    for host in 9..=24 {
        ask_from(&second, host).await;
        offers(&second.kernel, 8 + usize::from(host)).await;
    }
    ask_from(&second, 1).await;
    assert_eq!(second.kernel.offered(), 32, "it was in use already");
}

#[tokio::test]
async fn a_spare_port_that_fails_is_made_up_for_by_the_next() {
    let house = House::new(9);
    let question = query(1, "vc.corp.example.", RecordType::A, None);
    let ask_from = async |host: u8| {
        let app = house.udp(IpAddr::from(Ipv4Addr::new(127, 0, 1, host))).await;
        assert_eq!(addresses(&ask(&app, &question).await), ["240.64.0.1"]);
    };
    house.kernel.refuse_marks.store(true, Ordering::Relaxed);
    ask_from(1).await;
    ask_from(2).await;
    assert_eq!(house.kernel.offered(), 8);
    house.kernel.refuse_marks.store(false, Ordering::Relaxed);
    ask_from(3).await;
    until(|| house.kernel.offered() == 11, || format!("{} ports", house.kernel.offered())).await;
}

#[tokio::test]
async fn a_kernel_that_takes_no_mark_or_port_is_an_error_at_start() {
    let start = |kernel: &Arc<Kernel>| House::with(53, kernel.clone(), Prefixes::default()).err().unwrap();
    let kernel = Arc::new(Kernel::default());
    kernel.refuse_ports.store(true, Ordering::Relaxed);
    let error = start(&kernel);
    assert!(matches!(error, ServerError::Offer { .. }), "{error}");
    kernel.refuse_marks.store(true, Ordering::Relaxed);
    let error = start(&kernel);
    assert!(matches!(error, ServerError::Mark { .. }), "{error}");
    assert!(error.to_string().contains("permission denied"), "{error}");
}

#[tokio::test]
async fn a_query_in_flight_is_answered_before_the_server_ends() {
    let (udp, _tcp) = bind_both(2, 0).await;
    let addr = udp.local_addr().unwrap();
    let mut house = House::new(addr.port());
    let app = house.udp(addr.ip()).await;
    app.send(&foreign(1)).await.unwrap();
    let mut buffer = [0; 512];
    let (length, source) = udp.recv_from(&mut buffer).await.unwrap();
    house.stop();
    // A new query is not taken any more, once the server has stopped: then its ports are being closed.
    udp.send_to(&reply(&buffer[..length], &["192.0.2.1"]), source).await.unwrap();
    assert_eq!(addresses(&receive(&app).await), ["192.0.2.1"]);
    let port = house.kernel.port_of(addr.ip());
    house.ended().await.unwrap();
    std::net::UdpSocket::bind(("127.0.0.1", port)).expect("the port is free again");
}

#[tokio::test]
async fn a_query_that_never_ends_is_cut_when_the_server_ends() {
    let upstream = Upstream::start(2, 0, |_| vec![]).await;
    let mut house = House::new(upstream.addr.port());
    let app = house.udp(upstream.addr.ip()).await;
    app.send(&foreign(1)).await.unwrap();
    house.until(|counts| counts.forwarded == 1).await;
    tokio::time::pause();
    let start = Instant::now();
    house.stop();
    house.ended().await.unwrap();
    let waited = start.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(3)).contains(&waited), "{waited:?}");
}

#[tokio::test]
async fn a_listener_that_panics_ends_the_server_with_its_words() {
    let house = House::new(53);
    let app = house.udp("127.0.0.2".parse().unwrap()).await;
    house.kernel.panics.store(true, Ordering::Relaxed);
    app.send(&foreign(1)).await.unwrap();
    let error = house.ended().await.unwrap_err();
    assert!(matches!(&error, ServerError::Panicked(text) if text.contains("told to panic")), "{error}");
}
