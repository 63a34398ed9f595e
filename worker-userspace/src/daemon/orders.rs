//! What may be asked of a daemon only from its own host, through the control socket: to reload, and to steer or not.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinError;

use super::news::News;
use super::reload::Invocation;
use crate::inspect::api::{RELOAD, STEER_OFF, STEER_ON};
use crate::steer::steering::{SteerError, Steering};
use crate::web::extract::Json;
use crate::web::{Kind, Problem};

/// To reload; whoever asks is told the new process's id, or why there is none.
pub(super) type Order = oneshot::Sender<Result<u32, String>>;

#[derive(Clone)]
struct Shared {
    steering: Option<Arc<Steering>>,
    orders: mpsc::Sender<Order>,
    invocation: Invocation,
}

pub(super) fn routes(
    steering: Option<Arc<Steering>>,
    orders: mpsc::Sender<Order>,
    invocation: &Invocation,
) -> Router {
    Router::new()
        .route(RELOAD, post(reload))
        .route(RELOAD, get(news))
        .route(STEER_ON, post(async |State(shared): State<Shared>| shared.switch(true).await))
        .route(STEER_OFF, post(async |State(shared): State<Shared>| shared.switch(false).await))
        .with_state(Shared { steering, orders, invocation: invocation.clone() })
}

async fn reload(State(shared): State<Shared>) -> Response {
    let (order, outcome) = oneshot::channel();
    if shared.orders.try_send(order).is_err() {
        return problem(Kind::Unavailable, "it stops, or reloads already");
    }
    match outcome.await {
        Ok(Ok(pid)) => Json(json!({ "pid": pid })).into_response(),
        Ok(Err(why)) => problem(Kind::Conflict, &why),
        Err(_) => problem(Kind::Unavailable, "it stops"),
    }
}

/// What a reload would bring.
async fn news(State(shared): State<Shared>) -> Response {
    let Some(beginning) = shared.invocation.beginning else {
        return problem(Kind::Unavailable, "it does not know what it was started with");
    };
    // Files are read.
    let asked = tokio::task::spawn_blocking(move || beginning.news(&shared.invocation.program));
    match asked.await {
        Ok(news) => Json::<News>(news).into_response(),
        Err(panicked) => problem(Kind::Internal, &panicked.to_string()),
    }
}

impl Shared {
    async fn switch(self, on: bool) -> Response {
        let Some(steering) = self.steering else {
            return problem(Kind::Conflict, "this daemon does not steer: its configuration has no [steer]");
        };
        let switched = tokio::task::spawn_blocking(move || match steering.switch(on) {
            Ok(changed) => Ok(changed),
            Err(why @ SteerError::Standing) => Err((Kind::Unavailable, why.to_string())),
            Err(why) => Err((Kind::Internal, why.to_string())),
        });
        let panicked = |panicked: JoinError| (Kind::Internal, panicked.to_string());
        match switched.await.map_err(panicked).flatten() {
            Ok(changed) => {
                if changed {
                    tracing::warn!("steering was switched {} by hand", if on { "on" } else { "off" });
                }
                Json(json!({ "changed": changed })).into_response()
            }
            Err((kind, why)) => problem(kind, &why),
        }
    }
}

fn problem(kind: Kind, detail: &str) -> Response {
    Problem::new(kind, detail).into_response()
}
