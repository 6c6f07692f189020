//! Transactions: read freely, buffer changes, commit them as one.
//!
//! A transaction remembers which leaves it read and at which sequence number. Commit applies all its
//! changes, or none and says [`StoreError::Restart`] when a leaf it read has changed since; then
//! [`crate::engine::Engine::transact`] runs the whole closure again. So the closure must have no effects
//! but those of the transaction. A transaction sees its own changes.

use std::rc::Rc;

use engine_base::SnapshotId;
use smallvec::SmallVec;

use crate::btree::NodePin;
use crate::engine::Engine;
use crate::error::Result;
use crate::flight::Flight;
use crate::journal::Class;
use crate::key::{Counter, Position, Tree, VALUE_BYTES_MAX, Value};
use crate::version;

/// Most changes of one transaction: bounds the journal space that a commit needs.
pub const UPDATES_MAX: usize = 512;

/// A change of one key: a new value, or `None` to delete it.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    pub(crate) tree: Tree,
    pub(crate) position: Position,
    pub(crate) value: Option<Value>,
    /// An extent whose blocks were just written.
    pub(crate) fresh: bool,
}

/// A change of a counter.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CounterUpdate {
    /// Adds (wrapping two's complement).
    Add(Counter, i64),
    /// Raises to at least this.
    AtLeast(Counter, u64),
}

/// A leaf that was read, and its sequence number then. It stays cached while the transaction lives.
pub(crate) struct ReadMark {
    pub(crate) node: NodePin,
    pub(crate) sequence: u64,
}

/// The leaves that a transaction read; `None`: it only reads, and remembers nothing.
pub(crate) type Reads = Option<SmallVec<[ReadMark; 8]>>;

/// A transaction being built.
pub struct Transaction<'e> {
    pub(crate) engine: &'e Engine,
    /// Whose journal space the commit may take.
    pub(crate) class: Class,
    pub(crate) reads: Reads,
    /// Sorted by (tree, position), one per key.
    pub(crate) updates: SmallVec<[Update; 4]>,
    pub(crate) counters: SmallVec<[CounterUpdate; 4]>,
    /// Data on its way that it names.
    pub(crate) flight: Option<Rc<Flight>>,
}

impl<'e> Transaction<'e> {
    /// A transaction to be committed, or one that only reads.
    pub(crate) fn new(engine: &'e Engine, class: Class, read_only: bool) -> Self {
        let reads = (!read_only).then(SmallVec::new);
        let (updates, counters) = (SmallVec::new(), SmallVec::new());
        Self { engine, class, reads, updates, counters, flight: None }
    }

