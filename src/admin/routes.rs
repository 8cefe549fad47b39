//! The requests, one function each.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Json, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Facts, origin};
use crate::metrics::CONTENT_TYPE;
use crate::migration::Controller;
use crate::migration::asking::Started;
use crate::migration::phase::Phase;
use crate::migration::preview::Preview;
use crate::migration::records::{Outcome, readable};
use crate::migration::rehearsal::Rehearsal;
use crate::migration::status::Status;
use crate::migration::switch::Request;
use crate::store::StoreError;

/// How long a request to switch waits for what becomes of it.
const DECISION: Duration = Duration::from_secs(15);

pub(super) fn all(facts: Facts) -> axum::Router {
    axum::Router::new()
        .route("/", get(dashboard))
        .route("/status", get(status))
        .route("/start", post(start))
        .route("/switch", post(switch))
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .route("/rates", post(rates))
        .route("/verify", get(report).post(verify))
        .route("/complete", post(complete))
        .route("/rehearse", post(rehearse))
        .route("/preview/start", get(preview_start))
        .route("/preview/{to}", get(preview))
        .route("/rollback", post(rollback))
        .route("/rejects", get(rejects))
        .route("/metrics", get(metrics))
        .fallback(async || {
            Refusal(
                StatusCode::NOT_FOUND,
                "there is nothing at this path".into(),
            )
        })
        .layer(axum::middleware::from_fn(origin::guard))
        .with_state(Arc::new(facts))
}

/// Why a request was not carried out.
pub(super) struct Refusal(pub StatusCode, pub String);

type Answer<T> = Result<Json<T>, Refusal>;

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "message": self.1 }))).into_response()
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl Facts {
    fn controller(&self) -> Result<&Arc<Controller>, Refusal> {
        self.controller.as_ref().ok_or_else(|| {
            Refusal(
                StatusCode::CONFLICT,
                "there is no migration: this proxy serves the new store alone".into(),
            )
        })
    }

    /// The migration, as long as something can be asked of it.
    fn under_way(&self) -> Result<&Arc<Controller>, Refusal> {
        let controller = self.controller()?;
        match controller.ended() {
            None => Ok(controller),
            Some(why) => Err(Refusal(StatusCode::CONFLICT, why.into())),
        }
    }

    async fn status(&self) -> Status {
        let mut status = match &self.controller {
            Some(controller) => controller.status().await,
            None => Status {
                phase: Phase::Settled.to_string(),
                stage: "open".into(),
                backfill_complete: true,
                version: env!("CARGO_PKG_VERSION").into(),
                ..Status::default()
            },
        };
        status.listen.clone_from(&self.listen);
        status.admin.clone_from(&self.admin);
        status.old.clone_from(&self.old);
        status.new.clone_from(&self.new);
        status.uptime_s = self.started.elapsed().as_secs();
        status
    }
}

async fn status(State(facts): State<Arc<Facts>>) -> Json<Status> {
    Json(facts.status().await)
}

async fn start(State(facts): State<Arc<Facts>>) -> Result<Response, Refusal> {
    match facts.under_way()?.start().await? {
        Started::Begun(epoch) => {
            let message = "the migration begins";
            Ok(Json(json!({ "message": message, "epoch": epoch })).into_response())
        }
        Started::NotYet(why) => {
            Ok((StatusCode::ACCEPTED, Json(json!({ "message": why }))).into_response())
        }
        Started::Refused(why) => Err(Refusal(StatusCode::CONFLICT, why)),
    }
}

/// What a request to switch says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SwitchTo {
    to: Phase,
    #[serde(default)]
    when_ready: bool,
}

async fn switch(State(facts): State<Arc<Facts>>, body: String) -> Response {
    let asked: SwitchTo = match serde_json::from_str(&body) {
        Ok(asked) => asked,
        Err(error) => {
            return Refusal(StatusCode::BAD_REQUEST, error.to_string()).into_response();
        }
    };
    let request = Request {
        to: asked.to,
        when_ready: asked.when_ready,
    };
    let controller = match facts.under_way() {
        Ok(controller) => controller,
        Err(refusal) => return refusal.into_response(),
    };
    match tokio::time::timeout(DECISION, controller.switch(request)).await {
        Err(_) => Refusal(
            StatusCode::GATEWAY_TIMEOUT,
            "the switch key is written, but no decision was made yet; see `segue status`".into(),
        )
        .into_response(),
        Ok(Err(error)) => Refusal::from(error).into_response(),
        Ok(Ok(record)) => {
            let code = match record.outcome {
                Outcome::Refused => StatusCode::CONFLICT,
                Outcome::Waiting => StatusCode::ACCEPTED,
                Outcome::Done | Outcome::None => StatusCode::OK,
            };
            let message = record.reason.clone();
            (code, Json(json!({ "message": message, "switch": record }))).into_response()
        }
    }
}

