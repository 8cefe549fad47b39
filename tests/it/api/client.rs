//! The `etcd-client` crate against Segue.

use std::sync::Arc;

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, EventType, GetOptions, PutOptions, Txn, TxnOp,
    WatchOptions,
};
use segue::store::memory::Memory;

use crate::support::api::Api;

#[tokio::test]
async fn an_unmodified_client_library_works() {
    let api = Api::start(Arc::new(Memory::new())).await;
    let mut client = Client::connect([api.endpoint()], None).await.unwrap();

    let lease = client.lease_grant(600, None).await.unwrap().id();
    let with_lease = PutOptions::new().with_lease(lease);
    client.put("k/1", "1", Some(with_lease)).await.unwrap();
    let (mut keeper, mut kept) = client.lease_keep_alive(lease).await.unwrap();
    keeper.keep_alive().await.unwrap();
    assert_eq!(kept.message().await.unwrap().unwrap().ttl(), 600);

    let from = WatchOptions::new().with_prefix().with_start_revision(2);
    let mut watch = client.watch("k/", Some(from)).await.unwrap();
    let swap = Txn::new()
        .when([Compare::value("k/1", CompareOp::Equal, "1")])
        .and_then([TxnOp::put("k/2", "2", None)])
        .or_else([TxnOp::put("k/3", "3", None)]);
    assert!(client.txn(swap).await.unwrap().succeeded());
    let all = GetOptions::new().with_prefix();
    let read = client.get("k/", Some(all)).await.unwrap();
    assert_eq!(read.count(), 2);
    let prefix = DeleteOptions::new().with_prefix();
    assert_eq!(
        client.delete("k/", Some(prefix)).await.unwrap().deleted(),
        2
    );

    let mut seen = Vec::new();
    while seen.len() < 4 {
        let response = watch.message().await.unwrap().unwrap();
        seen.extend(response.events().iter().map(|event| {
            let kv = event.kv().unwrap();
            (event.event_type(), kv.key_str().unwrap().to_owned())
        }));
    }
    let put = |key: &str| (EventType::Put, key.to_owned());
    let delete = |key: &str| (EventType::Delete, key.to_owned());
    assert_eq!(seen, [put("k/1"), put("k/2"), delete("k/1"), delete("k/2")]);

    client.lease_revoke(lease).await.unwrap();
    let members = client.member_list().await.unwrap();
    assert_eq!(members.members()[0].client_urls(), [api.endpoint()]);
    assert_eq!(client.status().await.unwrap().version(), "3.5.21");
}
