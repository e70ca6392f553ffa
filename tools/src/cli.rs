//! The command line, as it is typed.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::builder::{FalseyValueParser, OsStringValueParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use graviton_engine::port::blob::REPLICAS_MAX;
use graviton_engine::port::mutable::PART_NUMBERS;
use graviton_engine::port::{ETag, Price, RangeSet, UploadId};

use crate::size::{ByteRange, parse, parse_positive, parse_range};

/// The commands by what they are for. The test below keeps it complete.
const COMMANDS: &str = "\
Files:
  import       Take a directory tree in; creates the store if there is none
  export       Write blobs out as a directory tree

Blobs:
  put          Put a blob from a file or standard input
  get          Read a blob, or a range of it
  stat         Show what is known of a blob
  ls           List blobs
  rm           Delete blobs
  cp           Copy a blob without moving its bytes
  mv           Rename a blob
  multipart    Make a blob of parts that are put one by one
  ranges       Show what is written of a blob, and what is not
  attrs        Show or change what is said of a blob
  replicas     Show in which sectors a blob lies, and how well

Store:
  init         Create a store
  info         Show figures and health
  verify       Read and check everything
  compact      Turn garbage into free space
  checkpoint   Write the index out now
  map          Draw where live, garbage and free space lie
  sectors      List, add, grow, drain, remove, replace, label and recover sectors
  scrub        Read all replicas back, and mend what is damaged
  repair       Make replicas that are missing or damaged
  rebalance    Move replicas to better places, and take away those that are too many
  dump         Show structures as they lie on disk

Shell:
  completions  Write completions for a shell
  help         Show help for a command";

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 called wrongly, 3 not found, 4 corruption found.

Examples:
  graviton import ./photos
  graviton ls -l 2026/
  graviton get 2026/cat.jpg -o cat.jpg
  graviton --json info";

/// Graviton: an embedded blob store in preallocated files.
#[derive(Debug, Parser)]
#[command(
    name = "graviton",
    version,
    about = "Keeps blobs in a log-structured store of preallocated files",
    help_template = format!("{{about}}\n\n{{usage-heading}} {{usage}}\n\n{COMMANDS}\n\nOptions:\n{{options}}{{after-help}}"),
    after_help = EXIT_CODES,
    arg_required_else_help = true,
    subcommand_required = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The store's directory
    #[arg(
        long,
        value_name = "DIR",
        env = "GRAVITON_STORE",
        default_value = "./graviton-store",
        global = true,
        hide_env_values = true
    )]
    pub store: PathBuf,

    /// Print JSON objects, errors (on standard error) included
    #[arg(long, global = true)]
    pub json: bool,

    /// Keys and prefixes are given in text form: \\ is a backslash, \xNN any byte (as `ls` prints them)
    #[arg(long, global = true)]
    pub escaped: bool,

    /// Show more: exact byte counts; of a dump, all fields
    #[arg(short, long, global = true)]
    pub verbose: bool,

    /// How to talk to the disk; auto takes io_uring where it works
    #[arg(
        long,
        value_name = "BACKEND",
        env = "GRAVITON_IO",
        value_enum,
        default_value_t,
        global = true,
        hide_env_values = true
    )]
    pub io: IoBackend,

    /// Go through the page cache: no direct I/O
    #[arg(long, env = "GRAVITON_BUFFERED", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new(), global = true, hide_env_values = true)]
    pub buffered: bool,

    /// Read a store that has lost changes: blobs may be missing, older, or back though deleted
    #[arg(long, global = true)]
    pub salvage: bool,

    /// What decides in which sectors replicas go [default: rack-aware if sectors have racks, else where most room is]
    #[arg(
        long,
        value_name = "POLICY",
        env = "GRAVITON_POLICY",
        value_enum,
        global = true,
        hide_env_values = true
    )]
    pub policy: Option<Policy>,
}

/// What decides in which sectors replicas go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// Draws them, with their free space as weights.
    Random,
    /// Spreads them over racks.
    RackAware,
    /// Takes the cheapest, by the prices that they are labelled with.
    CostOptimized,
}

