//! A switch is rehearsed while clients are at work.

use super::load::Load;
use super::old::{everything, fill};
use super::{assert_good, copied, switch_when_ready};
use crate::support::segue::Segue;
use crate::support::{Etcd, V2};

#[tokio::test(flavor = "multi_thread")]
async fn clients_notice_nothing_of_rehearsals_while_all_is_copied_and_after() {
    const KEYS: usize = 2000;
    let (old, new) = tokio::join!(Etcd::start_v2(), Etcd::start());
    let v2 = V2::of(&old);
    fill(&v2, KEYS).await;
    let (base, initial) = everything(&v2).await;
    let total = initial.len() as u64;

    let (from, to) = (old.v2_url(), new.url());
    let args = ["--old", &from, "--new", &to, "--rate-keys", "500"];
    let first = Segue::start(args).await;
    let second = Segue::start(args).await;
    let load = Load::start(&[first.endpoint(), second.endpoint()], base, KEYS).await;
    for part in 1..=3 {
        first
            .until("the backfill makes progress", |status| {
                copied(status) >= total * part / 6
            })
            .await;
        rehearse(&second, "migration").await;
    }
    switch_when_ready(&first).await;
    rehearse(&first, "normal").await;
    let recorder = load.recorder.clone();
    let history = load.finish(&second.endpoint(), base, initial).await;
    let (done, failed, unknown) = recorder.counts();
    println!("{done} requests");
    assert_eq!((failed, unknown), (0, 0), "no request may fail");
    assert_good(&history);
    let text = first.run(["status"]).await.out;
    assert!(text.contains("a request waited"), "{text}");
}

async fn rehearse(segue: &Segue, phase: &str) {
    let rehearsed = segue.run(["switch", "--rehearse"]).await;
    assert_eq!(rehearsed.code, 0, "{rehearsed:?}");
    for part in [
        format!("the phase is {phase} as before"),
        "all members (2)".into(),
        "a request waited".into(),
    ] {
        assert!(rehearsed.out.contains(&part), "{rehearsed:?}");
    }
    println!("{}", rehearsed.out);
}
