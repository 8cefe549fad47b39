//! The header that every response begins with.

use crate::proto::etcdserverpb::ResponseHeader;
use crate::types::Revision;

/// Who answers. Clients compare these numbers between responses, so they have to stay the same for
/// as long as the clients may live, and must not be 0, which stands for "not known".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The same on all proxies of a fleet.
    pub cluster_id: u64,
    /// This proxy.
    pub member_id: u64,
}

/// etcd's term grows with each election. There are no elections here: it is always the first.
pub(super) const RAFT_TERM: u64 = 2;

impl Identity {
    /// The header of a response at `revision`.
    #[must_use]
    pub fn header(&self, revision: Revision) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
            revision: revision.0,
            raft_term: RAFT_TERM,
        }
    }
}
