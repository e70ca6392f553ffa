//! The copies of the store file in a sector.

use graviton_format::geometry::STORE_FILE_SLOT_SIZE;
use graviton_format::store_file::StoreFileCopy;
use graviton_format::{FormatError, Structure};
use serde_json::json;

use super::log::Log;
use super::tell::{Teller, rows_json};
use crate::failure::Failure;

/// `dump store-file`.
pub fn dump(teller: &Teller<'_>, log: &Log<'_>) -> Result<(), Failure> {
    for (name, address) in ["front", "back"]
        .into_iter()
        .zip(log.layout.geometry.store_file_copies())
    {
        let bytes = log.disk.peek(address, STORE_FILE_SLOT_SIZE);
        let outcome = StoreFileCopy::decode(&bytes, &log.layout.identity, address);
        let verdict = match &outcome {
            Ok(_) => "good".to_owned(),
            Err(FormatError::Magic { found: 0, .. }) => "never written".to_owned(),
            Err(error) => error.to_string(),
        };
        let rows = StoreFileCopy::rows(&bytes, address);
        teller.line(format!(
            "sector {}: {name} copy of the store file at {address}: {verdict}",
            teller.sector()
        ))?;
        teller.rows(&rows)?;
        let text = outcome.as_ref().ok().map(|(_, text)| *text);
        for line in text.into_iter().flat_map(str::lines) {
            teller.line(format!("  | {line}"))?;
        }
        teller.object(
            "store_file_copy",
            json!({"copy": name, "address": address, "good": outcome.is_ok(),
                "error": outcome.is_err().then_some(&verdict), "text": text,
                "fields": rows_json(&rows)}),
        )?;
        match outcome {
            Ok(_) => {}
            Err(FormatError::Magic { found: 0, .. }) => teller.note(verdict)?,
            Err(_) => teller.damage(address, verdict)?,
        }
    }
    Ok(())
}
