//! Figures of a run: summed up, as a table, as JSON.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::participants::{GRAVITON, Kind};
use crate::rounds::{Entry, LIMIT, Outcome};
use crate::stats::{Spread, percentile};
use crate::works::{Sample, Unit};

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where it was made.
    pub machine: Machine,
    /// Whether it was the quick one.
    pub is_quick: bool,
    /// What was asked of each participant.
    pub participants: Vec<Terms>,
    /// The most bytes that all stores took on disk together.
    pub disk_bytes_max: u64,
    /// What was found, work by work.
    pub works: Vec<Figures>,
}

/// The machine of a run.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// Name and release of its kernel.
    pub kernel: String,
    /// How many threads run at the same time.
    pub processors: usize,
    /// The file system of the directory, with its options.
    pub file_system: String,
    /// How much the kernel reads ahead on its device, in KiB, where that is known.
    pub read_ahead_kib: Option<u64>,
}

/// What a participant promises.
#[derive(Debug, Serialize)]
pub struct Terms {
    name: &'static str,
    durability: &'static str,
    sixteen_in_flight: &'static str,
    verification: &'static str,
}

impl Terms {
    /// Those of a kind.
    pub fn of(kind: &Kind) -> Self {
        Self {
            name: kind.name,
            durability: kind.durability,
            sixteen_in_flight: kind.together.name(),
            verification: kind.verification,
        }
    }
}

/// What was found of a work.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Its name.
    pub name: String,
    /// The family whose chart it is in.
    pub family: &'static str,
    /// What its values are.
    pub unit: &'static str,
    /// Whether more is better.
    pub more_is_better: bool,
    /// What fio makes of the limit.
    pub limit_by_fio: Option<f64>,
    /// Who took part.
    pub rows: Vec<Row>,
    /// Who did not, and why.
    pub omitted: Vec<Omitted>,
}

/// Who did not take part in a work.
#[derive(Debug, Serialize)]
pub struct Omitted {
    participant: &'static str,
    why: String,
}

/// What was found of one participant in a work.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub participant: &'static str,
    /// How it did it.
    pub manner: Option<&'static str>,
    /// Values of its rounds.
    pub value: Spread,
    /// The median of what it reached of the limit, round by round.
    pub of_limit: Option<f64>,
    /// What it reached of the best peer, medians compared; above 1 is better than that.
    pub of_best_peer: Option<f64>,
    /// Half of the operations took no longer, in microseconds.
    pub p50_us: Option<f64>,
    /// 99 of 100 took no longer, in microseconds.
    pub p99_us: Option<f64>,
    /// Bytes read from the device per operation.
    pub read_per_operation: Option<f64>,
    /// Bytes written per byte of payload.
    pub written_per_byte: Option<f64>,
    /// The same of all that the device was told to write by anybody: journals, and other processes.
    pub device_written_per_byte: Option<f64>,
    /// The values of its rounds.
    pub rounds: Vec<f64>,
}

/// How good `value` is, measured by `other`: above 1 is better.
fn ratio(unit: Unit, value: f64, other: f64) -> Option<f64> {
    let (better, worse) = if unit.is_rate {
        (value, other)
    } else {
        (other, value)
    };
    (worse > 0.0).then(|| better / worse)
}

impl Figures {
    /// Sums a work up.
    pub fn of(outcome: Outcome) -> Self {
        let unit = outcome.work.unit();
        let medians = outcome.entries.iter().filter_map(|entry| {
            let spread = Spread::of(&values(&entry.samples))?;
            Some((entry.participant, spread.median))
        });
        let best_peer = medians
            .filter(|(participant, _)| ![LIMIT, GRAVITON.name].contains(participant))
            .map(|(_, median)| median)
            .reduce(if unit.is_rate { f64::max } else { f64::min });
        let limit = outcome
            .entries
            .iter()
            .find(|entry| entry.participant == LIMIT)
            .map(|entry| values(&entry.samples));
        let rows = outcome
            .entries
            .iter()
            .filter_map(|entry| Row::of(entry, unit, limit.as_deref(), best_peer));
        Self {
            name: outcome.work.name(),
            family: outcome.work.family(),
            unit: unit.name,
            more_is_better: unit.is_rate,
            limit_by_fio: outcome.fio,
            rows: rows.collect(),
            omitted: outcome
                .omissions
                .into_iter()
                .map(|omission| Omitted {
                    participant: omission.participant,
                    why: omission.why,
                })
                .collect(),
        }
    }
}

fn values(samples: &[Sample]) -> Vec<f64> {
    samples.iter().map(|sample| sample.value).collect()
}

impl Row {
    /// Whether it is above the limit, chance aside: either the limit is none, or something served it that the limit
    /// does without.
    fn is_above_limit(&self) -> bool {
        const CHANCE: f64 = 1.1;
        self.of_limit.is_some_and(|of_limit| of_limit > CHANCE)
    }

