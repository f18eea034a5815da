//! etcd's Election service (`v3electionpb`): who leads, by name, as long as a lease.
//!
//! Everything is keys: whoever has the oldest key under `name/` leads, and its value is what it proclaims. Invariant:
//! a leader's word counts only while its key still has the create revision that it was elected with.

use crate::convert;
use crate::request::Queue;
use crate::rpc;
use crate::session::{self, Contender, Session, Watching};
use crate::stop::Until;
use crate::storage::Identity;
use bytes::Bytes;
use etcd_client::proto as pb;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use mvcc::{
    Compare, CompareOp, CompareTarget, DeleteRangeRequest, Event, EventKind, KeyRange, KeyValue, LeaseId,
    PutRequest, RequestOp, Revision, TxnRequest,
};
use std::collections::VecDeque;
use tokio_util::sync::CancellationToken;
use tonic::codegen::http;
use tonic::{Request, Response, Status};

/// The words of etcd's concurrency package.
const NOT_LEADER: &str = "election: not leader";
const NO_LEADER: &str = "election: no leader";
const MISSING_LEADER: &str = "\"leader\" field must be provided";

#[derive(Clone)]
pub(crate) struct ElectionService {
    pub(crate) queue: Queue,
    pub(crate) identity: Identity,
    pub(crate) stop: CancellationToken,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CampaignRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) name: Bytes,
    #[prost(int64, tag = "2")]
    pub(crate) lease: i64,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ProclaimRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) leader: Option<pb::PbLeaderKey>,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LeaderRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) name: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ResignRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) leader: Option<pb::PbLeaderKey>,
}

impl ElectionService {
    fn session<T>(&self, request: &Request<T>) -> Session {
        Session { queue: self.queue.by(request), identity: self.identity, stop: self.stop.clone() }
    }

    pub(crate) async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<pb::PbCampaignResponse>, Status> {
        let session = self.session(&request);
        let CampaignRequest { name, lease, value } = request.into_inner();
        let lease = session.lease(LeaseId(lease)).await?;
        let prefix = session::prefix(&name);
        let key = session::contender_key(&prefix, lease);
        let response = session.txn(session::stand(&key, value.clone(), lease)).await?;
        let mut elected = response.revision;
        let mut answered = response.revision;
        if !response.succeeded
            && let Some(standing) = session::read_at(&response, 0)
        {
            elected = standing.create_revision;
            if standing.value != value {
                answered = proclaim(&session, &key, elected, value, lease).await?;
            }
        }
        let contender = Contender::new(session.clone(), key.clone(), elected);
        session.wait_for_older(&prefix, elected.previous()).await?;
        contender.settle();
        let leader = pb::PbLeaderKey { name: name.into(), key: key.into(), rev: elected.0, lease: lease.0 };
        let header = session.header(answered);
        Ok(Response::new(pb::PbCampaignResponse { header, leader: Some(leader) }))
    }

    pub(crate) async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<pb::PbProclaimResponse>, Status> {
        let session = self.session(&request);
        let ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader.ok_or_else(|| Status::unknown(MISSING_LEADER))?;
        let (key, lease) = (leader.key.into(), LeaseId(leader.lease));
        let revision = proclaim(&session, &key, Revision(leader.rev), value, lease).await?;
        Ok(Response::new(pb::PbProclaimResponse { header: session.header(revision) }))
    }

    pub(crate) async fn leader(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<pb::PbLeaderResponse>, Status> {
        let session = self.session(&request);
        let response = session.oldest(&session::prefix(&request.into_inner().name)).await?;
        let kv = response.kvs.into_iter().next().ok_or_else(|| Status::unknown(NO_LEADER))?;
        Ok(Response::new(word(&session, response.revision, kv)))
    }

    pub(crate) async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<BoxStream<'static, Result<pb::PbLeaderResponse, Status>>>, Status> {
        let session = self.session(&request);
        let prefix = session::prefix(&request.into_inner().name);
        let observer = Observer { session, prefix, leader: None, heard: VecDeque::new() };
        let words = stream::try_unfold(observer, |mut observer| async move {
            let (revision, kv) = observer.next().await?;
            Ok(Some((word(&observer.session, revision, kv), observer)))
        });
        Ok(Response::new(Until::new(words, self.stop.clone()).boxed()))
    }

