//! What is worth asking by name.

use segue::proto::etcdserverpb as pb;

use super::Pair;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::request_op::Request;

pub(crate) fn range(key: &str, range_end: &str) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        ..pb::RangeRequest::default()
    }
}

pub(crate) fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..pb::PutRequest::default()
    }
}

pub(crate) fn delete(key: &str, range_end: &str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest {
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        prev_kv: true,
    }
}

pub(crate) fn compact(revision: i64) -> pb::CompactionRequest {
    pb::CompactionRequest {
        revision,
        physical: true,
    }
}

pub(crate) fn compare(
    key: &str,
    range_end: &str,
    result: CompareResult,
    target: CompareTarget,
    operand: TargetUnion,
) -> pb::Compare {
    pb::Compare {
        result: result.into(),
        target: target.into(),
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        target_union: Some(operand),
    }
}

pub(crate) trait IntoOp {
    fn op(self) -> pb::RequestOp;
}

macro_rules! ops {
    ($($request:ident => $op:ident),* $(,)?) => {
        $(impl IntoOp for pb::$request {
            fn op(self) -> pb::RequestOp {
                pb::RequestOp { request: Some(Request::$op(self)) }
            }
        })*
    };
}

ops! {
    RangeRequest => RequestRange,
    PutRequest => RequestPut,
    DeleteRangeRequest => RequestDeleteRange,
    TxnRequest => RequestTxn,
}

pub(crate) fn txn(
    compare: Vec<pb::Compare>,
    success: Vec<pb::RequestOp>,
    failure: Vec<pb::RequestOp>,
) -> pb::TxnRequest {
    pb::TxnRequest {
        compare,
        success,
        failure,
    }
}

fn with_lease(lease: i64, put: pb::PutRequest) -> pb::PutRequest {
    pb::PutRequest { lease, ..put }
}

async fn with_keys(pair: &mut Pair) {
    for (key, value) in [("a", "3"), ("b", "1"), ("c", "2"), ("a", "4"), ("d", "0")] {
        pair.ask(put(key, value)).await;
    }
}

pub(super) async fn ranges_answer_alike(mut pair: Pair) {
    pair.ask(range("a", "")).await;
    with_keys(&mut pair).await;
    for (key, end) in [
        ("a", ""),
        ("a", "c"),
        ("b", "\0"),
        ("\0", "\0"),
        ("c", "a"),
        ("b", "b"),
        ("x", ""),
        ("", ""),
        ("", "\0"),
    ] {
        pair.ask(range(key, end)).await;
    }
    let all = range("\0", "\0");
    for limit in [-1, 0, 1, 3, 4, 5] {
        pair.ask(pb::RangeRequest {
            limit,
            ..all.clone()
        })
        .await;
        for (sort_order, sort_target) in (0..3).flat_map(|order| (0..5).map(move |t| (order, t))) {
            pair.ask(pb::RangeRequest {
                limit,
                sort_order,
                sort_target,
                ..all.clone()
            })
            .await;
        }
    }
    for revision in -1..9 {
        pair.ask(pb::RangeRequest {
            revision,
            ..all.clone()
        })
        .await;
        for (low, high) in [(revision, 0), (0, revision), (revision, revision + 1)] {
            pair.ask(pb::RangeRequest {
                min_mod_revision: low,
                max_mod_revision: high,
                limit: 2,
                ..all.clone()
            })
            .await;
            pair.ask(pb::RangeRequest {
                min_create_revision: low,
                max_create_revision: high,
                ..all.clone()
            })
            .await;
        }
    }
    for (keys_only, count_only) in [(true, false), (false, true), (true, true)] {
        for limit in [0, 2] {
            pair.ask(pb::RangeRequest {
                keys_only,
                count_only,
                limit,
                serializable: true,
                sort_target: 4,
                sort_order: 2,
                ..all.clone()
            })
            .await;
        }
    }
}

