//! Keys: shown once, replaced with a grace, never in an event.

use super::*;
use crate::config::Key;

const HOUR: Duration = Duration::from_secs(3600);

impl House {
    /// The hashes that work, each with whether it works for a while only.
    fn keys(&self) -> Vec<(KeyHash, bool)> {
        self.roster().groups[0].keys.iter().map(|key| (key.hash, key.until.is_some())).collect()
    }
}

#[tokio::test]
async fn both_keys_work_during_the_grace() {
    let house = House::new().await;
    let (a, first, _) = house.admin.add_worker(worker("site-a", ""), &me()).await.expect("a worker");
    assert_eq!(house.keys(), [(first.hash(), false)]);
    let (rotated, second, warnings) = house.admin.rotate_key(a.id, HOUR, false, &me()).await.expect("a key");
    assert_eq!(house.keys(), [(second.hash(), false), (first.hash(), true)]);
    assert_eq!((rotated.revision, rotated.rotated.is_some(), warnings), (2, true, vec![]));
    let house = house.reopen().await;
    house.admin.sync_file_groups(&[]).await.expect("no groups");
    assert_eq!(house.keys(), [(second.hash(), false), (first.hash(), true)]);
    let events = house.events().await;
    assert!(
        events[2].starts_with("key-rotated site-a: a new key was shown; the old one works until 2"),
        "{events:?}"
    );
}

#[tokio::test]
async fn a_key_does_not_end_before_the_grace_that_it_was_promised_unless_somebody_says_so() {
    let house = House::new().await;
    let (a, first, _) = house.admin.add_worker(worker("site-a", ""), &me()).await.expect("a worker");
    let (rotated, second, _) = house.admin.rotate_key(a.id, HOUR, false, &me()).await.expect("a key");
    let (_, until) = rotated.previous_key.expect("a grace");
    let short = &first.hash().to_string()[..12];
    // Also where the newest is to work alone: who does not know of the grace cuts nobody.
    for grace in [HOUR, Duration::ZERO] {
        let refused = house.admin.rotate_key(a.id, grace, false, &me()).await.expect_err("within the grace");
        assert_eq!(
            refused.to_string(),
            format!(
                "worker site-a has another key already, and the one before it ({short}) works until {until:.0}: \
                 wait until then, or let it end now with `force` (`--force`)"
            )
        );
    }
    assert_eq!(house.keys(), [(second.hash(), false), (first.hash(), true)]);
    let (_, third, warnings) = house.admin.rotate_key(a.id, HOUR, true, &me()).await.expect("a key");
    assert_eq!(house.keys(), [(third.hash(), false), (second.hash(), true)]);
    let told: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [format!(
            "the key before the old one ({short}), which was to work until {until:.0}, has ended now: \
             give the new key to the nodes that still have it"
        )]
    );
    let (_, fourth, _) = house.admin.rotate_key(a.id, Duration::ZERO, true, &me()).await.expect("a key");
    assert_eq!(house.keys(), [(fourth.hash(), false)]);
    // Nothing is in its grace, so nothing need be forced, and nothing ends that was to go on.
    let (_, fifth, warnings) =
        house.admin.rotate_key(a.id, Duration::ZERO, false, &me()).await.expect("a key");
    assert_eq!((house.keys(), warnings), (vec![(fifth.hash(), false)], vec![]));
    let mut events = house.events().await;
    events.retain(|event| event.starts_with("key-rotated"));
    assert!(
        events[1].ends_with(&format!(
            "; nor does the one before that ({short}), which was to work until {until:.0}"
        )),
        "{events:?}"
    );
    assert_eq!(events[3], "key-rotated site-a: a new key was shown; the old one works no more");
}

#[tokio::test]
async fn a_grace_that_is_over_is_not_in_the_roster() {
    let house = House::new().await;
    let a = house.add("site-a", "").await.expect("a worker");
    let (rotated, key, _) = house.admin.rotate_key(a.id, HOUR, false, &me()).await.expect("a key");
    let (_, until) = rotated.previous_key.expect("a grace");
    let before = house.admin.state().roster(until - Duration::from_secs(1));
    assert_eq!(before.groups[0].keys.len(), 2);
    let after = house.admin.state().roster(until);
    assert_eq!(after.groups[0].keys.iter().map(|k| k.hash).collect::<Vec<_>>(), [key.hash()]);
}

#[tokio::test]
async fn a_grace_for_ever_is_refused() {
    let house = House::new().await;
    let a = house.add("site-a", "").await.expect("a worker");
    let error = house.admin.rotate_key(a.id, 24 * 31 * HOUR, false, &me()).await.expect_err("too long");
    assert_eq!(
        error.to_string(),
        "grace = 2678400 s: a key that was replaced should not work for so long: choose at most 2592000 s (30 days)"
    );
    house.admin.rotate_key(a.id, 24 * 30 * HOUR, false, &me()).await.expect("30 days");
}

#[tokio::test]
async fn no_key_is_in_the_file_or_in_an_event() {
    let house = House::new().await;
    let (a, first, _) = house.admin.add_worker(worker("site-a", ""), &me()).await.expect("a worker");
    let (_, second, _) = house.admin.rotate_key(a.id, HOUR, false, &me()).await.expect("a key");
    let token = format!("dwa_{}", "t".repeat(43));
    house.admin.set_admin_token(first.hash(), &me()).await.expect("a token");
    assert_eq!(house.admin.admin_token(), Some(first.hash()));
    // However it gets into a text.
    for text in [first.reveal(), &format!("tried {token}."), "https://root:hunter2@vc.example/sdk"] {
        house.audit.record(me().did(EventKind::LoginFailed, text, text));
        let actor = Actor::local(text);
        house.admin.set_enabled(a.id, text.starts_with("tried"), &actor).await.expect("a change");
        assert!(house.add_cloud(text, text, Some(text)).await.is_err());
        assert!(house.add(text, text).await.is_err());
        let new = NewWorker { description: text.into(), ..worker("x", "") };
        assert_eq!(house.admin.add_worker(new, &me()).await.is_err(), !text.starts_with("https"), "{text}");
    }
    house.events().await;
    let shown = format!("{:?}", house.admin.events(&EventQuery::default()).await.expect("events"));
    house.drain.finish().await;
    house.store.close().await;
    let file = std::fs::read(house.directory.path().join("registry.db")).expect("the file");
    let has = |secret: &str| {
        shown.contains(secret) || file.windows(secret.len()).any(|window| window == secret.as_bytes())
    };
    let body = |key: &Key| key.reveal()["dwk_".len()..].to_owned();
    assert!(!has(&body(&first)) && !has(&body(&second)) && !has(&token["dwa_".len()..]));
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(has(&second.hash().to_string()), "the search does not find what is there");
}
