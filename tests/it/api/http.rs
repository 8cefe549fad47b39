//! Plain HTTP on the API's port, and the services that any gRPC server has.

use std::sync::Arc;

use segue::proto::etcdserverpb as pb;
use segue::proto::etcdserverpb::auth_client::AuthClient;
use segue::proto::etcdserverpb::kv_client::KvClient;
use segue::store::memory::Memory;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use super::faulty::Faulty;
use crate::support::api::Api;
use crate::support::etcd::{http_get, http_request};
use crate::support::eventually;

async fn channel(api: &Api) -> Channel {
    let endpoint = Endpoint::from_shared(api.endpoint()).unwrap();
    endpoint.connect().await.unwrap()
}

#[tokio::test]
async fn tools_find_what_etcd_has_over_plain_http() {
    let api = Api::start(Arc::new(Memory::new())).await;
    let mut kv = KvClient::new(channel(&api).await);
    let bad = kv.put(pb::PutRequest::default()).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    kv.range(pb::RangeRequest {
        key: "a".into(),
        ..pb::RangeRequest::default()
    })
    .await
    .unwrap();
    for (path, parts) in [
        (
            "/health",
            vec!["200 OK", r#"{"health":"true","reason":""}"#],
        ),
        ("/readyz", vec!["200 OK", "ok"]),
        ("/livez", vec!["200 OK", "ok"]),
        (
            "/version",
            vec![
                r#""etcdserver":"3.5.21""#,
                r#""etcdcluster":"3.5.0""#,
                r#""segue":"#,
            ],
        ),
        (
            "/metrics",
            vec![
                r#"grpc_server_handled_total{grpc_code="InvalidArgument",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
                r#"grpc_server_handled_total{grpc_code="OK",grpc_method="Range",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
                "\nprocess_resident_memory_bytes ",
            ],
        ),
        ("/nothing", vec!["404 Not Found"]),
    ] {
        let answer = http_get(api.port(), path).await.unwrap();
        for part in parts {
            assert!(answer.contains(part), "{path}: {answer}");
        }
    }
}

#[tokio::test]
async fn a_store_that_is_away_shows() {
    let store = Faulty::new();
    let api = Api::start(store.clone()).await;
    let mut health = HealthClient::new(channel(&api).await);
    let serving = async |health: &mut HealthClient<Channel>| {
        let request = HealthCheckRequest {
            service: String::new(),
        };
        health.check(request).await.unwrap().into_inner().status
    };
    assert_eq!(serving(&mut health).await, 1);
    store.lose();
    let answer = http_get(api.port(), "/health").await.unwrap();
    assert!(
        answer.contains("503") && answer.contains(r#""health":"false""#),
        "{answer}"
    );
    eventually("the health service knows", async || {
        match serving(&mut health).await {
            2 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    assert!(
        http_get(api.port(), "/livez")
            .await
            .unwrap()
            .contains("200 OK")
    );
}

/// Clients with a user name log in first, and go on without a token where they are told so in these words.
#[tokio::test]
async fn logging_in_is_answered_as_by_an_etcd_without_authentication() {
    let api = Api::start(Arc::new(Memory::new())).await;
    let mut auth = AuthClient::new(channel(&api).await);
    let request = pb::AuthenticateRequest {
        name: "somebody".into(),
        password: "secret".into(),
    };
    let refused = auth.authenticate(request).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (
            Code::FailedPrecondition,
            "etcdserver: authentication is not enabled"
        )
    );
    let status = auth.auth_status(pb::AuthStatusRequest {}).await.unwrap();
    let status = status.into_inner();
    assert!(!status.enabled);
    assert_eq!(status.header.unwrap().revision, 1);
}

#[tokio::test]
async fn what_is_not_served_says_what_to_do_instead() {
    let api = Api::start(Arc::new(Memory::new())).await;
    let mut grpc = tonic::client::Grpc::new(channel(&api).await);
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Auth/AuthEnable");
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let refused = grpc.unary(tonic::Request::new(()), path, codec).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(
        refused.message().contains("credentials in their URLs"),
        "{refused}"
    );
    let gateway = http_request(api.port(), "POST", "/v3/kv/range").await;
    let gateway = gateway.unwrap();
    assert!(
        gateway.contains("405") && gateway.contains("JSON gateway"),
        "{gateway}"
    );
}

#[tokio::test]
async fn the_services_can_be_listed() {
    let api = Api::start(Arc::new(Memory::new())).await;
    let mut reflection = ServerReflectionClient::new(channel(&api).await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = reflection
        .server_reflection_info(tokio_stream::iter([request]))
        .await;
    let answer = answers.unwrap().into_inner().message().await.unwrap();
    let listed = format!("{answer:?}");
    for service in [
        "etcdserverpb.KV",
        "etcdserverpb.Watch",
        "grpc.health.v1.Health",
    ] {
        assert!(listed.contains(service), "{listed}");
    }
}
