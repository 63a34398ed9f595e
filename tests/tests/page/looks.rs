//! What the page must be for everybody: readable in each theme, whole on each screen, all of it by keyboard.

use anyhow::Result;
use serde_json::{Value, json};
use tests::traffic::Connect;
use tests::{Daemon, Lab};
use thirtyfour::Key;

use crate::browser::{Browser, SOON, Screen, drive};
use crate::house::{House, ORIGIN, add_cloud, add_worker, worker_config};

/// Every text that is too faint on its ground, and every control whose edge is, with the contrast that it has.
/// Grounds that let something shine through are mixed with what is below them.
const FAINT: &str = r#"
const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (color) => {
  pixel.clearRect(0, 0, 1, 1); pixel.fillStyle = color; pixel.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = pixel.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
};
const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
const ground = (element) => {
  const layers = [];
  for (let e = element; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
  return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
};
const light = (color) => {
  const [r, g, b] = color.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
const faint = [], seen = new Set();
const judge = (what, element, color, least) => {
  const under = ground(element), has = contrast(over(rgba(color), under), under);
  seen.add(element);
  if (has < least) faint.push(`${what} ${element.outerHTML.slice(0, 90)}: ${has.toFixed(2)}`);
};
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement;
  if (!texts.currentNode.nodeValue.trim() || element.closest(".unseen, script, option")) continue;
  if (!element.checkVisibility()) continue;
  judge("text", element, getComputedStyle(element).color, 4.5);
}
for (const control of document.querySelectorAll("input:not([type=hidden], [type=checkbox]), select, textarea")) {
  if (!control.checkVisibility()) continue;
  judge("value", control, getComputedStyle(control).color, 4.5);
  judge("placeholder", control, getComputedStyle(control, "::placeholder").color, 4.5);
  judge("edge", control.parentElement, getComputedStyle(control).borderTopColor, 3);
}
return { faint, seen: seen.size };
"#;

/// Everything that one can act on, by its text, that Tab should reach.
const ACTIONS: &str = r#"
const all = document.querySelectorAll("a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex='0']");
return [...all].filter((e) => e.checkVisibility() && !e.disabled && !e.closest("dialog")).length;
"#;

/// A page of every kind.
const PAGES: [&str; 11] = [
    "/workers",
    "/workers/1",
    "/workers/new",
    "/workers/1/edit",
    "/workers/1/rotate",
    "/clouds",
    "/clouds/1/edit",
    "/connections",
    "/events",
    "/sign-in",
    "/no-such-page",
];

/// Fills the pages: long and hostile texts, a worker in each state, events and connections good and bad.
fn furnished(lab: &Lab, browser: &Browser, house: &House) -> Result<Daemon> {
    browser.open("/sign-in")?;
    browser.fill("#token", "dwa_wrong")?;
    browser.press(Key::Enter)?;
    browser.find_text(".wrong", "not the admin token")?;
    house.sign_in(browser)?;
    let long = "a-host-name-that-is-rather-long-and-does-not-end-soon.department.corp.example:443";
    let hosts = format!("{long}, 10.20.0.0/16, *.corp.example");
    let (_, lines) = add_worker(browser, "site-a", "Words without end. ".repeat(20).trim(), &hosts)?;
    add_worker(browser, "site-b", "<b>bold</b>", "fd00:0:0:7::/64")?;
    add_worker(browser, "site-c", "", "")?;
    browser.open("/workers/3")?;
    browser.click("a", "Disable")?;
    browser.click("dialog button", "Disable")?;
    browser.find_text(".title", "Disabled")?;
    let url = format!("https://{}.example/api", "vcenter".repeat(8));
    add_cloud(browser, "Cloud ".repeat(16).trim(), "Nutanix", &url, "site-a")?;

    let worker = lab.site().daemon("worker", worker_config(lab, &lines)?)?;
    house.wait_for_rule("*.corp.example")?;
    house.appliance.wait_for_group("site-a", SOON)?;
    let reports = Connect::to("refused.corp.example", 443).captured(lab.appliance())?;
    assert!(reports.iter().all(|report| report.received == 0), "{reports:?}");
    house.appliance.wait_for_flow("refused.corp.example:443", "refused", SOON)?;
    Ok(worker)
}

#[test]
fn every_page_is_readable_and_whole_in_each_theme_on_each_screen() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab)?;
    lab.explain(|| {
        drive(&lab, lab.elsewhere(), ORIGIN, |browser| {
            let _worker = furnished(&lab, browser, &house)?;
            for path in PAGES {
                for (screen, theme) in [
                    (Screen::Desktop, "light"),
                    (Screen::Desktop, "dark"),
                    (Screen::Phone, "light"),
                    (Screen::Phone, "dark"),
                ] {
                    browser.screen(screen)?;
                    browser.prefer(theme)?;
                    browser.open(path)?;
                    browser.find("h1")?;
                    let found = browser.script(FAINT, vec![])?;
                    assert_eq!(found["faint"], json!([]), "{path} {screen:?} {theme}");
                    assert!(found["seen"].as_u64() > Some(4), "{path}: {found}");
                    let width = "return document.documentElement.scrollWidth - innerWidth";
                    assert!(
                        browser.script(width, vec![])?.as_i64().is_some_and(|over| over <= 0),
                        "{path} {screen:?} is too wide"
                    );
                }
            }
            Ok(())
        })
    })
}

