//! What is saved, what is refused, and what everybody hears of it.

use super::*;
use crate::config::Key;

fn shown(patterns: &[Pattern]) -> Vec<String> {
    patterns.iter().map(ToString::to_string).collect()
}

fn rename(name: &str) -> EditWorker {
    EditWorker { name: Some(name.into()), ..EditWorker::default() }
}

fn carry(hosts: &str) -> EditWorker {
    EditWorker { proxy_hosts: Some(hosts.into()), ..EditWorker::default() }
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
    let (vc, _) = house.add_cloud("A", "https://VC.example:8443/sdk", Some("site-a")).await.expect("a cloud");
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
async fn each_change_is_in_force_at_once_and_has_its_event() {
    let house = House::new().await;
    let a = house.add("site-a", "a.example").await.expect("a worker").id;
    let (cloud, _) = house.add_cloud("C", "https://c.example", Some("site-a")).await.expect("a cloud");
    assert_eq!(house.carried(), [("site-a".into(), vec!["a.example".into(), "c.example:443".into()])]);
    house.admin.edit_worker(a, carry("b.example, a.example:80"), None, &me()).await.expect("an edit");
    house.admin.edit_worker(a, rename("site-b"), None, &me()).await.expect("an edit");
    let hosts = vec!["b.example".to_owned(), "a.example:80".into(), "c.example:443".into()];
    assert_eq!(house.carried(), [("site-b".into(), hosts)]);
    house.admin.set_enabled(a, false, &me()).await.expect("disabled");
    assert_eq!(house.carried(), []);
    house.admin.set_enabled(a, true, &me()).await.expect("enabled");
    let other = EditCloud { api_url: Some("http://10.0.0.1/x".into()), ..EditCloud::default() };
    house.admin.edit_cloud(cloud.id, other, None, &me()).await.expect("an edit");
    assert_eq!(house.carried()[0].1[2], "10.0.0.1:80");
    house.admin.assign(cloud.id, None, &me()).await.expect("no worker");
    assert_eq!(house.carried()[0].1.len(), 2);
    house.admin.remove_cloud(cloud.id, None, &me()).await.expect("removed");
    house.admin.remove_worker(a, None, &me()).await.expect("removed");
    assert_eq!(house.carried(), []);
    assert_eq!(
        house.events().await,
        [
            "worker-added site-a: with a.example",
            "key-shown site-a: its new key was shown",
            "cloud-added C: vmware at https://c.example, carried by worker site-a",
            "worker-changed site-a: proxy hosts: added b.example a.example:80, removed a.example",
            "worker-changed site-b: name: site-a became site-b",
            "worker-disabled site-b: its key is refused, and its nodes are cut",
            "worker-enabled site-b: its key works",
            "cloud-changed C: API URL: https://c.example became http://10.0.0.1/x",
            "cloud-changed C: without a worker; it was carried by worker site-b",
            "cloud-removed C: vmware at http://10.0.0.1/x",
            "worker-removed site-b: it carried b.example a.example:80",
        ]
    );
    let event = &house.admin.events(&EventQuery::default()).await.expect("events")[0];
    assert_eq!((event.actor.as_str(), event.source), ("admin", me().source));
}

#[tokio::test]
async fn an_edit_that_changes_nothing_is_no_change() {
    let house = House::new().await;
    let worker = house.add("site-a", "a.example").await.expect("a worker");
    let published = house.published.lock().unwrap().len();
    let edit = EditWorker { enabled: Some(true), ..carry("A.example") };
    let (same, _) = house.admin.edit_worker(worker.id, edit, Some(1), &me()).await.expect("an edit");
    assert_eq!(same, worker);
    assert_eq!(house.events().await.len(), 2);
    assert_eq!(house.published.lock().unwrap().len(), published);
}

#[tokio::test]
async fn names_are_unique() {
    let house = House::new().await;
    house.add("site-a", "").await.expect("a worker");
    let b = house.add("site-b", "").await.expect("a worker without proxy hosts");
    let error = house.add("site-a", "").await.expect_err("the name");
    assert_eq!(error.to_string(), "another worker is named \"site-a\": choose another name");
    let error = house.admin.edit_worker(b.id, rename("site-a"), None, &me()).await.expect_err("the name");
    assert!(matches!(error, AdminError::NameTaken { .. }), "{error}");
    house.admin.edit_worker(b.id, rename("site-b"), None, &me()).await.expect("its own name");
    house.add_cloud("Z\u{dc}RICH", "https://a.example", None).await.expect("a cloud");
    let error = house.add_cloud("z\u{fc}rich ", "https://b.example", None).await.expect_err("the name");
    assert_eq!(error.to_string(), "another cloud is named \"z\u{fc}rich\": choose another name");
}

#[tokio::test]
async fn a_new_name_is_no_number() {
    let house = House::new().await;
    let error = house.add("7", "").await.expect_err("a number").to_string();
    assert_eq!(
        error,
        "name = \"7\": digits alone are taken for a number, which may be another's: write it as in \"site-7\""
    );
    assert_eq!(house.events().await, [format!("save-refused 7: {error}")]);
    let a = house.add("7a", "").await.expect("a worker").id;
    let error = house.admin.edit_worker(a, rename("0"), None, &me()).await.expect_err("a number");
    assert!(matches!(error, AdminError::Invalid(_)), "{error}");
    house.add("-7", "").await.expect("no number has a sign");
    let error = house.add_cloud(" 2024 ", "https://a.example", None).await.expect_err("a number");
    assert_eq!(
        error.to_string(),
        "name = \"2024\": digits alone are taken for a number, which may be another's: write it as in \"Cloud 2024\""
    );
    let c = house.add_cloud("C", "https://a.example", None).await.expect("a cloud").0.id;
    let named = EditCloud { name: Some("1".into()), ..EditCloud::default() };
    let error = house.admin.edit_cloud(c, named, None, &me()).await.expect_err("a number");
    assert!(matches!(error, AdminError::Invalid(_)), "{error}");
}

/// Earlier versions took such names, and the configuration file may have them still.
#[tokio::test]
async fn who_is_named_by_a_number_is_found() {
    let house = House::new().await;
    let one = house.add("site-1", "").await.expect("a worker");
    let c = house.add_cloud("C", "https://c.example", None).await.expect("a cloud").0;
    for name in ["1", "30"] {
        let key = Key::generate().expect("a key").hash();
        let old = Worker { id: 0, name: name.into(), key, ..Worker::clone(&one) };
        house.store.save(&[Change::Worker(Arc::new(old))], Vec::new()).await.expect("a save");
        let old = Cloud { id: 0, name: name.into(), ..Cloud::clone(&c) };
        house.store.save(&[Change::Cloud(Arc::new(old))], Vec::new()).await.expect("a save");
    }
    let house = house.reopen().await;
    let worker = |which: Ref| house.admin.worker(&which).map(|worker| (worker.id, worker.name.clone()));
    for (which, id, name) in [
        ("site-1".into(), 1, "site-1"),
        // Whose number it is comes before whose name it is.
        ("1".into(), 1, "site-1"),
        ("2".into(), 2, "1"),
        (Ref::Id(2), 2, "1"),
        ("30".into(), 3, "30"),
    ] {
        let said = format!("{which:?}");
        assert_eq!(worker(which).expect("it"), (id, name.to_owned()), "{said}");
    }
    let lost = |which: Ref| worker(which).expect_err("nobody").to_string();
    assert_eq!(lost("31".into()), "there is no worker \"31\": it may have been removed");
    assert_eq!(
        lost(Ref::Id(30)),
        "there is no worker 30: it may have been removed",
        "asked for by number alone"
    );
    assert_eq!(lost("+1".into()), "there is no worker \"+1\": it may have been removed");
    assert!(worker("99999999999999999999".into()).is_err());
    let cloud = |which: &str| house.admin.cloud(&which.into()).expect("it").name.clone();
    assert_eq!(["1", "2", "30"].map(cloud), ["C", "1", "30"]);
    // All of it can be changed, and the name too.
    let edit = EditWorker { description: Some("old".into()), ..rename("1") };
    house.admin.edit_worker(2, edit, None, &me()).await.expect("its own name");
    house.admin.edit_worker(2, rename("2"), None, &me()).await.expect_err("another number");
    house.admin.edit_worker(2, rename("site-2"), None, &me()).await.expect("a better name");
    let edit = EditCloud { name: Some("1".into()), worker: Some(Some("30".into())), ..EditCloud::default() };
    let (cloud, _) = house.admin.edit_cloud(2, edit, None, &me()).await.expect("its own name");
    assert_eq!(cloud.worker, Some(3));
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
    let b = house.add("site-b", "vc.example, *.b.example").await.expect("all other ports");
    let events = house.events().await;
    assert!(events.contains(&format!("save-refused site-b: {error}")), "{events:?}");
    // A disabled worker keeps what is its own, so that it can be enabled at any time.
    house.admin.set_enabled(b.id, false, &me()).await.expect("disabled");
    assert!(matches!(house.add("site-c", "*.b.example").await, Err(AdminError::PatternTaken(_))));
    // The same through a cloud, from both sides.
    let error = house.add_cloud("C", "https://vc.example/sdk", Some("site-b")).await.expect_err("a rival");
    assert_eq!(
        error.to_string(),
        "vc.example:443 of worker site-b (API URL of cloud \"C\") is carried by worker site-a already: leave it to one \
         of them, or give each its own ports"
    );
    house.add_cloud("C", "https://vc.example/sdk", Some("site-a")).await.expect("the worker's own");
    house.add_cloud("D", "https://d.example", Some("site-a")).await.expect("a cloud");
    house
        .add_cloud("D2", "https://d.example/v2", Some("site-a"))
        .await
        .expect("the same host, the same worker");
    assert!(matches!(
        house.add_cloud("E", "https://d.example", Some("site-b")).await,
        Err(AdminError::PatternTaken(_))
    ));
    let error =
        house.admin.edit_worker(b.id, carry("d.example:443"), None, &me()).await.expect_err("a rival");
    assert_eq!(
        error.to_string(),
        "d.example:443 of worker site-b is carried by worker site-a (API URL of cloud \"D\") already: leave it to one \
         of them, or give each its own ports"
    );
    let two = "site-x.example, vc.example:443, d.example:443";
    assert!(house.admin.edit_worker(b.id, carry(two), None, &me()).await.is_err());
    let events = house.events().await;
    let refused = "own ports; d.example:443 of worker site-b is";
    assert!(events.iter().any(|event| event.contains(refused)), "all of it, on one line: {events:?}");
    // Refused is not half done.
    assert_eq!(
        shown(&house.admin.worker(&b.id.into()).expect("it").proxy_hosts),
        ["vc.example", "*.b.example"]
    );
}

#[tokio::test]
async fn the_number_of_patterns_is_bounded() {
    let house = House::new().await;
    let hosts = |worker: usize, count: usize| {
        (0..count).map(|i| format!("h{i}.w{worker}.example ")).collect::<String>()
    };
    for i in 0..20 {
        house.add(&format!("w{i}"), &hosts(i, 1000)).await.expect("a thousand");
    }
    let error = house.add("more", "a.example").await.expect_err("one more");
    assert_eq!(
        error.to_string(),
        "proxy_hosts = 20001 in all: all workers and clouds together may have 20000: write wildcards or networks, as in \
         *.corp.example and 10.20.0.0/16"
    );
    assert!(house.add_cloud("C", "https://a.example", Some("w1")).await.is_err());
    house.add_cloud("C", "https://a.example", None).await.expect("a cloud without a worker");
    let one = house.admin.worker(&"w1".into()).expect("it").id;
    house.admin.set_enabled(one, false, &me()).await.expect("a change of something else");
}

#[tokio::test]
async fn a_worker_that_clouds_need_stays() {
    let house = House::new().await;
    let a = house.add("site-a", "a.example").await.expect("a worker").id;
    for i in 0..12 {
        house
            .add_cloud(&format!("Cloud {i:02}"), &format!("https://c{i}.example"), Some("site-a"))
            .await
            .expect("a cloud");
    }
    let error = house.admin.remove_worker(a, None, &me()).await.expect_err("in use").to_string();
    assert!(error.starts_with("worker site-a carries clouds \"Cloud 00\", \"Cloud 01\", "), "{error}");
    assert!(
        error.ends_with(
            "\"Cloud 09\" and 2 more: give them to another worker, or to none, first: `dworker cloud assign`"
        ),
        "{error}"
    );
    let missing =
        house.admin.remove_worker(a + 1, None, &me()).await.expect_err("no such worker").to_string();
    assert_eq!(missing, format!("there is no worker {}: it may have been removed", a + 1));
    let error = house.add_cloud("X", "https://x.example", Some("site-x")).await.expect_err("no such worker");
    assert_eq!(
        error.to_string(),
        "worker = \"site-x\": there is no such worker: choose one of the list, or none"
    );
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let house = House::new().await;
    for name in ["c", "a", "b"] {
        house.add(&format!("site-{name}"), &format!("{name}.example:443")).await.expect("a worker");
    }
    let b = house.admin.worker(&"site-b".into()).expect("it").id;
    house.admin.set_enabled(b, false, &me()).await.expect("disabled");
    let describe = EditWorker { description: Some("Z\u{dc}RICH".into()), ..EditWorker::default() };
    house.admin.edit_worker(b, describe, None, &me()).await.expect("described");
    let workers = |filter: WorkerFilter, page: Page| {
        let listed = house.admin.workers(&filter, page);
        let names: Vec<String> = listed.items.iter().map(|worker| worker.name.clone()).collect();
        (names.join(" "), listed.total)
    };
    let text = |text: &str| WorkerFilter { text: Some(text.into()), ..WorkerFilter::default() };
    let is = |names: &str, total| (names.to_owned(), total);
    assert_eq!(workers(WorkerFilter::default(), Page::ALL), is("site-a site-b site-c", 3));
    assert_eq!(workers(WorkerFilter::default(), Page { offset: 1, limit: 1 }), is("site-b", 3));
    assert_eq!(workers(WorkerFilter::default(), Page { offset: 3, limit: 1 }), is("", 3));
    assert_eq!(workers(text("C.EXAMPLE:4"), Page::ALL), is("site-c", 1));
    assert_eq!(workers(text("z\u{fc}ri"), Page::ALL), is("site-b", 1));
    assert_eq!(
        workers(WorkerFilter { enabled: Some(true), ..text("site") }, Page::ALL),
        is("site-a site-c", 2)
    );
    assert_eq!(
        workers(
            WorkerFilter { origin: Some(crate::appliance::records::Origin::File), ..text("") },
            Page::ALL
        ),
        is("", 0)
    );
    house.add_cloud("b", "https://x.example", Some("site-a")).await.expect("a cloud");
    house.add_cloud("A", "https://y.example", None).await.expect("a cloud");
    let clouds = |filter: &CloudFilter| {
        let listed = house.admin.clouds(filter, Page::ALL).items;
        listed.iter().map(|cloud| cloud.name.clone()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(clouds(&CloudFilter::default()), "A b");
    assert_eq!(clouds(&CloudFilter { text: Some("X.EX".into()), ..CloudFilter::default() }), "b");
    let a = house.admin.worker(&"site-a".into()).expect("it").id;
    assert_eq!(clouds(&CloudFilter { worker: Some(a), ..CloudFilter::default() }), "b");
}

#[tokio::test]
async fn what_steering_cannot_hold_is_not_saved() {
    struct AtMostOne;
    impl Check for AtMostOne {
        fn check(&self, roster: &Roster) -> Result<(), Vec<String>> {
            match roster.groups.iter().map(|group| group.proxy_hosts.len()).sum::<usize>() {
                0 | 1 => Ok(()),
                n => Err(vec![format!("{n} proxy hosts: the table holds 1: use fewer")]),
            }
        }
    }
    let house = House::new().await;
    house.admin.add_check(AtMostOne);
    let a = house.add("site-a", "a.example").await.expect("one");
    let error = house.add("site-b", "b.example").await.expect_err("two");
    assert_eq!(error.to_string(), "2 proxy hosts: the table holds 1: use fewer");
    assert_eq!(house.admin.workers(&WorkerFilter::default(), Page::ALL).items, [a]);
    assert_eq!(house.store.load().await.expect("all").workers.len(), 1);
}
