//! Buffers that direct I/O accepts, and the pool they come from.
//!
//! Direct I/O wants memory aligned to the device's block; 4096 bytes satisfies every device this
//! store meets. A buffer is zeroed when it is first allocated and never read uninitialised; a
//! buffer taken again from the pool still holds what its last user left in it, so whoever writes
//! it to a disk zeroes the padding (keys and payloads must not leak into it).
//!
//! Buffers of 32 KiB and more are made of huge pages where the system has them. A transfer is a few long pieces then and
//! not one for each page, which the kernel pins, and the device fetches, one by one: 64 KiB take two thirds of the time,
//! 1 MiB half. Those that are smaller than such a page share one, or two of them.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::io;
use std::mem;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
#[cfg(not(miri))]
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::Duration;

#[cfg(not(miri))]
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{ArrayQueue, Mutex, process_wide, thread};

/// Every buffer that is not split off another starts at a multiple of this many bytes, and has a capacity that is one.
pub const BUFFER_ALIGNMENT: usize = 4096;

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;
/// Buffers of fewer bytes gain nothing from huge pages.
const SLOT_SIZE_MIN: usize = 32 << 10;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Bytes of the buffers of each class: powers of two and, where it matters, a quarter more, for blobs of such a power, which
/// have heads and checksums.
const CLASS_SIZES: [usize; CLASS_COUNT] = [
    4 * KIB,
    8 * KIB,
    16 * KIB,
    32 * KIB,
    40 * KIB,
    64 * KIB,
    80 * KIB,
    128 * KIB,
    160 * KIB,
    256 * KIB,
    320 * KIB,
    512 * KIB,
    640 * KIB,
    MIB,
    MIB + 256 * KIB,
    2 * MIB,
    4 * MIB,
    8 * MIB,
    16 * MIB,
];
const CLASS_COUNT: usize = 19;
/// Most buffers a class retains, whatever their size: bounds the queues' own memory.
const CLASS_SLOTS_MAX: usize = 1024;
const RETAINED_BYTES_DEFAULT: usize = 128 << 20;
/// One part in so many of what a pool may retain stays, whether it is needed or not.
const STAYING_PART: usize = 4;
/// What is more goes when it was not needed for so long.
const PERIOD: Duration = Duration::from_secs(10);

const _: () = assert!(BUFFER_ALIGNMENT.is_power_of_two());
const _: () = assert!(CLASS_SIZES[0] >= BUFFER_ALIGNMENT);
const _: () = assert!(HUGE_PAGE / SLOT_SIZE_MIN <= u64::BITS as usize);

/// One aligned, initialised allocation of `size` bytes, freed on drop.
struct Memory {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: this is plain bytes; nothing in it belongs to a thread.
unsafe impl Send for Memory {}
// SAFETY: it hands out nothing but its address. Bytes are accessed by the one `Block` that they belong to.
unsafe impl Sync for Memory {}

impl Memory {
    fn layout(size: usize) -> Option<Layout> {
        Layout::from_size_align(size, BUFFER_ALIGNMENT).ok()
    }

    /// Whether memory of this size is mapped, and not allocated.
    fn is_mapped(size: usize) -> bool {
        size.is_multiple_of(HUGE_PAGE) && !cfg!(miri)
    }

    /// Zeroed memory; `None` when it cannot be had. `size` is not zero.
    fn allocate(size: usize) -> Option<Self> {
        assert!(size > 0, "an empty buffer needs no memory");
        let start = match Self::is_mapped(size) {
            true => map_huge_pages(size)?,
            false => {
                // SAFETY: the layout's size is not zero, as asserted above.
                NonNull::new(unsafe { alloc_zeroed(Self::layout(size)?) })?
            }
        };
        Some(Self { start, size })
    }
}

/// Maps zeros, in huge pages if there are any: the kernel clears each when it is first touched.
#[cfg(not(miri))]
fn map_huge_pages(size: usize) -> Option<NonNull<u8>> {
    let spanned = size.checked_add(HUGE_PAGE)?;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a mapping at a place that the kernel chooses takes the place of no other.
    let mapped = unsafe { mmap_anonymous(null_mut(), spanned, access, MapFlags::PRIVATE) };
    let mapped: *mut u8 = mapped.ok()?.cast();
    let before = mapped.addr().wrapping_neg() % HUGE_PAGE;
    let start = mapped.wrapping_add(before);
    let behind = start.wrapping_add(size);
    for (rest, length) in [(mapped, before), (behind, HUGE_PAGE - before)] {
        if length > 0 {
            // SAFETY: this part of the mapping is whole pages, and nobody uses it. Where it can't be unmapped, it is
            // address space that is lost.
            let _ = unsafe { munmap(rest.cast(), length) };
        }
    }
    // SAFETY: the range was just mapped; the advice does not change what is in it. It fails where there are no huge
    // pages, and nothing depends on it.
    let _ = unsafe { madvise(start.cast(), size, Advice::LinuxHugepage) };
    NonNull::new(start)
}

#[cfg(miri)]
fn map_huge_pages(_size: usize) -> Option<NonNull<u8>> {
    None
}

impl Drop for Memory {
    fn drop(&mut self) {
        if Self::is_mapped(self.size) {
            #[cfg(not(miri))]
            // SAFETY: `map_huge_pages` has mapped so many bytes there, and they are unmapped only here. Where that fails,
            // the memory is lost.
            let _ = unsafe { munmap(self.start.as_ptr().cast(), self.size) };
            return;
        }
        let layout = Self::layout(self.size).expect("the memory was allocated with this layout");
        // SAFETY: `start` came from `alloc_zeroed` with this very layout and is freed only here.
        unsafe { dealloc(self.start.as_ptr(), layout) };
    }
}

/// Huge pages that are cut into slots of one size. Each belongs to one [`Block`], or is idle in [`Slabs`].
struct Slab {
    memory: Memory,
    slot_size: usize,
}

impl Slab {
    /// One whose slots are all idle; `None` when the memory cannot be had.
    fn allocate(slot_size: usize) -> Option<Arc<Self>> {
        let memory = Memory::allocate(Self::size(slot_size))?;
        Some(Arc::new(Self { memory, slot_size }))
    }

