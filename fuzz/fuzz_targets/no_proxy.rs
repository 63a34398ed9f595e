//! Whatever stands in `no_proxy`: it is refused with a reason or means what it says.

#![no_main]

use dworker::target::{Exempt, Host, HostPattern, NoProxy, Target};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut list = Vec::new();
    for entry in NoProxy::split(text) {
        match entry.parse::<Exempt>() {
            Err(error) => assert!(!error.to_string().is_empty()),
            Ok(exempt) => {
                check(entry, &exempt);
                list.push(exempt);
            }
        }
    }
    // A longer list exempts no less.
    let whole: NoProxy = list.iter().cloned().collect();
    for exempt in &list {
        let target = Target { host: example(exempt), port: port(exempt) };
        assert!(whole.exempts(&target), "{exempt} is lost in {text:?}");
    }
});

fn check(text: &str, exempt: &Exempt) {
    let printed = exempt.to_string();
    assert_eq!(printed.parse::<Exempt>().as_ref(), Ok(exempt), "{text:?} is printed as {printed:?}");
    let alone: NoProxy = [exempt.clone()].into_iter().collect();
    let target = Target { host: example(exempt), port: port(exempt) };
    assert!(alone.exempts(&target), "{printed} does not exempt {target}");
}

fn port(exempt: &Exempt) -> u16 {
    match exempt {
        Exempt::Some(pattern) => pattern.ports.first().map_or(443, |ports| ports.0),
        Exempt::All => 443,
    }
}

/// A host that the entry means.
fn example(exempt: &Exempt) -> Host {
    let Exempt::Some(pattern) = exempt else { return Host::Addr([192, 0, 2, 1].into()) };
    match &pattern.host {
        HostPattern::Name(name) => Host::Name(name.clone()),
        HostPattern::Net(net) => Host::addr(net.network()),
        HostPattern::Suffix(suffix) => {
            // Longer names may not exist: a name has 253 characters at most.
            let below = format!("a.{suffix}");
            below.parse().unwrap_or(Host::Name("a.localhost".parse().unwrap()))
        }
    }
}