/// How to talk to the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum IoBackend {
    /// Takes io_uring if a probe with real I/O succeeds, else plain system calls.
    #[default]
    Auto,
    /// Takes io_uring, or fails.
    Uring,
    /// Takes plain system calls.
    Syscall,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a store
    #[command(
        after_help = "Examples:\n  graviton init --sector-size 10GiB\n  graviton --store /srv/blobs init --sectors 3 --replicas 2 --sector-size 64GiB"
    )]
    Init(Geometry),

    /// Take a directory tree in; creates the store if there is none
    ///
    /// Every regular file below DIR becomes a blob whose key is PREFIX followed by the file's path
    /// relative to DIR. Symbolic links, devices, sockets and pipes are reported, never followed.
    /// So are files that an interrupted export left unfinished (.graviton-PID-N.tmp).
    /// A file that cannot be imported is reported and the rest goes on (exit code 1 at the end);
    /// when the store is full or fails, the import ends. Each file is acknowledged once it is
    /// durable, so an import that was killed is simply repeated.
    ///
    /// A file is unchanged, and skipped, if the blob has the same size, permissions and
    /// modification time, and either the same change time was recorded with it, or it has the same
    /// content. Times within two seconds of the import are not trusted.
    ///
    /// A store that is created is given 1.5 times the tree's bytes, at least 256 MiB, at most what
    /// the disk has less 64 MiB, which are left free, in whole segments; --sector-size overrules
    /// that.
    #[command(
        after_help = "Examples:\n  graviton import ./photos\n  graviton import /usr/share/doc --prefix doc/ --sector-size 4GiB"
    )]
    Import(ImportArgs),

    /// Write blobs out as a directory tree
    ///
    /// Each blob whose key begins with PREFIX becomes the file DIR/REST, where REST is the key
    /// without PREFIX. Nothing is ever written outside of DIR: keys that are no plain relative path
    /// (absolute, '..', '.', '//', NUL, names over 255 bytes) and keys that would have to pass
    /// through a symbolic link or a file are reported and skipped (exit code 1 at the end). A file
    /// that exists with other content is left alone and reported, unless --overwrite is given; one
    /// that differs in its permissions only is given those of the blob. What interrupted exports
    /// left unfinished in the directories that are written to (.graviton-PID-N.tmp) is removed.
    #[command(
        after_help = "Examples:\n  graviton export ./restored\n  graviton export ./docs --prefix doc/"
    )]
    Export(ExportArgs),

    /// Put a blob from a file or standard input
    ///
    /// With --hole, a blob is made none of which is written yet: that costs no space. With --range,
    /// bytes of a blob that there is are replaced, all of them or none.
    #[command(
        after_help = "Examples:\n  graviton put notes/today today.txt\n  tar c src | graviton put backup/src.tar\n  graviton put config config.toml --if-etag 00000000000000ab\n  graviton put disk.img --hole 10GiB\n  graviton put disk.img part --range 1MiB.."
    )]
    Put(PutArgs),

    /// Read a blob, or a range of it
    ///
    /// Bytes are verified before they are written. With -o, the file appears (or is replaced) only
    /// once it is complete. Bytes that were never written are an error, unless --zeros is given.
    #[command(
        after_help = "Examples:\n  graviton get notes/today\n  graviton get backup/src.tar -o src.tar\n  graviton get disk.img --range 1MiB..2MiB -o part"
    )]
    Get(GetArgs),

    /// Show what is known of a blob
    #[command(
        after_help = "Examples:\n  graviton stat notes/today\n  graviton --json stat notes/today"
    )]
    Stat(KeyArg),

    /// List blobs
    ///
    /// Keys are printed in text form, in bytewise order: \\ for a backslash, \xNN for bytes that
    /// are not printable. Hand them back with --escaped.
    #[command(
        after_help = "Examples:\n  graviton ls -l photos/\n  graviton ls --delimiter /\n  graviton --json ls photos/"
    )]
    Ls(LsArgs),

    /// Delete blobs
    ///
    /// A key that does not exist is reported, the others are deleted all the same, and the exit
    /// code is 3.
    #[command(
        after_help = "Examples:\n  graviton rm notes/today\n  graviton ls old/ | xargs -d '\\n' graviton --escaped rm --"
    )]
    Rm(RmArgs),

    /// Copy a blob without moving its bytes
    #[command(after_help = "Example:\n  graviton cp notes/today notes/2026-01-31")]
    Cp(CopyArgs),

    /// Rename a blob
    #[command(after_help = "Example:\n  graviton mv inbox/a.jpg photos/a.jpg --if-absent")]
    Mv(CopyArgs),

    /// Make a blob of parts that are put one by one
    ///
    /// Nothing is seen of an upload under its key before it is completed; then the parts are the
    /// blob, and none of their bytes is moved.
    #[command(
        arg_required_else_help = true,
        after_help = "Examples:\n  graviton multipart start films/a.mkv\n  graviton multipart part 00000000000000ab 1 first.bin\n  graviton multipart complete 00000000000000ab\n  graviton multipart ls"
    )]
    Multipart {
        /// What to do.
        #[command(subcommand)]
        what: Multipart,
    },

    /// Show what is written of a blob, and what is not
    ///
    /// With --elsewhere, KEY names bytes that are held somewhere else: the store keeps what is
    /// complete of them, as it is told by --mark.
    #[command(
        after_help = "Examples:\n  graviton ranges disk.img\n  graviton ranges --elsewhere mirror/a.iso --mark 0..4096,8192..12288"
    )]
    Ranges(RangesArgs),

    /// Show or change what is said of a blob
    ///
    /// Attributes are advertised: whoever sets one answers for it, and the store keeps who that was
    /// and when. Size and digests are confirmed: the store has checked them. A change makes a new
    /// version of the blob, and moves none of its bytes.
    #[command(
        after_help = "Examples:\n  graviton attrs notes/today\n  graviton attrs notes/today author=ada 'subject=the weather' --source editor\n  graviton attrs notes/today --remove subject\n  graviton attrs disk.img --entries"
    )]
    Attrs(AttrsArgs),

    /// Show in which sectors a blob lies, and how well
    ///
    /// Exit code 4 if it has fewer good replicas than it should. What is damaged is known only of what
    /// was read since the store was opened: verify reads all.
    #[command(
        after_help = "Examples:\n  graviton replicas notes/today\n  graviton --json replicas notes/today"
    )]
    Replicas(KeyArg),

    /// Show figures and health
    ///
    /// Exit code 4 if the store is not healthy.
    #[command(after_help = "Examples:\n  graviton info\n  graviton --json info")]
    Info,

    /// Read and check everything
    ///
    /// Opens whatever can be opened. Exit code 4, and a line for each finding, if anything is wrong.
    #[command(after_help = "Examples:\n  graviton verify\n  graviton --json verify")]
    Verify,

    /// Turn garbage into free space
    ///
    /// Empties segments that are an eighth garbage or more. Exit code 4 if something that lives in
    /// one can't be read: it is left as it is.
    #[command(after_help = "Example:\n  graviton compact")]
    Compact,

    /// Write the index out now, so that the next open replays nothing
    #[command(after_help = "Example:\n  graviton checkpoint")]
    Checkpoint,

    /// Draw where live, garbage and free space lie
    #[command(
        after_help = "Examples:\n  graviton map\n  graviton map --svg store.svg\n\nColours are left out when NO_COLOR is set or standard output is no terminal."
    )]
    Map(MapArgs),

    /// List, add, grow, drain, remove, replace, label and recover sectors
    ///
    /// A sector is a file, on a disk of its own at best, or a block device. What has to be moved is moved by the command,
    /// and, if that is cut short, by whoever has the store open for writing next.
    #[command(
        arg_required_else_help = true,
        after_help = "Examples:\n  graviton sectors ls\n  graviton sectors add --size 64GiB --file /mnt/b/graviton.sector --rack left\n  graviton sectors add --file /dev/sdb\n  graviton sectors grow 0 128GiB\n  graviton sectors replace 1\n  graviton sectors drain 2 && graviton sectors remove 2\n  graviton sectors recover /mnt/b/graviton.sector"
    )]
    Sectors {
        /// What to do.
        #[command(subcommand)]
        what: Sectors,
    },

    /// Read all replicas back, and mend what is damaged
    ///
    /// Exit code 4, and a line for each thing that is damaged, if anything is (with --repair: if something
    /// still is at the end): replicas, and then what lies around them in superblocks, checkpoints and segments,
    /// which is mended in the sector itself. It reads at the pace that is asked for.
    #[command(
        after_help = "Examples:\n  graviton scrub\n  graviton scrub --repair --rate 20MiB\n  graviton scrub --depth headers"
    )]
    Scrub(ScrubArgs),

    /// Make replicas that are missing or damaged
    ///
    /// Says how many keys lack replicas; with --apply, makes them, as the store does by itself while
    /// it is open for writing. Exit code 4 if something is still lacking.
    #[command(after_help = "Examples:\n  graviton repair\n  graviton repair --apply")]
    Repair {
        /// Do it, and not only say what is lacking
        #[arg(long)]
        apply: bool,
    },

    /// Move replicas to better places, and take away those that are too many
    ///
    /// Says what it would do; with --apply, does it. Sectors that are fuller than others give blobs to
    /// them, and what is in more sectors than it should be, since one of them was away, leaves the
    /// fullest. What lacks replicas is for repair.
    #[command(
        after_help = "Examples:\n  graviton rebalance -v\n  graviton rebalance --apply --rate 20MiB"
    )]
    Rebalance {
        /// Do it, and not only say what would be done
        #[arg(long)]
        apply: bool,

        /// The most that is copied in a second, such as 20MiB [default: no limit]
        #[arg(long, value_name = "SIZE", value_parser = parse_positive)]
        rate: Option<u64>,
    },

    /// Show structures as they lie on disk
    ///
    /// Reads the store's files itself, and so works on damaged and locked stores too. Exit code 4
    /// if something is damaged of what was dumped; bytes behind the end of the log are not.
    ///
    /// With --verbose, frames and segments are shown with their fields, and frames with their
    /// records.
    #[command(
        arg_required_else_help = true,
        after_help = "Examples:\n  graviton dump superblock\n  graviton dump frames --segment 3 -v\n  graviton dump checkpoint --entries -n 20\n  graviton dump record notes/today"
    )]
    Dump(DumpArgs),

    /// Write completions for a shell
    #[command(
        after_help = "Examples:\n  graviton completions bash > /etc/bash_completion.d/graviton\n  graviton completions fish > ~/.config/fish/completions/graviton.fish"
    )]
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// The shape of a store that is created.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Shape of a new store")]
pub struct Geometry {
    /// How many sector files [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub sectors: Option<u16>,

