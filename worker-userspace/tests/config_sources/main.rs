//! Where a configuration comes from: the file, variables, credentials, defaults; and what `dworker config` makes of it.

mod commands;
mod shown;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use dworker::config::{self, ApiKeySource, Config, Environment, KeySource, Loaded, Origin};
use toml::Value;

const KEY: &str = "dwk_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG";
const OTHER_KEY: &str = "dwk_zyxwvutsrqponmlkjihgfedcba9876543210ABCDEFG";
/// The older product's block, as its manual has it.
const BLOCK: &str = include_str!("../config/morpheus-worker.rb");
const EXAMPLES: [&str; 4] = [
    include_str!("../config/appliance.toml"),
    include_str!("../config/worker.toml"),
    include_str!("../config/lab.toml"),
    include_str!("../config/pkcs12.toml"),
];

fn environment(variables: &[(&str, &str)]) -> Environment {
    Environment::new("site.example", variables.iter().copied())
}

fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, String> {
    Config::parse_in(text, "dworker.toml", &environment(variables)).map_err(|faults| faults.to_string())
}

fn origin(loaded: &Loaded, key: &str) -> String {
    let settings = loaded.effective.settings();
    let setting = settings.iter().find(|setting| setting.key == key).unwrap_or_else(|| panic!("no {key}"));
    setting.origin.as_ref().map_or("-".into(), Origin::to_string)
}

fn value(loaded: &Loaded, key: &str) -> Option<Value> {
    loaded
        .effective
        .settings()
        .iter()
        .find(|setting| setting.key == key)
        .and_then(|setting| setting.value.clone())
}

/// The variables that say what a TOML file does, and what only the file can say.
fn as_variables(text: &str) -> (Vec<(String, String)>, String) {
    let mut variables = Vec::new();
    let mut rest = toml::Table::new();
    let word = |value: &Value| match value {
        Value::String(text) => text.clone(),
        // Commas stand in ports, too, so this is the form that holds any list.
        other => other.to_string(),
    };
    for (key, value) in text.parse::<toml::Table>().expect("TOML") {
        let Value::Table(section) = value else {
            let variable = match key.as_str() {
                // That of its path is another key's.
                "proxy_address_password_file" => "DWORKER_PROXY_ADDRESS_PASSWORD_FILE".to_owned(),
                _ => format!("DWORKER_{}", key.to_uppercase()),
            };
            variables.push((variable, word(&value)));
            continue;
        };
        for (name, value) in section {
            if name == "groups" {
                rest.insert(key.clone(), Value::Table([(name, value)].into_iter().collect()));
                continue;
            }
            variables.push((format!("DWORKER_{}_{}", key.to_uppercase(), name.to_uppercase()), word(&value)));
        }
    }
    (variables, toml::to_string(&rest).expect("TOML"))
}

#[test]
fn variables_say_what_the_file_says() {
    for text in EXAMPLES {
        let (variables, rest) = as_variables(text);
        let environment = Environment::new("site.example", variables.clone());
        let loaded = Config::parse_in(&rest, "dworker.toml", &environment).unwrap_or_else(|e| panic!("{e}"));
        let file = Config::parse_in(text, "dworker.toml", &self::environment(&[])).expect("an example");
        assert_eq!(loaded.config, file.config, "{variables:?}");
        assert_eq!(loaded.warnings.len(), file.warnings.len());
        let of_variables =
            loaded.effective.settings().iter().filter(|s| matches!(s.origin, Some(Origin::Variable { .. })));
        assert_eq!(of_variables.count(), variables.len());
    }
}

