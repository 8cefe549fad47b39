//! Plain HTTP on the API's port, and the services that any gRPC server has.

use std::sync::Arc;
use std::time::Duration;

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
use crate::support::Etcd;
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

#[tokio::test]
async fn who_watches_the_health_holds_up_no_shutdown() {
    let api = Api::start_with(Arc::new(Memory::new()), |config| {
        config.shutdown_grace = Duration::from_mins(10);
    })
    .await;
    let mut health = HealthClient::new(channel(&api).await);
    let request = HealthCheckRequest {
        service: String::new(),
    };
    let mut statuses = health.watch(request).await.unwrap().into_inner();
    assert_eq!(statuses.message().await.unwrap().unwrap().status, 1);
    let stopped = tokio::time::timeout(Duration::from_secs(20), api.stop());
    stopped.await.expect("nothing is waited for");
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

/// A request about one user, role or member: enough of a message for each.
#[derive(Clone, prost::Message)]
struct About {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes, tag = "2")]
    more: Vec<u8>,
}

/// The same, by a number.
#[derive(Clone, prost::Message)]
struct AboutNumber {
    #[prost(uint64, tag = "1")]
    id: u64,
}

/// The code and text of the answer to each of these.
async fn answers<T: prost::Message + Clone + 'static>(
    channel: &Channel,
    methods: &[&'static str],
    request: T,
) -> Vec<(&'static str, Code, String)> {
    let mut answers = Vec::new();
    for method in methods.iter().copied() {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_maybe_shared(format!("/etcdserverpb.{method}"));
        let codec = tonic_prost::ProstCodec::<T, ()>::default();
        let request = tonic::Request::new(request.clone());
        let answer = grpc.unary(request, path.unwrap(), codec).await;
        answers.push(match answer {
            Ok(_) => (method, Code::Ok, String::new()),
            Err(why) => (method, why.code(), why.message().to_owned()),
        });
    }
    answers
}

#[tokio::test]
async fn what_is_asked_of_users_roles_and_members_that_are_not_there_is_answered_as_by_etcd() {
    let etcd = Etcd::start().await;
    let api = Api::start(Arc::new(Memory::new())).await;
    let endpoint = Endpoint::from_shared(etcd.endpoint()).unwrap();
    let channels = [endpoint.connect().await.unwrap(), channel(&api).await];
    let named = About {
        name: "nobody".into(),
        // To the grant of a permission, one for the key `k`.
        more: b"\x12\x01k".into(),
    };
    let number = AboutNumber { id: 0x77 };
    let [theirs, ours] = channels.each_ref().map(async |channel| {
        let mut all = answers(
            channel,
            &["Auth/UserList", "Auth/RoleList", "Auth/AuthDisable"],
            (),
        )
        .await;
        let of_names = [
            "Auth/UserGet",
            "Auth/UserDelete",
            "Auth/UserChangePassword",
            "Auth/UserGrantRole",
            "Auth/UserRevokeRole",
            "Auth/RoleGet",
            "Auth/RoleDelete",
            "Auth/RoleGrantPermission",
            "Auth/RoleRevokePermission",
        ];
        all.extend(answers(channel, &of_names, named.clone()).await);
        let of_numbers = [
            "Cluster/MemberRemove",
            "Cluster/MemberUpdate",
            "Cluster/MemberPromote",
            "Maintenance/MoveLeader",
        ];
        all.extend(answers(channel, &of_numbers, number.clone()).await);
        all
    });
    assert_eq!(ours.await, theirs.await);
    let mut auth = AuthClient::new(channels[1].clone());
    let users = auth.user_list(pb::AuthUserListRequest {}).await.unwrap();
    assert_eq!(users.into_inner().users, Vec::<String>::new());
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