    /// How many of the sectors each blob is put into [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub replicas: Option<u16>,

    /// Size of each sector file, such as 10GiB; rounded down to whole segments
    #[arg(long, value_name = "SIZE", value_parser = parse_positive)]
    pub sector_size: Option<u64>,

    /// Size of a segment, a power of two, such as 8MiB [default: fitted to the sector]
    #[arg(long, value_name = "SIZE", value_parser = parse_positive)]
    pub segment_size: Option<u64>,

    /// Alignment of writes [default: the device's] [possible values: 512, 4096]
    #[arg(long, value_name = "SIZE", value_parser = parse_block_size)]
    pub block_size: Option<u32>,

    /// Write zeros to the sector files now, which takes as long as writing all of them; else a store does that
    /// ahead of puts, and writes twice what is put until its sectors have been written once around
    #[arg(long)]
    pub zero: bool,
}

impl Geometry {
    /// Whether any of it was given.
    pub fn is_given(&self) -> bool {
        self.sectors.is_some()
            || self.replicas.is_some()
            || self.sector_size.is_some()
            || self.segment_size.is_some()
            || self.block_size.is_some()
            || self.zero
    }
}

fn parse_block_size(text: &str) -> Result<u32, String> {
    match parse(text) {
        Ok(512) => Ok(512),
        Ok(4096) => Ok(4096),
        _ => Err("expected 512 or 4096".to_owned()),
    }
}

