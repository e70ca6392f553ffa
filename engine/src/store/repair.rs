//! Repair: blobs that have fewer good replicas than they should get others, made of those that are left; and
//! deletes that too few sectors know of are told to others.
//!
//! A replica is made record by record: payload under the LSN that it has everywhere, then the record that
//! makes a version of it \[F-65\]. What a sector has already, of this blob or of others that share it, is
//! read back and left as it is; what does not read back is written anew in the same place of the index. So
//! a repair that is cut short, or done twice, does no harm, and nothing is taken away before something
//! better is there.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use graviton_format::record::{ExtentRef, Manifest, RecordKind, RecordView};

use super::commit::{Done, Mutation, Work};
use super::index::{Entry, Found, Hold, Index};
use super::info::RepairProgress;
use super::inner::Inner;
use super::maintain::forgettable;
use super::read::{HeldRecord, Snapshot};
use super::record::{self, Details};
use super::set::SectorSet;
use super::shortage::Search;
use super::write::unexpected;
use crate::log::sector::Payload;
use crate::port::op::{all, wait_for};
use crate::port::{BinaryKey, Placement, StorageError};

/// Blobs that one step looks at.
const LOOKED_AT: usize = 256;
/// Of how many replicas at once are made, so that they share frames, and with how many bytes.
const AT_ONCE: usize = 32;
const BYTES_AT_ONCE: u64 = 8 << 20;

/// How far repair is.
#[derive(Debug, Default)]
pub struct Repairs {
    /// The blob that was looked at last.
    cursor: Option<BinaryKey>,
    /// Something was mended since it began with the first.
    has_progress: bool,
    /// Nothing could be done for any: not before something changes.
    is_stuck: bool,
    /// Where a scan of the index goes on.
    scan: Option<Vec<u8>>,
    under_way: Vec<Repair>,
    /// The sectors that were to keep replicas when it was looked last.
    keepers: Option<SectorSet>,
    /// Whether anything is short is being looked for.
    pub search: Option<Search>,
}

/// A replica that is being made.
#[derive(Debug)]
pub struct Repair {
    key: BinaryKey,
    /// The version, as another sector has it.
    entry: Entry,
    /// The sector that gets it.
    target: usize,
    /// Those that have it.
    sources: SectorSet,
    /// The replicas that it is made of.
    snapshot: Arc<Snapshot>,
    /// Their records.
    held: HeldRecord,
    /// Payload that is still to be seen to.
    to_do: VecDeque<u64>,
    /// Where it is.
    payloads: BTreeMap<u64, Vec<(usize, Payload)>>,
    hold: Arc<Hold>,
    inner: Arc<Inner>,
}

impl Drop for Repair {
    fn drop(&mut self) {
        self.inner.index.write().let_go(&self.hold);
    }
}

/// What is to be done for a blob.
enum Plan {
    /// It is as it should be, or gone.
    Nothing,
    /// It is not, and nothing can be done.
    Stuck,
    Make(Box<Repair>),
    /// It was deleted, and this sector is to know it.
    Bury(Burial),
}

/// A delete, the sectors that know of it, and the one that is to.
struct Burial {
    lsn: u64,
    sources: SectorSet,
    target: usize,
}

/// The front of a record.
struct Head {
    kind: RecordKind,
    key: BinaryKey,
    meta: Vec<u8>,
    time: u64,
}

