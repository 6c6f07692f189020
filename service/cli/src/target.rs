//! Targets: `name:/path`, a path in a file tree of the pool.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use clap::builder::{OsStringValueParser, TypedValueParser};
use proto::v1::FilePath;

/// A path in a file tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) subvolume: String,
    /// Absolute path in it.
    pub(crate) path: Vec<u8>,
}

impl Target {
    /// Parses `name:/path`.
    pub(crate) fn parse(text: OsString) -> Result<Self, String> {
        let bytes = text.into_vec();
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        let wrong = || format!("'{shown}' must be NAME:/PATH, as in home:/documents");
        let colon = bytes.iter().position(|byte| *byte == b':').ok_or_else(wrong)?;
        let subvolume = String::from_utf8(bytes[..colon].to_vec()).map_err(|_| wrong())?;
        let path = bytes[colon + 1..].to_vec();
        if subvolume.is_empty() || !path.starts_with(b"/") {
            return Err(wrong());
        }
        Ok(Self { subvolume, path })
    }

    /// For clap.
    pub(crate) fn parser() -> impl TypedValueParser<Value = Self> {
        OsStringValueParser::new().try_map(Self::parse)
    }

    /// For a request.
    pub(crate) fn file(&self) -> Option<FilePath> {
        Some(FilePath { subvolume: self.subvolume.clone(), path: self.path.clone() })
    }

    /// What `name` is in this directory.
    pub(crate) fn join(&self, name: &[u8]) -> Self {
        let mut path = self.path.clone();
        if !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Self { subvolume: self.subvolume.clone(), path }
    }

    /// The last name of the path; `None` for the root, "." and "..".
    pub(crate) fn name(&self) -> Option<&[u8]> {
        let name = self.path.split(|byte| *byte == b'/').rfind(|name| !name.is_empty())?;
        (name != b"." && name != b"..").then_some(name)
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.subvolume, String::from_utf8_lossy(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_parsed() {
        let target = Target::parse("home:/a:b/c/".into()).unwrap();
        assert_eq!((target.subvolume.as_str(), target.path.as_slice()), ("home", &b"/a:b/c/"[..]));
        assert_eq!(target.name(), Some(&b"c"[..]));
        assert_eq!(target.join(b"d").to_string(), "home:/a:b/c/d");
        assert_eq!(Target::parse("home:/".into()).unwrap().name(), None);
        assert_eq!(Target::parse("home:/a/..".into()).unwrap().name(), None);
        let odd = Target::parse(OsString::from_vec(b"t:/\xff".to_vec())).unwrap();
        assert_eq!(odd.path, b"/\xff");
        for bad in ["", "home", "home:", ":/a", "home:a", "/a"] {
            assert!(Target::parse(bad.into()).is_err(), "{bad}");
        }
        assert!(Target::parse(OsString::from_vec(b"\xff:/a".to_vec())).is_err());
    }
}
