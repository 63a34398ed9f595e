//! A name here and an address there.

use super::super::spelling::Concern;
use super::super::state::State;
use super::*;
use crate::config::ApiUrl;

impl House {
    fn resolves(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| address.parse().expect("an address")).collect();
        self.names.known.lock().unwrap().insert(name.into(), addresses);
    }

    /// Adds a worker and gives what it is warned of.
    async fn warned(&self, name: &str, hosts: &str) -> Vec<String> {
        let (_, _, warnings) = self.admin.add_worker(worker(name, hosts), &me()).await.expect("a worker");
        warnings.iter().map(ToString::to_string).collect()
    }

    /// Adds a cloud and gives what it is warned of.
    async fn cloud_warned(&self, url: &str, worker: Option<&str>) -> Vec<String> {
        let (_, warnings) = self.add_cloud("C", url, worker).await.expect("a cloud");
        warnings.iter().map(ToString::to_string).collect()
    }
}

#[tokio::test]
async fn a_cloud_by_address_and_a_worker_by_name() {
    let house = House::new().await;
    house.resolves("vcenter.corp.example", &["192.0.2.9", "10.0.0.5"]);
    let says = "cloud \"C\" says https://10.0.0.5/sdk, but worker site-a lists vcenter.corp.example, which this host \
                resolves to 10.0.0.5: both must be spelled alike: write 10.0.0.5 there, or vcenter.corp.example in the \
                cloud's API URL";
    assert_eq!(house.warned("site-a", "x.example, vcenter.corp.example").await, [""; 0]);
    assert_eq!(house.cloud_warned("https://10.0.0.5/sdk", Some("site-a")).await, [says]);
    // From the other side, and as long as it is so.
    let a = house.admin.worker(&"site-a".into()).expect("it").id;
    let describe = EditWorker { description: Some("x".into()), ..EditWorker::default() };
    let (_, warnings) = house.admin.edit_worker(a, describe, None, &me()).await.expect("an edit");
    assert_eq!(warnings[0].to_string(), says);
    assert_eq!((warnings[0].field, warnings[0].about.as_str()), ("proxy_hosts", "C"));
    assert_eq!(house.admin.worker_warnings(a).await.expect("it"), warnings);
    let cloud = house.admin.cloud(&"C".into()).expect("it").id;
    assert_eq!(house.admin.cloud_warnings(cloud).await.expect("it"), warnings);
    // Both spellings are listed, or a network that has the address.
    for hosts in ["vcenter.corp.example, 10.0.0.5", "vcenter.corp.example, 10.0.0.0/8"] {
        let both = EditWorker { proxy_hosts: Some(hosts.into()), ..EditWorker::default() };
        let (_, warnings) = house.admin.edit_worker(a, both, None, &me()).await.expect("an edit");
        assert_eq!(warnings, [], "{hosts}");
    }
}

#[tokio::test]
async fn a_cloud_by_name_and_a_worker_by_address() {
    let house = House::new().await;
    house.resolves("vcenter.corp.example", &["2001:db8::5"]);
    assert_eq!(house.cloud_warned("https://vcenter.corp.example", None).await, [""; 0]);
    let says = "cloud \"C\" says https://vcenter.corp.example, but worker site-a lists only 2001:db8::5, which this host \
                resolves vcenter.corp.example to: both must be spelled alike: write vcenter.corp.example there, or \
                2001:db8::5 in the cloud's API URL";
    assert_eq!(house.warned("site-a", "[2001:db8::5]:443").await, [says]);
    assert_eq!(
        house.warned("site-b", "2001:db8::/32").await,
        [""; 0],
        "a network was not written for one host"
    );
    let cloud = house.admin.cloud(&"C".into()).expect("it").id;
    let (_, warnings) = house.admin.assign(cloud, Some("site-b".into()), &me()).await.expect("assigned");
    assert_eq!(warnings, [], "site-a has nothing to do with it any more");
}