impl Inner {
    /// Does one thing for blobs that have too few good replicas. `false` if there is nothing to do, or
    /// nothing that can be done.
    pub fn step_repair(self: &Arc<Self>, repairs: &mut Repairs) -> Result<bool, StorageError> {
        if self.sectors.len() < 2 {
            return Ok(false);
        }
        let under_way = std::mem::take(&mut repairs.under_way);
        if !under_way.is_empty() {
            let steps = under_way.into_iter().map(|repair| self.go_on(repair));
            for step in wait_for(all(steps)) {
                match step {
                    Ok(Some(repair)) => repairs.under_way.push(repair),
                    Ok(None) => repairs.has_progress = true,
                    // The next that is looked at may fare better.
                    Err(error) => self.note_failure("repair", &error),
                }
            }
            return Ok(true);
        }
        let keepers = self.keepers();
        let before = repairs.keepers.replace(keepers);
        if before.unwrap_or_else(|| self.taking_part()) != keepers {
            self.marks.want_scan();
        }
        if self.marks.take_news() {
            repairs.is_stuck = false;
        }
        if self.marks.take_scan() {
            repairs.scan = Some(Vec::new());
        }
        if let Some(from) = repairs.scan.take() {
            repairs.scan = self.scan_for_repair(from)?;
            return Ok(true);
        }
        if repairs.is_stuck {
            return Ok(false);
        }
        let (mut burials, mut bytes) = (Vec::new(), 0);
        let mut is_at_end = false;
        for _ in 0..LOOKED_AT {
            if repairs.under_way.len() + burials.len() >= AT_ONCE || bytes >= BYTES_AT_ONCE {
                break;
            }
            let Some(key) = self.marks.next_repair(repairs.cursor.as_ref()) else {
                is_at_end = true;
                break;
            };
            repairs.cursor = Some(key.clone());
            match self.plan_repair(&key)? {
                Plan::Nothing => {
                    self.marks.repaired(&key);
                    repairs.has_progress = true;
                }
                Plan::Stuck => {}
                Plan::Make(repair) => {
                    bytes += repair.entry.size;
                    repairs.under_way.push(*repair);
                }
                Plan::Bury(burial) => burials.push((key, burial)),
            }
        }
        let is_busy = !repairs.under_way.is_empty() || !burials.is_empty();
        let burials = burials.iter().map(|(key, burial)| self.bury(key, burial));
        // They are looked at once more.
        for buried in wait_for(all(burials)) {
            match buried {
                Ok(_) => repairs.has_progress = true,
                Err(error) => self.note_failure("repair", &error),
            }
        }
        if is_at_end && !is_busy {
            let was_behind = repairs.cursor.take().is_some();
            repairs.is_stuck = !repairs.has_progress;
            repairs.has_progress = false;
            return Ok(was_behind && !repairs.is_stuck);
        }
        Ok(true)
    }

    /// Mends one thing around records, or does one for blobs that have too few good replicas.
    ///
    /// # Errors
    /// What keeps all of it from being done.
    pub fn step_mend_and_repair(
        self: &Arc<Self>,
        repairs: &mut Repairs,
    ) -> Result<bool, StorageError> {
        // What keeps one sector from being mended keeps nobody from repairing the others.
        let is_mending = self.step_mend().unwrap_or_else(|error| {
            self.note_failure("mending", &error);
            false
        });
        Ok(is_mending || self.step_repair(repairs)? || self.step_shortage(repairs)?)
    }

    /// See [`Store::repair`](super::Store::repair).
    pub fn repair(
        self: &Arc<Self>,
        progress: &mut dyn FnMut(RepairProgress),
    ) -> Result<u64, StorageError> {
        self.marks.want_scan();
        loop {
            let stepped = {
                let mut efforts = self.begin_maintenance()?;
                self.step_mend_and_repair(efforts.repairs())?
            };
            if !stepped {
                return self.lacking();
            }
            progress(RepairProgress {
                left: self.marks.backlog() as u64,
            });
        }
    }

    /// See [`Store::lacking`](super::Store::lacking).
    pub fn lacking(&self) -> Result<u64, StorageError> {
        self.check_open()?;
        let keepers = self.keepers();
        self.count_keys(|holders, wanted, is_unlike| {
            is_unlike || holders.within(keepers).len() < wanted
        })
    }

    /// How many keys `counts` says yes to: told in which sectors they are well, as far as is known, in how many they
    /// should be, and whether they are made of other pieces in some.
    pub fn count_keys(
        &self,
        counts: impl Fn(SectorSet, usize, bool) -> bool,
    ) -> Result<u64, StorageError> {
        let (mut from, mut count) = (Vec::new(), 0);
        loop {
            let seen = self.scan_some(&from, |key, holders, wanted, is_unlike| {
                let well = holders.without(self.marks.of(key));
                count += u64::from(counts(well, wanted, is_unlike));
            })?;
            match seen {
                Some(next) => from = next,
                None => return Ok(count),
            }
        }
    }

