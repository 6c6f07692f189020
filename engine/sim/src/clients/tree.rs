//! A client of a file tree: changes. What it only looks at is in `tree_reads`.

use std::cell::RefMut;
use std::collections::BTreeMap;

use engine_base::InodeNumber;
use engine_store::api::{
    Attributes, CopyMode, CreateAttributes, Data, FileKind, FilePlace, PutMode, RenameMode,
    SetAttributes, TreeRef,
};
use engine_store::error::StoreError;

use super::tree_reads::read_range;
use crate::model::tree::{FileData, Mistake, NodeId, NodeKind, ROOT, TreeModel, TreeOp, TreeState};
use crate::options::TreeMix;
use crate::world::{ClientContext, Refusal, World};

/// Works on the tree `name` until the session's operations are used up.
pub async fn run(mut context: ClientContext, name: String, mix: TreeMix) {
    let reference = match context.world.borrow().trees.get(&name) {
        Some(slot) => slot.reference,
        None => return,
    };
    let weights = [
        mix.create,
        mix.remove,
        mix.rename,
        mix.write,
        mix.cut,
        mix.attributes,
        mix.look,
        mix.sync,
        mix.snapshot,
        mix.options,
        mix.copy,
    ];
    super::options::check(&context, &name).await;
    let client = TreeClient { name, reference, mix };
    while context.next_operation().await {
        let goes_on = match context.choose(&weights) {
            6 => client.look(&mut context).await,
            7 => client.sync(&mut context).await,
            8 => client.snapshots(&mut context).await,
            9 => super::options::change(&mut context, &client.name).await,
            10 => match client.draw_copy(&mut context) {
                Some(op) => client.perform(&context, op).await,
                None => client.look(&mut context).await,
            },
            kind => match client.draw(&mut context, kind) {
                Some(op) => client.perform(&context, op).await,
                None => client.look(&mut context).await,
            },
        };
        // The model keeps what is not durable: bounded by flushing.
        let long = client.model(&context).log_len() > 300;
        if !goes_on || (long && !context.flush().await) {
            return;
        }
    }
}

pub(super) struct TreeClient {
    pub(super) name: String,
    pub(super) reference: TreeRef,
    pub(super) mix: TreeMix,
}

