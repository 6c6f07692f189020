//! Extents written, read, cut and joined; and what is none.

use super::*;

fn sample() -> Extent {
    Extent {
        blocks: 3,
        pointers: [Pointer { member: 2, generation: 7, block: 1 << 40 }].into_iter().collect(),
        checksums: [1, 2, 3].into_iter().collect(),
        ..Extent::default()
    }
}

fn address() -> Address {
    Address { space: Address::space(0, 3, 9), block: 77 }
}

fn shared() -> Extent {
    let mut holders = Holders::one(Holder { inode: 5, version: 6, shift: 7 });
    assert!(holders.add(Holder { inode: 50, version: 60, shift: 70 }));
    Extent { sharing: Sharing::Shared(holders), ..sample() }
}

#[test]
fn a_reference_is_cut_as_what_it_refers_to() {
    let reference = Extent::reference(address(), 9);
    let value = reference.encode();
    assert_eq!(Extent::decode(&value), Ok(reference.clone()));
    let view = ExtentView::parse(&value).unwrap();
    assert!(view.is_reference() && !view.is_hole() && !reference.is_hole());
    assert_eq!((view.blocks(), view.disk_blocks(), view.live_blocks()), (9, 0, 0));
    let part = reference.cut(4, 5);
    assert_eq!((part.address(), part.blocks), (Some(address().after(4)), 5));
    assert_eq!(view.cut(4, 5), part);
    assert_eq!(view.encode_cut(4, 5), part.encode());
}

#[test]
fn parts_of_a_shared_extent_have_its_holders() {
    for whole in [shared(), Extent { sharing: shared().sharing, ..compressed() }] {
        let value = whole.encode();
        assert_eq!(Extent::decode(&value), Ok(whole.clone()));
        assert_eq!(whole.cut(1, 2).sharing, whole.sharing);
        let view = ExtentView::parse(&value).unwrap();
        assert_eq!(view.encode_cut(1, 2), whole.cut(1, 2).encode());
    }
}

#[test]
fn what_was_cut_is_joined_again() {
    for whole in [sample(), compressed(), shared()] {
        let (first, second) = (whole.cut(0, 1), whole.cut(1, whole.blocks - 1));
        assert_eq!(first.joined(&second), Some(whole.clone()));
        assert_eq!(second.joined(&first), None);
        let mut elsewhere = second.clone();
        elsewhere.pointers[0].block += 1;
        assert_eq!(first.joined(&elsewhere), None);
    }
    let longest = Extent { blocks: EXTENT_BLOCKS_MAX, ..sample() };
    assert_eq!(longest.joined(&sample()), None);
    assert_eq!(compressed().cut(0, 1).joined(&sample()), None);
}

#[test]
fn the_last_holder_is_known() {
    let holder = |number: u64| Holder {
        inode: number,
        version: number as u32 * 3,
        shift: number.wrapping_neg(),
    };
    let mut holders = Holders::one(holder(1));
    assert_eq!(holders.only(), Some(holder(1)));
    for number in 2..9 {
        assert!(holders.add(holder(number)));
        assert_eq!(holders.only(), None);
    }
    for number in [3, 1, 8, 2, 4, 7, 5] {
        holders.remove(holder(number));
    }
    assert_eq!(holders.only(), Some(holder(6)));
    holders.remove(holder(6));
    assert_eq!(holders, Holders::default());
    holders.count = u32::MAX;
    assert!(!holders.add(holder(1)), "no more can be counted");
}

#[test]
fn an_address_is_where_blocks_were_when_they_came_to_be_shared() {
    let plain = sample();
    let expected = Address { space: 1 << 63 | 2 << 32 | 7, block: 1 << 40 };
    assert_eq!(Address::of(&plain), expected);
    assert_eq!(Address::of(&plain.cut(2, 1)), expected.after(2));
    let frame = Address::of(&compressed().cut(3, 2));
    assert_eq!(frame.space, expected.space | 1 << 62);
    assert_eq!(frame.block, (1 << 45) + 3);
    assert!(Address::is_space(frame.space) && !Address::is_space(u64::MAX >> 1));
}

#[test]
fn what_is_shared_and_does_not_fit_is_refused() {
    let as_kind = |mut value: Value, kind: u8| {
        value[5] = kind;
        Extent::decode(&value).is_err()
    };
    let reference = Extent::reference(address(), 9).encode();
    assert!(as_kind(reference.clone(), 0) && as_kind(reference.clone(), 2));
    assert!(as_kind(reference.clone(), 3));
    assert!(as_kind(shared().encode(), 0) && as_kind(shared().encode(), 1));
    assert!(as_kind(sample().encode(), 1) && as_kind(sample().encode(), 2));
    assert!(as_kind(Extent::hole(4).encode(), 1) && as_kind(Extent::hole(4).encode(), 2));
    let mut elsewhere = reference.clone();
    elsewhere[16 + 7] = 0;
    assert!(Extent::decode(&elsewhere).is_err(), "an inode is no address");
    let mut far = reference;
    far[24 + 7] = 1;
    assert!(Extent::decode(&far).is_err(), "past any member");
    let mut nobody = shared().encode();
    let at = nobody.len() - 24;
    nobody[at] = 0;
    assert!(Extent::decode(&nobody).is_err(), "shared by nobody");
}