    /// Bytes of one that has slots of this size: of two huge pages, if less would be lost in them.
    fn size(slot_size: usize) -> usize {
        match slot_size > MIB {
            true => 2 * HUGE_PAGE,
            false => HUGE_PAGE,
        }
    }

    /// A bit for each slot.
    fn all_slots(&self) -> u64 {
        u64::MAX >> (u64::BITS as usize - self.memory.size / self.slot_size)
    }
}

/// Initialised bytes of one owner.
enum Block {
    Whole(Memory),
    Slot {
        slab: Arc<Slab>,
        number: u32,
    },
    /// What was split off a buffer, or is left of it: the bytes of a range, which is in no other part.
    Part {
        whole: Arc<AlignedBuf>,
        range: Range<usize>,
    },
}

impl Block {
    fn start(&self) -> NonNull<u8> {
        match self {
            Self::Whole(memory) => memory.start,
            Self::Slot { slab, number } => {
                let offset = *number as usize * slab.slot_size;
                // SAFETY: the number is that of a bit of `all_slots`, so that the slot lies in the slab's memory.
                unsafe { slab.memory.start.add(offset) }
            }
            Self::Part { whole, range } => {
                let start = whole.block.as_ref().map(Self::start);
                // SAFETY: the range lies within the block of the whole, which has one: it was split.
                start.map_or(NonNull::dangling(), |start| unsafe {
                    start.add(range.start)
                })
            }
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Whole(memory) => memory.size,
            Self::Slot { slab, .. } => slab.slot_size,
            Self::Part { range, .. } => range.len(),
        }
    }
}

/// An owned buffer of initialised bytes that starts at a multiple of [`BUFFER_ALIGNMENT`], or is part of such a one.
///
/// It goes back to the [`BufferPool`] it came from when it is dropped.
///
/// ```
/// use graviton_engine::io::BufferPool;
///
/// let mut buffer = BufferPool::global().take_zeroed(4096);
/// buffer[..5].copy_from_slice(b"hello");
/// assert_eq!(bytes::Bytes::from_owner(buffer).slice(..5), "hello");
/// ```
pub struct AlignedBuf {
    block: Option<Block>,
    len: usize,
    pool: Option<Arc<Shelves>>,
}

impl AlignedBuf {
    /// A buffer without bytes, which allocates nothing.
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            block: None,
            len: 0,
            pool: None,
        }
    }

    /// How long the buffer may become without a new allocation, in bytes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.block.as_ref().map_or(0, Block::size)
    }

    /// Makes the buffer `len` bytes long. What appears beyond the old length are bytes that were
    /// there before: initialised, but not necessarily zero.
    ///
    /// # Panics
    /// If `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "a buffer does not grow");
        self.len = len;
    }

    /// Splits the bytes from `at` on off: a buffer that can be filled while this one is, too, and is aligned as `at` is. The
    /// memory goes back to its pool when all parts are dropped.
    ///
    /// ```
    /// use graviton_engine::io::BufferPool;
    ///
    /// let mut first = BufferPool::global().take_zeroed(8192);
    /// let mut second = first.split_off(4096);
    /// second.fill(1);
    /// assert!(first.unsplit(second).is_ok());
    /// assert_eq!((first.len(), first[4095], first[4096]), (8192, 0, 1));
    /// ```
    ///
    /// # Panics
    /// If `at` is more than the length.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        assert!(at <= self.len, "there are {} bytes, not {at}", self.len);
        if self.block.is_none() {
            return Self::empty();
        }
        let len = self.len - at;
        let own = mem::take(self);
        let (whole, range) = match own.into_part() {
            Ok(part) => part,
            Err(whole) => {
                let range = 0..whole.capacity();
                (Arc::new(whole), range)
            }
        };
        let middle = range.start + at;
        *self = Self::part(Arc::clone(&whole), range.start..middle, at);
        Self::part(whole, middle..range.end, len)
    }

    /// Joins what was split off here again, or takes all of it if nothing is here.
    ///
    /// # Errors
    /// `other`, if it was not split off where this one ends, or this one has become shorter since.
    pub fn unsplit(&mut self, other: Self) -> Result<(), Self> {
        if self.block.is_none() {
            *self = other;
            return Ok(());
        }
        let (
            Some(Block::Part { whole, range }),
            Some(Block::Part {
                whole: of,
                range: next,
            }),
        ) = (&mut self.block, &other.block)
        else {
            return Err(other);
        };
        if !Arc::ptr_eq(whole, of) || self.len < range.len() || range.end != next.start {
            return Err(other);
        }
        range.end = next.end;
        self.len += other.len;
        Ok(())
    }

    /// Whether its length and place in memory are multiples of `block_size` bytes, a power of two.
    pub(super) fn fits_blocks(&self, block_size: u32) -> bool {
        let block_size = block_size as usize;
        let is_in_place = self.is_empty() || self.as_ptr().addr().is_multiple_of(block_size);
        is_in_place && self.len().is_multiple_of(block_size)
    }

    fn part(whole: Arc<Self>, range: Range<usize>, len: usize) -> Self {
        Self {
            block: Some(Block::Part { whole, range }),
            len,
            pool: None,
        }
    }

    /// What it is a part of, and which; itself if it is none.
    fn into_part(mut self) -> Result<(Arc<Self>, Range<usize>), Self> {
        match self.block.take() {
            Some(Block::Part { whole, range }) => Ok((whole, range)),
            block => {
                self.block = block;
                Err(self)
            }
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let Some(block) = &self.block else {
            return &[];
        };
        // SAFETY: the block holds `size >= len` bytes, initialised when they were allocated, which
        // belong to it alone, and is borrowed as long as `self` is.
        unsafe { std::slice::from_raw_parts(block.start().as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        let Some(block) = &mut self.block else {
            return &mut [];
        };
        // SAFETY: as in `deref`, and `&mut self` makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(block.start().as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for AlignedBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl Default for AlignedBuf {
    fn default() -> Self {
        Self::empty()
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let (Some(block), Some(pool)) = (self.block.take(), &self.pool) {
            pool.put_back(block);
        }
    }
}

impl fmt::Debug for AlignedBuf {
    /// Sizes only: contents may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf")
            .field("len", &self.len)
            .field("capacity", &self.capacity())
            .finish()
    }
}

/// The slabs of one slot size.
#[derive(Default)]
struct Slabs(Mutex<Vec<Cut>>);

impl Slabs {
    /// One in which nothing is in use. It is freed by whoever takes it, when nobody waits for the lock.
    fn take_idle(&self) -> Option<Cut> {
        let mut cuts = self.0.lock();
        let idle = cuts.iter().position(Cut::is_idle)?;
        Some(cuts.swap_remove(idle))
    }
}

struct Cut {
    slab: Arc<Slab>,
    /// A bit for each slot that is idle.
    idle: u64,
}

impl Cut {
    fn take(&mut self) -> Option<Block> {
        let number = self.idle.trailing_zeros();
        self.idle ^= 1_u64.checked_shl(number)?;
        let slab = Arc::clone(&self.slab);
        Some(Block::Slot { slab, number })
    }

    fn is_idle(&self) -> bool {
        self.idle == self.slab.all_slots()
    }
}

/// The memory at rest, by size class.
struct Shelves {
    classes: [ArrayQueue<Memory>; CLASS_COUNT],
    /// In place of `classes`, where blocks are cut from huge pages.
    slabs: [Slabs; CLASS_COUNT],
    /// Whether something was taken of a class since room was last looked for.
    is_in_use: [AtomicBool; CLASS_COUNT],
    retained: AtomicUsize,
    retained_max: usize,
    /// The least that was retained since it was last trimmed.
    least: AtomicUsize,
    /// Whether there is a thread that trims it, and how often.
    is_trimmed: AtomicBool,
    period: Duration,
}

impl Shelves {
    /// A block of the class; `None` when the memory cannot be had.
    fn take(&self, class: usize) -> Option<Block> {
        self.is_in_use[class].store(true, Ordering::Relaxed);
        let (size, is_slot) = (class_size(class), is_slot(class));
        let at_rest = match is_slot {
            true => self.slabs[class].0.lock().iter_mut().find_map(Cut::take),
            false => self.classes[class].pop().map(Block::Whole),
        };
        if at_rest.is_some() {
            self.retain_less(size);
            return at_rest;
        }
        let cut = is_slot.then(|| self.take_of_new(class)).flatten();
        cut.or_else(|| Memory::allocate(size).map(Block::Whole))
    }

    /// The first block of a new slab.
    fn take_of_new(&self, class: usize) -> Option<Block> {
        let size = class_size(class);
        let slab = Slab::allocate(size)?;
        let idle = slab.all_slots();
        let mut cut = Cut { slab, idle };
        let block = cut.take();
        self.retained
            .fetch_add(Slab::size(size) - size, Ordering::Relaxed);
        self.slabs[class].0.lock().push(cut);
        block
    }

    fn retain_less(&self, size: usize) {
        let left = self.retained.fetch_sub(size, Ordering::Relaxed) - size;
        // Most find nothing to change.
        if left < self.least.load(Ordering::Relaxed) {
            self.least.fetch_min(left, Ordering::Relaxed);
        }
    }

    fn is_too_much(&self) -> bool {
        self.retained.load(Ordering::Relaxed) > self.retained_max
    }

    /// What is retained whether it is needed or not.
    fn staying_bytes(&self) -> usize {
        self.retained_max / STAYING_PART
    }

    fn has_more_than_stays(&self) -> bool {
        self.retained.load(Ordering::SeqCst) > self.staying_bytes()
    }

    /// Frees memory at rest of classes of which nothing was taken lately, until no more than `most` is retained.
    fn free_unused(&self, most: usize) {
        for class in (0..CLASS_COUNT).rev() {
            if !self.is_in_use[class].swap(false, Ordering::Relaxed) {
                self.free_of(class, most);
            }
        }
    }

    fn free_of(&self, class: usize, most: usize) {
        while self.retained.load(Ordering::Relaxed) > most && self.free_one(class) {}
    }

    /// Frees what was at rest all the time since it last did, but for what stays: of classes that are not in use first.
    fn trim(&self) {
        let retained = self.retained.load(Ordering::Relaxed);
        let idle = self.least.swap(retained, Ordering::Relaxed).min(retained);
        let most = retained.saturating_sub(idle.saturating_sub(self.staying_bytes()));
        self.free_unused(most);
        for class in (0..CLASS_COUNT).rev() {
            self.free_of(class, most);
        }
    }

    /// Lets a thread trim it until there is no more than stays. Without one, more stays.
    fn trim_from_now(self: &Arc<Self>) {
        if self.is_trimmed.load(Ordering::SeqCst) || self.is_trimmed.swap(true, Ordering::SeqCst) {
            return;
        }
        let retained = self.retained.load(Ordering::Relaxed);
        self.least.store(retained, Ordering::Relaxed);
        let (shelves, period) = (Arc::downgrade(self), self.period);
        let trim = move || {
            loop {
                thread::sleep(period);
                let Some(shelves) = shelves.upgrade() else {
                    return;
                };
                shelves.trim();
                if !shelves.has_more_than_stays() {
                    shelves.is_trimmed.store(false, Ordering::SeqCst);
                    // What came back meanwhile counted on this thread: it sees the flag, or is seen here.
                    if shelves.has_more_than_stays() {
                        shelves.trim_from_now();
                    }
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("graviton-buffers".to_owned());
        if thread.spawn(trim).is_err() {
            self.is_trimmed.store(false, Ordering::SeqCst);
        }
    }

    /// Frees the memory of a block at rest, or of a slab in which nothing is in use.
    fn free_one(&self, class: usize) -> bool {
        if let Some(memory) = self.classes[class].pop() {
            self.retain_less(memory.size);
            return true;
        }
        let cut = self.slabs[class].take_idle();
        if let Some(cut) = &cut {
            self.retain_less(cut.slab.memory.size);
        }
        cut.is_some()
    }

    /// Keeps the block for the next taker, or frees it when enough is retained.
    fn put_back(self: &Arc<Self>, block: Block) {
        let size = block.size();
        let Some(class) = class_of(size) else {
            return;
        };
        self.retained.fetch_add(size, Ordering::SeqCst);
        if self.is_too_much() {
            self.free_unused(self.retained_max);
        }
        let is_too_much = self.is_too_much();
        match block {
            Block::Slot { slab, number } => {
                let mut cuts = self.slabs[class].0.lock();
                let own = cuts.iter_mut().find(|cut| Arc::ptr_eq(&cut.slab, &slab));
                let cut = own.expect("a slab stays here while a slot of it is in use");
                cut.idle |= 1 << number;
                if is_too_much && cut.is_idle() {
                    cuts.retain(|cut| !Arc::ptr_eq(&cut.slab, &slab));
                    self.retain_less(slab.memory.size);
                }
            }
            Block::Whole(memory) => {
                // Nobody looks for one by itself where they are cut from slabs: there was no memory for one then.
                let is_freed = is_too_much || is_slot(class);
                if is_freed || self.classes[class].push(memory).is_err() {
                    self.retain_less(size);
                }
            }
            // Its whole goes back, when no part is left.
            Block::Part { .. } => self.retain_less(size),
        }
        if self.has_more_than_stays() {
            self.trim_from_now();
        }
    }
}

/// The class that serves buffers of `len` bytes; `None` for those too large to be pooled.
fn class_of(len: usize) -> Option<usize> {
    let class = CLASS_SIZES.partition_point(|size| *size < len);
    (class < CLASS_COUNT).then_some(class)
}

fn class_size(class: usize) -> usize {
    CLASS_SIZES[class]
}

/// Whether the class's blocks are cut from slabs.
fn is_slot(class: usize) -> bool {
    (SLOT_SIZE_MIN..HUGE_PAGE).contains(&class_size(class))
}

/// Hands out [`AlignedBuf`]s and keeps those that come back, up to a bound, for the next taker.
///
/// Buffers come in powers of two from 4 KiB to 16 MiB, and in some sizes that are a quarter more; larger ones, of whole
/// huge pages, are mapped and unmapped each time. Those of 32 KiB to 1 MiB are cut from a huge page of 2 MiB, those of 1.25
/// MiB from two, which stay as long as any part of them is in use. Where too much is idle, what nobody has asked for
/// lately goes first. A quarter of the bound stays; what is more is freed by a thread, which lives as long as there is more,
/// when not so much was needed for ten seconds. Cloning gives another handle to the same pool.
#[derive(Clone)]
pub struct BufferPool {
    shelves: Arc<Shelves>,
}

impl BufferPool {
    /// A pool that retains at most `retained_bytes_max` bytes of idle buffers, beside what shares a huge page with one
    /// that is in use.
    #[must_use]
    pub fn new(retained_bytes_max: usize) -> Self {
        Self::trimmed_every(PERIOD, retained_bytes_max)
    }

    fn trimmed_every(period: Duration, retained_bytes_max: usize) -> Self {
        let classes = std::array::from_fn(|class| {
            let slots = retained_bytes_max / class_size(class);
            ArrayQueue::new(slots.clamp(1, CLASS_SLOTS_MAX))
        });
        let shelves = Shelves {
            classes,
            slabs: std::array::from_fn(|_| Slabs::default()),
            is_in_use: std::array::from_fn(|_| AtomicBool::new(false)),
            retained: AtomicUsize::new(0),
            retained_max: retained_bytes_max,
            least: AtomicUsize::new(0),
            is_trimmed: AtomicBool::new(false),
            period,
        };
        Self {
            shelves: Arc::new(shelves),
        }
    }

    /// The process-wide pool; it retains at most 128 MiB, and 32 MiB of what was not needed for ten seconds.
    #[must_use]
    pub fn global() -> &'static Self {
        process_wide!(BufferPool, BufferPool::new(RETAINED_BYTES_DEFAULT))
    }

    /// A buffer of `len` bytes with unspecified (though initialised) contents.
    ///
    /// Aborts the process when memory is exhausted; use [`try_take`](Self::try_take) for lengths
    /// that come from outside.
    #[must_use]
    pub fn take(&self, len: usize) -> AlignedBuf {
        self.try_take(len).unwrap_or_else(|_| {
            let layout = Memory::layout(len).unwrap_or_else(Layout::new::<Memory>);
            handle_alloc_error(layout)
        })
    }

    /// A buffer of `len` zeros. Aborts as [`take`](Self::take) does.
    #[must_use]
    pub fn take_zeroed(&self, len: usize) -> AlignedBuf {
        let mut buffer = self.take(len);
        buffer.fill(0);
        buffer
    }

    /// A buffer of `len` bytes with unspecified (though initialised) contents.
    ///
    /// # Errors
    /// `OutOfMemory` when the memory cannot be had.
    pub fn try_take(&self, len: usize) -> io::Result<AlignedBuf> {
        if len == 0 {
            return Ok(AlignedBuf::empty());
        }
        let class = class_of(len);
        let block = match class {
            Some(class) => self.shelves.take(class),
            None => len
                .checked_next_multiple_of(HUGE_PAGE)
                .and_then(Memory::allocate)
                .map(Block::Whole),
        };
        let block = block.ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(AlignedBuf {
            block: Some(block),
            len,
            pool: class.map(|_| Arc::clone(&self.shelves)),
        })
    }

    /// How many bytes of idle buffers the pool holds at the moment.
    #[must_use]
    pub fn retained_bytes(&self) -> usize {
        self.shelves.retained.load(Ordering::Relaxed)
    }
}

impl Default for BufferPool {
    /// A pool of its own, with the bound of [`BufferPool::global`].
    fn default() -> Self {
        Self::new(RETAINED_BYTES_DEFAULT)
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool")
            .field("retained_bytes", &self.retained_bytes())
            .field("retained_bytes_max", &self.shelves.retained_max)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Instant;

    #[test]
    fn a_buffer_is_aligned_zeroed_and_as_long_as_asked() {
        let pool = BufferPool::new(1 << 20);
        for len in [1, 511, 4096, 4097, 1 << 20, 3 << 20, (16 << 20) + 1] {
            let buffer = pool.take(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().addr() % BUFFER_ALIGNMENT, 0);
            assert!(buffer.capacity() >= len);
            assert_eq!(buffer.capacity() % BUFFER_ALIGNMENT, 0);
            if Memory::is_mapped(buffer.capacity()) {
                assert_eq!(buffer.as_ptr().addr() % HUGE_PAGE, 0);
            }
            assert!(buffer.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn an_empty_buffer_allocates_nothing() {
        let buffer = BufferPool::new(0).take(0);
        assert_eq!(buffer.capacity(), 0);
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_dropped_buffer_is_taken_again() {
        let pool = BufferPool::new(1 << 20);
        let mut first = pool.take(5000);
        first.fill(7);
        let start = first.as_ptr();
        drop(first);
        assert_eq!(pool.retained_bytes(), 8192);
        let mut again = pool.take(6000);
        assert_eq!(again.as_ptr(), start);
        assert_eq!(pool.retained_bytes(), 0);
        again.set_len(8192);
        assert_eq!(again[4999], 7);
        drop(again);
        assert!(pool.take_zeroed(8192).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_is_split_off_is_joined_again_and_goes_back_as_a_whole() {
        const BLOCK: usize = 512;
        for len in [24 * BLOCK, 200 * BLOCK, 2 << 20] {
            let pool = timeless(64 << 20);
            let mut first = pool.take_zeroed(len);
            let (capacity, at_rest) = (first.capacity(), pool.retained_bytes());
            let mut second = first.split_off(BLOCK);
            let mut third = second.split_off(2 * BLOCK);
            assert_eq!((first.capacity(), second.capacity()), (BLOCK, 2 * BLOCK));
            for (part, byte) in [&mut first, &mut second, &mut third].into_iter().zip(1..) {
                part.fill(byte);
            }
            let mut third = first.unsplit(third).expect_err("it is not the next");
            let ended = third.split_off(third.len());
            assert!(ended.is_empty());
            assert!(second.unsplit(third).is_ok());
            assert!(first.unsplit(second).is_ok());
            assert_eq!(
                (first.len(), first.capacity() + ended.capacity()),
                (len, capacity)
            );
            let (one, rest) = first.split_at(BLOCK);
            let (two, three) = rest.split_at(2 * BLOCK);
            for (part, byte) in [one, two, three].into_iter().zip(1_u8..) {
                assert!(part.iter().all(|own| *own == byte));
            }
            let mut all = AlignedBuf::empty();
            assert!(all.unsplit(first).is_ok());
            let rest = all.split_off(3 * BLOCK);
            all.set_len(BLOCK);
            assert!(all.unsplit(rest).is_err(), "it has become shorter");
            assert!(all.unsplit(pool.take(BLOCK)).is_err(), "it is whole");
            drop(all);
            assert!(pool.retained_bytes() < at_rest + capacity);
            drop(ended);
            assert_eq!(pool.retained_bytes(), at_rest + capacity + 4096);
        }
    }

    #[test]
    fn parts_of_other_buffers_are_not_joined() {
        let pool = BufferPool::default();
        let (mut first, mut other) = (pool.take(8192), pool.take(16384));
        let (behind, behind_other) = (first.split_off(4096), other.split_off(4096));
        assert!(first.unsplit(behind_other).is_err());
        assert!(other.unsplit(behind).is_err());
        let nothing = AlignedBuf::empty().split_off(0);
        assert!(AlignedBuf::empty().unsplit(nothing).is_ok());
    }

    #[test]
    #[should_panic(expected = "there are 5 bytes, not 6")]
    fn no_more_is_split_off_than_is_there() {
        let _ = BufferPool::new(0).take(5).split_off(6);
    }

    #[test]
    fn retained_bytes_stay_within_the_bound() {
        let pool = timeless(10_000);
        let buffers: Vec<_> = (0..8).map(|_| pool.take(4096)).collect();
        drop(buffers);
        assert_eq!(pool.retained_bytes(), 8192);
        drop(pool.take((16 << 20) + 1));
        assert_eq!(pool.retained_bytes(), 8192);
    }

    #[test]
    fn what_nobody_asks_for_makes_room() {
        for stale in [1 << 20, 4 << 20, 8 << 20] {
            let pool = timeless(8 << 20);
            let count = (8 << 20) / stale;
            drop((0..count).map(|_| pool.take(stale)).collect::<Vec<_>>());
            assert_eq!(pool.retained_bytes(), 8 << 20);
            for size in [2 << 20, 4096] {
                drop([pool.take(size), pool.take(size)]);
                drop([pool.take(size), pool.take(size)]);
                assert!(pool.retained_bytes() <= 8 << 20);
                let retained = pool.retained_bytes();
                let taken = [pool.take(size), pool.take(size)];
                assert_eq!(pool.retained_bytes(), retained - 2 * size);
                drop(taken);
            }
        }
    }

    /// A pool for which no time passes.
    fn timeless(retained_bytes_max: usize) -> BufferPool {
        let pool = BufferPool::new(retained_bytes_max);
        pool.shelves.is_trimmed.store(true, Ordering::Relaxed);
        pool
    }

    fn take_some(pool: &BufferPool, count: usize) -> Vec<AlignedBuf> {
        (0..count).map(|_| pool.take(1 << 20)).collect()
    }

    #[test]
    fn what_a_burst_needs_stays_for_the_next_and_goes_when_none_comes() {
        const BURST: usize = 48;
        let pool = timeless(128 << 20);
        let burst = |of| drop(take_some(&pool, of));
        let retained_when_trimmed = || {
            pool.shelves.trim();
            pool.retained_bytes() >> 20
        };
        burst(BURST);
        assert_eq!(retained_when_trimmed(), BURST, "nothing was at rest before");
        burst(BURST);
        assert_eq!(retained_when_trimmed(), BURST, "all was needed");
        burst(BURST - 8);
        assert_eq!(retained_when_trimmed(), BURST, "so much stays anyway");
        burst(1);
        assert_eq!(retained_when_trimmed(), 32, "one was needed");
        assert_eq!(retained_when_trimmed(), 32, "so much stays");
    }

    /// What is at rest all the time is what is there when it was least, be it that it was taken or freed.
    #[test]
    fn what_was_freed_was_not_at_rest() {
        let pool = timeless(128 << 20);
        let (held, others) = (take_some(&pool, 40), take_some(&pool, 80));
        drop(others);
        pool.shelves.trim();
        pool.shelves.trim();
        assert_eq!(pool.retained_bytes(), 32 << 20);
        drop(held);
        pool.shelves.trim();
        assert_eq!(pool.retained_bytes(), 72 << 20);
        pool.shelves.trim();
        assert_eq!(pool.retained_bytes(), 32 << 20);
    }

    #[test]
    fn a_thread_trims_what_is_more_than_stays() {
        const LATEST: Duration = Duration::from_secs(60);
        let moment = Duration::from_millis(20);
        let pool = BufferPool::trimmed_every(moment, 16 << 20);
        let begun = Instant::now();
        // Another thread each time: none is left when there is no more.
        for _ in 0..3 {
            drop(take_some(&pool, 8));
            while pool.retained_bytes() > 4 << 20 {
                assert!(begun.elapsed() < LATEST, "nobody trims it");
                thread::sleep(moment);
            }
        }
        drop(take_some(&pool, 8));
        let shelves = Arc::downgrade(&pool.shelves);
        drop(pool);
        while shelves.upgrade().is_some() {
            assert!(begun.elapsed() < LATEST, "its thread keeps it");
            thread::sleep(moment);
        }
    }

    #[test]
    fn slots_of_a_slab_are_apart_and_are_taken_again() {
        const SLOT: usize = 512 << 10;
        let pool = timeless(HUGE_PAGE);
        let mut buffers: Vec<_> = (0..6).map(|_| pool.take(SLOT - 7)).collect();
        assert_eq!(pool.retained_bytes(), 2 * HUGE_PAGE - 6 * SLOT);
        for (number, buffer) in buffers.iter_mut().enumerate() {
            assert_eq!(buffer.capacity(), SLOT);
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(u8::try_from(number + 1).expect("it is small"));
        }
        for (number, buffer) in buffers.iter().enumerate() {
            assert!(buffer.iter().all(|byte| usize::from(*byte) == number + 1));
        }
        // Nothing goes while one of a slab is in use, and that is where the next ones come from.
        let kept = buffers.remove(0);
        drop(buffers);
        assert_eq!(pool.retained_bytes(), 2 * HUGE_PAGE - SLOT - HUGE_PAGE);
        let again: Vec<_> = (0..3).map(|_| pool.take(SLOT)).collect();
        assert_eq!(pool.retained_bytes(), 0);
        drop((kept, again));
        assert_eq!(pool.retained_bytes(), HUGE_PAGE);
        assert_eq!(BufferPool::new(0).take(SLOT).capacity(), SLOT);
    }

    #[test]
    fn every_size_has_a_slab_or_memory_of_its_own() {
        let pool = timeless(64 << 20);
        for class in 0..CLASS_COUNT {
            let size = class_size(class);
            assert_eq!(class_of(size), Some(class));
            assert_eq!(
                class_of(size + 1),
                Some(class + 1).filter(|class| *class < CLASS_COUNT)
            );
            let count = if is_slot(class) {
                Slab::size(size) / size
            } else {
                1
            };
            let before = pool.retained_bytes();
            let mut buffers: Vec<_> = (0..count).map(|_| pool.take(size - 1)).collect();
            let number = |at: usize| u8::try_from(at).expect("they are few");
            for (at, buffer) in buffers.iter_mut().enumerate() {
                assert_eq!(buffer.capacity(), size);
                buffer.fill(number(at));
            }
            for (at, buffer) in buffers.iter().enumerate() {
                assert!(buffer.iter().all(|byte| *byte == number(at)));
            }
            // What is left of a slab is less than a slot.
            let rest = pool.retained_bytes() - before;
            assert!(rest < size && rest <= HUGE_PAGE / 4, "{rest} of {size}");
            drop(buffers);
            assert_eq!(pool.retained_bytes(), before + rest + count * size);
        }
    }

    #[test]
    fn impossible_sizes_are_errors() {
        let pool = BufferPool::new(0);
        for len in [usize::MAX, isize::MAX as usize, 1 << 60] {
            let error = pool.try_take(len).expect_err("no such memory");
            assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        }
    }

    #[test]
    #[should_panic(expected = "does not grow")]
    fn set_len_beyond_the_capacity_panics() {
        BufferPool::new(0).take(1).set_len(4097);
    }

    #[test]
    fn becomes_shared_bytes_without_a_copy() {
        let mut buffer = BufferPool::global().take_zeroed(8192);
        buffer[8191] = 9;
        let start = buffer.as_ptr();
        let bytes = bytes::Bytes::from_owner(buffer);
        assert_eq!(bytes.as_ptr(), start);
        assert_eq!(bytes[8191], 9);
    }

    #[test]
    fn a_buffer_outlives_its_pool() {
        let buffer = BufferPool::new(1 << 20).take(4096);
        assert_eq!(buffer.len(), 4096);
    }
}

#[cfg(all(test, feature = "shuttle"))]
mod interleavings {
    use super::*;
    use crate::sync::thread;

    const SCHEDULES: usize = 3000;
    const SLOT: usize = HUGE_PAGE / 2;

    fn at_rest(pool: &BufferPool) -> usize {
        let classes = pool.shelves.classes.iter().enumerate();
        let whole: usize = classes
            .map(|(class, blocks)| blocks.len() * class_size(class))
            .sum();
        let slabs = pool.shelves.slabs.iter();
        let slots = |slabs: &Slabs| -> usize {
            let cuts = slabs.0.lock();
            let idle = |cut: &Cut| cut.idle.count_ones() as usize * cut.slab.slot_size;
            cuts.iter().map(idle).sum()
        };
        whole + slabs.map(slots).sum::<usize>()
    }

    /// Threads that take, fill and drop buffers of one class, of which the pool retains two.
    fn buffers_go_round(size: usize) {
        let retained_max = 2 * size;
        let pool = BufferPool::new(retained_max);
        let threads: Vec<_> = (1..4)
            .map(|number| {
                let pool = pool.clone();
                thread::spawn(move || {
                    let mut first = pool.take(size);
                    first[..100].fill(number);
                    let mut second = pool.take(size - 100);
                    second[..100].fill(0);
                    thread::yield_now();
                    assert!(first[..100].iter().all(|byte| *byte == number));
                    assert!(second[..100].iter().all(|byte| *byte == 0));
                    drop(first);
                    assert!(second[..100].iter().all(|byte| *byte == 0));
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(pool.retained_bytes(), at_rest(&pool));
        assert!(pool.retained_bytes() <= retained_max);
    }

    #[test]
    fn no_buffer_is_had_twice_and_what_is_retained_is_counted() {
        for size in [CLASS_SIZES[0], SLOT] {
            shuttle::check_random(move || buffers_go_round(size), SCHEDULES);
            shuttle::check_pct(move || buffers_go_round(size), SCHEDULES, 3);
        }
    }
}
