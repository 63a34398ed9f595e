use super::*;
use crate::target::Pattern;
use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

use proptest::prelude::*;
use tempfile::TempDir;

/// Records what the kernel would have been told, and refuses when told to.
#[derive(Default)]
struct Kernel {
    told: Mutex<Vec<String>>,
    refuse: AtomicBool,
    /// Where the file of names is: an address that is told must stand there already.
    file: Option<PathBuf>,
}

impl NameRules for Kernel {
    fn on_assigned(&self, name: &Name, addresses: Synthetic) -> io::Result<()> {
        if self.refuse.load(Ordering::Relaxed) {
            return Err(io::Error::other("the map is full"));
        }
        if let Some(file) = &self.file {
            let line = format!("{} {name} {} {}\n", addresses.index, addresses.v4, addresses.v6);
            assert!(fs::read_to_string(file)?.contains(&line), "{name} is told before it is written");
        }
        self.told.lock().unwrap().push(format!("{name} {}", addresses.v4));
        Ok(())
    }
}

impl Kernel {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.told.lock().unwrap())
    }
}

/// Makes these the proxy hosts.
fn set(names: &Names, texts: &[&str]) {
    let patterns: Vec<Pattern> = texts.iter().map(|text| text.parse().unwrap()).collect();
    let index = Arc::new(PatternIndex::new(&patterns));
    names.change().set(index.clone(), |name, _| Ok::<_, Infallible>(index.covers(name.as_str()))).unwrap();
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn open(dir: &TempDir) -> Result<Names, NamesError> {
    Names::open(dir.path(), Prefixes::default(), Arc::new(Kernel::default()))
}

/// Opens with `*.example` as the only pattern.
fn open_wild(dir: &TempDir) -> Names {
    let names = open(dir).unwrap();
    set(&names, &["*.example"]);
    names
}

fn lookup(names: &Names, text: &str) -> String {
    names.lookup(&name(text)).unwrap().unwrap().v4.to_string()
}

fn content(dir: &TempDir) -> String {
    fs::read_to_string(dir.path().join("names")).unwrap()
}

const HEADER: &str = "dworker names 1 240.64.0.0/16 2001:2::/48\n";

#[test]
fn a_name_keeps_its_address_and_it_leads_back() {
    let dir = TempDir::new().unwrap();
    let names = open_wild(&dir);
    assert_eq!(lookup(&names, "a.example"), "240.64.0.1");
    assert_eq!(lookup(&names, "b.example"), "240.64.0.2");
    assert_eq!(lookup(&names, "a.example"), "240.64.0.1");
    assert_eq!(names.lookup(&name("a.other")).unwrap(), None);
    drop(names);

    let names = open_wild(&dir);
    assert_eq!(lookup(&names, "c.example"), "240.64.0.3");
    assert_eq!(lookup(&names, "b.example"), "240.64.0.2");
    assert_eq!(names.name_of("240.64.0.2".parse().unwrap()), Some(name("b.example")));
    assert_eq!(names.reverse("2001:2::3".parse().unwrap()), Reverse::Name(name("c.example")));
    assert_eq!(names.reverse("240.64.0.4".parse().unwrap()), Reverse::Unassigned);
    assert_eq!(names.reverse("240.64.0.0".parse().unwrap()), Reverse::Unassigned);
    assert_eq!(names.reverse("10.0.0.1".parse().unwrap()), Reverse::Outside);
    let all: Vec<String> = names.all().iter().map(|(name, s)| format!("{name} {}", s.v6)).collect();
    assert_eq!(all, ["a.example 2001:2::1", "b.example 2001:2::2", "c.example 2001:2::3"]);
}

#[test]
fn the_file_reads_well_and_is_private() {
    let dir = TempDir::new().unwrap();
    let names = open_wild(&dir);
    lookup(&names, "a.example");
    let line = "1 a.example 240.64.0.1 2001:2::1\n";
    assert_eq!(content(&dir), format!("{HEADER}{line}"));
    let mode = || fs::metadata(dir.path().join("names")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    drop(names);
    fs::set_permissions(dir.path().join("names"), PermissionsExt::from_mode(0o644)).unwrap();
    drop(open_wild(&dir));
    assert_eq!(mode(), 0o600);
}

#[test]
fn the_rule_is_told_after_the_disk_and_before_the_answer() {
    let dir = TempDir::new().unwrap();
    let kernel = Arc::new(Kernel { file: Some(dir.path().join("names")), ..Kernel::default() });
    let names = Names::open(dir.path(), Prefixes::default(), kernel.clone()).unwrap();
    set(&names, &["*.example", "*.example:443", "a.example"]);
    let host = name("a.example");
    assert_eq!(names.assigned(&host), None);
    names.lookup(&host).unwrap().unwrap();
    assert_eq!(kernel.take(), ["a.example 240.64.0.1"]);
    names.lookup(&host).unwrap().unwrap();
    assert!(kernel.take().is_empty());
    assert_eq!(names.assigned(&host).unwrap().index, 1);
}

#[test]
fn a_rule_that_fails_is_no_answer_and_is_tried_again() {
    let dir = TempDir::new().unwrap();
    let kernel = Arc::new(Kernel::default());
    let names = Names::open(dir.path(), Prefixes::default(), kernel.clone()).unwrap();
    set(&names, &["*.example"]);
    kernel.refuse.store(true, Ordering::Relaxed);
    let error = names.lookup(&name("a.example")).unwrap_err().to_string();
    assert!(error.contains("a.example") && error.contains("the map is full"), "{error}");
    assert_eq!(names.assigned(&name("a.example")), None);
    kernel.refuse.store(false, Ordering::Relaxed);
    assert_eq!(lookup(&names, "a.example"), "240.64.0.1");
}

#[test]
fn names_become_proxy_hosts_and_cease_to_be() {
    let dir = TempDir::new().unwrap();
    let kernel = Arc::new(Kernel::default());
    let names = Names::open(dir.path(), Prefixes::default(), kernel.clone()).unwrap();
    set(&names, &["*.example"]);
    let [a, b] = ["a.example", "b.example"].map(name);
    lookup(&names, "a.example");
    lookup(&names, "b.example");
    assert_eq!(kernel.take(), ["a.example 240.64.0.1", "b.example 240.64.0.2"]);

    set(&names, &["a.example:443"]);
    assert!(names.assigned(&a).is_some(), "it is one still: it is answered without a pause");
    assert_eq!(names.standing("b.example"), Standing::Foreign);
    assert_eq!((names.assigned(&b), names.lookup(&b).unwrap()), (None, None));
    assert_eq!(names.name_of("240.64.0.2".parse().unwrap()), Some(b.clone()), "its address stays its own");

    // Who changes the patterns has put the rules of known names into the kernel.
    set(&names, &["*.example"]);
    assert_eq!(names.assigned(&b).unwrap().v4.to_string(), "240.64.0.2");
    assert!(kernel.take().is_empty());
    // Unless that went wrong.
    names.change().distrust();
    assert_eq!(names.assigned(&b), None);
    kernel.refuse.store(true, Ordering::Relaxed);
    names.lookup(&b).unwrap_err();
    kernel.refuse.store(false, Ordering::Relaxed);
    assert_eq!(lookup(&names, "b.example"), "240.64.0.2");
    assert_eq!(kernel.take(), ["b.example 240.64.0.2"]);
}

#[test]
fn a_known_name_is_a_proxy_host_if_who_puts_its_rule_says_so() {
    let dir = TempDir::new().unwrap();
    let kernel = Arc::new(Kernel::default());
    let names = Names::open(dir.path(), Prefixes::default(), kernel.clone()).unwrap();
    set(&names, &["*.example"]);
    let [a, b] = ["a.example", "b.example"].map(name);
    lookup(&names, "a.example");
    lookup(&names, "b.example");
    kernel.take();
    let patterns = Arc::new(PatternIndex::new(&["*.example".parse().unwrap()]));
    let mut asked = Vec::new();
    let change = names.change();
    let steer = |name: &Name, addresses: Synthetic| {
        asked.push(format!("{name} {}", addresses.v4));
        assert!(names.assigned(name).is_some(), "it counts only afterwards");
        Ok::<_, Infallible>(*name == a)
    };
    change.set(patterns.clone(), steer).unwrap();
    drop(change);
    assert_eq!(asked, ["a.example 240.64.0.1", "b.example 240.64.0.2"], "each once");
    assert!(names.assigned(&a).is_some() && names.assigned(&b).is_none());
    // So its next question puts its rule into the kernel.
    lookup(&names, "b.example");
    assert_eq!(kernel.take(), ["b.example 240.64.0.2"]);
    // Where a rule can't be put, all is as it was.
    names.change().set(Arc::default(), |_, _| Err("the map is full")).unwrap_err();
    assert!(names.assigned(&a).is_some() && names.standing("a.example") == Standing::ProxyHost(a));
}

#[test]
fn no_name_gets_an_address_while_the_patterns_change() {
    let dir = TempDir::new().unwrap();
    let names = open_wild(&dir);
    let (change, asks) = (names.change(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            asks.store(true, Ordering::Release);
            names.lookup(&name("a.example")).unwrap()
        });
        while !asks.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        // Without the lock it would be through by now.
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!asking.is_finished() && names.all().is_empty());
        change.set(Arc::default(), |_, _| Ok::<_, Infallible>(false)).unwrap();
        drop(change);
        assert_eq!(asking.join().unwrap(), None, "it was asked for before, and waited");
    });
    assert!(names.all().is_empty());
}

