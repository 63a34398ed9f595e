//! The book, its pages, its observer and its rates.

use std::sync::atomic::Ordering;

use super::*;

fn target(text: &str) -> Target {
    Target { host: text.parse().unwrap(), port: 443 }
}

fn open(ledger: &Ledger) -> FlowGuard {
    let origin = Origin { original: "240.64.0.1:443".parse().ok(), ..Origin::default() };
    ledger.open(Entry::Captured, 7, target("vcenter.corp.example"), origin)
}

fn ids(flows: &[FlowReport]) -> Vec<u64> {
    flows.iter().map(|flow| flow.id).collect()
}

#[test]
fn connections_are_told_from_opening_to_end() {
    let ledger = Ledger::default();
    let (first, second) = (open(&ledger), open(&ledger));
    assert_eq!(ledger.report(None)[0].state, "opening");
    first.dialled(OpenOk {
        address: "192.0.2.1:443".parse().unwrap(),
        dial: Duration::from_millis(2),
        proxied: false,
    });
    first.meter.up.fetch_add(10, Ordering::Relaxed);
    assert_eq!(ledger.report(None)[1].state, "open");
    first.end(Ok(()));
    second.end(Err(Refusal::new(Code::Refused, "dialling 192.0.2.1:443")));
    let report = ledger.report(None);
    assert_eq!((report[1].state.as_str(), report[1].bytes_up), ("closed", 10));
    assert_eq!(
        (report[0].state.as_str(), report[0].reason.as_deref()),
        ("refused", Some("dialling 192.0.2.1:443"))
    );
    drop(open(&ledger));
    assert_eq!(ledger.report(None)[0].state, "shutdown");
    assert_eq!((ledger.open_count(), ledger.total()), (0, 3));
}

#[test]
fn one_that_is_wanted_is_found_among_however_many() {
    let ledger = Ledger::default();
    let all: Vec<_> = (0..LISTED + 10).map(|_| open(&ledger)).collect();
    let first = all[0].id;
    assert_eq!(ledger.report(None).len(), LISTED);
    assert!(!ids(&ledger.report(None)).contains(&first));
    let found = ids(&ledger.report(Some(&first.to_string())));
    assert_eq!((found.len(), found.last()), (LISTED + 1, Some(&first)));
    assert_eq!(ids(&ledger.report(Some("no such thing"))).len(), LISTED);
}

#[test]
fn only_so_many_ended_connections_are_remembered() {
    let ledger = Ledger::default();
    for _ in 0..REMEMBERED + 10 {
        open(&ledger).end(Ok(()));
    }
    let report = ledger.report(None);
    assert_eq!(report.len(), REMEMBERED);
    assert_eq!(report[0].id, REMEMBERED as u64 + 10);
    assert!(ledger.get(10).is_none() && ledger.get(11).is_some());
}

