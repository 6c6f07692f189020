//! What is on the members of a pool, for people: without opening it, and as far as it goes when it is
//! damaged.
//!
//! Nothing here writes to a pool. A [`view::View`] reads superblocks, journals and nodes as they lie on the devices
//! and works out by itself what recovery would come to: the trees with the keys of the journal over
//! them. What cannot be read is said and passed over. Every answer is bounded by the limit its caller
//! gives.
//!
//! Answers are [`Item`]s: a tree of named values that a program prints as it likes.

mod describe;
mod files;
pub(crate) mod image;
mod raw;
mod replay;
mod shard;
mod tables;
mod view;

pub use raw::{node, summary, superblock};
pub use shard::{Range, ShardView};
pub use tables::tree_of;
pub use view::View;

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A number.
    Number(u64),
    /// A number that may be negative.
    Signed(i64),
    /// Yes or no.
    Flag(bool),
    /// Text of this program.
    Text(String),
    /// A name or text from the disk: any bytes.
    Name(Vec<u8>),
    /// A UUID.
    Uuid([u8; 16]),
    /// Several.
    List(Vec<Item>),
    /// Named values, in the order to show them.
    Map(Vec<(&'static str, Item)>),
}

impl Item {
    /// A map of one value.
    pub(crate) fn error(why: &impl std::fmt::Display) -> Self {
        Self::Map(vec![("error", Self::Text(why.to_string()))])
    }
}

impl From<u64> for Item {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Item {
    fn from(number: u32) -> Self {
        Self::Number(u64::from(number))
    }
}

impl From<u16> for Item {
    fn from(number: u16) -> Self {
        Self::Number(u64::from(number))
    }
}

impl From<u8> for Item {
    fn from(number: u8) -> Self {
        Self::Number(u64::from(number))
    }
}

impl From<i64> for Item {
    fn from(number: i64) -> Self {
        Self::Signed(number)
    }
}

impl From<i32> for Item {
    fn from(number: i32) -> Self {
        Self::Signed(i64::from(number))
    }
}

impl From<bool> for Item {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<&str> for Item {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// The entries of an answer, up to a limit; the rest is only counted to be left out.
pub(crate) struct Bounded {
    items: Vec<Item>,
    limit: usize,
    cut: bool,
}

impl Bounded {
    pub(crate) fn new(limit: usize) -> Self {
        Self { items: Vec::new(), limit, cut: false }
    }

    /// Takes an item. False: the answer is full, and so is told to be cut.
    pub(crate) fn push(&mut self, item: Item) -> bool {
        if self.items.len() < self.limit {
            self.items.push(item);
            return true;
        }
        self.cut = true;
        false
    }

    /// The items, and a last one when the answer was cut.
    pub(crate) fn into_items(mut self) -> Vec<Item> {
        if self.cut {
            let text = format!("only the first {} are shown", self.limit);
            self.items.push(Item::Map(vec![("cut", Item::Text(text))]));
        }
        self.items
    }
}
