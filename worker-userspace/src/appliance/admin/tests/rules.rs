//! What is saved, what is refused, and what everybody hears of it.

use super::*;
use crate::target::Pattern;

fn shown(patterns: &[Pattern]) -> Vec<String> {
    patterns.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn what_is_added_is_in_force_and_survives() {
    let house = House::new().await;
    let new = NewWorker {
        description: " Z\u{fc}rich <b> ".into(),
        ..worker("site-a", "vc.corp.example:443,902, *.a.example\n10.20.0.0/16")
    };
    let (site_a, key, warnings) = house.admin.add_worker(new, &me()).await.expect("a worker");
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(site_a.description, "Z\u{fc}rich <b>");
    assert_eq!(shown(&site_a.proxy_hosts), ["vc.corp.example:443,902", "*.a.example", "10.20.0.0/16"]);
    let (vc, _) = house
        .admin
        .add_cloud(cloud("A", "https://VC.example:8443/sdk", Some("site-a")), &me())
        .await
        .expect("a cloud");
    let roster = house.roster();
    let group = &roster.groups[0];
    assert_eq!((group.id, group.name.as_str(), group.keys[0].hash), (site_a.id, "site-a", key.hash()));
    assert_eq!(shown(&group.proxy_hosts)[3], "vc.example:8443");
    let house = house.reopen().await;
    house.admin.sync_file_groups(&[]).await.expect("no groups");
    assert_eq!(house.roster(), roster);
    assert_eq!(house.admin.worker(&"site-a".into()).expect("it"), site_a);
    assert_eq!(house.admin.cloud(&"A".into()).expect("it"), vc);
}

#[tokio::test]
async fn two_workers_never_carry_the_same() {
    let house = House::new().await;
    house.add("site-a", "vc.example:443, *.a.example").await.expect("a worker");
    let error = house.add("site-b", "vc.example:1-500").await.expect_err("a rival");
    assert_eq!(
        error.to_string(),
        "vc.example:1-500 of worker site-b is carried by worker site-a already, as vc.example:443: leave it to one of \
         them, or give each its own ports"
    );
    house.add("site-b", "vc.example, *.b.example").await.expect("all other ports");
    let events = house.events().await;
    assert!(events.contains(&format!("save-refused site-b: {error}")), "{events:?}");
}

#[tokio::test]
async fn a_cloud_by_address_and_a_worker_by_name_are_told_apart() {
    let house = House::new().await;
    house.names.0.lock().unwrap().insert("vcenter.corp.example".into(), vec!["10.0.0.5".parse().unwrap()]);
    house.add("site-a", "vcenter.corp.example").await.expect("a worker");
    let new = cloud("site-a", "https://10.0.0.5/sdk", Some("site-a"));
    let (_, warnings) = house.admin.add_cloud(new, &me()).await.expect("a cloud");
    assert_eq!(
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "cloud \"site-a\" says https://10.0.0.5/sdk, but worker site-a lists vcenter.corp.example, which this host \
          resolves to 10.0.0.5: both must be spelled alike: write 10.0.0.5 there, or vcenter.corp.example in the \
          cloud's API URL"
        ]
    );
}
