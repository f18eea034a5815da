//! Every way in which a disk may fail, at every point where the storage touches it.
//!
//! A workload that appends groups, takes snapshots, truncates and starts anew is run once to count its calls, then once
//! per call, fault and aftermath. Invariant checked: the storage opens again, holds exactly a prefix of the groups
//! that includes every acknowledged one, none half, and goes on from there.

use super::faulty::{Call, Fault, FaultyDisk};
use super::log::{BLOCK, Sizes};
use super::{Disk, OpenError, files::Files};
use bytes::Bytes;
use mvcc::{
    Command, DeleteRangeRequest, KeyRange, LeaseGrantRequest, LeaseId, PutRequest, Record, Revision, Store,
};
use std::collections::BTreeSet;
use std::time::Duration;

/// Segments so small that the workload needs several.
const SIZES: Sizes = Sizes { first: 4 * BLOCK as u64, segment: 4 * BLOCK as u64, background: false };

/// Groups of the workload. Every seventh is two blocks and every eleventh larger than a segment.
const GROUPS: usize = 24;

/// A store, and how it was after each group.
struct Model {
    store: Store,
    states: Vec<Store>,
}

impl Model {
    fn new() -> Self {
        Self { store: Store::new(), states: vec![Store::new()] }
    }

    /// Executes a group of commands.
    fn next(&mut self) -> Vec<Record> {
        let group = self.states.len();
        let size = if group.is_multiple_of(11) {
            4 * BLOCK
        } else if group.is_multiple_of(7) {
            BLOCK
        } else {
            100
        };
        let put = |key: usize, lease| {
            Command::Put(
                PutRequest::new(format!("k{key}"), vec![group as u8; size]).with_lease(LeaseId(lease)),
            )
        };
        let mut commands = vec![
            Command::LeaseGrant(LeaseGrantRequest { id: LeaseId(group as i64), ttl: 60 }),
            put(group % 5, group as i64),
            put(group % 3, 0),
        ];
        if group.is_multiple_of(4) {
            commands.push(Command::DeleteRange(DeleteRangeRequest::new(KeyRange::prefix("k"))));
        }
        if group.is_multiple_of(5) {
            commands.push(Command::LeaseRevoke(LeaseId(group as i64 - 1)));
        }
        if group.is_multiple_of(6) {
            commands.push(Command::Compact(Revision(group as i64)));
        }
        let mut records = Vec::new();
        for command in commands {
            records.extend(self.store.apply(Duration::ZERO, command).unwrap().records);
        }
        self.states.push(self.store.clone());
        records
    }
}

/// Which group the disk's records amount to, if any.
fn group(model: &Model, records: Vec<Record>) -> Option<usize> {
    let store = Store::replay(records, Duration::ZERO).ok()?.store;
    model.states.iter().position(|state| *state == store)
}

/// Runs the workload until it is done or the disk fails; how many groups were acknowledged.
fn work(disk: &FaultyDisk, model: &mut Model) -> usize {
    let mut acknowledged = 0;
    let _ = try_work(disk, model, &mut acknowledged); // the process has ended, one way or the other
    acknowledged
}

fn try_work(files: &FaultyDisk, model: &mut Model, acknowledged: &mut usize) -> Result<(), OpenError> {
    for start in 0..3 {
        let (mut disk, records) = Disk::open(files.clone(), SIZES)?;
        assert_eq!(group(model, records), Some(*acknowledged));
        for step in 0..GROUPS / 3 {
            let records = model.next();
            disk.append(&records)?;
            *acknowledged = model.states.len() - 1;
            if step % 3 == start {
                snapshot(&mut disk, model)?;
            }
        }
    }
    Ok(())
}

/// Takes a snapshot in two pieces, newest key first, to see that order does not matter.
fn snapshot(disk: &mut Disk<FaultyDisk>, model: &Model) -> Result<(), OpenError> {
    let store = &model.store;
    let (first, last) = store.records(None, 2, store.revision());
    let (rest, _) = store.records(last.as_ref(), usize::MAX, store.revision());
    let mut leases = store.lease_records();
    leases.push(Record::Compact { revision: store.compacted(), obsolete: Vec::new() });
    let mut pieces = vec![leases, first, rest];
    if store.compacted().0 < 0 {
        pieces[0].pop();
    }
    match disk.snapshot().write(|| Ok(pieces.pop()))? {
        Some(written) => Ok(disk.truncate(written)?),
        None => Ok(()),
    }
}

