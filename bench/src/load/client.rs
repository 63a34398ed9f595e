//! The clients.

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream as Blocking};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::sleep;

use super::{Direction, Header, Load, MESSAGE, PIECE, Seen, What};

/// Does what is asked and says what it saw.
pub(crate) fn run(load: &Load) -> Result<Seen> {
    match load.what {
        What::Bulk { streams, direction } => bulk(load, streams, direction),
        What::Connects { at_once } => connects(load, at_once),
        What::Requests { connections } => requests(load, connections),
        What::Idle { connections } => idle(load, connections),
        What::FirstByte { times } => first_byte(load, times),
        What::Stalled { connections } => stalled(load, connections),
    }
}

fn bulk(load: &Load, streams: usize, direction: Direction) -> Result<Seen> {
    let mut moved = Vec::new();
    let failures = Arc::new(AtomicU64::new(0));
    for _ in 0..streams {
        let stream = Blocking::connect(load.to).context("connecting")?;
        let count = Arc::new(AtomicU64::new(0));
        moved.push(count.clone());
        let failures = failures.clone();
        std::thread::spawn(move || {
            if let Err(error) = keep_busy(stream, direction, &count) {
                eprintln!("load: {error}");
                failures.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let sums = || moved.iter().map(|count| count.load(Ordering::Relaxed)).collect::<Vec<_>>();
    std::thread::sleep(load.warm);
    println!("measuring");
    let (began, before) = (Instant::now(), sums());
    std::thread::sleep(load.time);
    let elapsed = began.elapsed().as_secs_f64();
    let each: Vec<u64> = sums().iter().zip(before).map(|(after, before)| after - before).collect();
    let all = each.iter().sum::<u64>() as f64;
    let least = each.iter().copied().min().unwrap_or(0) as f64;
    Ok(Seen {
        rate: all / elapsed,
        least: least * streams as f64 / all.max(1.0),
        failures: failures.load(Ordering::Relaxed),
        ..Seen::default()
    })
}

/// Moves bytes and counts them; ends only with the connection, which nobody is to end.
fn keep_busy(mut stream: Blocking, direction: Direction, moved: &AtomicU64) -> io::Result<()> {
    let mut piece = vec![b'u'; PIECE];
    match direction {
        Direction::Up => stream.write_all(&[Header::Sink.to_wire()])?,
        Direction::Down => stream.write_all(&[Header::Source.to_wire()])?,
    }
    loop {
        let n = match direction {
            Direction::Up => stream.write(&piece)?,
            Direction::Down => stream.read(&mut piece)?,
        };
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        moved.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// What all tasks of a load count together.
#[derive(Default)]
struct Counts {
    counting: Cell<bool>,
    over: Cell<bool>,
    failures: Cell<u64>,
    took: RefCell<Vec<Duration>>,
}

impl Counts {
    fn count(&self, outcome: io::Result<Duration>) {
        match outcome {
            _ if !self.counting.get() => {}
            Ok(took) => self.took.borrow_mut().push(took),
            Err(_) => self.failures.set(self.failures.get() + 1),
        }
    }

    fn seen(&self, time: Duration) -> Seen {
        let mut took = self.took.borrow_mut();
        took.sort_unstable();
        let at = |share: f64| {
            let at = (took.len().saturating_sub(1) as f64 * share).round() as usize;
            took.get(at).map_or(f64::NAN, |took| took.as_secs_f64() * 1e6)
        };
        Seen {
            rate: took.len() as f64 / time.as_secs_f64(),
            p50: at(0.5),
            p99: at(0.99),
            failures: self.failures.get(),
            ..Seen::default()
        }
    }
}

/// Runs so many tasks on this thread for as long as the load takes.
async fn many<F: Future<Output = ()> + 'static>(
    load: &Load,
    tasks: impl Iterator<Item = impl FnOnce(Rc<Counts>) -> F>,
) -> Seen {
    let counts = Rc::new(Counts::default());
    for task in tasks {
        tokio::task::spawn_local(task(counts.clone()));
    }
    sleep(load.warm).await;
    println!("measuring");
    let began = Instant::now();
    counts.counting.set(true);
    sleep(load.time).await;
    counts.counting.set(false);
    counts.over.set(true);
    counts.seen(began.elapsed())
}

/// Runs on this thread alone.
fn alone<T>(work: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(LocalSet::new().block_on(&runtime, work))
}

fn connects(load: &Load, at_once: usize) -> Result<Seen> {
    let to = load.to;
    let task = |counts: Rc<Counts>| async move {
        while !counts.over.get() {
            counts.count(once(to).await);
        }
    };
    alone(many(load, (0..at_once).map(|_| task)))
}

/// Each connection is there, and has been answered, before the first of them is used again.
fn requests(load: &Load, connections: usize) -> Result<Seen> {
    let to = load.to;
    alone(async {
        let (kept, failures) = connected(to, connections).await;
        let task = |stream| {
            move |counts: Rc<Counts>| async move {
                let mut connection = Some(stream);
                while !counts.over.get() {
                    let began = Instant::now();
                    counts.count(request(&mut connection, to).await.map(|()| began.elapsed()));
                }
            }
        };
        let seen = many(load, kept.into_iter().map(task)).await;
        Seen { failures: seen.failures + failures, ..seen }
    })
}

async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn ask(stream: &mut TcpStream) -> io::Result<()> {
    let mut message = [Header::Answer.to_wire(); MESSAGE];
    stream.write_all(&message).await?;
    stream.read_exact(&mut message).await.map(drop)
}

async fn once(to: SocketAddr) -> io::Result<Duration> {
    let began = Instant::now();
    let mut stream = connect(to).await?;
    ask(&mut stream).await?;
    drop(stream);
    Ok(began.elapsed())
}

async fn request(connection: &mut Option<TcpStream>, to: SocketAddr) -> io::Result<()> {
    let mut stream = match connection.take() {
        Some(stream) => stream,
        None => connect(to).await?,
    };
    ask(&mut stream).await?;
    *connection = Some(stream);
    Ok(())
}

/// So many connections, one after the other, each after one message; and how many failed.
async fn connected(to: SocketAddr, connections: usize) -> (Vec<TcpStream>, u64) {
    let (mut kept, mut failures) = (Vec::new(), 0);
    for _ in 0..connections {
        let mut connection = None;
        match request(&mut connection, to).await {
            Ok(()) => kept.extend(connection),
            Err(_) => failures += 1,
        }
    }
    (kept, failures)
}

fn idle(load: &Load, connections: usize) -> Result<Seen> {
    alone(async {
        let (kept, failures) = connected(load.to, connections).await;
        sleep(load.warm).await;
        println!("measuring");
        sleep(load.time).await;
        Seen { rate: kept.len() as f64, failures, ..Seen::default() }
    })
}

fn first_byte(load: &Load, times: usize) -> Result<Seen> {
    let counts = Counts::default();
    counts.counting.set(true);
    let mut message = [Header::Answer.to_wire(); MESSAGE];
    for _ in 0..times {
        let began = Instant::now();
        let mut one = || {
            let mut stream = Blocking::connect(load.to)?;
            stream.set_nodelay(true)?;
            stream.write_all(&message)?;
            stream.read_exact(&mut message[..1])?;
            Ok(began.elapsed())
        };
        counts.count(one());
    }
    println!("measuring");
    Ok(counts.seen(Duration::from_secs(1)))
}

fn stalled(load: &Load, connections: usize) -> Result<Seen> {
    let mut kept = Vec::new();
    for _ in 0..connections {
        let mut stream = Blocking::connect(load.to)?;
        stream.write_all(&[Header::Source.to_wire()])?;
        kept.push(stream);
    }
    std::thread::sleep(load.warm);
    println!("measuring");
    std::thread::sleep(load.time);
    Ok(Seen { rate: kept.len() as f64, ..Seen::default() })
}
