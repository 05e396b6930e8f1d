//! Requests, chosen at random so that they meet: few keys, few leases, revisions around the newest.

use bytes::Bytes;
use kv_etcd_api::etcdserverpb::{
    AlarmRequest, CompactionRequest, Compare, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    WatchCreateRequest, compare::TargetUnion, request_op::Request,
};
use rand::{Rng, rngs::SmallRng, seq::IndexedRandom};

use crate::answer::Answer;

/// A request.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Range(RangeRequest),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    Grant(LeaseGrantRequest),
    Revoke(LeaseRevokeRequest),
    TimeToLive(LeaseTimeToLiveRequest),
    Leases,
    Alarm(AlarmRequest),
    Status,
    HashKv(HashKvRequest),
    Members,
    /// Adds a learner with these peer URLs.
    AddLearner(Vec<String>),
    Promote(Whom),
    Move(Whom, Vec<String>),
    Remove(Whom),
    /// Watches from a revision until all there is was told.
    Watch(WatchCreateRequest),
}

/// A member, whose id each server chose.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Whom {
    /// The one that was added last.
    Added,
    /// One that there is not.
    Nobody,
}

/// Makes requests.
pub(crate) struct Generator {
    random: SmallRng,
    /// The newest revision, as far as it was told.
    revision: i64,
    /// Revisions at which history was compacted.
    compacted: Vec<i64>,
    /// Alarms that are raised.
    alarms: Vec<(u64, i32)>,
    /// A learner was added; etcd takes one at a time.
    has_learner: bool,
    /// How many members were added. Each has a URL of its own, as etcd gives the same URL within a second the same id.
    added: u16,
}

impl Generator {
    pub(crate) fn new(random: SmallRng) -> Self {
        Self { random, revision: 1, compacted: Vec::new(), alarms: Vec::new(), has_learner: false, added: 0 }
    }

    /// Learns from an answer what to ask next.
    pub(crate) fn learn(&mut self, step: &Step, answer: &Answer) {
        match (step, answer) {
            (Step::Alarm(request), Answer::Alarms(_, changed)) if request.action == 1 => {
                self.alarms.extend(changed);
            }
            (Step::Alarm(request), Answer::Alarms(_, changed)) if request.action == 2 => {
                self.alarms.retain(|alarm| !changed.contains(alarm));
            }
            (Step::Compact(request), Answer::Compact(_)) => self.compacted.push(request.revision),
            (Step::AddLearner(_), Answer::Members(_)) => {
                self.has_learner = true;
                self.added += 1;
            }
            (Step::Remove(Whom::Added), Answer::Members(_)) => self.has_learner = false,
            _ => {}
        }
        self.revision = self.revision.max(answer.revision());
    }

    pub(crate) fn next_step(&mut self) -> Step {
        if self.chance(8) {
            return self.about_server();
        }
        // While an alarm is raised most requests are refused: not for long.
        if !self.alarms.is_empty() && self.chance(15) {
            let (member_id, alarm) = self.alarms[0];
            return Step::Alarm(AlarmRequest { action: 2, member_id, alarm });
        }
        match self.random.random_range(0..100) {
            0..30 => Step::Put(self.put()),
            30..50 => Step::Range(self.range()),
            50..60 => Step::Delete(self.delete()),
            60..75 => Step::Txn(self.txn(2)),
            75..78 => {
                // 0 counts once as a compaction, in etcd; here it never does.
                let revision = match self.some_revision() {
                    0 => 1,
                    revision => revision,
                };
                Step::Compact(CompactionRequest { revision, physical: true })
            }
            78..82 => {
                let ttl = // None that ends while it is compared.
                    *[100, 500, 9_000_000_000, 9_000_000_001]
                    .choose(&mut self.random)
                    .unwrap_or(&100);
                Step::Grant(LeaseGrantRequest { ttl, id: self.lease().max(1) })
            }
            82..85 => Step::Revoke(LeaseRevokeRequest { id: self.lease() }),
            85..88 => Step::TimeToLive(LeaseTimeToLiveRequest { id: self.lease(), keys: true }),
            88..90 => Step::Leases,
            _ => Step::Watch(self.watch()),
        }
    }

    /// Alarms, state of the server, and its members.
    fn about_server(&mut self) -> Step {
        let whom = if self.chance(80) { Whom::Added } else { Whom::Nobody };
        match self.random.random_range(0..12) {
            0..4 => Step::Alarm(self.alarm()),
            4 => Step::Status,
            5 => {
                // Right at a compaction, etcd answers with the hash that it noted before it.
                let revision = self.some_revision();
                let is_noted = self.compacted.contains(&revision);
                Step::HashKv(HashKvRequest { revision: if is_noted { 0 } else { revision } })
            }
            6 => Step::Members,
            7 | 8 if !self.has_learner => Step::AddLearner(self.urls()),
            7 | 8 => Step::Remove(whom),
            9 => Step::Promote(whom),
            // A member that is there moves to an address that is valid.
            10 if self.has_learner => Step::Move(whom, vec![self.url()]),
            10 => Step::Move(whom, self.urls()),
            _ => Step::Remove(whom),
        }
    }

    fn alarm(&mut self) -> AlarmRequest {
        let action = self.random.random_range(0..3);
        let alarm = *[0, 1, 1, 1, 2].choose(&mut self.random).unwrap_or(&0);
        AlarmRequest { action, member_id: if self.chance(30) { 0 } else { 7 }, alarm }
    }

