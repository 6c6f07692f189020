//! NVMe Qualified Names (Base 2.0, section 4.7).

use std::fmt;
use std::sync::Arc;

/// Longest NQN in bytes, without the terminating zero.
pub const NQN_LEN_MAX: usize = 223;
/// Bytes of an NQN field on the wire, zero-padded.
pub const NQN_FIELD_LEN: usize = 256;
/// The well-known name of every discovery subsystem (Base 2.0, section 3.1.2.3).
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// A name that was checked: valid UTF-8, `nqn.` in front, 5 to 223 bytes, no control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nqn(Arc<str>);

/// Why a name is not an NQN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NqnError {
    /// Not 5 to 223 bytes long.
    #[error("an NQN has 5 to 223 bytes, this name has {0}")]
    Length(usize),
    /// The field on the wire has no terminating zero in its first 224 bytes.
    #[error("the NQN field is not terminated")]
    NotTerminated,
    /// Not UTF-8, or with control characters.
    #[error("an NQN is printable UTF-8")]
    Characters,
    /// Does not begin with `nqn.`.
    #[error("an NQN begins with \"nqn.\"")]
    Prefix,
}

impl Nqn {
    /// Checks `name`.
    ///
    /// # Errors
    /// [`NqnError`] says which rule it breaks.
    pub fn new(name: &str) -> Result<Self, NqnError> {
        if name.len() < 5 || name.len() > NQN_LEN_MAX {
            return Err(NqnError::Length(name.len()));
        }
        if !name.starts_with("nqn.") {
            return Err(NqnError::Prefix);
        }
        if name.chars().any(char::is_control) {
            return Err(NqnError::Characters);
        }
        Ok(Self(name.into()))
    }

    /// Checks a zero-padded field from the wire.
    ///
    /// # Errors
    /// [`NqnError`] says which rule it breaks.
    pub fn from_field(field: &[u8; NQN_FIELD_LEN]) -> Result<Self, NqnError> {
        let len = field[..=NQN_LEN_MAX].iter().position(|&b| b == 0);
        let len = len.ok_or(NqnError::NotTerminated)?;
        let name = std::str::from_utf8(&field[..len]).map_err(|_| NqnError::Characters)?;
        Self::new(name)
    }

    /// The well-known discovery name.
    #[must_use]
    pub fn discovery() -> Self {
        Self(DISCOVERY_NQN.into())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as a zero-padded field.
    #[must_use]
    pub fn to_field(&self) -> [u8; NQN_FIELD_LEN] {
        let mut field = [0; NQN_FIELD_LEN];
        field[..self.0.len()].copy_from_slice(self.0.as_bytes());
        field
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Writes `text` into an ASCII field padded with spaces, as serial and model numbers are; characters
/// outside printable ASCII become '?', what does not fit is cut off.
pub fn fill_ascii_field(field: &mut [u8], text: &str) {
    field.fill(b' ');
    for (place, character) in field.iter_mut().zip(text.chars()) {
        *place = if matches!(character, ' '..='~') { character as u8 } else { b'?' };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        assert!(Nqn::new("nqn.2014-08.org.nvmexpress:uuid:1").is_ok());
        assert_eq!(Nqn::new("nqn."), Err(NqnError::Length(4)));
        assert_eq!(Nqn::new(&format!("nqn.{}", "x".repeat(220))), Err(NqnError::Length(224)));
        assert_eq!(Nqn::new("iqn.2014"), Err(NqnError::Prefix));
        assert_eq!(Nqn::new("nqn.a\n"), Err(NqnError::Characters));
        assert_eq!(Nqn::from_field(&[b'n'; 256]), Err(NqnError::NotTerminated));
        let mut field = Nqn::discovery().to_field();
        assert_eq!(Nqn::from_field(&field), Ok(Nqn::discovery()));
        field[6] = 0xff;
        assert_eq!(Nqn::from_field(&field), Err(NqnError::Characters));
    }

    #[test]
    fn ascii_fields_are_padded_and_cut() {
        let mut field = [0; 4];
        fill_ascii_field(&mut field, "aé");
        assert_eq!(&field, b"a?  ");
        fill_ascii_field(&mut field, "abcdef");
        assert_eq!(&field, b"abcd");
    }
}
