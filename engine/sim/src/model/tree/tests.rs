use std::rc::Rc;

use engine_store::api::RenameMode;

use super::*;

fn create(model: &mut TreeModel, name: &str, kind: NodeKind) -> TreeOp {
    let node = model.new_node();
    TreeOp::Create { parent: ROOT, name: name.into(), node, kind, mode: 0o644, uid: 0 }
}

fn file() -> NodeKind {
    NodeKind::File(FileData::default())
}

fn perform(promises: &mut Promises, model: &mut TreeModel, op: &TreeOp) {
    assert_eq!(model.start(promises, op).1, Ok(()), "{op:?}");
    model.done(promises, None);
}

/// What a perfect engine would show: the model's state, with inode numbers for names.
fn shown(model: &TreeModel) -> TreeState {
    let names = model
        .state()
        .ids()
        .map(|id| (id, model.inode(id).map_or(1000 + id, |inode| inode.0)))
        .collect();
    model.state().renamed(&names)
}

/// Write-then-rename, many times; returns the model, and what was shown after each operation.
fn history() -> (Promises, TreeModel, Vec<TreeState>) {
    let mut promises = Promises::new(1);
    let mut model = TreeModel::new(InodeNumber(7), 1);
    let mut states = vec![shown(&model)];
    for round in 0..4 {
        let op = create(&mut model, "new", file());
        let TreeOp::Create { node, .. } = op else { unreachable!() };
        let write = TreeOp::Write { node, offset: 0, len: 10_000, version: round + 1 };
        let rename = TreeOp::Rename {
            from: (ROOT, b"new".to_vec()),
            to: (ROOT, b"file".to_vec()),
            mode: RenameMode::Replace,
        };
        for op in [op, write, rename] {
            perform(&mut promises, &mut model, &op);
            states.push(shown(&model));
        }
    }
    (promises, model, states)
}

#[test]
fn every_prefix_is_allowed_until_it_is_durable() {
    let (mut promises, model, states) = history();
    for (count, state) in states.iter().enumerate() {
        let recovered = model.check_crash(&promises, state, 0).unwrap();
        // A write that is wholly there may also count as the next one, in part.
        assert!(recovered.operations == count || recovered.operations + 1 == count, "{count}");
    }
    // The end of the sixth operation is durable.
    let floor = model.log[5].ended.unwrap() + 1;
    promises.raise_floor(0, floor);
    for (count, state) in states.iter().enumerate() {
        assert_eq!(model.check_crash(&promises, state, 0).is_ok(), count >= 6, "{count}");
    }
}

#[test]
fn an_empty_or_short_file_after_rename_is_noticed() {
    let (promises, model, states) = history();
    let mut wrong = states[3].clone();
    let inode = wrong.entries(7).unwrap()[&b"file".to_vec()];
    let mut node = wrong.node(inode).unwrap().clone();
    node.kind = file();
    wrong.insert(inode, node);
    let error = model.check_crash(&promises, &wrong, 0).unwrap_err();
    assert!(error.contains("equals no state"), "{error}");
}

#[test]
fn a_write_may_be_there_in_part_but_only_as_the_next_one() {
    let (promises, model, states) = history();
    // The second operation writes three pages: two of them are there, and the size.
    let mut partial = states[2].clone();
    let inode = partial.entries(7).unwrap()[&b"new".to_vec()];
    let mut node = partial.node(inode).unwrap().clone();
    let NodeKind::File(data) = &mut node.kind else { unreachable!() };
    data.pages.remove(&1);
    partial.insert(inode, node.clone());
    assert_eq!(model.check_crash(&promises, &partial, 0).unwrap().operations, 1);
    // The same hole after the rename is a broken promise.
    let mut wrong = states[3].clone();
    wrong.insert(inode, node);
    assert!(model.check_crash(&promises, &wrong, 0).is_err());
}

