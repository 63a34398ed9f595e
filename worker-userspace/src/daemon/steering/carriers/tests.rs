//! The registry's rosters and lanes, followed into a kernel that is not one. The clock is paused.

use std::fs;

use bytes::BytesMut;
use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::appliance::registry::Connected;
use crate::appliance::roster::{self, Roster, ValidKey};
use crate::config::Key;
use crate::steer::steering::tests::House;
use crate::tunnel::lane::{Lane, Settings, Upgraded};
use crate::tunnel::message::Hello;
use crate::tunnel::websocket::Side;

const REFUSED: Result<Option<String>, i32> = Err(libc::EHOSTUNREACH);
const DIRECT: Result<Option<String>, i32> = Ok(None);

/// An appliance that began with no groups.
struct Appliance {
    registry: Arc<Registry>,
    house: House,
    keys: [Key; 3],
    drain: Drain,
}

impl Appliance {
    fn new() -> Appliance {
        let registry = Registry::new(Duration::from_secs(1), Duration::from_secs(1), Box::new(()));
        let (registry, house) = (Arc::new(registry), House::new(vec![], ""));
        let drain = Drain::new(Duration::from_secs(1));
        let carriers = Carriers::Registry(registry.clone());
        let now = carriers.now();
        assert!(now.steered().is_empty());
        drain.spawn("carriers", follow(carriers, now, house.steering.clone(), drain.clone()));
        Appliance { registry, house, keys: [(); 3].map(|()| Key::generate().unwrap()), drain }
    }

    /// The groups with these ids carry these.
    fn apply(&self, groups: &[(i64, &[&str])]) {
        let group = |(id, hosts): &(i64, &[&str])| roster::Group {
            id: *id,
            name: format!("site-{id}"),
            keys: vec![ValidKey { hash: self.keys[*id as usize].hash(), until: None }],
            proxy_hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            may_open: false,
            nodes: Vec::new(),
        };
        self.registry.apply(Roster { groups: groups.iter().map(group).collect(), ..Roster::default() });
    }

    /// A worker of a group.
    fn join(&self, group: usize) -> (Connected, DuplexStream) {
        let hello = Hello { node: [group as u8; 16], ..Hello::sample() };
        // Nobody answers at the other end.
        let settings = Settings { dead: Duration::from_secs(86_400), ..Settings::default() };
        let (near, far) = duplex(1 << 16);
        let (lane, _, driver) =
            Lane::new(Upgraded::new(near, Side::Server, BytesMut::new()), hello, settings);
        tokio::spawn(driver);
        let admission = self.registry.authenticate(self.keys[group].reveal()).expect("the key works");
        (self.registry.connect(admission, lane, ([192, 0, 2, 1], 40_000).into()).unwrap(), far)
    }

    /// Waits until connect() to an address does this; returns how long it took.
    async fn until(&self, to: &str, expected: &Result<Option<String>, i32>) -> Duration {
        let start = Instant::now();
        loop {
            let found = self.house.connect(to);
            if found == *expected {
                return start.elapsed();
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{to}: {found:?} and not {expected:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn steered(host: &str) -> Result<Option<String>, i32> {
    Ok(Some(host.to_owned()))
}

const SOON: Duration = Duration::from_millis(100);

#[tokio::test(start_paused = true)]
async fn what_the_roster_says_is_steered_and_refused_while_nobody_carries_it() {
    let appliance = Appliance::new();
    let [one, two] = ["10.0.0.1", "10.0.0.2"];
    let [to_one, to_two] = [one, two].map(|host| format!("{host}:443"));
    assert_eq!(appliance.house.connect(&to_one), DIRECT);
    appliance.apply(&[(1, &[one]), (2, &[])]);
    assert!(appliance.until(&to_one, &steered(one)).await < SOON);
    let took = appliance.until(&to_one, &REFUSED).await;
    assert!(took > GRACE - SOON && took < GRACE + SOON, "a worker may be on its way: {took:?}");

    let joined = appliance.join(1);
    assert!(appliance.until(&to_one, &steered(one)).await < SOON);
    // Another one's change does not disturb it, and it gets a time of its own.
    tokio::time::sleep(Duration::from_secs(10)).await;
    appliance.apply(&[(2, &[two]), (1, &[one])]);
    assert!(appliance.until(&to_two, &steered(two)).await < SOON);
    let took = appliance.until(&to_two, &REFUSED).await;
    assert!(took > GRACE - SOON && took < GRACE + SOON, "{took:?}");
    assert_eq!(appliance.house.connect(&to_one), steered(one));

    drop(joined);
    let took = appliance.until(&to_one, &REFUSED).await;
    assert!(took > GRACE - SOON && took < GRACE + SOON, "{took:?}");
    // What passes to one that is down is refused, and what returns has its time again.
    appliance.apply(&[(2, &[one])]);
    assert!(appliance.until(&to_two, &DIRECT).await < SOON);
    assert_eq!(appliance.house.connect(&to_one), REFUSED);
    appliance.apply(&[]);
    assert!(appliance.until(&to_one, &DIRECT).await < SOON);
    appliance.apply(&[(1, &[one]), (2, &[two])]);
    assert!(appliance.until(&to_two, &steered(two)).await < SOON);
    assert_eq!(appliance.house.connect(&to_one), steered(one));
    appliance.drain.stop();
}

#[tokio::test(start_paused = true)]
async fn a_change_that_can_not_be_is_tried_again_until_it_can() {
    let appliance = Appliance::new();
    appliance.apply(&[(1, &["10.0.0.1"])]);
    appliance.until("10.0.0.1:1", &steered("10.0.0.1")).await;
    let _joined = appliance.join(1);
    let hosts = appliance.house.directory.path().join("hosts");
    fs::remove_file(&hosts).unwrap();
    fs::create_dir(&hosts).unwrap();
    appliance.apply(&[(2, &["10.0.0.2"])]);
    let problem = || appliance.house.steering.status(None).problem;
    let told = async {
        while problem().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(GRACE + SOON, told).await.expect("nothing is said of it");
    assert!(problem().unwrap().contains(hosts.to_str().unwrap()));
    assert_eq!(appliance.house.connect("10.0.0.1:1"), steered("10.0.0.1"));
    // Its carrier is not in the roster any more.
    let took = appliance.until("10.0.0.1:1", &REFUSED).await;
    assert!(took < GRACE + SOON, "{took:?}");
    fs::remove_dir(&hosts).unwrap();
    assert!(appliance.until("10.0.0.2:1", &steered("10.0.0.2")).await < RETRY + SOON);
    assert_eq!((appliance.house.connect("10.0.0.1:1"), problem()), (DIRECT, None));
    appliance.drain.stop();
}
