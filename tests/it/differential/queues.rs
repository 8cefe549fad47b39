//! Locks and elections as services, as etcd answers them.

use std::time::Duration;

use etcd_client::{
    Client, LeaderKey, LeaseGrantOptions, LockOptions, ProclaimOptions, ResignOptions,
};
use segue::store::Guard;
use segue::store::NewStore as _;
use segue::store::memory::Memory;
use segue::tasks::spawn_owned;

use crate::support::api::Api;
use crate::support::{Etcd, eventually};

#[tokio::test]
async fn locks_and_elections_answer_alike() {
    let api = Api::start(Memory::new().guarded(Guard::None));
    let (etcd, api) = tokio::join!(Etcd::start(), api);
    let (mut said, mut expected) = tokio::join!(script(api.endpoint()), script(etcd.endpoint()));
    // Before 3.5, etcd gave a lock to somebody whose lease had run out while he waited.
    let expired = |line: &mut String| line.starts_with("expired");
    let [told, _] =
        [&mut said, &mut expected].map(|lines| lines.extract_if(.., expired).collect::<Vec<_>>());
    assert_eq!(told, ["expired: Unknown: mutex: session is expired"]);
    assert_eq!(said, expected);
}

/// What somebody is told who locks and elects; the same as ever, whoever is asked.
struct Asked {
    client: Client,
    told: Vec<String>,
}

impl Asked {
    fn note(&mut self, what: &str, told: Result<String, etcd_client::Error>) {
        let told = told.unwrap_or_else(|error| match error {
            etcd_client::Error::GRpcStatus(status) => {
                format!("{:?}: {}", status.code(), status.message())
            }
            error => panic!("{what}: {error}"),
        });
        self.told.push(format!("{what}: {told}"));
    }

    /// Waits until the key is there, or is not.
    async fn until(&mut self, key: &str, there: bool) {
        let client = self.client.clone();
        eventually("somebody comes or goes", async || {
            let found = client.clone().get(key, None).await.unwrap();
            if found.kvs().is_empty() == there {
                Err(format!("{key} is there: {}", !there))
            } else {
                Ok(())
            }
        })
        .await;
    }
}

async fn lock(mut client: Client, lease: i64) -> Result<String, etcd_client::Error> {
    let options = LockOptions::new().with_lease(lease);
    let locked = client.lock("l", Some(options)).await?;
    let key = String::from_utf8_lossy(locked.key()).into_owned();
    Ok(format!("{key} at {}", locked.header().unwrap().revision()))
}

async fn campaign(
    mut client: Client,
    value: &str,
    lease: i64,
) -> Result<(String, LeaderKey), etcd_client::Error> {
    let elected = client.campaign("e", value, lease).await?;
    let leader = elected.leader().unwrap().clone();
    let key = String::from_utf8_lossy(leader.key()).into_owned();
    let text = format!(
        "{key} of {} with {} at {}",
        leader.rev(),
        leader.lease(),
        elected.header().unwrap().revision()
    );
    Ok((text, leader))
}

async fn script(endpoint: String) -> Vec<String> {
    let client = Client::connect([endpoint], None).await.unwrap();
    let mut asked = Asked {
        client,
        told: Vec::new(),
    };
    for id in 0x65..0x68 {
        let options = LeaseGrantOptions::new().with_id(id);
        asked.client.lease_grant(600, Some(options)).await.unwrap();
    }
    locks(&mut asked).await;
    elections(&mut asked).await;
    asked.told
}