#[test]
fn refused_operations_are_refused_and_change_nothing() {
    let mut promises = Promises::new(1);
    let mut model = TreeModel::new(InodeNumber(7), 1);
    let directory = create(&mut model, "d", NodeKind::Directory(BTreeMap::new()));
    perform(&mut promises, &mut model, &directory);
    let a_file = create(&mut model, "f", file());
    perform(&mut promises, &mut model, &a_file);
    let TreeOp::Create { node: d, .. } = directory else { unreachable!() };
    let name = |name: &str| (ROOT, name.as_bytes().to_vec());
    let cases = [
        (create(&mut model, "f", file()), Mistake::Exists),
        (
            TreeOp::Remove { parent: ROOT, name: b"d".to_vec(), directory: false },
            Mistake::IsDirectory,
        ),
        (
            TreeOp::Remove { parent: ROOT, name: b"f".to_vec(), directory: true },
            Mistake::NotDirectory,
        ),
        (TreeOp::Remove { parent: ROOT, name: b"x".to_vec(), directory: false }, Mistake::NotFound),
        (
            TreeOp::Rename { from: name("d"), to: (d, b"in".to_vec()), mode: RenameMode::Replace },
            Mistake::Invalid,
        ),
        (
            TreeOp::Rename { from: name("f"), to: name("d"), mode: RenameMode::Replace },
            Mistake::IsDirectory,
        ),
        (
            TreeOp::Rename { from: name("d"), to: name("f"), mode: RenameMode::NoReplace },
            Mistake::Exists,
        ),
        (
            TreeOp::Rename { from: name("f"), to: name("x"), mode: RenameMode::Exchange },
            Mistake::NotFound,
        ),
    ];
    let before = model.state().clone();
    for (op, mistake) in cases {
        assert_eq!(model.start(&mut promises, &op).1, Err(mistake), "{op:?}");
        model.refused(&mut promises);
        assert_eq!(*model.state(), before);
    }
}

#[test]
fn blocks_of_other_shards_are_outside_the_prefix() {
    let far_offset = 5 << 20;
    let mut promises = Promises::new(2);
    let mut model = TreeModel::new(InodeNumber(8), 2);
    let op = create(&mut model, "f", file());
    let TreeOp::Create { node, .. } = op else { unreachable!() };
    perform(&mut promises, &mut model, &op);
    for (version, offset) in [(1, 0), (2, far_offset), (3, far_offset), (4, 0)] {
        let write = TreeOp::Write { node, offset, len: 4096, version };
        perform(&mut promises, &mut model, &write);
    }
    let page = far_offset / 4096;
    let with_page = |version: Option<u64>| {
        let mut state = shown(&model);
        let mut file = state.node(1000 + node).unwrap().clone();
        let NodeKind::File(data) = &mut file.kind else { unreachable!() };
        data.pages.remove(&page);
        if let Some(version) = version {
            let mut bytes = vec![0; 4096];
            crate::stamp::write_file(&mut bytes, far_offset, version);
            data.put_page(page, &bytes);
        }
        state.insert(1000 + node, file);
        state
    };
    for version in [None, Some(2), Some(3)] {
        assert!(model.check_crash(&promises, &with_page(version), 0).is_ok(), "{version:?}");
    }
    assert!(model.check_crash(&promises, &with_page(Some(1)), 0).is_err());
}

#[test]
fn a_write_without_room_may_be_there_in_part_of_its_pages() {
    let mut promises = Promises::new(2);
    let mut model = TreeModel::new(InodeNumber(8), 2);
    let op = create(&mut model, "f", file());
    let TreeOp::Create { node, .. } = op else { unreachable!() };
    perform(&mut promises, &mut model, &op);
    let write = |version| TreeOp::Write { node, offset: 100, len: 3 * 4096, version };
    perform(&mut promises, &mut model, &write(1));
    let before = model.state().file(node).unwrap().clone();
    let mut after = model.state().clone();
    after.apply(&write(2)).unwrap();
    let after = after.file(node).unwrap().clone();

    // Nothing of it is there: as if it had not been.
    model.start(&mut promises, &write(2)).1.unwrap();
    model.refused_partly(&mut promises, &before).unwrap();
    assert_eq!((model.state().file(node), model.log_len()), (Some(&before), 2));

    // One page of it is there: so it must stay.
    let mut partly = before.clone();
    partly.pages.insert(1, after.pages[&1].clone());
    model.start(&mut promises, &write(2)).1.unwrap();
    model.refused_partly(&mut promises, &partly).unwrap();
    assert_eq!((model.state().file(node), model.log_len()), (Some(&partly), 3));

    // A page that is neither is wrong, also if only its end is.
    let mut wrong = partly.clone();
    Rc::make_mut(wrong.pages.get_mut(&2).unwrap())[4095] ^= 1;
    model.start(&mut promises, &write(2)).1.unwrap();
    let error = model.refused_partly(&mut promises, &wrong).unwrap_err();
    assert!(error.contains("page 2 is neither"), "{error}");
}

#[test]
fn a_settled_tree_goes_on_from_what_was_found() {
    let (mut promises, mut model, states) = history();
    promises.crash(false);
    model.settle(&mut promises, states[5].clone(), false);
    assert!(model.check_now(&states[5]).is_ok());
    assert!(model.check_now(&states[6]).is_err());
    // A loss of power may still go back behind it, but not to what the first crash took.
    assert!(model.check_crash(&promises, &states[3], 0).is_ok());
    model.settle(&mut promises, states[5].clone(), true);
    assert!(model.check_crash(&promises, &states[3], 0).is_err());
    assert!(model.check_crash(&promises, &states[5], 0).is_ok());
}
