//! Every page, rendered from the samples.

use std::collections::{BTreeMap, HashSet};

use http::StatusCode;
use maud::Markup;

use super::layout::Frame;
use super::parts::Wrong;
use super::sign_in::Say;
use super::*;

/// Every page there is, by name.
fn pages() -> BTreeMap<&'static str, String> {
    let frame = samples::frame();
    let told = Frame { flash: Some(samples::flash()), ..frame.clone() };
    let wrong = |field, text: &str| Wrong { field, text: text.to_owned() };
    let faults = [
        wrong("name", "\"Berlin DC1\" has capitals and a space: write berlin-dc1"),
        wrong(
            "proxy_hosts",
            "\"https://vcenter.corp.example/sdk\" is not a proxy host: it is a URL; write only its host and port, as in `vcenter.corp.example:443`",
        ),
    ];
    let choices = [(1, "berlin-dc1".to_owned()), (2, samples::HOSTILE.to_owned())];
    let fixed = worker_form::Form { from_file: true, existing: Some((9, "file".into())), ..samples::form() };
    let conflict = [wrong("", "worker berlin-dc1 has changed since you loaded it")];
    let cloud = clouds::Form {
        existing: Some((1, "Berlin production".into())),
        name: "Berlin production".into(),
        kind: "vmware".into(),
        api_url: samples::HOSTILE.into(),
        worker: "1".into(),
        revision: 3,
    };
    let no_workers = workers::List { size: 50, ..workers::List::default() };
    let none_found =
        workers::List { query: samples::HOSTILE.into(), rows: vec![], found: 0, ..samples::workers() };
    let last_page = workers::List { found: 105, page: 2, ..samples::workers() };
    let from_file = worker::Detail {
        from_file: true,
        nodes: vec![],
        clouds: vec![],
        events: vec![],
        ..samples::worker()
    };
    let rotated = worker_form::NewKey {
        replaces: Some("The old key works until 2026-03-02 10:30:00 UTC.".into()),
        warnings: vec![samples::HOSTILE.into()],
        ..samples::key()
    };
    let in_grace = (samples::key().key.hash(), samples::worker().now);
    let no_events = events::List { query: samples::HOSTILE.into(), ..events::List::default() };
    let older = events::List { before: Some(400), ..samples::events() };
    let middle = connections::List {
        query: samples::HOSTILE.into(),
        before: Some(913),
        newer: 400,
        found: 10_000,
        ..samples::connections()
    };
    let all: Vec<(&str, Markup)> = vec![
        ("sign-in", sign_in::sign_in(&Say::Welcome, "/")),
        ("sign-in-wrong", sign_in::sign_in(&Say::Wrong("This is not the token.".into()), samples::HOSTILE)),
        ("sign-in-ended", sign_in::sign_in(&Say::Ended, "/workers")),
        (
            "problem",
            sign_in::problem(StatusCode::INTERNAL_SERVER_ERROR, samples::HOSTILE, Some("cfe1656b2928e934")),
        ),
        ("workers", workers::list(&told, &samples::workers())),
        ("workers-empty", workers::list(&frame, &no_workers)),
        ("workers-none-found", workers::list(&frame, &none_found)),
        ("workers-last-page", workers::list(&frame, &last_page)),
        ("worker", worker::detail(&frame, &samples::worker())),
        ("worker-from-file", worker::detail(&frame, &from_file)),
        (
            "worker-form",
            worker_form::form(&frame, &worker_form::Form { enabled: true, ..Default::default() }, &[]),
        ),
        ("worker-form-wrong", worker_form::form(&frame, &samples::form(), &faults)),
        ("worker-form-fixed", worker_form::form(&frame, &fixed, &conflict)),
        ("worker-key", worker_form::key(&frame, &samples::key())),
        ("worker-rotated", worker_form::key(&frame, &rotated)),
        ("worker-rotate", worker::rotate(&frame, 1, samples::HOSTILE, None)),
        ("worker-rotate-again", worker::rotate(&frame, 1, samples::HOSTILE, Some(in_grace))),
        ("worker-disable", worker::disable(&frame, 1, "berlin-dc1", 42)),
        ("worker-remove", worker::remove(&frame, 1, "berlin-dc1", 1, &[])),
        ("worker-remove-in-use", worker::remove(&frame, 1, "berlin-dc1", 0, &samples::worker().clouds)),
        ("worker-forget", worker::forget(&frame, 1, "71", "worker-old", false)),
        ("worker-forget-connected", worker::forget(&frame, 1, "71", "worker-old", true)),
        ("clouds", clouds::list(&frame, &samples::clouds())),
        ("clouds-empty", clouds::list(&frame, &clouds::List::default())),
        ("cloud-form", clouds::form(&frame, &cloud, &choices, &[wrong("api_url", "not a URL")])),
        ("cloud-remove", clouds::remove(&frame, 1, samples::HOSTILE, Some("berlin-dc1"))),
        ("connections", connections::list(&frame, &samples::connections())),
        ("connections-middle", connections::list(&frame, &middle)),
        ("connections-empty", connections::list(&frame, &connections::List::default())),
        ("connection-close", connections::close(&frame, 908, "10.20.4.17:902", Some("java 2114"))),
        ("events", events::list(&frame, &samples::events())),
        ("events-older", events::list(&frame, &older)),
        ("events-none-found", events::list(&frame, &no_events)),
    ];
    all.into_iter().map(|(name, page)| (name, page.into_string())).collect()
}

