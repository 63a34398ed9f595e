//! Stopping in three stages: accept nothing new, let what runs end until a deadline, cut the rest.
//!
//! Every long-lived task is spawned through a [`Drain`], so a stop knows what it waits for and a panic is
//! logged instead of lost.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tells tasks to stop and waits for them. Clones are the same.
#[derive(Debug, Clone)]
pub struct Drain {
    deadline: Duration,
    stop: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl Drain {
    /// A drain whose second stage lasts at most `deadline`.
    pub fn new(deadline: Duration) -> Drain {
        Drain {
            deadline,
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// How long what runs is waited for.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Runs `task` until it ends or is cut. A panic is logged under `what`.
    pub fn spawn(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let cut = self.cut.clone();
        let guard = PanicLog(what);
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = cut.cancelled() => {}
                () = task => {}
            }
            std::mem::forget(guard);
        });
    }

    /// Waits until nothing new may be started.
    pub async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// True where nothing new may be started.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// First stage: nothing new.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Second and third stage: waits for what runs, cuts it at the deadline, and says how many were cut.
    pub async fn finish(&self) -> usize {
        self.stop();
        self.tasks.close();
        if tokio::time::timeout(self.deadline, self.tasks.wait()).await.is_ok() {
            return 0;
        }
        self.cut().await
    }

    /// Third stage at once.
    pub async fn cut(&self) -> usize {
        self.stop();
        // Without it the tracker waits for tasks to come, however empty it is.
        self.tasks.close();
        let left = self.tasks.len();
        self.cut.cancel();
        self.tasks.wait().await;
        left
    }
}

/// Logs where it is dropped by a panic: a task that ends in order forgets it.
struct PanicLog(&'static str);

impl Drop for PanicLog {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.0, "a task panicked; this is a bug");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tasks_end_by_themselves_or_are_cut() {
        let drain = Drain::new(Duration::from_secs(10));
        let seen = drain.clone();
        drain.spawn("obedient", async move { seen.stopping().await });
        drain.spawn("slow", tokio::time::sleep(Duration::from_secs(3)));
        drain.spawn("endless", std::future::pending());
        assert_eq!(drain.finish().await, 1);
        assert!(drain.is_stopping());
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_without_a_stop_before_it_ends_too() {
        let drain = Drain::new(Duration::from_secs(10));
        drain.spawn("endless", std::future::pending());
        let cut = tokio::time::timeout(Duration::from_secs(60), drain.cut()).await;
        assert_eq!(cut.expect("waits for ever"), 1);
        assert!(drain.is_stopping());
    }
}
