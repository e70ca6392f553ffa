//! A second opinion of the limit: fio, where it is installed, on the same file.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::data::KIB;
use crate::limit::GROUP;
use crate::works::{Callers, Work};

/// How many operations of a work fio does in a second; `None` without fio, or if there is no limit.
pub fn check(work: Work, file: &Path) -> Option<f64> {
    let (kind, size, per_operation, own) = job(work)?;
    let output = Command::new("fio")
        .args(["--name=limit", "--direct=1", "--time_based", "--runtime=1"])
        .args(["--randrepeat=0", "--thread", "--output-format=json"])
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--rw={kind}"))
        .arg(format!("--bs={size}"))
        .args(own)
        .output()
        .ok()?;
    let report: Value = serde_json::from_slice(&output.stdout).ok()?;
    let direction = if kind == "write" { "write" } else { "read" };
    let per_second = report["jobs"][0][direction]["iops"].as_f64()?;
    Some(per_second * per_operation)
}

/// Kind of transfers, their size, operations of the work in each, and options.
fn job(work: Work) -> Option<(&'static str, usize, f64, Vec<String>)> {
    let durable = || vec!["--ioengine=pvsync2".to_owned(), "--sync=dsync".to_owned()];
    let ring = |depth| {
        vec![
            "--ioengine=io_uring".to_owned(),
            format!("--iodepth={depth}"),
        ]
    };
    Some(match work {
        Work::Put(size) => ("write", size, 1.0, durable()),
        Work::PutTogether(size) if size * GROUP <= 64 * KIB => {
            ("write", size * GROUP, GROUP as f64, durable())
        }
        Work::PutTogether(size) => {
            let mut options = ring(GROUP);
            options.push(format!("--iodepth_batch={GROUP}"));
            options.push(format!("--iodepth_batch_complete_min={GROUP}"));
            options.push(format!("--fdatasync={GROUP}"));
            ("write", size, 1.0, options)
        }
        Work::Get(size, Callers::Threads(depth) | Callers::OneThread(depth)) => {
            ("randread", size, 1.0, ring(depth))
        }
        Work::GetRange => ("randread", 4 * KIB, 1.0, ring(1)),
        _ => return None,
    })
}
