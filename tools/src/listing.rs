//! Listings, page by page, blobs and common prefixes in one order.

use std::ops::ControlFlow;

use graviton_engine::port::{BlobStore, ListEntry, ListRequest};

use crate::failure::Failure;

/// One line of a listing.
#[derive(Debug, Clone)]
pub enum Listed {
    /// A blob.
    Blob(ListEntry),
    /// What the keys folded into it begin with.
    Prefix(Vec<u8>),
}

/// Hands everything that begins with `prefix` to `visit`, in ascending order, until it breaks.
pub fn each(
    store: &dyn BlobStore,
    prefix: &[u8],
    start_after: Option<Vec<u8>>,
    delimiter: Option<Vec<u8>>,
    visit: &mut dyn FnMut(Listed) -> Result<ControlFlow<()>, Failure>,
) -> Result<(), Failure> {
    let mut request = ListRequest::prefix(prefix);
    request.start_after = start_after;
    request.delimiter = delimiter;
    loop {
        let page = store.list(request.clone()).wait()?;
        let mut prefixes = page.common_prefixes.into_iter().peekable();
        for entry in page.blobs {
            while let Some(prefix) =
                prefixes.next_if(|prefix| prefix.as_slice() < entry.key.as_bytes())
            {
                if visit(Listed::Prefix(prefix))?.is_break() {
                    return Ok(());
                }
            }
            if visit(Listed::Blob(entry))?.is_break() {
                return Ok(());
            }
        }
        for prefix in prefixes {
            if visit(Listed::Prefix(prefix))?.is_break() {
                return Ok(());
            }
        }
        match page.next {
            Some(token) => request.token = Some(token),
            None => return Ok(()),
        }
    }
}