/// The values of an attribute.
fn values<'a>(html: &'a str, attribute: &str) -> Vec<&'a str> {
    let start = format!(" {attribute}=\"");
    html.split(&start).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

#[test]
fn what_a_user_typed_is_text_on_every_page() {
    let mut met = 0;
    for (name, html) in pages() {
        assert!(!html.contains("<script>"), "{name} has an element that a user typed");
        met += html.matches("&lt;script&gt;").count();
    }
    assert!(met > 15, "the samples try it on many pages: {met}");
}

#[test]
fn nothing_that_the_content_policy_forbids_is_written() {
    for (name, html) in pages() {
        for bad in [" style=", " onclick=", " onsubmit=", "javascript:", "<style", "http://", "//cdn"] {
            // Shown as text, a quotation mark is escaped, and a URL is not in an attribute.
            assert!(!html.contains(bad), "{name} has {bad}");
        }
        for source in values(&html, "src") {
            assert!(source.starts_with("/assets/"), "{name} loads {source}");
        }
        assert_eq!(html.matches("<script").count(), 2, "{name}");
    }
}

#[test]
fn every_form_that_posts_has_the_word_against_forgery() {
    let mut posting = 0;
    for (name, html) in pages() {
        for form in html.split("<form").skip(1).filter_map(|rest| rest.split("</form>").next()) {
            if form.contains("method=\"post\"") && !form.contains("action=\"/sign-in\"") {
                posting += 1;
                assert!(form.contains(r#"name="csrf" value="csrf-word""#), "{name}: {form}");
            }
        }
    }
    assert!(posting > 30, "{posting}");
}

#[test]
fn every_page_is_fit_for_those_who_do_not_see_it() {
    for (name, html) in pages() {
        assert_eq!(html.matches("<h1").count(), 1, "{name} has one heading of the first order");
        assert!(html.contains("<html lang=\"en\">") && html.contains("name=\"viewport\""), "{name}");
        let ids = values(&html, "id");
        let unique: HashSet<_> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len(), "{name} has an id twice: {ids:?}");
        for attribute in ["for", "aria-labelledby", "aria-describedby", "data-copy"] {
            for id in values(&html, attribute).iter().flat_map(|value| value.split(' ')) {
                // The dialog's heading comes with what is put into it.
                assert!(unique.contains(&id) || id == "confirm-title", "{name}: {attribute} names {id}");
            }
        }
        for tag in ["<input", "<select", "<textarea"] {
            for control in html.split(tag).skip(1).filter_map(|rest| rest.split('>').next()) {
                let id = values(control, "id");
                let labelled = id.iter().any(|id| html.contains(&format!("for=\"{id}\"")));
                assert!(labelled || control.contains("hidden"), "{name}: no label for {control}");
            }
        }
    }
}

#[test]
fn a_query_holds_what_is_not_empty() {
    assert_eq!(query(&[("q", ""), ("page", "")]), "");
    assert_eq!(query(&[("q", "a b&ü"), ("page", "2"), ("x", "")]), "?q=a%20b%26%C3%BC&page=2");
}

#[test]
fn only_what_the_page_knows_is_live() {
    // A live page has the part that is replaced.
    for (name, html) in pages() {
        let live = html.contains("data-live=");
        assert!(!live || html.contains("id=\"live\""), "{name}");
    }
}
