//! The admin API as the commands use it.

use std::time::Duration;

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client as Hyper;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Admin, Failure};

/// A request that takes longer is not answered any more.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running proxy.
pub(super) struct Client {
    base: String,
    http: Hyper<HttpConnector, Full<Bytes>>,
}

impl Client {
    pub(super) fn new(admin: &Admin) -> Self {
        let base = admin.admin.trim_end_matches('/');
        let base = if base.contains("://") {
            base.to_owned()
        } else {
            format!("http://{base}")
        };
        Self {
            base,
            http: Hyper::builder(TokioExecutor::new()).build_http(),
        }
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.send(Method::GET, path, None).await
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<Value>,
    ) -> Result<T, Failure> {
        self.send(Method::POST, path, body).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<T, Failure> {
        let url = format!("{}{path}", self.base);
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(&url)
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Failure::Usage(format!("--admin {}: {error}", self.base)))?;
        let answer = tokio::time::timeout(PATIENCE, async {
            let response = self.http.request(request).await.map_err(|error| {
                Failure::Failed(format!(
                    "no proxy answers at {} ({}); is `segue serve` running there? Say where with \
                     --admin or SEGUE_ADMIN",
                    self.base,
                    root(&error)
                ))
            })?;
            let code = response.status();
            let body = response.into_body().collect().await;
            let body = body.map_err(|error| Failure::Failed(error.to_string()))?;
            Ok((code, body.to_bytes()))
        });
        let (code, body) = answer.await.map_err(|_| {
            Failure::Failed(format!("{url} has not answered within {PATIENCE:?}"))
        })??;
        if code.is_success() {
            return serde_json::from_slice(&body).map_err(|error| {
                Failure::Failed(format!("{url} is not the admin API of segue: {error}"))
            });
        }
        let message = serde_json::from_slice::<Value>(&body)
            .ok()
            .and_then(|body| Some(body.get("message")?.as_str()?.to_owned()))
            .unwrap_or_else(|| format!("{url} answered {code}"));
        Err(match code {
            StatusCode::CONFLICT => Failure::Refused(message),
            StatusCode::BAD_REQUEST => Failure::Usage(message),
            _ => Failure::Failed(message),
        })
    }
}

/// The innermost cause, which says most.
fn root(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
