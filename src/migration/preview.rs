//! What a change of the phase would come to, before anybody asks for it in earnest.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::controller::Controller;
use super::ending::GONE;
use super::ledger::Entry;
use super::phase::{Decision, Phase, State, Surroundings};
use super::records::STATE;
use super::rehearsal::millis;
use crate::store::Result;
use crate::types::Revision;

/// How long the old store may take to answer before it counts as one that does not.
const OLD_LOOK: Duration = Duration::from_secs(5);

/// What `--dry-run` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    /// It would be done now.
    pub done: bool,
    /// Why, or why not.
    pub why: String,
    /// What would happen, a line each. Empty where nothing leads there from the present phase.
    pub consequences: Vec<String>,
}

/// Who has a part in a change of the phase, and what it has cost them so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Concerned {
    /// The members that have to acknowledge it.
    pub members: Vec<String>,
    /// The longest that a request has waited for such a change; nothing, if none has yet.
    pub stall_ms: Option<u64>,
}

impl State {
    /// What would happen if the fleet went to `to`, a line each; nothing where no way leads there.
    #[must_use]
    pub fn consequences(&self, to: Phase, concerned: &Concerned) -> Vec<String> {
        let now = self.epoch;
        let next = now.next();
        let stale =
            |store: &str| format!("fenced   the {store} store, for requests of epoch {now}");
        let (steps, fenced, removed, kept) = match (self.phase, to) {
            (Phase::Passthrough, Phase::Migration) => (
                // Fenced, then leased keys copied up, then open: an epoch each.
                3,
                "fenced   the old store: nothing can be changed there any more; clients wait until \
                 all leases and leased keys are in the new store"
                    .into(),
                "nothing",
                "all keys of the old store, which the backfill copies from then on",
            ),
            (Phase::Migration, Phase::Normal) => (
                1,
                stale("new"),
                "nothing; the old store is no longer asked",
                "claims and whiteouts, and the old store: `segue switch migration` leads back",
            ),
            (Phase::Normal, Phase::Migration) => (
                1,
                stale("new"),
                "nothing; the old store is asked again for what has no claim",
                "everything that was written in the normal phase",
            ),
            (Phase::Migration | Phase::Normal, Phase::Passthrough) => (
                // Fenced and drained, then open: an epoch each.
                2,
                "fenced   the new store, for everybody; clients wait until the last changes and all \
                 leases are in the old store, which serves from then on"
                    .into(),
                "everything from the new store, once the old one serves",
                "every write that was made in the new store: it is in the old one",
            ),
            (Phase::Normal, Phase::Settled) => (
                1,
                stale("new"),
                "all claims and whiteouts, then all records and the switch key: the new store holds nothing \
                 but the application's keys (an etcd also what the numbers hang on that clients know); nothing \
                 leads back from there",
                "the data of both stores; the old one is let go, and stays fenced if it was",
            ),
            _ => return Vec::new(),
        };
        let last = (1..steps).fold(next, |epoch, _| epoch.next());
        let epochs = if steps == 1 {
            format!("epoch {next}")
        } else {
            format!("epochs {next} to {last}")
        };
        let members = &concerned.members;
        let pause = match concerned.stall_ms {
            Some(ms) => {
                format!(
                    "about {ms} ms: the longest that a request has waited for such a change so far"
                )
            }
            None if self.phase == Phase::Passthrough => {
                "not known yet: no request has waited for such a change so far".into()
            }
            None => "not known yet: `segue switch --rehearse` measures it".into(),
        };
        vec![
            format!("next     the {to} phase, {epochs}"),
            fenced,
            format!("removed  {removed}"),
            format!("kept     {kept}"),
            format!(
                "members  {} to acknowledge: {}",
                members.len(),
                members.join(", ")
            ),
            format!("pause    {pause}"),
        ]
    }
}

impl Controller {
    /// What would become of a request to go to `to`. Changes nothing.
    pub async fn preview(&self, to: Phase) -> Result<Preview> {
        let decide = |state: &State, around: &Surroundings| state.may_switch(to, around);
        self.foresee(to, decide).await
    }

