//! Stopping in three stages: accept nothing new, let what runs end until a deadline, cut the rest.
//!
//! Every long-lived task is spawned through a [`Drain`], so a stop knows what it waits for and a panic is
//! logged instead of lost.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tells tasks to stop and waits for them. Clones are the same.
#[derive(Debug, Clone)]
pub struct Drain {
    deadline: Arc<Mutex<Duration>>,
    open: watch::Sender<bool>,
    stop: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl Drain {
    /// A drain whose second stage lasts at most `deadline`.
    pub fn new(deadline: Duration) -> Drain {
        Drain {
            deadline: Arc::new(Mutex::new(deadline)),
            open: watch::Sender::new(true),
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// How long what runs is waited for.
    pub fn deadline(&self) -> Duration {
        *self.time()
    }

    /// From now on what runs is waited for as long as this.
    pub fn set_deadline(&self, deadline: Duration) {
        *self.time() = deadline;
    }

    fn time(&self) -> MutexGuard<'_, Duration> {
        self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes or opens the [gate](Gate) through which all that is new comes in. It is open at first.
    pub fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// The gate through which all that is new comes in.
    pub fn gate(&self) -> Gate {
        Gate(self.open.subscribe())
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
        if tokio::time::timeout(self.deadline(), self.tasks.wait()).await.is_ok() {
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

/// Where a process stands still before another one takes over, and whoever comes waits in the kernel's queues: unlike a
/// stop it can be taken back.
#[derive(Debug, Clone)]
pub struct Gate(watch::Receiver<bool>);

impl Gate {
    /// A gate that is always open.
    pub fn always_open() -> Gate {
        Gate(watch::Sender::new(true).subscribe())
    }

    /// Waits until it is open.
    pub async fn opened(&mut self) {
        self.until(true).await;
    }

    /// The next that `next` brings, which is asked only while the gate is open, and again when it has been closed
    /// meanwhile: what it waits for must not be lost where it is dropped.
    pub async fn through<F: Future>(&mut self, mut next: impl FnMut() -> F) -> F::Output {
        loop {
            self.until(true).await;
            tokio::select! {
                biased;
                () = self.until(false) => {}
                got = next() => return got,
            }
        }
    }

    async fn until(&mut self, open: bool) {
        // Where nobody can move it any more it stays as it is.
        if self.0.wait_for(|is| *is == open).await.is_err() && *self.0.borrow() != open {
            std::future::pending().await
        }
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
    async fn nothing_comes_through_a_closed_gate_and_nothing_is_lost() {
        let drain = Drain::new(Duration::from_secs(10));
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        let receiver = tokio::sync::Mutex::new(receiver);
        let next = async || receiver.lock().await.recv().await;
        let mut gate = drain.gate();
        assert_eq!(gate.through(|| std::future::ready(1)).await, 1);
        let waiting = gate.through(next);
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(Duration::from_secs(1), &mut waiting).await.is_err());
        drain.set_open(false);
        // It waits already, and must let go of what it waits for.
        assert!(tokio::time::timeout(Duration::from_secs(1), &mut waiting).await.is_err());
        sender.send(2).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(60), &mut waiting).await.is_err());
        drain.set_open(true);
        assert_eq!(waiting.await, Some(2));
        let mut always = Gate::always_open();
        always.opened().await;
        assert_eq!(always.through(|| std::future::ready(3)).await, 3);
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
