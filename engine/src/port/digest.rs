//! [`Digest`]: a cryptographic digest a caller declares for a blob, and the store confirms.

use std::fmt;
use std::str::FromStr;

use super::error::StorageError;

/// The algorithms known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DigestAlgorithm {
    /// SHA-256 (FIPS 180-4).
    Sha256,
    /// BLAKE3, 256 bits.
    Blake3,
}

impl DigestAlgorithm {
    /// Its name in the text form.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Blake3 => "blake3",
        }
    }
}

/// A digest of 256 bits with its algorithm. Its text form is `sha256:<64 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest {
    /// How it was computed.
    pub algorithm: DigestAlgorithm,
    /// The digest itself.
    pub bytes: [u8; 32],
}

impl Digest {
    /// Computes the digest of `payload`.
    #[must_use]
    pub fn of(algorithm: DigestAlgorithm, payload: &[u8]) -> Self {
        let mut hasher = DigestHasher::new(algorithm);
        hasher.update(payload);
        hasher.finish()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.algorithm.name())?;
        self.bytes
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = StorageError;

    fn from_str(text: &str) -> Result<Self, StorageError> {
        let bad = || {
            StorageError::invalid(format!(
                "digest {text:?}, expected sha256:<64 hex digits> or blake3:<64 hex digits>"
            ))
        };
        let (name, hex) = text.split_once(':').ok_or_else(bad)?;
        let algorithm = [DigestAlgorithm::Sha256, DigestAlgorithm::Blake3]
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
            .ok_or_else(bad)?;
        if hex.len() != 64 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
        }
        Ok(Self { algorithm, bytes })
    }
}

/// Computes a [`Digest`] piece by piece.
#[derive(Debug, Clone)]
pub struct DigestHasher(Inner);

#[derive(Debug, Clone)]
enum Inner {
    Sha256(sha2::Sha256),
    Blake3(Box<blake3::Hasher>),
}

impl DigestHasher {
    /// Starts a digest.
    #[must_use]
    pub fn new(algorithm: DigestAlgorithm) -> Self {
        Self(match algorithm {
            DigestAlgorithm::Sha256 => Inner::Sha256(sha2::Digest::new()),
            DigestAlgorithm::Blake3 => Inner::Blake3(Box::default()),
        })
    }

    /// Takes in the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        match &mut self.0 {
            Inner::Sha256(hasher) => sha2::Digest::update(hasher, piece),
            Inner::Blake3(hasher) => {
                hasher.update(piece);
            }
        }
    }

    /// The digest of everything taken in.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self.0 {
            Inner::Sha256(hasher) => Digest {
                algorithm: DigestAlgorithm::Sha256,
                bytes: sha2::Digest::finalize(hasher).into(),
            },
            Inner::Blake3(hasher) => Digest {
                algorithm: DigestAlgorithm::Blake3,
                bytes: hasher.finalize().into(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digests_round_trip_through_text() {
        for (algorithm, text) in [
            (
                DigestAlgorithm::Sha256,
                "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                DigestAlgorithm::Blake3,
                "blake3:6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
            ),
        ] {
            let digest = Digest::of(algorithm, b"abc");
            assert_eq!(digest.to_string(), text);
            assert_eq!(text.parse::<Digest>().expect("parses"), digest);
        }
    }

    #[test]
    fn bad_text_is_refused() {
        for text in ["", "sha256", "sha256:", "md5:00", "sha256:zz", "blake3:+1"] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