#[test]
fn a_container_needs_no_file() {
    let variables = [
        ("MORPHEUS_URL", "https://appliance.example"),
        ("MORPHEUS_WORKER_KEY", KEY),
        ("MORPHEUS_KEY", "any value"),
    ];
    let loaded = Config::read(None, &environment(&variables)).expect("a worker");
    let worker = loaded.config.worker.as_ref().expect("a worker");
    assert_eq!(worker.appliance.host.to_string(), "appliance.example");
    assert_eq!(worker.key, KeySource::Inline(KEY.parse().unwrap()));
    assert!(matches!(&worker.api_key, Some(ApiKeySource::Inline(key)) if key.reveal() == "any value"));
    assert_eq!(
        worker.url.as_ref().map(|url| (url.host.to_string(), url.port)),
        Some(("site.example".into(), 443))
    );
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let faults = Config::read(None, &environment(&[])).expect_err("nothing").to_string();
    assert!(faults.starts_with("environment: no role is configured: set `appliance_url`"), "{faults}");
}

#[test]
fn variables_come_before_the_file_and_credentials_behind_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let credentials = directory.path().to_str().expect("UTF-8");
    let credential = directory.path().join("worker_key");
    fs::write(&credential, KEY).expect("a credential");
    // As systemd's access lists make it look.
    fs::set_permissions(&credential, Permissions::from_mode(0o440)).expect("its mode");
    let url = "appliance_url = \"https://appliance.example\"\n";
    let given = ("CREDENTIALS_DIRECTORY", credentials);

    // All of them by a file that is read, so that the credential is, too.
    let file = directory.path().join("dworker.toml");
    let read = |text: &str, variables: &[(&str, &str)]| {
        fs::write(&file, text).expect("a file");
        fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("its mode");
        let loaded = Config::read(Some(&file), &environment(variables)).unwrap_or_else(|e| panic!("{e}"));
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        loaded
    };
    let loaded = read(url, &[given]);
    assert_eq!(loaded.config.worker.as_ref().expect("a worker").key, KeySource::File(credential.clone()));
    assert_eq!(origin(&loaded, "worker_key_file"), "credential worker_key");

    let loaded = read(&format!("{url}worker_key = \"{OTHER_KEY}\"\n"), &[given]);
    assert_eq!(
        loaded.config.worker.as_ref().expect("a worker").key,
        KeySource::Inline(OTHER_KEY.parse().unwrap())
    );
    assert_eq!(origin(&loaded, "worker_key"), format!("{}:2", file.display()));
    assert_eq!(origin(&loaded, "worker_key_file"), "-");

    // A variable replaces both forms of the file's.
    for text in
        [format!("{url}worker_key = \"{OTHER_KEY}\"\n"), format!("{url}worker_key_file = \"/nonexistent\"\n")]
    {
        let loaded = read(&text, &[given, ("MORPHEUS_WORKER_KEY", KEY)]);
        assert_eq!(
            loaded.config.worker.as_ref().expect("a worker").key,
            KeySource::Inline(KEY.parse().unwrap())
        );
        assert_eq!(origin(&loaded, "worker_key"), "$MORPHEUS_WORKER_KEY");
        let path = credential.to_str().expect("UTF-8");
        let loaded = read(&text, &[given, ("DWORKER_WORKER_KEY_FILE", path)]);
        assert_eq!(origin(&loaded, "worker_key_file"), "$DWORKER_WORKER_KEY_FILE");
        assert_eq!(origin(&loaded, "worker_key"), "-");
    }

    // Ours come before the older product's; an empty one is none.
    let loaded = parse(
        &format!("{url}worker_key = \"{KEY}\"\nlanes = 3\n"),
        &[
            ("DWORKER_APPLIANCE_URL", "https://ours.example/"),
            ("MORPHEUS_URL", "https://older.example"),
            ("DWORKER_LANES", ""),
        ],
    )
    .expect("a worker");
    assert_eq!(loaded.config.worker.as_ref().expect("a worker").appliance.host.to_string(), "ours.example");
    assert_eq!(
        (origin(&loaded, "appliance_url").as_str(), origin(&loaded, "lanes").as_str()),
        ("$DWORKER_APPLIANCE_URL", "dworker.toml:3")
    );
    assert_eq!(origin(&loaded, "drain"), "default");

    // The other credentials stand for their keys as well, where their sections are.
    for name in ["apikey", "appliance_key", "client_key", "proxy_password"] {
        fs::write(directory.path().join(name), "x").expect("a credential");
    }
    let text = format!(
        "{url}worker_key = \"{KEY}\"\nclient_certificate = \"/c\"\n[appliance]\nlisten = \"0.0.0.0:443\"\ncertificate = \"/c\"\n[proxy]\nhttp = \"127.0.0.1:3128\"\nuser = \"u\"\n"
    );
    let loaded = parse(&text, &[given]).expect("all roles");
    for (key, name) in [
        ("apikey_file", "apikey"),
        ("appliance.key", "appliance_key"),
        ("client_key", "client_key"),
        ("proxy.password_file", "proxy_password"),
    ] {
        assert_eq!(origin(&loaded, key), format!("credential {name}"));
        assert_eq!(
            value(&loaded, key),
            Some(Value::String(directory.path().join(name).display().to_string()))
        );
    }
    let alone = parse(url, &[given]).expect_err("a key without its certificate");
    assert!(alone.starts_with("credential client_key: client_certificate: missing: "), "{alone}");
    fs::remove_file(directory.path().join("client_key")).expect("no credential");
    let loaded = parse(url, &[given]).expect("a worker");
    assert_eq!(loaded.config.proxy, None, "a credential makes no section");
}

