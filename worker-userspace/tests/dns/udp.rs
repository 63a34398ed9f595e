//! Queries by UDP.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dworker::steer::names::Prefixes;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType::{self, AAAA, PTR};

use crate::support::*;

#[tokio::test]
async fn a_proxy_host_is_answered_here_and_the_resolver_never_hears_of_it() {
    let upstream = Upstream::start(2, 0, |query| vec![reply(query, &["192.0.2.1"])]).await;
    let house = House::new(upstream.addr.port());
    let app = house.udp(upstream.addr.ip()).await;
    for (id, name) in [(1, "vc.corp.example."), (2, "A.lab.example."), (3, "VC.corp.example.")] {
        let answered = ask(&app, &query(id, name, RecordType::A, Some(1232))).await;
        let index = if id == 2 { 2 } else { 1 };
        assert_eq!(addresses(&answered), [format!("240.64.0.{index}")]);
        assert_eq!(decode(&answered).id, id);
    }
    for kind in [AAAA, RecordType::HTTPS, RecordType::TXT] {
        let answered = decode(&ask(&app, &query(4, "vc.corp.example.", kind, None)).await);
        assert_eq!((answered.response_code, answered.answers.len()), (ResponseCode::NoError, 0), "{kind}");
    }
    let answered = ask(&app, &query(5, "2.0.64.240.in-addr.arpa.", PTR, None)).await;
    assert_eq!(addresses(&answered), ["a.lab.example."]);
    assert!(upstream.asked().is_empty());
    let counts = house.counts();
    assert_eq!((counts.queries, counts.answered, counts.forwarded), (7, 7, 0));
}

#[tokio::test]
async fn all_else_passes_byte_by_byte_in_both_directions_however_long() {
    let upstream = Upstream::start(2, 0, |query| vec![large_reply(query, 60_000)]).await;
    let house = House::new(upstream.addr.port());
    let app = house.udp(upstream.addr.ip()).await;
    for (id, edns) in [(7, None), (8, Some(65535))] {
        // With something behind the message that no parser would keep.
        let asked = [&query(id, "wWw.other.example.", RecordType::TXT, edns)[..], b"behind"].concat();
        let answered = ask(&app, &asked).await;
        assert_eq!(answered, large_reply(&asked, 60_000));
        assert_eq!(upstream.asked().last(), Some(&asked));
    }
    assert_eq!(house.counts().forwarded, 2);
}

#[tokio::test]
async fn each_port_leads_to_its_own_resolver() {
    let first = Upstream::start(2, 0, |query| vec![reply(query, &["192.0.2.2"])]).await;
    let second = Upstream::start(3, first.addr.port(), |query| vec![reply(query, &["192.0.2.3"])]).await;
    let house = House::new(first.addr.port());
    for (upstream, expected) in [(&first, "192.0.2.2"), (&second, "192.0.2.3")] {
        let app = house.udp(upstream.addr.ip()).await;
        assert_eq!(
            addresses(&ask(&app, &query(1, "www.other.example.", RecordType::A, None)).await),
            [expected]
        );
    }
}

#[tokio::test]
async fn an_application_may_ask_over_ipv6() {
    let upstream = Upstream::start(2, 0, |query| vec![reply(query, &["192.0.2.1"])]).await;
    let house = House::new(upstream.addr.port());
    let app = house.udp_at("::1", house.kernel.port_of(upstream.addr.ip())).await;
    assert_eq!(
        addresses(&ask(&app, &query(1, "vc.corp.example.", RecordType::A, None)).await),
        ["240.64.0.1"]
    );
    assert_eq!(
        addresses(&ask(&app, &query(2, "www.other.example.", RecordType::A, None)).await),
        ["192.0.2.1"]
    );
}

#[tokio::test]
async fn a_resolver_cannot_say_a_synthetic_address() {
    let upstream = Upstream::start(2, 0, |query| vec![reply(query, &["240.64.0.1", "192.0.2.1"])]).await;
    let house = House::new(upstream.addr.port());
    let app = house.udp(upstream.addr.ip()).await;
    let answered = ask(&app, &query(1, "evil.example.", RecordType::A, None)).await;
    assert_eq!(addresses(&answered), ["192.0.2.1"]);
    assert_eq!(house.counts().stripped, 1);
}

/// Guesses of an attacker, late answers, answers to something else: the application would have waited on.
#[tokio::test]
async fn a_reply_to_another_query_is_passed_over() {
    let upstream = Upstream::start(2, 0, |asked| {
        let mut other_id = reply(asked, &["203.0.113.1"]);
        other_id[0] ^= 1;
        let other_name = reply(&query(9, "elsewhere.example.", RecordType::A, None), &["203.0.113.2"]);
        let other_type = reply(&query(9, "www.other.example.", AAAA, None), &[]);
        let echoed = asked.to_vec();
        let folded = reply(&query(9, "WWW.other.EXAMPLE.", RecordType::A, None), &["192.0.2.1"]);
        vec![other_id, other_name, other_type, echoed, vec![], b"x".to_vec(), folded]
    })
    .await;
    let house = House::new(upstream.addr.port());
    let app = house.udp(upstream.addr.ip()).await;
    let answered = ask(&app, &query(9, "www.other.example.", RecordType::A, None)).await;
    assert_eq!(addresses(&answered), ["192.0.2.1"]);
    assert_eq!(
        decode(&answered).queries[0].name.to_ascii(),
        "WWW.other.EXAMPLE.",
        "as the resolver wrote it"
    );
}