    /// Looks through the index, from a stored key on, for blobs that have too few good replicas. Returns
    /// where to go on.
    pub fn scan_for_repair(&self, from: Vec<u8>) -> Result<Option<Vec<u8>>, StorageError> {
        let keepers = self.keepers();
        self.scan_some(&from, |key, holders, wanted, is_unlike| {
            if (holders.within(keepers).len() < wanted.min(keepers.len()) || is_unlike)
                && let Ok(key) = BinaryKey::of_stored(key)
            {
                self.marks.want_repair(&key);
            }
        })
    }

    /// Calls `each` for some stored keys, from one on, that are live or were deleted: see
    /// [`Index::scan_replicas`]; told is how many sectors should have them. Returns where to go on.
    pub fn scan_some(
        &self,
        from: &[u8],
        mut each: impl FnMut(&[u8], SectorSet, usize, bool),
    ) -> Result<Option<Vec<u8>>, StorageError> {
        /// Looked at under one lock.
        const AT_ONCE: usize = 4096;
        let forgettable = forgettable(&self.kept.lock());
        let index = self.index.read();
        let (mut seen, mut last) = (0, None);
        // What can't be written can't be made like the others.
        index.scan_replicas(
            from,
            forgettable,
            self.writable(),
            |key, holders, asked, is_unlike| {
                each(key, holders, self.wanted(asked), is_unlike);
                seen += 1;
                last = Some([key, &[0]].concat());
                Ok(seen < AT_ONCE)
            },
        )?;
        Ok(last.filter(|_| seen == AT_ONCE))
    }

    fn plan_repair(self: &Arc<Self>, key: &BinaryKey) -> Result<Plan, StorageError> {
        let forgettable = forgettable(&self.kept.lock());
        let mut index = self.index.write();
        let (Some(all), Some(alike)) = (index.lookup(key.stored())?, index.alike(key.stored())?)
        else {
            self.marks.outdated(key, None);
            return self.plan_burial(&index, key, forgettable);
        };
        let version = alike.entry.lsn;
        self.marks.outdated(key, Some(version));
        let writable = self.writable();
        let marked: SectorSet = alike
            .holders
            .iter()
            .filter(|&number| self.marks.get(key, number, version).is_some())
            .collect();
        let keepers = self.keepers();
        let good = alike.holders.within(keepers).without(marked);
        // To be mended where it is: what is damaged, unless no other has it; then what was merged otherwise; or a
        // sector more.
        let is_elsewhere = alike.holders.len() > 1;
        let in_place = marked.within(writable).first().filter(|_| is_elsewhere);
        let unlike = all.holders.without(alike.holders).within(writable);
        let in_place = in_place.or(unlike.first());
        let target = match in_place {
            Some(number) => number,
            None if good.len() >= self.wanted(alike.entry.replicas).min(keepers.len()) => {
                return Ok(Plan::Nothing);
            }
            None => match self.sector_for_replica(&index, key, all.holders, &alike.entry)? {
                Some(number) => number,
                None => return Ok(Plan::Stuck),
            },
        };
        let repair = self.begin_repair(&mut index, key, alike.holders, good, target)?;
        Ok(repair.map_or(Plan::Stuck, |repair| Plan::Make(Box::new(repair))))
    }

    /// Begins to make the replica of a sector, of those that others have: of the good ones first. `None` if there
    /// is none.
    pub fn begin_repair(
        self: &Arc<Self>,
        index: &mut Index,
        key: &BinaryKey,
        holders: SectorSet,
        good: SectorSet,
        target: usize,
    ) -> Result<Option<Repair>, StorageError> {
        let holders = holders.without(SectorSet::one(target));
        let Some(number) = good.within(holders).first().or(holders.first()) else {
            return Ok(None);
        };
        let Some(entry) = index.entry_in(number, key.stored())? else {
            return Ok(None);
        };
        let version = entry.lsn;
        let sources = Found {
            holders,
            number,
            entry: entry.clone(),
        };
        let size = entry.size;
        let snapshot = Arc::new(self.pinned(index, key, &sources, 0..size)?);
        let held = self.hold_in(index, key)?;
        let mut payloads: BTreeMap<u64, Vec<(usize, Payload)>> = BTreeMap::new();
        for (number, payload) in snapshot.payloads() {
            let places = payloads.entry(payload.lsn).or_default();
            if places.iter().all(|(other, _)| *other != number) {
                places.push((number, payload));
            }
        }
        // Without the payload that is in its own record: unless others share that there.
        let part = &mut index.sectors[target];
        let is_inline = entry.extents.is_none() && !part.names(version);
        let hold = Hold::new();
        let to_do = if is_inline {
            VecDeque::new()
        } else {
            payloads.keys().copied().collect()
        };
        for &lsn in &to_do {
            part.hold(lsn, &hold);
        }
        Ok(Some(Repair {
            key: key.clone(),
            entry,
            target,
            sources: holders,
            snapshot,
            held,
            to_do,
            payloads,
            hold,
            inner: Arc::clone(self),
        }))
    }