    /// Mostly those of a new member, at which nothing answers.
    fn urls(&mut self) -> Vec<String> {
        let url = match self.random.random_range(0..10) {
            0 => return Vec::new(),
            1 => "127.0.0.1:3".to_owned(),
            2 => "http://127.0.0.1".to_owned(),
            3 => "http://h:1/x".to_owned(),
            _ => self.url(),
        };
        vec![url]
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", 1 + self.added)
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn key(&mut self) -> Bytes {
        let keys = ["a", "b", "b/1", "b/2", "c", "d", "", "\0", "\u{ff}"];
        let weights: usize = if self.chance(92) { 6 } else { keys.len() };
        Bytes::from_static(keys[self.random.random_range(0..weights)].as_bytes())
    }

    /// Mostly none, else any, also one before the key.
    fn range_end(&mut self) -> Bytes {
        match self.random.random_range(0..10) {
            0..5 => Bytes::new(),
            5..7 => Bytes::from_static(b"\0"),
            7 => Bytes::from_static(b"b0"),
            8 => Bytes::from_static(b"\0\0"),
            _ => self.key(),
        }
    }

    fn value(&mut self) -> Bytes {
        Bytes::from(["", "1", "2", "10", "x"][self.random.random_range(0..5)].to_owned())
    }

    fn lease(&mut self) -> i64 {
        self.random.random_range(0..4)
    }

    /// Mostly the newest.
    fn some_revision(&mut self) -> i64 {
        match self.random.random_range(0..10) {
            0 => -1,
            1 => self.revision + 1,
            2 => self.revision + 5,
            _ => self.random.random_range(0..=self.revision),
        }
    }

    fn put(&mut self) -> PutRequest {
        let ignore_value = self.chance(8);
        let ignore_lease = self.chance(8);
        PutRequest {
            key: self.key(),
            value: if ignore_value && self.chance(80) { Bytes::new() } else { self.value() },
            lease: if self.chance(75) || ignore_lease && self.chance(80) { 0 } else { self.lease() },
            prev_kv: self.chance(40),
            ignore_value,
            ignore_lease,
        }
    }

    fn range(&mut self) -> RangeRequest {
        let bound = |this: &mut Self| {
            if this.chance(85) { 0 } else { this.random.random_range(0..=this.revision + 1) }
        };
        RangeRequest {
            key: self.key(),
            range_end: self.range_end(),
            limit: *[0, 0, 0, 1, 2, 5, -1].choose(&mut self.random).unwrap_or(&0),
            revision: if self.chance(70) { 0 } else { self.some_revision() },
            sort_order: if self.chance(3) { 7 } else { self.random.random_range(0..3) },
            sort_target: if self.chance(3) { 9 } else { self.random.random_range(0..5) },
            serializable: self.chance(30),
            keys_only: self.chance(20),
            count_only: self.chance(15),
            min_mod_revision: bound(self),
            max_mod_revision: bound(self),
            min_create_revision: bound(self),
            max_create_revision: bound(self),
        }
    }

    /// A range in a transaction. A negative revision is there one that was compacted, in etcd; here it is the newest.
    fn range_within(&mut self) -> RangeRequest {
        let range = self.range();
        RangeRequest { revision: range.revision.max(0), ..range }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        DeleteRangeRequest { key: self.key(), range_end: self.range_end(), prev_kv: self.chance(50) }
    }

    fn compare(&mut self) -> Compare {
        let number = self.random.random_range(0..=self.revision.min(4));
        let with = match self.random.random_range(0..6) {
            0 => Some(TargetUnion::Version(number)),
            1 => Some(TargetUnion::CreateRevision(self.random.random_range(0..=self.revision))),
            2 => Some(TargetUnion::ModRevision(self.random.random_range(0..=self.revision))),
            3 => Some(TargetUnion::Value(self.value())),
            4 => Some(TargetUnion::Lease(self.lease())),
            _ => None,
        };
        let fitting = match with {
            Some(TargetUnion::CreateRevision(_)) => 1,
            Some(TargetUnion::ModRevision(_)) => 2,
            Some(TargetUnion::Value(_)) => 3,
            Some(TargetUnion::Lease(_)) => 4,
            _ => 0,
        };
        Compare {
            result: self.random.random_range(0..4),
            target: if self.chance(95) { fitting } else { self.random.random_range(0..5) },
            key: self.key(),
            range_end: if self.chance(80) { Bytes::new() } else { self.range_end() },
            target_union: with,
        }
    }

    fn txn(&mut self, depth: usize) -> TxnRequest {
        let count = self.random.random_range(0..3);
        let compare = (0..count).map(|_| self.compare()).collect();
        TxnRequest { compare, success: self.operations(depth), failure: self.operations(depth) }
    }

    fn operations(&mut self, depth: usize) -> Vec<RequestOp> {
        let count = self.random.random_range(0..4);
        let operation = |this: &mut Self| match this.random.random_range(0..100) {
            0..35 => Some(Request::RequestPut(PutRequest {
                ignore_value: false,
                ignore_lease: false,
                ..this.put()
            })),
            35..65 => Some(Request::RequestRange(this.range_within())),
            65..80 => Some(Request::RequestDeleteRange(this.delete())),
            80..98 if depth > 0 => Some(Request::RequestTxn(this.txn(depth - 1))),
            98..100 => None,
            _ => Some(Request::RequestRange(this.range_within())),
        };
        (0..count).map(|_| RequestOp { request: operation(self) }).collect()
    }

    fn watch(&mut self) -> WatchCreateRequest {
        let filter = match self.random.random_range(0..8) {
            0 => vec![0],
            1 => vec![1],
            2 => vec![0, 1],
            _ => vec![],
        };
        WatchCreateRequest {
            key: self.key(),
            range_end: self.range_end(),
            start_revision: self.random.random_range(0..=self.revision),
            filters: filter,
            prev_kv: self.chance(50),
            ..Default::default()
        }
    }
}
