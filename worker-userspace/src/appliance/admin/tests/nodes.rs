//! Nodes: who was first stays first.

use super::*;
use crate::appliance::records::Node;
use crate::tunnel::message::Id;

fn seen(id: u8, host: &str) -> NodeSeen {
    let address = "192.0.2.1".parse().expect("an address");
    NodeSeen { id: [id; 16], host_name: host.into(), software: "1.0".into(), address }
}

impl House {
    async fn see(&self, worker: i64, node: NodeSeen) {
        self.admin.node_seen(worker, node);
        self.admin.keep_seen_now().await;
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
    let id = |i: usize| {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(i as u64).to_be_bytes());
        id
    };
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
