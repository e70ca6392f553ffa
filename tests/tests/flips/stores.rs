//! The stores that are damaged: small, but with every structure in them, and what they hold.

use std::collections::{BTreeMap, HashSet};
use std::sync::LazyLock;

use bytes::Bytes;
use graviton_engine::io::sim::{Image, Sim};
use graviton_engine::port::blob::BatchItemOutcome;
use graviton_engine::port::{
    AttributesUpdate, Batch, BinaryKey, BlobStore, CopyOptions, DeleteOptions, MutableObjectStore,
    NewManifest, PastEnd, PutManifestOptions, PutOptions, PutRangeOptions, Span, StorageError,
    UpdateOptions,
};
use graviton_engine::store::{Access, CreateOptions, MIB, OpenOptions, Store};
use graviton_tests::random::Random;

use crate::layout::Layout;

pub const PATH: &str = "/simulated/store";

/// One version of a key.
#[derive(Debug, Clone)]
pub struct Version {
    pub lsn: u64,
    /// `None`: deleted.
    pub content: Option<Bytes>,
    /// It has an attribute.
    pub noted: bool,
    /// Others that it was made of: some of its bytes are theirs.
    pub made_of: Vec<BinaryKey>,
}

/// Every version each key ever had, the newest last.
pub type History = BTreeMap<BinaryKey, Vec<Version>>;

/// How a store is made.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub name: &'static str,
    pub block_size: u32,
    pub sectors: u16,
    /// The power fails at the end, and nothing was closed.
    pub killed: bool,
    /// When all bits are flipped, those of its payloads and images are.
    pub whole: bool,
    pub fill: fn(&mut Filler),
}

/// A store as it lies on disk, with what it holds.
pub struct Case {
    pub plan: Plan,
    pub image: Image,
    pub sectors: Vec<Vec<u8>>,
    pub layouts: Vec<Layout>,
    pub history: History,
    /// The store at earlier moments.
    pub older: Vec<Image>,
    /// Another store that was made in the same way: the same layout, other ids.
    pub foreign: Image,
}

/// Fills a store, keeping record of what it holds.
pub struct Filler {
    store: Store,
    sim: Sim,
    random: Random,
    history: History,
    older: Vec<Image>,
}

pub fn key(name: impl Into<Vec<u8>>) -> BinaryKey {
    BinaryKey::new(name.into()).expect("a good key")
}

impl Filler {
    fn remember(&mut self, key: BinaryKey, lsn: u64, content: Option<Bytes>, noted: bool) {
        let versions = self.history.entry(key).or_default();
        let version = Version {
            lsn,
            content,
            noted,
            made_of: Vec::new(),
        };
        versions.push(version);
    }

    fn remember_copy(&mut self, source: &str, target: &str, lsn: u64) {
        let version = self.history[&key(source)].last().expect("it is there");
        let (content, noted) = (version.content.clone(), version.noted);
        self.remember(key(target), lsn, content, noted);
    }

    pub fn put(&mut self, name: &str, length: usize) {
        let content = Bytes::from(self.random.bytes(length));
        let mut options = PutOptions::default();
        let noted = length.is_multiple_of(3);
        if noted {
            options.attributes.insert("note".to_owned(), "a".into());
        }
        let put = self.store.put(&key(name), content.clone(), options).wait();
        let version = put.expect("a put works").version;
        self.remember(key(name), version, Some(content), noted);
    }

    /// A blob that is a hole.
    pub fn create(&mut self, name: &str, size: usize) {
        let options = PutOptions::default();
        let created = self.store.create_sparse(&key(name), size as u64, options);
        let version = created.wait().expect("it is made").version;
        let content = Bytes::from(vec![0; size]);
        self.remember(key(name), version, Some(content), false);
    }

    /// Other bytes from `start` on.
    pub fn change(&mut self, name: &str, start: usize, length: usize) {
        let bytes = Bytes::from(self.random.bytes(length));
        let range = Span::at(start as u64, length as u64).expect("it ends");
        let options = PutRangeOptions {
            past_end: PastEnd::Extend,
            ..PutRangeOptions::default()
        };
        let put = self
            .store
            .put_range(&key(name), range, bytes.clone(), options);
        let version = put.wait().expect("a range is put").version;
        let before = self.history[&key(name)].last().expect("it is there");
        let (noted, content) = (before.noted, before.content.clone());
        let mut content = content.unwrap_or_default().to_vec();
        content.resize(content.len().max(start + length), 0);
        content[start..start + length].copy_from_slice(&bytes);
        let made_of = before.made_of.clone();
        self.remember(key(name), version, Some(content.into()), noted);
        self.newest(name).made_of = made_of;
    }