fn parse_etag(text: &str) -> Result<ETag, String> {
    text.parse()
        .map_err(|_| "expected 16 hex digits, as stat shows them".to_owned())
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The directory to take in
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,

    /// Put before each path to make the key, as it is (end it with '/' for a folder)
    #[arg(long, value_name = "PREFIX", default_value = "")]
    pub prefix: OsString,

    /// Compare the content of files even if size and times say that they are unchanged
    #[arg(long)]
    pub compare_content: bool,

    /// For a store that is created.
    #[command(flatten)]
    pub geometry: Geometry,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The directory to write to; made if absent
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,

    /// Only keys that begin with this; it is left off the paths
    #[arg(long, value_name = "PREFIX", default_value = "")]
    pub prefix: OsString,

    /// Replace files that exist with other content
    #[arg(long)]
    pub overwrite: bool,
}

/// Arguments of `put`.
#[derive(Debug, Args)]
pub struct PutArgs {
    /// The blob's key
    pub key: OsString,

    /// The file to read; - is standard input
    #[arg(default_value = "-")]
    pub file: PathBuf,

    /// Only if the key does not exist
    #[arg(long, conflicts_with = "if_etag")]
    pub if_absent: bool,

    /// Only if the blob exists with this ETag
    #[arg(long, value_name = "ETAG", value_parser = parse_etag)]
    pub if_etag: Option<ETag>,

