//! A browser on a host of the lab: headless Chromium, new and empty, that trusts the lab's authority.
//!
//! It is driven by chromedriver, which runs on the same host. So what drives it must run inside that host's
//! network: [`drive`] sees to it.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tests::{Host, Lab, Process};
use thirtyfour::common::log::LoggingPrefsLogLevel;
use thirtyfour::prelude::*;
use thirtyfour::{ChromiumLikeCapabilities, Key};
use tokio::runtime::{Builder, Runtime};

/// How long the page may take for anything: other tests run beside this one.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// How often the page is asked meanwhile.
const AGAIN: Duration = Duration::from_millis(50);

/// As root there is no sandbox; nothing of the browser's own shall go out to the network.
const FLAGS: [&str; 12] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--lang=en-US",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE appliance.example",
];

/// A window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Screen {
    /// 1280 by 800.
    Desktop,
    /// 390 by 844, as a telephone shows it.
    Phone,
}

/// A running browser. Dropping it ends it.
pub(crate) struct Browser {
    runtime: Runtime,
    driver: WebDriver,
    origin: String,
    // Last: it ends the browser where nobody could ask it to.
    _process: Process,
}

/// Starts a browser on `host` and lets `work` drive it; `origin` is what paths stand behind.
pub(crate) fn drive<T: Send>(
    lab: &Lab,
    host: &Host,
    origin: &str,
    work: impl FnOnce(&Browser) -> Result<T> + Send,
) -> Result<T> {
    trust(lab, host)?;
    host.within(|| {
        let browser = Browser::start(host, origin)?;
        let result = catch_unwind(AssertUnwindSafe(|| work(&browser)));
        if !matches!(result, Ok(Ok(_))) {
            browser.explain();
        }
        // In order, so that nothing of it is left; the error of the work is worth more than one of the end.
        let Browser { runtime, driver, .. } = browser;
        let quit = runtime.block_on(driver.quit()).context("ending the browser");
        result.unwrap_or_else(|panic| resume_unwind(panic)).and_then(|result| quit.map(|()| result))
    })?
}

/// Has the browser of `host` trust the lab's authority, as an administrator's machine would.
fn trust(lab: &Lab, host: &Host) -> Result<()> {
    let store = host.directory().join(".pki/nssdb");
    fs::create_dir_all(&store).with_context(|| format!("making {}", store.display()))?;
    let store = format!("sql:{}", store.display());
    host.command("certutil").args(["-N", "--empty-password", "-d", &store]).check()?;
    host.command("certutil")
        .args(["-A", "-n", "lab", "-t", "C,,", "-d", &store, "-i"])
        .arg(lab.pki().ca_file())
        .check()
        .map(drop)
}

impl Browser {
    fn start(host: &Host, origin: &str) -> Result<Browser> {
        let process = host.command("chromedriver").arg("--port=0").spawn()?;
        let line = process.wait_for_line("started successfully on port", SOON)?;
        let port = line.trim_end_matches('.').rsplit(' ').next().context("the line has a port")?;
        let mut capabilities = DesiredCapabilities::chrome();
        for flag in FLAGS {
            capabilities.add_arg(flag)?;
        }
        let profile = host.directory().join("profile");
        capabilities.add_arg(&format!("--user-data-dir={}", profile.display()))?;
        capabilities.set_browser_log_level(LoggingPrefsLogLevel::All)?;
        // One thread: whatever connects does so in this thread's network.
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let driver = runtime
            .block_on(WebDriver::new(format!("http://127.0.0.1:{port}"), capabilities))
            .context("starting Chromium")?;
        let browser = Browser { runtime, driver, origin: origin.to_owned(), _process: process };
        browser.screen(Screen::Desktop)?;
        Ok(browser)
    }

    /// Opens a path of the page.
    pub(crate) fn open(&self, path: &str) -> Result<()> {
        let url = format!("{}{path}", self.origin);
        self.runtime.block_on(self.driver.goto(&url)).with_context(|| format!("opening {url}"))
    }

    /// The path where the browser is, with its query.
    pub(crate) fn path(&self) -> Result<String> {
        let url = self.runtime.block_on(self.driver.current_url())?;
        Ok(url.as_str().strip_prefix(&self.origin).unwrap_or(url.as_str()).to_owned())
    }

    /// Waits until there is such an element, and gives it.
    pub(crate) fn find(&self, css: &str) -> Result<WebElement> {
        let query = self.driver.query(By::Css(css)).wait(SOON, AGAIN).ignore_errors(true).and_displayed();
        self.runtime.block_on(query.first()).with_context(|| format!("{css} on {:?}", self.path()))
    }

    /// Waits until there is an element with this text, and gives it.
    pub(crate) fn find_text(&self, css: &str, text: &str) -> Result<WebElement> {
        let wanted = text.to_owned();
        let has = move |found: &str| found.split_whitespace().collect::<Vec<_>>().join(" ").contains(&wanted);
        // An element that is replaced while it is looked at is no reason to give up.
        let query = self.driver.query(By::Css(css)).wait(SOON, AGAIN).ignore_errors(true).with_text(has);
        self.runtime
            .block_on(query.first())
            .with_context(|| format!("{css} with {text:?} on {:?}", self.path()))
    }