/// A generator of coin throws; repeatable.
fn coins(mut state: u64) -> impl FnMut() -> bool {
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state & 1 == 1
    }
}

#[derive(Debug, Clone, Copy)]
enum Aftermath {
    /// The process starts again on the same machine.
    Restart,
    /// Power is cut and nothing unsynced was written.
    AllLost,
    /// Power is cut and everything unsynced was written.
    AllWritten,
    /// Power is cut, some sectors were written; with a seed.
    Torn(u64),
    /// The process starts again, answers from what it found, and then power is cut.
    RestartThenAllLost,
}

const AFTERMATHS: [Aftermath; 5] = [
    Aftermath::Restart,
    Aftermath::AllLost,
    Aftermath::AllWritten,
    Aftermath::Torn(0x9e37_79b9_7f4a_7c15),
    Aftermath::RestartThenAllLost,
];

fn check(point: usize, fault: Fault, aftermath: Aftermath) {
    let files = FaultyDisk::default();
    files.inject(point, fault);
    let mut model = Model::new();
    let acknowledged = work(&files, &mut model);
    let scene = format!("{fault:?} at point {point}, then {aftermath:?}; {acknowledged} groups acknowledged");
    assert!(files.is_reached(), "{scene}: never reached");
    match aftermath {
        Aftermath::Restart | Aftermath::RestartThenAllLost => files.restart(),
        Aftermath::AllLost => files.cut_power(|| false),
        Aftermath::AllWritten => files.cut_power(|| true),
        Aftermath::Torn(seed) => files.cut_power(coins(seed.wrapping_add(point as u64))),
    }
    let (disk, records) =
        Disk::open(files.clone(), SIZES).unwrap_or_else(|error| panic!("{scene}: does not open: {error:?}"));
    let found = group(&model, records).unwrap_or_else(|| panic!("{scene}: holds no prefix"));
    assert!(found >= acknowledged, "{scene}: holds only {found}");
    drop(disk);
    if let Aftermath::RestartThenAllLost = aftermath {
        files.cut_power(|| false);
    }
    // It goes on: from a store as it was found, a group more, and that is there as well.
    let (mut disk, records) = Disk::open(files.clone(), SIZES).unwrap();
    let mut store = Store::replay(records, Duration::ZERO).unwrap().store;
    assert_eq!(
        model.states.iter().position(|state| *state == store),
        Some(found),
        "{scene}: what was shown is gone"
    );
    let put = store.put(PutRequest::new("after", "wards")).unwrap();
    disk.append(&put.records).unwrap();
    drop(disk);
    files.cut_power(|| false);
    let (_, records) = Disk::open(files, SIZES).unwrap();
    assert_eq!(Store::replay(records, Duration::ZERO).unwrap().store, store, "{scene}: it does not go on");
}

/// The calls of the workload without a fault.
fn calls() -> Vec<Call> {
    let files = FaultyDisk::default();
    let acknowledged = work(&files, &mut Model::new());
    assert_eq!(acknowledged, GROUPS);
    files.calls()
}

fn check_all(faults: &[Fault], of: impl Fn(Call) -> bool) {
    let mut scenes = 0;
    for (point, call) in calls().into_iter().enumerate() {
        if !of(call) {
            continue;
        }
        for fault in faults {
            for aftermath in AFTERMATHS {
                check(point, *fault, aftermath);
                scenes += 1;
            }
        }
    }
    assert!(scenes > 100, "{scenes}");
}

#[test]
fn the_workload_meets_every_kind_of_call() {
    let met: BTreeSet<Call> = calls().into_iter().collect();
    let all = [
        Call::List,
        Call::Read,
        Call::Create,
        Call::Open,
        Call::Rename,
        Call::Remove,
        Call::SyncNames,
        Call::Write,
        Call::Sync,
    ];
    assert_eq!(met, BTreeSet::from(all));
}

#[test]
fn a_crash_anywhere() {
    check_all(&[Fault::Kill, Fault::KillAfter], |call| !matches!(call, Call::List | Call::Read | Call::Open));
}

#[test]
fn an_error_anywhere() {
    check_all(&[Fault::Error], |_| true);
}

#[test]
fn short_writes() {
    check_all(&[Fault::Short, Fault::ShortThenKill], |call| call == Call::Write);
}

#[test]
fn a_full_disk() {
    check_all(&[Fault::Full], |call| matches!(call, Call::Create | Call::Write));
}