    /// Make a blob of this size, none of it written yet
    #[arg(long, value_name = "SIZE", value_parser = parse, conflicts_with_all = ["file", "range"])]
    pub hole: Option<u64>,

    /// Put the bytes there, in a blob that there is: from A on, and up to B if it is given
    #[arg(long, value_name = "A..[B]", value_parser = parse_range, conflicts_with = "if_absent")]
    pub range: Option<ByteRange>,

    /// What is done with a range that ends past the end of the blob [default: refuse]
    #[arg(
        long,
        value_name = "WHAT",
        value_enum,
        requires = "range",
        conflicts_with_all = ["hole", "if_absent"]
    )]
    pub past_end: Option<PastTheEnd>,

    /// In how many sectors the blob is to lie, if that is more than the store's number (1 to 64)
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=i64::from(REPLICAS_MAX)),
        conflicts_with = "range"
    )]
    pub replicas: Option<u16>,
}

/// What is done with a range that ends past the end of the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PastTheEnd {
    /// It is an error.
    Refuse,
    /// The blob grows, if the range begins at its end or before.
    Extend,
    /// The blob grows; what lies between is a hole.
    Sparse,
}

/// What `multipart` does.
#[derive(Debug, Subcommand)]
pub enum Multipart {
    /// Begin an upload, and print its id
    Start {
        /// The key that the blob will have
        key: OsString,
    },
    /// Put a part, from a file or standard input; one with the same number is replaced
    Part {
        /// The upload's id
        #[arg(value_parser = parse_upload)]
        upload: UploadId,

        /// The part's number, 1 to 10000
        #[arg(value_parser = parse_part_number)]
        number: u16,

        /// The file to read; - is standard input
        #[arg(default_value = "-")]
        file: PathBuf,
    },
    /// Make the blob: of all parts, or of those that are named
    Complete {
        /// The upload's id
        #[arg(value_parser = parse_upload)]
        upload: UploadId,

        /// Numbers of parts, in ascending order; with their ETags, as ls shows them, the same call may
        /// be repeated, and gives the same answer [default: all there are]
        #[arg(value_name = "NUMBER[=ETAG]", value_parser = parse_part)]
        parts: Vec<(u16, Option<ETag>)>,

        /// If there are no parts, make an empty blob
        #[arg(long)]
        allow_empty: bool,

        /// Only if the key does not exist
        #[arg(long)]
        if_absent: bool,
    },
    /// Give an upload up, and all of its parts
    Abort {
        /// The upload's id
        #[arg(value_parser = parse_upload)]
        upload: UploadId,
    },
    /// List the uploads that are open, or the parts of one
    Ls {
        /// The upload's id
        #[arg(value_parser = parse_upload)]
        upload: Option<UploadId>,
    },
    /// Abort the uploads that nothing was put into for so many hours
    Sweep {
        /// Hours
        hours: u64,
    },
}

