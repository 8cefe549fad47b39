//! Leases.

use crate::proto::etcdserverpb as pb;
use crate::types::{Grant, Granted, LeaseId, LeaseStatus};

impl From<pb::LeaseGrantRequest> for Grant {
    fn from(request: pb::LeaseGrantRequest) -> Self {
        Self {
            id: (request.id != 0).then_some(LeaseId(request.id)),
            ttl_s: request.ttl,
        }
    }
}

impl From<Grant> for pb::LeaseGrantRequest {
    fn from(request: Grant) -> Self {
        Self {
            ttl: request.ttl_s,
            id: request.id.unwrap_or(LeaseId::NONE).0,
        }
    }
}

impl From<pb::LeaseGrantResponse> for Granted {
    fn from(response: pb::LeaseGrantResponse) -> Self {
        Self {
            id: LeaseId(response.id),
            ttl_s: response.ttl,
        }
    }
}

impl From<Granted> for pb::LeaseGrantResponse {
    fn from(granted: Granted) -> Self {
        Self {
            id: granted.id.0,
            ttl: granted.ttl_s,
            ..Self::default()
        }
    }
}

impl From<pb::LeaseTimeToLiveResponse> for LeaseStatus {
    fn from(response: pb::LeaseTimeToLiveResponse) -> Self {
        Self {
            id: LeaseId(response.id),
            granted_ttl_s: response.granted_ttl,
            remaining_ttl_s: response.ttl,
            keys: response.keys,
        }
    }
}

impl From<LeaseStatus> for pb::LeaseTimeToLiveResponse {
    fn from(status: LeaseStatus) -> Self {
        Self {
            header: None,
            id: status.id.0,
            ttl: status.remaining_ttl_s,
            granted_ttl: status.granted_ttl_s,
            keys: status.keys,
        }
    }
}