    /// What would become of a request to begin the migration. Changes nothing.
    pub async fn preview_start(&self) -> Result<Preview> {
        self.foresee(Phase::Migration, State::may_start).await
    }

    /// The old store's revision, if it answers. It is what has to be fenced, and clients would wait for that.
    async fn old_answers(&self) -> Result<Revision, String> {
        match tokio::time::timeout(OLD_LOOK, self.old.revision()).await {
            Ok(Ok(revision)) => Ok(revision),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("it has not answered within {OLD_LOOK:?}")),
        }
    }

    async fn foresee(
        &self,
        to: Phase,
        decide: impl Fn(&State, &Surroundings) -> Decision,
    ) -> Result<Preview> {
        let Some(Entry { value: state, .. }) = self.ledger.get::<State>(STATE).await? else {
            return Ok(Preview {
                why: self.ended().unwrap_or(GONE).into(),
                ..Preview::default()
            });
        };
        let view = self.view();
        let around = self.surroundings_of(&state, &view.fleet, to).await?;
        let (done, why) = match decide(&state, &around) {
            Decision::Go(_) if state.phase == Phase::Passthrough => {
                match self.old_answers().await {
                    Ok(revision) => (
                        true,
                        format!("the old store, now at revision {revision}, can be fenced"),
                    ),
                    Err(why) => (false, format!("the old store: {why}")),
                }
            }
            Decision::Go(why) => (true, why.to_owned()),
            Decision::NoGo(why) | Decision::Wait(why) => (false, why),
        };
        let concerned = Concerned {
            members: view
                .fleet
                .iter()
                .map(|(_, member)| member.name.clone())
                .collect(),
            stall_ms: view
                .fleet
                .iter()
                .map(|(_, member)| member.stall.ms)
                .chain([millis(self.router.longest_stall())])
                .max()
                .filter(|stall| *stall > 0),
        };
        Ok(Preview {
            done,
            why,
            consequences: state.consequences(to, &concerned),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Revision;

    #[test]
    fn each_change_of_the_phase_says_what_comes_of_it() {
        use Phase::{Migration, Normal, Passthrough, Settled};
        let waiting = State::wait("m".into(), "old".into(), false, 1);
        let migration = State::begin("m".into(), "old".into(), Revision(9), false, 1).opened(2);
        let normal = migration.switched(Normal, 3);
        let settled = normal.switched(Settled, 4);
        let concerned = Concerned {
            members: vec!["a".into(), "b".into()],
            stall_ms: Some(12),
        };
        for (state, to, parts) in [
            (
                &waiting,
                Migration,
                vec!["epochs 2 to 4", "the old store: nothing", "backfill"],
            ),
            (
                &migration,
                Normal,
                vec!["normal phase, epoch 3", "requests of epoch 2", "leads back"],
            ),
            (
                &normal,
                Migration,
                vec!["migration phase, epoch 4", "asked again"],
            ),
            (
                &normal,
                Settled,
                vec!["epoch 4", "all claims", "nothing leads back"],
            ),
            (&waiting, Normal, vec![]),
            (&migration, Migration, vec![]),
            (&migration, Settled, vec![]),
            (&settled, Normal, vec![]),
            (&settled, Passthrough, vec![]),
        ] {
            let lines = state.consequences(to, &concerned);
            assert_eq!(
                lines.is_empty(),
                parts.is_empty(),
                "{state:?} to {to}: {lines:?}"
            );
            let text = lines.join("\n");
            for part in &parts {
                assert!(
                    text.contains(part),
                    "{state:?} to {to}: {text} lacks {part:?}"
                );
            }
            if !parts.is_empty() {
                assert!(text.contains("2 to acknowledge: a, b"), "{text}");
                assert!(text.contains("about 12 ms"), "{text}");
            }
        }
        let unknown = migration
            .consequences(Normal, &Concerned::default())
            .join("\n");
        assert!(unknown.contains("not known yet"), "{unknown}");
    }
}