#[tokio::test]
async fn a_short_name_and_a_long_one() {
    let house = House::new().await;
    assert_eq!(house.warned("site-a", "vcenter.corp.example").await, [""; 0]);
    assert_eq!(
        house.cloud_warned("https://vcenter/sdk", Some("site-a")).await,
        [
            "cloud \"C\" says https://vcenter/sdk, but worker site-a lists vcenter.corp.example, which may be the same host: \
         both must be spelled alike: write vcenter there, or vcenter.corp.example in the cloud's API URL"
        ]
    );
    let house = House::new().await;
    assert_eq!(house.warned("site-a", "vcenter, other").await, [""; 0]);
    assert_eq!(house.cloud_warned("https://vcenter.corp.example/sdk", Some("site-a")).await.len(), 1);
    let house = House::new().await;
    assert_eq!(house.warned("site-a", "vcenter.b.example, corp.example").await, [""; 0]);
    let unlike = house.cloud_warned("https://vcenter.corp.example/sdk", Some("site-a")).await;
    assert_eq!(unlike, [""; 0], "two long names are two hosts");
}

#[tokio::test]
async fn a_host_that_another_worker_lists() {
    let house = House::new().await;
    house.warned("site-a", "a.example").await;
    house.warned("site-b", "vc.example, *.corp.example").await;
    assert_eq!(
        house.cloud_warned("https://vc.example/sdk", Some("site-a")).await,
        [
            "port 443 of cloud \"C\" is carried by worker site-a, but worker site-b lists its host too, as vc.example: give \
         the cloud to worker site-b, or take vc.example out there"
        ]
    );
    let b = house.admin.worker(&"site-b".into()).expect("it").id;
    assert_eq!(house.admin.worker_warnings(b).await.expect("it").len(), 1, "said there too");
    // A wildcard is no wish for one host.
    let cloud = house.admin.cloud(&"C".into()).expect("it").id;
    let other = EditCloud { api_url: Some("https://vc.corp.example".into()), ..EditCloud::default() };
    let (_, warnings) = house.admin.edit_cloud(cloud, other, None, &me()).await.expect("an edit");
    assert_eq!(warnings, []);
}

