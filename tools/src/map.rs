//! `map`: each sector as a picture, a cell for each segment.
//!
//! A sector with more segments than the picture has cells shows several in one.

use std::fmt::Write as _;
use std::io::Write as _;

use graviton_engine::store::{SectorInfo, SegmentInfo, SegmentState};
use serde_json::{Value, json};

use crate::cli::MapArgs;
use crate::failure::Failure;
use crate::files::replace_file;
use crate::output::{Output, count};
use crate::session::Session;
use crate::size::Human;
use crate::stores::percent;
use crate::svg;

/// Cells in a row: with this many, addresses are easy to count out.
pub const COLUMNS: usize = 64;
/// Rows that still are a picture, and not a scroll.
const ROWS_MAX: usize = 32;

/// `map`.
pub fn run(session: &Session, args: &MapArgs) -> Result<(), Failure> {
    let output = &session.output;
    let to_stdout = args
        .svg
        .as_ref()
        .is_some_and(|path| path.as_os_str() == "-");
    if to_stdout && output.is_json() {
        return Err(Failure::usage(
            "map with --json needs --svg FILE: standard output can't hold both",
        ));
    }
    let ((info, sectors), refused) = session.inspect(|store| {
        let info = store.info();
        let sectors: Vec<(SectorInfo, Vec<SegmentInfo>)> = info
            .sectors
            .iter()
            // Of one that can't be used there is nothing to draw.
            .filter(|sector| sector.segment_count > 0)
            .map(|sector| (sector.clone(), store.segments(sector.number)))
            .collect();
        Ok((info, sectors))
    })?;
    if let Some(why) = refused {
        output.note(why, None);
    }
    let is_drawn = |number| sectors.iter().any(|(sector, _)| sector.number == number);
    for sector in info
        .sectors
        .iter()
        .filter(|sector| !is_drawn(sector.number))
    {
        let (number, state) = (sector.number, sector.state);
        output.note(
            format!("sector {number} is {state}: it is not in the picture"),
            None,
        );
    }
    let pictures: Vec<Picture> = sectors
        .iter()
        .map(|(sector, segments)| Picture::of(sector, segments))
        .collect();
    if let Some(path) = &args.svg {
        let drawing = svg::draw(&info, &pictures);
        if to_stdout {
            return output.raw(drawing.as_bytes());
        }
        replace_file(path, |file| {
            file.write_all(drawing.as_bytes())
                .map_err(|error| Failure::file("write", path, &error))
        })?;
        output.object(&json!({"svg": path.to_string_lossy()}))?;
        return output.line(format!("drawn to {}", path.display()));
    }
    let objects: Vec<Value> = sectors
        .iter()
        .map(|(sector, segments)| sector_json(sector, segments))
        .collect();
    output.object(&json!({"sectors": objects}))?;
    let colours = output.is_terminal() && wants_colours();
    for picture in &pictures {
        output.line(picture.in_text(output, colours))?;
    }
    output.line(legend(colours))
}

/// Whether the terminal may be coloured, as far as its environment says.
fn wants_colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    !refused && !dumb
}

fn sector_json(sector: &SectorInfo, segments: &[SegmentInfo]) -> Value {
    let segments: Vec<Value> = segments
        .iter()
        .map(|segment| {
            json!({"index": segment.index, "state": state_name(segment.state),
                "generation": segment.generation, "written": segment.written,
                "live": segment.live})
        })
        .collect();
    json!({"number": sector.number, "segment_size": sector.segment_size, "segments": segments})
}

fn state_name(state: SegmentState) -> &'static str {
    match state {
        SegmentState::Free => "free",
        SegmentState::Open => "open",
        SegmentState::Sealed => "sealed",
        SegmentState::Reclaimed => "reclaimed",
        SegmentState::Checkpoint => "checkpoint",
        _ => "unknown",
    }
}

/// What a cell mostly tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing is written here.
    Free,
    /// The log's end lies here.
    Open,
    /// Live records, and garbage.
    Used,
    /// Garbage only, soon free.
    Reclaimed,
    /// A checkpoint.
    Checkpoint,
}