impl TreeClient {
    pub(super) fn model<'a>(&self, context: &'a ClientContext) -> RefMut<'a, TreeModel> {
        super::part(context.world.borrow_mut(), |world| {
            &mut world.trees.get_mut(&self.name).expect("fixed for the session").model
        })
    }

    pub(super) fn inode(&self, context: &ClientContext, node: NodeId) -> InodeNumber {
        // A node the model has was created by a reply or found on disk: both name its inode.
        self.model(context).inode(node).expect("every node of the model has an inode number")
    }

    /// A node for which `wanted` holds.
    pub(super) fn some_node(
        &self,
        context: &mut ClientContext,
        wanted: impl Fn(&NodeKind) -> bool,
    ) -> Option<NodeId> {
        let nodes = self.model(context).state().select(|node| wanted(&node.kind));
        if nodes.is_empty() { None } else { Some(*context.random.pick(&nodes)) }
    }

    pub(super) fn some_file(&self, context: &mut ClientContext) -> Option<NodeId> {
        self.some_node(context, |kind| matches!(kind, NodeKind::File(_)))
    }

    pub(super) fn some_directory(&self, context: &mut ClientContext) -> NodeId {
        self.some_node(context, |kind| matches!(kind, NodeKind::Directory(_))).unwrap_or(ROOT)
    }

    /// A name: one of few, so that they meet, now and then a long or strange one.
    fn some_name(context: &mut ClientContext) -> Vec<u8> {
        let random = &mut context.random;
        let letter = b'a' + random.below(24) as u8;
        match random.below(24) {
            0 => vec![letter; random.range(200, 255) as usize],
            1 => vec![letter, 0xff, b' ', b'\n'],
            _ => vec![letter],
        }
    }

    /// An entry that exists, with three chances in four, or a name that may not.
    fn some_entry(&self, context: &mut ClientContext) -> (NodeId, Vec<u8>) {
        let directory = self.some_directory(context);
        let names: Vec<Vec<u8>> = self
            .model(context)
            .state()
            .entries(directory)
            .map(|entries| entries.keys().cloned().collect())
            .unwrap_or_default();
        if names.is_empty() || context.random.chance(1, 8) {
            (directory, Self::some_name(context))
        } else {
            (directory, context.random.pick(&names).clone())
        }
    }

    /// An operation of a kind; `None` when the tree has nothing to do it to.
    pub(super) fn draw(&self, context: &mut ClientContext, kind: usize) -> Option<TreeOp> {
        let nodes = self.model(context).state().ids().count() as u64;
        match kind {
            0 if nodes < self.mix.nodes_max => Some(self.draw_create(context)),
            0 | 1 => {
                let (parent, name) = self.some_entry(context);
                let is_directory = {
                    let model = self.model(context);
                    let child = model.state().entries(parent).and_then(|e| e.get(&name).copied());
                    child.is_some_and(|child| model.state().entries(child).is_some())
                };
                // Now and then with the wrong call.
                let directory = is_directory ^ context.random.chance(1, 10);
                Some(TreeOp::Remove { parent, name, directory })
            }
            2 => self.draw_rename(context),
            3 => self.draw_write(context),
            4 => self.draw_cut(context),
            _ => self.draw_attributes(context),
        }
    }

    fn draw_create(&self, context: &mut ClientContext) -> TreeOp {
        let parent = self.some_directory(context);
        let name = Self::some_name(context);
        let node = self.model(context).new_node();
        let random = &mut context.random;
        let kind = match random.below(8) {
            0 | 1 => NodeKind::Directory(BTreeMap::new()),
            2 => NodeKind::Symlink(vec![b'/'; random.range(1, 1023) as usize]),
            _ => NodeKind::File(FileData::default()),
        };
        let mode = match kind {
            NodeKind::Symlink(_) => 0o777,
            _ => random.below(0o1000) as u32,
        };
        TreeOp::Create { parent, name, node, kind, mode, uid: random.below(4) as u32 }
    }

    fn draw_rename(&self, context: &mut ClientContext) -> Option<TreeOp> {
        if context.random.chance(1, 4) {
            let node = self.some_node(context, |kind| !matches!(kind, NodeKind::Directory(_)))?;
            let parent = self.some_directory(context);
            return Some(TreeOp::Link { node, parent, name: Self::some_name(context) });
        }
        let from = self.some_entry(context);
        let to = match context.random.chance(1, 2) {
            true => self.some_entry(context),
            false => (self.some_directory(context), Self::some_name(context)),
        };
        let mode = *context.random.pick(&[
            RenameMode::Replace,
            RenameMode::Replace,
            RenameMode::NoReplace,
            RenameMode::Exchange,
        ]);
        Some(TreeOp::Rename { from, to, mode })
    }

    /// An offset: anywhere, or at a block or chunk boundary, or at the end.
    pub(super) fn some_offset(&self, context: &mut ClientContext, node: NodeId) -> u64 {
        let size = self.model(context).state().file(node).map_or(0, |file| file.size);
        let random = &mut context.random;
        let near = self.mix.size_max.min(256 << 10);
        match random.below(6) {
            0 => random.below(self.mix.size_max),
            1 => random.below(near) / 4096 * 4096,
            2 | 3 => size.min(self.mix.size_max),
            _ => random.below(near),
        }
    }

    fn draw_write(&self, context: &mut ClientContext) -> Option<TreeOp> {
        let node = self.some_file(context)?;
        let offset = self.some_offset(context, node);
        let len = context.random.range(1, self.mix.bytes_max);
        let version = self.model(context).new_version();
        Some(TreeOp::Write { node, offset, len, version })
    }

    /// A copy from a file to another, or within one.
    fn draw_copy(&self, context: &mut ClientContext) -> Option<TreeOp> {
        let (from, node) = (self.some_file(context)?, self.some_file(context)?);
        let at = self.some_offset(context, from);
        let mut offset = match context.random.chance(1, 2) {
            true => at,
            false => self.some_offset(context, node),
        };
        let size = self.model(context).state().file(from).map_or(0, |file| file.size);
        let most = if context.random.chance(1, 3) { size + 1 } else { self.mix.bytes_max * 4 };
        let mut len = context.random.range(1, most.min(2 << 20));
        let (at, part) = match context.random.chance(2, 3) {
            true => (at / 4096 * 4096, 4096),
            false => (at, 1),
        };
        offset = offset / part * part;
        if at % 4096 != 0 {
            offset += u64::from(offset % 4096 == at % 4096);
        }
        if at % 4096 != offset % 4096 {
            // One request reads and one writes: what is refused has not grown the file, and no snapshot holds a part.
            len = len.min(1 << 20);
        }
        if from == node {
            // Not over itself.
            len = len.min(at.abs_diff(offset));
        }
        (len > 0).then_some(TreeOp::Copy { from, at, node, offset, len })
    }

    fn draw_cut(&self, context: &mut ClientContext) -> Option<TreeOp> {
        let node = self.some_file(context)?;
        let offset = self.some_offset(context, node);
        if context.random.chance(1, 2) {
            return Some(TreeOp::Resize { node, size: offset });
        }
        let len = context.random.range(1, self.mix.bytes_max * 2);
        Some(TreeOp::Punch { node, offset, len })
    }

    fn draw_attributes(&self, context: &mut ClientContext) -> Option<TreeOp> {
        let node = self.some_node(context, |kind| !matches!(kind, NodeKind::Symlink(_)))?;
        let random = &mut context.random;
        if random.chance(1, 4) {
            let (mode, uid) = (random.below(0o1000) as u32, random.below(4) as u32);
            return Some(TreeOp::Own { node, mode, uid });
        }
        let name = format!("user.{}", random.below(6)).into_bytes();
        if random.chance(1, 4) {
            return Some(TreeOp::XattrRemove { node, name });
        }
        let len = match random.below(8) {
            0 => random.range(0, 1536),
            _ => random.range(0, 40),
        };
        let mut value = vec![0; len as usize];
        random.fill(&mut value);
        let create = *random.pick(&[None, None, Some(true), Some(false)]);
        Some(TreeOp::XattrSet { node, name, value, create })
    }

    /// Does one change and compares what comes of it with the model; `false`: stop.
    pub(super) async fn perform(&self, context: &ClientContext, op: TreeOp) -> bool {
        let expected = {
            let world = &mut *context.world.borrow_mut();
            let slot = world.trees.get_mut(&self.name).expect("fixed for the session");
            slot.model.start(&mut world.promises, &op).1
        };
        let result = self.call(context, &op).await;
        if let (Ok(()), Err(error)) = (&expected, &result)
            && matches!(context.world.borrow().judge(error), Refusal::NoRoom)
            && op.range().is_some()
        {
            return self.refused_partly(context, &op).await;
        }
        let world = &mut *context.world.borrow_mut();
        let log_len = world.trees.get(&self.name).map_or(0, |slot| slot.model.log_len() as u64);
        let numbers = [log_len, u64::from(result.is_ok()), 0];
        let goes_on = self.compare(world, &op, expected, &result);
        world.event(context.executor.now_ns(), context.number, kind_of(&op), numbers);
        goes_on
    }

    /// Compares what came of a change with what the model says; `false`: stop.
    fn compare(
        &self,
        world: &mut World,
        op: &TreeOp,
        expected: Result<(), Mistake>,
        result: &engine_store::Result<Option<Attributes>>,
    ) -> bool {
        let refusal = result.as_ref().err().map(|error| world.judge(error));
        let slot = world.trees.get_mut(&self.name).expect("fixed for the session");
        match (&expected, result, refusal) {
            (Ok(()), Ok(attributes), _) => {
                let created = match (op, attributes) {
                    (TreeOp::Create { node, .. }, Some(attributes)) => {
                        Some((*node, attributes.inode))
                    }
                    _ => None,
                };
                slot.model.done(&mut world.promises, created);
                if let Some(attributes) = attributes
                    && let Err(wrong) = check_reply(slot.model.state(), op, attributes)
                {
                    world.fail(format!("{} {op:?}: {wrong}", self.name));
                }
                world.tree_changed(&self.name);
                world.mark(kind_of(op));
                true
            }
            (Err(mistake), Err(error), _) if accepts(*mistake, error) => {
                slot.model.refused(&mut world.promises);
                world.mark("mistake_refused");
                true
            }
            (_, Err(_), Some(Refusal::NoRoom)) => {
                slot.model.refused(&mut world.promises);
                world.mark("no_space");
                true
            }
            (_, Err(_), Some(Refusal::Device)) => {
                slot.model.unknown(&mut world.promises);
                false
            }
            (_, Err(error), _) => {
                world.fail(format!("{} {op:?}: {error}, expected {expected:?}", self.name));
                false
            }
            (Err(mistake), Ok(_), _) => {
                world.fail(format!("{} {op:?} succeeded, expected {mistake:?}", self.name));
                false
            }
        }
    }

    /// A change of content found no room. Its parts go to several chunks, each for itself, so some may
    /// be done: looks which. `false`: stop.
    async fn refused_partly(&self, context: &ClientContext, op: &TreeOp) -> bool {
        let (Some(node), Some(range)) = (op.changes_content_of(), op.range()) else { return true };
        let size = self.model(context).state().file(node).map_or(0, |file| file.size);
        let mut found = FileData::of_size(size);
        let inode = self.inode(context, node);
        let read = read_range(&context.client, self.reference, inode, &mut found, range).await;
        let world = &mut *context.world.borrow_mut();
        let slot = world.trees.get_mut(&self.name).expect("fixed for the session");
        let outcome = match read {
            Ok(()) => slot.model.refused_partly(&mut world.promises, &found),
            Err(error) => {
                slot.model.unknown(&mut world.promises);
                match world.judge(&error) {
                    Refusal::Device => return false,
                    _ => Err(format!("reading what was refused for want of room: {error}")),
                }
            }
        };
        world.tree_torn(&self.name);
        world.mark("no_space");
        let numbers = [inode.0, range.0, range.1 - range.0];
        world.event(context.executor.now_ns(), context.number, "no space", numbers);
        match outcome {
            Ok(()) => true,
            Err(wrong) => {
                world.fail(format!("{}: {wrong}", self.name));
                false
            }
        }
    }

    /// The engine's call for an operation.
    async fn call(
        &self,
        context: &ClientContext,
        op: &TreeOp,
    ) -> engine_store::Result<Option<Attributes>> {
        let (client, tree) = (&context.client, self.reference);
        let inode = |node: &NodeId| self.inode(context, *node);
        if op.range().is_some() {
            return self.call_on_content(context, op).await;
        }
        match op {
            TreeOp::Create { parent, name, kind, mode, uid, .. } => {
                let attributes = CreateAttributes { mode: *mode, uid: *uid, gid: 0 };
                let parent = inode(parent);
                match kind {
                    NodeKind::Symlink(target) => {
                        client.symlink(tree, parent, name, target, attributes).await.map(Some)
                    }
                    NodeKind::Directory(_) => {
                        let kind = FileKind::Directory;
                        client.create(tree, parent, name, kind, attributes).await.map(Some)
                    }
                    NodeKind::File(_) => client
                        .create(tree, parent, name, FileKind::File, attributes)
                        .await
                        .map(Some),
                }
            }
            TreeOp::Link { node, parent, name } => {
                client.link_inode(tree, inode(node), inode(parent), name).await.map(Some)
            }
            TreeOp::Remove { parent, name, directory } => {
                client.remove(tree, inode(parent), name, *directory).await.map(|()| None)
            }
            TreeOp::Rename { from, to, mode } => {
                let (from, to) = ((inode(&from.0), &from.1[..]), (inode(&to.0), &to.1[..]));
                client.rename(tree, from, to, *mode).await.map(|()| None)
            }
            TreeOp::Resize { node, size } => {
                let set = SetAttributes { size: Some(*size), ..SetAttributes::default() };
                client.set_attributes(tree, inode(node), set).await.map(Some)
            }
            TreeOp::Own { node, mode, uid } => {
                let set = SetAttributes {
                    mode: Some(*mode),
                    uid: Some(*uid),
                    ..SetAttributes::default()
                };
                client.set_attributes(tree, inode(node), set).await.map(Some)
            }
            TreeOp::XattrSet { node, name, value, create } => {
                let mode = match create {
                    None => PutMode::Any,
                    Some(true) => PutMode::Create,
                    Some(false) => PutMode::Replace,
                };
                client.xattr_set(tree, inode(node), name, value, mode).await.map(|()| None)
            }
            TreeOp::XattrRemove { node, name } => {
                client.xattr_remove(tree, inode(node), name).await.map(|()| None)
            }
            _ => Ok(None),
        }
    }

    /// The engine's call for an operation that changes a range of a file.
    async fn call_on_content(
        &self,
        context: &ClientContext,
        op: &TreeOp,
    ) -> engine_store::Result<Option<Attributes>> {
        let (client, tree) = (&context.client, self.reference);
        let inode = |node: &NodeId| self.inode(context, *node);
        match op {
            TreeOp::Write { node, offset, len, version } => {
                let mut bytes = vec![0; *len as usize];
                crate::stamp::write_file(&mut bytes, *offset, *version);
                let data = Data::from_iter([super::slice_of(&bytes)]);
                client.file_write(tree, inode(node), *offset, data).await.map(Some)
            }
            TreeOp::Copy { from, at, node, offset, len } => {
                let place = |node, offset| FilePlace { tree, inode: inode(node), offset };
                let copied = client
                    .file_copy(place(from, *at), place(node, *offset), *len, CopyMode::Auto)
                    .await?;
                if copied.shared_bytes > 0 {
                    context.world.borrow_mut().mark("file_copy_shared");
                }
                Ok(None)
            }
            TreeOp::Punch { node, offset, len } => {
                client.file_punch(tree, inode(node), *offset, *len).await.map(|()| None)
            }
            _ => Ok(None),
        }
    }

    /// fsync of some node, or a flush of everything.
    async fn sync(&self, context: &mut ClientContext) -> bool {
        if context.random.chance(1, 3) {
            return context.flush().await;
        }
        let node = self.some_node(context, |_| true).unwrap_or(ROOT);
        let inode = self.inode(context, node);
        let started = context.world.borrow_mut().promises.start();
        let result = context.client.file_sync(self.reference, inode).await;
        let home = self.model(context).home.0;
        let numbers = [inode.0, started, u64::from(result.is_ok())];
        {
            let world = &mut *context.world.borrow_mut();
            world.promises.end(started);
            world.event(context.executor.now_ns(), context.number, "fsync", numbers);
            if result.is_ok() {
                world.promises.raise_floor(home, started);
                world.mark("fsync");
            }
        }
        match result {
            Ok(()) => true,
            Err(error) => context.tolerates("fsync", &error),
        }
    }
}