    /// Waits until there is no such element any more.
    pub(crate) fn gone(&self, css: &str) -> Result<()> {
        let query = self.driver.query(By::Css(css)).wait(SOON, AGAIN);
        self.runtime.block_on(query.wait_until_gone()).with_context(|| format!("{css} stays"))
    }

    /// The text that an element shows.
    pub(crate) fn text(&self, css: &str) -> Result<String> {
        let element = self.find(css)?;
        Ok(self.runtime.block_on(element.text())?)
    }

    /// The text that this element shows.
    pub(crate) fn text_of(&self, element: &WebElement) -> Result<String> {
        Ok(self.runtime.block_on(element.text())?)
    }

    /// Replaces what a field has.
    pub(crate) fn fill(&self, css: &str, text: &str) -> Result<()> {
        let field = self.find(css)?;
        self.runtime.block_on(async {
            field.clear().await?;
            field.send_keys(text).await
        })?;
        Ok(())
    }

    /// Chooses an option by its text.
    pub(crate) fn choose(&self, css: &str, option: &str) -> Result<()> {
        let element = self.find(css)?;
        self.runtime.block_on(async {
            let select = thirtyfour::components::SelectElement::new(&element).await?;
            select.select_by_visible_text(option).await
        })?;
        Ok(())
    }

    /// Clicks what has this text.
    pub(crate) fn click(&self, css: &str, text: &str) -> Result<()> {
        let element = self.find_text(css, text)?;
        self.runtime.block_on(async {
            element.scroll_into_view().await?;
            element.click().await
        })?;
        Ok(())
    }

    /// Presses keys, whatever has the focus.
    pub(crate) fn press(&self, keys: impl Into<thirtyfour::TypingData>) -> Result<()> {
        Ok(self.runtime.block_on(self.driver.action_chain().send_keys(keys).perform())?)
    }

    /// Presses Tab until the element has the focus. How often is bounded by what a page may have.
    ///
    /// # Errors
    /// It is never reached.
    pub(crate) fn tab_to(&self, css: &str) -> Result<()> {
        for _ in 0..60 {
            self.press(Key::Tab)?;
            if self.script("return document.activeElement.matches(arguments[0])", vec![json!(css)])? == true {
                return Ok(());
            }
        }
        bail!("Tab does not reach {css} on {}", self.path()?)
    }

    /// Runs a script in the page; the answer is what it returns.
    pub(crate) fn script(&self, script: &str, arguments: Vec<Value>) -> Result<Value> {
        let answer = self.runtime.block_on(self.driver.execute(script, arguments))?;
        Ok(answer.json().clone())
    }

    /// Asks the page until `wanted`.
    #[allow(dead_code, reason = "only the README's pictures need it")]
    pub(crate) fn until(&self, what: &str, mut wanted: impl FnMut(&Browser) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + SOON;
        while !wanted(self)? {
            ensure!(Instant::now() < deadline, "the page does not come to {what} within {SOON:?}");
            self.runtime.block_on(async { tokio::time::sleep(AGAIN).await });
        }
        Ok(())
    }

    /// Sets the window's size.
    pub(crate) fn screen(&self, screen: Screen) -> Result<()> {
        let (width, height, scale, mobile) = match screen {
            Screen::Desktop => (1280, 800, 1, false),
            Screen::Phone => (390, 844, 2, true),
        };
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).map(drop)
    }

    /// Has the system prefer a dark or a light theme, and no motion: what moves can't be judged.
    pub(crate) fn prefer(&self, theme: &str) -> Result<()> {
        let features = json!([
            {"name": "prefers-color-scheme", "value": theme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]);
        self.devtools("Emulation.setEmulatedMedia", json!({"features": features})).map(drop)
    }

    /// What the window shows, as PNG.
    #[allow(dead_code, reason = "as above")]
    pub(crate) fn picture(&self) -> Result<Vec<u8>> {
        Ok(self.runtime.block_on(self.driver.screenshot_as_png())?)
    }

    /// Sends a command of the DevTools protocol.
    pub(crate) fn devtools(&self, command: &str, parameters: Value) -> Result<Value> {
        Ok(self.runtime.block_on(self.driver.cdp().send_raw(command, parameters))?)
    }

    /// What the browser complained of: refused by the content policy, not found, thrown by a script.
    pub(crate) fn complaints(&self) -> Result<Vec<String>> {
        let entries = self.runtime.block_on(self.driver.browser_log())?;
        Ok(entries.into_iter().map(|entry| format!("{:?}: {}", entry.level, entry.message)).collect())
    }

    /// Shows where the browser stands, for who has to find out why a test failed.
    fn explain(&self) {
        let text = self.script("return document.body.innerText", Vec::new());
        eprintln!("the browser is at {:?} and shows:\n{}", self.path(), text.unwrap_or_default());
        eprintln!("and complained: {:#?}", self.complaints());
    }
}
