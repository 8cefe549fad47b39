//! The mirror: replays the new store's changes into the old one, one by one. A second one may have
//! taken over from a first one that has only stalled.

use crate::new::Change;
use crate::record::{Epoch, Phase, Stage};
use crate::member::Stop;
use crate::rules::{Rule, Rules};
use crate::spec::{Broken, Revision};
use crate::state::State;

/// A change on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Replay {
    /// The fence's epoch and the position that were read before.
    fence: Epoch,
    after: Revision,
    change: Change,
}

/// The next change, if there is one that a mirror may replay now.
pub(crate) fn next(state: &State, rules: Rules) -> Option<Replay> {
    let (record, fence) = (&state.new.record, state.old.fence);
    let runs = record.is_migrating() || record.is(Phase::Passthrough, Stage::Draining);
    let taken_over = fence.shut && (!record.called_off || fence.epoch == record.epoch);
    if !runs || !(taken_over || !rules.hold(Rule::MirrorTakesOver)) {
        return None;
    }
    Some(Replay {
        fence: fence.epoch,
        after: state.old.mirrored,
        change: state.new.log.first()?.clone(),
    })
}

/// One transaction of the old store: the change and the position, if the fence and the position are
/// still those that were read.
pub(crate) fn apply(state: &mut State, mirror: usize, rules: Rules) -> Result<(), Stop> {
    let Some(replay) = state.mirrors[mirror].take() else {
        return Ok(());
    };
    let old = &mut state.old;
    let same_fence = old.fence.shut && old.fence.epoch == replay.fence;
    let expected = (same_fence || !rules.hold(Rule::MirrorTakesOver))
        && old.mirrored == replay.after;
    if expected || !rules.hold(Rule::MirrorComparesPosition) {
        if !old.fence.shut && !rules.hold(Rule::MirrorTakesOver) {
            return Err(Broken::Open.into());
        }
        old.replay(replay.change.at, &replay.change.writes);
        let mirrored = old.mirrored;
        state.new.log.retain(|change| change.at > mirrored);
    }
    Ok(())
}