#[tokio::test]
async fn an_error_without_the_question_is_a_reply() {
    let upstream = Upstream::start(2, 0, |asked| {
        let mut formerr = asked[..12].to_vec();
        formerr[2] = 0x80;
        formerr[3] = 1;
        formerr[4..12].fill(0);
        vec![formerr]
    })
    .await;
    let house = House::new(upstream.addr.port());
    let app = house.udp(upstream.addr.ip()).await;
    let answered = decode(&ask(&app, &query(1, "www.other.example.", RecordType::A, Some(1232))).await);
    assert_eq!(answered.response_code, ResponseCode::FormErr);
}

#[tokio::test]
async fn a_resolver_that_refuses_is_servfail_at_once() {
    let (_taken, nobody) = nobody().await;
    let house = House::new(nobody.port());
    let app = house.udp(nobody.ip()).await;
    let answered = decode(&ask(&app, &query(3, "www.other.example.", RecordType::A, Some(1232))).await);
    assert_eq!((answered.response_code, answered.id), (ResponseCode::ServFail, 3));
    assert!(answered.recursion_available && answered.edns.is_some() && answered.queries.len() == 1);
    assert_eq!(house.counts().failed, 1);
    assert_eq!(
        addresses(&ask(&app, &query(4, "vc.corp.example.", RecordType::A, None)).await),
        ["240.64.0.1"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_is_silent_is_silence() {
    let upstream = Upstream::start(2, 0, |_| vec![]).await;
    let house = House::new(upstream.addr.port());
    let app = house.udp(upstream.addr.ip()).await;
    let start = tokio::time::Instant::now();
    app.send(&query(1, "www.other.example.", RecordType::A, None)).await.unwrap();
    house.until(|counts| counts.failed == 1).await;
    let waited = start.elapsed();
    assert!((Duration::from_secs(10)..Duration::from_secs(11)).contains(&waited), "{waited:?}");
    let error = app.try_recv(&mut [0; 512]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn queries_in_flight_are_bounded_and_proxy_hosts_are_answered_nevertheless() {
    many_descriptors();
    let upstream = Upstream::start(2, 0, |_| vec![]).await;
    let house = House::new(upstream.addr.port());
    let app = house.udp(upstream.addr.ip()).await;
    for sent in 1..=1100u16 {
        app.send(&query(sent, "www.other.example.", RecordType::A, None)).await.unwrap();
        // No more than the sockets' buffers hold.
        if sent % 100 == 0 {
            house.until(|counts| counts.queries == u64::from(sent)).await;
        }
    }
    house.until(|counts| counts.forwarded + counts.dropped == 1100).await;
    let counts = house.counts();
    assert_eq!((counts.forwarded, counts.dropped, counts.failed), (1024, 76, 0));
    // Also known names only: a new one waits for the disk, so it needs a place.
    let addrs = house.names.lookup(&"vc.corp.example".parse().unwrap()).unwrap().unwrap();
    let answered = ask(&app, &query(1, "vc.corp.example.", RecordType::A, None)).await;
    assert_eq!(addresses(&answered), [addrs.v4.to_string()]);
}

#[tokio::test]
async fn a_name_without_a_rule_or_an_address_is_servfail() {
    let upstream = Upstream::start(2, 0, |_| vec![]).await;
    let prefixes = Prefixes::new("240.64.0.0/30".parse().unwrap(), "2001:2::/64".parse().unwrap()).unwrap();
    let kernel = Arc::new(Kernel::default());
    let house = House::with(upstream.addr.port(), kernel.clone(), prefixes).unwrap();
    let app = house.udp(upstream.addr.ip()).await;
    let ask_for = async |name: &str| decode(&ask(&app, &query(1, name, RecordType::A, None)).await);

    kernel.refuse_rules.store(true, Ordering::Relaxed);
    assert_eq!(ask_for("a.lab.example.").await.response_code, ResponseCode::ServFail);
    kernel.refuse_rules.store(false, Ordering::Relaxed);
    assert_eq!(ask_for("a.lab.example.").await.answers.len(), 1);
    assert_eq!(ask_for("b.lab.example.").await.answers.len(), 1);
    assert_eq!(
        ask_for("c.lab.example.").await.response_code,
        ResponseCode::ServFail,
        "two addresses are all"
    );
    let counts = house.counts();
    assert_eq!((counts.answered, counts.failed), (2, 2));
    assert!(upstream.asked().is_empty());
}

#[tokio::test]
async fn a_port_that_stands_for_no_resolver_answers_nobody() {
    let house = House::new(53);
    let app = house.udp_at("127.0.0.1", house.kernel.spare()).await;
    app.send(&query(1, "vc.corp.example.", RecordType::A, None)).await.unwrap();
    house.until(|counts| counts.dropped == 1).await;
    assert_eq!(house.counts().queries, 0);
}
