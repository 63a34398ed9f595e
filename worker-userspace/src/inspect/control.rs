//! The socket between `dworker status` and the daemon: a request of one line, an answer of JSON.
//!
//! The socket is a file with mode 0600: who may ask is who may read the daemon's memory anyway.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as Blocking;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::status::Status;
use crate::drain::Drain;

/// The one request so far.
const STATUS: &str = "status";
/// Time for a request and its answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longest request line.
const LONGEST: u64 = 256;

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
    /// No daemon answers.
    #[error("{}: {source}: is dworker running, and is this its `control_socket`?", path.display())]
    Ask {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The answer is not JSON of ours.
    #[error("{}: the answer can't be read: {source}: is the daemon of another version?", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
}

/// The daemon's end. Dropping it removes the socket.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
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
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(make(error)),
            Ok(file) if !file.file_type().is_socket() => {
                return Err(ControlError::InTheWay { path: path.into() });
            }
            Ok(_) if Blocking::connect(path).is_ok() => {
                return Err(ControlError::Taken { path: path.into() });
            }
            Ok(_) => fs::remove_file(path).map_err(make)?,
        }
        // Bound under another name and renamed, so that nobody connects before the mode is right.
        let fresh = path.with_extension(format!("{}.new", std::process::id()));
        let _ = fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh).map_err(make)?;
        fs::set_permissions(&fresh, Permissions::from_mode(0o600)).map_err(make)?;
        fs::rename(&fresh, path).map_err(make)?;
        Ok(Control { listener, path: path.into() })
    }

    /// Answers requests until the drain ends.
    pub async fn serve(self, drain: Drain, status: Arc<dyn Fn() -> Status + Send + Sync>) {
        loop {
            match self.listener.accept().await {
                Ok((socket, _)) => {
                    let status = status.clone();
                    drain.spawn("control connection", async move {
                        if let Ok(Err(error)) = timeout(DEADLINE, answer(socket, &*status)).await {
                            tracing::debug!("a control connection failed: {error}");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!("the control socket failed: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

async fn answer(mut socket: UnixStream, status: &(dyn Fn() -> Status + Send + Sync)) -> io::Result<()> {
    let (reader, mut writer) = socket.split();
    let mut request = String::new();
    BufReader::new(reader.take(LONGEST)).read_line(&mut request).await?;
    let answer = match request.trim() {
        STATUS => serde_json::to_vec(&status())?,
        other => serde_json::to_vec(&serde_json::json!({ "error": format!("unknown request {other:?}") }))?,
    };
    writer.write_all(&answer).await?;
    writer.shutdown().await
}

/// Asks the daemon behind `path` for its status.
///
/// # Errors
/// No daemon answers within five seconds, or not with a status.
pub fn ask(path: &Path) -> Result<Status, ControlError> {
    use std::io::{Read, Write};
    let answer = || -> io::Result<Vec<u8>> {
        let mut socket = Blocking::connect(path)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.set_write_timeout(Some(DEADLINE))?;
        writeln!(socket, "{STATUS}")?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = answer().map_err(|source| ControlError::Ask { path: path.into(), source })?;
    serde_json::from_slice(&answer).map_err(|source| ControlError::Answer { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::status::Flows;

    fn empty() -> Status {
        Status {
            version: "0".into(),
            pid: 1,
            uptime_s: 2,
            roles: vec![],
            appliance: None,
            worker: None,
            steer: None,
            proxy: None,
            flows: Flows { open: 0, total: 3, recent: vec![] },
        }
    }

    #[tokio::test]
    async fn a_status_is_asked_for_and_answered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/control.sock");
        let control = Control::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Control::bind(&path), Err(ControlError::Taken { .. })));
        let drain = Drain::new(Duration::ZERO);
        let serving = tokio::spawn(control.serve(drain, Arc::new(empty)));
        let asked = path.clone();
        let status = tokio::task::spawn_blocking(move || ask(&asked)).await.unwrap().unwrap();
        assert_eq!(status.flows.total, 3);
        serving.abort();
        let _ = serving.await;
        assert!(!path.exists());
        assert!(ask(&path).unwrap_err().to_string().contains("is dworker running"));
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