    /// Makes the replica of a sector, or sees that it is whole, and mends what is not.
    ///
    /// # Errors
    /// What keeps it from being read or written.
    pub async fn bring(
        self: &Arc<Self>,
        key: &BinaryKey,
        target: usize,
    ) -> Result<(), StorageError> {
        let repair = {
            let mut index = self.index.write();
            let Some(alike) = index.alike(key.stored())? else {
                return Ok(());
            };
            let version = alike.entry.lsn;
            let is_marked = |number: &usize| self.marks.get(key, *number, version).is_some();
            let marked = alike.holders.iter().filter(is_marked).collect();
            let good = alike.holders.without(marked);
            let repair = self.begin_repair(&mut index, key, alike.holders, good, target)?;
            match repair {
                Some(repair) => Ok(repair),
                None => Err(self.pinned(&index, key, &alike, 0..alike.entry.size)?),
            }
        };
        let mut repair = match repair {
            Ok(repair) => repair,
            // No other has it: it is as it is.
            Err(alone) => {
                Arc::new(alone).read_all().await?;
                self.marks.clear(key, target);
                return Ok(());
            }
        };
        while let Some(next) = self.go_on(repair).await? {
            repair = next;
        }
        Ok(())
    }

    /// What is to be done about a blob that is no more.
    fn plan_burial(
        &self,
        index: &Index,
        key: &BinaryKey,
        forgettable: u64,
    ) -> Result<Plan, StorageError> {
        let tombstone = index.tombstone(key.stored())?;
        let Some((lsn, holders)) = tombstone.filter(|(lsn, _)| *lsn > forgettable) else {
            return Ok(Plan::Nothing);
        };
        let keepers = self.keepers();
        if holders.within(keepers).len() >= self.replicas.min(keepers.len()) {
            return Ok(Plan::Nothing);
        }
        let others = keepers.without(holders);
        let best = others
            .iter()
            .max_by_key(|&number| self.available(index, number));
        Ok(best.map_or(Plan::Stuck, |target| {
            Plan::Bury(Burial {
                lsn,
                sources: holders,
                target,
            })
        }))
    }

    /// Tells a sector of a delete.
    async fn bury(
        self: &Arc<Self>,
        key: &BinaryKey,
        burial: &Burial,
    ) -> Result<bool, StorageError> {
        let &Burial {
            lsn,
            sources,
            target,
        } = burial;
        self.make_sources_durable(sources).await?;
        let time = self.now();
        let mutation = Mutation::Replica {
            key: key.clone(),
            version: lsn,
            lsn,
            record: record::encode(RecordKind::Tombstone, key, &[], &[], time),
            kind: RecordKind::Tombstone,
            time,
            meta_length: 0,
            payload_length: 0,
            manifest: None,
            life: None,
            replicas: 0,
        };
        self.submit_replica(target, mutation).await
    }

    /// What came about together with a version, or a delete, is in the same frames as that: no copy of it alone
    /// may be what a power failure leaves. Where a sector fails, the copy is all the more wanted; but the store file
    /// says so before.
    ///
    /// # Errors
    /// `File`.
    async fn make_sources_durable(
        self: &Arc<Self>,
        sources: SectorSet,
    ) -> Result<(), StorageError> {
        let synced = all(self.sync_each(sources)).await;
        let failed = sources.iter().zip(synced);
        let failed = failed.filter_map(|(number, synced)| synced.is_err().then_some(number));
        self.note_failed(failed.collect())
    }