    pub(crate) async fn resign(
        &self,
        request: Request<ResignRequest>,
    ) -> Result<Response<pb::PbResignResponse>, Status> {
        let session = self.session(&request);
        let leader = request.into_inner().leader.ok_or_else(|| Status::unknown(MISSING_LEADER))?;
        let key = Bytes::from(leader.key);
        let delete = RequestOp::DeleteRange(DeleteRangeRequest::new(KeyRange::key(key.clone())));
        let compare = vec![elected(&key, Revision(leader.rev))];
        let txn = TxnRequest { compare, success: vec![delete], failure: Vec::new() };
        let response = session.txn(txn).await?;
        Ok(Response::new(pb::PbResignResponse { header: session.header(response.revision) }))
    }
}

/// The key is still the one that won.
fn elected(key: &Bytes, created: Revision) -> Compare {
    Compare {
        range: KeyRange::key(key.clone()),
        op: CompareOp::Equal,
        target: CompareTarget::Create(created),
    }
}

async fn proclaim(
    session: &Session,
    key: &Bytes,
    created: Revision,
    value: Bytes,
    lease: LeaseId,
) -> Result<Revision, Status> {
    let put = RequestOp::Put(PutRequest::new(key.clone(), value).with_lease(lease));
    let txn = TxnRequest { compare: vec![elected(key, created)], success: vec![put], failure: Vec::new() };
    let response = session.txn(txn).await?;
    if response.succeeded { Ok(response.revision) } else { Err(Status::unknown(NOT_LEADER)) }
}

fn word(session: &Session, revision: Revision, kv: KeyValue) -> pb::PbLeaderResponse {
    pb::PbLeaderResponse { header: session.header(revision), kv: Some(convert::key_value(kv)) }
}

/// Follows the leaders of one election.
struct Observer {
    session: Session,
    prefix: Bytes,
    /// The watch on the present leader's key.
    leader: Option<Watching>,
    /// What the leader's key told and nobody has heard yet.
    heard: VecDeque<Event>,
}

impl Observer {
    /// The next word of a leader, with its revision.
    async fn next(&mut self) -> Result<(Revision, KeyValue), Status> {
        loop {
            while let Some(event) = self.heard.pop_front() {
                if event.kind == EventKind::Put {
                    return Ok((event.kv.mod_revision, event.kv));
                }
                self.leader = None; // whatever follows is another leader's
                self.heard.clear();
            }
            let Some(watching) = &mut self.leader else { return self.next_leader().await };
            match watching.next().await? {
                Some(events) => self.heard.extend(events),
                None => self.leader = None,
            }
        }
    }

    /// The present leader, or the next one if there is none.
    async fn next_leader(&mut self) -> Result<(Revision, KeyValue), Status> {
        let response = self.session.oldest(&self.prefix).await?;
        let (revision, kv) = match response.kvs.into_iter().next() {
            Some(kv) => (response.revision, kv),
            None => self.first_candidate(response.revision).await?,
        };
        let watch = self.session.watch(KeyRange::key(kv.key.clone()), revision.next()).await?;
        self.leader = Some(watch);
        Ok((revision, kv))
    }

    async fn first_candidate(&self, empty: Revision) -> Result<(Revision, KeyValue), Status> {
        let mut watching = self.session.watch(KeyRange::prefix(self.prefix.clone()), empty.next()).await?;
        loop {
            let Some(events) = watching.next().await? else {
                return Err(Status::unknown("election: observe closed early"));
            };
            if let Some(event) = events.into_iter().find(|event| event.kind == EventKind::Put) {
                return Ok((event.kv.mod_revision, event.kv));
            }
        }
    }
}

rpc::service!(ElectionService, "v3electionpb.Election", {
    "Campaign" => unary campaign,
    "Proclaim" => unary proclaim,
    "Leader" => unary leader,
    "Observe" => streaming observe,
    "Resign" => unary resign,
});
