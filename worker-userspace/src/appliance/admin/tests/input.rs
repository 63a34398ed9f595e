//! What people write into forms: understood, or refused with the field, the value and the remedy.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::input::Form;
use super::*;
use crate::config::ApiUrl;

fn hosts(list: impl Into<HostList>) -> Result<Vec<String>, Vec<String>> {
    let mut form = Form::default();
    let patterns = form.proxy_hosts(&list.into());
    match form.problems.is_empty() {
        true => Ok(patterns.iter().map(ToString::to_string).collect()),
        false => Err(form.problems.iter().map(ToString::to_string).collect()),
    }
}

#[test]
fn the_seeds_list_is_read() {
    for (text, read) in [
        ("", &[][..]),
        (" , ,\n", &[]),
        ("a.example", &["a.example"]),
        ("A.example,10.0.0.1", &["a.example", "10.0.0.1"]),
        (
            "a.example\r\n b.example\tc.example,,d.example,",
            &["a.example", "b.example", "c.example", "d.example"],
        ),
        ("a.example:443,902,8000-8010,b.example", &["a.example:443,902,8000-8010", "b.example"]),
        (
            "a.example:443 , 902, [2001:db8::1]:443,80 10.0.0.0/8:22,23",
            &["a.example:443,902", "[2001:db8::1]:80,443", "10.0.0.0/8:22-23"],
        ),
        ("2001:db8::1,*.a.example", &["2001:db8::1", "*.a.example"]),
    ] {
        assert_eq!(hosts(text), Ok(read.iter().map(ToString::to_string).collect()), "{text:?}");
    }
    let list = HostList::List(vec![" a.example:443,902 ".into(), "b.example".into()]);
    assert_eq!(hosts(list), Ok(vec!["a.example:443,902".into(), "b.example".into()]));
}

#[test]
fn what_is_no_proxy_host_names_the_remedy() {
    const URL: &str = "a URL, where only its host belongs: write the host:";
    let long = format!("dwk_{}", "k".repeat(43));
    for (text, says) in [
        ("https://vc.corp.example/sdk", format!("\"https://vc.corp.example/sdk\": {URL} vc.corp.example")),
        ("https://VC:8443", format!("\"https://VC:8443\": {URL} vc:8443")),
        (
            "http://[2001:db8::1]:80/x?y#z",
            format!("\"http://[2001:db8::1]:80/x?y#z\": {URL} [2001:db8::1]:80"),
        ),
        ("https://root:pw@vc.example/", format!("\"https://***@vc.example/\": {URL} vc.example")),
        ("vc.corp.example/sdk", format!("\"vc.corp.example/sdk\": {URL} vc.corp.example")),
        ("https://a b.example", format!("\"https://a\": {URL} a")),
        ("https:///sdk", "\"https:///sdk\": not a proxy host: it is a URL".into()),
        ("10.20.0.0/33", "\"10.20.0.0/33\": not a proxy host: a network is written".into()),
        (
            "10.20.0.1/16",
            "not a proxy host: bits are set behind the prefix; the network is `10.20.0.0/16`".into(),
        ),
        ("902", "\"902\": not a host name: it ends in a number".into()),
        ("a.example, 902", "\"902\": not a host name".into()),
        ("a.example:443\n902", "\"902\": not a host name".into()),
        ("a.example:443,70000", "\"a.example:443,70000\": not a proxy host: \"70000\" is not a port".into()),
        ("<script>", "\"<script>\": not a host name: a name has letters".into()),
        ("z\u{fc}rich.example", "xn--".into()),
        (&long, "***: a key or token where a host belongs: remove it here".into()),
        (&format!("dwa_{}", &long[4..]), "***: a key or token where a host belongs".into()),
        (&format!("https://{long}@vc.example"), "***: a URL".into()),
    ] {
        let problems = hosts(text).expect_err(text);
        assert!(problems[0].contains(&says), "{text:?} gave {problems:?}, without {says:?}");
        assert!(problems[0].starts_with("proxy_hosts = "), "{problems:?}");
        assert!(!problems.concat().contains(&long[4..]), "{problems:?}");
    }
    assert_eq!(hosts("-a, b-, c").expect_err("two problems").len(), 2, "all at once");
}

