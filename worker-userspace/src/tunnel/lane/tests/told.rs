//! Roles and policies on a lane: their order with what is opened, and peers that know nothing of them.

use super::*;
use crate::target::Pattern;
use crate::tunnel::message::Role;
use crate::tunnel::policy::{Assembly, MAX_PATTERNS};

fn push(epoch: u64, count: usize) -> Arc<Push> {
    let host = |n: usize| format!("host-{n}.epoch-{epoch}.example").parse::<Pattern>().unwrap();
    Arc::new(Push::new(epoch, &(0..count).map(host).collect::<Vec<_>>()).unwrap())
}

fn role(epoch: u64, role: Role) -> RoleIs {
    RoleIs { epoch, role }
}

/// The appliance's end of a lane whose worker announces `capabilities`, and the worker's.
fn appliance(capabilities: Capabilities, io: DuplexStream) -> (Lane, JoinHandle<LaneEnd>) {
    let upgraded = Upgraded::new(io, Side::Server, BytesMut::new());
    let peer = Hello { capabilities, ..hello(1000) };
    let (lane, _, driver) = Lane::new(upgraded, peer, Settings::default());
    (lane, tokio::spawn(driver))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_opened_finds_all_that_was_told_before_it() {
    let (mut worker, appliance) = pair(Settings::default());
    let lane = appliance.lane.clone();
    let telling = tokio::spawn(async move {
        for epoch in 1..3000 {
            lane.tell_role(role(epoch, if epoch % 2 == 0 { Role::Primary } else { Role::Standby }));
            // Now and then one that takes many messages.
            lane.tell_policy(&push(epoch, if epoch % 500 == 0 { MAX_PATTERNS } else { 3 }));
            let opened = lane.open(Open { trace: epoch, ..open_request() }).unwrap();
            opened.send(BytesMut::from(&b"at once"[..]));
            opened.opened().await.unwrap_err();
        }
    });
    let told = worker.lane.told();
    while let Some(Incoming { open, stream }) = worker.incoming.recv().await {
        {
            let told = told.borrow();
            let policy = told.policy.as_ref().unwrap();
            assert!(policy.epoch >= open.trace && told.role.unwrap().epoch >= open.trace);
            assert!(policy.patterns[0].to_string().ends_with(&format!(".epoch-{}.example", policy.epoch)));
        }
        stream.refuse(Refusal::new(Code::Refused, "that was all"));
        if open.trace == 2999 {
            break;
        }
    }
    telling.await.unwrap();
}

/// The lane's socket takes nothing for a while; the appliance's administrator is busy meanwhile.
#[tokio::test(start_paused = true)]
async fn of_what_waits_only_the_newest_is_sent() {
    let (near, far) = duplex(100);
    let (lane, _task) = appliance(Capabilities::OURS, near);
    lane.tell_role(role(1, Role::Standby));
    lane.tell_policy(&push(1, 1000));
    tokio::time::sleep(Duration::from_secs(1)).await;
    for epoch in 2..=1000 {
        lane.tell_role(role(epoch, Role::Primary));
        lane.tell_policy(&push(epoch, 2));
    }
    // Who comes too late changes nothing.
    lane.tell_role(role(999, Role::Standby));
    lane.tell_policy(&push(999, 2));
    let _stream = lane.open(open_request()).unwrap();
    let (mut peer, mut assembly) = (Peer::new(far), Assembly::default());
    let (mut roles, mut policies) = (Vec::new(), Vec::new());
    loop {
        match peer.hear().await.expect("the lane lives") {
            (Type::Role, told) => roles.push(RoleIs::read(&told).unwrap()),
            (Type::Policy, part) => policies.extend(assembly.add(&part).unwrap().map(|policy| policy.epoch)),
            (Type::Open, _) => break,
            (kind, _) => assert_eq!(kind, Type::Ping),
        }
    }
    assert_eq!(roles, [role(1, Role::Standby), role(1000, Role::Primary)]);
    assert_eq!(policies, [1, 1000]);
}

#[tokio::test]
async fn who_announced_nothing_is_told_nothing() {
    for (capabilities, told) in [
        (Capabilities::default(), vec![Type::Open]),
        (Capabilities::ROLE, vec![Type::Role, Type::Open]),
        (Capabilities::POLICY, vec![Type::Policy, Type::Open]),
    ] {
        let (near, far) = duplex(1 << 16);
        let (lane, _task) = appliance(capabilities, near);
        lane.tell_role(role(1, Role::Primary));
        lane.tell_policy(&push(1, 2));
        let _stream = lane.open(open_request()).unwrap();
        let (mut peer, mut heard) = (Peer::new(far), Vec::new());
        while heard.last() != Some(&Type::Open) {
            heard.push(peer.hear().await.expect("the lane lives").0);
        }
        heard.retain(|kind| *kind != Type::Ping);
        assert_eq!(heard, told);
    }
}

/// A policy of the largest size on a path on which it takes longer than a peer may be silent.
#[tokio::test(start_paused = true)]
async fn a_large_policy_on_a_slow_path_costs_nobody_the_lane() {
    let ((near, mut slow_near), (mut slow_far, far)) = (duplex(4096), duplex(4096));
    let (lane, at_appliance) = appliance(Capabilities::OURS, near);
    let worker = end(far, Side::Client, Settings::default());
    // 64 KiB a second there, nothing in the way back.
    tokio::spawn(async move {
        let (mut down, mut up) = (vec![0; 4096], vec![0; 4096]);
        loop {
            tokio::select! {
                n = slow_near.read(&mut down) => {
                    let n = n.unwrap();
                    slow_far.write_all(&down[..n]).await.unwrap();
                    tokio::time::sleep(Duration::from_secs(1) * n as u32 / 65536).await;
                }
                n = slow_far.read(&mut up) => {
                    let n = n.unwrap();
                    slow_near.write_all(&up[..n]).await.unwrap();
                }
            }
        }
    });
    let before = Instant::now();
    lane.tell_policy(&push(7, MAX_PATTERNS));
    let mut told = worker.lane.told();
    let epoch = told.wait_for(|told| told.policy.is_some()).await.unwrap().policy.as_ref().unwrap().epoch;
    assert_eq!(epoch, 7);
    assert!(before.elapsed() > Settings::default().dead, "too fast to show anything: {:?}", before.elapsed());
    assert!(!at_appliance.is_finished() && !worker.task.is_finished());
}

#[tokio::test]
async fn an_older_epoch_on_the_same_lane_is_ignored() {
    let (near, far) = duplex(1 << 16);
    let worker = end(near, Side::Client, Settings::default());
    let mut appliance = Peer::new(far);
    let mut told = worker.lane.told();
    for (epoch, word) in [(5, Role::Primary), (4, Role::Standby), (6, Role::Standby)] {
        let mut fields = BytesMut::new();
        role(epoch, word).write(&mut fields);
        appliance.tell(frame_bytes(0, Type::Role, &fields)).await;
        let policy = push(epoch, 1);
        appliance.tell(BytesMut::from(&policy.part(0).unwrap()[..])).await;
        if epoch != 4 {
            told.wait_for(|told| told.policy.as_ref().is_some_and(|policy| policy.epoch == epoch))
                .await
                .unwrap();
        }
        assert_eq!(
            told.borrow().role,
            Some(role(epoch.max(5), if epoch == 6 { word } else { Role::Primary }))
        );
    }
}

#[tokio::test]
async fn a_peer_that_breaks_the_bounds_of_a_policy_loses_its_lane_with_a_reason() {
    let part = |number: u32, texts: usize| {
        let mut fields = BytesMut::new();
        let mut put = |tag: u8, value: &[u8]| {
            fields.put_u8(tag);
            fields.put_u16(value.len() as u16);
            fields.put_slice(value);
        };
        put(1, &[0; 8]);
        put(2, &number.to_be_bytes());
        put(3, &[0]);
        (0..texts).for_each(|n| put(4, format!("{n}.example").as_bytes()));
        frame_bytes(0, Type::Policy, &fields)
    };
    let cases: [(&str, Vec<BytesMut>); 4] = [
        ("a POLICY of more than 20000 patterns", (0..101).map(|number| part(number, 200)).collect()),
        ("POLICY part 2 of epoch 0 instead of part 1 of epoch 0", vec![part(0, 1), part(2, 1)]),
        ("POLICY without its field 1", vec![frame_bytes(0, Type::Policy, b"")]),
        ("ROLE without its field 2", vec![frame_bytes(0, Type::Role, b"")]),
    ];
    for (says, frames) in cases {
        let (near, mut far) = duplex(1 << 22);
        let worker = end(near, Side::Client, Settings::default());
        for frame in frames {
            let mut wire = BytesMut::new();
            websocket::put_header(&mut wire, Opcode::Binary, frame.len(), None);
            wire.extend_from_slice(&frame);
            far.write_all(&wire).await.unwrap();
        }
        let reason = worker.task.await.unwrap();
        assert!(reason.is_fault() && reason.to_string().contains(says), "{reason} without {says:?}");
    }
}
