//! Where a stream that was cut off goes on.

use std::fmt;
use std::str::FromStr;

use engine_base::checksum::crc32c;
use engine_store::StoreError;
use engine_store::api::SubvolumeInfo;

/// What is being received, and how far it has come; as text 88 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResumeToken {
    /// What the snapshot that is sent holds: see [`crate::content_of`].
    pub source: [u8; 16],
    /// The same of the snapshot to which the stream tells the difference.
    pub base: Option<[u8; 16]>,
    /// Where the stream goes on.
    pub position: u64,
}

const BYTES: usize = 44;

impl ResumeToken {
    /// Of a subvolume that is being received; `None`: it is not.
    #[must_use]
    pub fn of(info: &SubvolumeInfo) -> Option<Self> {
        let received = info.received?;
        let receiving = received.receiving?;
        Some(Self { source: received.source, base: receiving.base, position: receiving.position })
    }
}

impl fmt::Display for ResumeToken {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; BYTES];
        bytes[..16].copy_from_slice(&self.source);
        bytes[16..32].copy_from_slice(&self.base.unwrap_or_default());
        bytes[32..40].copy_from_slice(&self.position.to_le_bytes());
        let crc = crc32c(&bytes[..40]);
        bytes[40..].copy_from_slice(&crc.to_le_bytes());
        bytes.iter().try_for_each(|byte| write!(to, "{byte:02x}"))
    }
}

impl FromStr for ResumeToken {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let bad = || {
            StoreError::invalid(
                "resume token: not one that a subvolume which is being received shows; copy all of it",
            )
        };
        if text.len() != 2 * BYTES || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut bytes = [0; BYTES];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = str::from_utf8(digits).map_err(|_| bad())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
        }
        let (fields, crc) = bytes.split_at(40);
        if crc32c(fields).to_le_bytes() != crc {
            return Err(bad());
        }
        let (source, rest) = fields.split_first_chunk().ok_or_else(bad)?;
        let (base, position) = rest.split_first_chunk::<16>().ok_or_else(bad)?;
        let position = u64::from_le_bytes(position.try_into().map_err(|_| bad())?);
        let base = Some(*base).filter(|base| *base != [0; 16]);
        Ok(Self { source: *source, base, position })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_written_and_no_other_way() {
        for base in [None, Some([7; 16])] {
            let token = ResumeToken { source: [3; 16], base, position: 0x1234_5678_9abc };
            let text = token.to_string();
            assert_eq!(text.len(), 88);
            assert_eq!(text.parse(), Ok(token));
            for at in 0..text.len() {
                let mut wrong = text.clone().into_bytes();
                wrong[at] = if wrong[at] == b'0' { b'1' } else { b'0' };
                let wrong = String::from_utf8(wrong).unwrap();
                assert!(wrong.parse::<ResumeToken>().is_err());
                assert!(text[..at].parse::<ResumeToken>().is_err());
            }
        }
        assert!("é".repeat(44).parse::<ResumeToken>().is_err());
    }
}