#[test]
fn a_second_daemon_is_refused_until_the_first_is_gone() {
    let dir = TempDir::new().unwrap();
    let first = open(&dir).unwrap();
    let error = open(&dir).err().unwrap();
    assert!(matches!(error, NamesError::File(FileError::Locked { .. })), "{error}");
    assert!(error.to_string().contains("another dworker"), "{error}");
    drop(first);
    open(&dir).unwrap();
}

#[test]
fn a_full_prefix_is_an_error_and_known_names_go_on() {
    let dir = TempDir::new().unwrap();
    let prefixes = Prefixes::new("240.64.0.0/30".parse().unwrap(), "2001:2::/64".parse().unwrap()).unwrap();
    let names = Names::open(dir.path(), prefixes, Arc::new(Kernel::default())).unwrap();
    set(&names, &["*.example"]);
    lookup(&names, "a.example");
    lookup(&names, "b.example");
    let error = names.lookup(&name("c.example")).unwrap_err();
    assert!(matches!(error, NamesError::Full { capacity: 2, .. }), "{error}");
    assert!(error.to_string().contains("240.64.0.0/30"), "{error}");
    assert_eq!(lookup(&names, "b.example"), "240.64.0.2");
    assert_eq!(content(&dir).lines().count(), 3);
}

#[test]
fn other_prefixes_are_an_error_with_both_named() {
    let dir = TempDir::new().unwrap();
    lookup(&open_wild(&dir), "a.example");
    let prefixes = Prefixes::new("240.65.0.0/16".parse().unwrap(), "2001:2::/48".parse().unwrap()).unwrap();
    let error = Names::open(dir.path(), prefixes, Arc::new(Kernel::default())).err().unwrap();
    assert!(matches!(error, NamesError::File(FileError::Prefixes { .. })), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("240.64.0.0/16 2001:2::/48") && text.contains("240.65.0.0/16 2001:2::/48"),
        "{text}"
    );
    assert_eq!(lookup(&open_wild(&dir), "a.example"), "240.64.0.1", "nothing was changed");
}