fn parse_part_number(text: &str) -> Result<u16, String> {
    let number = text.parse().ok();
    number
        .filter(|number| PART_NUMBERS.contains(number))
        .ok_or_else(|| "expected a number from 1 to 10000".to_owned())
}

fn parse_part(text: &str) -> Result<(u16, Option<ETag>), String> {
    match text.split_once('=') {
        Some((number, etag)) => Ok((parse_part_number(number)?, Some(parse_etag(etag)?))),
        None => Ok((parse_part_number(text)?, None)),
    }
}

fn parse_upload(text: &str) -> Result<UploadId, String> {
    text.parse()
        .map_err(|_| "expected 16 hex digits, as start and ls show them".to_owned())
}

/// What `sectors` does.
#[derive(Debug, Subcommand)]
pub enum Sectors {
    /// List the sectors
    Ls,
    /// Add one
    Add(NewSectorArgs),
    /// Make a sector larger
    Grow {
        /// The sector's number
        sector: u16,

        /// Its new size, such as 128GiB; rounded down to whole segments [default: all of the device]
        #[arg(value_name = "SIZE", value_parser = parse_positive)]
        size: Option<u64>,
    },
    /// Make everything that a sector holds anew in others; it gets nothing more
    Drain {
        /// The sector's number
        sector: u16,
    },
    /// End a drain: the sector keeps what it has, and gets more
    Undrain {
        /// The sector's number
        sector: u16,
    },
    /// Take a sector away that nothing needs: drained, missing or broken, or what it has is elsewhere
    ///
    /// Its file is deleted, unless it was added with --file. A device is taken for no sector any more.
    Remove {
        /// The sector's number
        sector: u16,

        /// Even if blobs have too few replicas then, or are lost; also if the store does not open without it
        #[arg(long)]
        accept_loss: bool,

        /// Others that are missing, too, and whose loss is accepted (may be repeated)
        #[arg(long, value_name = "SECTOR", requires = "accept_loss")]
        without: Vec<u16>,
    },
    /// Add a sector in the place of another, move everything there, and take the other away
    ///
    /// If it is cut short, run it again: once the new sector is there, the other is being drained, and no
    /// further one is added for it.
    Replace {
        /// The number of the one that goes; it may be missing or broken
        sector: u16,

        /// Even if blobs are lost with it; also if the store does not open without it
        #[arg(long)]
        accept_loss: bool,

        /// Others that are missing, too, and whose loss is accepted (may be repeated)
        #[arg(long, value_name = "SECTOR", requires = "accept_loss")]
        without: Vec<u16>,

        /// The one that comes.
        #[command(flatten)]
        new: NewSectorArgs,
    },
    /// Write the store file anew, which was lost or damaged, from the copies that the sectors hold
    ///
    /// Sectors are looked for in the store's directory, which may be a new one, and where they were. A
    /// store file that is of no use is kept as graviton.toml.damaged. Where a sector is missing, nobody knows
    /// what it alone was told last: the store opens without it once its loss is accepted (sectors
    /// remove|replace --accept-loss).
    Recover {
        /// Sectors that lie elsewhere now
        files: Vec<PathBuf>,
    },
    /// Say what fails together with a sector, what kind it is, and what it costs
    ///
    /// What is not named here is said of it no more.
    Label {
        /// The sector's number
        sector: u16,

        /// All of what is said of it from now on.
        #[command(flatten)]
        labels: LabelArgs,
    },
}

/// Arguments of `scrub`.
#[derive(Debug, Args)]
pub struct ScrubArgs {
    /// How much is read of each replica
    #[arg(long, value_name = "DEPTH", value_enum, default_value_t)]
    pub depth: Depth,