#[test]
fn what_is_listed_twice_is_kept_once() {
    let mut form = Form::default();
    let patterns =
        form.proxy_hosts(&"a.example, b.example:80,443, A.EXAMPLE., b.example:443,80, a.example:1".into());
    let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
    assert_eq!(patterns, ["a.example", "b.example:80,443", "a.example:1"]);
    let about: Vec<&str> = form.warnings.iter().map(|warning| warning.about.as_str()).collect();
    assert_eq!(about, ["a.example", "b.example:80,443"]);
}

#[test]
fn a_worker_lists_a_thousand_and_no_more() {
    let list = |count: usize| (0..count).map(|i| format!("h{i}.example")).collect::<Vec<_>>().join(",");
    assert_eq!(hosts(list(1000).as_str()).map(|read| read.len()), Ok(1000));
    assert_eq!(hosts(list(1001).as_str()), Err(vec![
        "proxy_hosts = 1001 proxy hosts: too many for one worker: write at most 1000; wildcards and networks stand for many"
            .into()
    ]));
}

#[test]
fn all_fields_are_judged_at_once() {
    let mut form = Form::default();
    form.worker_name("Site A");
    form.description(&"\u{1f600}".repeat(1001));
    form.description("two\nlines");
    form.description(&format!("key: dwk_{}", "k".repeat(43)));
    form.cloud_name(" ");
    form.cloud_name(&"\u{1f600}".repeat(101));
    form.cloud_type("VMware");
    form.api_url("https://user@vc.example");
    form.proxy_hosts(&"a b* -".into());
    let said: Vec<String> = form.problems.iter().map(ToString::to_string).collect();
    let faces = "\u{1f600}".repeat(80);
    assert_eq!(
        said,
        [
            "name = \"Site A\": not a worker's name: write 1 to 63 of a-z, 0-9 and `-`",
            &format!("description = \"{faces}\"…: it has 1001 characters: write at most 1000"),
            "description = \"two\\nlines\": a control character stands in it: write it on one line",
            "description = ***: a key or a token stands in it, and others will read it: remove it",
            "name = \"\": empty: write a name, as in \"Site A\"",
            &format!("name = \"{faces}\"…: it has 101 characters: write at most 100"),
            "type = \"VMware\": not a type of cloud: write one of vmware, vmwareCloudAws, nutanix, openstack, xenserver, macstadium",
            "api_url = \"https://***@vc.example\": it has a user in front of the host: remove it: the cloud's software knows \
         its credentials, and the worker needs none",
            "proxy_hosts = \"b*\": not a proxy host: a wildcard stands only at the front and before a dot, as in `*.corp.example`",
            "proxy_hosts = \"-\": not a host name: a part of a name does not begin or end with '-'",
        ]
    );
}

#[test]
fn a_cloud_is_a_url_with_host_port_and_path() {
    for (text, host) in [
        ("https://VC.example/sdk", "vc.example:443"),
        ("http://10.0.0.1", "10.0.0.1:80"),
        ("HTTPS://10.0.0.1:9440/api/v3/", "10.0.0.1:9440"),
        ("https://[::ffff:10.0.0.1]", "10.0.0.1:443"),
        ("http://[2001:db8::1]:8080/a%20b;c=(d)", "[2001:db8::1]:8080"),
    ] {
        let url = ApiUrl::parse(text).expect(text);
        assert_eq!((url.as_str(), url.target().to_string().as_str()), (text, host));
        let derived = Pattern::from(url.target());
        assert_eq!(derived.to_string(), host, "{text}");
        assert_eq!(derived.to_string().parse(), Ok(derived), "{text}");
    }
    for (text, says) in [
        ("", "not a URL"),
        ("vc.example", "not a URL"),
        ("ftp://vc.example", "scheme"),
        ("javascript://vc.example/%0aalert(1)", "scheme"),
        ("https://", "not a host name"),
        ("https://vc.example?x=1", "other than a path"),
        ("https://vc.example/a#b", "other than a path"),
        ("https://vc.example\\a", "other than a path"),
        ("https://u:p@vc.example", "a user"),
        ("https://vc.example/a b", "white space"),
        ("https://vc.example/\u{0}", "control"),
        ("https://vc.example:0", "port"),
        ("https://*.example", "not a host name"),
        ("https://10.0.0.0/8/x", ""),
    ] {
        let mut form = Form::default();
        form.api_url(text);
        let said = form.problems.iter().map(ToString::to_string).collect::<String>();
        assert!(said.contains(says), "{text:?} gave {said:?}, without {says:?}");
        assert_eq!(form.problems.is_empty(), says.is_empty(), "{text:?}: {said}");
    }
}

