//! The migration as a whole: members of a fleet in this process, over stores in memory.

#[allow(unreachable_pub, reason = "as in the toolbox")]
mod fleet;
#[allow(unreachable_pub, reason = "as in the toolbox")]
mod picky;
mod rehearsal;
mod rollback;
mod scenarios;
mod switch;
#[allow(unreachable_pub, reason = "as in the toolbox")]
mod witness;
