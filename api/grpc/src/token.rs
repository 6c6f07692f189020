//! Page tokens: opaque to clients, checked by us.
//!
//! A token is the hexadecimal form of: checksum (CRC-32C of what follows), scope (CRC-32C of what was
//! listed), position. So a token of another listing, a guessed or a damaged one is refused instead
//! of giving a wrong page.

use std::fmt::Write as _;

use tonic::Status;

use crate::status::bad_field;

const SUM_BYTES: usize = 4;
const SCOPE_BYTES: usize = 4;

/// The token for `position` in the listing named by `scope`.
pub(crate) fn encode(scope: &[u8], position: &[u8]) -> String {
    let mut body = crc32c::crc32c(scope).to_le_bytes().to_vec();
    body.extend_from_slice(position);
    let mut text = String::with_capacity((SUM_BYTES + body.len()) * 2);
    for byte in crc32c::crc32c(&body).to_le_bytes().iter().chain(&body) {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The position in `token`; `None` for an empty token, the start.
pub(crate) fn decode(scope: &[u8], token: &str) -> Result<Option<Vec<u8>>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = unhex(token).filter(|bytes| bytes.len() >= SUM_BYTES + SCOPE_BYTES);
    let parts = bytes.as_deref().and_then(|bytes| {
        let (sum, body) = bytes.split_at_checked(SUM_BYTES)?;
        let (of, position) = body.split_at_checked(SCOPE_BYTES)?;
        let intact = sum == crc32c::crc32c(body).to_le_bytes();
        let ours = of == crc32c::crc32c(scope).to_le_bytes();
        (intact && ours).then(|| position.to_vec())
    });
    parts.map(Some).ok_or_else(|| {
        bad_field("page_token", "is not a token of this listing; start again without one")
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let nibble = |digit: u8| (digit as char).to_digit(16).map(|value| value as u8);
    digits.chunks_exact(2).map(|pair| Some(nibble(pair[0])? << 4 | nibble(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_return_their_position_in_their_listing_only() {
        let token = encode(b"volumes", b"name");
        assert_eq!(decode(b"volumes", &token).unwrap(), Some(b"name".to_vec()));
        assert_eq!(decode(b"volumes", "").unwrap(), None);
        assert!(decode(b"exports", &token).is_err());
        for at in 0..token.len() {
            let mut damaged = token.clone().into_bytes();
            damaged[at] = if damaged[at] == b'0' { b'1' } else { b'0' };
            let damaged = String::from_utf8(damaged).unwrap();
            assert!(decode(b"volumes", &damaged).is_err(), "{damaged}");
        }
        for bad in ["x", "zz", "00", "0011223344556677", "\u{e9}\u{e9}"] {
            assert!(decode(b"volumes", bad).is_err(), "{bad}");
        }
    }
}
