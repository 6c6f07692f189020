//! What one version sees.

/// The versions whose keys one sees, the nearest first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// Rising.
    ids: Vec<u32>,
    /// How many of them come before the version itself: one while it absorbs another.
    before: usize,
}

impl View {
    /// # Panics
    /// When the ids do not rise, or are fewer than `before` and one.
    pub(super) fn new(ids: Vec<u32>, before: usize) -> Self {
        assert!(ids.is_sorted_by(|lower, higher| lower < higher), "ids of versions rise");
        assert!(before <= 1 && before < ids.len());
        Self { ids, before }
    }

    pub(crate) fn ids(&self) -> &[u32] {
        &self.ids
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is more than one.
    pub(crate) fn is_layered(&self) -> bool {
        self.ids.len() > 1
    }

    /// The version in which keys are put.
    pub(crate) fn target(&self) -> u32 {
        self.ids[self.before]
    }

    /// The version whose keys are being moved to the target.
    pub(crate) fn absorbing(&self) -> Option<u32> {
        self.ids[..self.before].first().copied()
    }

    /// The versions that the target was made from.
    pub(crate) fn above(&self) -> &[u32] {
        &self.ids[self.before + 1..]
    }

    /// How near a version is, 0 the nearest; `None`: it is not seen.
    pub(crate) fn rank(&self, id: u32) -> Option<u32> {
        rank(&self.ids, id)
    }
}

/// Where `id` stands in `ids`, which rise.
pub(crate) fn rank(ids: &[u32], id: u32) -> Option<u32> {
    ids.binary_search(&id).ok().map(|at| at as u32)
}