    fn newest(&mut self, name: &str) -> &mut Version {
        let versions = self.history.get_mut(&key(name));
        versions
            .and_then(|versions| versions.last_mut())
            .expect("it is there")
    }

    /// The attribute that some blobs have is set or removed.
    pub fn update(&mut self, name: &str) {
        let before = self.history[&key(name)].last().expect("it is there");
        let (noted, content) = (before.noted, before.content.clone());
        let made_of = before.made_of.clone();
        let update = match noted {
            true => AttributesUpdate::remove(["note"]),
            false => AttributesUpdate {
                source: "filler".to_owned(),
                ..AttributesUpdate::merge([("note".to_owned(), "a".into())].into())
            },
        };
        let manifests = self.store.manifests();
        let updated = manifests.update_attributes(&key(name), update, UpdateOptions::default());
        let version = updated.wait().expect("it is there").version;
        self.remember(key(name), version, content, !noted);
        self.newest(name).made_of = made_of;
    }

    /// A blob of all of one and a part of another, with a hole between.
    pub fn compose(&mut self, sources: [&str; 2], target: &str) {
        let mut new = NewManifest::default();
        let mut content = Vec::new();
        for (source, start) in sources.into_iter().zip([0, 9]) {
            let version = self.history[&key(source)].last().expect("it is there");
            let bytes = version.content.as_ref().expect("it is not deleted");
            let appended = new.append(&key(source), start as u64, bytes.len() as u64);
            appended.expect("a range");
            new.append_hole(3).expect("a hole");
            content.extend_from_slice(&bytes[start..]);
            content.extend_from_slice(&[0; 3]);
        }
        let options = PutManifestOptions {
            replace: true,
            ..PutManifestOptions::default()
        };
        let put = self.store.manifests().put(&key(target), &new, options);
        let version = put.wait().expect("all of it is there").version;
        self.remember(key(target), version, Some(content.into()), false);
        self.newest(target).made_of = sources.map(key).into();
    }

    pub fn delete(&mut self, name: &str) {
        let deleted = self.store.delete(&key(name), DeleteOptions::default());
        if deleted.wait().expect("a delete works").existed {
            self.remember(key(name), self.store.info().lsn, None, false);
        }
    }

    pub fn copy(&mut self, source: &str, target: &str) {
        let copied = self
            .store
            .copy(&key(source), &key(target), CopyOptions::default());
        let version = copied.wait().expect("a copy works").version;
        self.remember_copy(source, target, version);
    }

    pub fn rename(&mut self, source: &str, target: &str) {
        let renamed = self
            .store
            .rename(&key(source), &key(target), CopyOptions::default());
        let version = renamed.wait().expect("a rename works").version;
        self.remember_copy(source, target, version);
        self.remember(key(source), self.store.info().lsn, None, false);
    }

    /// Blobs of these lengths, in one frame.
    pub fn batch(&mut self, names: impl IntoIterator<Item = String>, length: usize) {
        let mut batch = Batch::new();
        let mut contents = Vec::new();
        for name in names {
            let content = Bytes::from(self.random.bytes(length));
            batch.put(key(name.as_str()), content.clone());
            contents.push((key(name), content));
        }
        let outcomes = self.store.batch(batch).wait().expect("a batch works");
        for ((key, content), outcome) in contents.into_iter().zip(outcomes) {
            let BatchItemOutcome::Put(put) = outcome else {
                panic!("all were puts");
            };
            self.remember(key, put.version, Some(content), false);
        }
    }

    /// An older version of the store that parts of it may fall back to.
    pub fn mark(&mut self) {
        self.older.push(self.sim.image());
    }

    pub fn checkpoint(&mut self) {
        self.mark();
        self.store.checkpoint().expect("a checkpoint");
    }

    pub fn compact(&mut self) {
        self.mark();
        self.store.compact().expect("a compaction");
    }

    /// Frames that are alike in length and in where their records lie, each with new versions of
    /// the same blobs. Of what lay in a segment before, as much as can fits what lies there later.
    pub fn alike(&mut self, frames: usize) {
        for _ in 0..frames {
            self.batch((0..6).map(|part| format!("alike {part}")), 620);
        }
    }

