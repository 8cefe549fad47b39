//! The migration for Prometheus.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::migration::Controller;
use crate::migration::phase::Phase;

/// Tells how the migration stands whenever it is asked.
pub(super) struct Migration(pub Arc<Controller>);

impl fmt::Debug for Migration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Migration")
    }
}

impl Collector for Migration {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let view = self.0.view();
        let state = &view.state.value;
        let phase = match state.phase {
            Phase::Passthrough => 0_u64,
            Phase::Migration => 1,
            Phase::Normal => 2,
            Phase::Settled => 3,
        };
        let passed: u64 = view
            .progress
            .shards
            .iter()
            .map(|shard| shard.copied + shard.claimed)
            .sum();
        let rejected: u64 = view
            .progress
            .shards
            .iter()
            .map(|shard| shard.rejected)
            .sum();
        let bytes: u64 = view.progress.shards.iter().map(|shard| shard.bytes).sum();
        for (name, help, value) in [
            (
                "segue_phase",
                "0 passthrough, 1 migration, 2 normal, 3 settled",
                phase,
            ),
            ("segue_epoch", "Grows with each transition", state.epoch.0),
            (
                "segue_backfill_complete",
                "Every key is copied or rejected",
                u64::from(state.backfill_complete),
            ),
            (
                "segue_verified",
                "The copy was found good in this epoch",
                u64::from(state.is_verified()),
            ),
            (
                "segue_keys_copied",
                "Keys of the old store that are in the new one",
                passed,
            ),
            (
                "segue_keys_left",
                "Keys that are still to be copied",
                view.progress.keys_left(),
            ),
            (
                "segue_keys_rejected",
                "Keys that the backfill could not copy",
                rejected,
            ),
            (
                "segue_bytes_copied",
                "Bytes that the backfill has been past",
                bytes,
            ),
            (
                "segue_members",
                "Proxies of this migration",
                view.fleet.iter().count() as u64,
            ),
            (
                "segue_trouble",
                "A store cannot be read or written, or a job of the migration does not come on",
                u64::from(self.0.trouble().is_some()),
            ),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        self.encode_mirror(&mut encoder)?;
        self.encode_counters(&mut encoder)
    }
}

impl Migration {
    /// Not there where there is no mirror, or it cannot be told how far it is: 0 would say that all is well.
    fn encode_mirror(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(standing) = self.0.standing() else {
            return Ok(());
        };
        let metric = encoder.encode_descriptor(
            "segue_mirror_behind",
            "Changes of the new store that the old one does not have yet",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(standing.behind).encode(metric)
    }

    fn encode_counters(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let foreign = self.0.foreign();
        let counters = self.0.counters();
        for (name, help, value) in [
            (
                "segue_reads_new",
                "Reads that the new store answered alone, in the migration phase",
                counters.reads_new,
            ),
            (
                "segue_reads_old",
                "Reads for which the old store was asked as well",
                counters.reads_old,
            ),
            (
                "segue_copy_ups",
                "Keys copied up for the sake of a request",
                counters.copy_ups,
            ),
            (
                "segue_foreign_changes",
                "Changes that others made in the old store, as the fleet has seen them",
                foreign.changes,
            ),
            (
                "segue_foreign_followed",
                "Those of them that were carried into the new store",
                foreign.followed,
            ),
            (
                "segue_foreign_conflicts",
                "Those of them that were to be carried over and were not",
                foreign.conflicts,
            ),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(metric)?;
        }
        Ok(())
    }
}
