//! What the README lets an administrator type, typed into a real shell, at a real appliance.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tests::traffic::Serve;
use tests::{Command, Config, Host, Lab, Sdk, net, program};

use crate::markdown::{Example, is_shown, readme};
use crate::{ADMINISTRATION, BEGINNING};

const SOON: Duration = Duration::from_secs(30);
/// Blocks for a shell in the first hour, and in the section of the commands and the API.
const BLOCKS: [usize; 2] = [4, 6];
/// Stands between what two commands print; none prints it.
const BETWEEN: char = '\u{1e}';

/// The authorities that the desk's host trusts.
const TRUSTED: &str = "trusted.pem";

/// Where an administrator types: a directory with what the README puts there, and the software that it names.
struct Desk {
    directory: PathBuf,
    bin: PathBuf,
}

impl Desk {
    fn new(lab: &Lab) -> Result<Desk> {
        let directory = lab.directory().join("desk");
        let bin = lab.directory().join("bin");
        fs::create_dir(&directory)?;
        fs::create_dir(&bin)?;
        symlink(program()?, bin.join("dworker"))?;
        fs::copy(lab.pki().ca_file(), directory.join(TRUSTED))?;
        Ok(Desk { directory, bin })
    }

    /// A configuration of the README's, with its files here.
    fn configured(&self, toml: &str) -> Result<Config> {
        let toml = toml.replace("/etc/dworker", &self.directory.display().to_string());
        let (mut config, mut table) = (Config::new(), String::new());
        for line in toml.lines() {
            let line = line.split(" #").next().unwrap_or_default().trim();
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                table = format!("{name}.");
            } else if let Some((key, value)) = line.split_once(" = ") {
                // What the README writes is JSON, too.
                config = config.set(&format!("{table}{key}"), serde_json::from_str::<Value>(value)?);
            }
        }
        Ok(config)
    }

    /// Makes what stands for `systemd-run` here, where no systemd is: it runs its command in the host's captured cgroup.
    fn slices(&self, host: &Host) -> Result<()> {
        let script = format!(
            "#!/bin/sh\necho $$ > {}/cgroup.procs || exit\n\
             while [ \"${{1#--}}\" != \"$1\" ]; do shift; done\nexec \"$@\"\n",
            host.cgroup().path().display()
        );
        let program = self.bin.join("systemd-run");
        fs::write(&program, script)?;
        Ok(fs::set_permissions(program, fs::Permissions::from_mode(0o755))?)
    }

    /// Types a block on this host, where `daemon` is the one whose control socket is where it is unless told otherwise.
    /// Gives what each command printed; all of it is what the README shows, and a command of which it shows nothing
    /// ends well.
    fn types(&self, host: &Host, daemon: &str, block: &[Example]) -> Result<Vec<String>> {
        // In a mount namespace of the shell's own.
        let mut script = format!(
            "mount -t tmpfs none /run && mkdir /run/dworker && ln -s {} /run/dworker/control.sock || exit\n\
             PATH={}:$PATH\ncd {}\nexec 2>&1\n",
            host.socket(daemon).display(),
            self.bin.display(),
            self.directory.display()
        );
        for example in block {
            script += &format!("{}\nprintf '{BETWEEN}%d{BETWEEN}' $?\n", example.typed);
        }
        let shell = host.command("sh").env("CURL_CA_BUNDLE", TRUSTED).args(["-c", &script]);
        let output = shell.output()?;
        let mut parts = output.stdout.split(BETWEEN);
        let mut all = Vec::new();
        for Example { typed, printed } in block {
            let (Some(said), Some(code)) = (parts.next(), parts.next()) else { bail!("{typed}: {output}") };
            // Shown where the test fails.
            println!("$ {typed}\n{said}");
            let lines: Vec<&str> = said.lines().collect();
            match printed.is_empty() {
                true => assert_eq!(code, "0", "{typed}"),
                false => assert!(is_shown(&lines, printed), "of {typed} the README shows {printed:#?}"),
            }
            all.push(said.to_owned());
        }
        Ok(all)
    }
}