    /// The most that is read in a second, such as 20MiB [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_positive)]
    pub rate: Option<u64>,

    /// Make what is damaged anew: replicas of others, the rest of what can be read
    #[arg(long)]
    pub repair: bool,
}

/// How much a scrub reads of each replica.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Depth {
    /// Looks at the index alone.
    Index,
    /// Reads the front of each record, superblocks, checkpoints, and the headers of segments and frames.
    Headers,
    /// Reads every byte.
    #[default]
    Everything,
}

/// A sector that comes.
#[derive(Debug, Args)]
pub struct NewSectorArgs {
    /// Its size, such as 64GiB; rounded down to whole segments [default: all of the device, or that of
    /// the largest]
    #[arg(long, value_name = "SIZE", value_parser = parse_positive)]
    pub size: Option<u64>,

    /// Its file, which must not exist, or a block device [default: a file in the store's directory]
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Even if there is something on the device: it is lost
    #[arg(long, requires = "file")]
    pub overwrite: bool,

    /// What is said of it.
    #[command(flatten)]
    pub labels: LabelArgs,
}

/// What is said of a sector.
#[derive(Debug, Args)]
pub struct LabelArgs {
    /// What fails together with it
    #[arg(long, value_name = "NAME")]
    pub rack: Option<String>,

    /// What kind of storage it is
    #[arg(long, value_name = "NAME")]
    pub tier: Option<String>,

    /// What it costs: per GiB and month, per GiB read, per GiB written
    #[arg(long, value_name = "STORAGE,READ,WRITE", value_parser = parse_price)]
    pub price: Option<Price>,
}

fn parse_price(text: &str) -> Result<Price, String> {
    let parts: Result<Vec<f64>, _> = text.split(',').map(str::parse).collect();
    match parts.as_deref() {
        Ok(&[storage, read, write]) => {
            Price::new(storage, read, write).map_err(|error| error.to_string())
        }
        _ => Err("expected three numbers such as 0.08,0,0.01".to_owned()),
    }
}

/// Arguments of `ranges`.
#[derive(Debug, Args)]
pub struct RangesArgs {
    /// The blob's key, or that of bytes held elsewhere
    pub key: OsString,

    /// Bytes that are held somewhere else
    #[arg(long)]
    pub elsewhere: bool,

    /// These are complete from now on
    #[arg(long, value_name = "A..B,C..D", requires = "elsewhere", value_parser = parse_set)]
    pub mark: Option<RangeSet>,

    /// With --mark: how many bytes there will be; once it is said it stays
    #[arg(long, value_name = "SIZE", requires = "mark", conflicts_with = "forget", value_parser = parse)]
    pub total: Option<u64>,

    /// Forget the key
    #[arg(long, requires = "elsewhere", conflicts_with = "mark")]
    pub forget: bool,
}

fn parse_set(text: &str) -> Result<RangeSet, String> {
    text.parse()
        .map_err(|_| "expected ranges such as 0..4096,8192..12288".to_owned())
}

/// Arguments of `attrs`.
#[derive(Debug, Args)]
pub struct AttrsArgs {
    /// The blob's key
    pub key: OsString,

    /// Attributes to be set: the name ends at the first '='
    #[arg(value_name = "NAME=VALUE", value_parser = OsStringValueParser::new().try_map(parse_attribute))]
    pub set: Vec<(String, OsString)>,

    /// An attribute to be removed, if it is there; may be given several times
    #[arg(long, value_name = "NAME")]
    pub remove: Vec<String>,

    /// Remove all others
    #[arg(long, conflicts_with = "remove")]
    pub replace: bool,

    /// Who says so: kept with what is set to another value than it had
    #[arg(long, value_name = "WHO", default_value = "graviton")]
    pub source: String,

    /// Only if the blob has this ETag
    #[arg(long, value_name = "ETAG", value_parser = parse_etag)]
    pub if_etag: Option<ETag>,

    /// Show where the blob's bytes lie, too
    #[arg(long)]
    pub entries: bool,
}

