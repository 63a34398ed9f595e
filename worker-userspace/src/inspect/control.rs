//! The socket between the command line and the daemon: HTTP, with the same routes as on the appliance's port.
//!
//! The socket is a file with mode 0600: who may ask is who may read the daemon's memory anyway. The kernel says
//! which user that is.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener as Blocking, UnixStream as Caller};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tower::ServiceExt;

use crate::accept;
use crate::drain::Drain;
use crate::web::Peer;

/// Time for a request's head, and between two requests.
const DEADLINE: Duration = Duration::from_secs(5);
/// Time for an answer to be read once the daemon stops: who does not read it holds up nobody.
const FAREWELL: Duration = Duration::from_secs(2);
/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 128;

/// Why the control socket can't be used. Each names the socket and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another daemon answers there.
    #[error("{}: another dworker answers there already; stop it, or set another `control_socket`", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// Something else than a socket is there.
    #[error("{}: a file that is no socket is in the way; remove it, or set another `control_socket`", path.display())]
    InTheWay {
        /// The file.
        path: PathBuf,
    },
    /// The socket could not be made.
    #[error("{}: {source}", path.display())]
    Make {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The daemon's end. Dropping it removes the socket.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    left: Arc<AtomicBool>,
}

impl Control {
    /// Makes the socket, with the directory that it lies in. A dead daemon's socket is replaced.
    ///
    /// # Errors
    /// Another daemon answers there, or the file can't be made.
    pub fn bind(path: &Path) -> Result<Control, ControlError> {
        let make = |source| ControlError::Make { path: path.into(), source };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(make)?;
        }
        if Control::vacant(path)? {
            fs::remove_file(path).map_err(make)?;
        }
        let listener = listen(path).map_err(make)?;
        Ok(Control { listener, path: path.into(), left: Arc::default() })
    }

    /// Looks whether the socket can be made. True: a dead daemon's is there.
    ///
    /// # Errors
    /// Another daemon answers there, or something else is there.
    pub fn vacant(path: &Path) -> Result<bool, ControlError> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(ControlError::Make { path: path.into(), source }),
            Ok(file) if !file.file_type().is_socket() => Err(ControlError::InTheWay { path: path.into() }),
            Ok(_) if Caller::connect(path).is_ok() => Err(ControlError::Taken { path: path.into() }),
            Ok(_) => Ok(true),
        }
    }

    /// Goes on with the socket of the daemon before this one. Its name stays that one's, until [`left`](Self::left) says
    /// otherwise.
    ///
    /// # Errors
    /// It can't be used.
    pub fn adopt(listener: Blocking, path: &Path) -> Result<Control, ControlError> {
        let listener = UnixListener::from_std(listener)
            .map_err(|source| ControlError::Make { path: path.into(), source })?;
        Ok(Control { listener, path: path.into(), left: Arc::new(AtomicBool::new(true)) })
    }

    /// The socket, for the daemon that follows.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Set it, and the socket is not removed: it is the following daemon's.
    pub fn left(&self) -> Arc<AtomicBool> {
        self.left.clone()
    }

    /// Answers requests with `router`, until the task is aborted: a daemon that stops says so to its end. Requests
    /// have a [`Peer`] among their extensions.
    pub async fn serve(self, drain: Drain, router: Router) {
        let mut gate = drain.gate();
        loop {
            let (socket, _) = accept::next(&mut gate, "a command", || self.listener.accept()).await;
            let (router, stopping) = (router.clone(), drain.clone());
            drain.spawn("control connection", async move {
                if let Err(error) = connection(socket, router, stopping).await {
                    tracing::debug!("a control connection failed: {error}");
                }
            });
        }
    }
}

/// Binds a socket that nobody else may connect to from its first moment on: it takes its mode from the descriptor.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(Blocking::from(OwnedFd::from(socket)))
}

impl Drop for Control {
    fn drop(&mut self) {
        if !self.left.load(Ordering::Relaxed) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

async fn connection(socket: UnixStream, router: Router, drain: Drain) -> io::Result<()> {
    let peer = Peer::Process { uid: socket.peer_cred()?.uid() };
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        router.clone().oneshot(request.map(Body::new))
    });
    // A daemon that stops waits for nobody who might ask again.
    let stopping = drain.is_stopping();
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(DEADLINE)
        .keep_alive(!stopping)
        .serve_connection(TokioIo::new(socket), service);
    tokio::pin!(serving);
    // A daemon that stops answers who asks it what it does; what takes longer is what nobody reads, or never ends.
    if !stopping {
        tokio::select! {
            served = &mut serving => return served.map_err(io::Error::other),
            () = drain.stopping() => {}
        }
        serving.as_mut().graceful_shutdown();
    }
    match timeout(FAREWELL, serving).await {
        Ok(served) => served.map_err(io::Error::other),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Extension;
    use axum::routing::get;
    use http_body_util::{BodyExt, Empty};
    use hyper::body::Bytes;
    use hyper::client::conn::http1 as client;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[tokio::test]
    async fn a_request_is_answered_and_the_kernel_says_who_asks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/control.sock");
        let control = Control::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Control::bind(&path), Err(ControlError::Taken { .. })));
        let drain = Drain::new(Duration::from_secs(60));
        let who = async |Extension(peer): Extension<Peer>| format!("{peer:?}");
        let serving = tokio::spawn(control.serve(drain.clone(), Router::new().route("/who", get(who))));
        let ask = async || {
            let socket = TokioIo::new(UnixStream::connect(&path).await.unwrap());
            let (mut sender, connection) = client::handshake(socket).await.unwrap();
            tokio::spawn(connection);
            let request = Request::builder().uri("/who").body(Empty::<Bytes>::new()).unwrap();
            let answer = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
            (String::from_utf8(answer.to_bytes().to_vec()).unwrap(), sender)
        };
        let expected = format!("{:?}", Peer::Process { uid: fs::metadata(&path).unwrap().uid() });
        let (answer, kept) = ask().await;
        assert_eq!(answer, expected);
        drain.stop();
        assert_eq!(ask().await.0, expected, "a daemon that stops still answers");
        assert_eq!(drain.finish().await, 0, "and waits for no connection that is kept open");
        drop(kept);
        serving.abort();
        let _ = serving.await;
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn who_does_not_read_holds_up_no_stop() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let control = Control::bind(&path).unwrap();
        let drain = Drain::new(Duration::from_secs(60));
        // More than the socket's buffers hold.
        let endless = async || vec![7_u8; 8 << 20];
        let serving = tokio::spawn(control.serve(drain.clone(), Router::new().route("/all", get(endless))));
        let mut unread = UnixStream::connect(&path).await.unwrap();
        unread.write_all(b"GET /all HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        unread.read_u8().await.unwrap();
        let stopped = timeout(Duration::from_secs(30), drain.finish()).await;
        assert_eq!(stopped.expect("it waits for one who does not read"), 0);
        serving.abort();
    }

    #[tokio::test]
    async fn a_dead_daemons_socket_is_replaced_and_another_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        drop(Control::bind(&path).unwrap());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Control::bind(&path), Err(ControlError::InTheWay { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