#[test]
fn a_missing_directory_is_named() {
    let dir = TempDir::new().unwrap();
    let error = Names::open(&dir.path().join("none"), Prefixes::default(), Arc::new(Kernel::default()));
    let text = error.err().unwrap().to_string();
    assert!(text.contains("none/names") && text.contains("directory must exist"), "{text}");
}

/// Wherever a crash cuts the append of a line, also where the file was lengthened and the data never came,
/// the names before it stay, and the next name follows them.
#[test]
fn a_line_that_a_crash_cut_off_is_repaired() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("names");
    let whole = "1 a.example 240.64.0.1 2001:2::1\n";
    let line = "2 b.example 240.64.0.2 2001:2::2\n";
    let mut tails: Vec<Vec<u8>> = (0..line.len()).map(|cut| line.as_bytes()[..cut].to_vec()).collect();
    tails.push(vec![0; line.len()]);
    for cut in 0..line.len() {
        let mut zeroed = vec![0; cut];
        zeroed.extend(&line.as_bytes()[cut..]);
        if cut > 0 {
            tails.push(zeroed);
        }
    }
    for tail in tails {
        fs::write(&path, [HEADER.as_bytes(), whole.as_bytes(), &tail].concat()).unwrap();
        let names = open_wild(&dir);
        assert_eq!(lookup(&names, "a.example"), "240.64.0.1");
        // Only the line that lacks nothing but its end may have been answered: it stays.
        let kept = tail.len() == line.len() - 1;
        let next = if kept { "240.64.0.3" } else { "240.64.0.2" };
        assert_eq!(lookup(&names, "c.example"), next, "{}", tail.escape_ascii());
        drop(names);
        let names = open_wild(&dir);
        assert_eq!(lookup(&names, "c.example"), next, "after {}", tail.escape_ascii());
    }
}

