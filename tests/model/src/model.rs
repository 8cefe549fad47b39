//! Who may do what next: the model that is explored.

use stateright::{Model, Property};

use crate::member::Stop;
use crate::new::Slot;
use crate::record::{Phase, Stage};
use crate::rules::{Rule, Rules};
use crate::scenario::Scenario;
use crate::spec::{Broken, KEYS, Key, Request};
use crate::state::State;
use crate::transition::Step;
use crate::{backfill, member, mirror, transition};

/// One step of one actor: at most one transaction of one store.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// The member reads the state record.
    Reload(usize),
    /// It reads the frontier.
    LearnFrontier(usize),
    /// It is killed, with a request under way, and starts again.
    Crash(usize),
    Begin(usize, Request),
    GoOn(usize),
    Transition(usize, Step),
    BackfillReads(usize, Key),
    BackfillWrites(usize),
    MirrorReads(usize),
    MirrorWrites(usize),
    LeaseEndsInOld,
    LeaseEndsInNew,
    /// Only without [`Rule::WhiteoutsKept`].
    CollectWhiteout(Key),
}

#[derive(Clone, Debug)]
pub(crate) struct Migration {
    pub(crate) scenario: Scenario,
    pub(crate) rules: Rules,
    /// Take states for one that differ only in the names of actors.
    pub(crate) symmetry: bool,
}

impl Migration {
    fn member_actions(&self, state: &State, m: usize, actions: &mut Vec<Action>) {
        let member = &state.members[m];
        let record = &state.new.record;
        if member.pending.is_some() {
            actions.push(Action::GoOn(m));
            actions.push(Action::Crash(m));
            return;
        }
        if member.known != *record {
            actions.push(Action::Reload(m));
        } else if record.is(Phase::Migration, Stage::Open) && !record.all_claimed {
            let news = (0..2).any(|k| state.new.frontier[k] && !member.decided[k]);
            actions.extend(news.then_some(Action::LearnFrontier(m)));
        }
        if member.serves() && member.requests > 0 {
            let (asks, _) = self.scenario.asks[m];
            let request = |ask: &crate::scenario::Ask| ask.request(&state.spec);
            actions.extend(
                asks.iter()
                    .map(request)
                    .map(|request| Action::Begin(m, request)),
            );
        }
        for step in self.scenario.steps {
            let last = member.known.epoch >= self.scenario.epochs;
            if (!last || !step.begins_epoch()) && transition::may(state, m, *step, self.rules) {
                actions.push(Action::Transition(m, *step));
            }
        }
    }

    fn lease_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let record = &state.new.record;
        if state.old.lease && record.phase != Phase::Settled {
            actions.push(Action::LeaseEndsInOld);
        }
        let decides = record.is_migrating()
            || record.phase == Phase::Settled
            || (!self.rules.hold(Rule::EpochGuardsExpiry) && record.stage == Stage::Draining);
        if state.new.lease && decides {
            actions.push(Action::LeaseEndsInNew);
        }
    }

    fn step(&self, state: &mut State, action: &Action) -> Result<(), Stop> {
        let rules = self.rules;
        match *action {
            Action::Reload(m) => refresh(state, m, rules),
            Action::LearnFrontier(m) => {
                for k in 0..2 {
                    state.members[m].decided[k] |= state.new.frontier[k];
                }
            }
            Action::Crash(m) => {
                state.members[m].pending = None;
                state.members[m].decided = [false; 2];
                refresh(state, m, rules);
            }
            Action::Begin(m, request) => {
                let begun = member::begin(state, m, request, rules);
                return retry(state, m, rules, begun);
            }
            Action::GoOn(m) => {
                let gone = member::go_on(state, m, rules);
                return retry(state, m, rules, gone);
            }
            Action::Transition(m, step) => return transition::take(state, m, step, rules),
            Action::BackfillReads(w, key) => backfill::read(state, w, key),
            Action::BackfillWrites(w) => match backfill::write(state, w, rules) {
                Err(Stop::Refused) => {}
                written => return written,
            },
            Action::MirrorReads(i) => state.mirrors[i] = mirror::next(state, rules),
            Action::MirrorWrites(i) => return mirror::apply(state, i, rules),
            Action::LeaseEndsInOld => {
                let shown = state.old_decides();
                let offset = state.old.offset();
                let writes = state.old.expire();
                if shown {
                    state.spec.change(state.old.revision + offset, &writes)?;
                }
            }
            Action::LeaseEndsInNew => {
                let writes = state.new.expire(rules);
                state.spec.change(state.new.revision, &writes)?;
            }
            Action::CollectWhiteout(key) => state.new.slots[key as usize] = Slot::Unclaimed,
        }
        Ok(())
    }
}

