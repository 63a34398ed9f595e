//! Nodes: who was first stays first.

use super::races::unsure;
use super::*;
use crate::appliance::records::Node;

fn seen(id: u8, host: &str) -> NodeSeen {
    let address = "192.0.2.1".parse().expect("an address");
    NodeSeen { id: [id; 16], host_name: host.into(), software: "1.0".into(), address }
}

impl House {
    async fn see(&self, worker: i64, node: NodeSeen) {
        self.admin.node_seen(worker, node);
        self.admin.keep_seen_now().await;
    }

    /// Says that a worker's node is connected, and nothing to the administration.
    fn connect(&self, worker: i64, node: Id) {
        self.connected.lock().unwrap().insert((worker, node));
    }

    /// Makes the store's record of a node one that was last seen so long ago.
    async fn age(self, worker: i64, id: u8, by: Duration) -> House {
        let node = self.node(worker, id).expect("it");
        let at = node.last_seen - by;
        let old = Node { first_seen: at, last_seen: at, ..Node::clone(&node) };
        self.store.save(&[Change::Node(Arc::new(old))], Vec::new()).await.expect("a save");
        self.reopen().await
    }

    fn node(&self, worker: i64, id: u8) -> Option<Arc<Node>> {
        self.admin.nodes(worker).into_iter().find(|node| node.id == [id; 16])
    }

    /// The nodes of the only group of the roster, the primary's first.
    fn order(&self) -> Vec<u8> {
        let roster = self.roster();
        let mut nodes = roster.groups[0].nodes.clone();
        nodes.sort_by_key(|node| (node.priority.is_none(), node.priority, node.first_seen, node.id));
        let ids: Vec<Id> = nodes.iter().map(|node| node.id).collect();
        let listed: Vec<Id> = self.admin.nodes(roster.groups[0].id).iter().map(|node| node.id).collect();
        assert_eq!(ids, listed);
        ids.iter().map(|id| id[0]).collect()
    }
}

#[tokio::test]
async fn the_first_is_primary_unless_priorities_say_otherwise() {
    let house = House::new().await;
    let a = house.add("site-a", "").await.expect("a worker").id;
    for id in [3, 1, 2] {
        house.see(a, seen(id, &format!("host-{id}"))).await;
    }
    assert_eq!(house.order(), [3, 1, 2]);
    let first = house.node(a, 3).expect("it").first_seen;
    house.see(a, NodeSeen { software: "2.0".into(), ..seen(3, "renamed") }).await;
    let node = house.node(a, 3).expect("it");
    assert_eq!((node.first_seen, node.host_name.as_str(), node.software.as_str()), (first, "renamed", "2.0"));
    assert!(node.last_seen >= first);
    let set = async |id: u8, priority| {
        house.admin.set_node_priority(a, [id; 16], priority, &me()).await.expect("a priority")
    };
    set(2, Some(10)).await;
    assert_eq!(house.order(), [2, 3, 1]);
    set(1, Some(-10)).await;
    assert_eq!(house.order(), [1, 2, 3]);
    set(1, None).await;
    set(1, None).await;
    let house = house.reopen().await;
    house.admin.sync_file_groups(&[]).await.expect("no groups");
    assert_eq!(house.order(), [2, 3, 1]);
    // Seen again it keeps its priority, too.
    house.see(a, seen(2, "host-2")).await;
    assert_eq!(house.order(), [2, 3, 1]);
    house.admin.forget_node(a, [3; 16], &me()).await.expect("forgotten");
    assert_eq!(house.order(), [2, 1]);
    house.see(a, seen(3, "host-3")).await;
    assert_eq!(house.order(), [2, 1, 3], "a node that was forgotten is a new one");
    let error = house.admin.forget_node(a, [9; 16], &me()).await.expect_err("no such node").to_string();
    assert_eq!(error, "there is no node 09090909090909090909090909090909: it may have been removed");
    let events = house.events().await;
    assert_eq!(
        events[2..8],
        [
            "node-added site-a/host-3-03030303: 1.0 connected for the first time",
            "node-added site-a/host-1-01010101: 1.0 connected for the first time",
            "node-added site-a/host-2-02020202: 1.0 connected for the first time",
            "node-changed site-a/host-2-02020202: priority: none became 10",
            "node-changed site-a/host-1-01010101: priority: none became -10",
            "node-changed site-a/host-1-01010101: priority: -10 became none",
        ]
    );
    assert!(
        events[8].starts_with("node-forgotten site-a/renamed-03030303: it was last seen at 2"),
        "{events:?}"
    );
    assert_eq!(events[9], "node-added site-a/host-3-03030303: 1.0 connected for the first time");
    assert_eq!(events[10], format!("save-refused site-a: {error}"));
}

