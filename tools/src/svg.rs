//! The map as SVG: one file, no scripts, readable on light and dark pages.

use std::fmt::Write as _;

use graviton_engine::store::{Space, StoreInfo};

use crate::map::{COLUMNS, Cell, Kind, Picture};
use crate::output::count;
use crate::size::Human;
use crate::stores::percent;

const CELL: usize = 12;
const PITCH: usize = 14;
const LEFT: usize = 80;
const WIDTH: usize = LEFT + COLUMNS * PITCH + 24;
/// Of the figure bar above each grid.
const BAR_HEIGHT: usize = 14;

const LIVE: &str = "#4c9a5f";
const GARBAGE: &str = "#c8705a";
const FREE: &str = "#e6e9ec";
const OPEN: &str = "#e3b341";
const CHECKPOINT: &str = "#4a7bb5";
const RECLAIMED: &str = "#e3b9ae";

/// Draws all sectors.
pub fn draw(info: &StoreInfo, pictures: &[Picture]) -> String {
    let mut body = String::new();
    let mut y = 86;
    for picture in pictures {
        y = draw_sector(&mut body, picture, y);
    }
    y = draw_legend(&mut body, y);
    let title = escape(&format!("Graviton store {}", info.path.display()));
    let subtitle = escape(&format!(
        "{}, {} of content; LSN {}; {}",
        count(info.blobs, "blob", "blobs"),
        Human(info.logical_bytes),
        info.lsn,
        if info.health.is_empty() {
            "healthy"
        } else {
            "NOT HEALTHY"
        }
    ));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" width=\"{WIDTH}\" \
         height=\"{y}\" font-family=\"system-ui, sans-serif\" role=\"img\">\n\
         <title>{title}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"24\" y=\"38\" font-size=\"20\" font-weight=\"600\" fill=\"#1f2328\">{title}</text>\n\
         <text x=\"24\" y=\"60\" font-size=\"13\" fill=\"#59636e\">{subtitle}</text>\n\
         {body}</svg>\n"
    )
}

/// Draws one sector from `y` down; returns where the next thing begins.
fn draw_sector(body: &mut String, picture: &Picture, y: usize) -> usize {
    let heading = escape(&format!("{}; {}", picture.title(), picture.scale()));
    let mut y = y + 16;
    let _ = writeln!(
        body,
        "<text x=\"24\" y=\"{y}\" font-size=\"14\" font-weight=\"600\" fill=\"#1f2328\">{heading}</text>"
    );
    y += 12;
    draw_bar(body, &picture.sector.space, y);
    y += BAR_HEIGHT + 18;
    let _ = writeln!(
        body,
        "<text x=\"24\" y=\"{y}\" font-size=\"12\" fill=\"#59636e\">{}</text>",
        figures(&picture.sector.space)
    );
    y += 16;
    for (row, cells) in picture.cells.chunks(COLUMNS).enumerate() {
        let _ = writeln!(
            body,
            "<text x=\"{}\" y=\"{}\" font-size=\"11\" text-anchor=\"end\" fill=\"#59636e\">{}</text>",
            LEFT - 10,
            y + CELL - 2,
            row * COLUMNS * picture.per_cell
        );
        for (column, cell) in cells.iter().enumerate() {
            draw_cell(body, cell, LEFT + column * PITCH, y);
        }
        y += PITCH;
    }
    y + 20
}

fn figures(space: &Space) -> String {
    let parts = [
        ("live", space.live),
        ("garbage", space.garbage),
        ("metadata", space.metadata),
        ("free", space.free),
    ];
    parts
        .map(|(name, bytes)| {
            let share = escape(&percent(bytes, space.total));
            format!("{name} {} ({share})", Human(bytes))
        })
        .join(" · ")
}

/// The sector's space as one stacked bar.
fn draw_bar(body: &mut String, space: &Space, y: usize) {
    let width = u64::try_from(WIDTH - 48).unwrap_or(u64::MAX);
    let mut done = 0_u64;
    let mut drawn = 0;
    for (bytes, colour) in [
        (space.live, LIVE),
        (space.garbage, GARBAGE),
        (space.metadata, CHECKPOINT),
        (space.free, FREE),
    ] {
        done = done.saturating_add(bytes).min(space.total);
        let end = u128::from(done) * u128::from(width) / u128::from(space.total.max(1));
        let end = u64::try_from(end).unwrap_or(width);
        let _ = writeln!(
            body,
            "<rect x=\"{}\" y=\"{y}\" width=\"{}\" height=\"{BAR_HEIGHT}\" fill=\"{colour}\"/>",
            24 + drawn,
            end - drawn
        );
        drawn = end;
    }
}

fn draw_cell(body: &mut String, cell: &Cell, x: usize, y: usize) {
    let place = if cell.first == cell.last {
        format!("segment {}", cell.first)
    } else {
        format!("segments {} to {}", cell.first, cell.last)
    };
    let what = match cell.kind {
        Kind::Free => "free".to_owned(),
        Kind::Checkpoint => "checkpoint".to_owned(),
        Kind::Reclaimed => "reclaimed, soon free".to_owned(),
        Kind::Open | Kind::Used => format!(
            "{}{} live, {} garbage, {} not written",
            if cell.kind == Kind::Open {
                "open: "
            } else {
                ""
            },
            Human(cell.live),
            Human(cell.written.saturating_sub(cell.live)),
            Human(cell.total.saturating_sub(cell.written))
        ),
    };
    let _ = write!(body, "<g><title>{place}: {what}</title>");
    let mut rect = |top: usize, height: usize, colour: &str| {
        if height > 0 {
            let _ = write!(
                body,
                "<rect x=\"{x}\" y=\"{}\" width=\"{CELL}\" height=\"{height}\" fill=\"{colour}\"/>",
                y + top
            );
        }
    };
    match cell.kind {
        Kind::Free => rect(0, CELL, FREE),
        Kind::Checkpoint => rect(0, CELL, CHECKPOINT),
        Kind::Reclaimed => rect(0, CELL, RECLAIMED),
        // From the bottom: live, garbage, not written.
        Kind::Open | Kind::Used => {
            let pixels = |bytes: u64| {
                let pixels = u128::from(bytes) * 12 / u128::from(cell.total.max(1));
                usize::try_from(pixels).unwrap_or(CELL).min(CELL)
            };
            let (live, written) = (pixels(cell.live), pixels(cell.written));
            rect(0, CELL, FREE);
            rect(CELL - written, written, GARBAGE);
            rect(CELL - live, live, LIVE);
        }
    }
    if cell.kind == Kind::Open {
        let _ = write!(
            body,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"none\" \
             stroke=\"{OPEN}\" stroke-width=\"2\"/>"
        );
    }
    body.push_str("</g>\n");
}

fn draw_legend(body: &mut String, y: usize) -> usize {
    let mut x = 24;
    for (colour, name) in [
        (LIVE, "live"),
        (GARBAGE, "garbage"),
        (FREE, "free"),
        (OPEN, "open: the log's end"),
        (CHECKPOINT, "checkpoint, metadata"),
        (RECLAIMED, "reclaimed, soon free"),
    ] {
        let _ = writeln!(
            body,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{}\" font-size=\"12\" fill=\"#1f2328\">{name}</text>",
            x + CELL + 6,
            y + CELL - 1
        );
        x += CELL + 6 + name.len() * 7 + 18;
    }
    y + CELL + 24
}

/// The text as XML takes it.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_not_break_the_drawing() {
        assert_eq!(escape("a<b>&\"\x1b"), "a&lt;b&gt;&amp;&quot; ");
    }
}
