//! Stopping in three stages: accept nothing new, let what runs end until a deadline, cut the rest.
//!
//! Every long-lived task is spawned through a [`Drain`], so a stop knows what it waits for and a panic is
//! logged instead of lost.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tells tasks to stop and waits for them. Clones are the same.
#[derive(Debug, Clone)]
pub struct Drain {
    deadline: Arc<Mutex<Duration>>,
    open: watch::Sender<bool>,
    stop: CancellationToken,
    running: Arc<Mutex<Running>>,
    tasks: TaskTracker,
}

/// What a cut ends. Tasks are not asked to look for it: each would at each of its steps.
#[derive(Debug, Default)]
struct Running {
    next: u64,
    /// `None` while the runtime is just taking the task.
    handles: HashMap<u64, Option<AbortHandle>>,
    is_cut: bool,
}

impl Drain {
    /// A drain whose second stage lasts at most `deadline`.
    pub fn new(deadline: Duration) -> Drain {
        Drain {
            deadline: Arc::new(Mutex::new(deadline)),
            open: watch::Sender::new(true),
            stop: CancellationToken::new(),
            running: Arc::default(),
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
        self.spawn_on(&Handle::current(), what, task);
    }

    /// As [`Drain::spawn`], on another runtime.
    pub fn spawn_on(
        &self,
        runtime: &Handle,
        what: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let mut running = self.running();
        if running.is_cut {
            return;
        }
        running.next += 1;
        let id = running.next;
        running.handles.insert(id, None);
        // Not under the lock: a runtime that ends drops the task at once, and so its place.
        drop(running);
        let place = Place { running: self.running.clone(), id, what };
        let handle = self.tasks.spawn_on(Placed { task, place }, runtime);
        let mut running = self.running();
        if running.is_cut {
            handle.abort();
        } else if let Some(slot) = running.handles.get_mut(&id) {
            *slot = Some(handle.abort_handle());
        }
    }

    /// As [`Drain::spawn`], for a task whose outcome is waited for. Where it is cut there is none: who waits is cut, too.
    pub fn spawn_for<F>(&self, what: &'static str, task: F) -> impl Future<Output = F::Output> + Send + use<F>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let (done, outcome) = oneshot::channel();
        self.spawn(what, async move {
            // Nobody may wait any more.
            let _ = done.send(task.await);
        });
        async move {
            match outcome.await {
                Ok(outcome) => outcome,
                Err(_) => std::future::pending().await,
            }
        }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
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
        let handles = {
            let mut running = self.running();
            running.is_cut = true;
            std::mem::take(&mut running.handles)
        };
        handles.into_values().flatten().for_each(|handle| handle.abort());
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

pin_project! {
    /// A task in its place. Not an `async` block: that would keep room for the task twice, where it came from and where
    /// it is awaited.
    struct Placed<F> {
        // Before its place, which it leaves when it is gone.
        #[pin]
        task: F,
        place: Place,
    }
}

impl<F: Future<Output = ()>> Future for Placed<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().task.poll(cx)
    }
}

/// A task's place among those that run. Dropped by a panic it logs that.
struct Place {
    running: Arc<Mutex<Running>>,
    id: u64,
    what: &'static str,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).handles.remove(&self.id);
        if std::thread::panicking() {
            tracing::error!(task = self.what, "a task panicked; this is a bug");
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

    #[test]
    fn a_runtime_that_takes_no_task_any_more_holds_nobody_up() {
        let (drain, runtime) =
            (Drain::new(Duration::ZERO), tokio::runtime::Builder::new_current_thread().build().unwrap());
        let late = runtime.handle().clone();
        drop(runtime);
        let (done, ended) = std::sync::mpsc::channel();
        let seen = drain.clone();
        std::thread::spawn(move || {
            let _inside = late.enter();
            drain.spawn("late", std::future::pending());
            done.send(()).unwrap();
        });
        ended.recv_timeout(Duration::from_secs(10)).expect("it waits for itself");
        assert!(seen.running().handles.is_empty(), "its place is kept");
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
