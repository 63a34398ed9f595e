//! Threads that move bytes, each with a runtime of its own.
//!
//! A lane, its streams and their sockets live on one of them: what a socket's task has read is encrypted on the same
//! processor, and no wakeup crosses threads. All else (pages, the registry, DNS, timers of roles) is on the process's
//! own runtime, so that none of it stands in the way of a byte.
//!
//! What must hold: where there are none, as in tests, all is on the runtime that asks.

use std::cell::Cell;
use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// More would be idle: what the kernel does for sockets is much of the work.
const MOST: usize = 16;

thread_local! {
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The threads. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub struct Threads {
    handles: Arc<[Handle]>,
}

/// Ends the threads when dropped; what still runs on them is dropped, too.
#[derive(Debug)]
pub struct Running {
    _stops: Vec<oneshot::Sender<()>>,
}

/// Which thread something lives on: none of them, or the one with this number.
pub type Home = Option<usize>;

impl Threads {
    /// As many as this process may use processors.
    ///
    /// # Errors
    /// The kernel gives no thread, or no epoll instance.
    pub fn start() -> io::Result<(Threads, Running)> {
        Threads::of(std::thread::available_parallelism()?.get().min(MOST))
    }

    /// So many.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn of(count: usize) -> io::Result<(Threads, Running)> {
        let (mut handles, mut stops) = (Vec::new(), Vec::new());
        for number in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (stop, stopped) = oneshot::channel::<()>();
            handles.push(runtime.handle().clone());
            stops.push(stop);
            std::thread::Builder::new().name(format!("lanes-{number}")).spawn(move || {
                CURRENT.set(Some(number));
                // By whichever end: the sender is dropped, nothing is ever sent.
                let _ = runtime.block_on(stopped);
                runtime.shutdown_background();
            })?;
        }
        Ok((Threads { handles: handles.into() }, Running { _stops: stops }))
    }

    /// The thread of a number, counted around; the runtime that asks where there are none.
    ///
    /// # Panics
    /// There are none, and no runtime asks.
    pub fn at(&self, number: usize) -> Handle {
        match self.handles.len() {
            0 => Handle::current(),
            count => self.handles[number % count].clone(),
        }
    }

    /// Waits until each of them has had time for something.
    pub async fn answer(&self) {
        for handle in self.handles.iter() {
            // None ends before the process does.
            let _ = handle.spawn(async {}).await;
        }
    }
}

/// Which of them runs this.
pub fn current() -> Home {
    CURRENT.get()
}

/// Gives a socket to the runtime that asks: its events are that one's from now on.
///
/// # Errors
/// The kernel takes no more into an epoll instance.
pub fn take(socket: TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(socket.into_std()?)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_socket_goes_on_where_it_is_taken() {
        let (threads, _running) = Threads::of(2).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(connecting, listener.accept());
        let (mut near, far) = (near.unwrap(), far.unwrap().0);
        // There before it moves, and after.
        near.write_all(b"before ").await.unwrap();
        let moved = threads.at(3).spawn(async move {
            assert_eq!(current(), Some(1));
            let mut far = take(far).unwrap();
            let mut come = [0; 12];
            far.read_exact(&mut come).await.unwrap();
            come
        });
        near.write_all(b"after").await.unwrap();
        assert_eq!(&moved.await.unwrap(), b"before after");
        assert_eq!(current(), None);
    }

    #[tokio::test]
    async fn what_runs_there_ends_with_them() {
        let (threads, running) = Threads::of(1).unwrap();
        let (held, dropped) = oneshot::channel::<()>();
        threads.at(0).spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        drop(running);
        assert!(dropped.await.is_err());
    }
}