#[tokio::test]
async fn a_cloud_without_a_worker_that_is_carried_all_the_same() {
    let house = House::new().await;
    house.warned("site-b", "*.corp.example").await;
    let says = "cloud \"C\" has no worker, but worker site-b carries its host, by *.corp.example: give the cloud to \
                worker site-b, or take the proxy host out there";
    assert_eq!(house.cloud_warned("https://vc.corp.example/sdk", None).await, [says]);
    let house = House::new().await;
    assert_eq!(house.cloud_warned("https://vc.corp.example/sdk", None).await, [""; 0]);
    assert_eq!(house.warned("site-b", "*.corp.example").await, [says]);
    // By the API URL of another cloud.
    let house = House::new().await;
    house.warned("site-a", "").await;
    house.add_cloud("D", "https://vc.example/a", Some("site-a")).await.expect("a cloud");
    assert_eq!(
        house.cloud_warned("https://vc.example/b", None).await,
        [
            "cloud \"C\" has no worker, but worker site-a (API URL of cloud \"D\") carries its host, by vc.example:443: give \
         the cloud to worker site-a, or take the proxy host out there"
        ]
    );
    assert_eq!(house.admin.clouds(&CloudFilter::default(), Page::ALL).total, 2);
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_is_silent_costs_a_second() {
    // The store's threads and a paused clock do not go together: the clock would run while they work.
    tokio::time::resume();
    let house = House::new().await;
    house.resolves("vcenter.corp.example", &["10.0.0.5"]);
    house.warned("site-a", "silent.example, vcenter.corp.example").await;
    let (cloud, _) = house.add_cloud("C", "https://10.0.0.5", None).await.expect("a cloud");
    tokio::time::pause();
    let before = tokio::time::Instant::now();
    let warnings = house.admin.cloud_warnings(cloud.id).await.expect("it");
    assert_eq!(warnings.len(), 1, "what answers in time counts: {warnings:?}");
    assert_eq!(before.elapsed().as_millis() / 10, 100);
}

#[tokio::test]
async fn enabling_and_disabling_asks_no_resolver() {
    let house = House::new().await;
    house.warned("site-a", "silent.example").await;
    house.add_cloud("C", "https://10.0.0.5", Some("site-a")).await.expect("a cloud");
    let a = house.admin.worker(&"site-a".into()).expect("it").id;
    let asked = || std::mem::take(&mut *house.names.asked.lock().unwrap());
    assert_eq!(asked(), ["silent.example"], "by the save of the cloud");
    for enabled in [false, true] {
        assert_eq!(house.admin.set_enabled(a, enabled, &me()).await.expect("a save").enabled, enabled);
    }
    assert_eq!(asked(), [""; 0]);
    let error = house.admin.set_enabled(a + 1, true, &me()).await.expect_err("no such worker");
    assert!(house.events().await.contains(&format!("save-refused {}: {error}", a + 1)));
}

#[tokio::test]
async fn each_name_is_asked_for_once_and_all_clouds_have_their_share() {
    let house = House::new().await;
    let hosts: Vec<String> = (0..20).map(|i| format!("h{i}.example")).collect();
    house.warned("site-a", &format!("{} 10.0.0.5", hosts.join(" "))).await;
    for i in 0..10 {
        let name = format!("by address {i}");
        house.add_cloud(&name, &format!("https://10.0.1.{i}"), Some("site-a")).await.expect("a cloud");
    }
    house.resolves("vc.example", &["10.0.0.5"]);
    house.add_cloud("by name", "https://vc.example", Some("site-a")).await.expect("a cloud");
    house.names.asked.lock().unwrap().clear();
    let a = house.admin.worker(&"site-a".into()).expect("it").id;
    let warnings = house.admin.worker_warnings(a).await.expect("it");
    let about: Vec<&str> = warnings.iter().map(|warning| warning.about.as_str()).collect();
    assert_eq!(about, ["by name"], "{warnings:?}");
    let mut asked = house.names.asked.lock().unwrap().clone();
    asked.sort_unstable();
    let mut all: Vec<String> = hosts.into_iter().chain(["vc.example".into()]).collect();
    all.sort_unstable();
    assert_eq!(asked, all);
}

/// Each with each would take minutes.
#[tokio::test]
async fn thousands_of_workers_and_clouds_are_judged_at_once() {
    const MANY: i64 = 4000;
    let house = House::new().await;
    let url = |text: &str| ApiUrl::parse(text).expect("a URL");
    let first = house.add("site-a", "").await.expect("a worker");
    let (cloud, _) = house.add_cloud("C", "https://c.example", Some("site-a")).await.expect("a cloud");
    let mut state = State::default();
    for id in 1..=MANY {
        let hosts = format!("h{id}.example, short{id}, 10.0.{}.{}, *.w{id}.example", id / 250, id % 250);
        let proxy_hosts = hosts.split(", ").map(|host| host.parse().expect("a pattern")).collect();
        let worker = Worker { id, name: format!("site-{id}"), proxy_hosts, ..Worker::clone(&first) };
        state.workers.insert(id, Arc::new(worker));
        let named = Cloud {
            id,
            name: format!("Cloud {id}"),
            api_url: match id {
                7 => url("https://short8.example/sdk"),
                _ => url(&format!("https://h{id}.example/sdk")),
            },
            worker: Some(1),
            ..Cloud::clone(&cloud)
        };
        state.clouds.insert(id, Arc::new(named));
        let alone = Cloud { id: MANY + id, worker: None, ..Cloud::clone(&cloud) };
        state.clouds.insert(MANY + id, Arc::new(alone));
    }
    let start = std::time::Instant::now();
    let of_worker = house.admin.spelling(&state, Concern::Worker(1)).await;
    let of_cloud = house.admin.spelling(&state, Concern::Cloud(7)).await;
    Arc::make_mut(state.clouds.get_mut(&7).expect("it")).worker = None;
    let alone = house.admin.spelling(&state, Concern::Cloud(7)).await;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(of_worker.len(), 50, "as many as are given");
    assert!(
        of_worker[0].to_string().contains("worker site-2 lists its host too, as h2.example"),
        "{of_worker:?}"
    );
    assert_eq!(of_cloud, [], "site-1 has nothing like it");
    assert!(alone.len() == 1 && alone[0].to_string().contains("site-8 lists short8,"), "{alone:?}");
}