#[test]
fn a_crash_at_the_very_first_start_is_repaired() {
    let dir = TempDir::new().unwrap();
    for cut in 0..HEADER.len() {
        for bytes in [HEADER.as_bytes()[..cut].to_vec(), vec![0; cut]] {
            fs::write(dir.path().join("names"), bytes).unwrap();
            drop(open(&dir).unwrap());
            assert_eq!(content(&dir), HEADER);
        }
    }
}

#[test]
fn damage_is_named_with_its_line_and_left_as_it_is() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("names");
    let a = "1 a.example 240.64.0.1 2001:2::1\n";
    for (text, says) in [
        ("\0".repeat(HEADER.len()), "line 1"),
        ("garbage\n".to_owned(), "line 1: \"garbage\" is not the header"),
        ("something without a line end that is longer than the header would be".to_owned(), "line 1"),
        (HEADER.replace(" 1 ", " 2 "), "newer dworker"),
        (format!("{HEADER}2 a.example 240.64.0.2 2001:2::2\n"), "line 2: \"2 a.example"),
        (format!("{HEADER}1 a.example 240.64.0.9 2001:2::1\n"), "addresses are not those"),
        (format!("{HEADER}1 a.example 240.64.0.1 2001:2::1 \n"), "addresses are not those"),
        (format!("{HEADER}1 a..example 240.64.0.1 2001:2::1\n"), "not a name"),
        (format!("{HEADER}1 \0.example 240.64.0.1 2001:2::1\n2 b.example 240.64.0.2 2001:2::2\n"), "line 2"),
        (format!("{HEADER}\n{a}"), "line 2: \"\" is damaged"),
        (
            format!("{HEADER}{a}2 a.example 240.64.0.2 2001:2::2\n"),
            "line 3: \"a.example\" is damaged: the name stands",
        ),
        (format!("{HEADER}{a}{}", "x".repeat(600)), "line 3"),
    ] {
        fs::write(&path, &text).unwrap();
        let error = open(&dir).err().unwrap_or_else(|| panic!("{text:?} was taken")).to_string();
        assert!(error.contains(says), "{text:?} gave {error:?}, without {says:?}");
        assert_eq!(content(&dir), text, "it was changed");
    }
}