fn compressed() -> Extent {
    let frame = FramePart { algorithm: Algorithm::Zstd, blocks: 8, offset: 0 };
    Extent { blocks: 8, frame: Some(frame), ..sample() }
}

#[test]
fn parts_of_a_frame_name_all_of_it() {
    let whole = compressed();
    let value = whole.encode();
    assert_eq!(Extent::decode(&value), Ok(whole.clone()));
    assert!(whole.is_whole() && (whole.disk_blocks(), whole.live_blocks()) == (3, 3));
    let view = ExtentView::parse(&value).unwrap();
    let mut live = 0;
    for (start, blocks) in [(0, 4), (4, 1), (5, 3)] {
        let part = whole.cut(start, blocks);
        assert_eq!(view.cut(start, blocks), part);
        assert_eq!(Extent::decode(&view.encode_cut(start, blocks)), Ok(part.clone()));
        assert_eq!((part.pointers[0], part.disk_blocks()), (whole.pointers[0], 3));
        assert_eq!(part.frame.unwrap().offset, start);
        assert!(!part.is_whole());
        assert_eq!(part.live_blocks(), view.live_blocks_of(start, start + blocks));
        let again = part.cut(blocks - 1, 1);
        assert_eq!((again.frame.unwrap().offset, again.live_blocks()), (start + blocks - 1, 1));
        live += part.live_blocks();
    }
    assert_eq!(live, 3 + 1 + 3);
    let position = Position::new(1, 8, 5);
    let there = Pointer { member: 0, generation: 1, block: 77 };
    let moved = whole.cut(2, 6).moved_to(position, &[(there, 3)]);
    let expected = Extent { pointers: [there].into_iter().collect(), ..whole.cut(2, 6) };
    assert_eq!(moved, [(position, expected.encode())]);
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let good = compressed().encode();
    // (byte, value): compression, blocks, blocks on disk, offset, decoded blocks.
    for (at, byte) in [(3, 0), (3, 4), (6, 9), (6, 0), (8, 8), (10, 1), (12, 3), (12, 33)] {
        let mut bad = good.clone();
        bad[at] = byte;
        assert!(Extent::decode(&bad).is_err(), "{at}: {byte}");
    }
    let mut hole = Extent::hole(8).encode();
    hole[3] = 3;
    assert!(Extent::decode(&hole).is_err());
}

/// A place past any member was taken, and its byte offset overflowed when it was read.
#[test]
fn a_place_past_the_end_of_any_member_is_refused() {
    for (block, good) in [(MEMBER_BLOCKS_MAX - 1, true), (MEMBER_BLOCKS_MAX, false)] {
        let mut extent = sample();
        extent.pointers[0].block = block;
        assert_eq!(Extent::decode(&extent.encode()).is_ok(), good, "{block}");
    }
}

#[test]
fn encodes_and_decodes() {
    let extent = sample();
    assert_eq!(Extent::decode(&extent.encode()), Ok(extent.clone()));
    let part = extent.cut(1, 2);
    assert_eq!(part.pointers[0].block, (1 << 40) + 1);
    assert_eq!(part.checksums.as_slice(), [2, 3]);
    assert_eq!(Extent::decode(&part.encode()), Ok(part.clone()));
    let value = extent.encode();
    let view = ExtentView::parse(&value).unwrap();
    assert_eq!(view.cut(1, 2), part);
    assert_eq!(view.encode_cut(1, 2), part.encode());
}

#[test]
fn a_hole_has_a_length_and_nothing_else() {
    let hole = Extent::hole(32);
    let value = hole.encode();
    assert_eq!(Extent::decode(&value), Ok(hole.clone()));
    let view = ExtentView::parse(&value).unwrap();
    assert!(view.is_hole() && hole.is_hole() && !sample().is_hole());
    assert_eq!((view.blocks(), hole.live_blocks(), view.pointers().len()), (32, 0, 0));
    assert_eq!(view.encode_cut(3, 7), Extent::hole(7).encode());
    assert_eq!(hole.cut(3, 7), Extent::hole(7));
    let mut two = sample();
    two.pointers.clear();
    two.checksums.clear();
    assert_eq!(two, Extent::hole(3));
}

#[test]
fn any_damage_is_an_error_or_another_extent_but_no_panic() {
    let reference = Extent::reference(address(), 9).encode();
    for good in [sample().encode(), compressed().encode(), shared().encode(), reference] {
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                if let Ok(extent) = Extent::decode(&bad) {
                    assert_eq!(extent.encode().len(), good.len());
                }
            }
            assert!(Extent::decode(&good[..at]).is_err());
        }
    }
}
