use super::*;

fn ready() -> State {
    let begun = State::begin("m".into(), "old".into(), Revision(9), false, 1);
    let mut state = begun.opened(2);
    state.backfill_complete = true;
    state.verified = Some(Verified {
        epoch: state.epoch,
        good: true,
        mirrored: true,
    });
    state
}

fn check(state: &State, to: Phase, around: &Surroundings, refused_for: Option<&str>) {
    match (state.may_switch(to, around), refused_for) {
        (Decision::Go(_), None) => {}
        (Decision::NoGo(why) | Decision::Wait(why), Some(part)) => {
            assert!(why.contains(part), "{why:?} does not speak of {part:?}");
        }
        (decision, expected) => panic!("{decision:?}, expected {expected:?} for {state:?}"),
    }
}

#[test]
fn the_switch_waits_for_everything_that_makes_it_safe() {
    let nothing = Surroundings::default();
    let rejects = Surroundings {
        rejects: 2,
        ..Surroundings::default()
    };
    let behind = Surroundings {
        behind: vec!["b".into()],
        ..Surroundings::default()
    };
    let of = |change: &dyn Fn(&mut State)| {
        let mut state = ready();
        change(&mut state);
        state
    };
    let bad = |s: &mut State| {
        s.verified = Some(Verified {
            epoch: s.epoch,
            good: false,
            mirrored: true,
        });
    };
    for (state, around, refused_for) in [
        (ready(), &nothing, None),
        (
            of(&|s| s.backfill_complete = false),
            &nothing,
            Some("backfill"),
        ),
        (of(&|s| s.verified = None), &nothing, Some("not verified")),
        (of(&bad), &nothing, Some("differences")),
        (
            of(&|s| s.epoch = s.epoch.next()),
            &nothing,
            Some("this epoch"),
        ),
        (of(&|s| s.stage = Stage::Opening), &nothing, Some("opened")),
        (ready(), &rejects, Some("2 keys were rejected")),
        (ready(), &behind, Some("acknowledged epoch 2 yet: b")),
        (of(&|s| s.phase = Phase::Settled), &nothing, Some("settled")),
        (of(&|s| s.phase = Phase::Normal), &nothing, Some("already")),
    ] {
        check(&state, Phase::Normal, around, refused_for);
    }
}

#[test]
fn only_a_switch_that_is_safe_otherwise_waits_for_those_behind() {
    let behind = Surroundings {
        behind: vec!["b".into()],
        ..Surroundings::default()
    };
    let ready = ready();
    let unready = State {
        verified: None,
        ..ready.clone()
    };
    let to = Phase::Normal;
    assert!(matches!(ready.may_switch(to, &behind), Decision::Wait(_)));
    assert!(matches!(unready.may_switch(to, &behind), Decision::NoGo(_)));
}

#[test]
fn the_way_back_and_the_way_out_lead_from_the_normal_phase_only() {
    let nothing = Surroundings::default();
    let behind = Surroundings {
        behind: vec!["b".into()],
        ..Surroundings::default()
    };
    let normal = ready().switched(Phase::Normal, 3);
    check(&normal, Phase::Migration, &nothing, None);
    check(&normal, Phase::Settled, &nothing, None);
    check(&normal, Phase::Settled, &behind, Some("acknowledged"));
    check(&normal, Phase::Passthrough, &nothing, Some("no way back"));
    check(&ready(), Phase::Settled, &nothing, Some("switch first"));
    let settled = normal.switched(Phase::Settled, 4);
    check(
        &settled,
        Phase::Migration,
        &nothing,
        Some("nothing leads back"),
    );
    assert_eq!(settled.line(), None);
    assert_eq!(settled.guard(), Guard::None);
}

#[test]
fn the_records_are_closed_when_nobody_needs_them_any_more() {
    let nothing = Surroundings::default();
    let behind = Surroundings {
        behind: vec!["b".into()],
        ..Surroundings::default()
    };
    let normal = ready().switched(Phase::Normal, 3);
    let settled = normal.switched(Phase::Settled, 4);
    let dropped = State {
        claims_dropped: true,
        ..settled.clone()
    };
    assert_eq!(normal.closing(&nothing, 5), None);
    assert_eq!(settled.closing(&nothing, 5), None);
    assert_eq!(dropped.closing(&behind, 5), None);
    let closed = dropped.closing(&nothing, 5).unwrap();
    assert!(closed.closed && closed.epoch == dropped.epoch);
    assert_eq!(closed.closing(&nothing, 6), None);
    // It tells of itself where nothing else would.
    for (nonempty, mirror, stays) in [
        (false, false, false),
        (false, true, false),
        (true, true, false),
        (true, false, true),
    ] {
        let state = State {
            nonempty,
            mirror,
            ..closed.clone()
        };
        assert_eq!(state.has_to_stay(), stays, "{nonempty} {mirror}");
    }
}

#[test]
fn every_transition_is_an_epoch_of_its_own_on_the_same_line() {
    let begun = State::begin("m".into(), "old".into(), Revision(9), false, 1);
    let states = [
        begun.clone(),
        begun.opened(2),
        begun.opened(2).switched(Phase::Normal, 3),
        begun
            .opened(2)
            .switched(Phase::Normal, 3)
            .switched(Phase::Migration, 4),
    ];
    for (state, epoch) in states.iter().zip(1..) {
        // Until the normal phase was entered, whatever is written is claimed.
        let claims = epoch < 3;
        let (epoch, base) = (Epoch(epoch), Revision(9));
        assert_eq!(
            state.line(),
            Some(Line {
                epoch,
                claims,
                base
            })
        );
        assert_eq!(state.guard(), Guard::Epoch { epoch, claims });
    }
}

#[test]
fn a_migration_is_started_from_the_passthrough_phase_only() {
    let nothing = Surroundings::default();
    let waits = State::wait("m".into(), "old".into(), false, 1).with_mirror();
    let begins = waits.switched(Phase::Migration, 2);
    let opens = begins.fenced(Revision(9), 3);
    let open = opens.opened(4);
    let emptied = open.draining(5).returned(Revision(20), 6);
    for (state, beginning, refused_for) in [
        (waits, false, None),
        (begins, true, Some("still being fenced")),
        (opens, true, Some("still being opened")),
        (open.clone(), false, Some("migration already")),
        (open.draining(5), false, Some("rollback is under way")),
        (emptied, false, Some("still being emptied")),
        (
            open.switched(Phase::Normal, 5),
            false,
            Some("normal already"),
        ),
        (open.switched(Phase::Settled, 5), false, Some("settled")),
    ] {
        assert_eq!(state.is_beginning(), beginning, "{state:?}");
        match (state.may_start(&nothing), refused_for) {
            (Decision::Go(_), None) => {}
            (Decision::NoGo(why) | Decision::Wait(why), Some(part)) => {
                assert!(why.contains(part), "{why:?} does not speak of {part:?}");
            }
            (decision, expected) => panic!("{decision:?}, expected {expected:?} for {state:?}"),
        }
    }
}