fn parse_attribute(argument: OsString) -> Result<(String, OsString), String> {
    let bytes = argument.as_bytes();
    let wrong = "expected NAME=VALUE, the name in UTF-8";
    let at = bytes.iter().position(|&byte| byte == b'=').ok_or(wrong)?;
    let name = std::str::from_utf8(&bytes[..at]).map_err(|_| wrong)?;
    let value = OsString::from_vec(bytes[at + 1..].to_vec());
    Ok((name.to_owned(), value))
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// The blob's key
    pub key: OsString,

    /// The file to write; - is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,

    /// Only these bytes: from A up to, not including, B; either may be left out
    #[arg(long, value_name = "A..B", value_parser = parse_range)]
    pub range: Option<ByteRange>,

    /// Bytes that were never written are zeros
    #[arg(long)]
    pub zeros: bool,
}

/// One key.
#[derive(Debug, Args)]
pub struct KeyArg {
    /// The blob's key
    pub key: OsString,
}

/// Arguments of `ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Only keys that begin with this
    #[arg(default_value = "")]
    pub prefix: OsString,

    /// Show size, time of modification and ETag too
    #[arg(short, long)]
    pub long: bool,

    /// Fold keys that contain this after the prefix into one line
    #[arg(short, long, value_name = "TEXT")]
    pub delimiter: Option<OsString>,

    /// Only keys greater than this one
    #[arg(long, value_name = "KEY")]
    pub start_after: Option<OsString>,

    /// At most so many lines
    #[arg(long, value_name = "N")]
    pub max: Option<u64>,
}

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// The keys
    #[arg(required = true, value_name = "KEY")]
    pub keys: Vec<OsString>,
}

/// Arguments of `cp` and `mv`.
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// The key there is
    pub source: OsString,

    /// The key there will be; a blob that has it is replaced
    pub target: OsString,

    /// Only if the target does not exist
    #[arg(long)]
    pub if_absent: bool,
}

/// Arguments of `map`.
#[derive(Debug, Args)]
pub struct MapArgs {
    /// Write the picture to this file as SVG; - is standard output
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// Arguments of `dump`.
#[derive(Debug, Args)]
pub struct DumpArgs {
    /// What to show.
    #[command(subcommand)]
    pub what: DumpWhat,

    /// Only this sector
    #[arg(long, value_name = "N", global = true)]
    pub sector: Option<u16>,
}

/// What `dump` shows.
#[derive(Debug, Subcommand)]
pub enum DumpWhat {
    /// All copies of the superblock
    Superblock,
    /// All copies of the store file
    StoreFile,
    /// The header of each segment
    Segments {
        /// Only this segment
        #[arg(long, value_name = "N")]
        segment: Option<u32>,
    },
    /// The frames of the log, and the records in them
    Frames {
        /// Only those of this segment
        #[arg(long, value_name = "N")]
        segment: Option<u32>,
    },
    /// The records of a blob, the newest first
    Record {
        /// The blob's key
        key: OsString,
    },
    /// Checkpoint roots, and the checkpoints they name
    Checkpoint {
        /// Also the entries of the checkpoint that a recovery begins with
        #[arg(long)]
        entries: bool,

        /// At most so many entries
        #[arg(short = 'n', long, value_name = "N", requires = "entries")]
        max: Option<u64>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_grouped_list_names_every_command() {
        for command in Cli::command().get_subcommands() {
            let line = COMMANDS
                .lines()
                .find_map(|line| line.trim_start().strip_prefix(command.get_name()))
                .unwrap_or_else(|| panic!("{} is missing", command.get_name()));
            let about = command.get_about().expect("has one").to_string();
            assert!(
                about.starts_with(line.trim()),
                "{}: {about}",
                command.get_name()
            );
        }
    }

    #[test]
    fn options_work_before_and_after_the_command() {
        for line in [
            ["graviton", "--json", "--store", "s", "info"],
            ["graviton", "info", "--store", "s", "--json"],
        ] {
            let cli = Cli::try_parse_from(line).expect("parses");
            assert!(cli.global.json);
            assert_eq!(cli.global.store, PathBuf::from("s"));
        }
    }
}
