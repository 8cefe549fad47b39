//! Writing to etcd over its v2 keys API, as the applications of its time did.

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode, utf8_percent_encode};

use super::Etcd;

/// Requests in flight while a store is filled.
const IN_FLIGHT: usize = 64;

/// A client of the v2 keys API.
#[derive(Clone)]
pub struct V2 {
    client: Client<HttpConnector, Full<Bytes>>,
    endpoint: String,
    authorization: Option<String>,
}

impl V2 {
    /// A client of this server.
    pub fn of(etcd: &Etcd) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build(HttpConnector::new()),
            endpoint: etcd.endpoint(),
            authorization: None,
        }
    }

    /// The same as a user, given as `Basic …`.
    pub fn authorized(mut self, authorization: &str) -> Self {
        self.authorization = Some(authorization.to_owned());
        self
    }

    /// Sets `key` (a path that begins with a slash) to `value`.
    pub async fn put(&self, key: &str, value: &str) {
        self.set(key.as_bytes(), value.as_bytes(), "").await;
    }

    /// Sets a key that expires.
    pub async fn put_ttl(&self, key: &str, value: &str, ttl_s: u32) {
        let ttl = format!("&ttl={ttl_s}");
        self.set(key.as_bytes(), value.as_bytes(), &ttl).await;
    }

    /// Makes a directory, with a time to live if that is not 0.
    pub async fn make_dir(&self, key: &str, ttl_s: u32) {
        let ttl = match ttl_s {
            0 => String::new(),
            ttl_s => format!("&ttl={ttl_s}"),
        };
        let path = format!("/v2/keys{}", encode(key.as_bytes()));
        self.must(Method::PUT, &path, &format!("dir=true{ttl}"))
            .await;
    }

    /// Deletes a key, or a directory with all that is in it.
    pub async fn delete(&self, key: &str) {
        let path = format!("/v2/keys{}?recursive=true", encode(key.as_bytes()));
        self.must(Method::DELETE, &path, "").await;
    }

    /// Sets a key, any bytes, with more form fields (`&name=value`).
    pub async fn set(&self, key: &[u8], value: &[u8], fields: &str) {
        let path = format!("/v2/keys{}", encode(key));
        let value = percent_encode(value, NON_ALPHANUMERIC);
        self.must(Method::PUT, &path, &format!("value={value}{fields}"))
            .await;
    }

    /// Sets many keys, in no order.
    pub async fn fill(&self, pairs: impl IntoIterator<Item = (String, String)>) {
        stream::iter(pairs)
            .map(|(key, value)| {
                let this = self.clone();
                async move { this.put(&key, &value).await }
            })
            .buffer_unordered(IN_FLIGHT)
            .collect::<Vec<()>>()
            .await;
    }

    /// Any request with a form or (where it begins with a brace) a JSON body; panics unless it
    /// succeeds.
    pub async fn must(&self, method: Method, path: &str, body: &str) -> String {
        let (status, answer) = self.send(method, path, body).await;
        assert!(status.is_success(), "{path} {body}: {status} {answer}");
        answer
    }

    /// Any request: status and body of the answer.
    pub async fn send(&self, method: Method, path: &str, body: &str) -> (StatusCode, String) {
        let content = if body.starts_with('{') {
            "application/json"
        } else {
            "application/x-www-form-urlencoded"
        };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.endpoint))
            .header("content-type", content);
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let request = request.body(Full::from(body.to_owned())).unwrap();
        let answer = self.client.request(request).await.unwrap();
        let status = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// A key as the path of a request.
fn encode(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(key) => key
            .split('/')
            .map(|name| utf8_percent_encode(name, NON_ALPHANUMERIC).to_string())
            .collect::<Vec<_>>()
            .join("/"),
        Err(_) => key
            .split(|byte| *byte == b'/')
            .map(|name| percent_encode(name, NON_ALPHANUMERIC).to_string())
            .collect::<Vec<_>>()
            .join("/"),
    }
}
