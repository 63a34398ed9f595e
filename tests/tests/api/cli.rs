//! The commands on top of the API: through the control socket, and over the network.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::{APPLIANCE_URL, Lab, Output};

use super::{House, SOON};

impl House<'_> {
    /// A command on the appliance host.
    fn here(&self, args: &[&str]) -> Result<Output> {
        let host = self.lab.appliance();
        host.dworker(args)?.arg("--socket").arg(host.socket(self.appliance.name())).output()
    }

    /// A command on another host, with the token in a file.
    fn there(&self, args: &[&str]) -> Result<Output> {
        let host = self.lab.elsewhere();
        let file = host.directory().join("token");
        std::fs::write(&file, format!("{}\n", self.admin.token))?;
        let command = host.dworker(args)?.args(["--url", APPLIANCE_URL, "--token-file"]).arg(file);
        command.arg("--ca-file").arg(self.lab.pki().ca_file()).output()
    }
}

/// What a command printed, where it ended with this code.
fn ended(output: Output, code: i32) -> Result<String> {
    assert_eq!(output.status.code(), Some(code), "{output}");
    Ok(if code == 0 { output.stdout } else { output.stderr })
}

#[test]
fn everything_can_be_done_by_commands_here_and_there() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab)?;
    lab.explain(|| {
        assert_eq!(ended(house.here(&["worker", "list"])?, 0)?, "no worker\n");
        let added =
            ended(house.here(&["worker", "add", "site-a", "--proxy-hosts", "vc.corp.example:443,902"])?, 0)?;
        let key = added.lines().find_map(|line| line.strip_prefix("worker_key = ")).context("no key")?;
        assert_eq!(key.len(), 49, "{added}");
        let list = ended(house.there(&["worker", "list"])?, 0)?;
        assert!(list.starts_with("ID  NAME") && list.contains("vc.corp.example:443,902"), "{list}");
        let json: Value = serde_json::from_str(&ended(house.there(&["worker", "list", "-j"])?, 0)?)?;
        assert_eq!(json[0]["name"], "site-a");

        ended(house.there(&["worker", "edit", "site-a", "--description", "in Zürich"])?, 0)?;
        ended(house.there(&["worker", "disable", "site-a"])?, 0)?;
        let shown = ended(house.here(&["worker", "show", "1"])?, 0)?;
        assert!(shown.starts_with("worker site-a: disabled\n") && shown.contains("in Zürich"), "{shown}");
        // As the command says it of the key.
        let key: String = serde_json::from_str(key)?;
        let hash = lab.elsewhere().dworker(["key", "hash"])?.input(key).check()?;
        assert!(shown.contains(&format!("\tkey_sha256 {}", hash.trim())), "{hash}{shown}");
        ended(house.here(&["worker", "enable", "site-a"])?, 0)?;
        let rotated = ended(house.here(&["worker", "rotate-key", "site-a", "--grace", "1h"])?, 0)?;
        assert!(rotated.contains("worker_key = \"dwk_") && rotated.contains("works until"), "{rotated}");
        let again = ["worker", "rotate-key", "site-a", "--grace", "2h"];
        let refused = ended(house.there(&again)?, 4)?;
        let hash = &hash[..12];
        assert!(
            refused.contains(&format!("the one before it ({hash}) works until 2"))
                && refused.contains("--force"),
            "{refused}"
        );
        let forced = house.there(&[&again[..], &["--force"]].concat())?;
        assert!(
            forced.stderr.contains(&format!("({hash})")) && forced.stderr.contains("has ended now"),
            "{forced}"
        );
        assert!(ended(forced, 0)?.contains("worker_key = \"dwk_"));

        let add = ["cloud", "add", "VC 1", "--type", "vmware", "--api-url", "https://vc1.corp.example/sdk"];
        ended(house.here(&add)?, 0)?;
        // By numbers, as by names.
        ended(house.there(&["cloud", "assign", "1", "1"])?, 0)?;
        let clouds = ended(house.there(&["cloud", "list", "--worker", "site-a"])?, 0)?;
        assert!(clouds.contains("VC 1") && clouds.contains("site-a"), "{clouds}");
        ended(house.here(&["cloud", "edit", "VC 1", "--name", "VC one"])?, 0)?;
        let shown = ended(house.here(&["cloud", "show", "VC one"])?, 0)?;
        assert!(shown.contains("proxy_host vc1.corp.example:443"), "{shown}");

        // What is refused has an exit code and a reason.
        for (args, code, says) in [
            (&["worker", "show", "nobody"][..], 3, "there is no worker \"nobody\""),
            (&["worker", "add", "site-a"], 4, "choose another name"),
            (&["worker", "add", "Site A"], 2, "1 to 63 of a-z"),
            (&["worker", "add", "7"], 2, "as in \"site-7\""),
            (
                &["worker", "add", "b", "--proxy-hosts", "vc.corp.example:902"],
                4,
                "is carried by worker site-a",
            ),
            (&["worker", "edit", "site-a"], 2, "say what to change"),
            (&["worker", "edit", "site-a", "--name", "b", "--revision", "1"], 4, "has changed since"),
            (
                &["worker", "remove", "site-a", "--yes"],
                4,
                "\"VC one\": give it to another worker, or to none, first: `dworker cloud assign`",
            ),
            (&["cloud", "assign", "VC one"], 2, "or say `--none`"),
            (&["worker", "remove", "site-a"], 2, "--yes"),
            (&["worker", "rotate-key", "site-a", "--grace", "soon"], 2, "not a duration"),
            (&["cloud", "add", "b", "--type", "fog", "--api-url", "https://b.example"], 2, "xenserver"),
            (&["node", "priority", "site-a", "nobody", "1"], 3, "has no node"),
            (&["connections", "close", "7"], 3, "no connection 7"),
            (&["events", "--kind", "nonsense"], 2, "the kinds are"),
            (&["events", "--since", "yesterday"], 2, "how long ago it was as in 90s, 15m, 2h or 7d"),
        ] {
            let said = ended(house.there(args)?, code)?;
            assert!(said.starts_with("dworker: ") && said.contains(says), "{args:?}: {said}");
        }
        ended(house.here(&["cloud", "assign", "VC one", "--none"])?, 0)?;
        ended(house.here(&["cloud", "remove", "VC one", "--yes"])?, 0)?;
        ended(house.there(&["worker", "remove", "site-a", "--yes"])?, 0)?;

        house.admin.event("worker-removed", "site-a", SOON)?;
        let events = ended(house.there(&["events", "--subject", "site-a", "--since", "1h"])?, 0)?;
        let kinds: Vec<&str> =
            events.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!(
            (kinds.first(), kinds.last()),
            (Some(&"worker-added"), Some(&"worker-removed")),
            "{events}"
        );
        assert!(events.contains("root (control socket)") && events.contains("admin (token) from "));
        assert_eq!(ended(house.there(&["connections"])?, 0)?, "no connection\n");
        assert_eq!(ended(house.there(&["node", "list"])?, 0)?, "no node\n");
        let status: Value = serde_json::from_str(&ended(house.there(&["status", "-p"])?, 0)?)?;
        assert_eq!(status["roles"], json!(["appliance"]));
        Ok(())
    })
}