fn kind_of(op: &TreeOp) -> &'static str {
    match op {
        TreeOp::Create { kind: NodeKind::File(_), .. } => "create",
        TreeOp::Create { kind: NodeKind::Directory(_), .. } => "mkdir",
        TreeOp::Create { kind: NodeKind::Symlink(_), .. } => "symlink",
        TreeOp::Link { .. } => "link",
        TreeOp::Remove { directory: false, .. } => "unlink",
        TreeOp::Remove { directory: true, .. } => "rmdir",
        TreeOp::Rename { mode: RenameMode::Replace, .. } => "rename",
        TreeOp::Rename { mode: RenameMode::NoReplace, .. } => "rename_noreplace",
        TreeOp::Rename { mode: RenameMode::Exchange, .. } => "rename_exchange",
        TreeOp::Write { .. } => "file_write",
        TreeOp::Copy { .. } => "file_copy",
        TreeOp::Punch { .. } => "punch",
        TreeOp::Resize { .. } => "truncate",
        TreeOp::Own { .. } => "chown",
        TreeOp::XattrSet { .. } => "xattr_set",
        TreeOp::XattrRemove { .. } => "xattr_remove",
        TreeOp::Partly { .. } => "partly",
        TreeOp::Become(_) => "recovery",
    }
}