async fn locks(asked: &mut Asked) {
    for what in ["first", "again"] {
        let told = lock(asked.client.clone(), 0x65).await;
        asked.note(what, told);
    }
    let told = lock(asked.client.clone(), 0x99).await;
    asked.note("without lease", told);
    let second = spawn_owned(lock(asked.client.clone(), 0x66));
    asked.until("l/66", true).await;
    let third = spawn_owned(lock(asked.client.clone(), 0x67));
    asked.until("l/67", true).await;
    // Whoever goes away waits no more, nor do others for him.
    third.abort();
    asked.until("l/67", false).await;
    for what in ["unlocked", "unlocked again"] {
        let told = asked.client.unlock("l/65").await;
        let told = told.map(|told| told.header().unwrap().revision().to_string());
        asked.note(what, told);
    }
    asked.note("second", second.await.unwrap());
    let told = asked.client.unlock("").await;
    asked.note("unlocked nothing", told.map(|told| format!("{told:?}")));
    let third = spawn_owned(lock(asked.client.clone(), 0x67));
    asked.until("l/67", true).await;
    asked.client.lease_revoke(0x67).await.unwrap();
    asked.until("l/67", false).await;
    asked.client.unlock("l/66").await.unwrap();
    asked.note("expired", third.await.unwrap());
    let own = lock(asked.client.clone(), 0).await.unwrap();
    assert!(own.starts_with("l/"), "{own}");
    // Its name is another one each time.
    let own = own.split(' ').next().unwrap().to_owned();
    asked.client.unlock(own).await.unwrap();
}

async fn elections(asked: &mut Asked) {
    let nobody = asked.client.leader("e").await;
    asked.note("nobody", nobody.map(|told| format!("{told:?}")));
    // etcd says nothing at all as long as there is nobody.
    let mut client = asked.client.clone();
    let observed = spawn_owned(async move { client.observe("e").await });
    let (told, first) = campaign(asked.client.clone(), "one", 0x65).await.unwrap();
    asked.note("elected", Ok(told));
    let mut observed = observed.await.unwrap().unwrap();
    let mut leaders = Vec::new();
    let mut observe = async |expected: &str| {
        let next = tokio::time::timeout(Duration::from_secs(20), observed.message()).await;
        let next = next.expect("a leader").unwrap().unwrap();
        let kv = next.kv().unwrap();
        assert_eq!(kv.value_str().unwrap(), expected);
        leaders.push(format!(
            "{expected} of {} at {}",
            kv.create_revision(),
            kv.mod_revision()
        ));
    };
    observe("one").await;
    let (told, _) = campaign(asked.client.clone(), "two", 0x65).await.unwrap();
    asked.note("elected again", Ok(told));
    observe("two").await;
    let proclaim = |leader: &LeaderKey| ProclaimOptions::new().with_leader(leader.clone());
    let told = asked.client.proclaim("three", Some(proclaim(&first))).await;
    let told = told.map(|told| told.header().unwrap().revision().to_string());
    asked.note("proclaimed", told);
    observe("three").await;
    let client = asked.client.clone();
    let second = spawn_owned(async move { campaign(client, "four", 0x66).await });
    asked.until("e/66", true).await;
    for what in ["resigned", "resigned again"] {
        let options = ResignOptions::new().with_leader(first.clone());
        let told = asked.client.resign(Some(options)).await;
        let told = told.map(|told| told.header().unwrap().revision().to_string());
        asked.note(what, told);
    }
    asked.note("second", second.await.unwrap().map(|(told, _)| told));
    observe("four").await;
    let nobody = ResignOptions::new().with_leader(LeaderKey::new());
    let told = asked.client.resign(Some(nobody)).await;
    asked.note("resigned nothing", told.map(|told| format!("{told:?}")));
    let told = asked.client.proclaim("five", Some(proclaim(&first))).await;
    asked.note("no leader", told.map(|told| format!("{told:?}")));
    let told = asked.client.proclaim("six", None).await;
    asked.note("whose", told.map(|told| format!("{told:?}")));
    let leader = asked.client.leader("e").await.map(|told| {
        let kv = told.kv().unwrap();
        format!("{} of {}", kv.value_str().unwrap(), kv.create_revision())
    });
    asked.note("leader", leader);
    asked.told.extend(leaders);
}