#[test]
fn whom_a_command_can_not_ask_is_said_with_the_remedy() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab)?;
    lab.explain(|| {
        let host = lab.elsewhere();
        let ca = lab.pki().ca_file().display().to_string();
        let file = |name: &str, text: &str| -> Result<String> {
            let path = host.directory().join(name);
            std::fs::write(&path, text)?;
            Ok(path.display().to_string())
        };
        let (empty, two) = (file("empty.token", "\n")?, file("two.token", "dwa_a\ndwa_b\n")?);
        let socket = host.directory().join("others.sock");
        let _socket = std::os::unix::net::UnixListener::bind(&socket)?;
        std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o0))?;
        // As who is not root: without what overrides a file's mode.
        let other = host.command("setpriv").arg("--bounding-set=-all").arg(tests::program()?);
        let other = other.args(["worker", "list", "--socket"]).arg(&socket);
        let ask = |args: &[&str]| {
            host.dworker(["worker", "list"])?.args(args).env("DWORKER_TOKEN", "dwa_x").output()
        };
        let with_ca = |args: &[&str]| ask(&[args, &["--ca-file", &ca]].concat());
        for (output, code, says) in [
            (with_ca(&["--url", APPLIANCE_URL])?, 5, "not the admin token"),
            (ask(&["--url", APPLIANCE_URL])?, 1, "into `--ca-file`"),
            (with_ca(&["--url", "https://10.77.1.10"])?, 1, "write one of its names in `--url`"),
            (with_ca(&["--url", "https://10.77.4.10"])?, 1, "Connection refused"),
            (ask(&["--url", "http://appliance.example"])?, 2, "or add `--insecure-plaintext` in a lab"),
            (ask(&["--socket", "/nonexistent.sock"])?, 1, "is dworker running"),
            (other.output()?, 1, "run this as root, or ask an appliance with `--url` and its admin token"),
            (
                with_ca(&["--url", APPLIANCE_URL, "--token-file", "/no.token"])?,
                2,
                "--token-file /no.token: No such",
            ),
            (
                with_ca(&["--url", APPLIANCE_URL, "--token-file", &empty])?,
                2,
                "empty.token: it is empty: name a file",
            ),
            (with_ca(&["--url", APPLIANCE_URL, "--token-file", &two])?, 2, "two.token: more than a token"),
            (ask(&["--socket", "/x", "--url", APPLIANCE_URL])?, 2, "cannot be used with"),
            (host.dworker(["worker", "list", "--url", APPLIANCE_URL])?.output()?, 2, "DWORKER_TOKEN"),
            (
                host.dworker(["token", "reset", "--url", APPLIANCE_URL, "--ca-file", &ca])?
                    .env("DWORKER_TOKEN", &house.admin.token)
                    .output()?,
                5,
                "on the appliance only",
            ),
        ] {
            let said = ended(output, code)?;
            assert!(said.contains(says), "{said}");
            assert!(!said.contains("dwa_"), "{said}");
        }
        Ok(())
    })
}