    /// The engine it belongs to.
    #[must_use]
    pub fn engine(&self) -> &'e Engine {
        self.engine
    }

    /// Changes made so far; a commit takes [`UPDATES_MAX`] at most.
    #[must_use]
    pub fn update_count(&self) -> usize {
        self.updates.len()
    }

    /// The value at `position`.
    ///
    /// # Errors
    /// When a node cannot be read, or `Restart`.
    pub async fn get(&mut self, tree: Tree, position: Position) -> Result<Option<Value>> {
        Ok(self.next(tree, position, position).await?.map(|(_, value)| value))
    }

    /// What the version of `position` sees there: its own value, or that of the nearest version above.
    ///
    /// # Errors
    /// When a node cannot be read, or `Restart`.
    pub(crate) async fn seen(&mut self, tree: Tree, position: Position) -> Result<Option<Value>> {
        match self.engine.versions.view(SnapshotId(position.snapshot)) {
            None => self.get(tree, position).await,
            Some(view) => self.nearest(tree, position, view.ids()).await,
        }
    }

    /// What the version of `position` sees there of those above it.
    ///
    /// # Errors
    /// When a node cannot be read, or `Restart`.
    pub(crate) async fn seen_above(
        &mut self,
        tree: Tree,
        position: Position,
    ) -> Result<Option<Value>> {
        match self.engine.versions.view(SnapshotId(position.snapshot)) {
            None => Ok(None),
            Some(view) => self.nearest(tree, position, view.above()).await,
        }
    }

    /// The value at the place of `position` of the first of `ids` that has one.
    pub(crate) async fn nearest(
        &mut self,
        tree: Tree,
        position: Position,
        ids: &[u32],
    ) -> Result<Option<Value>> {
        let to = Position { snapshot: u32::MAX, ..position };
        let mut next = ids.first().copied();
        while let Some(id) = next {
            let from = Position { snapshot: id, ..position };
            let keep = |at: Position, value: &Value| {
                version::rank(ids, at.snapshot).is_some().then(|| value.clone())
            };
            let Some((found, value)) = self.next_as(tree, from, to, keep).await? else { break };
            if value.is_some() {
                return Ok(value);
            }
            next = ids.get(ids.partition_point(|id| *id < found.snapshot)).copied();
        }
        Ok(None)
    }

    /// Whether the version of `position` sees more than its own keys.
    pub(crate) fn is_layered(&self, position: Position) -> bool {
        self.engine.versions.view(SnapshotId(position.snapshot)).is_some()
    }

    /// Puts a value for all who see the version of `position`.
    pub(crate) fn put_layered(&mut self, tree: Tree, position: Position, value: Value) {
        let ids = self.engine.versions.written(SnapshotId(position.snapshot));
        self.put(tree, Position { snapshot: ids[0], ..position }, value);
        // What is being merged would hide it.
        for id in &ids[1..] {
            self.delete(tree, Position { snapshot: *id, ..position });
        }
    }

    /// Deletes what the version of `position` has there itself.
    pub(crate) fn delete_layered(&mut self, tree: Tree, position: Position) {
        for snapshot in self.engine.versions.written(SnapshotId(position.snapshot)) {
            self.delete(tree, Position { snapshot, ..position });
        }
    }

    /// The first key in `from ..= to`.
    ///
    /// # Errors
    /// When a node cannot be read, or `Restart`.
    pub async fn next(
        &mut self,
        tree: Tree,
        from: Position,
        to: Position,
    ) -> Result<Option<(Position, Value)>> {
        self.next_as(tree, from, to, |_, value| value.clone()).await
    }

    /// The first key in `from ..= to`, and what `of` takes of it and its value.
    ///
    /// # Errors
    /// When a node cannot be read, or `Restart`.
    pub(crate) async fn next_as<T>(
        &mut self,
        tree: Tree,
        from: Position,
        to: Position,
        of: impl Fn(Position, &Value) -> T,
    ) -> Result<Option<(Position, T)>> {
        self.next_of_version_as(tree, None, (from, to), of).await
    }

    /// [`Transaction::next_as`] of one version only, if `version` says so.
    ///
    /// # Errors
    /// When a node cannot be read, or `Restart`.
    pub(crate) async fn next_of_version_as<T>(
        &mut self,
        tree: Tree,
        version: Option<u32>,
        (mut from, to): (Position, Position),
        of: impl Fn(Position, &Value) -> T,
    ) -> Result<Option<(Position, T)>> {
        let wanted = |position: Position| version.is_none_or(|it| it == position.snapshot);
        loop {
            if from > to {
                return Ok(None);
            }
            let own = self.updates[self.search(tree, from)..]
                .iter()
                .find(|it| it.tree != tree || (it.value.is_some() && wanted(it.position)))
                .filter(|update| update.tree == tree && update.position <= to)
                .map(|update| update.position);
            // Nothing of the index past an own key is of interest.
            let limit = own.unwrap_or(to);
            let (engine, reads) = (self.engine, &mut self.reads);
            let found = engine.index_next_of(tree, version, (from, limit), reads, &of).await?;
            let Some((position, taken)) = found else {
                let value = own.and_then(|position| self.own_value(tree, position));
                return Ok(value.map(|(position, value)| (position, of(position, &value))));
            };
            match self.own_update(tree, position) {
                None => return Ok(Some((position, taken))),
                Some(Update { value: Some(value), .. }) => {
                    return Ok(Some((position, of(position, value))));
                }
                Some(Update { value: None, .. }) => {}
            }
            if position == Position::MAX {
                return Ok(None);
            }
            from = position.successor();
        }
    }

    /// The last key in `from ..= to`.
    ///
    /// # Errors
    /// When a node cannot be read, or `Restart`.
    pub async fn previous(
        &mut self,
        tree: Tree,
        from: Position,
        mut to: Position,
    ) -> Result<Option<(Position, Value)>> {
        loop {
            if from > to {
                return Ok(None);
            }
            let own = self.updates[..self.search(tree, to.successor())]
                .iter()
                .chain(self.own_update(tree, to).filter(|_| to == Position::MAX))
                .rev()
                .find(|update| update.tree != tree || update.value.is_some())
                .filter(|update| update.tree == tree && update.position >= from)
                .map(|update| update.position);
            let limit = own.unwrap_or(from);
            let found = self.engine.index_previous(tree, limit, to, &mut self.reads).await?;
            let Some((position, value)) = found else {
                return Ok(own.and_then(|position| self.own_value(tree, position)));
            };
            match self.own_update(tree, position) {
                None => return Ok(Some((position, value))),
                Some(Update { value: Some(value), .. }) => {
                    return Ok(Some((position, value.clone())));
                }
                Some(Update { value: None, .. }) => {}
            }
            if position == Position::MIN {
                return Ok(None);
            }
            to = position.predecessor();
        }
    }

    /// Puts a value, in place of any there was.
    ///
    /// # Panics
    /// When the value is longer than [`VALUE_BYTES_MAX`].
    pub fn put(&mut self, tree: Tree, position: Position, value: Value) {
        assert!(value.len() <= VALUE_BYTES_MAX);
        self.set(Update { tree, position, value: Some(value), fresh: false });
    }

    /// Puts an extent whose blocks were just written, and which recovery has to look for.
    pub(crate) fn put_fresh_extent(&mut self, position: Position, value: Value) {
        assert!(value.len() <= VALUE_BYTES_MAX);
        self.set(Update { tree: Tree::Extents, position, value: Some(value), fresh: true });
    }

    /// Says that the extents it puts lie where `flight` writes, which may not have arrived yet.
    pub(crate) fn names(&mut self, flight: &Rc<Flight>) {
        self.flight = Some(Rc::clone(flight));
    }

    /// Deletes the key at `position`, if there is one.
    pub fn delete(&mut self, tree: Tree, position: Position) {
        self.set(Update { tree, position, value: None, fresh: false });
    }

    /// Adds to a counter.
    pub fn add(&mut self, counter: Counter, delta: i64) {
        self.counters.push(CounterUpdate::Add(counter, delta));
    }

    /// The next number of a sequence: never given before, also not across crashes once this
    /// transaction has committed. The first is 1.
    ///
    /// # Errors
    /// `Corrupt` when the sequence stands where no pool comes to.
    pub fn take(&mut self, counter: Counter) -> Result<u64> {
        let number = self.engine.take_number(counter)?;
        self.counters.push(CounterUpdate::AtLeast(counter, number));
        Ok(number)
    }

    fn set(&mut self, new: Update) {
        let at = self.search(new.tree, new.position);
        match self.updates.get_mut(at) {
            Some(update) if (update.tree, update.position) == (new.tree, new.position) => {
                *update = new;
            }
            _ => self.updates.insert(at, new),
        }
    }

    fn search(&self, tree: Tree, position: Position) -> usize {
        self.updates.partition_point(|update| (update.tree, update.position) < (tree, position))
    }

    fn own_update(&self, tree: Tree, position: Position) -> Option<&Update> {
        let update = self.updates.get(self.search(tree, position))?;
        (update.tree == tree && update.position == position).then_some(update)
    }

    fn own_value(&self, tree: Tree, position: Position) -> Option<(Position, Value)> {
        let value = self.own_update(tree, position)?.value.clone()?;
        Some((position, value))
    }
}