#[test]
fn wrong_variables_are_told_what_is_wrong() {
    let worker = format!("appliance_url = \"https://appliance.example\"\nworker_key = \"{KEY}\"\n");
    for (variable, text, expected) in [
        (
            "DWORKER_LANES",
            "9",
            "$DWORKER_LANES: lanes = 9: not between 1 and 8: write a number from 1 to 8, without quotes",
        ),
        (
            "DWORKER_LANES",
            "many",
            "$DWORKER_LANES: lanes = \"many\": a text where a whole number belongs: write a number from 1 to 8, without quotes",
        ),
        (
            "DWORKER_INSECURE_PLAINTEXT",
            "yes",
            "$DWORKER_INSECURE_PLAINTEXT: insecure_plaintext = \"yes\": a text where true or false belongs: write true or false, without quotes",
        ),
        (
            "DWORKER_WORKER_KEY",
            "hunter2",
            "$DWORKER_WORKER_KEY: worker_key = ***: not a worker key: it does not begin with `dwk_`, as every worker key does; paste it as it was first shown",
        ),
        (
            "MORPHEUS_URL",
            "appliance.example",
            "$MORPHEUS_URL: appliance_url = \"appliance.example\": not a URL: write \"https://HOST\" or \"https://HOST:PORT\"",
        ),
        (
            "DWORKER_EGRESS_ALLOW",
            "a.example, 10.0.0.0/33",
            "$DWORKER_EGRESS_ALLOW: egress.allow[1] = \"10.0.0.0/33\": not a proxy host: a network is written `10.20.0.0/16` or `2001:db8::/32`",
        ),
        ("DWORKER_LANSE", "2", "$DWORKER_LANSE: unknown variable: did you mean `DWORKER_LANES`?"),
        (
            "DWORKER_STEER_CGROUP",
            "a",
            "$DWORKER_STEER_CGROUP: unknown variable: did you mean `DWORKER_STEER_CGROUPS`?",
        ),
        (
            "DWORKER_COLOUR",
            "hunter2",
            "$DWORKER_COLOUR: unknown variable: unset it, or write it as `DWORKER_KEY` or `DWORKER_SECTION_KEY`, as in `DWORKER_STEER_CGROUPS`",
        ),
        (
            "DWORKER_STEER_CGROUPS",
            "a",
            "$DWORKER_STEER_CGROUPS: steer.proxy_hosts: missing: list proxy hosts, as in [\"vcenter.corp.example:443\", \"10.20.0.0/16\"]",
        ),
    ] {
        assert_eq!(parse(&worker, &[(variable, text)]).expect_err(variable), expected);
    }
    // What the command line reads is nobody's fault, and neither is what is not ours.
    let others = [("DWORKER_TOKEN", "dwa_x"), ("MORPHEUS_OTHER", "x"), ("PATH", "/bin")];
    assert!(parse(&worker, &others).is_ok());
    let both = [("DWORKER_WORKER_KEY", KEY), ("DWORKER_WORKER_KEY_FILE", "/k")];
    assert_eq!(
        parse("appliance_url = \"https://a.example\"", &both).expect_err("both"),
        "$DWORKER_WORKER_KEY_FILE: worker_key_file = \"/k\": `worker_key` ($DWORKER_WORKER_KEY) is set too: keep one of the two"
    );
    use std::os::unix::ffi::OsStringExt;
    let latin1 = std::ffi::OsString::from_vec(b"Z\xfcrich".to_vec());
    let said = Config::parse_in(&worker, "dworker.toml", &Environment::new("h", [("DWORKER_LOG", latin1)]));
    assert_eq!(said.expect_err("latin1").to_string(), "$DWORKER_LOG: not UTF-8: write it in UTF-8");
}

