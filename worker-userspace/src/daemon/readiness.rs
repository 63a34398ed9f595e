//! Whether all that the configuration asks for is so.
//!
//! What must hold: anybody may ask, so what costs something to find out is found out at most every [`BELIEVED`],
//! however many ask.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Roles;
use crate::inspect::api::Lack;

/// How long it is believed what was found out.
const BELIEVED: Duration = Duration::from_secs(5);

/// What was found out last, and when.
#[derive(Debug)]
pub(super) struct Believed<T> {
    last: Mutex<Option<(Instant, T)>>,
    lasts: Duration,
}

impl<T> Default for Believed<T> {
    fn default() -> Believed<T> {
        Believed::lasting(BELIEVED)
    }
}

impl<T> Believed<T> {
    /// What is found out is believed for as long as this.
    pub(super) fn lasting(lasts: Duration) -> Believed<T> {
        Believed { last: Mutex::default(), lasts }
    }
}

impl<T: Clone> Believed<T> {
    /// What is believed, or else what `find` finds out; who asks meanwhile waits for that.
    pub(super) async fn or(&self, find: impl Future<Output = T>) -> T {
        let mut last = self.last.lock().await;
        if let Some((at, found)) = &*last
            && at.elapsed() < self.lasts
        {
            return found.clone();
        }
        let found = find.await;
        *last = Some((Instant::now(), found.clone()));
        found
    }

    /// What `find` finds out now, once who asked before has his answer.
    pub(super) async fn anew(&self, find: impl Future<Output = T>) -> T {
        let mut last = self.last.lock().await;
        let found = find.await;
        *last = Some((Instant::now(), found.clone()));
        found
    }
}

impl Roles {
    /// What the configuration asks for and is not so.
    pub(super) async fn unready(&self) -> Vec<Lack> {
        let mut lacks = self.found.or(self.find()).await;
        if let Some(uplink) = self.uplink.as_ref().filter(|uplink| !uplink.session().is_up()) {
            let problem = uplink.problem().map(|problem| format!(": {problem}")).unwrap_or_default();
            let detail = format!("not connected to appliance {}{problem}", uplink.appliance());
            lacks.push(Lack { part: "worker", detail });
        }
        lacks
    }

    /// What takes a write and system calls to find out.
    async fn find(&self) -> Vec<Lack> {
        let mut lacks = Vec::new();
        if let Some(appliance) = &self.appliance {
            let problem = appliance.unwritable().await;
            lacks.extend(problem.map(|detail| Lack { part: "registry", detail }));
        }
        if let Some(steering) = &self.steering {
            let missing = |cgroup: PathBuf| {
                format!("nothing is captured in {}: there is no such cgroup", cgroup.display())
            };
            let missing = steering.missing_cgroups().into_iter().map(missing);
            let off =
                steering.is_off().then(|| "nothing is captured: `dworker steer on` ends that".to_owned());
            lacks.extend(missing.chain(off).map(|detail| Lack { part: "steering", detail }));
        }
        lacks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::time::{advance, sleep};

    #[tokio::test(start_paused = true)]
    async fn however_many_ask_it_is_found_out_once_in_a_while() {
        let (believed, asked) = (Believed::default(), AtomicU32::new(0));
        let find = async || {
            let n = asked.fetch_add(1, Ordering::Relaxed) + 1;
            sleep(Duration::from_secs(1)).await;
            n
        };
        let ask = || believed.or(find());
        assert_eq!(tokio::join!(ask(), ask(), ask()), (1, 1, 1));
        advance(BELIEVED - Duration::from_millis(1)).await;
        assert_eq!(ask().await, 1);
        advance(Duration::from_millis(1)).await;
        assert_eq!((ask().await, ask().await), (2, 2));
        // Who does not wait for the end leaves nothing half.
        advance(BELIEVED).await;
        assert!(tokio::time::timeout(Duration::from_millis(500), ask()).await.is_err());
        assert_eq!(ask().await, 4);
    }
}
