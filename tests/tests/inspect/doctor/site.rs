//! Faults at a worker: the appliance, its certificate, the proxy in between, the resolver.

use std::fs;

use anyhow::Result;
use tests::{Door, Group, HttpProxy, Identity, Lab, Pki, Process, ProxyKind, Validity, net};

use super::{House, Patient, SOON};

/// Stands for an appliance whose certificate and clock are as a test wants: it takes every key.
const APPLIANCE: &str = r#"
import base64, email.utils, hashlib, socket, ssl, sys, time
address, certificate, key, ahead = sys.argv[1:5]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
listener = socket.create_server((address, 443))
print("listening", flush=True)
while True:
    raw, _ = listener.accept()
    raw.settimeout(5)
    try:
        client = context.wrap_socket(raw, server_side=True)
        head = b""
        while b"\r\n\r\n" not in head:
            more = client.recv(4096)
            if not more:
                break
            head += more
        lines = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n") if ": " in line)
        exact = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        keys = [value for name, value in exact.items() if name.lower() == "sec-websocket-key"]
        if keys:
            accept = hashlib.sha1((keys[0] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
            answer = ("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                      "Sec-WebSocket-Protocol: dworker.v1\r\n"
                      "Sec-WebSocket-Accept: " + base64.b64encode(accept).decode() + "\r\n\r\n")
        else:
            date = email.utils.formatdate(time.time() + int(ahead), usegmt=True)
            answer = "HTTP/1.1 200 OK\r\nDate: " + date + "\r\nContent-Length: 0\r\n\r\n"
        client.sendall(answer.encode())
        client.recv(4096)
        client.close()
    except (OSError, ValueError):
        raw.close()
"#;

fn stand_in(lab: &Lab, identity: &Identity, ahead: i64) -> Result<Process> {
    let script = lab.directory().join("appliance.py");
    fs::write(&script, APPLIANCE)?;
    let command = lab.elsewhere().command("python3").arg(script).arg(net::DIRECT.v4.to_string());
    let process = command.arg(&identity.certificate).arg(&identity.key).arg(ahead.to_string()).spawn()?;
    process.wait_for_line("listening", SOON)?;
    Ok(process)
}

pub(super) fn at_the_site(house: &House<'_>, patient: &Patient<'_>) -> Result<()> {
    let lab = house.lab;
    let host = lab.site();
    let quoted = |text: &str| format!("{text:?}");
    let other = Pki::create(&host.directory().join("other"))?;
    let other = quoted(&other.ca_file().display().to_string());
    let stranger = Group::new("stranger", ["a.example"])?;
    let url = |url: &'static str| [("appliance_url", url)];
    patient.finds_with(
        "a wrong CA",
        &[("ca_file", &other)],
        "",
        ("certificate-untrusted", "error"),
        &["signed by"],
    )?;
    patient.finds_with(
        "a wrong key",
        &[("worker_key", &quoted(&stranger.key))],
        "",
        ("worker-key", "error"),
        &["401"],
    )?;
    let address = format!("\"https://{}\"", net::APPLIANCE.v4);
    patient.finds_with(
        "a wrong name",
        &[("appliance_url", &address)],
        "",
        ("certificate-name", "error"),
        &["10.77.1.10"],
    )?;
    patient.finds_with(
        "a wrong port",
        &url("\"https://appliance.example:444\""),
        "",
        ("appliance-unreachable", "error"),
        &["444"],
    )?;
    patient.finds_with(
        "no such name",
        &url("\"https://nowhere.example\""),
        "",
        ("appliance-name", "error"),
        &["nowhere.example"],
    )?;

    let resolver = format!("nameserver {}\noptions timeout:2 attempts:2\n", net::SITE_RESOLVER.v4);
    {
        let listen = "import socket, sys, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                      s.bind(('127.0.0.1', 53)); print('listening', flush=True); time.sleep(600)";
        let silent = host.command("python3").args(["-c", listen]).spawn()?;
        silent.wait_for_line("listening", SOON)?;
        host.set_resolv_conf("nameserver 127.0.0.1\n")?;
        patient.finds("a resolver that does not answer", "resolver", "error", &["127.0.0.1"])?;
        host.set_resolv_conf(&resolver)?;
    }

    // A proxy in between.
    let nobody = format!("\"http://{}:9\"", net::PROXY.v4);
    patient.finds_with(
        "no proxy",
        &[("proxy_address", &nobody)],
        "",
        ("proxy-unreachable", "error"),
        &["10.77.2.1:9"],
    )?;
    let _proxy = lab.http_proxy(ProxyKind::Tinyproxy)?;
    let through = |door, login: &str| quoted(&HttpProxy::url(door, login));
    let wrong = through(Door::Login, "worker:wrong");
    patient.finds_with(
        "a wrong password",
        &[("proxy_address", &wrong)],
        "",
        ("proxy-login", "error"),
        &["proxy.corp.example:3129"],
    )?;
    let closed = through(Door::Closed, "");
    patient.finds_with(
        "a proxy that refuses",
        &[("proxy_address", &closed)],
        "",
        ("proxy-denied", "error"),
        &["appliance.example"],
    )?;
    let open = patient.with(&[("proxy_address", &through(Door::Open, ""))], "")?;
    assert_eq!(patient.looked(patient.command(&open)?.output()?)?, [], "through a proxy that works");

    // An appliance with another certificate, or another clock.
    host.set_hosts(&format!("127.0.0.1 localhost\n::1 localhost\n{} appliance.example\n", net::DIRECT.v4))?;
    for (planted, validity, ahead, id, part) in [
        ("an expired certificate", Validity::Expired, 0, "certificate-expired", "has expired"),
        ("a certificate of tomorrow", Validity::NotYet, 0, "clock", "is not valid yet"),
        ("a clock that is slow", Validity::Current, 3600, "clock", "s behind the appliance's"),
        ("a clock that is fast", Validity::Current, -3600, "clock", "s ahead of the appliance's"),
    ] {
        let identity = lab.pki().issue(&["stand-in.example", "appliance.example"], validity)?;
        let _appliance = stand_in(lab, &identity, ahead)?;
        patient.finds(planted, id, "error", &[part])?;
    }
    {
        let identity = lab.pki().issue(&["appliance.example"], Validity::Ending)?;
        let _appliance = stand_in(lab, &identity, 0)?;
        patient.finds(
            "the appliance's certificate ends soon",
            "certificate-expires",
            "warning",
            &["appliance: certificate 1"],
        )?;
    }
    host.set_hosts("127.0.0.1 localhost\n::1 localhost\n")
}