async fn pause(State(facts): State<Arc<Facts>>) -> Answer<serde_json::Value> {
    let control = facts.under_way()?.steer(|control| control.paused = true);
    Ok(Json(json!(control.await?)))
}

async fn resume(State(facts): State<Arc<Facts>>) -> Answer<serde_json::Value> {
    let control = facts.under_way()?.steer(|control| control.paused = false);
    Ok(Json(json!(control.await?)))
}

/// New limits; what is not named is no limit.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rates {
    keys: Option<u64>,
    bytes: Option<u64>,
}

async fn rates(State(facts): State<Arc<Facts>>, body: String) -> Answer<serde_json::Value> {
    let rates: Rates = serde_json::from_str(&body)
        .map_err(|error| Refusal(StatusCode::BAD_REQUEST, error.to_string()))?;
    let set = facts.under_way()?.steer(move |control| {
        let set = |limit: &mut Option<u64>, asked: Option<u64>| match asked {
            None => {}
            Some(0) => *limit = None,
            asked => *limit = asked,
        };
        set(&mut control.rate_keys, rates.keys);
        set(&mut control.rate_bytes, rates.bytes);
    });
    Ok(Json(json!(set.await?)))
}

async fn verify(State(facts): State<Arc<Facts>>) -> Result<Response, Refusal> {
    let controller = facts.under_way()?;
    match controller.view().state.value.phase {
        Phase::Migration | Phase::Normal => {}
        phase => {
            return Err(Refusal(
                StatusCode::CONFLICT,
                format!("there is nothing to compare with in the {phase} phase"),
            ));
        }
    }
    let number = controller.verify();
    Ok((StatusCode::ACCEPTED, Json(json!({ "number": number }))).into_response())
}

async fn report(State(facts): State<Arc<Facts>>) -> Result<Response, Refusal> {
    let controller = facts.controller()?;
    let done = controller.verifications_done();
    let report = match controller.verifying() {
        Some(under_way) => Some((*under_way).clone()),
        None => controller.report().await?,
    };
    let trouble = controller.trouble();
    Ok(Json(json!({ "done": done, "report": report, "trouble": trouble })).into_response())
}

async fn complete(State(facts): State<Arc<Facts>>) -> Answer<serde_json::Value> {
    match facts.under_way()?.complete().await? {
        Ok(()) => Ok(Json(json!({ "message": "the migration is settled" }))),
        Err(why) => Err(Refusal(StatusCode::CONFLICT, why)),
    }
}

async fn rehearse(State(facts): State<Arc<Facts>>) -> Answer<Rehearsal> {
    let controller = facts.under_way()?.clone();
    let rehearsal = controller.rehearse().await?;
    rehearsal
        .map(Json)
        .map_err(|why| Refusal(StatusCode::CONFLICT, why))
}

async fn preview(State(facts): State<Arc<Facts>>, Path(to): Path<Phase>) -> Answer<Preview> {
    Ok(Json(facts.controller()?.preview(to).await?))
}

async fn preview_start(State(facts): State<Arc<Facts>>) -> Answer<Preview> {
    Ok(Json(facts.controller()?.preview_start().await?))
}

async fn rollback(State(facts): State<Arc<Facts>>) -> Answer<serde_json::Value> {
    match facts.under_way()?.rollback().await? {
        Ok(()) => Ok(Json(json!({ "message": "the rollback has begun" }))),
        Err(why) => Err(Refusal(StatusCode::CONFLICT, why)),
    }
}

/// A reject for people: the key readable.
#[derive(Serialize)]
struct Rejected {
    key: String,
    reason: String,
}

async fn rejects(State(facts): State<Arc<Facts>>) -> Answer<Vec<Rejected>> {
    let rejects = facts.controller()?.rejects().await?;
    let rejected = rejects.into_iter().map(|reject| Rejected {
        key: readable(&reject.key),
        reason: reject.reason,
    });
    Ok(Json(rejected.collect()))
}

async fn metrics(State(facts): State<Arc<Facts>>) -> Result<Response, Refusal> {
    let text = facts
        .metrics
        .render()
        .await
        .map_err(|error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

async fn dashboard() -> Html<&'static str> {
    Html(include_str!("dashboard.html"))
}