#[test]
fn the_theme_is_chosen_and_stays() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab)?;
    let ground = |browser: &Browser| {
        browser.script("return getComputedStyle(document.documentElement).backgroundColor", vec![])
    };
    lab.explain(|| {
        drive(&lab, lab.elsewhere(), ORIGIN, |browser| {
            browser.prefer("dark")?;
            house.sign_in(browser)?;
            let dark = ground(browser)?;
            browser.click("#theme", "System")?;
            browser.find_text("#theme", "Light")?;
            let light = ground(browser)?;
            assert_ne!(light, dark);
            // Before anything is drawn: the attribute is there when the body begins to be.
            browser.open("/clouds")?;
            assert_eq!(ground(browser)?, light);
            browser.click("#theme", "Light")?;
            browser.prefer("light")?;
            assert_eq!(ground(browser)?, dark, "chosen dark, whatever the system prefers");
            browser.click("#theme", "Dark")?;
            browser.find_text("#theme", "System")?;
            assert_eq!(ground(browser)?, light);
            Ok(())
        })
    })
}

#[test]
fn all_of_it_is_reached_by_keyboard() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab)?;
    let focus = |browser: &Browser| -> Result<Value> {
        browser.script("return document.activeElement.textContent.trim()", vec![])
    };
    lab.explain(|| {
        drive(&lab, lab.elsewhere(), ORIGIN, |browser| {
            let _worker = furnished(&lab, browser, &house)?;
            for path in PAGES.into_iter().filter(|path| *path != "/sign-in") {
                browser.open(path)?;
                browser.find("h1")?;
                let actions = browser.script(ACTIONS, vec![])?.as_u64().unwrap_or(0);
                let mut reached = std::collections::BTreeSet::new();
                browser.script("document.activeElement.blur(); window.met = [];", vec![])?;
                for _ in 0..=actions {
                    browser.press(Key::Tab)?;
                    let (at, visible) = focused(browser)?;
                    assert!(visible, "{path}: the focus on {at} can't be seen");
                    reached.insert(at);
                }
                reached.retain(|at| *at >= 0);
                assert_eq!(reached.len() as u64, actions, "{path}");
            }

            // The first stop leads past the navigation.
            browser.open("/workers")?;
            browser.press(Key::Tab)?;
            assert_eq!(focus(browser)?, "Skip to content");
            browser.press(Key::Enter)?;
            browser.press(Key::Tab)?;
            assert_eq!(focus(browser)?, "Add a worker");

            // A question by keyboard: opened, cancelled, and the focus is where it was.
            browser.open("/workers/2")?;
            browser.tab_to("a[href='/workers/2/remove']")?;
            browser.press(Key::Enter)?;
            browser.find_text("dialog h1", "Remove site-b?")?;
            let inside = "return document.activeElement.closest('dialog') !== null";
            assert_eq!(browser.script(inside, vec![])?, true);
            browser.press(Key::Escape)?;
            browser.gone("dialog[open]")?;
            assert_eq!(focus(browser)?, "Remove");
            browser.press(Key::Enter)?;
            browser.find("dialog h1")?;
            browser.tab_to("dialog button")?;
            browser.press(Key::Enter)?;
            browser.find_text(".note", "site-b is removed.")?;

            // A form from its first field to its end.
            browser.open("/workers/new")?;
            assert_eq!(browser.script("return document.activeElement.id", vec![])?, "name");
            browser.press("site-d")?;
            browser.tab_to("#enabled")?;
            browser.press(" ")?;
            browser.press(Key::Enter)?;
            browser.find_text("h1", "site-d is added")?;
            browser.tab_to("main .after a")?;
            browser.press(Key::Enter)?;
            browser.find_text(".title", "Disabled")?;
            Ok(())
        })
    })
}

/// Which of the things that have had the focus has it now (by a number of their own), and whether one sees that.
fn focused(browser: &Browser) -> Result<(i64, bool)> {
    let script = r#"
const e = document.activeElement;
if (e === document.body) return [-1, true];
if (!window.met.includes(e)) window.met.push(e);
const style = getComputedStyle(e);
const box = e.getBoundingClientRect();
const shown = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 || e.matches(".skip");
return [window.met.indexOf(e), shown && box.bottom > 0 && box.top < innerHeight && box.width > 0];
"#;
    let found = browser.script(script, vec![])?;
    Ok((found[0].as_i64().unwrap_or(-1), found[1] == true))
}
