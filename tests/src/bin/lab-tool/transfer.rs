//! Sending and reading, with the count, the hash and the errno of each.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use nix::errno::Errno;
use tests::Hash;
use tests::traffic::Report;

const CHUNK: usize = 64 * 1024;
/// Up to this size what was received is also reported as text.
const SHORT: usize = 128;

/// The name of an error: `ECONNRESET`.
pub(crate) fn errno(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => format!("{:?}", Errno::from_raw(number)),
        None => error.to_string(),
    }
}

/// What one direction brought.
pub(crate) struct Half {
    count: u64,
    sha256: String,
    failure: Option<String>,
    start: Vec<u8>,
}

impl Half {
    fn new(hash: Hash, failure: Option<&io::Error>, start: Vec<u8>) -> Half {
        Half { count: hash.count(), sha256: hash.finish(), failure: failure.map(errno), start }
    }

    /// Files this under what was sent.
    pub(crate) fn sent(self, report: &mut Report) {
        report.sent = self.count;
        report.sent_sha256 = self.sha256;
        report.send_failure = self.failure;
    }

    /// Files this under what was received.
    pub(crate) fn received(self, report: &mut Report) {
        report.received = self.count;
        report.received_sha256 = self.sha256;
        report.text = (self.count <= SHORT as u64).then(|| String::from_utf8(self.start).ok()).flatten();
        report.end = self.failure.unwrap_or_else(|| "eof".into());
    }

    /// The SHA-256.
    pub(crate) fn sha256(&self) -> &str {
        &self.sha256
    }
}

/// Sends bytes and then FIN.
pub(crate) fn send(stream: &TcpStream, bytes: impl Read) -> Half {
    let mut half = write(stream, bytes);
    if half.failure.is_none() {
        half.failure = stream.shutdown(Shutdown::Write).err().as_ref().map(errno);
    }
    half
}

/// Sends bytes.
pub(crate) fn write(mut stream: &TcpStream, mut bytes: impl Read) -> Half {
    let mut hash = Hash::default();
    let mut chunk = vec![0; CHUNK];
    let result = loop {
        let read = match bytes.read(&mut chunk) {
            Ok(0) => break Ok(()),
            Ok(read) => read,
            Err(error) => break Err(error),
        };
        if let Err(error) = stream.write_all(&chunk[..read]) {
            break Err(error);
        }
        hash.update(&chunk[..read]);
    };
    Half::new(hash, result.err().as_ref(), Vec::new())
}

/// Reads up to `limit` bytes or to the end.
pub(crate) fn receive(stream: &TcpStream, limit: u64) -> Half {
    let (half, _) = copy(stream, limit, io::sink());
    half
}

/// Reads to the end and sends back each chunk; what was received, and why sending back ended early.
pub(crate) fn echo(stream: &TcpStream) -> (Half, Option<io::Error>) {
    let (half, sending) = copy(stream, u64::MAX, stream);
    (half, sending.and_then(|()| stream.shutdown(Shutdown::Write)).err())
}

fn copy(stream: &TcpStream, limit: u64, mut to: impl Write) -> (Half, io::Result<()>) {
    let mut stream = stream.take(limit);
    let (mut hash, mut start) = (Hash::default(), Vec::new());
    let mut chunk = vec![0; CHUNK];
    let mut sending = Ok(());
    let failure = loop {
        match stream.read(&mut chunk) {
            Ok(0) => break None,
            Ok(read) => {
                hash.update(&chunk[..read]);
                start.extend(chunk[..read].iter().take(SHORT - start.len().min(SHORT)));
                if sending.is_ok() {
                    sending = to.write_all(&chunk[..read]);
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => break Some(error),
        }
    };
    (Half::new(hash, failure.as_ref(), start), sending)
}