#[tokio::test]
async fn a_new_node_is_kept_soon_and_the_rest_at_the_end() {
    let house = House::new().await;
    let a = house.add("site-a", "").await.expect("a worker").id;
    let mut events = house.admin.subscribe();
    house.admin.node_seen(a, seen(1, "host"));
    let event = tokio::time::timeout(Duration::from_secs(10), events.recv())
        .await
        .expect("in time")
        .expect("an event");
    assert_eq!((event.kind, event.subject.as_str()), (EventKind::NodeAdded, "site-a/host-01010101"));
    assert_eq!(house.order(), [1]);
    let before = house.node(a, 1).expect("it").last_seen;
    let published = house.published.lock().unwrap().len();
    // Only the time is new: that can wait, and nobody need hear of it.
    house.admin.node_seen(a, seen(1, "host"));
    assert_eq!(house.node(a, 1).expect("it").last_seen, before);
    let seen_by_all = house.published.clone();
    let house = house.reopen().await;
    assert_eq!(seen_by_all.lock().unwrap().len(), published);
    assert!(house.node(a, 1).expect("it").last_seen > before);
}

#[tokio::test]
async fn a_stolen_key_does_not_fill_the_store() {
    let house = House::new().await;
    let a = house.add("site-a", "").await.expect("a worker").id;
    let id = numbered;
    for i in 0..300 {
        house.admin.node_seen(a, NodeSeen { id: id(i), ..seen(0, "host") });
        if i == 0 {
            house.admin.keep_seen_now().await;
            house.admin.set_node_priority(a, id(0), Some(1), &me()).await.expect("a priority");
        }
    }
    house.admin.keep_seen_now().await;
    let ids: Vec<Id> = house.admin.nodes(a).iter().map(|node| node.id).collect();
    assert_eq!(ids.len(), 256);
    assert_eq!(
        (ids[0], ids[1], ids[255]),
        (id(0), id(45), id(299)),
        "the one with a priority stays, the oldest go"
    );
    assert_eq!(house.store.load().await.expect("all").nodes.len(), 256);
    // Nobody's node is not noted.
    house.see(a + 1, seen(1, "host")).await;
    assert_eq!(house.admin.nodes(a + 1), []);
}

fn numbered(i: usize) -> Id {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&(i as u64).to_be_bytes());
    id
}

#[tokio::test]
async fn a_node_that_is_connected_is_the_last_to_be_forgotten() {
    let house = House::new().await;
    let a = house.add("site-a", "").await.expect("a worker").id;
    for i in 0..256 {
        house.admin.node_seen(a, NodeSeen { id: numbered(i), ..seen(0, "host") });
        if i == 1 {
            house.admin.keep_seen_now().await;
            house.admin.set_node_priority(a, numbered(1), Some(1), &me()).await.expect("a priority");
        }
    }
    house.admin.keep_seen_now().await;
    assert_eq!(house.admin.nodes(a).len(), 256);
    // Since before all others, which have gone.
    house.connect(a, numbered(0));
    for i in 256..300 {
        house.see(a, NodeSeen { id: numbered(i), ..seen(0, "host") }).await;
    }
    let mut ids: Vec<Id> = house.admin.nodes(a).iter().map(|node| node.id).collect();
    ids.sort_unstable();
    let stay: Vec<Id> = (0..2).chain(46..300).map(numbered).collect();
    assert_eq!(ids, stay, "it stays, and the one with a priority; those that were not seen for longest go");
    // Where all others have a place in the order, what is connected still comes first.
    for i in 46..300 {
        house.admin.set_node_priority(a, numbered(i), Some(2), &me()).await.expect("a priority");
    }
    house.connect(a, numbered(300));
    house.see(a, NodeSeen { id: numbered(300), ..seen(0, "host") }).await;
    let ids: Vec<Id> = house.admin.nodes(a).iter().map(|node| node.id).collect();
    let has = |i| ids.contains(&numbered(i));
    assert!(ids.len() == 256 && has(0) && has(300) && !has(1), "{ids:?}");
}

