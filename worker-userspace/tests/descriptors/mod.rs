//! A process whose descriptors are used up, and a count of what it logs meanwhile. For tests that are alone in their
//! process: both are everybody's.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Descriptors that the process may have.
const LIMIT: libc::rlim_t = 256;

/// Counts warnings and errors.
pub(crate) struct Warnings(Arc<AtomicUsize>);

impl Warnings {
    pub(crate) fn count() -> Warnings {
        let warnings = Warnings(Arc::default());
        let subscriber = tracing_subscriber::registry().with(Lines(warnings.0.clone()));
        tracing::subscriber::set_global_default(subscriber).unwrap();
        warnings
    }

    pub(crate) fn so_far(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

struct Lines(Arc<AtomicUsize>);

impl<S: tracing::Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() <= tracing::Level::WARN {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Opens files until there is no descriptor left. They are free again when the result is dropped.
pub(crate) fn use_up() -> Vec<File> {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write the one struct that they are given.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limits), 0);
        limits.rlim_cur = LIMIT;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limits), 0);
    }
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}
