//! SQLite, by rusqlite: one table, its log written ahead.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use rusqlite::Connection;

use super::{Kind, Participant, Sizing, Together};
use crate::data::{Blob, KIB};

pub const KIND: Kind = Kind {
    name: "SQLite",
    durability: "WAL, synchronous=FULL: one transaction per put, its log synced",
    together: Together::Batch,
    verification: "none when reading from the database; its log has checksums",
    reads_ranges: true,
    pipelines_gets: false,
    has_state: true,
    open,
};

fn open(directory: &Path, sizing: Sizing) -> Result<Box<dyn Participant>> {
    let sqlite = Sqlite {
        path: directory.join("sqlite"),
        // Large values want large pages, as SQLite's documentation says of blobs.
        page_size: if sizing.blob_size < 64 * KIB {
            4096
        } else {
            16_384
        },
        idle: Mutex::new(Vec::new()),
    };
    let connection = sqlite.take()?;
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS blobs (id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, value BLOB NOT NULL)",
    )?;
    sqlite.put_back(connection);
    Ok(Box::new(sqlite))
}

struct Sqlite {
    path: PathBuf,
    page_size: u32,
    /// A connection serves one thread at a time; those that none uses.
    idle: Mutex<Vec<Connection>>,
}

impl Sqlite {
    fn take(&self) -> Result<Connection> {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        idle.map_or_else(|| self.connect(), Ok)
    }

    fn put_back(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(connection);
    }

    fn connect(&self) -> Result<Connection> {
        let connection = Connection::open(&self.path)?;
        connection.pragma_update(None, "page_size", self.page_size)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        Ok(connection)
    }
}

impl Participant for Sqlite {
    fn put(&self, blob: &Blob) -> Result<()> {
        self.put_together(std::slice::from_ref(blob))
    }

    fn put_together(&self, blobs: &[Blob]) -> Result<()> {
        let mut connection = self.take()?;
        let transaction = connection.transaction()?;
        {
            let mut put = transaction.prepare_cached(
                "INSERT INTO blobs (key, value) VALUES (?1, ?2) \
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            )?;
            for blob in blobs {
                put.execute((&blob.key, &*blob.payload))?;
            }
        }
        transaction.commit()?;
        self.put_back(connection);
        Ok(())
    }

    fn load(&self, blobs: &[Blob]) -> Result<()> {
        self.put_together(blobs)
    }

    fn get(&self, key: &str, look: &mut dyn FnMut(&[u8])) -> Result<()> {
        let connection = self.take()?;
        connection
            .prepare_cached("SELECT value FROM blobs WHERE key = ?1")?
            .query_row([key], |row| {
                look(row.get_ref(0)?.as_blob()?);
                Ok(())
            })?;
        self.put_back(connection);
        Ok(())
    }

    fn get_range(&self, key: &str, range: Range<u64>, look: &mut dyn FnMut(&[u8])) -> Result<()> {
        let connection = self.take()?;
        let id: i64 = connection
            .prepare_cached("SELECT id FROM blobs WHERE key = ?1")?
            .query_row([key], |row| row.get(0))?;
        let mut bytes = vec![0; usize::try_from(range.end - range.start)?];
        connection
            .blob_open("main", "blobs", "value", id, true)?
            .read_at_exact(&mut bytes, usize::try_from(range.start)?)?;
        look(&bytes);
        self.put_back(connection);
        Ok(())
    }

    fn list(&self) -> Result<usize> {
        let connection = self.take()?;
        let mut keys = 0;
        {
            let mut list = connection.prepare_cached("SELECT key FROM blobs ORDER BY key")?;
            let mut rows = list.query([])?;
            while let Some(row) = rows.next()? {
                row.get_ref(0)?.as_str()?;
                keys += 1;
            }
        }
        self.put_back(connection);
        Ok(keys)
    }

    fn delete(&self, key: &str) -> Result<()> {
        let connection = self.take()?;
        connection.execute("DELETE FROM blobs WHERE key = ?1", [key])?;
        self.put_back(connection);
        Ok(())
    }

    fn prepare(&self, threads: usize) -> Result<()> {
        let connections: Result<Vec<Connection>> = (0..threads).map(|_| self.take()).collect();
        for connection in connections? {
            self.put_back(connection);
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        let connection = self.take()?;
        connection.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)")?;
        self.put_back(connection);
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        let idle = self
            .idle
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        for connection in idle {
            connection.close().map_err(|(_, error)| error)?;
        }
        Ok(())
    }
}
