//! Workers of the configuration file.

use super::*;
use crate::appliance::records::Origin;
use crate::config::{Group, Key};

fn group(name: &str, hosts: &[&str]) -> Group {
    let key = Key::generate().expect("randomness").hash();
    let proxy_hosts = hosts.iter().map(|host| host.parse().expect("a pattern")).collect();
    Group { name: name.into(), key, proxy_hosts, may_open: false }
}

#[tokio::test]
async fn the_file_is_taken_over_at_each_start() {
    let house = House::new().await;
    house.admin.sync_file_groups(&[]).await.expect("nothing");
    assert_eq!(house.carried(), [], "an empty roster is published too");
    let (a, b) = (group("site-a", &["a.example"]), group("site-b", &["b.example"]));
    house.admin.sync_file_groups(&[a.clone(), b.clone()]).await.expect("two groups");
    let kept = house.admin.worker(&"site-a".into()).expect("it");
    assert_eq!((kept.origin, kept.enabled, kept.key), (Origin::File, true, a.key));
    let (cloud, _) = house.add_cloud("B", "https://x.example", Some("site-b")).await.expect("a cloud");
    // The same file again changes nothing.
    let house = house.reopen().await;
    house.admin.sync_file_groups(&[a.clone(), b]).await.expect("the same");
    assert_eq!(house.admin.worker(&"site-a".into()).expect("it"), kept);
    assert_eq!(house.carried().len(), 2);
    // One group has changed, the other is gone: its cloud has no worker any more.
    let changed = Group {
        key: Key::generate().expect("randomness").hash(),
        may_open: true,
        ..group("site-a", &["c.example"])
    };
    house.admin.sync_file_groups(std::slice::from_ref(&changed)).await.expect("another file");
    assert_eq!(house.carried(), [("site-a".into(), vec!["c.example".into()])]);
    let now = house.admin.worker(&"site-a".into()).expect("it");
    assert_eq!((now.id, now.key, now.may_open, now.revision), (kept.id, changed.key, true, 2));
    assert!(kept.rotated.is_none() && now.rotated > Some(kept.created));
    assert_eq!(house.admin.cloud(&cloud.id.into()).expect("it").worker, None);
    let events = house.events().await;
    assert_eq!(
        events,
        [
            "worker-added site-a: with a.example",
            "worker-added site-b: with b.example",
            "cloud-added B: vmware at https://x.example, carried by worker site-b",
            "cloud-changed B: without a worker; it was carried by worker site-b",
            "worker-removed site-b: it stands in the configuration file no more",
            "worker-changed site-a: proxy hosts: added c.example, removed a.example; its nodes may open streams to other \
         workers' proxy hosts; another key",
        ]
    );
}

#[tokio::test]
async fn groups_may_swap_what_they_carry() {
    let house = House::new().await;
    house
        .admin
        .sync_file_groups(&[group("a", &["x.example"]), group("b", &["y.example"])])
        .await
        .expect("two");
    let swapped = [group("a", &["y.example"]), group("b", &["x.example"])];
    house.admin.sync_file_groups(&swapped).await.expect("swapped");
    let renamed = [group("c", &["y.example"]), group("b", &["x.example"])];
    house.admin.sync_file_groups(&renamed).await.expect("one removed, one with its patterns added");
    assert_eq!(house.carried().len(), 2);
}

#[tokio::test]
async fn the_file_and_the_registry_do_not_meet() {
    let house = House::new().await;
    let (a, key, _) = house.admin.add_worker(worker("site-a", "a.example"), &me()).await.expect("a worker");
    let sync = async |group: Group| {
        house.admin.sync_file_groups(&[group]).await.expect_err("a conflict").to_string()
    };
    assert_eq!(
        sync(group("site-a", &["b.example"])).await,
        "group site-a of the configuration file and worker site-a of the registry have the same name: rename one of \
         the two"
    );
    assert_eq!(
        sync(group("site-b", &["a.example"])).await,
        "a.example of worker site-b is carried by worker site-a already: leave it to one of them, or give each its own \
         ports"
    );
    assert_eq!(
        sync(Group { key: key.hash(), ..group("site-b", &["b.example"]) }).await,
        "worker site-b and worker site-a have the same key: give each its own"
    );
    assert_eq!(house.admin.workers(&WorkerFilter::default(), Page::ALL).items, [a]);
}

#[tokio::test]
async fn what_the_file_says_is_changed_there() {
    let house = House::new().await;
    house.admin.sync_file_groups(&[group("site-a", &["a.example"])]).await.expect("a group");
    let id = house.admin.worker(&"site-a".into()).expect("it").id;
    let edit = EditWorker {
        name: Some("other".into()),
        proxy_hosts: Some("b.example".into()),
        may_open: Some(true),
        ..EditWorker::default()
    };
    let error = house.admin.edit_worker(id, edit, None, &me()).await.expect_err("the file's").to_string();
    assert_eq!(
        error,
        "worker site-a stands in the configuration file, which says its name and proxy_hosts and may_open: change \
         [[appliance.groups]] there and restart"
    );
    assert!(matches!(
        house.admin.rotate_key(id, Duration::ZERO, false, &me()).await,
        Err(AdminError::ManagedByFile { .. })
    ));
    assert!(matches!(
        house.admin.remove_worker(id, None, &me()).await,
        Err(AdminError::ManagedByFile { .. })
    ));
    // What the file does not say; a form that sends back what it was given is no change of it.
    let edit = EditWorker {
        name: Some("site-a".into()),
        proxy_hosts: Some("a.example".into()),
        description: Some("In the cellar".into()),
        enabled: Some(false),
        may_open: Some(false),
    };
    house.admin.edit_worker(id, edit, Some(1), &me()).await.expect("the registry's");
    house.admin.sync_file_groups(&[group("site-a", &["a.example"])]).await.expect("the file again");
    let kept = house.admin.worker(&id.into()).expect("it");
    assert_eq!((kept.description.as_str(), kept.enabled), ("In the cellar", false));
}