#[test]
fn lists_are_separated_by_commas_or_are_toml() {
    let worker = format!("appliance_url = \"https://appliance.example\"\nworker_key = \"{KEY}\"\n");
    let allow = |text: &str| {
        let config = parse(&worker, &[("DWORKER_EGRESS_ALLOW", text)]).expect(text).config;
        let allow = config.worker.expect("a worker").egress.allow.expect("a list");
        allow.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(allow(" a.example ,10.0.0.0/8,"), ["a.example", "10.0.0.0/8"]);
    assert_eq!(allow("[2001:db8::/32]:443"), ["[2001:db8::/32]:443"]);
    assert_eq!(allow("[\"a.example:443,902\", \"b.example\"]"), ["a.example:443,902", "b.example"]);
}

#[test]
fn what_many_programs_obey_counts_where_nothing_else_does() {
    let worker = format!("appliance_url = \"https://appliance.example\"\nworker_key = \"{KEY}\"\n");
    let proxy = [
        ("https_proxy", "proxy.example:3128"),
        ("HTTPS_PROXY", "http://other.example:3128"),
        ("NO_PROXY", "a.example,10.0.0.0/8"),
    ];
    let loaded = parse(&worker, &proxy).expect("a worker");
    let upstream = loaded.config.worker.as_ref().and_then(|worker| worker.upstream.clone()).expect("a proxy");
    assert_eq!(upstream.to_string(), "http://proxy.example:3128");
    assert_eq!(
        (origin(&loaded, "proxy_address").as_str(), origin(&loaded, "no_proxy").as_str()),
        ("$https_proxy", "$NO_PROXY")
    );
    let loaded =
        parse(&format!("{worker}proxy_address = \"http://file.example:1\"\n"), &proxy).expect("a worker");
    assert_eq!(
        (origin(&loaded, "proxy_address").as_str(), origin(&loaded, "no_proxy").as_str()),
        ("dworker.toml:3", "$NO_PROXY")
    );
    let loaded =
        parse(&worker, &[proxy[0], ("DWORKER_PROXY_ADDRESS", "http://ours.example:1")]).expect("a worker");
    assert_eq!(origin(&loaded, "proxy_address"), "$DWORKER_PROXY_ADDRESS");
    // An appliance goes through none, so it is nothing to it.
    let appliance = "[appliance]\nlisten = \"10.0.0.1:80\"\ninsecure_plaintext = true\n";
    assert!(parse(appliance, &proxy).expect("an appliance").config.worker.is_none());
}

#[test]
fn a_host_whose_name_is_no_url_has_no_default_url() {
    let worker = format!("appliance_url = \"https://appliance.example\"\nworker_key = \"{KEY}\"\n");
    let url = |host: &str| {
        let environment = Environment::new(host, [("", ""); 0]);
        let loaded = Config::parse_in(&worker, "dworker.toml", &environment).expect(host);
        let url = loaded
            .config
            .worker
            .as_ref()
            .and_then(|worker| worker.url.clone())
            .map(|url| url.host.to_string());
        (url, origin(&loaded, "worker_url"))
    };
    assert_eq!(url("My-Worker"), (Some("my-worker".into()), "default".into()));
    assert_eq!(url("no host"), (None, "-".into()));
}

#[test]
fn the_older_products_block_is_read_as_it_is() {
    let file = filled();
    let loaded =
        Config::parse_in(&file, "morpheus-worker.rb", &environment(&[])).unwrap_or_else(|e| panic!("{e}"));
    let worker = loaded.config.worker.as_ref().expect("a worker");
    assert_eq!(worker.appliance.host.to_string(), "appliance.example");
    assert_eq!(worker.key, KeySource::Inline(KEY.parse().unwrap()));
    assert!(
        matches!(&worker.api_key, Some(ApiKeySource::Inline(key)) if key.reveal() == "API KEY FOR THIS GATEWAY")
    );
    assert_eq!(origin(&loaded, "appliance_url"), "morpheus-worker.rb:2");
    let windows = format!("\u{feff}{}", file.replace('\n', "\r\n"));
    let read =
        Config::parse_in(&windows, "morpheus-worker.rb", &environment(&[])).expect("in Windows' manner");
    assert_eq!(read.config, loaded.config);
}

/// The block with its values filled in.
fn filled() -> String {
    let mut file = BLOCK.to_owned();
    for (template, value) in [
        ("'https://gateway_worker_url'", "'https://worker.example/'".to_owned()),
        ("'https://morpheus_appliance_url'", "'https://appliance.example/'".to_owned()),
        ("'DISTRIBUTED WORKER KEY'", format!("'{KEY}'")),
        ("'http://proxy.address:1234'", "'http://10.0.0.1:3128'".to_owned()),
        ("'vcenter.example.com,192.168.xx.xx'", "'vcenter.corp.example,192.168.0.0/16'".to_owned()),
    ] {
        assert!(file.contains(template), "{template}");
        file = file.replace(template, &value);
    }
    file
}

#[test]
fn what_nobody_has_filled_in_is_told() {
    let faults = Config::parse(BLOCK, "morpheus-worker.rb").expect_err("a template").to_string();
    let told: Vec<&str> = faults.lines().filter_map(|line| line.split('`').nth(1)).collect();
    assert_eq!(told, ["worker_url", "appliance_url", "worker_key", "proxy_address", "no_proxy"], "{faults}");
}

#[test]
fn the_file_is_found() {
    let directory = tempfile::tempdir().expect("a directory");
    let places = ["dworker.toml", "morpheus-worker.rb"].map(|name| directory.path().join(name));
    let [ours, older] = places.clone();
    let (none, some) = (environment(&[]), environment(&[("MORPHEUS_URL", "https://a.example")]));
    assert_eq!(config::find(&places, &none), Some(ours.clone()), "the fault names ours");
    assert_eq!(config::find(&places, &some), None);
    fs::write(&older, "worker['lanes'] = 2\n").expect("a file");
    assert_eq!(config::find(&places, &some), Some(older.clone()));
    fs::write(&ours, config::template()).expect("a file");
    assert_eq!(config::find(&places, &none), Some(older.clone()), "ours is all comments");
    fs::remove_file(&older).expect("it is there");
    assert_eq!(config::find(&places, &none), Some(ours.clone()));
    fs::write(&older, "worker['lanes'] = 2\n").expect("a file");
    fs::write(&ours, "# a comment\n  lanes = 2\n").expect("a file");
    assert_eq!(config::find(&places, &none), Some(ours));
}
