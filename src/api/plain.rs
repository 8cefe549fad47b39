//! What etcd answers over plain HTTP on its client port.

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use serde_json::json;
use tonic::body::Body;

use super::Context;
use crate::metrics;
use crate::types::Range;

/// What those who look for etcd's JSON gateway are told.
const ONLY_GET: &str = "over plain HTTP only GET of /health, /readyz, /livez, /version and /metrics is served; \
    etcd's JSON gateway (POST /v3/kv/range and the like) is not: use a client that speaks gRPC\n";

/// Answers one request.
pub(super) async fn serve<B>(context: &Context, request: &Request<B>) -> Response<Body> {
    let path = request.uri().path();
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, ONLY_GET);
    }
    match path {
        "/health" => health(context).await,
        "/readyz" => match store_answers(context).await {
            Ok(()) => text(StatusCode::OK, "ok\n"),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        // The process is there, whatever the stores do: restarting it would not bring them back.
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/version" => json(
            StatusCode::OK,
            &json!({
                "etcdserver": context.version,
                "etcdcluster": cluster_version(&context.version),
                "segue": env!("CARGO_PKG_VERSION"),
            }),
        ),
        "/metrics" => match context.metrics.render().await {
            Ok(rendered) => with_type(StatusCode::OK, metrics::CONTENT_TYPE, rendered),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

async fn health(context: &Context) -> Response<Body> {
    match store_answers(context).await {
        Ok(()) => json(StatusCode::OK, &json!({"health": "true", "reason": ""})),
        Err(why) => json(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({"health": "false", "reason": why}),
        ),
    }
}

/// Reads from the store, as etcd does to find out whether it is healthy.
pub(super) async fn store_answers(context: &Context) -> Result<(), String> {
    let read = context.store.range(Range::key("health"));
    match tokio::time::timeout(context.silence, read).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!(
            "the store did not answer within {} s",
            context.silence.as_secs()
        )),
    }
}

/// The version that all members of a cluster have in common: without the last part.
fn cluster_version(version: &str) -> String {
    let mut parts = version.split('.');
    match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) => format!("{major}.{minor}.0"),
        _ => version.to_owned(),
    }
}

fn json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    with_type(status, "application/json", value.to_string())
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    with_type(status, "text/plain; charset=utf-8", text)
}

fn with_type(status: StatusCode, content: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(body.into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content));
    response
}
