//! Bar charts as SVG, one per family: a panel for each work, a bar for each participant.

use std::fmt::Write;

use crate::participants::GRAVITON;
use crate::report::{Figures, number};
use crate::rounds::LIMIT;

const WIDTH: usize = 760;
const NAME_WIDTH: usize = 110;
const BAR_WIDTH: usize = 480;
const BAR_HEIGHT: usize = 16;
const LINE: usize = 22;
const TITLE: usize = 30;
const GAP: usize = 14;

/// Colours by role; legible on white and on black, by what the reader prefers.
const STYLE: &str = "\
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 }
.limit { fill: #8c959f }
.graviton { fill: #0969da }
.peer { fill: #bf8700 }
.spread { stroke: #1f2328; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.limit { fill: #6e7681 }
.graviton { fill: #4493f8 }
.peer { fill: #d29922 }
.spread { stroke: #e6edf3 }
}";

/// A chart of the works of a family.
pub fn svg(family: &str, works: &[&Figures]) -> String {
    let mut body = String::new();
    let mut top = GAP;
    for figures in works {
        top = panel(&mut body, figures, top);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top}\" width=\"{WIDTH}\" height=\"{top}\" \
         role=\"img\" aria-label=\"{}\">\n<style>\n{STYLE}\n</style>\n{body}</svg>\n",
        escaped(family)
    )
}

/// Draws one work from `top` down, and says where it ends.
fn panel(body: &mut String, figures: &Figures, top: usize) -> usize {
    let better = if figures.more_is_better {
        "more is better"
    } else {
        "less is better"
    };
    let title = format!("{}: {}, {better}", figures.name, figures.unit);
    text(body, 0, top + 14, "title", &title);
    let most = figures.rows.iter().map(|row| row.value.max);
    let most = most.fold(f64::MIN_POSITIVE, f64::max);
    let place = |value: f64| NAME_WIDTH as f64 + BAR_WIDTH as f64 * value / most;
    let mut line = top + TITLE;
    for row in &figures.rows {
        let class = match row.participant {
            LIMIT => "limit",
            name if name == GRAVITON.name => "graviton",
            _ => "peer",
        };
        let end = place(row.value.median);
        let middle = line + BAR_HEIGHT / 2;
        text(body, 0, line + 13, "name", row.participant);
        shape(
            body,
            &format!(
                "<rect class=\"{class}\" x=\"{NAME_WIDTH}\" y=\"{line}\" width=\"{:.1}\" height=\"{BAR_HEIGHT}\" rx=\"2\"/>",
                end - NAME_WIDTH as f64
            ),
        );
        shape(
            body,
            &format!(
                "<line class=\"spread\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\"/>",
                place(row.value.min),
                place(row.value.max)
            ),
        );
        let label = NAME_WIDTH + BAR_WIDTH + 10;
        let mut value = number(row.value.median);
        if let Some(of_limit) = row.of_limit.filter(|_| row.participant != LIMIT) {
            let _ = write!(value, " ({:.0} % of limit)", of_limit * 100.0);
        }
        text(body, label, line + 13, "value", &value);
        line += LINE;
    }
    line + GAP
}

fn shape(body: &mut String, shape: &str) {
    body.push_str(shape);
    body.push('\n');
}

fn text(body: &mut String, x: usize, y: usize, class: &str, text: &str) {
    let text = escaped(text);
    shape(
        body,
        &format!("<text x=\"{x}\" y=\"{y}\" class=\"{class}\">{text}</text>"),
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// The name of a family's file.
pub fn file_name(family: &str) -> String {
    format!("{}.svg", family.replace(' ', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::{Entry, Outcome};
    use crate::works::{Sample, Work};

    fn figures() -> Figures {
        let entry = |participant, value| Entry {
            participant,
            manner: None,
            samples: vec![Sample {
                value,
                ..Sample::default()
            }],
        };
        Figures::of(Outcome {
            work: Work::Put(4096),
            entries: vec![
                entry(LIMIT, 1000.0),
                entry(GRAVITON.name, 500.0),
                entry("a<b", 250.0),
            ],
            omissions: Vec::new(),
            fio: None,
            disk_bytes: 0,
        })
    }

    #[test]
    fn bars_are_as_long_as_the_values_and_the_longest_is_full() {
        let chart = svg("durable puts", &[&figures()]);
        for (class, width) in [("limit", 480), ("graviton", 240), ("peer", 120)] {
            let bar = chart
                .lines()
                .find(|line| line.contains(&format!("<rect class=\"{class}\"")))
                .expect("there is a bar");
            assert!(bar.contains(&format!("width=\"{width}.0\"")), "{bar}");
        }
        assert!(chart.contains("500 (50 % of limit)"));
    }

    #[test]
    fn names_are_escaped_and_elements_are_closed() {
        let chart = svg("durable puts", &[&figures(), &figures()]);
        assert!(chart.contains("a&lt;b"));
        assert_eq!(
            chart.matches("<text").count(),
            chart.matches("</text>").count()
        );
        assert!(chart.ends_with("</svg>\n"));
    }

    #[test]
    fn a_family_has_a_file_name_without_spaces() {
        assert_eq!(file_name("durable puts"), "durable-puts.svg");
    }
}