pub(super) async fn puts_and_deletes_answer_alike(mut pair: Pair) {
    let ignore_value = pb::PutRequest {
        ignore_value: true,
        prev_kv: true,
        ..put("a", "")
    };
    pair.expect(ignore_value.clone(), "key not found").await;
    pair.ask(pb::PutRequest {
        prev_kv: true,
        ..put("a", "1")
    })
    .await;
    pair.ask(pb::PutRequest {
        prev_kv: true,
        ..put("a", "2")
    })
    .await;
    pair.ask(ignore_value.clone()).await;
    pair.ask(range("a", "")).await;
    pair.expect(put("", "v"), "key is not provided").await;
    pair.expect(
        pb::PutRequest {
            ignore_value: true,
            ..put("a", "v")
        },
        "value is provided",
    )
    .await;
    pair.expect(
        pb::PutRequest {
            ignore_lease: true,
            ..with_lease(3, put("a", "v"))
        },
        "lease is provided",
    )
    .await;
    pair.expect(with_lease(99, put("a", "v")), "requested lease not found")
        .await;
    pair.expect(delete("", ""), "key is not provided").await;
    pair.ask(delete("x", "")).await;
    pair.ask(delete("a", "")).await;
    pair.ask(delete("a", "")).await;
    with_keys(&mut pair).await;
    pair.ask(pb::DeleteRangeRequest {
        prev_kv: false,
        ..delete("a", "c")
    })
    .await;
    pair.ask(delete("d", "c")).await;
    pair.ask(delete("\0", "\0")).await;
    pair.ask(range("\0", "\0")).await;
    // Far above the limit, and so far above it that the message does not come through.
    let large = "x".repeat(1_600_000);
    pair.expect(put("large", &large), "request is too large")
        .await;
    let code = pair.etcd.ask(&put("large", &large.repeat(2)).into()).await;
    let ours = pair.segue.ask(&put("large", &large.repeat(2)).into()).await;
    for said in [code, ours] {
        assert!(
            said.starts_with("ResourceExhausted: grpc: received message larger"),
            "{said}"
        );
    }
}

pub(super) async fn comparisons_answer_alike(mut pair: Pair) {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    use CompareTarget::{Create, Lease, Mod, Value, Version};
    with_keys(&mut pair).await;
    let yes = || vec![range("a", "").op()];
    for key in ["a", "b", "x"] {
        for result in [Equal, Greater, Less, NotEqual] {
            for (target, operand) in [
                (Version, TargetUnion::Version(2)),
                (Version, TargetUnion::Version(0)),
                (Create, TargetUnion::CreateRevision(2)),
                (Create, TargetUnion::CreateRevision(0)),
                (Mod, TargetUnion::ModRevision(5)),
                (Mod, TargetUnion::ModRevision(0)),
                (Value, TargetUnion::Value("4".into())),
                (Value, TargetUnion::Value("".into())),
                (Lease, TargetUnion::Lease(0)),
                (Lease, TargetUnion::Lease(7)),
            ] {
                for end in ["", "c", "\0", "A"] {
                    let compare = compare(key, end, result, target, operand.clone());
                    pair.ask(txn(vec![compare], yes(), vec![])).await;
                }
            }
        }
    }
    // The operand may be left out, or of another kind.
    for (target, operand) in [
        (Mod, None),
        (Value, None),
        (Mod, Some(TargetUnion::Version(4))),
    ] {
        let compare = pb::Compare {
            target_union: operand,
            ..compare("a", "", Equal, target, TargetUnion::Version(0))
        };
        pair.ask(txn(vec![compare], yes(), vec![])).await;
    }
}

pub(super) async fn operations_of_a_transaction_answer_alike(mut pair: Pair) {
    with_keys(&mut pair).await;
    // Operations see those before them; the headers tell which revision each saw.
    pair.ask(txn(
        vec![],
        vec![
            range("\0", "\0").op(),
            put("e", "1").op(),
            range("e", "").op(),
            delete("b", "").op(),
            delete("none", "").op(),
            range("\0", "\0").op(),
            pb::RangeRequest {
                revision: 3,
                ..range("a", "\0")
            }
            .op(),
            pb::PutRequest {
                prev_kv: true,
                ..put("f", "1")
            }
            .op(),
        ],
        vec![],
    ))
    .await;
    pair.ask(txn(
        vec![],
        vec![delete("none", "").op(), range("e", "").op()],
        vec![],
    ))
    .await;
    pair.ask(txn(vec![], vec![], vec![put("no", "1").op()]))
        .await;
    pair.ask(txn(vec![], vec![], vec![])).await;
    let never = || {
        let operand = TargetUnion::Version(99);
        compare(
            "a",
            "",
            CompareResult::Equal,
            CompareTarget::Version,
            operand,
        )
    };
    let inner = |key: &str| {
        txn(
            vec![never()],
            vec![put(key, "then").op()],
            vec![put(key, "else").op(), range(key, "").op()],
        )
        .op()
    };
    pair.ask(txn(
        vec![],
        vec![inner("g"), range("g", "").op(), inner("h")],
        vec![],
    ))
    .await;
    pair.ask(txn(
        vec![never()],
        vec![],
        vec![inner("g"), delete("x", "").op()],
    ))
    .await;
    pair.ask(txn(vec![], vec![txn(vec![], vec![], vec![]).op()], vec![]))
        .await;
    pair.ask(txn(
        vec![],
        vec![txn(vec![], vec![range("a", "").op()], vec![]).op()],
        vec![],
    ))
    .await;
    // Ignored values and leases see what was written before them.
    let keep = pb::PutRequest {
        ignore_value: true,
        ..put("fresh", "")
    };
    pair.ask(txn(vec![], vec![keep.op()], vec![])).await;
    let keep = pb::PutRequest {
        ignore_value: true,
        ..put("a", "")
    };
    pair.ask(txn(vec![], vec![put("k", "1").op(), keep.op()], vec![]))
        .await;
    let missing = pb::PutRequest {
        ignore_value: true,
        ..put("none", "")
    };
    pair.ask(txn(vec![], vec![put("l", "1").op(), missing.op()], vec![]))
        .await;
    pair.ask(range("\0", "\0")).await;
}