#[tokio::test]
async fn a_node_that_returns_together_with_new_ones_is_not_forgotten_for_them() {
    let house = House::new().await;
    let a = house.add("site-a", "").await.expect("a worker").id;
    for i in 1..=256 {
        house.admin.node_seen(a, NodeSeen { id: numbered(i), ..seen(0, "host") });
    }
    house.admin.keep_seen_now().await;
    // The two that were not seen for longest, before and behind the new one by their ids.
    for i in [1, 2, 0] {
        house.admin.node_seen(a, NodeSeen { id: numbered(i), ..seen(0, "host") });
    }
    house.admin.keep_seen_now().await;
    let mut ids: Vec<Id> = house.admin.nodes(a).iter().map(|node| node.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..3).chain(4..257).map(numbered).collect::<Vec<_>>());
    assert_eq!(house.store.load().await.expect("all").nodes.len(), 256);
}

#[tokio::test]
async fn who_is_connected_is_seen_and_who_has_gone_was_seen_until_then() {
    let house = House::new().await;
    let a = house.add("site-a", "").await.expect("a worker").id;
    house.see(a, seen(1, "host")).await;
    house.see(a, seen(2, "host")).await;
    let house = house.age(a, 1, Duration::from_secs(3600)).await;
    let house = house.age(a, 2, Duration::from_secs(3600)).await;
    let last_seen = |house: &House, id| house.node(a, id).expect("it").last_seen;
    let start = now();
    house.connect(a, [1; 16]);
    house.admin.keep_seen_now().await;
    let refreshed = last_seen(&house, 1);
    assert!(refreshed >= start && last_seen(&house, 2) < start, "only one of them is there");
    house.admin.keep_seen_now().await;
    assert_eq!(last_seen(&house, 1), refreshed, "the disk is not written to for a moment");
    let roster = house.admin.roster();

    house.connected.lock().unwrap().clear();
    house.admin.node_left(a, [1; 16]);
    let house = house.reopen().await;
    assert!(last_seen(&house, 1) > refreshed);
    assert_eq!(house.admin.roster(), roster, "that is nothing to routing");

    // Who was forgotten while it was connected is not noted for having gone.
    house.admin.forget_node(a, [1; 16], &me()).await.expect("forgotten");
    house.admin.node_left(a, [1; 16]);
    house.admin.keep_seen_now().await;
    assert_eq!(house.node(a, 1), None);
    // But for having come again, whatever else was noted of it.
    let again = now();
    house.admin.node_left(a, [1; 16]);
    house.admin.node_seen(a, seen(1, "again"));
    house.admin.node_left(a, [1; 16]);
    house.admin.keep_seen_now().await;
    let node = house.node(a, 1).expect("it");
    assert!(node.host_name == "again" && again <= node.first_seen && node.first_seen <= node.last_seen);
    house.connect(a, [1; 16]);
    let refused = house.admin.forget_node(a, [1; 16], &me()).await.expect_err("it would carry on unseen");
    let said = "node site-a/again-01010101 is connected: disable worker site-a, or stop the process, first";
    assert_eq!(refused.to_string(), said);
    assert!(house.node(a, 1).is_some());
    assert_eq!(house.events().await.pop().expect("an event"), format!("save-refused site-a: {said}"));
}

#[tokio::test]
async fn what_could_not_be_kept_of_a_node_is_kept_later() {
    let (house, store, _) = unsure(1000).await;
    let a = house.add("site-a", "").await.expect("a worker").id;
    house.admin.node_seen(a, seen(1, "host"));
    let first = now();
    store.before.store(1, Ordering::SeqCst);
    house.admin.keep_seen_now().await;
    assert_eq!(house.node(a, 1), None, "the disk was full");
    house.admin.node_left(a, [1; 16]);
    house.admin.keep_seen_now().await;
    let node = house.node(a, 1).expect("it");
    assert!(node.first_seen <= first && first <= node.last_seen, "{node:?}");
    assert_eq!(node.host_name, "host");
}

#[tokio::test]
async fn nodes_go_with_their_worker() {
    let house = House::new().await;
    let a = house.add("site-a", "").await.expect("a worker").id;
    house.see(a, seen(1, "host\n<b>")).await;
    assert_eq!(house.node(a, 1).expect("it").host_name, "host\u{fffd}<b>");
    house.admin.remove_worker(a, None, &me()).await.expect("removed");
    assert_eq!(house.admin.nodes(a), []);
    assert_eq!(house.store.load().await.expect("all").nodes, []);
}