#[test]
fn a_list_has_what_was_asked_for_newest_first() {
    let ledger = Ledger::default();
    let process = |pid| Process { pid, uid: 0, comm: "python3".into(), cgroup_id: 1 };
    let make = |entry, host, pid, carrier: &str| {
        let origin = Origin { process: Some(process(pid)), ..Origin::default() };
        let flow = ledger.open(entry, 1, target(host), origin);
        flow.carried_by(carrier.into());
        flow
    };
    let first = make(Entry::Captured, "vcenter.corp.example", 10, "site-a/one");
    let _second = make(Entry::Socks, "esxi.corp.example", 11, "site-a/two");
    let _third = make(Entry::Captured, "192.0.2.1", 10, "site-b/one");
    first.end(Ok(()));
    let list = |filter: Filter| ids(&ledger.list(&filter));
    let all = Filter::default;
    assert_eq!(list(all()), [3, 2, 1]);
    assert_eq!(list(Filter { phase: Some(Phase::Open), ..all() }), [3, 2]);
    assert_eq!(list(Filter { phase: Some(Phase::Ended), ..all() }), [1]);
    assert_eq!(list(Filter { target: Some("Corp.Example".into()), ..all() }), [2, 1]);
    assert_eq!(list(Filter { target: Some("192.0.2.1:443".into()), ..all() }), [3]);
    assert_eq!(list(Filter { carrier: Some("site-a".into()), ..all() }), [2, 1]);
    assert_eq!(list(Filter { carrier: Some("site-b/one".into()), ..all() }), [3]);
    assert_eq!(list(Filter { carrier: Some("site".into()), ..all() }), [0; 0]);
    assert_eq!(list(Filter { entry: Some(Entry::Socks), ..all() }), [2]);
    let with = |text: &str| list(Filter { text: Some(text.into()), ..all() });
    assert_eq!(with("PYTHON3 11"), [2]);
    assert_eq!(with("socks proxy"), [2]);
    assert_eq!(with("Site-A"), [2, 1]);
    assert_eq!(with("0000000000000001"), [3, 2, 1]);
    assert_eq!(with("closed"), [1]);
    assert_eq!(with("192.0.2.1"), [3]);
    assert_eq!(with("nothing"), [0; 0]);
    assert_eq!(list(Filter { pid: Some(10), phase: Some(Phase::Open), ..all() }), [3]);
    // Pages meet without a gap, whether what they hold is open or not.
    assert_eq!(list(Filter { limit: Some(2), ..all() }), [3, 2]);
    assert_eq!(list(Filter { limit: Some(2), after: Some(2), ..all() }), [1]);
    assert_eq!(list(Filter { after: Some(1), ..all() }), [0; 0]);
    assert_eq!(ledger.get(2).map(|flow| flow.target), Some("esxi.corp.example:443".into()));
    assert!(ledger.get(4).is_none());
}

#[test]
fn a_page_is_never_larger_than_it_may_be() {
    let ledger = Ledger::default();
    let _open: Vec<_> = (0..LISTED + 5).map(|_| open(&ledger)).collect();
    let filter = Filter { limit: Some(usize::MAX), ..Filter::default() };
    assert_eq!(ledger.list(&filter).len(), LISTED);
    let rest = Filter { after: Some(6), ..filter };
    assert_eq!(ids(&ledger.list(&rest)), [5, 4, 3, 2, 1]);
}

#[test]
fn a_page_knows_its_place_among_all_and_failures_are_told_from_ends() {
    let ledger = Ledger::default();
    let _open: Vec<_> = (0..2 * LISTED).map(|_| open(&ledger)).collect();
    open(&ledger).end(Ok(()));
    open(&ledger).end(Err(Refusal::new(Code::Refused, "dialling 192.0.2.9:443")));
    let find = |filter: Filter| {
        let found = ledger.find(&filter);
        (ids(&found.items), found.newer, found.total)
    };
    let few = Filter { limit: Some(2), ..Filter::default() };
    let total = 2 * LISTED;
    assert_eq!(find(few.clone()), (vec![total as u64 + 2, total as u64 + 1], 0, total + 2));
    assert_eq!(find(Filter { after: Some(3), ..few.clone() }), (vec![2, 1], total, total + 2));
    let open_ones = Filter { phase: Some(Phase::Open), after: Some(1), ..few.clone() };
    assert_eq!(find(open_ones), (vec![], total, total));
    let failed = Filter { phase: Some(Phase::Failed), ..few.clone() };
    assert_eq!(find(failed), (vec![total as u64 + 2], 0, 1));
    assert_eq!(find(Filter { phase: Some(Phase::Ended), ..few.clone() }).2, 2);
    assert_eq!(find(Filter { text: Some("DIALLING 192.0.2.9".into()), ..few }).2, 1);
}

#[test]
fn an_observer_hears_of_each_dial_and_each_end_and_may_look_back() {
    let ledger = Ledger::default();
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let (notes, book) = (heard.clone(), Arc::downgrade(&ledger.0));
    assert!(ledger.observe(move |event| {
        let (flow, what) = match *event {
            FlowEvent::Dialled(flow) => (flow, "dialled"),
            FlowEvent::Ended(flow) => (flow, "ended"),
        };
        // Were the book locked, this would never return.
        let state = Ledger(book.upgrade().unwrap()).get(flow.id).unwrap().state;
        notes.lock().unwrap().push(format!("{} {what}: {state}", flow.id));
    }));
    assert!(!ledger.observe(|_| {}), "the first one stays");
    let (first, second) = (open(&ledger), open(&ledger));
    second.end(Err(Refusal::new(Code::Denied, "no")));
    first.dialled(OpenOk { address: "192.0.2.1:443".parse().unwrap(), dial: Duration::ZERO, proxied: false });
    drop(first);
    let told = ["2 ended: denied", "1 dialled: open", "1 ended: shutdown"];
    assert_eq!(*heard.lock().unwrap(), told);
}