pub(super) async fn one_bad_operation_spoils_a_transaction_alike(mut pair: Pair) {
    with_keys(&mut pair).await;
    let future = pb::RangeRequest {
        revision: 999,
        ..range("a", "")
    };
    pair.ask(txn(
        vec![],
        vec![put("m", "1").op(), future.clone().op()],
        vec![],
    ))
    .await;
    let leased = with_lease(99, put("m", "1"));
    pair.ask(txn(
        vec![],
        vec![put("n", "1").op(), leased.clone().op()],
        vec![],
    ))
    .await;
    // Of several faults, the puts' are named before the reads'.
    let missing = pb::PutRequest {
        ignore_value: true,
        ..with_lease(99, put("none", ""))
    };
    for ops in [
        vec![future.clone().op(), leased.clone().op()],
        vec![leased.op(), future.op()],
        vec![missing.clone().op(), range("a", "").op()],
    ] {
        pair.ask(txn(vec![], ops, vec![])).await;
    }
    pair.ask(missing).await;
    // A read at a revision below 0 is one of the latest if it comes alone.
    for compacted in [0, 2] {
        if compacted > 0 {
            pair.ask(compact(compacted)).await;
        }
        for revision in [-1, -2, i64::MIN] {
            let below = pb::RangeRequest {
                revision,
                ..range("a", "z")
            };
            pair.ask(below.clone()).await;
            let below = || vec![below.clone().op()];
            pair.ask(txn(vec![], below(), vec![])).await;
            pair.ask(txn(vec![], vec![], below())).await;
            let nested = txn(vec![], below(), vec![]).op();
            pair.ask(txn(vec![], vec![put("o", "1").op(), nested], vec![]))
                .await;
        }
    }
    pair.ask(range("\0", "\0")).await;
}

pub(super) async fn transactions_are_refused_alike(mut pair: Pair) {
    with_keys(&mut pair).await;
    let del = |key: &str, end: &str| delete(key, end).op();
    let nest = |success, failure| txn(vec![], success, failure).op();
    let lists = vec![
        vec![put("k", "1").op(), put("k", "2").op()],
        vec![put("k", "1").op(), del("k", "")],
        vec![del("k", ""), put("k", "1").op()],
        vec![del("a", "z"), put("k", "1").op()],
        vec![del("a", "k"), put("k", "1").op()],
        vec![del("k", ""), del("k", "")],
        vec![del("a", "z"), del("k", "zz")],
        vec![del("z", "a"), put("k", "1").op()],
        vec![put("k", "1").op(), nest(vec![put("k", "2").op()], vec![])],
        vec![put("k", "1").op(), nest(vec![], vec![put("k", "2").op()])],
        vec![nest(vec![put("k", "1").op()], vec![put("k", "2").op()])],
        vec![
            nest(vec![put("k", "1").op()], vec![]),
            nest(vec![], vec![put("k", "2").op()]),
        ],
        vec![
            nest(vec![del("k", "")], vec![]),
            nest(vec![put("k", "1").op()], vec![]),
        ],
        vec![
            nest(vec![put("k", "1").op()], vec![]),
            nest(vec![del("k", "")], vec![]),
        ],
        vec![nest(vec![put("k", "1").op()], vec![]), del("a", "z")],
        vec![nest(vec![del("a", "z")], vec![]), put("k", "1").op()],
        vec![pb::RequestOp { request: None }],
        vec![range("", "").op()],
        vec![put("", "").op()],
        vec![del("", "")],
        vec![
            pb::PutRequest {
                ignore_value: true,
                ..put("a", "v")
            }
            .op(),
        ],
    ];
    for list in lists {
        pair.ask(txn(vec![], list.clone(), vec![])).await;
        pair.ask(txn(vec![], vec![], list)).await;
        pair.ask(range("\0", "\0")).await;
    }
    pair.expect(
        txn(vec![pb::Compare::default()], vec![], vec![]),
        "key is not provided",
    )
    .await;
    let many = |count: i32| {
        (0..count)
            .map(|i| range(&format!("k{i}"), "").op())
            .collect()
    };
    pair.ask(txn(vec![], many(128), many(128))).await;
    pair.expect(txn(vec![], many(129), vec![]), "too many operations")
        .await;
    pair.expect(txn(vec![], vec![], many(129)), "too many operations")
        .await;
    pair.ask(txn(vec![], vec![nest(many(127), vec![])], vec![]))
        .await;
    pair.expect(
        txn(vec![], vec![nest(many(128), vec![])], vec![]),
        "too many operations",
    )
    .await;
}