fn refresh(state: &mut State, m: usize, rules: Rules) {
    let record = state.new.record;
    state.members[m].learn(record, rules);
    if !rules.hold(Rule::GoalAfterFence) {
        state.members[m].saw_revision = state.new.revision;
    }
}

/// A member that was refused reads the state. Its client's request is begun again, or another.
fn retry(state: &mut State, m: usize, rules: Rules, done: Result<(), Stop>) -> Result<(), Stop> {
    if let Err(Stop::Refused) = done {
        refresh(state, m, rules);
        return Ok(());
    }
    done
}

impl Model for Migration {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.scenario.first()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.broken.is_some() {
            return;
        }
        for m in 0..2 {
            self.member_actions(state, m, actions);
        }
        for w in 0..self.scenario.workers {
            if state.workers[w].is_some() {
                actions.push(Action::BackfillWrites(w));
            } else {
                let keys = KEYS
                    .into_iter()
                    .filter(|key| backfill::may_read(state, *key));
                actions.extend(keys.map(|key| Action::BackfillReads(w, key)));
            }
        }
        for i in 0..self.scenario.mirrors {
            if state.mirrors[i].is_some() {
                actions.push(Action::MirrorWrites(i));
            } else if mirror::next(state, self.rules).is_some() {
                actions.push(Action::MirrorReads(i));
            }
        }
        self.lease_actions(state, actions);
        if !self.rules.hold(Rule::WhiteoutsKept) {
            let gone = KEYS
                .into_iter()
                .filter(|key| state.new.slots[*key as usize] == Slot::Whiteout);
            actions.extend(gone.map(Action::CollectWhiteout));
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        if let Err(Stop::Broken(broken)) = self.step(&mut state, &action) {
            state.broken = Some(broken);
        }
        if state.spec.pairs != before.spec.pairs {
            let pairs = state.spec.pairs;
            for pending in state
                .members
                .iter_mut()
                .filter_map(|member| member.pending.as_mut())
            {
                pending.note(pairs);
            }
        }
        if self.scenario.mirrors == 0 {
            state.new.log.clear();
        }
        if self.symmetry {
            if self.scenario.is_symmetric() {
                state.members.sort_unstable();
            }
            state.workers.sort_unstable();
            state.mirrors.sort_unstable();
        }
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("no acknowledged write is lost", |_, s: &State| {
                s.nothing_is_lost()
            }),
            Property::always("no deleted key comes back", |_, s: &State| {
                s.nothing_comes_back()
            }),
            Property::always("reads show what was there", |_, s: &State| {
                s.broken != Some(Broken::Read)
            }),
            Property::always("revisions only grow", |_, s: &State| {
                s.broken != Some(Broken::Revision)
            }),
            Property::always("requests are decided on the true state", |_, s: &State| {
                s.broken != Some(Broken::Answer)
            }),
            Property::always(
                "events are the changes, and nothing else",
                |_, s: &State| s.broken != Some(Broken::Event),
            ),
            Property::always("the old store is exact after the drain", |_, s: &State| {
                s.broken != Some(Broken::Mirror)
            }),
            Property::always(
                "nothing is mirrored into a store that is open",
                |_, s: &State| s.broken != Some(Broken::Open),
            ),
        ];
        properties.extend(crate::reached::properties(&self.scenario));
        properties
    }
}