#[test]
fn a_look_at_the_file_finds_what_an_opening_would_and_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("names");
    let check = |prefixes| check_file(&path, prefixes);
    assert_eq!(check(Prefixes::default()).unwrap(), 0, "no file");
    let names = open_wild(&dir);
    lookup(&names, "a.corp.example");
    // While somebody has it.
    assert_eq!(check(Prefixes::default()).unwrap(), 1);
    drop(names);
    let whole = content(&dir);
    let other = Prefixes::new("240.65.0.0/16".parse().unwrap(), Prefixes::default().v6()).unwrap();
    assert!(matches!(check(other), Err(FileError::Prefixes { .. })));
    // A line that was never answered is no fault; the next opening repairs it.
    let torn = format!("{whole}2 b.corp.ex");
    std::fs::write(&path, &torn).unwrap();
    assert_eq!(check(Prefixes::default()).unwrap(), 1);
    assert_eq!(content(&dir), torn);
    std::fs::write(&path, format!("{whole}3 b.corp.example 240.64.0.3 2001:2::3\n")).unwrap();
    assert!(matches!(check(Prefixes::default()), Err(FileError::Damaged { line: 3, .. })));
}

#[test]
fn a_process_that_has_handed_the_file_on_keeps_nobody_off_it() {
    let dir = TempDir::new().unwrap();
    let first = open(&dir).unwrap();
    let handed_on = first.freeze().unwrap();
    first.leave();
    assert!(open(&dir).is_err(), "the second one has it");
    drop(handed_on);
    let third = open(&dir).expect("nobody has it");
    set(&third, &["*.example"]);
    assert_eq!(lookup(&third, "a.example"), "240.64.0.1");
    assert!(first.freeze().is_err(), "it is not the first one's to hand on");
}

#[test]
fn threads_that_ask_at_once_get_the_same_addresses() {
    let dir = TempDir::new().unwrap();
    let kernel = Arc::new(Kernel::default());
    let names = Names::open(dir.path(), Prefixes::default(), kernel.clone()).unwrap();
    set(&names, &["*.example"]);
    let ask = || (0..20).map(|i| lookup(&names, &format!("h{i}.example"))).collect::<Vec<String>>();
    let answers: Vec<Vec<String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(kernel.take().len(), 20, "each rule is installed once");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes in which order - questions, restarts, other patterns - a name keeps its first address,
    /// and no two names share one.
    #[test]
    fn addresses_are_stable_and_unique(steps in prop::collection::vec((0u8..12, 0usize..8), 1..60)) {
        let dir = TempDir::new().unwrap();
        let all = ["*.example", "*.a.example", "b.example", "c.example"];
        let mut names = open_wild(&dir);
        let mut given: HashMap<String, Synthetic> = HashMap::new();
        for (step, which) in steps {
            match step {
                0 => {
                    drop(names);
                    names = open_wild(&dir);
                }
                1 => set(&names, &all[which % 4..]),
                _ => {
                    let text = ["a", "b", "c", "d", "x.a", "y.a", "z", "example"][which].to_owned() + ".example";
                    let host = name(&text);
                    let covered = names.standing(&text) != Standing::Foreign;
                    let found = names.lookup(&host).unwrap();
                    prop_assert_eq!(found.is_some(), covered);
                    if let Some(addresses) = found {
                        prop_assert_eq!(*given.entry(text).or_insert(addresses), addresses);
                        prop_assert_eq!(names.name_of(addresses.v4.into()), Some(host.clone()));
                        prop_assert_eq!(names.name_of(addresses.v6.into()), Some(host));
                    }
                }
            }
        }
        let distinct: std::collections::HashSet<u32> = given.values().map(|s| s.index).collect();
        prop_assert_eq!(distinct.len(), given.len());
        prop_assert_eq!(names.all().len(), given.len());
    }
}