/// A disk with a workload's log, and no snapshot.
fn logged() -> (FaultyDisk, Model) {
    let (files, mut model) = (FaultyDisk::default(), Model::new());
    let (mut disk, _) = Disk::open(files.clone(), SIZES).unwrap();
    for _ in 0..6 {
        let records = model.next();
        disk.append(&records).unwrap();
    }
    (files, model)
}

#[test]
fn damage_in_the_middle_refuses_to_start() {
    let (pristine, model) = logged();
    let names: Vec<String> =
        pristine.list().unwrap().into_iter().filter(|name| name.ends_with(".log")).collect();
    let (mut refused, mut cut_off) = (0, 0);
    for name in &names {
        let length = pristine.read(name).unwrap().len();
        for block in 0..length / BLOCK {
            for what in [&[0; 32][..], &[0xff; 32], &[0; BLOCK]] {
                let (files, _) = logged();
                files.damage(name, block * BLOCK, what);
                match Disk::open(files.clone(), SIZES) {
                    Err(OpenError::Damaged { what, .. }) => {
                        assert!(!what.is_empty());
                        refused += 1;
                    }
                    Err(other) => panic!("{name} block {block}: {other:?}"),
                    // The last group cannot be told from one that was torn, and unused blocks hold nothing.
                    Ok((_, records)) => {
                        let found = group(&model, records).unwrap();
                        assert!(found >= model.states.len() - 2, "{name} block {block}: {found}");
                        cut_off += usize::from(found == model.states.len() - 2);
                    }
                }
            }
        }
    }
    assert!(refused > 10 && cut_off == 3, "{refused} {cut_off}");
}

#[test]
fn another_format_is_refused_by_its_name() {
    let (files, _) = logged();
    files.damage("wal-0000000000000001.log", 8, &7u32.to_le_bytes());
    let Err(OpenError::Format { found: 7, known: 1, .. }) = Disk::open(files, SIZES) else {
        panic!("not refused");
    };
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let (files, mut model) = (FaultyDisk::default(), Model::new());
    let (mut disk, _) = Disk::open(files.clone(), SIZES).unwrap();
    for _ in 0..9 {
        let records = model.next();
        disk.append(&records).unwrap();
    }
    snapshot(&mut disk, &model).unwrap();
    drop(disk);
    let name = files.list().unwrap().into_iter().find(|name| name.ends_with(".snap")).unwrap();
    let length = files.read(&name).unwrap().len();
    for at in (0..length).step_by(97) {
        let byte = files.read(&name).unwrap()[at];
        files.damage(&name, at, &[byte ^ 1]);
        assert!(Disk::open(files.clone(), SIZES).is_err(), "byte {at}");
        files.damage(&name, at, &[byte]);
    }
    let (_, records) = Disk::open(files, SIZES).unwrap();
    assert_eq!(group(&model, records), Some(9));
}

#[test]
fn a_client_cannot_forge_a_group() {
    // A torn group whose value holds a whole block that was once a group's: without the segment's salt it is nothing.
    let (files, mut model) = logged();
    let (mut disk, _) = Disk::open(files.clone(), SIZES).unwrap();
    let names: Vec<String> = files.list().unwrap();
    let forged: Vec<u8> = names.iter().flat_map(|name| files.read(name).unwrap()).collect();
    let put = model.store.put(PutRequest {
        key: Bytes::from_static(b"k"),
        value: forged.into(),
        ..PutRequest::default()
    });
    files.inject(0, Fault::ShortThenKill);
    disk.append(&put.unwrap().records).unwrap_err();
    drop(disk);
    files.restart();
    let (_, records) = Disk::open(files, SIZES).unwrap();
    assert_eq!(group(&model, records), Some(6));
}

#[test]
fn the_disk_used_is_bounded() {
    let (files, mut model) = (FaultyDisk::default(), Model::new());
    let (mut disk, _) = Disk::open(files.clone(), SIZES).unwrap();
    for round in 0..100 {
        let put = model.store.put(PutRequest::new("k", vec![0; BLOCK / 2])).unwrap();
        disk.append(&put.records).unwrap();
        if round % 10 == 9 {
            let compact = model.store.compact(model.store.revision()).unwrap();
            disk.append(&compact.records).unwrap();
            snapshot(&mut disk, &model).unwrap();
            // The snapshot, the current segment, the next one.
            assert!(files.list().unwrap().len() <= 3, "{:?}", files.list());
        }
    }
}