/// Whether the engine refuses for the reason the model gives.
fn accepts(mistake: Mistake, error: &StoreError) -> bool {
    match mistake {
        Mistake::NotFound => matches!(error, StoreError::NotFound { .. }),
        Mistake::Exists => matches!(error, StoreError::AlreadyExists { .. }),
        // A file over a directory above it: Linux finds that it is not empty first.
        Mistake::NotEmpty => {
            matches!(error, StoreError::NotEmpty { .. } | StoreError::IsDirectory { .. })
        }
        Mistake::NotDirectory => matches!(error, StoreError::NotDirectory { .. }),
        Mistake::IsDirectory => matches!(error, StoreError::IsDirectory { .. }),
        Mistake::Invalid => {
            matches!(error, StoreError::InvalidArgument { .. } | StoreError::NotEmpty { .. })
        }
    }
}

/// Compares the attributes of a reply with the model after the operation.
fn check_reply(state: &TreeState, op: &TreeOp, attributes: &Attributes) -> Result<(), String> {
    let node = match op {
        TreeOp::Create { node, .. }
        | TreeOp::Link { node, .. }
        | TreeOp::Write { node, .. }
        | TreeOp::Resize { node, .. }
        | TreeOp::Own { node, .. } => *node,
        _ => return Ok(()),
    };
    check_attributes(state, node, attributes)
}

/// Compares attributes with the model.
///
/// # Errors
/// What differs.
pub(super) fn check_attributes(
    state: &TreeState,
    node: NodeId,
    attributes: &Attributes,
) -> Result<(), String> {
    let Some(known) = state.node(node) else { return Err("the model has no such node".to_owned()) };
    if (attributes.mode, attributes.uid) != (known.mode, known.uid) && node != ROOT {
        return Err(format!(
            "mode {:o} uid {}, expected {:o} {}",
            attributes.mode, attributes.uid, known.mode, known.uid
        ));
    }
    match &known.kind {
        NodeKind::File(file) if attributes.size != file.size => {
            Err(format!("size {}, expected {}", attributes.size, file.size))
        }
        NodeKind::Directory(entries) if attributes.size != entries.len() as u64 => {
            Err(format!("directory size {}, expected {}", attributes.size, entries.len()))
        }
        NodeKind::Directory(_) => Ok(()),
        _ if attributes.links != known.links => {
            Err(format!("{} links, expected {}", attributes.links, known.links))
        }
        _ => Ok(()),
    }
}