/// HTML, SQL, odd Unicode, controls, and whatever else.
fn nasty() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "<script>alert(1)</script>",
        "\" onmouseover=\"x",
        "'; DROP TABLE workers; --",
        "' OR '1'='1",
        "%s%n",
        "{{7*7}}",
        "${x}",
        "\\",
        "/../",
        "\u{0}",
        "\n",
        "\r\n",
        "\u{7f}",
        "\u{85}",
        "\u{202e}",
        "\u{feff}",
        "\u{2028}",
        "e\u{301}",
        "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
        "\u{10ffff}",
        " ",
        ",",
        "https://",
        "vc.example",
        ":443",
        "dwk_",
        "@",
    ]);
    vec(prop_oneof![2 => piece.prop_map(str::to_owned), 1 => any::<String>()], 0..6)
        .prop_map(|all| all.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever stands in a field is kept as it is (but for white space around it), found again after a restart
    /// and in the events' search, or refused by a message on one line that holds no control character.
    #[test]
    fn every_text_survives_or_is_refused(name in nasty(), description in nasty(), hosts in nasty(), url in nasty()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let house = House::new().await;
            let new = NewWorker { description: description.clone(), ..worker("site-a", "vc.example") };
            let refusals = [
                match house.admin.add_worker(new, &me()).await {
                    Ok((kept, ..)) => { assert_eq!(kept.description, description.trim()); None }
                    Err(error) => Some(error),
                },
                house.add(&name, &hosts).await.err(),
                house.add_cloud(&name, "https://cloud.example/", None).await.err(),
                house.add_cloud("Cloud", &url, None).await.err(),
            ];
            for error in refusals.iter().flatten() {
                assert!(matches!(error, AdminError::Invalid(_)), "{error}");
                for line in error.to_string().lines() {
                    assert!(!line.contains(char::is_control) && line.contains(" = "), "{line:?}");
                }
            }
            let clouds = house.admin.clouds(&CloudFilter::default(), Page::ALL).items;
            if refusals[2].is_none() {
                assert!(clouds.iter().any(|cloud| cloud.name == name.trim()));
            }
            let query = EventQuery { text: Some(name.trim().to_owned()), ..EventQuery::default() };
            house.audit.flush().await;
            house.admin.events(&query).await.expect("a search");
            let workers = house.admin.workers(&WorkerFilter::default(), Page::ALL).items;
            let house = house.reopen().await;
            assert_eq!(house.admin.workers(&WorkerFilter::default(), Page::ALL).items, workers);
            assert_eq!(house.admin.clouds(&CloudFilter::default(), Page::ALL).items, clouds);
        });
    }

    #[test]
    fn a_list_reads_as_the_one_that_is_shown(text in "[a-c0-9.:,\\[\\]/ *-]{0,40}") {
        if let Ok(read) = hosts(text.as_str()) {
            prop_assert_eq!(hosts(read.join(", ").as_str()), Ok(read.clone()));
            prop_assert_eq!(hosts(HostList::List(read.clone())), Ok(read));
        }
    }
}
