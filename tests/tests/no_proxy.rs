//! The table in `docs/proxy.md`: what curl, Go and dworker make of `no_proxy`, asked of all three.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use anyhow::{Context, Result, bail};
use dworker::target::{Exempt, NoProxy, Target};
use tests::Command;

/// One line of the table.
#[derive(Debug, PartialEq)]
struct Row {
    no_proxy: String,
    target: String,
    /// `direct`, `proxy` or, where an entry is none, `an error`: by curl, Go and dworker.
    by: [String; 3],
}

fn table() -> Result<Vec<Row>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/proxy.md");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let rows = text.lines().skip_while(|line| !line.starts_with("| `no_proxy`")).skip(2);
    let rows: Vec<Row> = rows.map_while(row).collect();
    if rows.len() < 30 {
        bail!("{} has no such table any more: {rows:?}", path.display());
    }
    Ok(rows)
}

fn row(line: &str) -> Option<Row> {
    let cells: Vec<&str> = line.strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
    let [no_proxy, target, curl, go, ours] = cells[..] else { return None };
    Some(Row {
        // In code, but for `nothing`.
        no_proxy: no_proxy.strip_prefix('`').unwrap_or_default().trim_end_matches('`').to_owned(),
        target: target.trim_matches('`').to_owned(),
        by: [curl, go, ours].map(str::to_owned),
    })
}

/// A listener that closes whatever comes, and says so before.
fn doorbell(rings: &'static str) -> Result<(SocketAddr, Receiver<&'static str>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (tell, told) = channel();
    thread::spawn(move || {
        // Told first: curl has ended only when the connection is closed.
        while listener.accept().is_ok_and(|_connection| tell.send(rings).is_ok()) {}
    });
    Ok((address, told))
}

/// Lets curl connect, to a proxy of ours or to what stands for the target.
fn curl(row: &Row) -> Result<String> {
    let (proxy, proxied) = doorbell("proxy")?;
    let (target, direct) = doorbell("direct")?;
    // Its end does not matter: nobody answers.
    let output = Command::new("curl")
        .args(["--silent", "--globoff", "--max-time", "20", "--output", "/dev/null"])
        .args(["--proxy", &format!("http://{proxy}"), "--noproxy", &row.no_proxy])
        .args(["--connect-to", &format!("::{target}"), &format!("http://{}/", row.target)])
        .output()?;
    match (proxied.try_recv(), direct.try_recv()) {
        (Ok(rung), Err(_)) | (Err(_), Ok(rung)) => Ok(rung.to_owned()),
        both => bail!("{row:?}: {both:?} after {output}"),
    }
}

fn go(row: &Row) -> Result<String> {
    let said = tests::go_no_proxy()?
        .arg(format!("http://{}/", row.target))
        .env("HTTP_PROXY", "http://127.0.0.1:1")
        .env("NO_PROXY", &row.no_proxy)
        .check()?;
    Ok(said.trim().to_owned())
}

fn ours(row: &Row) -> Result<String> {
    let (host, port) = row.target.rsplit_once(':').context("a target has a port")?;
    let target = Target { host: host.parse()?, port: port.parse()? };
    let list: Result<NoProxy, _> = NoProxy::split(&row.no_proxy).map(str::parse::<Exempt>).collect();
    Ok(match list {
        Err(_) => "an error",
        Ok(list) if list.exempts(&target) => "direct",
        Ok(_) => "proxy",
    }
    .to_owned())
}

#[test]
fn the_table_says_what_curl_go_and_dworker_do() -> Result<()> {
    let mut differ = String::new();
    for row in table()? {
        let by = [curl(&row)?, go(&row)?, ours(&row)?];
        if by != row.by {
            let shown = match row.no_proxy.as_str() {
                "" => "nothing".to_owned(),
                text => format!("`{text}`"),
            };
            differ += &format!("| {shown} | `{}` | {} |\n", row.target, by.join(" | "));
        }
    }
    assert!(differ.is_empty(), "these lines of docs/proxy.md are not so; now they are:\n{differ}");
    Ok(())
}