    /// The sector that a replica more of a version goes to.
    fn sector_for_replica(
        &self,
        index: &Index,
        key: &BinaryKey,
        holders: SectorSet,
        entry: &Entry,
    ) -> Result<Option<usize>, StorageError> {
        let room = |number: usize| self.available(index, number);
        if let Some(policy) = &self.policy() {
            let copies = self.wanted(entry.replicas);
            // What is to be moved away, or can't be written to, is none to count on.
            let kept = holders.within(self.keepers());
            // A copy that lacks something is mended where it is, before anybody is asked.
            let ask = |placement: &Placement<'_>| policy.select_repair_targets(placement, &[]);
            let chosen = self.choose(key, copies, kept, entry.size, &room, ask)?;
            return Ok(chosen.without(holders).first());
        }
        let others = self.keepers().without(holders);
        let best = others.iter().max_by_key(|&number| room(number));
        Ok(best.filter(|&number| room(number) > entry.size))
    }

    /// Sees to one payload, or, behind the last, to the record. Returns what is left to do.
    ///
    /// # Errors
    /// What keeps it from being read or written.
    pub async fn go_on(
        self: &Arc<Self>,
        mut repair: Repair,
    ) -> Result<Option<Repair>, StorageError> {
        if let Some(lsn) = repair.to_do.pop_front() {
            // Another repair may have made it, and give it up.
            let is_there =
                self.is_readable(repair.target, lsn).await? && self.hold_payload(&repair, lsn);
            if !is_there {
                self.copy_payload(&repair, lsn).await?;
            }
            return Ok(Some(repair));
        }
        if self.is_whole(&repair).await? || self.make_replica(&repair).await? {
            self.marks.clear(&repair.key, repair.target);
        }
        Ok(None)
    }

    /// Keeps a payload for a repair. `false` if it is not there.
    fn hold_payload(&self, repair: &Repair, lsn: u64) -> bool {
        let part = &mut self.index.write().sectors[repair.target];
        part.hold(lsn, &repair.hold)
    }

    /// Whether the sector has the version as it should, and can read what is in its record.
    async fn is_whole(&self, repair: &Repair) -> Result<bool, StorageError> {
        let (key, number) = (&repair.key, repair.target);
        let sector = &self.sectors[number];
        let (entry, payload, _pin) = {
            let index = self.index.read();
            let Some(entry) = index.entry_in(number, key.stored())? else {
                return Ok(false);
            };
            if entry.lsn != repair.entry.lsn || entry.all_pieces() != repair.entry.all_pieces() {
                return Ok(false);
            }
            let payload = entry.stored_payload(key.stored());
            let pin = sector.pin(std::iter::once(entry.address));
            (entry, payload, pin)
        };
        // That of a manifest lists the pieces.
        let read = sector.read_payload(payload, 0..payload.length);
        if read.await.is_err() {
            return Ok(false);
        }
        let (lsn, length) = (entry.record_lsn(), entry.meta_length);
        let head = sector.read_meta(entry.address, key, lsn, length);
        Ok(head.await.is_ok())
    }

    /// Whether a sector has a payload and can read it.
    async fn is_readable(&self, number: usize, lsn: u64) -> Result<bool, StorageError> {
        let sector = &self.sectors[number];
        let found = {
            let index = self.index.read();
            let payload = index.sectors[number].payload_of(lsn);
            payload.map(|payload| (payload, sector.pin(std::iter::once(payload.address))))
        };
        let Some((payload, _pin)) = found else {
            return Ok(false);
        };
        Ok(sector
            .read_payload(payload, 0..payload.length)
            .await
            .is_ok())
    }

    /// Copies a payload from whichever sector can read it.
    async fn copy_payload(self: &Arc<Self>, repair: &Repair, lsn: u64) -> Result<(), StorageError> {
        let (bytes, from) = read_any(self, repair, lsn).await?;
        let head = match self.head_of(repair.target, lsn).await {
            Some(head) => Some(head),
            None => {
                self.remake_owner(repair.target, lsn, &bytes).await?;
                self.head_of(from, lsn).await
            }
        };
        if self.is_readable(repair.target, lsn).await? && self.hold_payload(repair, lsn) {
            return Ok(());
        }
        let head = head.filter(|head| head.kind == RecordKind::Blob);
        let own = match &head {
            Some(head) => {
                let index = self.index.read();
                let own = index.entry_in(repair.target, head.key.stored())?;
                let part = &index.sectors[repair.target];
                own.filter(|own| part.is_extent(own))
            }
            None => None,
        };
        // A blob of its own there: it and whoever shares its payload learn the new place.
        if let (Some(head), Some(own)) = (head, own)
            && own.record_lsn() == lsn
        {
            return self.remake(repair.target, &own, head, &bytes).await;
        }
        self.write_payload(repair, lsn, &bytes).await
    }

