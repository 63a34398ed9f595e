//! Software that knows nothing of any proxy: vSphere SDKs and resolvers.

use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::artifacts::{artefact, build, directory, source};
use crate::command::Command;
use crate::topology::Lab;
use crate::vsphere::{PASSWORD, USER, VCENTER_URL, simulator};

const GO: &str = "/usr/lib/go-1.19/bin/go";
const PYTHON: &str = "/usr/bin/python3";

/// A vSphere client. All take the same arguments and print `NAME STATE` for each virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sdk {
    /// VMware's SDK for Python, unchanged from PyPI: glibc's resolver.
    PyVmomi,
    /// A statically linked Go program on govmomi: Go's own resolver.
    Go,
    /// A plain Java 17 program: the JVM's sockets, IPv6 ones for IPv4 too.
    Java,
}

impl Sdk {
    /// All of them.
    pub const ALL: [Sdk; 3] = [Sdk::PyVmomi, Sdk::Go, Sdk::Java];

    fn program(self) -> Result<Command> {
        match self {
            Sdk::PyVmomi => {
                Ok(Command::new(python("venv", "pyvmomi")?.join("bin/python"))
                    .arg(source("pyvmomi/client.py")))
            }
            Sdk::Go => Ok(Command::new(go("govmomi", "govmomi/main.go")?)),
            // The JVM starts in a third of the time with these, which changes nothing about its sockets.
            Sdk::Java => Ok(Command::new("java")
                .args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
                .arg(source("java/Client.java"))),
        }
    }
}

impl Lab {
    /// A vSphere client that logs in to `vcenter.corp.example`; `args` is `["list"]`,
    /// `["poweroff", NAME]` or `["poweron", NAME]`. Put it on a host to run it:
    /// `lab.appliance().captured(lab.sdk(Sdk::Go, ["list"])?).check()?`.
    ///
    /// It verifies the vCenter's certificate against the lab's authority.
    pub fn sdk<S: AsRef<OsStr>>(&self, sdk: Sdk, args: impl IntoIterator<Item = S>) -> Result<Command> {
        self.sdk_at(sdk, VCENTER_URL, args)
    }

    /// As [`Lab::sdk`], for another URL: `https://10.77.3.10`, `https://[fd77:0:0:3::10]`.
    pub fn sdk_at<S: AsRef<OsStr>>(
        &self,
        sdk: Sdk,
        url: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Command> {
        let command = sdk.program().with_context(|| format!("making the client {sdk:?}"))?;
        Ok(command.args([url, USER, PASSWORD]).args(args).env("VSPHERE_CA", self.pki().ca_file()))
    }
}

/// A program, linked statically against musl, that prints the addresses of a name, one a line.
pub fn musl_resolve(name: &str) -> Result<Command> {
    let program = resolver()?;
    Ok(Command::new(program).arg(name))
}

/// A Go program that says whether Go would use the proxy of its environment for the URL that it gets.
pub fn go_no_proxy() -> Result<Command> {
    Ok(Command::new(go("noproxy", "noproxy/main.go")?))
}

/// Builds all that the lab builds, so that no test waits for it.
pub fn prepare() -> Result<()> {
    simulator()?;
    for sdk in Sdk::ALL {
        drop(sdk.program()?);
    }
    drop(api_judge("schemathesis")?);
    drop(go_no_proxy()?);
    resolver().map(drop)
}

fn resolver() -> Result<PathBuf> {
    let code = source("musl/resolve.c");
    let flags = ["-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o"];
    artefact("musl-resolve", std::slice::from_ref(&code), &flags.join(" "), |path| {
        let args = flags.map(OsStr::new).into_iter().chain([path.as_os_str(), code.as_os_str()]);
        build("musl-gcc", &args.collect::<Vec<_>>(), &[])
    })
}

/// A static Go program on Debian's govmomi.
pub(crate) fn go(name: &str, main: &str) -> Result<PathBuf> {
    let code = source(main);
    let cache = directory()?.join("go-cache");
    artefact(name, std::slice::from_ref(&code), "go build -trimpath, no cgo", |path| {
        build(
            GO,
            &[OsStr::new("build"), "-trimpath".as_ref(), "-o".as_ref(), path.as_ref(), code.as_ref()],
            &[
                ("CGO_ENABLED", "0".as_ref()),
                ("GO111MODULE", "off".as_ref()),
                ("GOFLAGS", "".as_ref()),
                ("GOPATH", "/usr/share/gocode".as_ref()),
                ("GOCACHE", cache.as_ref()),
            ],
        )
    })
}

/// A Python program that judges APIs by their documents: `schemathesis`, or `openapi-spec-validator`.
pub fn api_judge(program: &str) -> Result<Command> {
    Ok(Command::new(python("venv-schemathesis", "schemathesis")?.join("bin").join(program)))
}

/// A Python environment with what `clients/NAME/requirements.txt` pins.
fn python(environment: &str, name: &str) -> Result<PathBuf> {
    let requirements = source(&format!("{name}/requirements.txt"));
    artefact(environment, std::slice::from_ref(&requirements), "venv, pip install", |path| {
        build(PYTHON, &[OsStr::new("-m"), "venv".as_ref(), path.as_ref()], &[])
            .context("apt-get install --no-install-recommends python3-venv")?;
        let pip = path.join("bin/pip");
        let args = ["install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--requirement"];
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).chain([requirements.as_os_str()]).collect();
        build(&pip.display().to_string(), &args, &[])
    })
}