pub(super) async fn compactions_answer_alike(mut pair: Pair) {
    with_keys(&mut pair).await;
    pair.ask(delete("b", "")).await;
    pair.expect(compact(99), "future revision").await;
    for at in [4, 4, 3, 0, -1] {
        pair.ask(compact(at)).await;
    }
    for revision in 0..9 {
        let asked = pb::RangeRequest {
            revision,
            ..range("\0", "\0")
        };
        pair.ask(asked.clone()).await;
        pair.ask(txn(vec![], vec![asked.op()], vec![])).await;
    }
    pair.ask(compact(7)).await;
    pair.ask(range("\0", "\0")).await;
    pair.ask(pb::RangeRequest {
        revision: 7,
        ..range("\0", "\0")
    })
    .await;
    pair.expect(
        pb::RangeRequest {
            revision: 6,
            ..range("\0", "\0")
        },
        "required revision has been compacted",
    )
    .await;
}

pub(super) async fn leases_answer_alike(mut pair: Pair) {
    let grant = |id, ttl| pb::LeaseGrantRequest { ttl, id };
    let keys = |id| pb::LeaseTimeToLiveRequest { id, keys: true };
    pair.ask(grant(7, 600)).await;
    pair.expect(grant(7, 600), "lease already exists").await;
    pair.expect(grant(8, 9_000_000_001), "too large lease TTL")
        .await;
    pair.ask(grant(8, 9_000_000_000)).await;
    for ttl in [0, -5, 1] {
        pair.ask(grant(20 + ttl, ttl)).await;
        pair.ask(pb::LeaseRevokeRequest { id: 20 + ttl }).await;
    }
    pair.ask(pb::LeaseLeasesRequest {}).await;
    for key in ["l1", "l2", "l3"] {
        pair.ask(with_lease(7, put(key, "v"))).await;
    }
    pair.ask(put("l2", "detached")).await;
    pair.ask(with_lease(8, put("l3", "moved"))).await;
    pair.ask(pb::PutRequest {
        ignore_lease: true,
        ..put("l1", "kept")
    })
    .await;
    pair.ask(pb::PutRequest {
        ignore_lease: true,
        ..put("none", "kept")
    })
    .await;
    pair.ask(keys(7)).await;
    pair.ask(keys(8)).await;
    pair.ask(pb::LeaseTimeToLiveRequest { id: 7, keys: false })
        .await;
    pair.ask(range("\0", "\0")).await;
    pair.ask(pb::LeaseKeepAliveRequest { id: 7 }).await;
    pair.expect(pb::LeaseKeepAliveRequest { id: 99 }, "ttl: 0")
        .await;
    pair.expect(keys(99), "ttl: -1").await;
    pair.expect(
        pb::LeaseRevokeRequest { id: 99 },
        "requested lease not found",
    )
    .await;
    pair.ask(with_lease(7, put("l4", "v"))).await;
    pair.ask(pb::LeaseRevokeRequest { id: 7 }).await;
    pair.ask(range("\0", "\0")).await;
    pair.ask(grant(9, 600)).await;
    pair.ask(pb::LeaseRevokeRequest { id: 9 }).await;
    pair.ask(range("\0", "\0")).await;
    pair.ask(pb::LeaseLeasesRequest {}).await;
}

/// etcd does not notice that a key is put and deleted where the range that is deleted has no end.
/// Over an etcd store Segue does notice: it asks for the keys on both sides of its own, and so for a
/// range with an end.
pub(super) async fn writes_into_a_range_without_end_answer_alike(mut pair: Pair) {
    with_keys(&mut pair).await;
    let del = |key: &str| delete(key, "\0").op();
    for list in [
        vec![del("k"), put("k", "1").op()],
        vec![put("k", "1").op(), del("a")],
        vec![put("z", "1").op(), del("\0")],
        vec![txn(vec![], vec![del("k")], vec![]).op(), put("k", "1").op()],
    ] {
        pair.ask(txn(vec![], list, vec![])).await;
        pair.ask(range("\0", "\0")).await;
    }
}
