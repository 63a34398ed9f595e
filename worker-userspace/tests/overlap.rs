//! Synthetic prefixes against the addresses and routes of real network namespaces. Needs root and `ip`.

use std::process::Command;

use dworker::steer::names::{Prefixes, check_overlap};
use nix::sched::{CloneFlags, unshare};

/// What the check says in a new namespace with these lines of `ip` applied; it ends with the thread.
fn check(prepare: &'static [&'static str]) -> Result<(), String> {
    let inside = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (run as root)");
        for line in ["link set lo up"].iter().chain(prepare) {
            let status = Command::new("ip").args(line.split(' ')).status().expect("ip (Debian: iproute2)");
            assert!(status.success(), "ip {line}");
        }
        check_overlap(&Prefixes::default()).map_err(|error| error.to_string())
    };
    std::thread::spawn(inside).join().unwrap()
}

#[test]
fn a_host_that_uses_the_prefix_is_told_where() {
    for (prepare, says) in [
        (
            &["addr add 240.64.3.1/24 dev lo"][..],
            "steer.synthetic4 = \"240.64.0.0/16\" overlaps the address 240.64.3.1 of interface lo",
        ),
        (
            &["addr add 2001:2::5/64 dev lo nodad"],
            "steer.synthetic6 = \"2001:2::/48\" overlaps the address 2001:2::5 of interface lo",
        ),
        // Tentative: duplicate address detection holds the address's own route back for a second and more.
        (
            &[
                "link add site type veth peer name far",
                "link set far up",
                "link set site up",
                "addr add 2001:2:0:7::5/128 dev site",
            ],
            "steer.synthetic6 = \"2001:2::/48\" overlaps the address 2001:2:0:7::5 of interface site",
        ),
        (&["route add 240.64.8.0/24 dev lo"], "overlaps the route to 240.64.8.0/24 through interface lo"),
        // A VPN's own table, which /proc/net/route does not show.
        (
            &["route add 240.0.0.0/4 dev lo table 51820"],
            "overlaps the route to 240.0.0.0/4 through interface lo",
        ),
        (
            &["-6 route add 2001:2::/40 dev lo table 51820"],
            "overlaps the route to 2001:2::/40 through interface lo",
        ),
    ] {
        let error = check(prepare).expect_err(says);
        assert!(error.contains(says), "{prepare:?} gave {error:?}, without {says:?}");
    }
}

#[test]
fn default_routes_and_routes_that_discard_are_no_overlap() {
    let lines = &[
        "route add default dev lo",
        "route add 0.0.0.0/1 dev lo",
        "route add 128.0.0.0/1 dev lo",
        "route add blackhole 240.0.0.0/4",
        "addr add 240.63.0.1/16 dev lo",
        "-6 route add default dev lo",
        "-6 route add 2000::/3 dev lo",
        "-6 route add unreachable 2001:2::/32",
        "-6 addr add 2001:2:1::1/48 dev lo nodad",
    ];
    check(lines).unwrap();
}
