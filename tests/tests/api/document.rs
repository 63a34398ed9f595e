//! The API's document, judged by programs that know nothing but it: it validates, and whatever they send that it
//! allows, or forbids, is answered as it says.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tests::{Config, Lab, api_judge};

/// How many requests are made up for each operation, at most, beside those that cover the document; a count and no time, so
/// that a busy machine asks as much as an idle one.
const EXAMPLES: &str = "40";
/// How long a busy machine may take for them.
const LONGEST: Duration = Duration::from_secs(600);
/// What every answer must be. Not asked: whether all is accepted that the document allows, since a schema can't
/// say that a name is taken.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance,missing_required_header,\
                      unsupported_method,allow_header_conformance,use_after_free,ensure_resource_availability";

#[test]
fn the_document_validates_and_thousands_of_requests_are_answered_as_it_says() -> Result<()> {
    let lab = Lab::new()?;
    let config = Config::new().appliance(&lab.appliance_identity()?, &[]);
    let appliance = lab.appliance().daemon("appliance", config)?;
    let admin = lab.admin(&appliance)?;
    lab.explain(|| {
        admin
            .post("/api/v1/workers", &json!({ "name": "site-a", "proxy_hosts": "vc.corp.example" }))?
            .ok()?;
        let document = admin.get("/api/v1/openapi.json")?;
        let mut operations = 0;
        for (path, item) in document["paths"].as_object().context("no paths")? {
            for (method, operation) in item.as_object().into_iter().flatten() {
                operations += 1;
                // What is for everybody needs no credential; some of it says more with one.
                let is_open = operation["security"].as_array().is_some_and(|any| any.contains(&json!({})));
                if !is_open {
                    let path = path.replace(['{', '}'], "");
                    admin.answer(admin.curl(&method.to_uppercase(), &path))?.problem(401)?;
                }
            }
        }
        let file = lab.directory().join("openapi.json");
        fs::write(&file, document.to_string())?;
        api_judge("openapi-spec-validator")?.arg(&file).check()?;

        let judge = api_judge("schemathesis")?
            .args(["run", "--url", "https://appliance.example", "--checks", CHECKS, "--tls-verify"])
            .arg(lab.pki().ca_file())
            .args(["--header", &format!("Authorization: Bearer {}", admin.token)])
            // That one has no end.
            .args(["--exclude-path", "/api/v1/stream", "--max-examples", EXAMPLES])
            .args(["--request-timeout", "20", "--continue-on-failure"])
            .arg(&file)
            .deadline(LONGEST);
        let output = lab.elsewhere().uncaptured(judge).output()?;
        assert!(output.status.success(), "{output}");
        // The number behind a label, on its line or on the next.
        let number = |label: &str| {
            let behind = output.stdout.split_once(label).with_context(|| format!("no {label}: {output}"))?.1;
            Ok::<usize, anyhow::Error>(behind.split_whitespace().next().context("no number")?.parse()?)
        };
        assert_eq!(number("Tested:")?, operations - 1, "{output}");
        let cases = number("Test cases:")?;
        eprintln!("{cases} requests");
        assert!(cases > 1000, "{output}");

        // It came through, and what was there before still is.
        assert_eq!(admin.get("/readyz")?, json!({ "ready": true, "reasons": [] }));
        let log = appliance.log();
        assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
        // What schemathesis added itself it may have removed; this one it may have changed, and told.
        let events = admin.all("/api/v1/events")?;
        assert!(
            events.iter().any(|event| event["kind"] == "worker-added" && event["subject"] != "site-a"),
            "nothing was ever added"
        );
        Ok(())
    })
}