    fn of(
        entry: &Entry,
        unit: Unit,
        limit: Option<&[f64]>,
        best_peer: Option<f64>,
    ) -> Option<Self> {
        let rounds = values(&entry.samples);
        let value = Spread::of(&rounds)?;
        let of_limit = limit.and_then(|limit| {
            let pairs = rounds.iter().zip(limit);
            let ratios: Vec<f64> = pairs
                .filter_map(|(own, limit)| ratio(unit, *own, *limit))
                .collect();
            Some(Spread::of(&ratios)?.median)
        });
        let mut latencies: Vec<u64> = entry
            .samples
            .iter()
            .flat_map(|sample| sample.latencies.iter().copied())
            .collect();
        latencies.sort_unstable();
        let microseconds = |percent| Some(percentile(&latencies, percent)? as f64 / 1000.0);
        let sum = |of: fn(&Sample) -> u64| entry.samples.iter().map(of).sum::<u64>() as f64;
        let operations = sum(|sample| sample.operations as u64);
        let payload = sum(|sample| sample.payload);
        let (read, written) = (
            sum(|sample| sample.io.read),
            sum(|sample| sample.io.written),
        );
        let device_written = sum(|sample| sample.io.device_written);
        Some(Self {
            participant: entry.participant,
            manner: entry.manner,
            value,
            of_limit,
            of_best_peer: best_peer.and_then(|best| ratio(unit, value.median, best)),
            p50_us: microseconds(50),
            p99_us: microseconds(99),
            read_per_operation: (read > 0.0 && operations > 0.0).then(|| read / operations),
            written_per_byte: (written > 0.0 && payload > 0.0).then(|| written / payload),
            device_written_per_byte: (device_written > 0.0 && written > 0.0 && payload > 0.0)
                .then(|| device_written / payload),
            rounds,
        })
    }
}

/// A number with three significant digits, thousands apart.
pub fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 100.0 {
        return thousands(&format!("{value:.0}"));
    }
    match magnitude {
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn thousands(digits: &str) -> String {
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn optional(value: Option<f64>) -> String {
    value.map(number).unwrap_or_default()
}

/// The figures of a work as a table, a line per participant, with who was left out and why below.
pub fn table(figures: &Figures) -> String {
    let mut text = format!("\n{} ({})\n", figures.name, figures.unit);
    text.push_str(&format!("{}\n", table_of(figures)));
    if let Some(fio) = figures.limit_by_fio {
        text.push_str(&format!("limit by fio: {}\n", number(fio)));
    }
    for row in figures
        .rows
        .iter()
        .filter(|row| figures.more_is_better && row.is_above_limit())
    {
        text.push_str(&format!(
            "{}: above the limit, so what the limit does is not the fastest way here (see README)\n",
            row.participant
        ));
    }
    for omitted in &figures.omitted {
        text.push_str(&format!(
            "without {}: {}\n",
            omitted.participant, omitted.why
        ));
    }
    text
}

fn table_of(figures: &Figures) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header([
        "",
        "median",
        "min .. max",
        "of limit",
        "of best peer",
        "p50 µs",
        "p99 µs",
        "read B/op",
        "written B/B",
        "how",
    ]);
    for row in &figures.rows {
        table.add_row([
            row.participant.to_owned(),
            number(row.value.median),
            format!("{} .. {}", number(row.value.min), number(row.value.max)),
            optional(row.of_limit),
            optional(row.of_best_peer),
            optional(row.p50_us),
            optional(row.p99_us),
            optional(row.read_per_operation),
            optional(row.written_per_byte),
            row.manner.unwrap_or_default().to_owned(),
        ]);
    }
    for column in table.column_iter_mut().skip(1).take(8) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::works::Work;

    fn entry(participant: &'static str, values: &[f64]) -> Entry {
        let sample = |value: &f64| Sample {
            value: *value,
            ..Sample::default()
        };
        Entry {
            participant,
            manner: None,
            samples: values.iter().map(sample).collect(),
        }
    }

    fn figures(work: Work, entries: Vec<Entry>) -> Figures {
        Figures::of(Outcome {
            work,
            entries,
            omissions: Vec::new(),
            fio: None,
            disk_bytes: 0,
        })
    }

    #[test]
    fn a_rate_is_measured_by_the_limit_of_its_round_and_by_the_best_peer() {
        let entries = vec![
            entry(LIMIT, &[100.0, 200.0, 400.0]),
            entry(GRAVITON.name, &[50.0, 150.0, 100.0]),
            entry("one", &[40.0, 50.0, 60.0]),
            entry("other", &[10.0, 10.0, 10.0]),
        ];
        let figures = figures(Work::Put(4096), entries);
        let row = &figures.rows[1];
        assert_eq!(row.of_limit, Some(0.5));
        assert_eq!(row.of_best_peer, Some(2.0));
        assert_eq!(figures.rows[0].of_limit, Some(1.0));
    }

    #[test]
    fn of_times_the_shorter_one_is_the_better_one() {
        let entries = vec![
            entry(GRAVITON.name, &[2.0]),
            entry("one", &[4.0]),
            entry("other", &[8.0]),
        ];
        let figures = figures(Work::Open { is_killed: false }, entries);
        let ratios: Vec<_> = figures.rows.iter().map(|row| row.of_best_peer).collect();
        assert_eq!(ratios, [Some(2.0), Some(1.0), Some(0.5)]);
    }

    #[test]
    fn numbers_are_as_long_as_they_are_precise() {
        assert_eq!(number(1_234_567.8), "1,234,568");
        assert_eq!(number(123.4), "123");
        assert_eq!(number(12.34), "12.3");
        assert_eq!(number(0.1234), "0.12");
    }
}
