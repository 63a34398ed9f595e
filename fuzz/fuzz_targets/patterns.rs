//! Whatever an administrator writes for a proxy host: it is refused with a reason or means what it says.

#![no_main]

use std::net::IpAddr;

use dworker::target::{Host, HostPattern, Pattern, PortRange};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match text.parse::<Pattern>() {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(pattern) => check(text, &pattern),
    }
});

fn check(text: &str, pattern: &Pattern) {
    // What is printed reads back as the same: status and logs name rules this way.
    let printed = pattern.to_string();
    assert_eq!(printed.parse::<Pattern>().as_ref(), Ok(pattern), "{text:?} is printed as {printed:?}");

    // Ports are sorted, do not touch, and never include 0.
    assert!(pattern.ports.iter().all(|PortRange(first, last)| 0 < *first && first <= last), "{printed}");
    assert!(pattern.ports.windows(2).all(|pair| pair[0].1 < pair[1].0), "{printed}");

    // No rule is dead: each covers the hosts that it names, in the way an application asks for them.
    match &pattern.host {
        HostPattern::Name(name) => {
            assert!(name.as_str().parse::<IpAddr>().is_err(), "the address {name} was taken for a name");
            assert!(covers(pattern, name.as_str()), "{printed}");
        }
        HostPattern::Suffix(suffix) => {
            assert!(!covers(pattern, suffix.as_str()), "{printed}");
            // Longer names may not exist: a name has 253 characters at most.
            let below = format!("a.{suffix}");
            assert!(below.len() > 253 || covers(pattern, &below), "{printed}");
        }
        HostPattern::Net(net) => {
            assert_eq!(*net, net.trunc(), "{printed} has bits behind its prefix");
            assert!(covers(pattern, &net.network().to_string()), "{printed}");
        }
    }
}

fn covers(pattern: &Pattern, host: &str) -> bool {
    host.parse::<Host>().is_ok_and(|host| pattern.covers_host(&host))
}
