//! The migration as a whole: members of a fleet in this process, over stores in memory.

mod alone;
mod called_off;
mod ending;
mod faulty;
#[allow(unreachable_pub, reason = "as in the toolbox")]
mod fleet;
#[allow(unreachable_pub, reason = "as in the toolbox")]
mod gate;
mod leases;
#[allow(unreachable_pub, reason = "as in the toolbox")]
pub(crate) mod picky;
mod rehearsal;
mod rejects;
mod repaired;
mod returned;
mod rival;
mod rollback;
mod scenarios;
mod switch;
mod unnoticed;
#[allow(unreachable_pub, reason = "as in the toolbox")]
mod witness;
