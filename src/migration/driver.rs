//! The loop that keeps a member in step with the fleet.
//!
//! Each turn looks at the records, sends requests the way that the state says, acknowledges, and
//! starts or stops the jobs that are this member's. Nothing here holds anything that a restart, or
//! another member, could not find in the records.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::backfill::{Backfill, Progress};
use super::controller::{Controller, View, now_ms};
use super::fleet::Fleet;
use super::ledger::Entry;
use super::phase::{Decision, Phase, Stage, State, Verified};
use super::records::{
    CONTROL, Control, MEMBERS, Member, OWNER, Outcome, Owner, STATE, SWITCH, Switch, VERIFY,
};
use super::status::add;
use super::switch::{KEY, seen};
use super::verify::{Report, Verification};
use super::{opening, rejects};
use crate::overlay::Overlay;
use crate::store::{GuardedStore, Range_, Result, Store, StoreError, Watch};
use crate::types::{Epoch, KeyRange, Range};
