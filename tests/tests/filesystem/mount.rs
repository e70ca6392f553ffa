//! The file system, where the kernel asks for it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::volatile::{Node, ROOT, Transfer, Volatile};

/// `O_DSYNC` of `fcntl.h`, which `RWF_DSYNC` becomes.
const O_DSYNC: i32 = 0o10_000;
/// Nothing that the kernel was told holds any longer than its answer: it asks again.
const AT_ONCE: Duration = Duration::ZERO;

/// Serves the file system at `directory`, for as long as what is returned is there.
pub fn mount(volatile: &Arc<Mutex<Volatile>>, directory: &Path) -> io::Result<BackgroundSession> {
    let served = Served(Arc::clone(volatile));
    fuser::spawn_mount(served, directory, &Config::default())
}

struct Served(Arc<Mutex<Volatile>>);

impl Served {
    fn attributes(&self, number: u64) -> Result<FileAttr, Errno> {
        let fs = self.0.lock();
        let (kind, perm, size) = match fs.node(number)? {
            Node::File(bytes) => (FileType::RegularFile, 0o600, bytes.len() as u64),
            Node::Directory(_) => (FileType::Directory, 0o700, 0),
        };
        let never: SystemTime = UNIX_EPOCH;
        Ok(FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: never,
            mtime: never,
            ctime: never,
            crtime: never,
            kind,
            perm,
            nlink: 1,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn make(&self, directory: INodeNo, name: &OsStr, node: Node) -> Result<FileAttr, Errno> {
        let number = self.0.lock().create(directory.0, name, node)?;
        self.attributes(number)
    }

    fn cuts_reads_short(&self) -> bool {
        self.0.lock().manner.cuts_short == Some(Transfer::Read)
    }

    /// The page cache takes a read that is cut short for the end of the file, also where it reads what a direct one
    /// left: it has no part in the reads then.
    fn opened(&self) -> FopenFlags {
        match self.cuts_reads_short() {
            true => FopenFlags::FOPEN_DIRECT_IO,
            false => FopenFlags::empty(),
        }
    }
}

fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

fn attr(reply: ReplyAttr, attributes: Result<FileAttr, Errno>) {
    match attributes {
        Ok(attributes) => reply.attr(&AT_ONCE, &attributes),
        Err(error) => reply.error(errno(error)),
    }
}

fn entry(reply: ReplyEntry, attributes: Result<FileAttr, Errno>) {
    match attributes {
        Ok(attributes) => reply.entry(&AT_ONCE, &attributes, Generation(0)),
        Err(error) => reply.error(errno(error)),
    }
}

fn empty(reply: ReplyEmpty, outcome: Result<(), Errno>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

fn index(offset: u64) -> Result<usize, Errno> {
    usize::try_from(offset).map_err(|_| Errno::FBIG)
}

fn is_direct(flags: OpenFlags) -> bool {
    flags.0.cast_unsigned() & OFlags::DIRECT.bits() != 0
}

impl Filesystem for Served {
    /// Where the page cache has no part in it, io_uring would go on with a direct read that was cut short by itself, and
    /// at the wrong place (Linux 6.18), unless such reads are asynchronous: then they end where they were cut.
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        if self.cuts_reads_short() {
            (config.add_capabilities(InitFlags::FUSE_ASYNC_DIO)).map_err(|_| Errno::OPNOTSUPP)?;
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.0.lock().lookup(parent.0, name);
        entry(reply, found.and_then(|number| self.attributes(number)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        attr(reply, self.attributes(ino.0));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let resized = size.map_or(Ok(()), |size| self.0.lock().set_length(ino.0, index(size)?));
        attr(reply, resized.and_then(|()| self.attributes(ino.0)));
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let directory = Node::Directory(BTreeMap::new());
        entry(reply, self.make(parent, name, directory));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.make(parent, name, Node::File(Vec::new())) {
            Ok(attributes) => reply.created(
                &AT_ONCE,
                &attributes,
                Generation(0),
                FileHandle(0),
                self.opened(),
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open(&self, _: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), self.opened());
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.0.lock().remove(parent.0, name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.0.lock().remove(parent.0, name));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = match parent == newparent {
            true => self.0.lock().rename(parent.0, name, newname),
            false => Err(Errno::XDEV),
        };
        empty(reply, renamed);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let direct = is_direct(flags);
        let read = index(offset).and_then(|offset| {
            let mut fs = self.0.lock();
            fs.read(ino.0, offset, size as usize, direct)
        });
        match read {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let direct = is_direct(flags);
        let durable = flags.0 & O_DSYNC != 0;
        let written = index(offset).and_then(|offset| {
            let mut fs = self.0.lock();
            fs.write(ino.0, offset, data, direct, durable)
        });
        match written {
            Ok(count) => reply.written(u32::try_from(count).expect("no more than was asked")),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn flush(
        &self,
        _: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _data: bool, reply: ReplyEmpty) {
        empty(reply, self.0.lock().sync(ino.0));
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _data: bool, reply: ReplyEmpty) {
        empty(reply, self.0.lock().sync(ino.0));
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let fs = self.0.lock();
        let Ok(Node::Directory(names)) = fs.node(ino.0) else {
            return reply.error(errno(Errno::NOTDIR));
        };
        let after = usize::try_from(offset).unwrap_or(usize::MAX);
        for (number, (name, node)) in (1..).zip(names).skip(after) {
            let kind = match fs.node(*node) {
                Ok(Node::Directory(_)) => FileType::Directory,
                _ => FileType::RegularFile,
            };
            if reply.add(INodeNo(*node), number, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        let end = offset.saturating_add(length);
        let allocated = index(end).and_then(|end| self.0.lock().allocate(ino.0, end));
        empty(reply, allocated);
    }
}

const _: () = assert!(ROOT == INodeNo::ROOT.0);