/// What of a segment is drawn.
#[derive(Debug, Clone, Copy)]
struct Segment {
    index: u32,
    state: SegmentState,
    written: u64,
    live: u64,
}

impl From<&SegmentInfo> for Segment {
    fn from(info: &SegmentInfo) -> Self {
        Self {
            index: info.index,
            state: info.state,
            written: info.written,
            live: info.live,
        }
    }
}

/// One or a few segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// The first segment.
    pub first: u32,
    /// The last segment.
    pub last: u32,
    /// What it mostly tells.
    pub kind: Kind,
    /// Bytes of its segments.
    pub total: u64,
    /// Bytes written.
    pub written: u64,
    /// Bytes of live records.
    pub live: u64,
}

impl Cell {
    fn of(segments: &[Segment], segment_size: u64) -> Self {
        let has = |state| segments.iter().any(|segment| segment.state == state);
        // The rarer thing is the one worth seeing.
        let kind = if has(SegmentState::Open) {
            Kind::Open
        } else if has(SegmentState::Checkpoint) {
            Kind::Checkpoint
        } else if has(SegmentState::Sealed) {
            Kind::Used
        } else if has(SegmentState::Reclaimed) {
            Kind::Reclaimed
        } else {
            Kind::Free
        };
        let add =
            |figure: fn(&Segment) -> u64| segments.iter().map(figure).fold(0, u64::saturating_add);
        let segment_count = u64::try_from(segments.len()).unwrap_or(u64::MAX);
        Self {
            first: segments.first().map_or(0, |segment| segment.index),
            last: segments.last().map_or(0, |segment| segment.index),
            kind,
            total: segment_size.saturating_mul(segment_count),
            written: add(|segment| match segment.state {
                SegmentState::Free => 0,
                _ => segment.written,
            }),
            live: add(|segment| match segment.state {
                SegmentState::Open | SegmentState::Sealed => segment.live,
                _ => 0,
            }),
        }
    }

    /// Its live share of what is written, in parts of `whole`.
    pub fn live_share(&self, whole: u64) -> u64 {
        share(self.live, self.written, whole)
    }

    fn symbol(&self) -> char {
        match self.kind {
            Kind::Free => '.',
            Kind::Open => 'o',
            Kind::Reclaimed => 'r',
            Kind::Checkpoint => 'C',
            Kind::Used => match self.live_share(100) {
                95.. => '#',
                tenths => char::from(b'0' + u8::try_from(tenths / 10).unwrap_or(9)),
            },
        }
    }

    /// Escape sequence and character.
    fn coloured(&self) -> (&'static str, char) {
        const LEVELS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let level = |eighths: u64| LEVELS[usize::try_from(eighths).unwrap_or(8).min(8)];
        match self.kind {
            Kind::Free => (GREY, '·'),
            Kind::Open => (YELLOW, level(share(self.written, self.total, 8).max(1))),
            Kind::Reclaimed => (RED, '░'),
            Kind::Checkpoint => (BLUE, '█'),
            Kind::Used => (GREEN_ON_RED, level(self.live_share(8))),
        }
    }
}

const RESET: &str = "\x1b[0m";
const GREY: &str = "\x1b[0;38;5;244m";
const YELLOW: &str = "\x1b[0;38;5;220;48;5;238m";
const RED: &str = "\x1b[0;38;5;131m";
const BLUE: &str = "\x1b[0;38;5;68m";
const GREEN_ON_RED: &str = "\x1b[0;38;5;71;48;5;131m";

/// `part` of `of`, in parts of `whole`, rounded.
fn share(part: u64, of: u64, whole: u64) -> u64 {
    if of == 0 {
        return 0;
    }
    let parts = (u128::from(part) * u128::from(whole) + u128::from(of / 2)) / u128::from(of);
    u64::try_from(parts).unwrap_or(whole).min(whole)
}

/// One sector, cut into cells.
#[derive(Debug)]
pub struct Picture {
    /// The sector.
    pub sector: SectorInfo,
    /// Segments in each cell (fewer in the last).
    pub per_cell: usize,
    /// The cells, by address.
    pub cells: Vec<Cell>,
}

