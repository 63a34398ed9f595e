//! Why a change was refused, as a problem document.

use crate::appliance::admin::AdminError;
use crate::appliance::store::StoreError;
use crate::web::{FieldError, Kind, Problem};

impl From<AdminError> for Problem {
    fn from(error: AdminError) -> Problem {
        let detail = error.to_string();
        let (kind, errors) = match &error {
            AdminError::NotFound { .. } => (Kind::NotFound, vec![]),
            AdminError::Invalid(problems) => {
                let error = |problem: &crate::appliance::admin::Problem| FieldError {
                    field: problem.field.into(),
                    detail: format!("{}: {}: {}", problem.value, problem.problem, problem.remedy),
                };
                (Kind::Invalid, problems.iter().map(error).collect())
            }
            AdminError::NameTaken { .. } => {
                (Kind::Conflict, vec![FieldError { field: "name".into(), detail: detail.clone() }])
            }
            AdminError::PatternTaken(taken) => {
                let error = |taken: &crate::appliance::admin::Taken| FieldError {
                    field: if taken.this.cloud.is_some() { "api_url" } else { "proxy_hosts" }.into(),
                    detail: taken.to_string(),
                };
                (Kind::Conflict, taken.iter().map(error).collect())
            }
            AdminError::Conflict { .. }
            | AdminError::ManagedByFile { .. }
            | AdminError::GroupNameTaken { .. }
            | AdminError::KeyTaken { .. }
            | AdminError::InGrace { .. }
            | AdminError::Connected { .. }
            | AdminError::InUse { .. }
            | AdminError::Refused(_)
            | AdminError::Store(StoreError::Raced { .. }) => (Kind::Conflict, vec![]),
            AdminError::Store(_) | AdminError::Stopping => (Kind::Unavailable, vec![]),
            AdminError::Randomness(_) => (Kind::Internal, vec![]),
        };
        if matches!(error, AdminError::Store(_) | AdminError::Randomness(_)) {
            tracing::error!("a request failed: {error}");
        }
        let mut problem = Problem::new(kind, detail);
        problem.errors = errors;
        problem
    }
}