    /// Writes a payload as a record of its own.
    async fn write_payload(
        self: &Arc<Self>,
        repair: &Repair,
        lsn: u64,
        bytes: &Bytes,
    ) -> Result<(), StorageError> {
        let time = repair.entry.time;
        let work = Work::Extent {
            key: repair.key.clone(),
            time,
            payload_length: narrow(bytes.len()),
            record: record::encode_shared(
                RecordKind::Extent,
                &repair.key,
                &[],
                bytes.clone(),
                time,
            ),
            hold: Arc::clone(&repair.hold),
            replica_of: Some(lsn),
        };
        match self
            .submit(SectorSet::one(repair.target), work, false)
            .await?
        {
            Done::Extent { .. } => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// A manifest gets the LSN of the version. If the sector has the blob's record of that LSN, since others share
    /// what lies in it, whoever moves that could take it for the manifest: the payload gets a record of its own.
    async fn part_payload(self: &Arc<Self>, repair: &Repair) -> Result<(), StorageError> {
        let (number, lsn) = (repair.target, repair.entry.lsn);
        let head = self.head_of(number, lsn).await;
        if head.is_some_and(|head| head.kind != RecordKind::Blob) {
            return Ok(());
        }
        let found = {
            let index = self.index.read();
            let payload = index.sectors[number].payload_of(lsn);
            payload.map(|payload| {
                let pin = self.sectors[number].pin(std::iter::once(payload.address));
                (payload, pin)
            })
        };
        let Some((payload, _pin)) = found else {
            return Ok(());
        };
        let read = self.sectors[number].read_payload(payload, 0..payload.length);
        let bytes = match read.await {
            Ok(bytes) => bytes,
            Err(_) => read_any(self, repair, lsn).await?.0,
        };
        self.write_payload(repair, lsn, &bytes).await
    }

    /// Makes the record of a blob that a sector has anew: whoever shares its payload learns the new place.
    async fn remake(
        self: &Arc<Self>,
        number: usize,
        own: &Entry,
        head: Head,
        bytes: &Bytes,
    ) -> Result<(), StorageError> {
        let Head {
            kind,
            key,
            meta,
            time,
        } = head;
        let mutation = Mutation::Replica {
            version: own.lsn,
            lsn: own.record_lsn(),
            record: record::encode_shared(kind, &key, &meta, bytes.clone(), time),
            kind,
            time,
            meta_length: narrow(meta.len()),
            payload_length: narrow(bytes.len()),
            manifest: None,
            life: None,
            replicas: own.replicas,
            key,
        };
        self.submit_replica(number, mutation).await.map(drop)
    }

    /// If a payload lies in the record of a blob that the sector has, of which the front can't be read either: makes
    /// that record anew, so that no other takes its place in the accounting of the sector.
    async fn remake_owner(
        self: &Arc<Self>,
        number: usize,
        lsn: u64,
        bytes: &Bytes,
    ) -> Result<(), StorageError> {
        let Some((key, own)) = self.owner_of(number, lsn)? else {
            return Ok(());
        };
        let details = self.hold(&key)?.details().await?;
        let details = Details {
            source: None,
            life: None,
            ..details
        };
        let head = Head {
            kind: RecordKind::Blob,
            key,
            meta: details.encode(),
            time: own.time,
        };
        self.remake(number, &own, head, bytes).await?;
        match self.owner_of(number, lsn)? {
            Some((key, own)) if !self.is_readable(number, lsn).await? => {
                Err(StorageError::Corruption {
                    place: self.sectors[number].place(own.address),
                    key: Some(key),
                    what: "its front can't be made anew".to_owned(),
                })
            }
            _ => Ok(()),
        }
    }

    /// The blob of a sector whose own record has a payload that is named elsewhere, too. It looks through the whole
    /// index.
    fn owner_of(
        &self,
        number: usize,
        lsn: u64,
    ) -> Result<Option<(BinaryKey, Entry)>, StorageError> {
        let index = self.index.read();
        let part = &index.sectors[number];
        if !part.names(lsn) {
            return Ok(None);
        }
        let mut owner = None;
        part.scan(&[], |stored, entry| {
            if entry.record_lsn() == lsn && part.is_extent(entry) {
                let key = BinaryKey::of_stored(stored).ok();
                owner = key.map(|key| (key, entry.clone()));
            }
            Ok(owner.is_none())
        })?;
        Ok(owner)
    }

    /// The front of the record that holds a payload.
    async fn head_of(&self, number: usize, lsn: u64) -> Option<Head> {
        let sector = &self.sectors[number];
        let (range, _pin) = {
            let index = self.index.read();
            let range = index.sectors[number].head_of(lsn)?;
            (range.clone(), sector.pin(std::iter::once(range.start)))
        };
        let (buffer, skip) = sector.read(range.clone()).await.ok()?;
        let (identity, geometry) = (sector.identity(), &sector.geometry());
        let view = RecordView::decode(&buffer[skip..], identity, geometry, range.start).ok()?;
        let is_it = view.header.lsn.get() == lsn;
        let key = BinaryKey::of_stored(view.key).ok().filter(|_| is_it)?;
        Some(Head {
            kind: view.kind,
            key,
            meta: view.meta.to_vec(),
            time: view.header.time.get(),
        })
    }

    /// Makes the version of what is there. `false` if there is another by now.
    async fn make_replica(self: &Arc<Self>, repair: &Repair) -> Result<bool, StorageError> {
        let (key, entry) = (&repair.key, &repair.entry);
        self.make_sources_durable(repair.sources).await?;
        let details = repair.held.details().await?;
        let details = Details {
            source: None,
            life: Some(entry.life()).filter(|life| *life != entry.lsn),
            replicas: entry.replicas,
            ..details
        };
        let is_inline =
            entry.extents.is_none() && !self.index.read().sectors[repair.target].names(entry.lsn);
        let (payload, manifest) = if is_inline {
            (repair.snapshot.read_all().await?, None)
        } else {
            self.part_payload(repair).await?;
            let pieces: Arc<[ExtentRef]> = entry.all_pieces();
            let extents = pieces.to_vec();
            let manifest = Manifest {
                size: entry.size,
                extents,
            };
            (manifest.encode().into(), Some((entry.size, pieces)))
        };
        let kind = match &manifest {
            Some(_) => RecordKind::Manifest,
            None => RecordKind::Blob,
        };
        let meta = details.encode();
        let mutation = Mutation::Replica {
            key: key.clone(),
            version: entry.lsn,
            lsn: entry.lsn,
            payload_length: narrow(payload.len()),
            record: record::encode_shared(kind, key, &meta, payload, entry.time),
            kind,
            time: entry.time,
            meta_length: narrow(meta.len()),
            manifest,
            life: details.life,
            replicas: details.replicas,
        };
        self.submit_replica(repair.target, mutation).await
    }

    async fn submit_replica(
        self: &Arc<Self>,
        target: usize,
        mutation: Mutation,
    ) -> Result<bool, StorageError> {
        let work = Work::Mutations(vec![mutation]);
        match self.submit(SectorSet::one(target), work, true).await? {
            Done::Mutations(_) => Ok(true),
            Done::Changed => Ok(false),
            _ => Err(unexpected()),
        }
    }
}

/// A payload, and the sector that could read it.
async fn read_any(
    inner: &Inner,
    repair: &Repair,
    lsn: u64,
) -> Result<(Bytes, usize), StorageError> {
    let mut failed = None;
    for (number, payload) in repair.payloads.get(&lsn).into_iter().flatten() {
        let sector = &inner.sectors[*number];
        match sector.read_payload(*payload, 0..payload.length).await {
            Ok(bytes) => return Ok((bytes, *number)),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    let key = repair.key.clone();
    Err(failed.unwrap_or(StorageError::NotFound { key }))
}

fn narrow(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