    /// Fills segments with what is deleted again, and takes them back.
    pub fn churn(&mut self, frames: usize) {
        self.alike(frames);
        self.mark();
        for part in 0..6 {
            self.delete(&format!("alike {part}"));
        }
        self.checkpoint();
        while self.store.step().expect("maintenance") {}
        self.checkpoint();
        self.checkpoint();
    }

    /// A few blobs of every kind: empty, of one byte, of two chunks, in extents; overwritten,
    /// deleted, copied, renamed, changed in part before and after, in one frame with others.
    pub fn generation(&mut self, number: usize) {
        self.put("small", 60 + number);
        self.put("chunks", 4088 + number % 3);
        self.put("extents", 7500 + number);
        self.put(&format!("own {number}"), 33);
        self.batch((0..3).map(|part| format!("batch {part}")), 20 + number);
        self.batch(
            [format!("gone {number}"), format!("moved {number}")],
            number,
        );
        self.change("chunks", 4000, 30);
        self.change("chunks", 10, 200);
        self.change("extents", 100, 4500);
        self.create("sparse", 9000);
        self.change("sparse", 5000, 40);
        self.copy("chunks", "changed");
        self.change("chunks", 0, 4090);
        self.copy("small", "copy");
        self.update("small");
        self.update("chunks");
        self.change("chunks", 50, 10);
        self.compose(["extents", "small"], "composed");
        self.copy("extents", &format!("large {number}"));
        self.delete(&format!("gone {number}"));
        self.rename(&format!("moved {number}"), "renamed");
        self.delete("never there");
    }
}

fn open_options(access: Access) -> OpenOptions {
    // Its default asks the system for the number of processors, which takes longer than to open.
    static DEFAULT: LazyLock<OpenOptions> = LazyLock::new(OpenOptions::default);
    OpenOptions {
        access,
        background: false,
        ..DEFAULT.clone()
    }
}

pub fn open(sim: &Sim, access: Access) -> Result<Store, StorageError> {
    Store::open_on(sim.backend(), PATH, open_options(access))
}

fn fill(plan: &Plan, seed: u64) -> (Image, History, Vec<Image>) {
    let sim = Sim::new(plan.block_size, seed);
    let options = CreateOptions {
        sectors: plan.sectors,
        sector_size: 4 * MIB,
        block_size: Some(plan.block_size),
        open: open_options(Access::ReadWrite),
        ..CreateOptions::default()
    };
    let store = Store::create_on(sim.backend(), PATH, options).expect("a store can be made");
    sim.record(false);
    let mut filler = Filler {
        store,
        sim: sim.clone(),
        random: Random::new(11),
        history: History::new(),
        older: Vec::new(),
    };
    (plan.fill)(&mut filler);
    let Filler {
        store,
        history,
        older,
        ..
    } = filler;
    let killed = sim.image();
    store.close().expect("it closes");
    let image = if plan.killed { killed } else { sim.image() };
    (image, history, older)
}

impl Case {
    pub fn make(plan: Plan) -> Self {
        let (image, history, older) = fill(&plan, 1);
        let (foreign, ..) = fill(&plan, 2);
        let sim = Sim::boot(&image, plan.block_size, 3);
        let store = open(&sim, Access::ReadOnly).expect("it opens again");
        let sectors: Vec<Vec<u8>> = (0..usize::from(plan.sectors))
            .map(|number| {
                let mut bytes = vec![0; image.size(number).expect("a sector")];
                image.read(number, 0, &mut bytes);
                bytes
            })
            .collect();
        let layouts = (0..plan.sectors)
            .zip(&sectors)
            .map(|(number, sector)| Layout::read(sector, &store.segments(number)))
            .collect();
        Self {
            plan,
            image,
            sectors,
            layouts,
            history,
            older,
            foreign,
        }
    }

    /// What the store holds if the records with the LSNs `lost` never were.
    pub fn contents(&self, lost: &HashSet<u64>) -> BTreeMap<BinaryKey, Version> {
        let mut contents = BTreeMap::new();
        for (key, versions) in &self.history {
            let kept = versions
                .iter()
                .rfind(|version| !lost.contains(&version.lsn));
            if let Some(version) = kept.filter(|version| version.content.is_some()) {
                contents.insert(key.clone(), version.clone());
            }
        }
        contents
    }
}