#[test]
fn commands_and_requests_print_what_the_readme_shows() -> Result<()> {
    let readme = readme()?;
    let (first, administration) = (readme.section(BEGINNING)?, readme.section(ADMINISTRATION)?.examples()?);
    let (configurations, first) = (first.blocks("toml"), first.examples()?);
    let ([certificates, adding, captured, trying], [appliances, workers]) = (&first[..], &configurations[..])
    else {
        bail!("the first hour has not {} blocks for a shell and two configurations", BLOCKS[0])
    };
    let [token, elsewhere, working, asking, wrong, socket] = &administration[..] else {
        bail!("the section has not {} blocks for a shell", BLOCKS[1])
    };
    let lab = Lab::new()?;
    let desk = Desk::new(&lab)?;
    desk.types(lab.appliance(), "none", certificates)?;
    let both = [TRUSTED, "ca.pem"].map(|file| fs::read_to_string(desk.directory.join(file)));
    let [trusted, made] = both;
    fs::write(desk.directory.join(TRUSTED), trusted? + &made?)?;
    desk.slices(lab.appliance())?;
    let config = desk.configured(appliances)?.steer(&[lab.appliance().cgroup()]);
    let appliance = lab.appliance().daemon("appliance", config)?;
    let here = |block: &[Example]| desk.types(lab.appliance(), "appliance", block);
    let there = |block: &[Example]| desk.types(lab.elsewhere(), "none", block);
    lab.explain(|| {
        let added = here(adding)?.concat();
        let key = added.lines().find(|line| line.starts_with("worker_key = ")).context("no key")?;
        let workers = workers.replace("worker_key = \"dwk_...\"", key);
        let _worker = lab.site().daemon("worker", desk.configured(&workers)?)?;
        appliance.wait_for_group("site-b", SOON)?;
        let vsphere = lab.vsphere()?;
        here(captured)?;
        here(trying)?;
        drop(vsphere);

        here(token)?;
        there(elsewhere)?;
        // What the README says happens then: software connects.
        let measured =
            |status: &Value| status["appliance"]["groups"][0]["nodes"][0]["lanes"][0]["rtt_us"].is_u64();
        appliance.wait_for_status("a round trip", SOON, measured)?;
        let _echo = lab.vcenter().serve(Serve::Echo, net::VCENTER, 443)?;
        let client = "import socket, signal\n\
                      s = socket.create_connection(('vcenter.corp.example', 443))\n\
                      s.sendall(b'hello')\nprint(s.recv(5), flush=True)\nsignal.pause()";
        let client = lab.appliance().captured(Command::new("python3").args(["-c", client])).spawn()?;
        client.wait_for_line("hello", SOON)?;
        here(working)?;

        there(asking)?;
        let document: Value =
            serde_json::from_str(&fs::read_to_string(desk.directory.join("openapi.json"))?)?;
        assert!(document["paths"]["/api/v1/workers"].is_object(), "{document}");
        there(wrong)?;
        here(socket)?;
        for file in ["admin.token", "admin.header"] {
            let mode = fs::metadata(desk.directory.join(file))?.permissions().mode();
            assert_eq!(mode & 0o077, 0, "{file} can be read by others");
        }
        Ok(())
    })
}

/// What stands for `ssh`: asks for the password at its terminal, as the proxy's command does, and greets the other end.
const SSH: &str = r"#!/usr/bin/python3
import os, pty, sys

command = next(a.split('=', 1)[1] for a in sys.argv if a.startswith('ProxyCommand='))
command = command.replace('%h', sys.argv[-1]).replace('%p', '22')
(theirs, to_them), (from_them, ours) = os.pipe(), os.pipe()
pid, terminal = pty.fork()
if pid == 0:
    os.dup2(theirs, 0)
    os.dup2(ours, 1)
    os.execvp('sh', ['sh', '-c', 'exec ' + command])
os.close(ours)
asked = b''
while b'assword' not in asked:
    asked += os.read(terminal, 1000)
os.write(terminal, b'PASSWORD\n')
os.write(to_them, b'SSH-2.0-lab\r\n')
answer = os.read(from_them, 1000)
os.kill(pid, 15)
os.waitpid(pid, 0)
sys.exit(answer != b'SSH-2.0-lab\r\n')
";

/// The other blocks for a shell. For two programs that the lab has not, one of their kind stands.
#[test]
fn clients_that_know_proxies_are_called_as_the_readme_says() -> Result<()> {
    let readme = readme()?;
    let [building] = &readme.section("Two commands")?.examples()?[..] else {
        bail!("not one block to build")
    };
    let [calling] = &readme.section("Configuration")?.examples()?[..] else {
        bail!("not one block of calls")
    };
    assert_eq!(readme.blocks("sh").len(), 2 + BLOCKS.iter().sum::<usize>(), "a block that no test knows");
    let ci = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../.ci/run"))?;
    for Example { typed, .. } in building {
        let command = typed.split('#').next().unwrap_or_default().trim();
        assert!(ci.lines().any(|line| line == command), ".ci/run does not run {command}");
    }

    let lab = Lab::new()?;
    let _vsphere = lab.vsphere()?;
    let _greeting = lab.vcenter().serve(Serve::Echo, net::ECHO, 22)?;
    let desk = Desk::new(&lab)?;
    let program = |name: &str, script: &str| {
        fs::write(desk.bin.join(name), script)?;
        fs::set_permissions(desk.bin.join(name), fs::Permissions::from_mode(0o755))
    };
    program("govc", &format!("#!/bin/sh\nexec {}\n", lab.sdk(Sdk::Go, ["list"])?.to_shell()))?;
    program("ssh", SSH)?;
    let password = desk.directory.join("proxy.password");
    fs::write(&password, "PASSWORD\n")?;
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600))?;
    let tunnel = lab.tunnel_with(["*.corp.example"], ["*.corp.example"], |config| {
        let config = config.set("proxy.http", "127.0.0.1:3128").set("proxy.socks", "127.0.0.1:1080");
        config.set("proxy.user", "backup").set("proxy.password_file", password.display().to_string())
    })?;
    lab.explain(|| {
        let known = |typed: &String| typed.replace("esxi.corp.example", "echo.corp.example");
        let calling: Vec<Example> =
            calling.iter().map(|call| Example { typed: known(&call.typed), printed: vec![] }).collect();
        let said = desk.types(lab.appliance(), "appliance", &calling)?;
        let machines = said.concat().lines().filter(|line| line.ends_with(" poweredOn")).count();
        assert_eq!(machines, 4, "{said:?}");
        let flows = tunnel.appliance.flows()?;
        let count = |entry: &str, host: &str| {
            let is_one =
                |flow: &&Value| flow["entry"] == entry && flow["target"] == host && flow["user"] == "backup";
            flows.iter().filter(is_one).count()
        };
        let vcenter = "vcenter.corp.example:443";
        assert_eq!((count("socks", vcenter), count("connect", "echo.corp.example:22")), (1, 1), "{flows:#?}");
        assert!(count("connect", vcenter) >= 2, "{flows:#?}");
        Ok(())
    })
}
