//! The committed JSON schema, and whether an answer is what it says.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};
use tests::api_judge;

/// Judges the answers on standard input: a list of the definition's name and the answer.
const JUDGE: &str = "\
import json, sys
from jsonschema import Draft202012Validator
schema = json.load(open(sys.argv[1]))
Draft202012Validator.check_schema(schema)
for name, answer in json.load(sys.stdin):
    known = Draft202012Validator({**schema, '$ref': '#/$defs/' + name})
    for error in known.iter_errors(answer):
        print(name, error.json_path, error.message)
";

/// Each answer is what the definition of that name in `docs/status.schema.json` says.
pub(crate) fn judge(answers: &[(&str, Value)]) -> Result<()> {
    assert_eq!(faults(answers)?, "", "{answers:#?}");
    Ok(())
}

fn faults(answers: &[(&str, Value)]) -> Result<String> {
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/status.schema.json");
    api_judge("python")?.args(["-c", JUDGE]).arg(&schema).input(json!(answers).to_string()).check()
}

#[test]
fn an_answer_that_is_not_so_is_noticed() -> Result<()> {
    let faults = faults(&[
        ("RuleStatus", json!({ "id": "1", "pattern": "a.example" })),
        ("RuleStatus", json!({ "id": 1, "pattern": "a.example", "carrier": "site-a" })),
    ])?;
    let expected =
        "RuleStatus $.id '1' is not of type 'integer'\nRuleStatus $ 'carrier' is a required property\n";
    assert_eq!(faults, expected);
    Ok(())
}