impl Picture {
    fn of(sector: &SectorInfo, segments: &[SegmentInfo]) -> Self {
        let segments: Vec<Segment> = segments.iter().map(Segment::from).collect();
        let per_cell = segments.len().div_ceil(COLUMNS * ROWS_MAX).max(1);
        Self {
            sector: sector.clone(),
            per_cell,
            cells: segments
                .chunks(per_cell)
                .map(|chunk| Cell::of(chunk, sector.segment_size))
                .collect(),
        }
    }

    /// What a cell stands for: `a cell is a segment of 8.0 MiB`.
    pub fn scale(&self) -> String {
        let size = Human(self.sector.segment_size);
        match self.per_cell {
            1 => format!("a cell is a segment of {size}"),
            number => format!("a cell is {number} segments of {size}"),
        }
    }

    /// Its heading: number, size, segments.
    pub fn title(&self) -> String {
        format!(
            "sector {}: {}, {}",
            self.sector.number,
            Human(self.sector.space.total),
            count(u64::from(self.sector.segment_count), "segment", "segments"),
        )
    }

    fn in_text(&self, output: &Output, colours: bool) -> String {
        let space = &self.sector.space;
        let mut text = format!("{}; {}\n", self.title(), self.scale());
        for (name, bytes) in [
            ("live", space.live),
            ("garbage", space.garbage),
            ("metadata", space.metadata),
            ("free", space.free),
        ] {
            let share = percent(bytes, space.total);
            let _ = write!(text, "{name} {} ({share})  ", output.bytes(bytes));
        }
        text.truncate(text.trim_end().len());
        text.push_str("\n\n");
        for (row, cells) in self.cells.chunks(COLUMNS).enumerate() {
            let _ = write!(text, "{:>8}  ", row * COLUMNS * self.per_cell);
            let mut last = "";
            for cell in cells {
                if colours {
                    let (colour, symbol) = cell.coloured();
                    if colour != last {
                        text.push_str(colour);
                        last = colour;
                    }
                    text.push(symbol);
                } else {
                    text.push(cell.symbol());
                }
            }
            if colours {
                text.push_str(RESET);
            }
            text.push('\n');
        }
        text
    }
}

fn legend(colours: bool) -> String {
    if colours {
        return format!(
            "{GREEN_ON_RED}▄{RESET} live on garbage   {YELLOW}▄{RESET} open: the log's end   \
             {BLUE}█{RESET} checkpoint   {RED}░{RESET} reclaimed, soon free   {GREY}·{RESET} free"
        );
    }
    "# live   0-9 live in tenths, the rest garbage   o open: the log's end   C checkpoint   \
     r reclaimed, soon free   . free"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(state: SegmentState, written: u64, live: u64) -> Segment {
        Segment {
            index: 0,
            state,
            written,
            live,
        }
    }

    #[test]
    fn cells_show_what_lies_in_them() {
        let symbol = |segments: &[Segment]| Cell::of(segments, 100).symbol();
        let free = segment(SegmentState::Free, 0, 0);
        let sealed = |live| segment(SegmentState::Sealed, 100, live);
        assert_eq!(symbol(&[free]), '.');
        assert_eq!(symbol(&[sealed(100)]), '#');
        assert_eq!(symbol(&[sealed(57)]), '5');
        assert_eq!(symbol(&[sealed(0)]), '0');
        assert_eq!(symbol(&[free, sealed(100)]), '#');
        assert_eq!(symbol(&[sealed(100), sealed(0)]), '5');
        assert_eq!(
            symbol(&[sealed(100), segment(SegmentState::Open, 10, 10)]),
            'o'
        );
        assert_eq!(symbol(&[]), '.');
    }

    #[test]
    fn shares_are_rounded_and_bounded() {
        assert_eq!(share(1, 2, 8), 4);
        assert_eq!(share(0, 0, 8), 0);
        assert_eq!(share(9, 3, 8), 8);
        assert_eq!(share(u64::MAX, u64::MAX, 100), 100);
    }
}