#[tokio::test(start_paused = true)]
async fn rates_are_those_of_the_last_second_and_end_with_the_connection() {
    let ledger = Ledger::default();
    let drain = Drain::new(Duration::from_secs(1));
    drain.spawn("rates", ledger.clone().keep_rates(drain.clone()));
    let (busy, _idle) = (open(&ledger), open(&ledger));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let rates = |id| ledger.get(id).map(|flow| (flow.rate_up, flow.rate_down)).unwrap();
    assert_eq!(rates(1), (0, 0));
    busy.meter.up.fetch_add(5000, Ordering::Relaxed);
    busy.meter.down.fetch_add(70_000, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((rates(1), rates(2)), ((5000, 70_000), (0, 0)));
    assert_eq!(ledger.rates(), [5000, 70_000]);
    busy.meter.down.fetch_add(100, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rates(1), (0, 100));
    busy.end(Ok(()));
    assert_eq!(rates(1), (0, 0));
    assert_eq!(drain.finish().await, 0, "the ticker goes on");
}

#[test]
fn every_connection_is_counted_once_as_what_it_came_to() {
    let ledger = Ledger::default();
    let of = |entry| ledger.open(entry, 1, target("vc.example"), Origin::default());
    let answer = OpenOk { address: "192.0.2.1:443".parse().unwrap(), dial: Duration::ZERO, proxied: false };
    let refused = |code| Err(Refusal::new(code, "no"));
    let (open, closed, reset) = (of(Entry::Captured), of(Entry::Captured), of(Entry::Captured));
    for flow in [&open, &closed, &reset] {
        flow.dialled(answer);
        flow.meter.up.fetch_add(10, Ordering::Relaxed);
        flow.meter.down.fetch_add(1, Ordering::Relaxed);
    }
    // It says so again.
    open.dialled(answer);
    open.retried();
    reset.retried();
    closed.end(Ok(()));
    reset.end(refused(Code::Reset));
    of(Entry::Captured).end(refused(Code::Denied));
    of(Entry::Captured).end(refused(Code::Other));
    drop(of(Entry::Relayed));
    // More than are remembered.
    for _ in 0..2 * REMEMBERED {
        of(Entry::Egress).end(refused(Code::Timeout));
    }
    let census = ledger.census();
    let ends =
        |outcomes: &Outcomes, well| outcomes.each(well).filter(|(_, n)| *n > 0).collect::<Vec<(&str, u64)>>();
    let captured = census.of(Entry::Captured);
    assert_eq!((captured.open, captured.total, captured.bytes, captured.retries), (1, 5, [30, 3], 2));
    assert_eq!(ends(&captured.opens, "opened"), [("opened", 3), ("error", 1), ("denied", 1)]);
    assert_eq!(ends(&captured.ends, "closed"), [("closed", 1), ("reset", 1)]);
    assert_eq!(ends(&census.of(Entry::Relayed).opens, "opened"), [("shutdown", 1)]);
    assert_eq!(ends(&census.of(Entry::Egress).opens, "opened"), [("timeout", 2 * REMEMBERED as u64)]);
    assert_eq!(census.of(Entry::Socks), &Tally::default());
    assert_eq!(census.dials.total(), 3);
    open.meter.up.fetch_add(5, Ordering::Relaxed);
    assert_eq!(ledger.census().of(Entry::Captured).bytes, [35, 3]);
    open.end(Ok(()));
    let captured = *ledger.census().of(Entry::Captured);
    assert_eq!((captured.open, captured.bytes, captured.retries), (0, [35, 3], 2));
}

#[test]
fn a_word_is_what_json_says() {
    for (place, entry) in Entry::ALL.into_iter().enumerate() {
        assert_eq!(serde_json::to_value(entry).unwrap(), entry.word());
        assert_eq!(entry as usize, place);
    }
}
